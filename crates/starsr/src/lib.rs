// SPDX-License-Identifier: MPL-2.0

//! Video super-resolution with STAR ([arXiv 2501.02976](https://arxiv.org/abs/2501.02976)), a
//! text-to-video diffusion model adapted to video super-resolution: frames in, larger frames out.
//!
//! An [`Upscaler`] takes frames with [`Upscaler::send_frame`] and gives as many back with
//! [`Upscaler::receive_frame`], some frames later. It runs a [`model::Model`]: a [`Bundle`] on ONNX
//! Runtime, which is a [`runtime::Engine`], or any other.

#![deny(missing_docs)]

pub mod bundle;
mod cancel;
pub mod color;
pub mod diffusion;
mod error;
pub mod geometry;
pub mod model;
mod names;
mod parallel;
pub mod runtime;
pub mod scene;
pub mod text;
pub mod upscaler;
pub mod windows;

pub use bundle::Bundle;
pub use cancel::Cancel;
pub use error::{Cause, Error, Result};
pub use geometry::Size;
pub use names::Setting;
pub use upscaler::{Received, Settings, StageTimes, TruncatedTokens, Upscaler};
