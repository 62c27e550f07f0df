// SPDX-License-Identifier: MPL-2.0

//! What fits into a device's memory, over a stand-in that pretends to compute in one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ndarray::{Array3, ArrayView4};
use starsr::bundle::{Manifest, PromptsSpec, Role};
use starsr::model::{Denoiser, Memory, Model, Query, Samples};
use starsr::{Cancel, Error, Result, Settings, Size, Upscaler};
use starsr_testkit::stand_in::{self, Plain};

/// Computes in memory of its own.
#[derive(Default)]
struct OnDevice {
    /// Bytes that are said to be free.
    free: Option<u64>,
    /// Frames of a run of the autoencoder for which there is memory; 0 for any number.
    most: usize,
    predictions: Arc<AtomicUsize>,
}

impl OnDevice {
    fn check(&self, graph: Role, samples: ArrayView4<f32>) -> Result<()> {
        let frames = samples.dim().0;
        if self.most == 0 || frames <= self.most {
            return Ok(());
        }
        Err(Error::Memory { graph, reason: format!("no memory for {frames} frames") })
    }
}

impl Denoiser for OnDevice {
    fn predict(&mut self, query: &Query) -> Result<Vec<Samples>> {
        self.predictions.fetch_add(1, Ordering::SeqCst);
        Plain.predict(query)
    }

    fn prefers_batches(&self) -> bool {
        true
    }
}

impl Model for OnDevice {
    fn encode(&mut self, pixels: ArrayView4<f32>) -> Result<Samples> {
        self.check(Role::VaeEncoder, pixels)?;
        Plain.encode(pixels)
    }

    fn decode(&mut self, latents: ArrayView4<f32>) -> Result<Samples> {
        self.check(Role::VaeDecoder, latents)?;
        Plain.decode(latents)
    }

    fn memory(&self) -> Memory {
        Memory::Device(self.free)
    }
}

const MIB: u64 = 1 << 20;
const AREA: u64 = 128 * 128;

/// A frame of 32x32 pixels is a canvas of 128x128. A window of 8 takes 128 MiB for each half of a
/// prediction, runs of the autoencoder 16 MiB for each frame and 128 MiB for all 8.
fn manifest() -> Manifest {
    let mut manifest = stand_in::manifest();
    manifest.window.length = 8;
    manifest.window.overlap = 0;
    manifest.canvas.tile = 64;
    manifest.canvas.tile_overlap = 16;
    for axis in [&mut manifest.canvas.height, &mut manifest.canvas.width] {
        (axis.multiple, axis.minimum) = (32, 32);
    }
    let per_pixel = 16 * MIB / AREA;
    manifest.canvas.tile_memory = per_pixel;
    (manifest.vae.encode_memory, manifest.vae.decode_memory) = (per_pixel, per_pixel);
    (manifest.vae.frames_per_encode, manifest.vae.frames_per_decode) = (8, 8);
    manifest.vae.decode_overlap = 1;
    manifest.prompts = Some(PromptsSpec::default());
    manifest
}

fn upscaler(free: Option<u64>, settings: &Settings) -> Upscaler {
    over(OnDevice { free, ..OnDevice::default() }, settings)
}

fn over(model: OnDevice, settings: &Settings) -> Upscaler {
    let model = Box::new(model);
    let mut upscaler =
        Upscaler::new(model, &manifest(), settings, Size::new(32, 32), Cancel::default()).unwrap();
    upscaler.fit_memory(1 << 40).unwrap();
    upscaler
}

fn guided() -> Settings {
    Settings { guidance_scale: Some(2.0), ..Settings::default() }
}

#[test]
fn a_device_with_room_takes_whole_frames_and_both_halves() {
    let upscaler = upscaler(Some(256 * MIB), &guided());
    assert_eq!(upscaler.device_memory_estimate(), 256 * MIB);
    assert_eq!((upscaler.reduced_tile_size(), upscaler.window_evaluations()), (None, 1));
}

#[test]
fn guidance_is_separated_first() {
    let upscaler = upscaler(Some(128 * MIB), &guided());
    assert_eq!(upscaler.device_memory_estimate(), 128 * MIB);
    assert_eq!((upscaler.reduced_tile_size(), upscaler.window_evaluations()), (None, 2));
    assert!(upscaler.is_guidance_separated());
}

#[test]
fn then_tiles_become_smaller() {
    let upscaler = upscaler(Some(50 * MIB), &guided());
    assert_eq!(upscaler.reduced_tile_size(), Some(64));
    // A tile of 64x64 takes a quarter.
    assert_eq!(upscaler.device_memory_estimate(), 32 * MIB);
}

#[test]
fn runs_of_the_autoencoder_become_shorter_than_a_window() {
    // Windows of 2 frames take 32 MiB, and the autoencoder as much: runs of 8 frames do not fit.
    let settings = Settings { window_length: Some(2), ..Settings::default() };
    let upscaler = upscaler(Some(64 * MIB), &settings);
    assert_eq!(upscaler.reduced_tile_size(), None);
    // Of the runs 8, 5, 4 and 3 frames long the third fits.
    assert_eq!(upscaler.device_memory_estimate(), 64 * MIB);
}

#[test]
fn tiles_that_are_set_stay() {
    let settings = Settings { tile_size: Some(128), ..Settings::default() };
    let upscaler = upscaler(Some(MIB), &settings);
    assert_eq!(upscaler.reduced_tile_size(), None);
    // Runs of the autoencoder are as short as they can be; a window is not.
    assert_eq!(upscaler.device_memory_estimate(), 128 * MIB);
}

#[test]
fn the_bundles_tiles_are_taken_where_nothing_is_known() {
    let upscaler = upscaler(None, &Settings::default());
    assert_eq!(upscaler.reduced_tile_size(), None);
    // Tiles of 64x64.
    assert_eq!(upscaler.device_memory_estimate(), 32 * MIB);
}

fn frame(number: u64) -> Array3<f32> {
    Array3::from_elem((3, 32, 32), 0.02 * number as f32)
}

#[test]
fn a_run_of_the_autoencoder_that_fails_is_cut_without_sampling_again() {
    let settings = Settings { steps: Some(1), ..Settings::default() };
    let expected = stand_in::run(&mut upscaler(Some(1 << 40), &settings), 0..16, frame, 1);
    for most in [4, 3] {
        let model = OnDevice { free: Some(1 << 40), most, ..OnDevice::default() };
        let predictions = model.predictions.clone();
        let mut upscaler = over(model, &settings);
        let out = stand_in::run(&mut upscaler, 0..16, frame, 1);
        // Two windows, whole.
        assert_eq!(predictions.load(Ordering::SeqCst), 2, "{most}");
        assert_eq!(upscaler.reduced_tile_size(), None, "{most}");
        assert!(out == expected, "{most}");
    }
}

#[test]
fn every_way_of_fitting_gives_all_frames() {
    let run = |free| {
        let mut upscaler = upscaler(free, &Settings::default());
        stand_in::run(&mut upscaler, 0..19, frame, 1)
    };
    let whole = run(Some(1 << 40));
    assert_eq!(whole.len(), 19);
    for free in [Some(100 * MIB), Some(MIB), None] {
        let fitted = run(free);
        assert_eq!(fitted.len(), 19);
        for (a, b) in whole.iter().zip(&fitted) {
            assert!((a - b).iter().all(|d| d.abs() < 1e-5), "{free:?}");
        }
    }
}
