// SPDX-License-Identifier: MPL-2.0

//! STAR's sampler on one window of frames (docs/star.md, A.5). [`super::wavefront`] joins windows
//! at every step.

use ndarray::{ArrayView4, ArrayViewMut4, s};

use super::guidance::Guidance;
use super::noise::Noise;
use super::schedule::{Plan, Schedule};
use super::solver::Solver;
use crate::buffers::{Buffers, Lease};
use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::model::{Conditioning, Denoiser, Query, Samples};
use crate::names::Role;
use crate::parallel::{PART, Threads, are_finite};

/// A solver and a guidance: all that turns low-quality latents into restored ones, but for the
/// model and the noise.
#[derive(Debug, Clone)]
pub struct Sampler {
    solver: Solver,
    guidance: Guidance,
    threads: Threads,
    buffers: Buffers,
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
        Self { solver, guidance, threads: Threads::default(), buffers: Buffers::default() }
    }

    /// Works with these threads. They do not change the result.
    pub(crate) fn with_threads(self, threads: Threads) -> Self {
        Self { threads, ..self }
    }

    /// Frees the memory that is kept for the next window.
    pub(crate) fn free_memory(&self) {
        self.buffers.clear();
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

    /// Turns a window's scaled input of evaluation `i`, `[F,C,h,w]` in standard layout, into the
    /// guided prediction of `x0`.
    ///
    /// # Errors
    /// As [`Guidance::predict`], [`Error::Inference`] where a value is not finite, and
    /// [`Error::Input`] for another layout. What is left of `input` is of no use then.
    pub fn denoise(
        &mut self,
        model: &mut dyn Denoiser,
        i: usize,
        mut input: ArrayViewMut4<f32>,
        hint: ArrayView4<f32>,
        conditioning: &Conditioning,
    ) -> Result<()> {
        let t = self.solver.timestep(i);
        let conditions = [conditioning.positive.as_ref(), conditioning.negative.as_ref()];
        let halves = if self.guidance.guides(i, self.evaluations()) { 2 } else { 1 };
        let query = Query { x: input.view(), t, hint, conditions: &conditions[..halves] };
        let velocity = self.guidance.predict(model, i, &query)?;
        let (_, channels, height, width) = input.dim();
        let Some(input) = input.as_slice_mut() else {
            return Err(Error::input("a window", "its latents are not in standard layout"));
        };
        if input.is_empty() {
            return Ok(());
        }
        let (solver, velocity) = (&self.solver, velocity.view());
        let planes = input.chunks_exact_mut(height * width).enumerate();
        let finite = self.threads.map(planes, |(place, x)| {
            let v = velocity.slice(s![place / channels, place % channels, .., ..]);
            solver.denoised(i, x, v.to_slice().ok_or(())?);
            if are_finite(x) { Ok(()) } else { Err(()) }
        });
        finite.map(|_| ()).map_err(|()| {
            let reason = format!(
                "its prediction at timestep {t} is not finite; with 16-bit graphs use the 32-bit \
                 version of the bundle"
            );
            Error::inference(Role::Denoiser, reason)
        })
    }

    /// Restores one window on its own: latents `[F,C,h,w]` of the low-quality latents `hint` of the
    /// same shape, under `conditioning`. `frames` are the absolute numbers of the F frames, which
    /// select their noise.
    ///
    /// # Errors
    /// As [`Self::denoise`], [`Error::Cancelled`] (checked before each evaluation), and
    /// [`Error::Input`] where `hint` has another number of frames.
    pub fn sample(
        &mut self,
        model: &mut dyn Denoiser,
        hint: ArrayView4<f32>,
        frames: &[u64],
        noise: &dyn Noise,
        conditioning: &Conditioning,
        cancel: &Cancel,
    ) -> Result<Samples> {
        if frames.len() != hint.dim().0 {
            let reason = format!("it has {} frames but {} numbers", hint.dim().0, frames.len());
            return Err(Error::input("a window", reason));
        }
        if hint.is_empty() {
            return Ok(hint.to_owned().into());
        }
        let timesteps: Vec<i64> =
            (0..self.evaluations()).map(|i| self.solver.timestep(i)).collect();
        model.prepare(&timesteps)?;
        let shape = hint.dim();
        let hint = hint.as_standard_layout();
        let (hints, size) = (hint.as_slice().expect("standard layout"), hint.len() / frames.len());
        let mut x = self.buffers.lease(hints.len());
        // The last two predictions.
        let (mut predicted, mut previous) = (None::<Lease>, None::<Lease>);
        for i in 0..self.evaluations() {
            cancel.check()?;
            // The last evaluation's input takes the place of the state, which nothing needs then.
            let last = i + 1 == self.evaluations();
            let mut input = (!last).then(|| self.buffers.lease(x.len()));
            let solver = &self.solver;
            let work = |(f, first, x, input): (usize, usize, &mut [f32], Option<&mut [f32]>)| {
                let place = f * size + first..f * size + first + x.len();
                match &predicted {
                    None => {
                        noise.fill(frames[f], 0, first, x);
                        solver.start(&hints[place], x);
                    }
                    Some(predicted) => {
                        let mut drawn = vec![0.0; x.len()];
                        noise.fill(frames[f], i as u32, first, &mut drawn);
                        let before = previous.as_ref().map(|p| &p[place.clone()]);
                        solver.step(i - 1, x, &predicted[place], before, &drawn);
                    }
                }
                match input {
                    Some(input) => {
                        input.copy_from_slice(x);
                        solver.scale_model_input(i, input);
                    }
                    None => solver.scale_model_input(i, x),
                }
            };
            let states = parts(&mut x, size);
            match &mut input {
                Some(input) => self.threads.for_each(
                    states.zip(parts(input, size)),
                    |((f, first, x), (_, _, input))| {
                        work((f, first, x, Some(input)));
                    },
                ),
                None => self.threads.for_each(states, |(f, first, x)| work((f, first, x, None))),
            }
            let window = ArrayViewMut4::from_shape(shape, input.as_mut().unwrap_or(&mut x))
                .map_err(|e| Error::input("a window", e.to_string()))?;
            self.denoise(model, i, window, hint.view(), conditioning)?;
            previous = std::mem::replace(&mut predicted, input);
        }
        Samples::new(x, shape.into())
    }
}

/// The parts in which threads share the frames, of `size` values each, that follow each other in
/// `values`: place of the frame, place in the frame, values.
fn parts(values: &mut [f32], size: usize) -> impl Iterator<Item = (usize, usize, &mut [f32])> {
    values.chunks_exact_mut(size).enumerate().flat_map(|(f, values)| {
        values.chunks_mut(PART).enumerate().map(move |(part, values)| (f, part * PART, values))
    })
}
