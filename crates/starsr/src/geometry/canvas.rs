// SPDX-License-Identifier: MPL-2.0

//! Sizes that a model can process, and a picture's place on a canvas of such a size.

use std::ops::Range;

use ndarray::{ArrayView3, ArrayViewMut3, Axis as Dim, s};

use super::{MAX_SIZE, size_error};
use crate::error::{Error, Result};

/// The sizes a model takes along one axis: at least `minimum` and `multiple * n + offset`. STAR: height 64, 16, 720, width 64, 0, 1280.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Axis {
    /// Distance between legal sizes, at least 1.
    pub multiple: usize,
    /// Remainder of every legal size, below `multiple`.
    #[serde(default)]
    pub offset: usize,
    /// Lower bound of the legal sizes.
    #[serde(default)]
    pub minimum: usize,
}

impl Axis {
    /// Fails with [`Error::Setting`] unless `1 <= multiple`, `offset < multiple` and all are at most 65536.
    pub fn validate(&self) -> Result<()> {
        if (1..=MAX_SIZE).contains(&self.multiple) && self.offset < self.multiple && self.minimum <= MAX_SIZE
        {
            return Ok(());
        }
        Err(Error::Setting { setting: "legal sizes", reason: format!("{self:?} admits no size") })
    }

    /// The smallest legal size that is at least `size` and not 0.
    pub fn fit(&self, size: usize) -> Result<usize> {
        self.validate()?;
        if size > MAX_SIZE {
            return Err(size_error("canvas", format!("{size} pixels are more than {MAX_SIZE}")));
        }
        let least = size.max(self.minimum).max(1);
        Ok(least.saturating_sub(self.offset).next_multiple_of(self.multiple) + self.offset)
    }

    /// The largest legal size that is at most `size`, if there is one.
    pub(super) fn fit_within(&self, size: usize) -> Option<usize> {
        let least = self.fit(1).ok()?;
        (size >= least).then(|| least + (size - least) / self.multiple * self.multiple)
    }
}

/// How a picture is brought to a legal size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Padding {
    /// The smallest legal size, filled right and below with the last column and row.
    Edge,
    /// The smallest legal size, filled right and below with white, 1.
    White,
    /// As the official program does (SPEC A.1, `pad_to_fit`): white; centred up to the minimum, else right and below, where a whole
    /// `multiple` is added to sizes above the minimum that are legal already.
    Official,
}

/// A picture's place on a canvas of legal size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Canvas {
    /// Height of the canvas.
    pub height: usize,
    /// Width of the canvas.
    pub width: usize,
    /// Rows above the picture.
    pub top: usize,
    /// Columns left of the picture.
    pub left: usize,
    /// Height of the picture.
    pub picture_height: usize,
    /// Width of the picture.
    pub picture_width: usize,
    padding: Padding,
}

impl Canvas {
    /// The canvas for a picture of `height` x `width` pixels. Fails with [`Error::Setting`] where an axis admits no size and with
    /// [`Error::Input`] where the picture is empty or beyond 65536 pixels a side.
    pub fn new(height: usize, width: usize, rows: Axis, columns: Axis, padding: Padding) -> Result<Self> {
        if height == 0 || width == 0 {
            return Err(size_error("canvas", format!("a picture of {width}x{height} is empty")));
        }
        let place = |size: usize, axis: Axis| -> Result<(usize, usize)> {
            let fit = axis.fit(size)?;
            if padding != Padding::Official {
                return Ok((fit, 0));
            }
            let minimum = axis.fit(axis.minimum)?;
            Ok(if size <= minimum {
                (minimum, (minimum - size) / 2)
            } else if fit == size {
                (fit + axis.multiple, 0)
            } else {
                (fit, 0)
            })
        };
        let ((full_height, top), (full_width, left)) = (place(height, rows)?, place(width, columns)?);
        Ok(Self {
            height: full_height,
            width: full_width,
            top,
            left,
            picture_height: height,
            picture_width: width,
            padding,
        })
    }

    /// Puts a picture `[C,h,w]` in [-1,1] (or [0,1]: white is 1 in both) on the canvas `full`, `[C,H,W]`. Fails with [`Error::Input`]
    /// where the size of either is not the one the canvas was made for.
    pub fn pad(&self, picture: ArrayView3<f32>, full: &mut ArrayViewMut3<f32>) -> Result<()> {
        let (channels, height, width) = picture.dim();
        if (height, width) != (self.picture_height, self.picture_width) {
            return Err(size_error(
                "canvas",
                format!("it is for {}x{}, not {width}x{height}", self.picture_width, self.picture_height),
            ));
        }
        if full.dim() != (channels, self.height, self.width) {
            let reason = format!("it is {channels}x{}x{}, not {:?}", self.height, self.width, full.shape());
            return Err(size_error("canvas", reason));
        }
        if (height, width) != (self.height, self.width) {
            full.fill(1.0);
        }
        full.slice_mut(s![.., self.rows(), self.columns()]).assign(&picture);
        if self.padding == Padding::Edge {
            for mut plane in full.axis_iter_mut(Dim(0)) {
                for mut row in plane.axis_iter_mut(Dim(0)).take(height) {
                    let last = row[width - 1];
                    row.slice_mut(s![width..]).fill(last);
                }
                let (filled, mut empty) = plane.view_mut().split_at(Dim(0), height);
                empty.axis_iter_mut(Dim(0)).for_each(|mut row| row.assign(&filled.row(height - 1)));
            }
        }
        Ok(())
    }

    /// The picture's part of something on the canvas, `[C,H,W]`. Fails with [`Error::Input`] where its size is not the canvas's.
    pub fn crop<'a>(&self, full: ArrayView3<'a, f32>) -> Result<ArrayView3<'a, f32>> {
        let (_, height, width) = full.dim();
        if (height, width) != (self.height, self.width) {
            return Err(size_error(
                "canvas",
                format!("it is {}x{}, not {width}x{height}", self.width, self.height),
            ));
        }
        Ok(full.slice_move(s![.., self.rows(), self.columns()]))
    }

    fn rows(&self) -> Range<usize> {
        self.top..self.top + self.picture_height
    }

    fn columns(&self) -> Range<usize> {
        self.left..self.left + self.picture_width
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array3;

    use super::*;

    const ROWS: Axis = Axis { multiple: 64, offset: 16, minimum: 720 };
    const COLUMNS: Axis = Axis { multiple: 64, offset: 0, minimum: 1280 };

    #[test]
    fn legal_sizes() {
        assert_eq!(
            [ROWS.fit(1), ROWS.fit(720), ROWS.fit(721), ROWS.fit(784)].map(Result::unwrap),
            [720, 720, 784, 784]
        );
        assert_eq!([COLUMNS.fit(1280), COLUMNS.fit(1281)].map(Result::unwrap), [1280, 1344]);
        let free = Axis { multiple: 8, offset: 4, minimum: 0 };
        assert_eq!([free.fit(1), free.fit(4), free.fit(5), free.fit(12)].map(Result::unwrap), [4, 4, 12, 12]);
        assert_eq!(Axis { multiple: 1, offset: 0, minimum: 0 }.fit(0).unwrap(), 1);
        for wrong in [
            Axis { multiple: 0, offset: 0, minimum: 0 },
            Axis { multiple: 8, offset: 8, minimum: 0 },
            Axis { multiple: 8, offset: 0, minimum: usize::MAX },
        ] {
            assert!(wrong.fit(1).is_err());
        }
        assert!(ROWS.fit(usize::MAX).is_err());
    }

    #[test]
    fn no_waste() {
        let canvas = Canvas::new(784, 1344, ROWS, COLUMNS, Padding::Edge).unwrap();
        assert_eq!((canvas.height, canvas.width), (784, 1344));
        let canvas = Canvas::new(784, 1344, ROWS, COLUMNS, Padding::Official).unwrap();
        assert_eq!((canvas.height, canvas.width), (848, 1408));
    }

    #[test]
    fn padding_and_back() {
        let axis = Axis { multiple: 8, offset: 0, minimum: 0 };
        let picture = Array3::from_shape_fn((3, 5, 6), |(c, y, x)| (c * 100 + y * 10 + x) as f32 / 400.0);
        for padding in [Padding::Edge, Padding::White, Padding::Official] {
            let canvas = Canvas::new(5, 6, axis, axis, padding).unwrap();
            let mut full = Array3::zeros((3, 8, 8));
            canvas.pad(picture.view(), &mut full.view_mut()).unwrap();
            assert_eq!(canvas.crop(full.view()).unwrap(), picture);
            let corner = if padding == Padding::Edge { picture[[1, 4, 5]] } else { 1.0 };
            assert_eq!(full[[1, 7, 7]], corner);
            assert_eq!(full[[1, 4, 7]] == picture[[1, 4, 5]], padding == Padding::Edge);
            assert!(canvas.pad(full.view(), &mut full.clone().view_mut()).is_err());
            assert!(canvas.pad(picture.view(), &mut picture.clone().view_mut()).is_err());
            assert!(canvas.crop(picture.view()).is_err());
        }
        assert!(Canvas::new(0, 6, axis, axis, Padding::Edge).is_err());
    }
}
