// SPDX-License-Identifier: MPL-2.0

//! The noise schedule of CogVideoX and the timesteps of its sampler (docs/star.md, B.1).

use crate::error::{Error, Result};
use crate::names::Setting;

/// Parameters of the `scaled-linear` schedule (docs/star.md, B.1). The default is CogVideoX-5B's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScaledLinearConfig {
    /// Noise levels, 2..=100000.
    pub timesteps: usize,
    /// Variance of the noise that the cleanest level adds, above 0.
    pub beta_start: f64,
    /// The same of the noisiest level, above `beta_start` and below 1.
    pub beta_end: f64,
    /// Shift `s` of all levels towards noise, 0.01..=100; 1 is none.
    pub shift_scale: f64,
    /// Stretch the noise levels so that the last one holds no signal at all (arXiv 2305.08891,
    /// section 3.1).
    pub zero_terminal_snr: bool,
}

impl Default for ScaledLinearConfig {
    fn default() -> Self {
        Self {
            timesteps: 1000,
            beta_start: 0.00085,
            beta_end: 0.012,
            shift_scale: 1.0,
            zero_terminal_snr: true,
        }
    }
}

/// Signal amplitudes `a` of all timesteps: `x_t = a x_0 + sqrt(1 - a²) noise`.
#[derive(Debug, Clone)]
pub struct ScaledLinear {
    /// `sqrt(alpha_bar)` before the stretching to zero terminal SNR.
    plain: Vec<f32>,
    table: Vec<f32>,
    zero_terminal_snr: bool,
}

/// Where the model is evaluated, and with which amplitudes.
#[derive(Debug, Clone, PartialEq)]
pub struct VpPlan {
    /// The solver's signal amplitudes, strictly increasing, one more than evaluations; the last is
    /// 1. The first is 0 where sampling starts from pure noise.
    pub alphas: Vec<f32>,
    /// The signal amplitude that turns each evaluation's velocity into `x0`: the one of the whole
    /// table that is nearest to the solver's.
    pub snapped: Vec<f32>,
    /// The indices of [`Self::snapped`] in the table.
    pub indices: Vec<usize>,
    /// The model's timestep at each evaluation, strictly decreasing.
    pub t: Vec<i64>,
}

impl ScaledLinear {
    /// Tables for `config`.
    ///
    /// # Errors
    /// [`Error::Input`] where the parameters give no usable schedule.
    pub fn new(config: &ScaledLinearConfig) -> Result<Self> {
        let invalid = |reason: String| Error::input("schedule", reason);
        let ScaledLinearConfig { timesteps: n, beta_start, beta_end, shift_scale, .. } = *config;
        if !(2..=100_000).contains(&n) {
            return Err(invalid(format!("timesteps is {n} and must be 2 to 100000")));
        }
        // Written so that NaN fails.
        if !(0.0 < beta_start && beta_start < beta_end && beta_end < 1.0) {
            return Err(invalid(format!(
                "beta_start {beta_start} and beta_end {beta_end} must lie between 0 and 1 and \
                 increase"
            )));
        }
        if !(0.01..=100.0).contains(&shift_scale) {
            return Err(invalid(format!("shift_scale is {shift_scale} and must be 0.01 to 100")));
        }
        let (low, high) = (beta_start.sqrt(), beta_end.sqrt());
        let mut product = 1.0;
        let plain: Vec<f32> = (0..n)
            .map(|i| {
                let root = low + (high - low) / (n - 1) as f64 * i as f64;
                product *= 1.0 - root * root;
                let shifted = product / (shift_scale + (1.0 - shift_scale) * product);
                (shifted as f32).sqrt()
            })
            .collect();
        if !plain.is_sorted_by(|a, b| a > b) || plain[n - 1] <= 0.0 {
            return Err(invalid(
                "the noise does not grow with the timestep; check its parameters".into(),
            ));
        }
        let zero_terminal_snr = config.zero_terminal_snr;
        let mut table = plain.clone();
        if zero_terminal_snr {
            stretch(&mut table);
        }
        Ok(Self { plain, table, zero_terminal_snr })
    }

    /// Signal amplitude of each timestep, decreasing.
    pub fn alphas(&self) -> &[f32] {
        &self.table
    }

    /// `steps` evaluations, evenly spaced from the noisiest timestep down (docs/star.md, B.1).
    ///
    /// As in the official program the amplitudes of these timesteps are stretched on their own, so
    /// that at low noise they differ a little from those of the whole table.
    ///
    /// # Errors
    /// [`Error::Setting`] for 0 steps and for more than there are noise levels.
    pub fn plan(&self, steps: u32) -> Result<VpPlan> {
        let levels = self.plain.len();
        let count = steps as usize;
        if count == 0 || count > levels {
            let reason = format!("{steps} is outside 1 to {levels}");
            return Err(Error::setting(Setting::Steps, reason));
        }
        let top = (levels - 1) as f64;
        let t: Vec<usize> =
            (0..count).map(|k| (top - k as f64 * (top / count as f64)) as usize).collect();
        // From clean to noisy, as in the table.
        let mut alphas: Vec<f32> = t.iter().rev().map(|&t| self.plain[t]).collect();
        if self.zero_terminal_snr {
            stretch(&mut alphas);
        }
        alphas.reverse();
        alphas.push(1.0);
        if !alphas.is_sorted_by(|a, b| a < b) {
            let reason = format!("{steps} evaluations do not fit into the bundle's schedule");
            return Err(Error::setting(Setting::Steps, reason));
        }
        let indices: Vec<usize> = alphas[..count].iter().map(|&a| self.nearest(a)).collect();
        let snapped = indices.iter().map(|&i| self.table[i]).collect();
        let t = t.into_iter().map(|t| t as i64).collect();
        Ok(VpPlan { alphas, snapped, indices, t })
    }

    /// The timestep whose amplitude is nearest to `alpha`.
    fn nearest(&self, alpha: f32) -> usize {
        let after = self.table.partition_point(|&a| a > alpha).min(self.table.len() - 1);
        let before = after.saturating_sub(1);
        let distance = |i: usize| (self.table[i] - alpha).abs();
        if distance(before) <= distance(after) { before } else { after }
    }
}

/// Shifts and scales amplitudes, from clean to noisy, so that the last becomes 0 and the first
/// stays. A single one becomes 0.
fn stretch(alphas: &mut [f32]) {
    let [first, .., last] = *alphas else {
        alphas.fill(0.0);
        return;
    };
    let factor = first / (first - last);
    for a in alphas {
        *a = (*a - last) * factor;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_values() {
        let schedule = ScaledLinear::new(&ScaledLinearConfig::default()).unwrap();
        for (t, a) in [(0, 0.9995749), (500, 0.4909367), (899, 0.0550733), (999, 0.0)] {
            assert!((schedule.alphas()[t] - a).abs() < 2e-7, "{t}: {}", schedule.alphas()[t]);
        }
        let plan = schedule.plan(50).unwrap();
        assert_eq!((plan.t[0], plan.t[1], plan.t[49]), (999, 979, 19));
        assert_eq!((plan.alphas[0], plan.alphas[50]), (0.0, 1.0));
    }

    #[test]
    fn any_number_of_steps() {
        for zero_terminal_snr in [true, false] {
            let config = ScaledLinearConfig { zero_terminal_snr, ..Default::default() };
            let schedule = ScaledLinear::new(&config).unwrap();
            for steps in 1..=1000 {
                let plan = schedule.plan(steps).unwrap();
                assert_eq!((plan.t.len(), plan.t[0]), (steps as usize, 999));
                assert!(plan.t.is_sorted_by(|a, b| a > b) && plan.t[plan.t.len() - 1] >= 0);
                assert_eq!(plan.alphas[0] == 0.0, zero_terminal_snr);
            }
        }
    }

    #[test]
    fn refusals() {
        let schedule = ScaledLinear::new(&ScaledLinearConfig::default()).unwrap();
        assert!(schedule.plan(0).is_err());
        assert!(schedule.plan(1001).is_err());
        let wrong = |change: fn(&mut ScaledLinearConfig)| {
            let mut config = ScaledLinearConfig::default();
            change(&mut config);
            ScaledLinear::new(&config).is_err()
        };
        assert!(wrong(|c| c.timesteps = 1));
        assert!(wrong(|c| c.timesteps = 100_001));
        assert!(wrong(|c| c.beta_start = f64::NAN));
        assert!(wrong(|c| c.beta_start = 0.0));
        assert!(wrong(|c| c.beta_end = 0.0001));
        assert!(wrong(|c| c.beta_end = 1.0));
        assert!(wrong(|c| (c.beta_end, c.timesteps) = (0.99, 100_000)));
        assert!(wrong(|c| c.shift_scale = 0.0));
        assert!(wrong(|c| c.shift_scale = f64::INFINITY));
    }
}
