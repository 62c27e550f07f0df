// SPDX-License-Identifier: MPL-2.0

//! Sizes that a model can process, the way to them and back: enlarging, padding and cropping, spatial tiles.

mod canvas;
mod resize;
mod tiles;

pub use canvas::{Axis, Canvas, Padding};
pub use resize::{Interpolation, resize_bilinear, upscale};
pub use tiles::Grid;

use crate::error::Error;

/// Sizes above this are refused, so that a wrong number is an error and not an allocation failure.
const MAX_SIZE: usize = 1 << 16;

fn size_error(what: &str, reason: String) -> Error {
    Error::Input { what: what.into(), reason }
}
