// SPDX-License-Identifier: MPL-2.0

//! What happens to a frame outside the networks, on one core: `cargo bench --bench core`.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use starsr::geometry::{Axis, Canvas, Interpolation, Padding, resize_bilinear, upscale};
use starsr::color::ColorFix;
use starsr::diffusion::guidance::Guidance;
use starsr::diffusion::noise::{FrameNoise, Noise};
use starsr::diffusion::schedule::{SamplerMode, Schedule, ScheduleConfig};
use starsr::diffusion::solver::Solver;
use starsr::windows::cross_fade;
use ndarray::Array3;

/// Pixels of a frame in [0,1].
fn picture(height: usize, width: usize) -> Array3<f32> {
    Array3::from_shape_fn((3, height, width), |(c, y, x)| ((c * 977 + y * 131 + x * 71) % 251) as f32 / 250.0)
}

/// Pixels: 426x240 enlarged four times to 1704x960.
fn pixels(c: &mut Criterion) {
    let (source, large) = (picture(240, 426), picture(960, 1704));
    let mut group = c.benchmark_group("1704x960");
    group.throughput(Throughput::Elements(large.len() as u64));
    let other = large.mapv(|v| 1.0 - v);
    let mut frame = large.clone();
    group.bench_function("cross-fade", |b| {
        b.iter(|| cross_fade(black_box(&mut frame), black_box(other.view()), 0.25).unwrap())
    });
    let mut frame = large.clone();
    group.bench_function("adain", |b| {
        b.iter(|| ColorFix::Adain.apply(black_box(&mut frame), black_box(source.view())).unwrap())
    });
    group.bench_function("wavelet", |b| {
        b.iter(|| ColorFix::Wavelet.apply(black_box(&mut frame), black_box(other.view())).unwrap())
    });
    for how in [Interpolation::Bilinear, Interpolation::Bicubic] {
        group.bench_function(format!("upscale {how:?}").to_lowercase(), |b| {
            b.iter(|| upscale(black_box(source.view()), 4, how).unwrap())
        });
    }
    group.bench_function("resize bilinear", |b| {
        b.iter(|| resize_bilinear(black_box(source.view()), 960, 1704).unwrap())
    });
    let rows = Axis { multiple: 64, offset: 16, minimum: 720 };
    let columns = Axis { multiple: 64, offset: 0, minimum: 1280 };
    let canvas = Canvas::new(960, 1704, rows, columns, Padding::Edge).unwrap();
    let mut full = Array3::zeros((3, canvas.height, canvas.width));
    group.bench_function("pad", |b| {
        b.iter(|| canvas.pad(black_box(large.view()), &mut full.view_mut()).unwrap());
    });
    group.finish();
}

/// Latents: a frame of 48x120x160, the nano bundle's at 640x480.
fn latents(c: &mut Criterion) {
    let n = 48 * 120 * 160;
    let mut group = c.benchmark_group("latents 48x120x160");
    group.throughput(Throughput::Elements(n as u64));
    let mut drawn = vec![0.0; n];
    group.bench_function("noise", |b| {
        b.iter(|| FrameNoise::new(1).fill(black_box(7), 1, black_box(&mut drawn)))
    });

    let schedule = Schedule::new(&ScheduleConfig::default()).unwrap();
    let solver = Solver::new(&schedule, &schedule.plan(SamplerMode::Fast, 0, 900).unwrap()).unwrap();
    let mut x = drawn.clone();
    let (mut denoised, previous) = (vec![0.5f32; n], vec![0.25f32; n]);
    group.bench_function("solver step", |b| {
        b.iter(|| solver.step(1, black_box(&mut x), &denoised, Some(&previous), &drawn))
    });
    let mut input = vec![0.0; n];
    group.bench_function("scale model input", |b| {
        b.iter(|| solver.scale_model_input(1, black_box(&drawn), black_box(&mut input)))
    });
    group.bench_function("x0 from velocity", |b| {
        b.iter(|| {
            denoised.fill(0.5);
            solver.denoised(1, black_box(&input), black_box(&mut denoised))
        })
    });
    let guidance = Guidance::new(7.5, 0.2).unwrap();
    group.bench_function("guidance", |b| {
        b.iter(|| {
            denoised.copy_from_slice(&previous);
            guidance.mix(black_box(&drawn), black_box(&mut denoised))
        })
    });
    group.finish();
}

criterion_group!(core, pixels, latents);
criterion_main!(core);
