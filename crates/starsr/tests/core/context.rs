// SPDX-License-Identifier: MPL-2.0

//! The frames that have to be restored together: with them, part of a clip comes out as in the
//! whole, from a model in which every frame of a window depends on all others.

use ndarray::{Array3, Array4, ArrayView4, Axis};
use proptest::prelude::*;

use starsr::model::{Denoiser, Model, Query, Samples};
use starsr::upscaler::{Context, WindowMode};
use starsr::{Cancel, Result, Settings, Size, Upscaler};
use starsr_testkit::stand_in::{manifest, receive, to_latents, to_pixels};

const SIZE: Size = Size { width: 4, height: 4 };

/// A model that mixes all frames of a window, and all frames of a run of the decoder.
struct Mixing;

/// Each frame with a share of the sum of all, weighted by their places.
fn mix(frames: ArrayView4<f32>) -> Array4<f32> {
    let mut sum = Array3::<f32>::zeros(frames.index_axis(Axis(0), 0).raw_dim());
    for (place, frame) in frames.axis_iter(Axis(0)).enumerate() {
        sum.scaled_add(0.01 * (1 + place) as f32, &frame);
    }
    let mut mixed = frames.to_owned();
    for mut frame in mixed.axis_iter_mut(Axis(0)) {
        frame += &sum;
    }
    mixed
}

impl Denoiser for Mixing {
    fn predict(&mut self, query: &Query) -> Result<Vec<Samples>> {
        let v = mix(query.x.view()) * 0.5 + mix(query.hint.view()) * 0.25;
        Ok(vec![v.into(); query.conditions.len()])
    }
}

impl Model for Mixing {
    fn encode(&mut self, pixels: ArrayView4<f32>) -> Result<Samples> {
        Ok(to_latents(pixels).into())
    }

    fn decode(&mut self, latents: ArrayView4<f32>) -> Result<Samples> {
        Ok(mix(to_pixels(latents).view()).into())
    }
}

/// The clip's frames at `places`, restored on their own.
fn restore(
    settings: &Settings,
    (group, overlap): (usize, usize),
    numbers: &[u64],
) -> Vec<Array3<f32>> {
    let mut manifest = manifest();
    (manifest.vae.frames_per_decode, manifest.vae.decode_overlap) = (group, overlap);
    let model = Box::new(Mixing);
    let mut upscaler = Upscaler::new(model, &manifest, settings, SIZE, Cancel::default()).unwrap();
    let mut out = Vec::new();
    for number in numbers {
        let shade = (*number as f32 * 0.37).sin() * 0.4 + 0.5;
        upscaler.send_frame(*number, Array3::from_elem((3, 4, 4), shade)).unwrap();
        receive(&mut upscaler, &mut out);
    }
    upscaler.flush();
    assert!(receive(&mut upscaler, &mut out));
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_part_with_its_context_is_as_in_the_whole(
        wavefront: bool,
        length in 2usize..10,
        overlap in 0usize..9,
        steps in 1u32..4,
        groups in prop::sample::select(vec![(1, 0), (3, 0), (3, 1), (5, 2)]),
        frames in 1usize..70,
        first in 0u64..40,
        gap in prop::option::of((1usize..70, 1u64..20)),
        part in (0usize..70, 1usize..40),
    ) {
        let mode = if wavefront { WindowMode::Wavefront } else { WindowMode::Blend };
        let overlap = if wavefront { overlap % length } else { overlap % (length / 2 + 1) };
        let settings = Settings {
            window_mode: Some(mode),
            window_length: Some(length),
            window_overlap: Some(overlap),
            steps: Some(steps),
            threads: 1,
            ..Settings::default()
        };
        let number = |place: usize| {
            let skipped = gap.filter(|(at, _)| place >= *at).map_or(0, |(_, skipped)| skipped);
            first + place as u64 + skipped
        };
        let numbers: Vec<_> = (0..frames).map(number).collect();
        let start = part.0 % frames;
        let wanted = start..(start + part.1).min(frames);

        let mut manifest = manifest();
        (manifest.vae.frames_per_decode, manifest.vae.decode_overlap) = groups;
        let context = Context::new(&settings, &manifest).unwrap();
        let fed = context.around(wanted.clone(), frames, number);
        prop_assert!(fed.start <= wanted.start && wanted.end <= fed.end && fed.end <= frames);

        let whole = restore(&settings, groups, &numbers);
        let parts = restore(&settings, groups, &numbers[fed.clone()]);
        let here = wanted.start - fed.start..wanted.end - fed.start;
        prop_assert_eq!(&parts[here], &whole[wanted]);
    }
}

#[test]
fn context_does_not_grow_with_the_clip() {
    let settings = Settings { window_length: Some(8), ..Settings::default() };
    let context = Context::new(&settings, &manifest()).unwrap();
    let stride = context.stride();
    let fed = context.around(100 * stride..120 * stride, 10_000, |place| place as u64);
    assert_eq!(fed, 99 * stride..119 * stride + 8);
}
