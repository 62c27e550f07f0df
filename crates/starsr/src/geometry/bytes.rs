// SPDX-License-Identifier: MPL-2.0

//! Frames of 8 bits, brought to a size as the official program of the CogVideoX variant does
//! (docs/star.md, B.5).

use ndarray::{Array3, ArrayView3, Axis, s};

use super::size::{MAX_SIDE, Size};
use crate::error::{Error, Result};

/// How a frame is brought nearer to the width that the model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rescale {
    /// To two thirds in each direction, bilinearly.
    TwoThirds,
    /// Not at all.
    Keep,
    /// To four times in each direction, by cubic convolution with a = -0.75.
    FourTimes,
}

impl Rescale {
    /// What the official program does with frames of `width` pixels for a model that takes
    /// `wanted`.
    pub fn of(width: usize, wanted: usize) -> Self {
        match width.cmp(&wanted) {
            std::cmp::Ordering::Greater => Self::TwoThirds,
            std::cmp::Ordering::Equal => Self::Keep,
            std::cmp::Ordering::Less => Self::FourTimes,
        }
    }

    /// Source pixels from one pixel of the result to the next.
    fn step(self) -> f64 {
        match self {
            Self::TwoThirds => 1.5,
            Self::Keep => 1.0,
            Self::FourTimes => 0.25,
        }
    }

    fn length(self, from: usize) -> usize {
        match self {
            Self::TwoThirds => (from as u64 * 2 / 3) as usize,
            Self::Keep => from,
            Self::FourTimes => from.saturating_mul(4),
        }
    }

    /// Weight of a pixel at `distance` pixels.
    fn kernel(self, distance: f64) -> f64 {
        const A: f64 = -0.75;
        let d = distance.abs();
        match self {
            Self::TwoThirds | Self::Keep => (1.0 - d).max(0.0),
            Self::FourTimes if d <= 1.0 => ((A + 2.0) * d - (A + 3.0)) * d * d + 1.0,
            Self::FourTimes if d < 2.0 => ((A * d - 5.0 * A) * d + 8.0 * A) * d - 4.0 * A,
            Self::FourTimes => 0.0,
        }
    }

    /// The source pixels `from` long that each pixel of the result is made of, with their weights.
    fn taps(self, from: usize) -> Vec<[(usize, f64); 4]> {
        let tap = |i: usize| {
            let centre = (i as f64 + 0.5) * self.step() - 0.5;
            let low = centre.floor() as i64 - 1;
            [0, 1, 2, 3].map(|k| {
                let at = low + k;
                (at.clamp(0, from as i64 - 1) as usize, self.kernel(at as f64 - centre))
            })
        };
        (0..self.length(from)).map(tap).collect()
    }

    /// Rescales `source` `[C,h,w]`: pixel centres on the grid of `align_corners=False`, edges
    /// replicated, no antialiasing; first the width, then the height, each rounded to 8 bits.
    ///
    /// # Errors
    /// [`Error::Input`] where a side would be longer than 65536 pixels.
    pub fn apply(self, source: ArrayView3<u8>) -> Result<Array3<u8>> {
        let (channels, height, width) = source.dim();
        let (tall, wide) = (self.length(height), self.length(width));
        if tall > MAX_SIDE || wide > MAX_SIDE {
            let reason = format!("{width}x{height} to {wide}x{tall}");
            return Err(Error::input("resize", reason));
        }
        let mut widened = Array3::zeros((channels, height, wide));
        for (x, taps) in self.taps(width).iter().enumerate() {
            let mut column = widened.index_axis_mut(Axis(2), x);
            for ((c, y), v) in column.indexed_iter_mut() {
                *v = rounded(taps.iter().map(|&(x, w)| w * f64::from(source[[c, y, x]])).sum());
            }
        }
        let mut result = Array3::zeros((channels, tall, wide));
        for (y, taps) in self.taps(height).iter().enumerate() {
            let mut row = result.index_axis_mut(Axis(1), y);
            for ((c, x), v) in row.indexed_iter_mut() {
                *v = rounded(taps.iter().map(|&(y, w)| w * f64::from(widened[[c, y, x]])).sum());
            }
        }
        Ok(result)
    }
}

/// Half upwards; the cast clamps.
fn rounded(value: f64) -> u8 {
    (value + 0.5).floor() as u8
}

/// The middle of `source` `[C,h,w]`, or `source` in the middle of black, as `[C,H,W]` of the given
/// size. An odd remainder is divided with halves to even where it is cut off, and downwards where
/// it is added.
///
/// # Errors
/// [`Error::Input`] where a side is longer than 65536 pixels.
pub fn centred(source: ArrayView3<u8>, size: Size) -> Result<Array3<u8>> {
    let (channels, height, width) = source.dim();
    if size.width > MAX_SIDE || size.height > MAX_SIDE {
        return Err(Error::input("crop", format!("{width}x{height} to {size}")));
    }
    let cut =
        |from: usize, to: usize| (from.saturating_sub(to) as f64 / 2.0).round_ties_even() as usize;
    let (top, left) = (cut(height, size.height), cut(width, size.width));
    let below = (size.height.saturating_sub(height)) / 2;
    let right = (size.width.saturating_sub(width)) / 2;
    let (rows, columns) = (height.min(size.height), width.min(size.width));
    let mut result = Array3::zeros((channels, size.height, size.width));
    result
        .slice_mut(s![.., below..below + rows, right..right + columns])
        .assign(&source.slice(s![.., top..top + rows, left..left + columns]));
    Ok(result)
}

/// Values in `[-1,1]` of 8-bit ones.
pub fn signed(source: ArrayView3<u8>) -> Array3<f32> {
    source.mapv(|v| f32::from(v) / 255.0 * 2.0 - 1.0)
}

/// A frame `[C,h,w]` as the model's input `[C,H,W]` in `[-1,1]`: rescaled by its width, then cut to
/// `size` or padded to it with black.
///
/// # Errors
/// [`Error::Input`] where a side would be longer than 65536 pixels.
pub fn prepared(source: ArrayView3<u8>, size: Size) -> Result<Array3<f32>> {
    let rescaled = Rescale::of(source.dim().2, size.width).apply(source)?;
    Ok(signed(centred(rescaled.view(), size)?.view()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(height: usize, width: usize) -> Array3<u8> {
        Array3::from_shape_fn((3, height, width), |(c, y, x)| (c * 91 + y * 37 + x * 53) as u8)
    }

    #[test]
    fn flat_pictures_stay_flat() {
        for how in [Rescale::TwoThirds, Rescale::Keep, Rescale::FourTimes] {
            for (height, width) in [(1, 1), (2, 5), (9, 4), (0, 3)] {
                let result = how.apply(Array3::from_elem((1, height, width), 77).view()).unwrap();
                assert!(result.iter().all(|&v| v == 77), "{how:?} {height}x{width}");
                assert_eq!(result.dim(), (1, how.length(height), how.length(width)));
            }
        }
        let picture = picture(5, 7);
        assert_eq!(Rescale::Keep.apply(picture.view()).unwrap(), picture);
        assert!(Rescale::FourTimes.apply(Array3::zeros((1, 1, MAX_SIDE)).view()).is_err());
    }

    #[test]
    fn overshoot_is_clamped_after_each_direction() {
        let edge = Array3::from_shape_fn((1, 1, 4), |(_, _, x)| if x < 2 { 0 } else { 255 });
        let result = Rescale::FourTimes.apply(edge.view()).unwrap();
        assert_eq!((result[[0, 0, 4]], result[[0, 0, 11]]), (0, 255));
        assert_eq!(rounded(1.5), 2);
        assert_eq!((rounded(-3.0), rounded(300.0)), (0, 255));
    }

    #[test]
    fn the_middle() {
        let picture = picture(5, 853);
        let result = centred(picture.view(), Size::new(720, 8)).unwrap();
        // 66.5 is cut at 66, and of three rows of black one is above.
        assert_eq!(result[[1, 1, 0]], picture[[1, 0, 66]]);
        assert_eq!((result[[1, 0, 0]], result[[1, 6, 0]]), (0, 0));
        assert_eq!(centred(result.view(), Size::new(0, 3)).unwrap().dim(), (3, 3, 0));
        assert!(centred(result.view(), Size::new(MAX_SIDE + 1, 3)).is_err());
    }

    #[test]
    fn whole_frames() {
        let size = Size::new(24, 16);
        for (height, width) in [(4, 6), (16, 24), (30, 40), (1, 1)] {
            let result = prepared(picture(height, width).view(), size).unwrap();
            assert_eq!(result.dim(), (3, 16, 24));
            assert!(result.iter().all(|v| (-1.0..=1.0).contains(v)));
        }
    }
}
