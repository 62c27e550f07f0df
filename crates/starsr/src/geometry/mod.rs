// SPDX-License-Identifier: MPL-2.0

//! Sizes that a model can process, the way to them and back: enlarging, padding and cropping,
//! spatial tiles.

pub mod bytes;
mod canvas;
mod resize;
mod size;
mod tiles;

pub use canvas::{Canvas, LegalSizes, Padding};
pub use resize::{Enlarger, Interpolation, resize_bilinear, upscale};
pub use size::Size;
pub use tiles::Grid;
