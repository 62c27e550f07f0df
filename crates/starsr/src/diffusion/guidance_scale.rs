// SPDX-License-Identifier: MPL-2.0

//! Guidance scales that change from step to step (docs/star.md, B.3).

use std::f64::consts::PI;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

/// The guidance scale of each evaluation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum GuidanceScale {
    /// The same for all.
    Constant(f32),
    /// The wave between 1 and 7 that CogVideoX was released with.
    Wave,
}

impl GuidanceScale {
    /// The scales at the timesteps `t` of a run, in the order of its evaluations.
    ///
    /// The wave is `1 + 6 (1 - cos(π ((N - t)/N)^5))/2` with `N` evaluations and, as in the
    /// official program, the timestep where the number of the evaluation was meant.
    pub fn at(self, t: &[i64]) -> Vec<f64> {
        let n = t.len() as f64;
        let wave = |&t: &i64| 1.0 + 6.0 * (1.0 - (PI * ((n - t as f64) / n).powf(5.0)).cos()) / 2.0;
        match self {
            Self::Constant(scale) => vec![f64::from(scale); t.len()],
            Self::Wave => t.iter().map(wave).collect(),
        }
    }

    /// Whether no evaluation needs guidance.
    pub fn is_off(self) -> bool {
        self == Self::Constant(1.0)
    }
}

/// `"wave"` or a number.
impl<'de> Deserialize<'de> for GuidanceScale {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Value {
            Number(f32),
            Word(String),
        }
        let wrong = || D::Error::custom("expected `wave` or a number");
        match Value::deserialize(deserializer).map_err(|_| wrong())? {
            Value::Number(scale) => Ok(Self::Constant(scale)),
            Value::Word(word) if word == "wave" => Ok(Self::Wave),
            Value::Word(_) => Err(wrong()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales() {
        let t = [999, 874, 749, 624, 499, 374, 249, 124];
        assert_eq!(GuidanceScale::Constant(6.0).at(&t), [6.0; 8]);
        let wave = GuidanceScale::Wave.at(&t);
        assert!(
            (wave[0] - 1.376388486).abs() < 1e-6 && wave.iter().all(|s| (1.0..=7.0).contains(s))
        );
        assert!(GuidanceScale::Wave.at(&[]).is_empty());
        assert!(GuidanceScale::Constant(1.0).is_off() && !GuidanceScale::Wave.is_off());
    }
}
