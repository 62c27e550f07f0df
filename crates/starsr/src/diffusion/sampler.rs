// SPDX-License-Identifier: MPL-2.0

//! STAR's sampler on one window of frames (SPEC A.5). [`super::wavefront`] joins windows at every step.

use ndarray::{Array4, ArrayView4};

use super::guidance::Guidance;
use super::noise::Noise;
use super::schedule::{Plan, Schedule};
use super::solver::Solver;
use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::model::{Conditioning, Denoiser};
use crate::parallel::{PART, Threads};

/// A solver and a guidance: all that turns low-quality latents into restored ones, but for the model and the noise.
#[derive(Debug, Clone)]
pub struct Sampler {
    solver: Solver,
    guidance: Guidance,
    threads: Threads,
}

impl Sampler {
    /// Fails with [`Error::Setting`] where `plan` is not one of `schedule`'s.
    pub fn new(schedule: &Schedule, plan: &Plan, guidance: Guidance) -> Result<Self> {
        Ok(Self { solver: Solver::new(schedule, plan)?, guidance, threads: Threads::default() })
    }

    /// Works with so many threads, in place of one for each core. They do not change the result.
    pub fn with_threads(self, threads: Threads) -> Self {
        Self { threads, ..self }
    }

    /// The solver.
    pub fn solver(&self) -> &Solver {
        &self.solver
    }

    /// The guidance.
    pub fn guidance(&self) -> &Guidance {
        &self.guidance
    }

    /// Model evaluations for each window; with guidance each asks the model twice.
    pub fn evaluations(&self) -> usize {
        self.solver.evaluations()
    }

    /// The guided prediction of `x0` `[F,C,h,w]` of evaluation `i` for a window's scaled input. Fails as the model does, and with
    /// [`Error::Inference`] where a value is not finite.
    pub fn denoise(
        &self,
        model: &mut dyn Denoiser,
        i: usize,
        input: ArrayView4<f32>,
        hint: ArrayView4<f32>,
        conditioning: &Conditioning,
    ) -> Result<Array4<f32>> {
        let input = input.as_standard_layout();
        let timestep = self.solver.timestep(i);
        let guided = self.guidance.guides(i, self.evaluations());
        let mut v = self.guidance.velocity(model, input.view(), timestep, hint, conditioning, guided)?;
        let inputs = input.as_slice().expect("standard layout");
        let values = v.as_slice_mut().expect("standard layout");
        self.threads.for_each(inputs.chunks(PART).zip(values.chunks_mut(PART)), |(input, v)| {
            self.solver.denoised(i, input, v);
        });
        if !self.threads.all_finite(values) {
            return Err(Error::Inference {
                graph: "denoiser".into(),
                reason: format!(
                    "its prediction at timestep {timestep} is not finite; try a build of higher precision"
                ),
            });
        }
        Ok(v)
    }

    /// Restores one window on its own.
    ///
    /// `hint` are the low-quality latents `[F,C,h,w]`, restored under `conditioning`, `frames` the absolute number of each frame, which selects its noise. Gives latents
    /// of the same shape. Fails as the model does, with [`Error::Cancelled`] (looked at before each evaluation), and with
    /// [`Error::Input`] where `frames` has not F numbers.
    pub fn sample(
        &self,
        model: &mut dyn Denoiser,
        hint: ArrayView4<f32>,
        frames: &[u64],
        noise: &dyn Noise,
        conditioning: &Conditioning,
        cancel: &Cancel,
    ) -> Result<Array4<f32>> {
        if frames.len() != hint.dim().0 {
            return Err(Error::Input {
                what: "a window".into(),
                reason: format!("it has {} frames but {} numbers", hint.dim().0, frames.len()),
            });
        }
        if hint.is_empty() {
            return Ok(hint.to_owned());
        }
        let hint = hint.as_standard_layout();
        let size = hint.len() / frames.len();
        let hints = hint.as_slice().expect("standard layout");

        let mut x = Array4::zeros(hint.raw_dim());
        let state = x.as_slice_mut().expect("standard layout");
        let starts = state.chunks_exact_mut(size).zip(hints.chunks_exact(size)).zip(frames);
        self.threads.for_each(starts, |((x, hint), &frame)| {
            noise.fill(frame, 0, x);
            self.solver.start(hint, x);
        });

        let mut input = Array4::zeros(x.raw_dim());
        let mut previous: Option<Array4<f32>> = None;
        for i in 0..self.evaluations() {
            cancel.check()?;
            let state = x.as_slice_mut().expect("standard layout");
            let inputs = input.as_slice_mut().expect("standard layout").chunks_exact_mut(size);
            self.threads.for_each(inputs.zip(state.chunks_exact(size)), |(input, x)| {
                self.solver.scale_model_input(i, x, input);
            });
            let denoised = self.denoise(model, i, input.view(), hint.view(), conditioning)?;
            if i + 1 == self.evaluations() {
                return Ok(denoised);
            }
            let predicted = denoised.as_slice().expect("standard layout");
            let before = previous.as_ref().map(|p| p.as_slice().expect("standard layout"));
            let steps = state.chunks_exact_mut(size).zip(predicted.chunks_exact(size)).enumerate();
            self.threads.for_each(steps, |(f, (x, d))| {
                let mut drawn = vec![0.0; size];
                noise.fill(frames[f], i as u32 + 1, &mut drawn);
                let p = before.map(|p| &p[f * size..(f + 1) * size]);
                self.solver.step(i, x, d, p, &drawn);
            });
            previous = Some(denoised);
        }
        Ok(x)
    }
}
