// SPDX-License-Identifier: MPL-2.0

//! Groups of frames for the decoder, over a stand-in whose frames show their neighbours in the
//! group.

use ndarray::{Array3, ArrayView4, Axis, Zip};
use starsr::color::ColorFix;
use starsr::diffusion::schedule::{Schedule, ScheduleConfig};
use starsr::geometry::{Interpolation, upscale};
use starsr::model::{Denoiser, Model, Query, Samples};
use starsr::windows::WindowMode;
use starsr::{Cancel, Error, Result, Setting, Settings, Size, Upscaler};
use starsr_testkit::stand_in;

/// Predicts `x0 = hint`; decodes each frame with 0.1 of the frame before it in its group and 0.01
/// of the one behind.
struct Neighbours(Schedule);

impl Denoiser for Neighbours {
    fn predict(&mut self, query: &Query) -> Result<Vec<Samples>> {
        let t = query.t;
        let (a, s) = (self.0.alphas()[t as usize] as f32, self.0.sigmas()[t as usize] as f32);
        let v = Zip::from(query.x).and(query.hint).map_collect(|&x, &hint| (a * x - hint) / s);
        Ok(vec![v.into(); query.conditions.len()])
    }
}

impl Model for Neighbours {
    fn encode(&mut self, pixels: ArrayView4<f32>) -> Result<Samples> {
        Ok(stand_in::to_latents(pixels).into())
    }

    fn decode(&mut self, latents: ArrayView4<f32>) -> Result<Samples> {
        let own = stand_in::to_pixels(latents);
        let mut mixed = own.clone();
        for (f, mut frame) in mixed.outer_iter_mut().enumerate() {
            if f > 0 {
                frame.scaled_add(0.1, &own.index_axis(Axis(0), f - 1));
            }
            if f + 1 < own.dim().0 {
                frame.scaled_add(0.01, &own.index_axis(Axis(0), f + 1));
            }
        }
        Ok(mixed.into())
    }
}

fn frame(number: u64) -> Array3<f32> {
    Array3::from_shape_fn((3, 8, 8), |(c, y, x)| {
        0.5 + 0.2 * (number as f32 * 1.3 + c as f32 + (8 * y + x) as f32 * 0.3).sin()
    })
}

/// For groups of `size` frames of which `overlap` on either side are thrown away, in windows of 7.
fn upscaler(mode: WindowMode, size: usize, overlap: usize) -> Result<Upscaler> {
    let mut manifest = stand_in::manifest();
    manifest.vae.frames_per_decode = size;
    let schedule = Schedule::new(&ScheduleConfig::default())?;
    let settings = Settings {
        window_mode: Some(mode),
        window_length: Some(7),
        window_overlap: Some(0),
        steps: Some(1),
        strength: Some(1.0),
        color_fix: Some(ColorFix::None),
        decode_overlap: Some(overlap),
        ..Settings::default()
    };
    Upscaler::new(
        Box::new(Neighbours(schedule)),
        &manifest,
        &settings,
        Size::new(8, 8),
        Cancel::default(),
    )
}

/// Frame `number` decoded with or without the frames before and behind it.
fn decoded(number: usize, before: bool, behind: bool) -> Array3<f32> {
    let plain = |number: usize| {
        let large = upscale(frame(number as u64).view(), 4, Interpolation::Bicubic).expect("small");
        large.mapv(|v| 2.0 * v.clamp(0.0, 1.0) - 1.0)
    };
    let mut pixels = plain(number);
    if before {
        pixels.scaled_add(0.1, &plain(number - 1));
    }
    if behind {
        pixels.scaled_add(0.01, &plain(number + 1));
    }
    pixels.mapv(|v| (0.5 * v + 0.5).clamp(0.0, 1.0))
}

#[track_caller]
fn assert_decoded(out: &[Array3<f32>], neighbours: impl Fn(usize) -> (bool, bool)) {
    for (f, found) in out.iter().enumerate() {
        let (before, behind) = neighbours(f);
        let worst = (found - &decoded(f, before, behind))
            .iter()
            .fold(0.0f32, |worst, d| worst.max(d.abs()));
        assert!(worst < 2e-5, "frame {f}: {worst}");
    }
}

#[test]
fn without_overlap_groups_are_official() {
    // 10 frames: windows of 7 and 3, each cut into groups of 3 from its own start.
    let out = stand_in::run(&mut upscaler(WindowMode::Blend, 3, 0).unwrap(), 0..10, frame, 1);
    assert_eq!(out.len(), 10);
    assert_decoded(&out, |f| (![0, 3, 6, 7].contains(&f), ![2, 5, 6, 9].contains(&f)));
    // The clip as a whole is cut into groups.
    let out = stand_in::run(&mut upscaler(WindowMode::Wavefront, 3, 0).unwrap(), 0..10, frame, 1);
    assert_decoded(&out, |f| (![0, 3, 6, 9].contains(&f), ![2, 5, 8, 9].contains(&f)));
}

#[test]
fn with_overlap_every_inner_frame_has_both_neighbours() {
    for (size, overlap) in [(3, 1), (5, 1), (7, 3)] {
        let out = stand_in::run(
            &mut upscaler(WindowMode::Blend, size, overlap).unwrap(),
            0..10,
            frame,
            1,
        );
        assert_decoded(&out, |f| (![0, 7].contains(&f), ![6, 9].contains(&f)));
        let out = stand_in::run(
            &mut upscaler(WindowMode::Wavefront, size, overlap).unwrap(),
            0..10,
            frame,
            1,
        );
        assert_decoded(&out, |f| (f != 0, f != 9));
    }
}

#[test]
fn no_frame_is_lost_however_frames_are_fed() {
    for mode in [WindowMode::Blend, WindowMode::Wavefront] {
        for (size, overlap) in [(3, 0), (3, 1), (6, 2), (9, 4)] {
            for frames in [0, 1, 2, 3, 4, 7, 8, 9, 15, 22] {
                let mut one = upscaler(mode, size, overlap).unwrap();
                let by_one = stand_in::run(&mut one, 0..frames, frame, 1);
                assert_eq!(by_one.len() as u64, frames, "{mode:?} {size} {overlap}");
                for step in [3, 100] {
                    let other = stand_in::run(
                        &mut upscaler(mode, size, overlap).unwrap(),
                        0..frames,
                        frame,
                        step,
                    );
                    assert_eq!(other, by_one, "{mode:?} {size} {overlap} {frames} {step}");
                }
                // What was kept of the clip is forgotten with it.
                assert_eq!(stand_in::run(&mut one, 0..frames, frame, 2), by_one);
            }
        }
    }
}

#[test]
fn the_latency_counts_the_frames_behind() {
    for (size, overlap) in [(3, 0), (3, 1), (9, 4), (10, 1)] {
        let mut upscaler = upscaler(WindowMode::Wavefront, size, overlap).unwrap();
        let mut out = Vec::new();
        let mut longest = 0;
        for number in 0..200usize {
            upscaler.send_frame(number as u64, frame(number as u64)).expect("right size");
            stand_in::receive(&mut upscaler, &mut out);
            longest = longest.max(number + 1 - out.len());
        }
        assert!(
            longest <= upscaler.latency(),
            "{size} {overlap}: {longest}, {}",
            upscaler.latency()
        );
        assert!(
            longest + size > upscaler.latency(),
            "{size} {overlap}: {longest}, {}",
            upscaler.latency()
        );
    }
}

#[test]
fn the_bundle_says_the_overlap_unless_the_user_does() {
    let mut manifest = stand_in::manifest();
    (manifest.vae.frames_per_decode, manifest.vae.decode_overlap) = (3, 1);
    let latency = |decode_overlap| {
        let model = Neighbours(Schedule::new(&ScheduleConfig::default()).unwrap());
        let settings = Settings {
            window_mode: Some(WindowMode::Wavefront),
            decode_overlap,
            ..Settings::default()
        };
        Upscaler::new(Box::new(model), &manifest, &settings, Size::new(8, 8), Cancel::default())
            .map(|u| u.latency())
    };
    let official = latency(Some(0)).unwrap();
    // Groups that keep one frame and wait for one more, in place of groups that wait for two.
    assert_eq!((latency(None).unwrap(), latency(Some(1)).unwrap()), (official - 1, official - 1));
    assert!(matches!(
        latency(Some(2)),
        Err(Error::Setting { setting: Setting::DecodeOverlap, .. })
    ));
}
