// SPDX-License-Identifier: MPL-2.0

//! The families of noise schedules, each with the solver that belongs to it.

use super::scaled_linear::{ScaledLinear, ScaledLinearConfig};
use super::schedule::{SamplerMode, Schedule, ScheduleConfig};
use super::solver::Solver;
use crate::error::{Error, Result};
use crate::names::Setting;

/// A noise schedule with its parameters.
#[derive(Debug, Clone, PartialEq)]
pub enum Family {
    /// Cosine in log-SNR, interpolated between two shifts (docs/star.md, A.4). Sampling starts from
    /// the noisy hint.
    LogsnrCosineInterp(ScheduleConfig),
    /// Variances of the noise whose square roots grow linearly (docs/star.md, B.1). Sampling starts
    /// from pure noise.
    ScaledLinear(ScaledLinearConfig),
}

impl Family {
    /// Noise levels of the schedule.
    pub fn timesteps(&self) -> usize {
        match self {
            Self::LogsnrCosineInterp(config) => config.timesteps,
            Self::ScaledLinear(config) => config.timesteps,
        }
    }

    /// Checks the parameters.
    ///
    /// # Errors
    /// [`Error::Input`] where they give no usable schedule.
    pub fn check(&self) -> Result<()> {
        match self {
            Self::LogsnrCosineInterp(config) => Schedule::new(config).map(drop),
            Self::ScaledLinear(config) => ScaledLinear::new(config).map(drop),
        }
    }

    /// The solver for a run of `steps` evaluations, spaced by `mode`, from `noise_level` levels.
    ///
    /// # Errors
    /// As [`Self::check`], [`Schedule::plan`] and [`ScaledLinear::plan`], and [`Error::Setting`]
    /// where the schedule knows one spacing or one start only and another is asked for.
    pub fn solver(&self, mode: SamplerMode, steps: u32, noise_level: u32) -> Result<Solver> {
        match self {
            Self::LogsnrCosineInterp(config) => {
                let schedule = Schedule::new(config)?;
                Solver::new(&schedule, &schedule.plan(mode, steps, noise_level)?)
            }
            Self::ScaledLinear(config) => {
                if mode != SamplerMode::Normal {
                    let reason = "fast is unknown to the bundle's schedule; use normal";
                    return Err(Error::setting(Setting::SamplerMode, reason));
                }
                if noise_level as usize != config.timesteps {
                    let reason = format!(
                        "{noise_level} is impossible, as this bundle samples from pure noise, \
                         level {}",
                        config.timesteps
                    );
                    return Err(Error::setting(Setting::NoiseLevel, reason));
                }
                Solver::vp_sde(&ScaledLinear::new(config)?.plan(steps)?)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_has_its_solver() {
        let star = Family::LogsnrCosineInterp(ScheduleConfig::default());
        assert_eq!(star.solver(SamplerMode::Fast, 0, 900).unwrap().timestep(0), 899);
        let cog = Family::ScaledLinear(ScaledLinearConfig::default());
        let solver = cog.solver(SamplerMode::Normal, 20, 1000).unwrap();
        assert_eq!((solver.evaluations(), solver.timestep(1)), (20, 949));
        assert!(cog.solver(SamplerMode::Fast, 20, 1000).is_err());
        assert!(cog.solver(SamplerMode::Normal, 20, 900).is_err());
        assert!(cog.solver(SamplerMode::Normal, 0, 1000).is_err());
    }
}
