// SPDX-License-Identifier: MPL-2.0

//! Seams between spatial tiles, with nano.

use ndarray::Array3;
use starsr::bundle::Bundle;
use starsr::runtime::{Engine, Options, Provider};
use starsr::windows::WindowMode;
use starsr::{Cancel, Settings, Size, Upscaler};
use starsr_testkit::{fixtures, stand_in};

const FRAMES: u64 = 3;

/// Value noise: random numbers on a lattice of `cell` pixels, smoothly interpolated, in `[0,1]`.
fn lattice(x: f32, y: f32, cell: f32, seed: u32) -> f32 {
    let (x, y) = (x / cell, y / cell);
    let (left, top) = (x.floor(), y.floor());
    let smooth = |u: f32| u * u * (3.0 - 2.0 * u);
    let (u, v) = (smooth(x - left), smooth(y - top));
    let at = |dx: u32, dy: u32| {
        let mut hash = (left as u32 + dx).wrapping_mul(0x9e37_79b1)
            ^ (top as u32 + dy).wrapping_mul(0x85eb_ca77)
            ^ seed.wrapping_mul(0xc2b2_ae3d);
        hash = (hash ^ (hash >> 15)).wrapping_mul(0x2c1b_3c6d);
        hash = (hash ^ (hash >> 12)).wrapping_mul(0x297a_2d39);
        (hash ^ (hash >> 15)) as f32 / u32::MAX as f32
    };
    (at(0, 0) * (1.0 - u) + at(1, 0) * u) * (1.0 - v) + (at(0, 1) * (1.0 - u) + at(1, 1) * u) * v
}

/// A moving picture with detail at all scales, edges and colours.
fn frame(number: u64, width: usize, height: usize) -> Array3<f32> {
    Array3::from_shape_fn((3, height, width), |(c, y, x)| {
        let (x, y) = (x as f32 + 2.0 * number as f32, y as f32);
        let octaves = [(32.0, 0.4), (16.0, 0.25), (8.0, 0.2), (4.0, 0.12), (2.0, 0.08)];
        let texture: f32 =
            octaves.iter().map(|&(cell, gain)| gain * lattice(x, y, cell, cell as u32)).sum();
        let shape = if lattice(x, y, 12.0, 99) > 0.55 { 0.25 } else { 0.0 };
        [0.9, 0.8, 0.7][c] * texture + [1.0, 0.5, 0.0][c] * shape
    })
}

fn run(bundle: &Bundle, settings: &Settings, (width, height): (usize, usize)) -> Vec<Array3<f32>> {
    let options = Options {
        library: Some(fixtures::onnx_runtime()),
        provider: Provider::Cpu,
        ..Options::default()
    };
    let engine = Engine::load(bundle, &options, &Cancel::default()).unwrap();
    let mut upscaler = Upscaler::new(
        Box::new(engine),
        bundle.manifest(),
        settings,
        Size { width, height },
        Cancel::default(),
    )
    .unwrap();
    stand_in::run(&mut upscaler, 0..FRAMES, |number| frame(number, width, height), 1)
}

/// Mean absolute difference between each column of pixels and the one before it.
fn steps(frames: &[Array3<f32>]) -> Vec<f64> {
    let (channels, height, width) = frames[0].dim();
    let mut sums = vec![0.0; width];
    for frame in frames {
        for row in frame.rows() {
            for (sum, pair) in sums[1..].iter_mut().zip(row.as_slice().unwrap().windows(2)) {
                *sum += f64::from((pair[1] - pair[0]).abs());
            }
        }
    }
    sums.iter().map(|sum| sum / (frames.len() * channels * height) as f64).collect()
}

/// How much larger the steps across `borders` are than those elsewhere, each in proportion to the
/// same columns of the whole picture: content and the grid of the latents, whose columns alone are
/// compared, then do not count.
fn seam(tiled: &[Array3<f32>], whole: &[Array3<f32>], borders: &[usize]) -> f64 {
    let (tiled, whole) = (steps(tiled), steps(whole));
    let near = |column: usize| borders.iter().any(|border| border.abs_diff(column) <= 8);
    let ratio = |wanted: &dyn Fn(usize) -> bool| {
        let columns = || (16..whole.len() - 8).step_by(4).filter(|&column| wanted(column));
        columns().map(|c| tiled[c]).sum::<f64>() / columns().map(|c| whole[c]).sum::<f64>()
    };
    ratio(&|column| borders.contains(&column)) / ratio(&|column| !near(column))
}

#[test]
fn tiles_show_no_seams() {
    let bundle = Bundle::open(&fixtures::repository("models/nano")).unwrap();
    for (mode, steps) in
        [(WindowMode::Blend, 1), (WindowMode::Blend, 4), (WindowMode::Wavefront, 4)]
    {
        let measure = |size, (tile, overlap), borders: &[usize]| {
            let whole = Settings {
                window_mode: Some(mode),
                window_length: Some(FRAMES as usize),
                steps: Some(steps),
                strength: Some(1.0),
                tile_size: Some(0),
                ..Settings::default()
            };
            let tiles =
                Settings { tile_size: Some(tile), tile_overlap: Some(overlap), ..whole.clone() };
            seam(&run(&bundle, &tiles, size), &run(&bundle, &whole, size), borders)
        };
        // Columns 0..384 and 256..640, and without overlap 0..256 and 256..512.
        let shared = measure((160, 32), (384, 128), &[256, 384]);
        let apart = measure((128, 32), (256, 0), &[256]);
        println!("{mode:?}, {steps} evaluations: {shared:.3}, without overlap {apart:.3}");
        assert!((0.9..=1.1).contains(&shared), "{mode:?}, {steps} evaluations: {shared}");
        // The measure sees what it is to see.
        assert!(apart > 1.15, "{mode:?}, {steps} evaluations: {apart} without overlap");
    }
}
