// SPDX-License-Identifier: MPL-2.0

//! What stand-in models share: an autoencoder that only rearranges, the manifest of nano for small
//! frames, and ways to run models and upscalers.

use ndarray::{Array3, Array4, ArrayView4};
use starsr::bundle::Manifest;
use starsr::diffusion::schedule::{Schedule, ScheduleConfig};
use starsr::model::{Condition, Denoiser, Model, Query, Samples};
use starsr::{Received, Result, Upscaler};

use crate::fixtures::repository;

/// Latents of pixels: blocks of 4x4 become channels.
pub fn to_latents(pixels: ArrayView4<f32>) -> Array4<f32> {
    let (f, c, h, w) = pixels.dim();
    Array4::from_shape_fn((f, 16 * c, h / 4, w / 4), |(f, k, y, x)| {
        pixels[[f, k % c, 4 * y + k / c / 4, 4 * x + k / c % 4]]
    })
}

/// The way back.
pub fn to_pixels(latents: ArrayView4<f32>) -> Array4<f32> {
    let (f, k, h, w) = latents.dim();
    let c = k / 16;
    Array4::from_shape_fn((f, c, 4 * h, 4 * w), |(f, c0, y, x)| {
        latents[[f, (y % 4 * 4 + x % 4) * c + c0, y / 4, x / 4]]
    })
}

/// The velocity that `model` predicts under one condition.
pub fn velocity(
    model: &mut dyn Denoiser,
    x: ArrayView4<f32>,
    t: i64,
    hint: ArrayView4<f32>,
    condition: Condition,
) -> Result<Array4<f32>> {
    let query = Query { x, t, hint, conditions: &[condition] };
    query.ask(model).map(|velocities| velocities[0].view().to_owned())
}

/// A model whose prediction is the low-quality frame itself, so that an upscaler gives the plain
/// upscale but for rounding. For bundles with 48 channels, 4 x 4 pixels for each latent, and the
/// default schedule.
pub struct Plain;

impl Denoiser for Plain {
    fn predict(&mut self, query: &Query) -> Result<Vec<Samples>> {
        let schedule = Schedule::new(&ScheduleConfig::default())?;
        let t = query.t as usize;
        let (a, s) = (schedule.alphas()[t] as f32, schedule.sigmas()[t] as f32);
        let v = (&query.x * a - query.hint) / s;
        Ok(vec![v.into(); query.conditions.len()])
    }
}

impl Model for Plain {
    fn encode(&mut self, pixels: ArrayView4<f32>) -> Result<Samples> {
        Ok(to_latents(pixels).into())
    }

    fn decode(&mut self, latents: ArrayView4<f32>) -> Result<Samples> {
        Ok(to_pixels(latents).into())
    }
}

/// The manifest of nano, for a canvas of any multiple of 16.
pub fn manifest() -> Manifest {
    let path = repository("models/nano/bundle.toml");
    let text = std::fs::read_to_string(&path).expect("the nano manifest is part of the project");
    let small =
        text.replace("multiple = 128", "multiple = 16").replace("minimum = 128", "minimum = 16");
    Manifest::parse(&small, &path).expect("valid manifest")
}

/// Receives all frames that are ready; whether the clip is drained.
pub fn receive(upscaler: &mut Upscaler, out: &mut Vec<Array3<f32>>) -> bool {
    loop {
        match upscaler.receive_frame().expect("the model does not fail") {
            Received::Frame(frame) => out.push(frame),
            Received::NeedMoreFrames => return false,
            Received::Drained => return true,
        }
    }
}

/// Runs the frames `numbers`, receiving after every `step` frames.
pub fn run(
    upscaler: &mut Upscaler,
    numbers: std::ops::Range<u64>,
    frame: impl Fn(u64) -> Array3<f32>,
    step: usize,
) -> Vec<Array3<f32>> {
    let mut out = Vec::new();
    for (sent, number) in numbers.enumerate() {
        upscaler.send_frame(number, frame(number)).expect("right size");
        if (sent + 1) % step == 0 {
            assert!(!receive(upscaler, &mut out));
        }
    }
    upscaler.flush();
    assert!(receive(upscaler, &mut out));
    out
}
