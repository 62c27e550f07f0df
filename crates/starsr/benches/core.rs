// SPDX-License-Identifier: MPL-2.0

//! What happens to frames outside the networks, on one core but for whole windows:
//! `cargo bench -p starsr --bench core`.

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

/// A window of STAR's sizes: 32 frames of 320x180 enlarged to 1280x720 by 14 guided evaluations, on
/// all cores, with a model that takes no time.
mod window {
    use ndarray::{Array2, Array4, ArrayView4};
    use starsr::bundle::Manifest;
    use starsr::model::{Conditioning, Denoiser, Embedded, Embedding, Model, Query, Samples};
    use starsr::{Cancel, Received, Result, Settings, Upscaler};
    use starsr_testkit::fixtures;

    use super::*;

    const FRAMES: usize = 32;
    const CHANNELS: usize = 4;
    const FACTOR: usize = 8;

    /// Gives the same samples whenever it is asked for some of the same shape.
    #[derive(Default)]
    struct Idle(Vec<Samples>);

    impl Idle {
        fn samples(&mut self, frames: usize, channels: usize, size: [usize; 2]) -> Samples {
            let shape = (frames, channels, size[0], size[1]);
            let known = self.0.iter().find(|samples| samples.dim() == shape);
            known.cloned().unwrap_or_else(|| {
                let value = |(f, c, y, x)| ((f + c + y + x) % 97) as f32 / 97.0;
                self.0.push(Array4::from_shape_fn(shape, value).into());
                self.0[self.0.len() - 1].clone()
            })
        }
    }

    impl Denoiser for Idle {
        fn predict(&mut self, query: &Query) -> Result<Vec<Samples>> {
            let (frames, channels, height, width) = query.x.dim();
            Ok(vec![self.samples(frames, channels, [height, width]); query.conditions.len()])
        }

        fn prefers_batches(&self) -> bool {
            true
        }
    }

    impl Model for Idle {
        fn encode(&mut self, pixels: ArrayView4<f32>) -> Result<Samples> {
            let (frames, _, height, width) = pixels.dim();
            Ok(self.samples(frames, CHANNELS, [height / FACTOR, width / FACTOR]))
        }

        fn decode(&mut self, latents: ArrayView4<f32>) -> Result<Samples> {
            let (frames, _, height, width) = latents.dim();
            Ok(self.samples(frames, 3, [height * FACTOR, width * FACTOR]))
        }

        fn embed(&mut self, texts: &[&str]) -> Result<Vec<Embedded>> {
            let embedding = Embedding::new(Array2::zeros((77, 4)));
            Ok(vec![Embedded { embedding, truncated: 0 }; texts.len()])
        }
    }

    fn manifest() -> Manifest {
        let path = fixtures::text().join("bundle.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        let text = text
            .replace("channels = 48", &format!("channels = {CHANNELS}"))
            .replace("spatial_factor = 4", &format!("spatial_factor = {FACTOR}"));
        Manifest::parse(&text, &path).unwrap()
    }

    #[divan::bench(sample_count = 5, sample_size = 1)]
    fn work_around_the_model(bencher: Bencher) {
        let settings = Settings {
            window_length: Some(FRAMES),
            window_overlap: Some(0),
            steps: Some(14),
            guidance_scale: Some(7.5),
            color_fix: Some(ColorFix::Adain),
            ..Settings::default()
        };
        let small = Size::new(320, 180);
        let model = Box::new(Idle::default());
        let mut upscaler =
            Upscaler::new(model, &manifest(), &settings, small, Cancel::default()).unwrap();
        let embedding = Some(Embedding::new(Array2::zeros((77, 4))));
        let conditioning = Conditioning { positive: embedding.clone(), negative: embedding };
        upscaler.set_conditioning(conditioning).unwrap();
        let frame = Array3::from_elem((3, small.height, small.width), 0.5f32);
        bencher.bench_local(|| {
            for number in 0..FRAMES as u64 {
                upscaler.send_frame(number, frame.clone()).unwrap();
            }
            upscaler.flush();
            while let Received::Frame(frame) = upscaler.receive_frame().unwrap() {
                black_box(frame);
            }
            upscaler.reset();
        });
    }
}
