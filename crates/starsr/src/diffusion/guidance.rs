// SPDX-License-Identifier: MPL-2.0

//! Classifier-free guidance with rescale (docs/star.md, A.5; arXiv 2305.08891, section 3.4).

use crate::error::{Error, Result};
use crate::model::{Denoiser, Query, Samples};
use crate::names::Setting;

/// How the two halves of a guided prediction are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Batching {
    /// Together where the model prefers that; separately from the first time on that memory is too
    /// short for both.
    #[default]
    Auto,
    /// As one batch of two.
    Together,
    /// One after the other.
    Separate,
}

/// How strongly a prediction follows the prompt.
#[derive(Debug, Clone)]
pub struct Guidance {
    /// Of each evaluation, at least one; the last holds for all further ones.
    scales: Vec<f32>,
    rescale: f32,
    interval: (f32, f32),
    batching: Batching,
    /// Whether memory was too short for both halves together.
    separated: bool,
}

impl Guidance {
    /// `scale` is `g` in `v_u + g (v_c - v_u)`; 1 uses `v_c` alone and never asks for `v_u`.
    /// `rescale` in 0..=1 is how far the standard deviation is brought back to that of `v_c`. STAR:
    /// 7.5 and 0.2.
    ///
    /// # Errors
    /// [`Error::Setting`] for values out of range.
    pub fn new(scale: f32, rescale: f32) -> Result<Self> {
        Self::scheduled(vec![scale], rescale)
    }

    /// [`Self::new`] with one scale for each evaluation.
    ///
    /// # Errors
    /// [`Error::Setting`] for values out of range, and without any.
    pub fn scheduled(scales: Vec<f32>, rescale: f32) -> Result<Self> {
        let wrong = |scale: &&f32| !scale.is_finite() || scale.abs() > 1e4;
        if let Some(scale) = scales.iter().find(wrong) {
            let reason = format!("{scale} is outside -10000 to 10000");
            return Err(Error::setting(Setting::GuidanceScale, reason));
        }
        if scales.is_empty() {
            return Err(Error::setting(Setting::GuidanceScale, "there is none"));
        }
        if !(0.0..=1.0).contains(&rescale) {
            let reason = format!("{rescale} is outside 0 to 1");
            return Err(Error::setting(Setting::GuidanceRescale, reason));
        }
        let (interval, batching) = ((0.0, 1.0), Batching::Auto);
        Ok(Self { scales, rescale, interval, batching, separated: false })
    }

    /// Guides only the evaluations `i` of `n` with `low <= i / n < high`; the others use `v_c`
    /// alone (arXiv 2404.07724).
    ///
    /// # Errors
    /// [`Error::Setting`] unless `0 <= low <= high <= 1`.
    pub fn within(self, (low, high): (f32, f32)) -> Result<Self> {
        // Written so that NaN fails.
        if 0.0 <= low && low <= high && high <= 1.0 {
            return Ok(Self { interval: (low, high), ..self });
        }
        let reason = format!("{low} to {high} is not a range within 0 to 1");
        Err(Error::setting(Setting::GuidanceInterval, reason))
    }

    /// Computes both halves in the given way.
    pub fn batched(self, batching: Batching) -> Self {
        Self { batching, ..self }
    }

    /// Whether some evaluation needs the negative prompt.
    pub fn is_used(&self) -> bool {
        self.scales.iter().any(|&scale| scale != 1.0) && self.interval.0 < self.interval.1
    }

    /// The scale of evaluation `i`.
    fn scale(&self, i: usize) -> f32 {
        self.scales.get(i).or(self.scales.last()).copied().unwrap_or(1.0)
    }

    /// Whether memory was too short for a batch of two, so that the halves are computed separately.
    pub fn is_separated(&self) -> bool {
        self.separated
    }

    /// Whether evaluation `i` of `n` is guided.
    pub fn guides(&self, i: usize, n: usize) -> bool {
        let place = i as f32 / n.max(1) as f32;
        self.scale(i) != 1.0 && self.interval.0 <= place && place < self.interval.1
    }

    /// Computes both halves separately from now on, as memory is too short for both; false where
    /// they are already, or must not be.
    pub fn separate(&mut self, model: &dyn Denoiser) -> bool {
        let together = self.batching == Batching::Auto && self.is_used() && self.batches(model);
        self.separated |= together;
        together
    }

    /// Whether `model` is asked for both halves of a guided prediction at once.
    pub fn batches(&self, model: &dyn Denoiser) -> bool {
        match self.batching {
            Batching::Auto => model.prefers_batches() && !self.separated,
            Batching::Together => true,
            Batching::Separate => false,
        }
    }

    /// The velocity `[F,C,h,w]` of evaluation `i` for a window, in standard layout. `query` has the
    /// prompt as its only condition, or the prompt and the negative prompt for a guided prediction.
    ///
    /// # Errors
    /// As [`Query::ask`], and [`Error::Input`] where the negative prompt is missing.
    pub fn predict(
        &mut self,
        model: &mut dyn Denoiser,
        i: usize,
        query: &Query,
    ) -> Result<Samples> {
        if let [Some(_), None] = query.conditions {
            let reason = "guidance needs its embedding; set both halves of the conditioning";
            return Err(Error::input("the negative prompt", reason));
        }
        let guided = query.conditions.len() == 2;
        let together = self.batches(model);
        let mut velocities = Vec::new();
        if together || !guided {
            match query.ask(model) {
                Err(Error::Memory { .. }) if guided && self.batching == Batching::Auto => {
                    self.separated = true;
                }
                answer => velocities = answer?,
            }
        }
        if velocities.is_empty() {
            for condition in query.conditions.chunks(1) {
                velocities.extend(Query { conditions: condition, ..*query }.ask(model)?);
            }
        }
        let mut velocities = velocities.into_iter();
        let Some(positive) = velocities.next() else {
            return Err(Error::input("a prediction", "it has no condition"));
        };
        let Some(negative) = velocities.next() else { return Ok(positive) };
        let positive = positive.view().as_standard_layout().into_owned();
        let mut guided = negative.view().as_standard_layout().into_owned();
        self.mix(
            i,
            positive.as_slice().expect("standard layout"),
            guided.as_slice_mut().expect("standard layout"),
        );
        Ok(guided.into())
    }

    /// Guides one window at evaluation `i`: `negative` becomes the result. The standard deviations
    /// are unbiased and pool over the whole window.
    pub fn mix(&self, i: usize, positive: &[f32], negative: &mut [f32]) {
        debug_assert_eq!(positive.len(), negative.len());
        let scale = self.scale(i);
        for (u, &c) in negative.iter_mut().zip(positive) {
            *u += scale * (c - *u);
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
    fn rescale_brings_back_the_standard_deviation() {
        let positive = [1.0f32, -1.0, 3.0, 0.5];
        let negative = [0.0f32, 0.5, 1.0, -0.5];
        let mut full = negative;
        Guidance::new(7.5, 1.0).unwrap().mix(0, &positive, &mut full);
        assert!((std(&full) - std(&positive)).abs() < 1e-6);
        let mut unscaled = negative;
        Guidance::new(7.5, 0.0).unwrap().mix(0, &positive, &mut unscaled);
        assert_eq!(unscaled[0], 7.5);
    }

    #[test]
    fn interval() {
        let guided = |interval| {
            let guidance = Guidance::new(2.0, 0.0).unwrap().within(interval).unwrap();
            (0..5).map(|i| guidance.guides(i, 5)).collect::<Vec<_>>()
        };
        assert_eq!(guided((0.0, 1.0)), [true; 5]);
        assert_eq!(guided((0.2, 0.8)), [false, true, true, true, false]);
        assert_eq!(guided((0.6, 1.0)), [false, false, false, true, true]);
        assert_eq!(guided((0.5, 0.5)), [false; 5]);
        for wrong in [(-0.1, 1.0), (0.0, 1.1), (0.6, 0.5), (f32::NAN, 1.0), (0.0, f32::NAN)] {
            let error = Guidance::new(2.0, 0.0).unwrap().within(wrong).unwrap_err();
            assert!(
                matches!(error, Error::Setting { setting: Setting::GuidanceInterval, .. }),
                "{wrong:?}"
            );
        }
        assert!(!Guidance::new(1.0, 0.0).unwrap().guides(0, 1));
    }

    #[test]
    fn scales_by_evaluation() {
        let guidance = Guidance::scheduled(vec![1.0, 3.0], 0.0).unwrap();
        assert!(guidance.is_used());
        assert_eq!([0, 1, 2].map(|i| guidance.guides(i, 3)), [false, true, true]);
        for (i, expected) in [(0, 2.0), (1, 6.0), (7, 6.0)] {
            let mut negative = [0.0f32];
            guidance.mix(i, &[2.0], &mut negative);
            assert_eq!(negative, [expected]);
        }
        assert!(!Guidance::scheduled(vec![1.0; 4], 0.0).unwrap().is_used());
        assert!(Guidance::scheduled(vec![], 0.0).is_err());
        assert!(Guidance::scheduled(vec![2.0, f32::INFINITY], 0.0).is_err());
    }

    #[test]
    fn refusals_and_small_windows() {
        assert!(Guidance::new(f32::NAN, 0.2).is_err());
        assert!(Guidance::new(7.5, 1.5).is_err());
        assert!(Guidance::new(7.5, f32::NAN).is_err());
        let mut one = [1.0f32];
        Guidance::new(2.0, 0.2).unwrap().mix(0, &[2.0], &mut one);
        assert_eq!(one, [3.0]);
        let mut flat = [0.0f32; 4];
        Guidance::new(2.0, 0.2).unwrap().mix(0, &[0.0; 4], &mut flat);
        assert_eq!(flat, [0.0; 4]);
    }
}
