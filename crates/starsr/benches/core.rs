// SPDX-License-Identifier: MPL-2.0

//! What happens to a frame outside the networks, on one core: `cargo bench -p starsr --bench core`.

use divan::{Bencher, black_box};
use ndarray::Array3;
use starsr::color::ColorFix;
use starsr::diffusion::guidance::Guidance;
use starsr::diffusion::noise::{FrameNoise, Noise};
use starsr::diffusion::schedule::{SamplerMode, Schedule, ScheduleConfig};
use starsr::diffusion::solver::Solver;
use starsr::geometry::{
    Canvas, Interpolation, LegalSizes, Padding, Size, resize_bilinear, upscale,
};
use starsr::parallel::Threads;
use starsr::windows::cross_fade;

fn main() {
    divan::main();
}

/// Pixels: 426x240 enlarged four times to 1704x960.
mod pixels {
    use super::*;

    const SMALL: Size = Size { width: 426, height: 240 };
    const LARGE: Size = Size { width: 1704, height: 960 };

    /// Pixels of a frame in `[0,1]`.
    fn picture(size: Size) -> Array3<f32> {
        Array3::from_shape_fn((3, size.height, size.width), |(c, y, x)| {
            ((c * 977 + y * 131 + x * 71) % 251) as f32 / 250.0
        })
    }

    #[divan::bench]
    fn cross_fade_frames(bencher: Bencher) {
        let mut frame = picture(LARGE);
        let (other, threads) = (frame.mapv(|v| 1.0 - v), Threads::default());
        bencher.bench_local(|| {
            cross_fade(black_box(&mut frame), black_box(other.view()), 0.25, &threads).unwrap();
        });
    }

    #[divan::bench]
    fn adain(bencher: Bencher) {
        let (mut frame, source) = (picture(LARGE), picture(SMALL));
        bencher.bench_local(|| {
            ColorFix::Adain.apply(black_box(&mut frame), black_box(source.view())).unwrap();
        });
    }

    #[divan::bench]
    fn wavelet(bencher: Bencher) {
        let mut frame = picture(LARGE);
        let other = frame.mapv(|v| 1.0 - v);
        bencher.bench_local(|| {
            ColorFix::Wavelet.apply(black_box(&mut frame), black_box(other.view())).unwrap();
        });
    }

    #[divan::bench(args = [Interpolation::Bilinear, Interpolation::Bicubic])]
    fn enlarge(bencher: Bencher, how: Interpolation) {
        let source = picture(SMALL);
        bencher.bench_local(|| upscale(black_box(source.view()), 4, how).unwrap());
    }

    #[divan::bench]
    fn resize(bencher: Bencher) {
        let source = picture(SMALL);
        bencher.bench_local(|| resize_bilinear(black_box(source.view()), LARGE).unwrap());
    }

    #[divan::bench]
    fn pad(bencher: Bencher) {
        let large = picture(LARGE);
        let rows = LegalSizes { multiple: 64, offset: 16, minimum: 720 };
        let columns = LegalSizes { multiple: 64, offset: 0, minimum: 1280 };
        let canvas = Canvas::new(LARGE, rows, columns, Padding::Edge).unwrap();
        let mut full = Array3::zeros((3, canvas.size.height, canvas.size.width));
        bencher.bench_local(|| canvas.pad(black_box(large.view()), &mut full.view_mut()).unwrap());
    }
}

/// Latents: a frame of 48x120x160, the nano bundle's at 640x480.
mod latents {
    use super::*;

    const VALUES: usize = 48 * 120 * 160;

    fn drawn() -> Vec<f32> {
        let mut drawn = vec![0.0; VALUES];
        FrameNoise::new(1).fill(7, 1, 0, &mut drawn);
        drawn
    }

    fn solver() -> Solver {
        let schedule = Schedule::new(&ScheduleConfig::default()).unwrap();
        Solver::new(&schedule, &schedule.plan(SamplerMode::Fast, 0, 900).unwrap()).unwrap()
    }

    #[divan::bench]
    fn noise(bencher: Bencher) {
        let mut drawn = vec![0.0; VALUES];
        bencher.bench_local(|| FrameNoise::new(1).fill(black_box(7), 1, 0, black_box(&mut drawn)));
    }

    #[divan::bench]
    fn solver_step(bencher: Bencher) {
        let (solver, drawn) = (solver(), drawn());
        let (mut x, denoised, previous) = (drawn.clone(), vec![0.5; VALUES], vec![0.25; VALUES]);
        bencher
            .bench_local(|| solver.step(1, black_box(&mut x), &denoised, Some(&previous), &drawn));
    }

    #[divan::bench]
    fn scale_model_input(bencher: Bencher) {
        let (solver, mut input) = (solver(), drawn());
        bencher.bench_local(|| solver.scale_model_input(1, black_box(&mut input)));
    }

    #[divan::bench]
    fn x0_from_velocity(bencher: Bencher) {
        let (solver, velocity) = (solver(), drawn());
        let mut input = vec![0.5; VALUES];
        bencher.bench_local(|| {
            input.fill(0.5);
            solver.denoised(1, black_box(&mut input), black_box(&velocity));
        });
    }

    #[divan::bench]
    fn guidance(bencher: Bencher) {
        let (guidance, drawn) = (Guidance::new(7.5, 0.2).unwrap(), drawn());
        let (mut mixed, unguided) = (vec![0.5; VALUES], vec![0.25; VALUES]);
        bencher.bench_local(|| {
            mixed.copy_from_slice(&unguided);
            guidance.mix(0, black_box(&drawn), black_box(&mut mixed));
        });
    }
}
