// SPDX-License-Identifier: MPL-2.0

//! The bundle nano2: one graph, and weights between two sets.

use std::fs;
use std::path::{Path, PathBuf};

use ndarray::{Array3, Array4};
use starsr::bundle::{Bundle, Role};
use starsr::model::Model;
use starsr::runtime::{Engine, Options, Precision, Provider, has_fast_integers};
use starsr::{Cancel, Error, Result, Setting, Settings, Size, Upscaler};
use starsr_testkit::{fixtures, stand_in};

fn nano2() -> PathBuf {
    fixtures::repository("models/nano2")
}

fn options() -> Options {
    Options {
        library: Some(fixtures::onnx_runtime()),
        provider: Provider::Cpu,
        precision: Precision::Float,
        threads: 2,
        ..Options::default()
    }
}

fn load(bundle: &Path, detail: Option<f32>) -> Result<Engine> {
    let options = Options { detail, ..options() };
    Engine::load(&Bundle::open(bundle)?, &options, &Cancel::default())
}

/// Frames in `[0,1]` with edges and noise.
fn frames(count: usize, height: usize, width: usize) -> Array4<f32> {
    let mut n = 7u32;
    Array4::from_shape_fn((count, 3, height, width), |(f, c, y, x)| {
        n = n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let edge = if (x + f) / 5 % 2 == (y / 7) % 2 { 0.7 } else { 0.3 };
        edge + 0.05 * c as f32 + (n >> 8) as f32 / (1u32 << 24) as f32 * 0.1
    })
}

fn upscaled(bundle: &Path, detail: Option<f32>) -> Array4<f32> {
    let mut engine = load(bundle, detail).unwrap();
    let low = frames(3, 12, 20);
    let high = engine.upscale(low.view()).unwrap().view().to_owned();
    assert_eq!(high.dim(), (3, 3, 48, 80));
    assert!(high.iter().all(|v| (0.0..=1.0).contains(v)));
    assert_eq!((engine.evaluations(), engine.stats().runs(Role::Upscaler)), (1, 1));
    high
}

fn difference(a: &Array4<f32>, b: &Array4<f32>) -> f32 {
    (a - b).mapv(f32::abs).fold(0.0, |most, &v| most.max(v))
}

#[test]
fn detail_is_a_blend_of_both_sets_of_weights() {
    let [fidelity, half, detail] = [0.0, 0.5, 1.0].map(|share| upscaled(&nano2(), Some(share)));
    assert!(difference(&fidelity, &detail) > 0.01);
    let (low, high) = (difference(&fidelity, &half), difference(&half, &detail));
    assert!(low > 0.003 && high > 0.003, "{low} {high}");

    let manifest = Bundle::open(&nano2()).unwrap();
    let default = manifest.manifest().detail.as_ref().unwrap().default;
    assert_eq!(upscaled(&nano2(), None), upscaled(&nano2(), Some(default)));

    // The graph itself has the weights for fidelity: with those for detail in their place, it does
    // what a share of 1 does.
    let copy = fixtures::copy_of(&nano2());
    let weights = fs::read(copy.path().join("detail.safetensors")).unwrap();
    fixtures::replace_file(copy.path(), "fidelity.safetensors", &weights);
    assert!(difference(&upscaled(copy.path(), Some(0.0)), &detail) < 1e-5);
}

#[test]
fn engines_of_one_detail_share_their_graphs() {
    let engines = [0.25, 0.25, 0.75].map(|share| load(&nano2(), Some(share)).unwrap());
    assert!(engines[0].shares_graphs_with(&engines[1]));
    assert!(!engines[0].shares_graphs_with(&engines[2]));
}

#[test]
fn wrong_details_and_weights_are_refused() {
    let setting = |bundle: &str, detail| {
        let result = load(&fixtures::repository(bundle), Some(detail)).map(drop);
        match result {
            Err(Error::Setting { setting: Setting::Detail, reason }) => reason,
            other => panic!("{other:?}"),
        }
    };
    assert!(setting("models/nano2", 1.5).contains("outside 0 to 1"));
    assert!(setting("models/nano2", f32::NAN).contains("outside 0 to 1"));
    assert!(setting("models/nano", 0.5).contains("nano has one set of weights only"));

    for (from, to, part) in [("enter.bias", "enter.bios", "is missing"), ("[48]", "[47]", "")] {
        let copy = fixtures::copy_of(&nano2());
        let bytes = fs::read(copy.path().join("detail.safetensors")).unwrap();
        let place = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        let mut wrong = bytes;
        wrong[place..place + from.len()].copy_from_slice(to.as_bytes());
        fixtures::replace_file(copy.path(), "detail.safetensors", &wrong);
        match load(copy.path(), Some(0.5)).map(drop) {
            Err(Error::Bundle { field, reason, .. }) => {
                assert!(field.starts_with("detail.weights"), "{field}");
                assert!(reason.contains(part) && !reason.contains('\n'), "{reason}");
            }
            other => panic!("{to}: {other:?}"),
        }
    }
}

#[test]
fn clips_are_the_same_however_they_are_split() {
    let size = Size::new(22, 14);
    let run = |numbers: std::ops::Range<usize>| -> Vec<Array3<f32>> {
        let bundle = Bundle::open(&nano2()).unwrap();
        let engine = Box::new(load(&nano2(), None).unwrap());
        let settings = Settings { threads: 2, ..Settings::default() };
        let mut upscaler =
            Upscaler::new(engine, bundle.manifest(), &settings, size, Cancel::default()).unwrap();
        let frame = |number: u64| {
            let low = frames(1, size.height, size.width).index_axis_move(ndarray::Axis(0), 0);
            low.mapv(|v| v + number as f32 / 50.0)
        };
        stand_in::run(&mut upscaler, numbers.start as u64..numbers.end as u64, frame, 1)
    };
    let manifest = Bundle::open(&nano2()).unwrap().manifest().window;
    let stride = manifest.length - manifest.overlap;
    let whole = run(0..2 * manifest.length);
    assert_eq!((whole.len(), whole[0].dim()), (2 * manifest.length, (3, 56, 88)));
    assert_eq!(whole, run(0..2 * manifest.length));
    let later = run(stride..2 * manifest.length);
    assert_eq!(whole[stride + manifest.overlap..], later[manifest.overlap..]);
}

#[test]
fn integers_are_taken_where_the_processor_gains_and_are_close_to_floats() {
    let load = |precision, threads, detail| {
        let options = Options { precision, threads, detail, ..options() };
        Engine::load(&Bundle::open(&nano2()).unwrap(), &options, &Cancel::default())
    };
    let low = frames(6, 40, 52);
    let run = |precision, threads, detail| {
        let mut engine = load(precision, threads, detail).unwrap();
        let high = engine.upscale(low.view()).unwrap().view().to_owned();
        (engine.precision(), high)
    };
    let (precision, chosen) = run(Precision::Auto, 2, None);
    if !has_fast_integers() {
        assert_eq!((precision, chosen), run(Precision::Float, 2, None));
        match load(Precision::Int8, 2, None).map(drop) {
            Err(Error::Setting { setting: Setting::Precision, reason }) => {
                assert!(reason.contains("VNNI"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
        return;
    }
    assert_eq!(precision, Precision::Int8);
    for threads in [1, 2, 3] {
        assert_eq!(run(Precision::Int8, threads, None).1, chosen, "{threads} threads");
    }
    for detail in [0.0, 0.75, 1.0] {
        let [floats, integers] = [Precision::Float, Precision::Int8].map(|precision| {
            let (found, high) = run(precision, 2, Some(detail));
            assert_eq!(found, precision);
            high
        });
        let error = (&floats - &integers).mapv(|d| 255.0 * d);
        let rms = error.mapv(|d| d * d).mean().unwrap().sqrt();
        assert!(rms > 0.01 && rms < 2.0, "detail {detail}: {rms} of 255");
    }
    let memory = |precision| load(precision, 2, None).unwrap().manifest().canvas.tile_memory;
    assert!(memory(Precision::Int8) < memory(Precision::Float));
    // Both are loaded, not one in the place of the other.
    let [floats, integers] =
        [Precision::Float, Precision::Int8].map(|precision| load(precision, 2, None).unwrap());
    assert!(!floats.shares_graphs_with(&integers));
}

#[test]
fn halves_are_close_to_floats() {
    let low = frames(3, 20, 24);
    let [floats, halves] = [Precision::Float, Precision::Fp16].map(|precision| {
        let options = Options { precision, ..options() };
        let bundle = Bundle::open(&nano2()).unwrap();
        let mut engine = Engine::load(&bundle, &options, &Cancel::default()).unwrap();
        assert_eq!(engine.precision(), precision);
        engine.upscale(low.view()).unwrap().view().to_owned()
    });
    let most = difference(&floats, &halves);
    assert!(most > 0.0 && most < 0.01, "{most}");
}
