// SPDX-License-Identifier: MPL-2.0

//! The noise schedule and the timesteps at which the model is evaluated (docs/star.md, A.4 and
//! A.5).

use crate::error::{Error, Result};
use crate::names::Setting;

/// Spacing of the timesteps (docs/star.md, A.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SamplerMode {
    /// The 14 evaluations of the official program.
    Fast,
    /// As many evaluations as `steps` says, evenly spaced.
    Normal,
}

/// Evaluations of [`SamplerMode::Fast`].
const FAST_EVALUATIONS: usize = 14;

/// Parameters of the `logsnr_cosine_interp` schedule (docs/star.md, A.4). The default is STAR's.
#[derive(Debug, Clone, PartialEq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleConfig {
    /// Noise levels, 2..=100000.
    pub timesteps: usize,
    /// Logarithm of the signal-to-noise ratio at the noisiest level, before scaling.
    pub logsnr_min: f64,
    /// Logarithm of the signal-to-noise ratio at the cleanest level, before scaling.
    pub logsnr_max: f64,
    /// Shift of the noise to larger pictures at the cleanest level, above 0.
    pub scale_min: f64,
    /// The same at the noisiest level.
    pub scale_max: f64,
    /// Stretch the noise levels so that the last one holds no signal at all.
    pub zero_terminal_snr: bool,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self {
            timesteps: 1000,
            logsnr_min: -15.0,
            logsnr_max: 15.0,
            scale_min: 2.0,
            scale_max: 4.0,
            zero_terminal_snr: true,
        }
    }
}

/// Signal and noise amplitudes of every timestep: `x_t = alpha_t x_0 + sigma_t noise`,
/// `alpha² + sigma² = 1`.
#[derive(Debug, Clone)]
pub struct Schedule {
    alphas: Vec<f64>,
    sigmas: Vec<f64>,
    log_k: Vec<f64>,
}

/// Where the model is evaluated.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Noise-to-signal ratios `k = sigma/alpha`, strictly decreasing, one more than evaluations;
    /// the last is 0. The first is infinite where sampling starts from pure noise.
    pub k: Vec<f64>,
    /// The model's timestep at each evaluation; the first is `noise_level - 1`.
    pub t: Vec<i64>,
}

impl Schedule {
    /// Tables for `config`.
    ///
    /// # Errors
    /// [`Error::Input`] where the parameters give no usable schedule.
    pub fn new(config: &ScheduleConfig) -> Result<Self> {
        let invalid = |reason: String| Error::input("schedule", reason);
        let n = config.timesteps;
        if !(2..=100_000).contains(&n) {
            return Err(invalid(format!("timesteps is {n} and must be 2 to 100000")));
        }
        let (low, high) = (config.logsnr_min, config.logsnr_max);
        if !(-60.0..=60.0).contains(&low) || !(-60.0..=60.0).contains(&high) || low >= high {
            return Err(invalid(format!(
                "logsnr_min {low} and logsnr_max {high} must lie within -60 and 60 and increase"
            )));
        }
        for (name, scale) in [("scale_min", config.scale_min), ("scale_max", config.scale_max)] {
            if !(1e-6..=1e6).contains(&scale) {
                return Err(invalid(format!("{name} is {scale} and must be 0.000001 to 1000000")));
            }
        }

        let a = (-0.5 * low).exp().atan();
        let b = (-0.5 * high).exp().atan();
        let mut sigmas: Vec<f64> = (0..n)
            .map(|i| {
                let u = 1.0 - i as f64 / (n - 1) as f64;
                let cosine = -2.0 * (a + u * (b - a)).tan().ln();
                let logsnr = u * (cosine - 2.0 * config.scale_min.ln())
                    + (1.0 - u) * (cosine - 2.0 * config.scale_max.ln());
                (1.0 / (1.0 + logsnr.exp())).sqrt()
            })
            .collect();
        if config.zero_terminal_snr {
            let (min, max) = (sigmas[0], sigmas[n - 1]);
            for sigma in &mut sigmas {
                *sigma = min + (1.0 - min) * ((*sigma - min) / (max - min));
            }
        }
        // Written as a product, 1 - sigma² keeps its digits where sigma is near 1.
        let alphas: Vec<f64> =
            sigmas.iter().map(|s| ((1.0 - s) * (1.0 + s)).max(0.0).sqrt()).collect();
        let log_k: Vec<f64> = sigmas.iter().zip(&alphas).map(|(s, a)| s.ln() - a.ln()).collect();
        if !log_k[..n - 1].iter().all(|k| k.is_finite()) || !log_k.is_sorted_by(|a, b| a < b) {
            return Err(invalid(
                "the noise does not grow with the timestep; check its parameters".into(),
            ));
        }
        Ok(Self { alphas, sigmas, log_k })
    }

    /// Signal amplitude of each timestep, decreasing.
    pub fn alphas(&self) -> &[f64] {
        &self.alphas
    }

    /// Noise amplitude of each timestep, increasing.
    pub fn sigmas(&self) -> &[f64] {
        &self.sigmas
    }

    /// `k = sigma/alpha` at the real-valued timestep `t`, interpolated log-linearly; infinite where
    /// alpha is 0.
    fn k(&self, t: f64) -> f64 {
        let last = self.log_k.len() - 1;
        let low = (t.max(0.0).floor() as usize).min(last);
        let fraction = (t - low as f64).clamp(0.0, 1.0);
        if fraction == 0.0 || low == last {
            return self.log_k[low].exp();
        }
        ((1.0 - fraction) * self.log_k[low] + fraction * self.log_k[low + 1]).exp()
    }

    /// The evaluations of a run that starts at timestep `noise_level - 1` (STAR: 900 levels).
    ///
    /// [`SamplerMode::Normal`] spaces `steps` evaluations evenly. [`SamplerMode::Fast`] ignores
    /// `steps` and makes 14: four down to the middle of the schedule and ten below it; where the
    /// noise level is under 9/10 of the schedule the middle comes down in proportion. Both are
    /// `trailing` spacings whose last positive level is dropped.
    ///
    /// # Errors
    /// [`Error::Setting`] for 0 steps, a noise level outside 1..=timesteps, and more evaluations
    /// than the noise level has room for.
    pub fn plan(&self, mode: SamplerMode, steps: u32, noise_level: u32) -> Result<Plan> {
        let levels = self.log_k.len();
        if noise_level == 0 || noise_level as usize > levels {
            let reason = format!("{noise_level} is outside 1 to {levels}");
            return Err(Error::setting(Setting::NoiseLevel, reason));
        }
        let start = f64::from(noise_level - 1);
        let count = match mode {
            SamplerMode::Fast => FAST_EVALUATIONS,
            SamplerMode::Normal => steps as usize,
        };
        if count == 0 || count > 2 * levels {
            let reason = format!("{steps} is outside 1 to {}", 2 * levels);
            return Err(Error::setting(Setting::Steps, reason));
        }
        let middle = (levels as f64 / 2.0).min((start + 1.0) * 5.0 / 9.0);
        let times = (0..count).map(|j| {
            let time = match mode {
                SamplerMode::Normal => start - j as f64 * ((start + 1.0) / (count + 1) as f64),
                SamplerMode::Fast if j < 4 => start - j as f64 * ((start - middle + 1.0) / 4.0),
                SamplerMode::Fast => middle - (j - 4) as f64 * ((middle + 1.0) / 11.0),
            };
            // Single precision as in the reference: it makes exact halves exact again before they
            // are rounded to even.
            f64::from(time.clamp(0.0, start) as f32)
        });
        let (mut k, t): (Vec<f64>, Vec<i64>) =
            times.map(|time| (self.k(time), time.round_ties_even() as i64)).unzip();
        k.push(0.0);
        if !k.is_sorted_by(|a, b| a > b) {
            return Err(match mode {
                SamplerMode::Normal => Error::setting(
                    Setting::Steps,
                    format!("{steps} evaluations do not fit into noise level {noise_level}"),
                ),
                SamplerMode::Fast => Error::setting(
                    Setting::NoiseLevel,
                    format!("{noise_level} is too low for the sampler mode fast; use normal"),
                ),
            });
        }
        Ok(Plan { k, t })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn star() -> Schedule {
        Schedule::new(&ScheduleConfig::default()).unwrap()
    }

    #[test]
    fn check_values() {
        let s = star();
        for (i, sigma) in
            [(0, 0.00110626), (1, 0.00425177), (500, 0.9430097), (899, 0.9990937), (999, 1.0)]
        {
            assert!((s.sigmas()[i] - sigma).abs() < 1e-6, "sigma {i}: {}", s.sigmas()[i]);
        }
        assert!((s.alphas()[500] - 0.3327653).abs() < 2e-6);
        assert!((s.alphas()[899] - 0.0425660).abs() < 2e-6);
        assert_eq!(s.alphas()[999], 0.0);
    }

    #[test]
    fn one_evaluation_starts_at_the_top() {
        let plan = star().plan(SamplerMode::Normal, 1, 900).unwrap();
        assert_eq!(plan.t, [899]);
        assert_eq!(plan.k.len(), 2);
        assert_eq!(plan.k[1], 0.0);
    }

    #[test]
    fn halves_round_to_even() {
        let t = star().plan(SamplerMode::Normal, 15, 900).unwrap().t;
        assert_eq!(t, [899, 843, 786, 730, 674, 618, 562, 505, 449, 393, 336, 280, 224, 168, 112]);
    }

    #[test]
    fn other_noise_levels() {
        let s = star();
        for noise_level in 1..=1000 {
            for steps in [1, 2, 15, 50] {
                let normal = s.plan(SamplerMode::Normal, steps, noise_level);
                if let Ok(plan) = &normal {
                    assert_eq!(
                        (plan.t.len(), plan.t[0]),
                        (steps as usize, i64::from(noise_level) - 1)
                    );
                } else {
                    assert!(2 * noise_level < steps + 2, "{noise_level} {steps}");
                }
            }
            match s.plan(SamplerMode::Fast, 0, noise_level) {
                Ok(plan) => {
                    assert_eq!(
                        (plan.t.len(), plan.t[0]),
                        (FAST_EVALUATIONS, i64::from(noise_level) - 1)
                    );
                }
                Err(_) => assert!(noise_level < 12, "{noise_level}"),
            }
        }
        assert_eq!(s.plan(SamplerMode::Normal, 1, 1000).unwrap().k[0], f64::INFINITY);
    }

    #[test]
    fn refusals() {
        let s = star();
        assert!(s.plan(SamplerMode::Normal, 0, 900).is_err());
        assert!(s.plan(SamplerMode::Normal, u32::MAX, 900).is_err());
        assert!(s.plan(SamplerMode::Normal, 15, 0).is_err());
        assert!(s.plan(SamplerMode::Normal, 15, 1001).is_err());
        assert!(s.plan(SamplerMode::Normal, 15, 3).is_err());
        let wrong = |change: fn(&mut ScheduleConfig)| {
            let mut config = ScheduleConfig::default();
            change(&mut config);
            Schedule::new(&config).is_err()
        };
        assert!(wrong(|c| c.timesteps = 1));
        assert!(wrong(|c| c.logsnr_min = f64::NAN));
        assert!(wrong(|c| c.logsnr_max = -20.0));
        assert!(wrong(|c| c.scale_max = 0.0));
    }
}
