// SPDX-License-Identifier: MPL-2.0

//! Sizes of pictures.

use std::fmt;

use crate::error::{Error, Result};

/// Sides above this are refused, so that a wrong number is an error and not a failed allocation.
pub(super) const MAX_SIDE: usize = 1 << 16;

/// Width and height of a picture in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Pixels of a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl Size {
    /// The size of `width` x `height` pixels.
    pub fn new(width: usize, height: usize) -> Self {
        Self { width, height }
    }

    /// Number of pixels.
    pub fn area(self) -> u64 {
        (self.width as u64).saturating_mul(self.height as u64)
    }

    /// The size of a picture that is enlarged `factor` times in each direction.
    ///
    /// # Errors
    /// [`Error::Input`] where `factor` is 0 or a side would be longer than 65536 pixels.
    pub fn enlarged(self, factor: usize) -> Result<Self> {
        let large =
            Self::new(self.width.saturating_mul(factor), self.height.saturating_mul(factor));
        if factor == 0 || large.width.max(large.height) > MAX_SIDE {
            return Err(Error::input(
                "upscale",
                format!(
                    "{self} enlarged {factor} times is {large}; a side may have 1 to {MAX_SIDE} pixels"
                ),
            ));
        }
        Ok(large)
    }
}

/// `640x480`.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}
