// SPDX-License-Identifier: MPL-2.0

//! Sizes that a model can process, and a picture's place on a canvas of such a size.

use std::ops::Range;

use ndarray::{ArrayView3, ArrayViewMut3, Axis, s};

use super::size::{MAX_SIDE, Size};
use crate::error::{Error, Result};

/// The sizes that a model takes along one axis: `multiple * n + offset`, and at least `minimum`.
/// STAR: height 64, 16, 720, width 64, 0, 1280.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LegalSizes {
    /// Distance between legal sizes, at least 1.
    pub multiple: usize,
    /// Remainder of every legal size, below `multiple`.
    #[serde(default)]
    pub offset: usize,
    /// Lower bound of the legal sizes.
    #[serde(default)]
    pub minimum: usize,
}

impl LegalSizes {
    /// Checks the values.
    ///
    /// # Errors
    /// [`Error::Input`] unless `1 <= multiple`, `offset < multiple` and all are at most 65536.
    pub fn validate(&self) -> Result<()> {
        let legal = (1..=MAX_SIDE).contains(&self.multiple)
            && self.offset < self.multiple
            && self.minimum <= MAX_SIDE;
        if legal {
            return Ok(());
        }
        Err(Error::input("legal sizes", format!("{self:?} admits no size")))
    }

    /// The smallest legal size that is at least `size` and not 0.
    ///
    /// # Errors
    /// [`Error::Input`] where `size` is above 65536 pixels, and as [`Self::validate`].
    pub fn fit(&self, size: usize) -> Result<usize> {
        self.validate()?;
        if size > MAX_SIDE {
            let reason = format!("{size} pixels are more than {MAX_SIDE}");
            return Err(Error::input("canvas", reason));
        }
        let least = size.max(self.minimum).max(1);
        Ok(least.saturating_sub(self.offset).next_multiple_of(self.multiple) + self.offset)
    }

    /// The legal sizes of what is `factor` times as small; `multiple` and `offset` are multiples of
    /// `factor`.
    pub(crate) fn shrunk(&self, factor: usize) -> Self {
        Self {
            multiple: self.multiple / factor,
            offset: self.offset / factor,
            minimum: self.minimum.div_ceil(factor),
        }
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
    /// The smallest legal size; the last column and row are repeated to the right and below.
    Edge,
    /// The smallest legal size; white, 1, to the right and below.
    White,
    /// As the official program does (docs/star.md, A.1, `pad_to_fit`): white; centred up to the
    /// minimum, else right and below, where a whole `multiple` is added to sizes above the minimum
    /// that are legal already.
    Official,
}

/// A picture's place on a canvas of legal size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Canvas {
    /// Size of the canvas.
    pub size: Size,
    /// Size of the picture on it.
    pub picture: Size,
    /// Rows above the picture.
    pub top: usize,
    /// Columns left of the picture.
    pub left: usize,
    padding: Padding,
}

impl Canvas {
    /// The canvas for a picture, where `rows` are the legal heights and `columns` the legal widths.
    ///
    /// # Errors
    /// [`Error::Input`] where an axis admits no size, and where the picture is empty or beyond
    /// 65536 pixels a side.
    pub fn new(
        picture: Size,
        rows: LegalSizes,
        columns: LegalSizes,
        padding: Padding,
    ) -> Result<Self> {
        if picture.area() == 0 {
            return Err(Error::input("canvas", format!("a picture of {picture} is empty")));
        }
        let place = |size: usize, legal: LegalSizes| -> Result<(usize, usize)> {
            let fit = legal.fit(size)?;
            if padding != Padding::Official {
                return Ok((fit, 0));
            }
            let minimum = legal.fit(legal.minimum)?;
            Ok(if size <= minimum {
                (minimum, (minimum - size) / 2)
            } else if fit == size {
                (fit + legal.multiple, 0)
            } else {
                (fit, 0)
            })
        };
        let (height, top) = place(picture.height, rows)?;
        let (width, left) = place(picture.width, columns)?;
        Ok(Self { size: Size { width, height }, picture, top, left, padding })
    }

    /// Puts a picture `[C,h,w]` in `[-1,1]` or `[0,1]` (white is 1 in both) on the canvas `full`,
    /// `[C,H,W]`.
    ///
    /// # Errors
    /// [`Error::Input`] where the size of either is not the one that the canvas was made for.
    pub fn pad(&self, picture: ArrayView3<f32>, full: &mut ArrayViewMut3<f32>) -> Result<()> {
        let (channels, height, width) = picture.dim();
        let Size { width: full_width, height: full_height } = self.size;
        if (height, width) != (self.picture.height, self.picture.width) {
            let reason = format!("it is for {}, not {width}x{height}", self.picture);
            return Err(Error::input("canvas", reason));
        }
        if full.dim() != (channels, full_height, full_width) {
            let reason =
                format!("it is {channels}x{full_height}x{full_width}, not {:?}", full.shape());
            return Err(Error::input("canvas", reason));
        }
        full.slice_mut(s![.., self.rows(), self.columns()]).assign(&picture);
        for mut plane in full.axis_iter_mut(Axis(0)) {
            let Some(plane) = plane.as_slice_mut() else {
                return Err(Error::input("canvas", "its planes are not in standard layout"));
            };
            self.surround(plane);
        }
        Ok(())
    }

    /// Row `y` of the picture in a plane `[H,W]` of the canvas.
    pub fn row<'a>(&self, plane: &'a [f32], y: usize) -> &'a [f32] {
        &plane[(self.top + y) * self.size.width..][self.columns()]
    }

    /// [`Self::row`] for writing.
    pub fn row_mut<'a>(&self, plane: &'a mut [f32], y: usize) -> &'a mut [f32] {
        &mut plane[(self.top + y) * self.size.width..][self.columns()]
    }

    /// Fills what surrounds the picture in a plane `[H,W]` of the canvas.
    pub fn surround(&self, plane: &mut [f32]) {
        let (width, columns, rows) = (self.size.width, self.columns(), self.rows());
        for row in plane.chunks_exact_mut(width).skip(rows.start).take(rows.len()) {
            let last = match self.padding {
                Padding::Edge => row[columns.end - 1],
                Padding::White | Padding::Official => 1.0,
            };
            row[..columns.start].fill(1.0);
            row[columns.end..].fill(last);
        }
        let (above, below) = plane.split_at_mut(rows.end * width);
        match self.padding {
            Padding::Edge => {
                let last = &above[(rows.end - 1) * width..];
                below.chunks_exact_mut(width).for_each(|row| row.copy_from_slice(last));
            }
            Padding::White | Padding::Official => {
                above[..rows.start * width].fill(1.0);
                below.fill(1.0);
            }
        }
    }

    /// The picture's part of `full` `[C,H,W]`, which has the size of the canvas.
    ///
    /// # Errors
    /// [`Error::Input`] where the size is another.
    pub fn crop<'a>(&self, full: ArrayView3<'a, f32>) -> Result<ArrayView3<'a, f32>> {
        let (_, height, width) = full.dim();
        if (height, width) != (self.size.height, self.size.width) {
            let reason = format!("it is {}, not {width}x{height}", self.size);
            return Err(Error::input("canvas", reason));
        }
        Ok(full.slice_move(s![.., self.rows(), self.columns()]))
    }

    fn rows(&self) -> Range<usize> {
        self.top..self.top + self.picture.height
    }

    fn columns(&self) -> Range<usize> {
        self.left..self.left + self.picture.width
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array3;

    use super::*;

    const ROWS: LegalSizes = LegalSizes { multiple: 64, offset: 16, minimum: 720 };
    const COLUMNS: LegalSizes = LegalSizes { multiple: 64, offset: 0, minimum: 1280 };

    #[test]
    fn legal_sizes() {
        assert_eq!(
            [ROWS.fit(1), ROWS.fit(720), ROWS.fit(721), ROWS.fit(784)].map(Result::unwrap),
            [720, 720, 784, 784]
        );
        assert_eq!([COLUMNS.fit(1280), COLUMNS.fit(1281)].map(Result::unwrap), [1280, 1344]);
        let free = LegalSizes { multiple: 8, offset: 4, minimum: 0 };
        assert_eq!(
            [free.fit(1), free.fit(4), free.fit(5), free.fit(12)].map(Result::unwrap),
            [4, 4, 12, 12]
        );
        assert_eq!(LegalSizes { multiple: 1, offset: 0, minimum: 0 }.fit(0).unwrap(), 1);
        for wrong in [
            LegalSizes { multiple: 0, offset: 0, minimum: 0 },
            LegalSizes { multiple: 8, offset: 8, minimum: 0 },
            LegalSizes { multiple: 8, offset: 0, minimum: usize::MAX },
        ] {
            assert!(wrong.fit(1).is_err());
        }
        assert!(ROWS.fit(usize::MAX).is_err());
    }

    #[test]
    fn no_waste() {
        let canvas = Canvas::new(Size::new(1344, 784), ROWS, COLUMNS, Padding::Edge).unwrap();
        assert_eq!(canvas.size, Size::new(1344, 784));
        let canvas = Canvas::new(Size::new(1344, 784), ROWS, COLUMNS, Padding::Official).unwrap();
        assert_eq!(canvas.size, Size::new(1408, 848));
    }

    #[test]
    fn padding_and_back() {
        let axis = LegalSizes { multiple: 8, offset: 0, minimum: 0 };
        let picture =
            Array3::from_shape_fn((3, 5, 6), |(c, y, x)| (c * 100 + y * 10 + x) as f32 / 400.0);
        for padding in [Padding::Edge, Padding::White, Padding::Official] {
            let canvas = Canvas::new(Size::new(6, 5), axis, axis, padding).unwrap();
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
        assert!(Canvas::new(Size::new(6, 0), axis, axis, Padding::Edge).is_err());
    }
}
