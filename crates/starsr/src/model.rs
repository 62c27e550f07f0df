// SPDX-License-Identifier: MPL-2.0

//! What the sampler asks of a model. Implemented over ONNX Runtime in [`crate::runtime`], and by stand-ins in tests.

use std::sync::Arc;
use std::time::Duration;

use ndarray::{Array2, Array4, ArrayView2, ArrayView4};

use crate::error::{Error, Result};
use crate::text::Ids;

/// A text as the model sees it, `[77,D]`. Clones share the values.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding(Arc<Array2<f32>>);

impl Embedding {
    /// Of values `[77,D]`.
    pub fn new(values: Array2<f32>) -> Self {
        Self(Arc::new(values.as_standard_layout().into_owned()))
    }

    /// The values `[77,D]`, in standard layout.
    pub fn values(&self) -> ArrayView2<'_, f32> {
        self.0.view()
    }

    /// Whether both are clones of one embedding.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// What a prediction is made under: a text, or nothing where the model has no text condition.
pub type Condition<'a> = Option<&'a Embedding>;

/// What a window is restored under.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conditioning {
    /// The prompt, for `v_c`; `None` where the model has no text condition.
    pub positive: Option<Embedding>,
    /// The negative prompt, for `v_u`; needed under guidance only.
    pub negative: Option<Embedding>,
}

/// Predicts `v` for a window of latents (SPEC A.6: ControlNet and denoiser).
pub trait Denoiser {
    /// Velocity `v` `[F,C,h,w]` for the scaled input `x` `[F,C,h,w]` at the integer timestep `t` (0..=999)
    /// with the low-quality latents `hint` `[F,C,h,w]`.
    fn velocity(
        &mut self,
        x: ArrayView4<f32>,
        t: i64,
        hint: ArrayView4<f32>,
        condition: Condition,
    ) -> Result<Array4<f32>>;

    /// The velocities under two conditions, as one batch where the model can. Fails with [`Error::Memory`] where that needs
    /// more memory than there is.
    fn velocities(
        &mut self,
        x: ArrayView4<f32>,
        t: i64,
        hint: ArrayView4<f32>,
        conditions: [Condition; 2],
    ) -> Result<[Array4<f32>; 2]> {
        let [first, second] = conditions;
        Ok([self.velocity(x, t, hint, first)?, self.velocity(x, t, hint, second)?])
    }

    /// Whether a batch of two takes less time than two runs.
    fn prefers_batches(&self) -> bool {
        false
    }
}

/// A whole bundle: autoencoder, denoiser and text encoder.
pub trait Model: Denoiser + Send {
    /// Latents `[F,C,h,w]` (posterior mean, scaled) of pixels `[F,3,H,W]` in [-1,1].
    fn encode(&mut self, pixels: ArrayView4<f32>) -> Result<Array4<f32>>;

    /// Mean and standard deviation `[F,C,h,w]`, scaled, of the posterior of pixels `[F,3,H,W]` in [-1,1]. Fails with
    /// [`Error::Setting`] unless [`Self::has_deviation`].
    fn encode_posterior(&mut self, _pixels: ArrayView4<f32>) -> Result<[Array4<f32>; 2]> {
        Err(no_deviation())
    }

    /// Whether the encoder tells the posterior's standard deviation.
    fn has_deviation(&self) -> bool {
        false
    }

    /// Pixels `[F,3,H,W]`, nominally in [-1,1] and not clamped, of scaled latents `[F,C,h,w]`.
    fn decode(&mut self, latents: ArrayView4<f32>) -> Result<Array4<f32>>;

    /// The embedding of a text's tokens. Fails with [`Error::Setting`] where the model cannot embed them.
    fn embed(&mut self, _tokens: &Ids) -> Result<Embedding> {
        Err(Error::Setting { setting: "prompt", reason: "this model has no text condition".into() })
    }

    /// Whether the graphs compute in the machine's main memory, not in a device's own.
    fn uses_main_memory(&self) -> bool {
        true
    }

    /// Runs of the denoiser so far.
    fn evaluations(&self) -> u64 {
        0
    }

    /// Time spent so far inside the runtime that computes the graphs; what callers measure beyond it is this crate's own.
    fn busy(&self) -> Duration {
        Duration::ZERO
    }
}

/// The error of sampling a posterior whose deviation is not known.
pub(crate) fn no_deviation() -> Error {
    let reason = "sample needs an encoder with the output std, which this bundle's has not; use mean".into();
    Error::Setting { setting: "posterior", reason }
}
