// SPDX-License-Identifier: MPL-2.0

//! DPM-Solver++(2M) SDE with the midpoint rule and eta = 1, in `k` space (docs/star.md, A.5).
//! Everything is elementwise, so that it applies to a window and to a single frame alike.

use super::schedule::{Plan, Schedule};
use crate::error::{Error, Result};

mod vp_sde;

pub use vp_sde::VpStep;

/// `alpha x0 + sigma noise`, written over `noise`.
pub fn diffuse(alpha: f32, sigma: f32, x0: &[f32], noise: &mut [f32]) {
    debug_assert_eq!(x0.len(), noise.len());
    for (n, &x) in noise.iter_mut().zip(x0) {
        *n = alpha * x + sigma * *n;
    }
}

/// `x0 = alpha x_t - sigma v`, written over `x_t`.
pub fn x0_from_velocity(alpha: f32, sigma: f32, x_t: &mut [f32], velocity: &[f32]) {
    debug_assert_eq!(x_t.len(), velocity.len());
    for (x, &v) in x_t.iter_mut().zip(velocity) {
        *x = alpha * *x - sigma * v;
    }
}

/// The factors of one evaluation and of the update that follows it.
#[derive(Debug, Clone, Copy)]
struct Step {
    timestep: i64,
    alpha: f32,
    sigma: f32,
    /// `1/sqrt(k²+1)`
    input: f32,
    /// `(k'/k) e^-h`, `1 - e^-2h`, `0.5 (1 - e^-2h) h/h_prev`, `k' sqrt(1 - e^-2h)`
    state: f32,
    denoised: f32,
    midpoint: f32,
    noise: f32,
}

/// A [`Plan`] with all factors worked out in double precision.
#[derive(Debug, Clone)]
pub struct Solver {
    start: (f32, f32),
    steps: Vec<Step>,
}

impl Solver {
    /// The solver that follows `plan`.
    ///
    /// # Errors
    /// [`Error::Input`] where `plan` is not one of `schedule`'s.
    pub fn new(schedule: &Schedule, plan: &Plan) -> Result<Self> {
        let levels = schedule.alphas().len() as i64;
        let count = plan.t.len();
        if count == 0
            || plan.k.len() != count + 1
            || plan.k[count] != 0.0
            || !plan.k.is_sorted_by(|a, b| a > b)
            || !plan.t.iter().all(|t| (0..levels).contains(t))
        {
            return Err(Error::input("plan", "it does not fit the schedule"));
        }
        let k = &plan.k;
        // k = inf is pure noise: the state is then kept unscaled, and all factors have finite
        // limits.
        let scale = if k[0].is_finite() { k[0] } else { 1.0 };
        let mut steps = Vec::with_capacity(count);
        let mut previous_h = f64::INFINITY;
        for (i, &timestep) in plan.t.iter().enumerate() {
            let h = k[i].ln() - k[i + 1].ln();
            let gain = 1.0 - (-2.0 * h).exp();
            let midpoint = if previous_h.is_finite() { 0.5 * gain * h / previous_h } else { 0.0 };
            let state = if k[i].is_finite() { k[i + 1] / k[i] * (-h).exp() } else { 0.0 };
            let input = if k[i].is_finite() { 1.0 / k[i].hypot(1.0) } else { 1.0 };
            // The last update is `x = D`: no midpoint, no noise.
            let last = i + 1 == count;
            steps.push(Step {
                timestep,
                alpha: schedule.alphas()[timestep as usize] as f32,
                sigma: schedule.sigmas()[timestep as usize] as f32,
                input: input as f32,
                state: if last { 0.0 } else { state as f32 },
                denoised: if last { 1.0 } else { gain as f32 },
                midpoint: if last { 0.0 } else { midpoint as f32 },
                noise: if last { 0.0 } else { (k[i + 1] * gain.sqrt()) as f32 },
            });
            previous_h = h;
        }
        let first = plan.t[0] as usize;
        let start =
            ((schedule.alphas()[first] * scale) as f32, (schedule.sigmas()[first] * scale) as f32);
        Ok(Self { start, steps })
    }

    /// Model evaluations, at least 1.
    pub fn evaluations(&self) -> usize {
        self.steps.len()
    }

    /// The model's timestep at evaluation `i`.
    pub fn timestep(&self, i: usize) -> i64 {
        self.steps[i].timestep
    }

    /// Turns start noise into the first state, `k_0 (alpha hint + sigma noise)`.
    pub fn start(&self, hint: &[f32], noise: &mut [f32]) {
        diffuse(self.start.0, self.start.1, hint, noise);
    }

    /// Turns the state `x` into the model's input of evaluation `i`, `x / sqrt(k_i² + 1)`.
    pub fn scale_model_input(&self, i: usize, x: &mut [f32]) {
        let factor = self.steps[i].input;
        for x in x {
            *x *= factor;
        }
    }

    /// Turns the `input` of evaluation `i` into the `x0` that its velocity predicts (no clamp).
    pub fn denoised(&self, i: usize, input: &mut [f32], velocity: &[f32]) {
        x0_from_velocity(self.steps[i].alpha, self.steps[i].sigma, input, velocity);
    }

    /// Moves the state `x` from `k_i` to `k_{i+1}`. `denoised` is evaluation `i`'s prediction,
    /// `previous` the one before it (`None` at `i = 0`), `noise` is N(0,1). After the last
    /// evaluation `x` is `denoised`.
    pub fn step(
        &self,
        i: usize,
        x: &mut [f32],
        denoised: &[f32],
        previous: Option<&[f32]>,
        noise: &[f32],
    ) {
        debug_assert!(x.len() == denoised.len() && x.len() == noise.len());
        let s = self.steps[i];
        match previous {
            Some(previous) => {
                let (now, before) = (s.denoised + s.midpoint, -s.midpoint);
                for (((x, &d), &p), &n) in x.iter_mut().zip(denoised).zip(previous).zip(noise) {
                    *x = s.state * *x + now * d + before * p + s.noise * n;
                }
            }
            None => {
                for ((x, &d), &n) in x.iter_mut().zip(denoised).zip(noise) {
                    *x = s.state * *x + s.denoised * d + s.noise * n;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::schedule::{SamplerMode, ScheduleConfig};
    use super::*;

    /// With a perfect model (x0 known) and no noise in the steps every path ends on x0, also from
    /// pure noise.
    #[test]
    fn perfect_model() {
        let schedule = Schedule::new(&ScheduleConfig::default()).unwrap();
        for (mode, steps, level) in [
            (SamplerMode::Fast, 0, 900),
            (SamplerMode::Normal, 1, 900),
            (SamplerMode::Normal, 7, 1000),
            (SamplerMode::Normal, 1, 1000),
        ] {
            let solver =
                Solver::new(&schedule, &schedule.plan(mode, steps, level).unwrap()).unwrap();
            let x0 = [0.5f32, -1.5, 2.0];
            let mut x = [1.0f32, -0.3, 0.1];
            solver.start(&x0, &mut x);
            for i in 0..solver.evaluations() {
                let mut input = x;
                solver.scale_model_input(i, &mut input);
                assert!(
                    input.iter().all(|v| v.is_finite() && v.abs() < 4.0),
                    "{mode:?} {i} {input:?}"
                );
                solver.step(i, &mut x, &x0, (i > 0).then_some(&x0[..]), &[0.1, -0.2, 0.3]);
            }
            assert_eq!(x, x0);
        }
    }

    #[test]
    fn velocity_and_back() {
        let (alpha, sigma) = (0.6f32, 0.8f32);
        let (x0, noise) = ([0.25f32, -2.0], [1.0f32, 0.5]);
        let mut x_t = noise;
        diffuse(alpha, sigma, &x0, &mut x_t);
        let mut v = [0.0; 2];
        for j in 0..2 {
            v[j] = alpha * noise[j] - sigma * x0[j];
        }
        x0_from_velocity(alpha, sigma, &mut x_t, &v);
        assert!((x_t[0] - x0[0]).abs() < 1e-6 && (x_t[1] - x0[1]).abs() < 1e-6);
    }

    #[test]
    fn foreign_plans_are_refused() {
        let schedule = Schedule::new(&ScheduleConfig::default()).unwrap();
        let plan =
            |k: &[f64], t: &[i64]| Solver::new(&schedule, &Plan { k: k.into(), t: t.into() });
        assert!(plan(&[], &[]).is_err());
        assert!(plan(&[1.0, 0.0], &[1000]).is_err());
        assert!(plan(&[1.0, 0.5], &[10]).is_err());
        assert!(plan(&[1.0, 1.0, 0.0], &[10, 9]).is_err());
        assert!(plan(&[1.0, 0.0], &[10]).is_ok());
    }
}
