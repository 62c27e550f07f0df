// SPDX-License-Identifier: MPL-2.0

pub mod bundle;
pub mod cancel;
pub mod canvas;
pub mod color;
pub mod diffusion;
pub mod error;
pub mod model;
pub mod runtime;
pub mod upscaler;
pub mod window;

mod starsr;
