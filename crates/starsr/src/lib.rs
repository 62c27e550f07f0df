// SPDX-License-Identifier: MPL-2.0

//! Video super-resolution with STAR (arXiv 2501.02976), a text-to-video diffusion model adapted to video
//! super-resolution: frames in, larger frames out.
//!
//! [`upscaler`] is the whole of it; [`runtime`] gives it a [`bundle`]'s model through ONNX Runtime.

pub mod bundle;
pub mod cancel;
pub mod color;
pub mod diffusion;
pub mod error;
pub mod geometry;
pub mod model;
pub mod parallel;
pub mod runtime;
pub mod scene;
pub mod text;
pub mod upscaler;
pub mod windows;
