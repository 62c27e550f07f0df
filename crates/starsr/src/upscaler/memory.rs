// SPDX-License-Identifier: MPL-2.0

//! How much memory a clip takes, before it is taken.

use super::frame_path::FramePath;
use crate::bundle::Manifest;
use crate::diffusion::sampler::Sampler;
use crate::geometry::Size;
use crate::windows::{WindowMode, Windows};

/// Bytes of a number.
const NUMBER: u64 = 4;

/// Arrays of a window's latents that sampling holds: hint, state, the model's input and its
/// prediction.
const SAMPLING: u64 = 4;

/// Arrays of a tile's latents that a run of the denoiser takes and gives: input, hint and
/// prediction.
const RUN: u64 = 3;

/// Bytes of the given number of pixels.
pub(super) fn of_pixels(pixels: u64) -> u64 {
    3 * NUMBER * pixels
}

/// Bytes of all frames and latents of a clip while a window is restored, at most. `latency` is the
/// upscaler's.
pub(super) fn of_arrays(
    path: &FramePath,
    manifest: &Manifest,
    layout: &Windows,
    sampler: &Sampler,
    latency: usize,
) -> u64 {
    let frame = |size: Size| of_pixels(size.area());
    let latents = |size: Size| {
        let latent = &manifest.latent;
        NUMBER * latent.channels as u64 * size.area() / (latent.spatial_factor as u64).pow(2)
    };
    let (input, output) = (frame(path.input_size()), frame(path.output_size()));
    let (canvas, tile) = (path.canvas_size(), path.tile_size());
    let (window, vae) = (layout.longest() as u64, &manifest.vae);
    // Latents of a window.
    let held = path.cadence().latents(layout.longest()) as u64;
    let coded = if path.cadence().joins_frames() {
        path.frames_per_encode()
    } else {
        path.frames_per_encode().max(vae.frames_per_decode)
    };
    let run = held * RUN * latents(tile) + frame(tile) * coded as u64;
    let previous = u64::from(sampler.evaluations() > 1);
    let guided = u64::from(sampler.guidance().is_used());
    match layout.mode() {
        WindowMode::Blend => {
            let sampled = held * (SAMPLING + previous + guided) * latents(canvas);
            // Before and after, pixels of the canvas are held beside latents.
            let pixels = window * frame(canvas) + held * latents(canvas);
            // What neighbours share is kept from one to the next.
            let shared = layout.overlap() as u64 * (output + latents(canvas));
            window * input + sampled.max(pixels) + shared + run
        }
        WindowMode::Wavefront => {
            // Hint, state and last prediction of all frames inside; input, hint and prediction of a
            // window.
            let inside = latency as u64 + 1;
            inside * (input + (2 + previous) * latents(canvas))
                + window * (3 + guided) * latents(canvas)
                + vae.frames_per_decode as u64 * (frame(canvas) + output)
                + run
        }
    }
}

/// [`of_arrays`] of a model that restores frames without a sampler, and `ahead` windows before the
/// last is finished.
pub(super) fn of_direct_arrays(path: &FramePath, layout: &Windows, ahead: usize) -> u64 {
    let frame = |size: Size| of_pixels(size.area());
    let output = frame(path.output_size());
    // The frames, what the model gives for them, and what is finished.
    let made = frame(path.input_size()) + frame(path.canvas_size());
    let window = (1 + ahead as u64) * made + output;
    layout.longest() as u64 * window + layout.overlap() as u64 * output + frame(path.tile_size())
}

/// One run of a graph.
pub(super) struct Run {
    /// Bytes that it takes according to the bundle; 0 where that is not known.
    pub(super) bytes: u64,
    /// Whether it has more pixels than the graph can count.
    pub(super) overflows: bool,
}

/// One run of each kind of graph.
pub(super) struct Runs {
    pub(super) encode: Run,
    pub(super) predict: Run,
    pub(super) decode: Run,
    /// Bytes of the text encoder, with the weights that are loaded for it alone.
    pub(super) text: u64,
}

impl Runs {
    /// Whether one of them has more pixels than its graph can count.
    pub(super) fn overflow(&self) -> bool {
        [&self.encode, &self.predict, &self.decode].into_iter().any(|run| run.overflows)
    }

    /// Bytes of the run that takes the most.
    pub(super) fn most(&self) -> u64 {
        self.encode.bytes.max(self.predict.bytes).max(self.decode.bytes).max(self.text)
    }
}

/// What runs on a tile take: of the denoiser for `window` frames and a batch of `batch`, and of the
/// decoder for `decoded` frames. `text` are the bytes of the text encoder.
pub(super) fn of_runs(
    path: &FramePath,
    manifest: &Manifest,
    window: usize,
    batch: u64,
    decoded: usize,
    text: u64,
) -> Runs {
    let run = |frames: u64, bytes: u64, limit: u64| {
        let pixels = frames * path.tile_size().area();
        Run { bytes: bytes * pixels, overflows: limit > 0 && pixels > limit }
    };
    let Manifest { canvas, vae, latent, .. } = manifest;
    // Such a decoder takes three latents at first, and fewer later.
    let decoded = if path.cadence().joins_frames() {
        decoded.min(1 + 2 * latent.temporal_factor)
    } else {
        decoded
    };
    Runs {
        encode: run(path.frames_per_encode() as u64, vae.encode_memory, vae.run_pixels),
        predict: run(batch * window as u64, canvas.tile_memory, canvas.run_pixels),
        decode: run(decoded as u64, vae.decode_memory, vae.run_pixels),
        text,
    }
}
