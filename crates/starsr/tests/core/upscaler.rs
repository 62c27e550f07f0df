// SPDX-License-Identifier: MPL-2.0

//! The upscaler over a stand-in model whose arithmetic is known.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ndarray::{Array3, ArrayView4, Axis, Zip};
use starsr::color::ColorFix;
use starsr::diffusion::schedule::{Schedule, ScheduleConfig};
use starsr::geometry::{Interpolation, upscale};
use starsr::model::{Denoiser, Model, Query, Samples};
use starsr::windows::{WindowMode, Windows};
use starsr::{Cancel, Error, Received, Result, Setting, Settings, Size, Upscaler};
use starsr_testkit::stand_in;

use stand_in::{manifest, receive};

/// Rearranges 4x4 blocks of pixels into channels; predicts `x0 = hint + bias + 0.01 x + 0.2 (mean
/// over the window's frames of x)`.
struct StandIn {
    schedule: Schedule,
    bias: f32,
    evaluations: Arc<AtomicUsize>,
    /// What is cancelled with the evaluation of this number.
    cancels: Option<(usize, Cancel)>,
    /// Added to `x0` where a tile ends.
    edge: f32,
}

impl Denoiser for StandIn {
    fn predict(&mut self, query: &Query) -> Result<Vec<Samples>> {
        let Query { x, t, hint, .. } = *query;
        let before = self.evaluations.fetch_add(1, Ordering::SeqCst);
        if let Some((number, cancel)) = &self.cancels
            && before == *number
        {
            cancel.set(true);
        }
        let (a, s) =
            (self.schedule.alphas()[t as usize] as f32, self.schedule.sigmas()[t as usize] as f32);
        let mean = x.mean_axis(Axis(0)).expect("a window has frames");
        let mut v = x.to_owned();
        for (mut v, hint) in v.outer_iter_mut().zip(hint.outer_iter()) {
            Zip::from(&mut v).and(hint).and(&mean).for_each(|v, &hint, &mean| {
                let clean = hint + self.bias + 0.01 * *v + 0.2 * mean;
                *v = (a * *v - clean) / s;
            });
        }
        let last = v.dim().3 - 1;
        for column in [0, last] {
            v.index_axis_mut(Axis(3), column).mapv_inplace(|v| v - self.edge / s);
        }
        Ok(vec![v.into(); query.conditions.len()])
    }
}

impl Model for StandIn {
    fn encode(&mut self, pixels: ArrayView4<f32>) -> Result<Samples> {
        Ok(stand_in::to_latents(pixels).into())
    }

    fn decode(&mut self, latents: ArrayView4<f32>) -> Result<Samples> {
        Ok(stand_in::to_pixels(latents).into())
    }
}

struct Rig {
    upscaler: Upscaler,
    evaluations: Arc<AtomicUsize>,
    cancel: Cancel,
}

fn stand_in() -> StandIn {
    let schedule = Schedule::new(&ScheduleConfig::default()).expect("valid schedule");
    StandIn { schedule, bias: 0.0, evaluations: Arc::default(), cancels: None, edge: 0.0 }
}

fn rig_with_bias(settings: &Settings, bias: f32) -> Rig {
    rig_with(settings, |model, _| model.bias = bias)
}

fn rig_with(settings: &Settings, change: impl FnOnce(&mut StandIn, &Cancel)) -> Rig {
    let manifest = manifest();
    let mut model = stand_in();
    let (evaluations, cancel) = (model.evaluations.clone(), Cancel::default());
    change(&mut model, &cancel);
    let upscaler = Upscaler::new(
        Box::new(model),
        &manifest,
        settings,
        Size::new(WIDTH, HEIGHT),
        cancel.clone(),
    )
    .expect("valid settings");
    Rig { upscaler, evaluations, cancel }
}

fn rig(settings: &Settings) -> Rig {
    rig_with_bias(settings, 0.0)
}

const WIDTH: usize = 9;
const HEIGHT: usize = 7;

/// A picture that differs in every pixel and frame.
fn frame(number: u64) -> Array3<f32> {
    Array3::from_shape_fn((3, HEIGHT, WIDTH), |(c, y, x)| {
        let phase = number as f32 * 0.7 + c as f32 + (y * WIDTH + x) as f32 * 0.37;
        0.5 + 0.4 * phase.sin()
    })
}

/// Runs frames `numbers`, receiving after every `step` frames.
fn run(upscaler: &mut Upscaler, numbers: std::ops::Range<u64>, step: usize) -> Vec<Array3<f32>> {
    stand_in::run(upscaler, numbers, frame, step)
}

fn windows(mode: WindowMode, length: usize, overlap: usize, steps: u32) -> Settings {
    Settings {
        window_mode: Some(mode),
        window_length: Some(length),
        window_overlap: Some(overlap),
        steps: Some(steps),
        seed: 5,
        ..Settings::default()
    }
}

#[test]
fn as_many_frames_come_out_as_went_in() {
    for mode in [WindowMode::Blend, WindowMode::Wavefront] {
        for frames in [0, 1, 2, 3, 5, 6, 7, 8, 9, 11, 12, 13, 20, 31] {
            let mut rig = rig(&windows(mode, 6, 2, 3));
            let out = run(&mut rig.upscaler, 0..frames, 1);
            assert_eq!(out.len() as u64, frames, "{mode:?}");
            assert!(out.iter().all(|f| f.dim() == (3, 4 * HEIGHT, 4 * WIDTH)));
            assert_eq!(rig.upscaler.stats().frames_in, frames);
            assert_eq!(rig.upscaler.stats().frames_out, frames);
        }
    }
}

#[test]
fn frames_are_the_same_however_they_are_fed() {
    for mode in [WindowMode::Blend, WindowMode::Wavefront] {
        for overlap in [0, 1, 3] {
            let settings = windows(mode, 6, overlap, 2);
            let reference = run(&mut rig(&settings).upscaler, 0..23, 1);
            for step in [2, 5, 7, 100] {
                assert_eq!(
                    run(&mut rig(&settings).upscaler, 0..23, step),
                    reference,
                    "{mode:?} {overlap} {step}"
                );
            }
        }
    }
}

#[test]
fn no_frame_waits_longer_than_the_latency() {
    for mode in [WindowMode::Blend, WindowMode::Wavefront] {
        for (length, overlap, steps) in [(6, 2, 1), (6, 2, 4), (8, 4, 3), (5, 0, 2), (1, 0, 1)] {
            let mut rig = rig(&windows(mode, length, overlap, steps));
            let latency = rig.upscaler.latency();
            let mut out = Vec::new();
            for number in 0..80 {
                rig.upscaler.send_frame(number, frame(number)).expect("right size");
                receive(&mut rig.upscaler, &mut out);
                assert!(
                    out.len() + latency > number as usize,
                    "{mode:?} {length} {overlap}: {} of {number}",
                    out.len()
                );
            }
        }
    }
}

#[test]
fn a_clip_begun_at_a_later_window_has_the_same_windows() {
    let settings = windows(WindowMode::Blend, 6, 2, 3);
    let layout = Windows::new(WindowMode::Blend, 6, 2).expect("valid");
    let whole = run(&mut rig(&settings).upscaler, 0..30, 1);
    let k = 3;
    let start = layout.start(k);
    let later = run(&mut rig(&settings).upscaler, start as u64..30, 1);
    // The first frames share a window with earlier ones in the whole clip only.
    assert_eq!(later[2..], whole[start + 2..]);
    assert_ne!(later[0], whole[start]);
}

#[test]
fn several_clips_in_a_row_do_not_touch_each_other() {
    for mode in [WindowMode::Blend, WindowMode::Wavefront] {
        let mut rig = rig(&windows(mode, 6, 2, 2));
        let first = run(&mut rig.upscaler, 0..11, 1);
        assert_eq!(run(&mut rig.upscaler, 0..11, 3), first);
        rig.upscaler.send_frame(50, frame(50)).expect("right size");
        rig.upscaler.reset();
        assert_eq!(run(&mut rig.upscaler, 0..11, 4), first);
    }
}

#[test]
fn seams_are_cross_faded() {
    let settings = windows(WindowMode::Blend, 6, 3, 1);
    let out = run(&mut rig(&settings).upscaler, 0..9, 1);
    // Both windows alone, and the mix that the overlap must be.
    let first = run(&mut rig(&settings).upscaler, 0..6, 1);
    let second = run(&mut rig(&settings).upscaler, 3..9, 1);
    let layout = Windows::new(WindowMode::Blend, 6, 3).expect("valid");
    assert_eq!(out[..3], first[..3]);
    assert_eq!(out[6..], second[3..]);
    for i in 3..6 {
        let weight = layout.weight(1, i);
        let expected = &first[i] + weight * (&second[i - 3] - &first[i]);
        assert!((&out[i] - &expected).iter().all(|d| d.abs() < 1e-6));
        assert_ne!(out[i], first[i]);
    }
}

#[test]
fn the_seed_chooses_the_noise() {
    let settings = windows(WindowMode::Blend, 6, 2, 2);
    let reference = run(&mut rig(&settings).upscaler, 0..7, 1);
    let other = run(&mut rig(&Settings { seed: 6, ..settings }).upscaler, 0..7, 1);
    assert_ne!(reference, other);
}

#[test]
fn threads_do_not_change_the_result() {
    for mode in [WindowMode::Blend, WindowMode::Wavefront] {
        let [one, many] = [1, 5].map(|threads| {
            let settings = Settings { threads, ..windows(mode, 6, 2, 3) };
            run(&mut rig(&settings).upscaler, 0..9, 1)
        });
        assert_eq!(one, many, "{mode:?}");
    }
}

#[test]
fn tiles_give_nearly_the_whole_picture() {
    // The stand-in works pixel by pixel, so that tiles must agree but for rounding: noise and
    // canvas are those of the whole.
    for mode in [WindowMode::Blend, WindowMode::Wavefront] {
        let settings = windows(mode, 6, 2, 2);
        let mut one = rig(&settings);
        let whole = run(&mut one.upscaler, 0..8, 1);
        let tiled = Settings { tile_size: Some(32), tile_overlap: Some(8), ..settings };
        let mut rig = rig(&tiled);
        let parts = run(&mut rig.upscaler, 0..8, 1);
        assert_eq!(
            rig.evaluations.load(Ordering::SeqCst),
            2 * one.evaluations.load(Ordering::SeqCst)
        );
        for (a, b) in whole.iter().zip(&parts) {
            assert!((a - b).iter().all(|d| d.abs() < 1e-5), "{mode:?}");
        }
    }
}

#[test]
fn what_a_tile_gets_wrong_at_its_edge_is_faded_out_at_every_evaluation() {
    for mode in [WindowMode::Blend, WindowMode::Wavefront] {
        for steps in [1, 4] {
            let run = |size, overlap| {
                let settings = Settings {
                    tile_size: Some(size),
                    tile_overlap: Some(overlap),
                    strength: Some(1.0),
                    ..windows(mode, 6, 2, steps)
                };
                let right = run(&mut rig(&settings).upscaler, 0..6, 1);
                let wrong =
                    run(&mut rig_with(&settings, |model, _| model.edge = 0.4).upscaler, 0..6, 1);
                let most = |a: &Array3<f32>, b: &Array3<f32>| {
                    let inside = ndarray::s![.., .., 8..a.dim().2 - 8];
                    (a - b).slice(inside).iter().fold(0.0f32, |most, d| most.max(d.abs()))
                };
                right.iter().zip(&wrong).fold(0.0f32, |largest, (a, b)| largest.max(most(a, b)))
            };
            // In tiles of 32 pixels that share 16 the outermost latents weigh up to a twentieth.
            let (shared, apart) = (run(32, 16), run(16, 0));
            assert!(
                shared < 0.02 && apart > 0.09,
                "{mode:?}, {steps} evaluations: {shared}, {apart}"
            );
        }
    }
}

#[test]
fn cancelling_stops_before_the_next_tile() {
    for mode in [WindowMode::Blend, WindowMode::Wavefront] {
        let settings =
            Settings { tile_size: Some(16), tile_overlap: Some(0), ..windows(mode, 6, 2, 3) };
        let mut rig =
            rig_with(&settings, |model, cancel| model.cancels = Some((7, cancel.clone())));
        for number in 0..12 {
            rig.upscaler.send_frame(number, frame(number)).expect("right size");
        }
        assert!(matches!(rig.upscaler.receive_frame(), Err(Error::Cancelled)), "{mode:?}");
        assert_eq!(rig.evaluations.load(Ordering::SeqCst), 8, "{mode:?}");
    }
}

#[test]
fn strength_blends_with_the_plain_upscale() {
    let settings =
        |strength| Settings { strength: Some(strength), ..windows(WindowMode::Blend, 6, 2, 1) };
    let full = run(&mut rig_with_bias(&settings(1.0), 0.2).upscaler, 0..6, 1);
    let half = run(&mut rig_with_bias(&settings(0.5), 0.2).upscaler, 0..6, 1);
    let none = run(&mut rig_with_bias(&settings(0.0), 0.2).upscaler, 0..6, 1);
    for i in 0..6 {
        let plain = upscale(frame(i as u64).view(), 4, Interpolation::Bicubic).expect("small");
        let plain = plain.mapv(|v| v.clamp(0.0, 1.0));
        assert!((&none[i] - &plain).iter().all(|d| d.abs() < 1e-6));
        assert!((&half[i] - &((&full[i] + &plain) * 0.5)).iter().all(|d| d.abs() < 1e-6));
    }
}

#[test]
fn colour_fix_takes_the_mean_from_the_input() {
    for (fix, wanted) in
        [(ColorFix::None, false), (ColorFix::Adain, true), (ColorFix::Wavelet, true)]
    {
        let settings = Settings { color_fix: Some(fix), ..windows(WindowMode::Blend, 6, 2, 1) };
        let out = run(&mut rig_with_bias(&settings, 0.3).upscaler, 0..6, 1);
        let drift = (out[3].mean().expect("pixels") - frame(3).mean().expect("pixels")).abs();
        assert_eq!(drift < 0.03, wanted, "{fix:?}: mean is off by {drift}");
    }
}

#[test]
fn cancelling_stops_before_the_next_evaluation() {
    for mode in [WindowMode::Blend, WindowMode::Wavefront] {
        let mut rig = rig(&windows(mode, 6, 2, 3));
        for number in 0..12 {
            rig.upscaler.send_frame(number, frame(number)).expect("right size");
        }
        rig.cancel.set(true);
        assert!(matches!(rig.upscaler.receive_frame(), Err(Error::Cancelled)));
        assert_eq!(rig.evaluations.load(Ordering::SeqCst), 0);
        rig.cancel.set(false);
        rig.upscaler.reset();
        assert_eq!(run(&mut rig.upscaler, 0..12, 1).len(), 12);
    }
}

#[test]
fn frames_of_another_size_are_refused() {
    let mut rig = rig(&Settings::default());
    let error =
        rig.upscaler.send_frame(0, Array3::zeros((3, HEIGHT, WIDTH + 1))).expect_err("wrong size");
    assert!(error.to_string().contains("[3, 7, 9]"), "{error}");
    rig.upscaler.flush();
    assert!(rig.upscaler.send_frame(0, frame(0)).is_err(), "ended");
    assert!(matches!(rig.upscaler.receive_frame(), Ok(Received::Drained)));
    assert!(rig.upscaler.send_frame(0, frame(0)).is_ok());
}

#[test]
fn settings_outside_the_bundle_are_refused_by_name() {
    let cases = [
        (Settings { window_length: Some(65), ..Settings::default() }, Setting::WindowLength),
        (
            Settings { window_length: Some(4), window_overlap: Some(3), ..Settings::default() },
            Setting::WindowOverlap,
        ),
        (Settings { steps: Some(0), ..Settings::default() }, Setting::Steps),
        (Settings { noise_level: Some(1001), ..Settings::default() }, Setting::NoiseLevel),
        (Settings { guidance_scale: Some(7.5), ..Settings::default() }, Setting::GuidanceScale),
        (Settings { guidance_rescale: Some(1.5), ..Settings::default() }, Setting::GuidanceRescale),
        (Settings { strength: Some(f32::NAN), ..Settings::default() }, Setting::Strength),
        (
            Settings { tile_size: Some(8), tile_overlap: Some(0), ..Settings::default() },
            Setting::TileSize,
        ),
        (
            Settings { tile_size: Some(32), tile_overlap: Some(32), ..Settings::default() },
            Setting::TileOverlap,
        ),
    ];
    let manifest = manifest();
    for (settings, name) in cases {
        match Upscaler::new(
            Box::new(stand_in()),
            &manifest,
            &settings,
            Size::new(64, 64),
            Cancel::default(),
        ) {
            Err(Error::Setting { setting, .. }) => assert_eq!(setting, name),
            Err(other) => panic!("{name}: {other}"),
            Ok(_) => panic!("{name} was accepted"),
        }
    }
}
