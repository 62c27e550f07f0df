// SPDX-License-Identifier: MPL-2.0

//! Classifier-free guidance with rescale (SPEC A.5; arXiv 2305.08891, section 3.4).

use ndarray::{Array4, ArrayView4};

use crate::error::{Error, Result};
use crate::model::{Condition, Denoiser};

/// How strongly a prediction follows the prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guidance {
    scale: f32,
    rescale: f32,
}

impl Guidance {
    /// `scale` is `g` in `v_u + g (v_c - v_u)`; 1 uses `v_c` alone and never asks for `v_u`. `rescale` in 0..=1 is how far the
    /// standard deviation is brought back to that of `v_c`. STAR: 7.5 and 0.2.
    pub fn new(scale: f32, rescale: f32) -> Result<Self> {
        if !scale.is_finite() || scale.abs() > 1e4 {
            return Err(Error::Setting {
                setting: "guidance-scale",
                reason: format!("{scale} is outside -10000 to 10000"),
            });
        }
        if !(0.0..=1.0).contains(&rescale) {
            return Err(Error::Setting {
                setting: "guidance-rescale",
                reason: format!("{rescale} is outside 0 to 1"),
            });
        }
        Ok(Self { scale, rescale })
    }

    /// The guided velocity `[F,C,h,w]` for a window, in standard layout. Fails as the model does, and with
    /// [`Error::Inference`] where its answer has another shape than `x`.
    pub fn velocity(
        &self,
        model: &mut dyn Denoiser,
        x: ArrayView4<f32>,
        t: i64,
        hint: ArrayView4<f32>,
    ) -> Result<Array4<f32>> {
        let mut ask = |condition| {
            let v = model.velocity(x, t, hint, condition)?;
            if v.dim() != x.dim() {
                return Err(Error::Inference {
                    graph: "denoiser".into(),
                    reason: format!("it gave {:?} for an input of {:?}", v.shape(), x.shape()),
                });
            }
            Ok(if v.is_standard_layout() { v } else { v.as_standard_layout().into_owned() })
        };
        let positive = ask(Condition::Positive)?;
        if self.scale == 1.0 {
            return Ok(positive);
        }
        let mut guided = ask(Condition::Negative)?;
        self.mix(
            positive.as_slice().expect("standard layout"),
            guided.as_slice_mut().expect("standard layout"),
        );
        Ok(guided)
    }

    /// Guides one window: `negative` becomes the result. The standard deviations are unbiased and pool over the whole window.
    pub fn mix(&self, positive: &[f32], negative: &mut [f32]) {
        debug_assert_eq!(positive.len(), negative.len());
        for (u, &c) in negative.iter_mut().zip(positive) {
            *u += self.scale * (c - *u);
        }
        if self.rescale > 0.0 && positive.len() > 1 {
            let ratio = std(positive) / (std(negative) + 1e-12);
            let factor = f64::from(self.rescale) * ratio + f64::from(1.0 - self.rescale);
            for v in negative {
                *v *= factor as f32;
            }
        }
    }
}

/// Unbiased standard deviation of at least two values.
fn std(values: &[f32]) -> f64 {
    let (sum, squares) = moments(values);
    let n = values.len() as f64;
    ((squares - sum * sum / n).max(0.0) / (n - 1.0)).sqrt()
}

/// Sum and sum of squares in double precision, in an order that does not depend on the machine.
pub(crate) fn moments(values: &[f32]) -> (f64, f64) {
    const LANES: usize = 8;
    let mut sums = [0.0f64; LANES];
    let mut squares = [0.0f64; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for lane in 0..LANES {
            let v = f64::from(chunk[lane]);
            sums[lane] += v;
            squares[lane] += v * v;
        }
    }
    for (lane, &v) in rest.iter().enumerate() {
        let v = f64::from(v);
        sums[lane] += v;
        squares[lane] += v * v;
    }
    (sums.iter().sum(), squares.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rescale_brings_back_the_deviation() {
        let positive = [1.0f32, -1.0, 3.0, 0.5];
        let negative = [0.0f32, 0.5, 1.0, -0.5];
        let mut full = negative;
        Guidance::new(7.5, 1.0).unwrap().mix(&positive, &mut full);
        assert!((std(&full) - std(&positive)).abs() < 1e-6);
        let mut none = negative;
        Guidance::new(7.5, 0.0).unwrap().mix(&positive, &mut none);
        assert_eq!(none[0], 7.5);
    }

    #[test]
    fn refusals_and_small_windows() {
        assert!(Guidance::new(f32::NAN, 0.2).is_err());
        assert!(Guidance::new(7.5, 1.5).is_err());
        assert!(Guidance::new(7.5, f32::NAN).is_err());
        let mut one = [1.0f32];
        Guidance::new(2.0, 0.2).unwrap().mix(&[2.0], &mut one);
        assert_eq!(one, [3.0]);
        let mut flat = [0.0f32; 4];
        Guidance::new(2.0, 0.2).unwrap().mix(&[0.0; 4], &mut flat);
        assert_eq!(flat, [0.0; 4]);
    }
}
