// SPDX-License-Identifier: MPL-2.0

//! What the sampler asks of a model. Implemented over ONNX Runtime in [`crate::runtime`], and by stand-ins in tests.

use std::time::Duration;

use ndarray::{Array4, ArrayView4};

use crate::error::Result;

/// Which text condition a prediction is made under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// The prompt, `v_c` (or none, where the bundle has no text encoder).
    Positive,
    /// The negative prompt, `v_u`.
    Negative,
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
}

/// A whole bundle: autoencoder and denoiser.
pub trait Model: Denoiser + Send {
    /// Latents `[F,C,h,w]` (posterior mean, scaled) of pixels `[F,3,H,W]` in [-1,1].
    fn encode(&mut self, pixels: ArrayView4<f32>) -> Result<Array4<f32>>;
    /// Pixels `[F,3,H,W]`, nominally in [-1,1] and not clamped, of scaled latents `[F,C,h,w]`.
    fn decode(&mut self, latents: ArrayView4<f32>) -> Result<Array4<f32>>;
    /// Time spent so far inside the runtime that computes the graphs; what callers measure beyond it is this crate's own.
    fn busy(&self) -> Duration {
        Duration::ZERO
    }
}
