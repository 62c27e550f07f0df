// SPDX-License-Identifier: MPL-2.0

//! The upscaler over a model that fails, or for which memory is short.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ndarray::{Array3, ArrayView4};
use starsr::bundle::Role;
use starsr::geometry::upscale;
use starsr::model::{Denoiser, Model, Query, Samples};
use starsr::windows::WindowMode;
use starsr::{Cancel, Error, Received, Result, Setting, Settings, Size, Upscaler};
use starsr_testkit::stand_in;

use stand_in::{manifest, run};

const WIDTH: usize = 32;
const HEIGHT: usize = 24;

/// What the test does to a model.
#[derive(Clone, Default)]
struct Trouble {
    fails: Arc<AtomicBool>,
    /// Latents of a frame for which there is memory; 0 for any number.
    limit: Arc<AtomicUsize>,
}

struct StandIn(Trouble);

impl Denoiser for StandIn {
    fn predict(&mut self, query: &Query) -> Result<Vec<Samples>> {
        let Query { x, hint, .. } = *query;
        let (graph, latents) = (Role::Denoiser, x.dim().2 * x.dim().3);
        if self.0.fails.load(Ordering::SeqCst) {
            return Err(Error::Inference { graph, reason: "out of order".into() });
        }
        let limit = self.0.limit.load(Ordering::SeqCst);
        if limit > 0 && latents > limit {
            return Err(Error::Memory {
                graph,
                reason: format!("no memory for {latents} latents"),
            });
        }
        Ok(vec![(&x * 0.5 - hint).into(); query.conditions.len()])
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

fn settings(mode: WindowMode) -> Settings {
    Settings {
        window_mode: Some(mode),
        window_length: Some(6),
        window_overlap: Some(2),
        steps: Some(2),
        strength: Some(1.0),
        ..Settings::default()
    }
}

fn rig(settings: &Settings) -> (Upscaler, Trouble) {
    let trouble = Trouble::default();
    let model = Box::new(StandIn(trouble.clone()));
    let upscaler =
        Upscaler::new(model, &manifest(), settings, Size::new(WIDTH, HEIGHT), Cancel::default())
            .unwrap();
    (upscaler, trouble)
}

fn frame(number: u64) -> Array3<f32> {
    Array3::from_shape_fn((3, HEIGHT, WIDTH), |(c, y, x)| {
        0.5 + 0.4 * (number as f32 * 0.7 + c as f32 + (y * WIDTH + x) as f32 * 0.37).sin()
    })
}

fn plain(number: u64) -> Array3<f32> {
    let rules = manifest().canvas;
    upscale(frame(number).view(), 4, rules.upscale).unwrap().mapv(|v| v.clamp(0.0, 1.0))
}

const MODES: [WindowMode; 2] = [WindowMode::Blend, WindowMode::Wavefront];

#[test]
fn short_memory_leads_to_smaller_tiles() {
    for mode in MODES {
        let small = Settings { tile_size: Some(64), tile_overlap: Some(16), ..settings(mode) };
        let expected = run(&mut rig(&small).0, 0..20, frame, 1);

        let whole = Settings { tile_overlap: Some(16), ..settings(mode) };
        let (mut upscaler, trouble) = rig(&whole);
        assert_eq!(upscaler.reduced_tile_size(), None);
        trouble.limit.store(16 * 16, Ordering::SeqCst);
        let out = run(&mut upscaler, 0..20, frame, 1);
        assert_eq!(upscaler.reduced_tile_size(), Some(64));
        // A window begins anew; a wavefront keeps latents that were encoded before, which agree but
        // for rounding.
        let limit = if mode == WindowMode::Blend { 0.0 } else { 1e-5 };
        let same = |(a, b): (&Array3<f32>, &Array3<f32>)| (a - b).iter().all(|d| d.abs() <= limit);
        assert!(out.len() == expected.len() && out.iter().zip(&expected).all(same), "{mode:?}");
    }
}

#[test]
fn memory_that_falls_short_later_loses_no_frame() {
    for mode in MODES {
        let (mut upscaler, trouble) = rig(&settings(mode));
        let mut out = Vec::new();
        for number in 0..40 {
            if number == 15 {
                trouble.limit.store(16 * 16, Ordering::SeqCst);
            }
            upscaler.send_frame(number, frame(number)).unwrap();
            assert!(!stand_in::receive(&mut upscaler, &mut out));
        }
        upscaler.flush();
        assert!(stand_in::receive(&mut upscaler, &mut out));
        assert_eq!((out.len(), upscaler.reduced_tile_size()), (40, Some(64)));
    }
}

#[test]
fn memory_for_no_legal_tile_is_an_error_with_the_numbers() {
    for mode in MODES {
        let (mut upscaler, trouble) = rig(&settings(mode));
        trouble.limit.store(1, Ordering::SeqCst);
        for number in 0..12 {
            upscaler.send_frame(number, frame(number)).unwrap();
        }
        let Err(Error::Memory { graph, reason }) = upscaler.receive_frame() else {
            panic!("{mode:?}")
        };
        assert_eq!(graph, Role::Denoiser);
        for part in ["no memory for", "windows of 6 frames", "32x32 pixels"] {
            assert!(reason.contains(part), "{part} is not in: {reason}");
        }
    }
}

#[test]
fn a_window_that_failed_can_be_tried_again() {
    let expected = run(&mut rig(&settings(WindowMode::Blend)).0, 0..12, frame, 1);
    let (mut upscaler, trouble) = rig(&settings(WindowMode::Blend));
    let mut out = Vec::new();
    for number in 0..12 {
        upscaler.send_frame(number, frame(number)).unwrap();
        trouble.fails.store(true, Ordering::SeqCst);
        while let Some(frames) = upscaler.next_window() {
            assert_eq!(frames, 6);
            assert!(matches!(upscaler.receive_frame(), Err(Error::Inference { .. })));
            trouble.fails.store(false, Ordering::SeqCst);
            stand_in::receive(&mut upscaler, &mut out);
        }
        trouble.fails.store(false, Ordering::SeqCst);
    }
    upscaler.flush();
    assert!(stand_in::receive(&mut upscaler, &mut out));
    assert!(out == expected);
}

#[test]
fn one_window_can_be_left_out() {
    let expected = run(&mut rig(&settings(WindowMode::Blend)).0, 0..18, frame, 1);
    let (mut upscaler, _) = rig(&settings(WindowMode::Blend));
    let mut out = Vec::new();
    // Windows start at frames 0, 4, 8 and 12; the third is left out.
    for number in 0..18 {
        upscaler.send_frame(number, frame(number)).unwrap();
        if number == 13 {
            assert_eq!(upscaler.bypass().unwrap(), 4);
        }
        stand_in::receive(&mut upscaler, &mut out);
    }
    upscaler.flush();
    assert!(stand_in::receive(&mut upscaler, &mut out));
    assert_eq!(upscaler.stats().bypassed, 4);
    for (number, (frame, restored)) in (0..).zip(out.iter().zip(&expected)) {
        let plain = plain(number);
        match number {
            // Shared with the windows before and behind: between the two.
            8 | 9 | 12 | 13 => assert!(*frame != plain && frame != restored, "frame {number}"),
            10 | 11 => assert!(*frame == plain && frame != restored, "frame {number}"),
            _ => assert!(frame == restored, "frame {number}"),
        }
    }
    assert_eq!(out.len(), 18);
}

#[test]
fn all_that_is_inside_a_wavefront_can_be_left_out() {
    let (mut upscaler, trouble) = rig(&settings(WindowMode::Wavefront));
    let mut out = Vec::new();
    trouble.fails.store(true, Ordering::SeqCst);
    for number in 0..40 {
        upscaler.send_frame(number, frame(number)).unwrap();
        if number == 20 {
            trouble.fails.store(false, Ordering::SeqCst);
        }
        loop {
            match upscaler.receive_frame() {
                Ok(Received::Frame(frame)) => out.push(frame),
                Ok(_) => break,
                Err(_) => drop(upscaler.bypass().unwrap()),
            }
        }
    }
    upscaler.flush();
    assert!(stand_in::receive(&mut upscaler, &mut out));
    assert_eq!(out.len(), 40);
    let bypassed = upscaler.stats().bypassed as usize;
    assert!((8..=21).contains(&bypassed), "{bypassed}");
    for (number, frame) in (0..).zip(&out) {
        assert_eq!(*frame == plain(number), (number as usize) < bypassed, "frame {number}");
    }
}

#[test]
fn there_may_be_nothing_to_leave_out() {
    for mode in MODES {
        let (mut upscaler, _) = rig(&settings(mode));
        assert_eq!((upscaler.bypass().unwrap(), upscaler.next_window()), (0, None));
        upscaler.send_frame(0, frame(0)).unwrap();
        upscaler.flush();
        let mut out = Vec::new();
        assert!(stand_in::receive(&mut upscaler, &mut out));
        assert_eq!(out.len(), 1);
    }
}

#[test]
fn the_memory_needed_is_known_before() {
    let of = |settings: &Settings, size: (usize, usize)| {
        let model = Box::new(StandIn(Trouble::default()));
        Upscaler::new(model, &manifest(), settings, Size::new(size.0, size.1), Cancel::default())
            .unwrap()
    };
    for mode in MODES {
        let settings = settings(mode);
        let small = of(&settings, (64, 64)).memory_estimate();
        // 256x256 pixels of three floats, twice for each of six frames; a wavefront holds latents,
        // which have as many numbers.
        assert!((2 * 6 * 786_432..300 * 786_432).contains(&small), "{mode:?}: {small}");
        let longer = Settings { window_length: Some(12), ..settings.clone() };
        assert!(of(&longer, (64, 64)).memory_estimate() > small);

        let mut huge = of(&settings, (7680, 4320));
        let estimate = huge.memory_estimate();
        assert!(estimate > 50 << 30, "{mode:?}: {estimate}");
        huge.fit_memory(estimate).unwrap();
        assert_eq!(huge.reduced_tile_size(), None);
        let Err(Error::Setting { setting, reason }) = huge.fit_memory(24 << 30) else {
            panic!("{mode:?}")
        };
        assert_eq!(setting, Setting::WindowLength);
        for part in ["6 frames", "7680x4320", "30720x17280", "24.0 GiB"] {
            assert!(reason.contains(part), "{part} is not in: {reason}");
        }
    }
    assert!(starsr::upscaler::memory_of_this_machine().is_none_or(|bytes| bytes > 64 << 20));
}

#[test]
fn memory_chooses_the_tiles_unless_they_are_set() {
    let mut manifest = manifest();
    manifest.canvas.tile_memory = 1000;
    let of = |settings: &Settings| {
        let model = Box::new(StandIn(Trouble::default()));
        Upscaler::new(model, &manifest, settings, Size::new(WIDTH, HEIGHT), Cancel::default())
            .unwrap()
    };
    for mode in MODES {
        let auto = Settings { tile_overlap: Some(16), ..settings(mode) };
        let small = Settings { tile_size: Some(64), ..auto.clone() };
        let expected = run(&mut of(&small), 0..12, frame, 1);
        let (whole, tiled) = (of(&auto).memory_estimate(), of(&small).memory_estimate());
        assert!(whole > tiled + tiled / 2, "{mode:?}: {whole}, {tiled} in tiles");

        let mut upscaler = of(&auto);
        upscaler.fit_memory(whole).unwrap();
        assert_eq!(upscaler.reduced_tile_size(), None);
        upscaler.fit_memory(whole - 1).unwrap();
        assert_eq!((upscaler.reduced_tile_size(), upscaler.memory_estimate()), (Some(64), tiled));
        assert!(run(&mut upscaler, 0..12, frame, 1) == expected, "{mode:?}");

        let mut set = of(&Settings { tile_size: Some(128), ..auto.clone() });
        set.fit_memory(whole - 1).unwrap();
        assert_eq!((set.reduced_tile_size(), set.memory_estimate()), (None, whole));
    }
}
