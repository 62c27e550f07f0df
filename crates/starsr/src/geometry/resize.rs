// SPDX-License-Identifier: MPL-2.0

//! Enlarging pictures.

use ndarray::{Array3, ArrayView3, Axis};

use super::size::{MAX_SIDE, Size};
use crate::error::{Error, Result};

/// How pixels between pixels are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// Linear in each direction; never leaves the range of its input.
    Bilinear,
    /// Keys' cubic convolution with a = -0.5 (IEEE ASSP 29(6), 1981); may overshoot.
    Bicubic,
}

impl Interpolation {
    /// Weight of a pixel at `distance` pixels.
    fn kernel(self, distance: f64) -> f64 {
        let d = distance.abs();
        match self {
            Self::Bilinear => (1.0 - d).max(0.0),
            Self::Bicubic if d < 1.0 => (1.5 * d - 2.5) * d * d + 1.0,
            Self::Bicubic if d < 2.0 => ((-0.5 * d + 2.5) * d - 4.0) * d + 2.0,
            Self::Bicubic => 0.0,
        }
    }

    /// Pixels to each side of a source pixel that its upscaled pixels may need.
    fn reach(self) -> usize {
        match self {
            Self::Bilinear => 1,
            Self::Bicubic => 2,
        }
    }
}

/// Enlarges `source` `[C,h,w]` by an integer `factor` to `[C,H,W]`, with pixel centres on the grid
/// of `align_corners=False`, edges replicated, without antialiasing. The result is not clamped:
/// bicubic may leave the range of its input by about a tenth.
///
/// # Errors
/// [`Error::Input`] where `factor` is 0 or a side would be longer than 65536 pixels.
pub fn upscale(
    source: ArrayView3<f32>,
    factor: usize,
    interpolation: Interpolation,
) -> Result<Array3<f32>> {
    let (channels, height, width) = source.dim();
    let size = Size { width, height }.enlarged(factor)?;
    let enlarger = Enlarger::new(factor, interpolation);
    let source = source.as_standard_layout();
    let mut result = Array3::zeros((channels, size.height, size.width));
    for (plane, mut out) in source.axis_iter(Axis(0)).zip(result.axis_iter_mut(Axis(0))) {
        let plane = plane.to_slice().expect("standard layout");
        enlarger.rows(plane, width, 0, out.as_slice_mut().expect("standard layout"));
    }
    Ok(result)
}

/// What [`upscale`] does to any rows of a plane.
pub struct Enlarger {
    factor: usize,
    reach: usize,
    /// `[phase][tap]`: weights of the source pixels from -reach to +reach around the one that an
    /// output pixel lies in.
    weights: Vec<f32>,
}

impl Enlarger {
    /// Enlarges by `factor`, at least 1.
    pub fn new(factor: usize, interpolation: Interpolation) -> Self {
        let reach = interpolation.reach();
        let weights = (0..factor).flat_map(|phase| {
            let centre = (phase as f64 + 0.5) / factor as f64 - 0.5;
            (0..=2 * reach)
                .map(move |tap| interpolation.kernel(tap as f64 - reach as f64 - centre) as f32)
        });
        Self { factor, reach, weights: weights.collect() }
    }

    /// The enlarged rows from `first` on, as many as `out` holds, of a plane with rows of `width`
    /// pixels. Does nothing where there are no pixels.
    pub fn rows(&self, plane: &[f32], width: usize, first: usize, out: &mut [f32]) {
        let Self { factor, reach, ref weights } = *self;
        let (taps, big_width) = (2 * reach + 1, factor * width);
        if plane.is_empty() || out.is_empty() || big_width == 0 {
            return;
        }
        if factor == 1 {
            out.copy_from_slice(&plane[first * width..][..out.len()]);
            return;
        }
        let last = plane.len() / width - 1;
        let end = first + out.len() / big_width;
        // The source rows that `out` needs, widened.
        let top = (first / factor).saturating_sub(reach);
        let bottom = ((end - 1) / factor + reach).min(last);
        let mut wide = vec![0.0; (bottom + 1 - top) * big_width];
        let mut padded = vec![0.0; width + 2 * reach];
        let sources = plane[top * width..].chunks_exact(width);
        for (row, wide) in sources.zip(wide.chunks_exact_mut(big_width)) {
            padded[reach..reach + width].copy_from_slice(row);
            padded[..reach].fill(row[0]);
            padded[reach + width..].fill(row[width - 1]);
            match (factor, taps) {
                (2, 3) => widen::<2, 3>(&padded, wide, weights),
                (2, 5) => widen::<2, 5>(&padded, wide, weights),
                (3, 3) => widen::<3, 3>(&padded, wide, weights),
                (3, 5) => widen::<3, 5>(&padded, wide, weights),
                (4, 3) => widen::<4, 3>(&padded, wide, weights),
                (4, 5) => widen::<4, 5>(&padded, wide, weights),
                _ => widen_any(&padded, wide, weights, factor, taps),
            }
        }
        for (y, line) in (first..).zip(out.chunks_exact_mut(big_width)) {
            let weights = &weights[y % factor * taps..][..taps];
            let row = |tap: usize| {
                let y = (y / factor + tap).saturating_sub(reach).min(last) - top;
                &wide[y * big_width..(y + 1) * big_width]
            };
            weighted_rows(
                line,
                (0..taps).filter(|&t| weights[t] != 0.0).map(|t| (weights[t], row(t))),
            );
        }
    }
}

/// One row, `S` output pixels from `T` source pixels at a time.
fn widen<const S: usize, const T: usize>(padded: &[f32], out: &mut [f32], weights: &[f32]) {
    let mut by_tap = [[0.0f32; S]; T];
    for (i, &w) in weights.iter().enumerate().take(S * T) {
        by_tap[i % T][i / T] = w;
    }
    for (source, out) in padded.windows(T).zip(out.chunks_exact_mut(S)) {
        let mut sum = [0.0f32; S];
        for (weights, &v) in by_tap.iter().zip(source) {
            for (sum, w) in sum.iter_mut().zip(weights) {
                *sum += w * v;
            }
        }
        out.copy_from_slice(&sum);
    }
}

fn widen_any(padded: &[f32], out: &mut [f32], weights: &[f32], factor: usize, taps: usize) {
    for (source, out) in padded.windows(taps).zip(out.chunks_exact_mut(factor)) {
        for (out, weights) in out.iter_mut().zip(weights.chunks_exact(taps)) {
            *out = source.iter().zip(weights).map(|(v, w)| v * w).sum();
        }
    }
}

/// `out` = sum of weight times row.
fn weighted_rows<'a>(out: &mut [f32], mut rows: impl Iterator<Item = (f32, &'a [f32])>) {
    match rows.next() {
        Some((w, row)) => out.iter_mut().zip(row).for_each(|(o, v)| *o = w * v),
        None => out.fill(0.0),
    }
    for (w, row) in rows {
        out.iter_mut().zip(row).for_each(|(o, v)| *o += w * v);
    }
}

/// Resizes `source` `[C,h,w]` bilinearly to `[C,H,W]` of the given size, `align_corners=False`,
/// edges replicated, without antialiasing: meant for enlarging.
///
/// # Errors
/// [`Error::Input`] where `source` is empty or a side is longer than 65536 pixels.
pub fn resize_bilinear(source: ArrayView3<f32>, size: Size) -> Result<Array3<f32>> {
    let (channels, from_height, from_width) = source.dim();
    let Size { width, height } = size;
    if source.is_empty() || height > MAX_SIDE || width > MAX_SIDE {
        return Err(Error::input("resize", format!("{from_width}x{from_height} to {size}")));
    }
    let source = source.as_standard_layout();
    let across = positions(from_width, width);
    let down = positions(from_height, height);
    let mut result = Array3::zeros((channels, height, width));
    let mut mixed = vec![0.0; from_width];
    for (plane, mut out) in source.axis_iter(Axis(0)).zip(result.axis_iter_mut(Axis(0))) {
        let plane = plane.to_slice().expect("standard layout");
        for (mut line, &(top, bottom, weight)) in out.axis_iter_mut(Axis(0)).zip(&down) {
            let row = |y: usize| &plane[y * from_width..(y + 1) * from_width];
            weighted_rows(
                &mut mixed,
                [(1.0 - weight, row(top)), (weight, row(bottom))].into_iter(),
            );
            for (v, &(left, right, weight)) in line.iter_mut().zip(&across) {
                *v = mixed[left] + weight * (mixed[right] - mixed[left]);
            }
        }
    }
    Ok(result)
}

/// For each of `to` pixels the two of `from` pixels around it and the weight of the second.
fn positions(from: usize, to: usize) -> Vec<(usize, usize, f32)> {
    (0..to)
        .map(|i| {
            let centre =
                ((i as f64 + 0.5) * from as f64 / to as f64 - 0.5).clamp(0.0, (from - 1) as f64);
            let low = centre as usize;
            (low, (low + 1).min(from - 1), (centre - low as f64) as f32)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Straight from the definition, in double precision.
    fn reference(v: &Array3<f32>, factor: usize, how: Interpolation) -> Array3<f32> {
        let (channels, height, width) = v.dim();
        Array3::from_shape_fn((channels, height * factor, width * factor), |(c, y, x)| {
            let at = |p: usize| (p as f64 + 0.5) / factor as f64 - 0.5;
            let (cy, cx) = (at(y), at(x));
            let mut sum = 0.0;
            for sy in cy.floor() as i64 - 2..cy.floor() as i64 + 4 {
                for sx in cx.floor() as i64 - 2..cx.floor() as i64 + 4 {
                    let pixel = v[[
                        c,
                        sy.clamp(0, height as i64 - 1) as usize,
                        sx.clamp(0, width as i64 - 1) as usize,
                    ]];
                    sum +=
                        how.kernel(sy as f64 - cy) * how.kernel(sx as f64 - cx) * f64::from(pixel);
                }
            }
            sum as f32
        })
    }

    #[test]
    fn any_factor_and_size() {
        for factor in 1..=6 {
            for (height, width) in [(1, 1), (1, 5), (3, 2), (7, 9)] {
                for how in [Interpolation::Bilinear, Interpolation::Bicubic] {
                    let v = Array3::from_shape_fn((2, height, width), |(c, y, x)| {
                        ((c * 7 + y * 13 + x * 29) % 11) as f32 / 10.0
                    });
                    let ours = upscale(v.view(), factor, how).unwrap();
                    let worst =
                        (&ours - &reference(&v, factor, how)).fold(0.0f32, |m, d| m.max(d.abs()));
                    assert!(worst < 1e-6, "{factor} {height}x{width} {how:?}: {worst}");
                    if how == Interpolation::Bilinear {
                        let resized =
                            resize_bilinear(v.view(), Size::new(width * factor, height * factor))
                                .unwrap();
                        let worst = (&ours - &resized).fold(0.0f32, |m, d| m.max(d.abs()));
                        assert!(worst < 1e-6, "{factor} {height}x{width}: {worst}");
                    }
                }
            }
        }
    }

    #[test]
    fn refusals() {
        let v = Array3::zeros((3, 4, 4));
        assert!(upscale(v.view(), 0, Interpolation::Bilinear).is_err());
        assert!(upscale(v.view(), usize::MAX, Interpolation::Bilinear).is_err());
        assert!(upscale(v.view(), MAX_SIDE, Interpolation::Bicubic).is_err());
        assert!(resize_bilinear(Array3::zeros((3, 0, 4)).view(), Size::new(2, 2)).is_err());
        assert_eq!(resize_bilinear(v.view(), Size::new(5, 0)).unwrap().dim(), (3, 0, 5));
        assert_eq!(
            upscale(Array3::zeros((3, 0, 4)).view(), 4, Interpolation::Bicubic).unwrap().dim(),
            (3, 0, 16)
        );
        let turned = Array3::from_shape_fn((1, 2, 3), |(_, y, x)| (y * 3 + x) as f32)
            .permuted_axes([0, 2, 1]);
        let straight = turned.as_standard_layout().into_owned();
        assert_eq!(
            upscale(turned.view(), 2, Interpolation::Bicubic).unwrap(),
            upscale(straight.view(), 2, Interpolation::Bicubic).unwrap()
        );
    }

    #[test]
    fn rows_are_those_of_the_whole() {
        let source = Array3::from_shape_fn((1, 7, 5), |(_, y, x)| ((y * 37 + x * 11) % 17) as f32);
        let plane = source.as_slice().unwrap();
        for how in [Interpolation::Bilinear, Interpolation::Bicubic] {
            for factor in 1..6 {
                let whole = upscale(source.view(), factor, how).unwrap();
                let (whole, width) = (whole.as_slice().unwrap(), 5 * factor);
                let enlarger = Enlarger::new(factor, how);
                for first in 0..7 * factor {
                    for end in first..=7 * factor {
                        let mut rows = vec![f32::NAN; (end - first) * width];
                        enlarger.rows(plane, 5, first, &mut rows);
                        assert_eq!(rows, whole[first * width..end * width], "{how:?} {factor}");
                    }
                }
                enlarger.rows(&[], 5, 0, &mut []);
            }
        }
    }
}
