// SPDX-License-Identifier: MPL-2.0

//! DPM-Solver++(2M) for the variance-preserving SDE, from pure noise (docs/star.md, B.2).

use super::super::scaled_linear::VpPlan;
use super::{Solver, Step};
use crate::error::{Error, Result};

/// Weights of one update: `x ← state x + now D - before D_prev + noise n`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VpStep {
    /// Of the state, `sqrt((1-a'²)/(1-a²)) e^-h`.
    pub state: f64,
    /// Of the extrapolated prediction, `a' (1 - e^-2h)`.
    pub denoised: f64,
    /// `1/(2r)`, the share of the difference to the previous prediction.
    pub midpoint: f64,
    /// Of the noise, `sqrt(1-a'²) sqrt(1 - e^-2h)`.
    pub noise: f64,
}

impl VpPlan {
    /// The weights of all updates, one fewer than evaluations: after the last the result is `D`.
    pub fn updates(&self) -> Vec<VpStep> {
        let logsnr = |a: f32| {
            let a = f64::from(a);
            a.ln() - 0.5 * ((1.0 - a) * (1.0 + a)).ln()
        };
        let mut previous = f64::INFINITY;
        let update = |pair: &[f32]| {
            let (a, next) = (f64::from(pair[0]), f64::from(pair[1]));
            // Infinite where `a` is 0: everything below then has a finite limit.
            let h = logsnr(pair[1]) - logsnr(pair[0]);
            let gain = 1.0 - (-2.0 * h).exp();
            let sigma = ((1.0 - next) * (1.0 + next)).sqrt();
            let midpoint = if previous.is_finite() { 0.5 * h / previous } else { 0.0 };
            previous = h;
            VpStep {
                state: sigma / ((1.0 - a) * (1.0 + a)).sqrt() * (-h).exp(),
                denoised: next * gain,
                midpoint,
                noise: sigma * gain.sqrt(),
            }
        };
        self.alphas[..self.t.len()].windows(2).map(update).collect()
    }

    fn is_valid(&self) -> bool {
        let count = self.t.len();
        count > 0
            && self.alphas.len() == count + 1
            && self.snapped.len() == count
            && self.alphas[0] >= 0.0
            && self.alphas[count] == 1.0
            && self.alphas.is_sorted_by(|a, b| a < b)
            && self.snapped.iter().all(|c| (0.0..=1.0).contains(c))
    }
}

impl Solver {
    /// The solver that follows `plan` from pure noise, whatever the hint. The state is the model's
    /// input as it is.
    ///
    /// # Errors
    /// [`Error::Input`] where `plan` is inconsistent.
    pub fn vp_sde(plan: &VpPlan) -> Result<Self> {
        if !plan.is_valid() {
            return Err(Error::input("plan", "its amplitudes do not fit together"));
        }
        let last = VpStep { state: 0.0, denoised: 1.0, midpoint: 0.0, noise: 0.0 };
        let updates = plan.updates().into_iter().chain([last]);
        let evaluations = plan.t.iter().zip(&plan.snapped);
        let steps = evaluations.zip(updates).map(|((&timestep, &alpha), update)| Step {
            timestep,
            alpha,
            sigma: ((1.0 - alpha) * (1.0 + alpha)).sqrt(),
            input: 1.0,
            state: update.state as f32,
            denoised: update.denoised as f32,
            midpoint: (update.denoised * update.midpoint) as f32,
            noise: update.noise as f32,
        });
        Ok(Self { start: (0.0, 1.0), steps: steps.collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::scaled_linear::{ScaledLinear, ScaledLinearConfig};
    use super::*;

    fn plan(steps: u32) -> VpPlan {
        ScaledLinear::new(&ScaledLinearConfig::default()).unwrap().plan(steps).unwrap()
    }

    /// With a perfect model every path ends on x0, and no state on it is out of bounds.
    #[test]
    fn perfect_model() {
        for steps in [1, 2, 3, 20, 50, 1000] {
            let solver = Solver::vp_sde(&plan(steps)).unwrap();
            let x0 = [0.5f32, -1.5, 2.0];
            let mut x = [1.0f32, -0.3, 0.1];
            solver.start(&x0, &mut x);
            assert_eq!(x, [1.0, -0.3, 0.1]);
            for i in 0..solver.evaluations() {
                let mut input = x;
                solver.scale_model_input(i, &mut input);
                assert_eq!(input, x);
                solver.step(i, &mut x, &x0, (i > 0).then_some(&x0[..]), &[0.1, -0.2, 0.3]);
                assert!(x.iter().all(|v| v.is_finite() && v.abs() < 100.0), "{steps} {i} {x:?}");
            }
            assert_eq!(x, x0);
        }
    }

    #[test]
    fn the_first_two_updates_are_of_first_order() {
        let midpoints: Vec<f64> = plan(50).updates().iter().map(|s| s.midpoint).collect();
        assert_eq!(midpoints[..2], [0.0, 0.0]);
        assert!(midpoints[2..].iter().all(|&m| m > 0.1));
    }

    #[test]
    fn foreign_plans_are_refused() {
        let wrong = |change: fn(&mut VpPlan)| {
            let mut plan = plan(8);
            change(&mut plan);
            Solver::vp_sde(&plan).is_err()
        };
        assert!(!wrong(|_| ()));
        assert!(wrong(|p| p.t.clear()));
        assert!(wrong(|p| p.alphas.truncate(8)));
        assert!(wrong(|p| p.snapped.truncate(7)));
        assert!(wrong(|p| p.alphas[8] = 0.999));
        assert!(wrong(|p| p.alphas[3] = f32::NAN));
        assert!(wrong(|p| p.snapped[3] = 1.5));
    }
}
