// SPDX-License-Identifier: MPL-2.0

//! STAR's sampler on one window of frames (docs/star.md, A.5). [`super::wavefront`] joins windows
//! at every step.

use ndarray::{Array4, ArrayView4};

use super::guidance::Guidance;
use super::noise::Noise;
use super::schedule::{Plan, Schedule};
use super::solver::Solver;
use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::model::{Conditioning, Denoiser, Query};
use crate::names::Role;
use crate::parallel::{PART, Threads};

/// A solver and a guidance: all that turns low-quality latents into restored ones, but for the
/// model and the noise.
#[derive(Debug, Clone)]
pub struct Sampler {
    solver: Solver,
    guidance: Guidance,
    threads: Threads,
}

impl Sampler {
    /// The sampler that follows `plan`, on the calling thread alone.
    ///
    /// # Errors
    /// [`Error::Input`] where `plan` is not one of `schedule`'s.
    pub fn new(schedule: &Schedule, plan: &Plan, guidance: Guidance) -> Result<Self> {
        Ok(Self::of(Solver::new(schedule, plan)?, guidance))
    }

    /// The sampler of this solver, on the calling thread alone.
    pub fn of(solver: Solver, guidance: Guidance) -> Self {
        Self { solver, guidance, threads: Threads::default() }
    }

    /// Works with these threads. They do not change the result.
    pub(crate) fn with_threads(self, threads: Threads) -> Self {
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

    /// See [`Guidance::separate`].
    pub fn separate_guidance(&mut self, model: &dyn Denoiser) -> bool {
        self.guidance.separate(model)
    }

    /// Evaluations for each window; a guided one takes two predictions of the model.
    pub fn evaluations(&self) -> usize {
        self.solver.evaluations()
    }

    /// Predictions that `model` is asked for to restore a window.
    pub fn predictions(&self, model: &dyn Denoiser) -> usize {
        let n = self.evaluations();
        let guided = (0..n).filter(|&i| self.guidance.guides(i, n)).count();
        if self.guidance.batches(model) { n } else { n + guided }
    }

    /// The guided prediction of `x0` `[F,C,h,w]` of evaluation `i` for a window's scaled input.
    ///
    /// # Errors
    /// As [`Guidance::predict`], and [`Error::Inference`] where a value is not finite.
    pub fn denoise(
        &mut self,
        model: &mut dyn Denoiser,
        i: usize,
        input: ArrayView4<f32>,
        hint: ArrayView4<f32>,
        conditioning: &Conditioning,
    ) -> Result<Array4<f32>> {
        let input = input.as_standard_layout();
        let t = self.solver.timestep(i);
        let conditions = [conditioning.positive.as_ref(), conditioning.negative.as_ref()];
        let halves = if self.guidance.guides(i, self.evaluations()) { 2 } else { 1 };
        let query = Query { x: input.view(), t, hint, conditions: &conditions[..halves] };
        let mut v = self.guidance.predict(model, i, &query)?;
        let inputs = input.as_slice().expect("standard layout");
        let values = v.as_slice_mut().expect("standard layout");
        let solver = &self.solver;
        let parts = inputs.chunks(PART).zip(values.chunks_mut(PART));
        self.threads.for_each(parts, |(input, v)| solver.denoised(i, input, v));
        if !self.threads.all_finite(values) {
            let reason = format!(
                "its prediction at timestep {t} is not finite; with 16-bit graphs use the 32-bit \
                 version of the bundle"
            );
            return Err(Error::inference(Role::Denoiser, reason));
        }
        Ok(v)
    }

    /// Restores one window on its own: latents `[F,C,h,w]` of the low-quality latents `hint` of the
    /// same shape, under `conditioning`. `frames` are the absolute numbers of the F frames, which
    /// select their noise.
    ///
    /// # Errors
    /// As [`Self::denoise`], [`Error::Cancelled`] (checked before each evaluation), and
    /// [`Error::Input`] unless `frames` has F numbers.
    pub fn sample(
        &mut self,
        model: &mut dyn Denoiser,
        hint: ArrayView4<f32>,
        frames: &[u64],
        noise: &dyn Noise,
        conditioning: &Conditioning,
        cancel: &Cancel,
    ) -> Result<Array4<f32>> {
        if frames.len() != hint.dim().0 {
            let reason = format!("it has {} frames but {} numbers", hint.dim().0, frames.len());
            return Err(Error::input("a window", reason));
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
        let solver = &self.solver;
        self.threads.for_each(starts, |((x, hint), &frame)| {
            noise.fill(frame, 0, x);
            solver.start(hint, x);
        });

        let mut input = Array4::zeros(x.raw_dim());
        let mut previous: Option<Array4<f32>> = None;
        for i in 0..self.evaluations() {
            cancel.check()?;
            let solver = &self.solver;
            let state = x.as_slice_mut().expect("standard layout");
            let inputs = input.as_slice_mut().expect("standard layout").chunks_exact_mut(size);
            self.threads.for_each(inputs.zip(state.chunks_exact(size)), |(input, x)| {
                solver.scale_model_input(i, x, input);
            });
            let denoised = self.denoise(model, i, input.view(), hint.view(), conditioning)?;
            if i + 1 == self.evaluations() {
                return Ok(denoised);
            }
            let solver = &self.solver;
            let predicted = denoised.as_slice().expect("standard layout");
            let before = previous.as_ref().map(|p| p.as_slice().expect("standard layout"));
            let steps = state.chunks_exact_mut(size).zip(predicted.chunks_exact(size));
            self.threads.for_each(steps.enumerate(), |(f, (x, d))| {
                let mut drawn = vec![0.0; size];
                noise.fill(frames[f], i as u32 + 1, &mut drawn);
                let p = before.map(|p| &p[f * size..(f + 1) * size]);
                solver.step(i, x, d, p, &drawn);
            });
            previous = Some(denoised);
        }
        Ok(x)
    }
}
