// SPDX-License-Identifier: MPL-2.0

//! Colour correction of the result against the input (docs/star.md, A.7).

use ndarray::{Array3, ArrayView3, Axis, CowArray};

use crate::diffusion::guidance::moments;
use crate::error::{Error, Result};
use crate::geometry::{Size, resize_bilinear};

/// How the colours of the result are corrected against the input (docs/star.md, A.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ColorFix {
    /// Colours as the model gives them.
    None,
    /// Mean and standard deviation of each channel and frame taken from the input.
    Adain,
    /// Low frequencies taken from the input.
    Wavelet,
}

/// Levels of the à-trous decomposition; the coarsest reaches 2⁵ - 1 pixels to each side.
const WAVELET_LEVELS: u32 = 5;

impl ColorFix {
    /// Corrects `content` `[C,H,W]` against `style` `[C,h,w]`, both in `[0,1]`, and clamps it to
    /// `[0,1]`.
    ///
    /// `Adain` uses the statistics of `style` alone, so its size does not matter: give it the
    /// source frame as it is. `Wavelet` resizes `style` bilinearly to the content's size.
    ///
    /// # Errors
    /// [`Error::Input`] where channels differ or `style` is empty.
    pub fn apply(self, content: &mut Array3<f32>, style: ArrayView3<f32>) -> Result<()> {
        if self == Self::None {
            return Ok(());
        }
        if style.dim().0 != content.dim().0 || style.is_empty() != content.is_empty() {
            let (content, style) = (content.shape(), style.shape());
            let reason = format!("{content:?} cannot be corrected against {style:?}");
            return Err(Error::input("colour fix", reason));
        }
        if content.is_empty() {
            return Ok(());
        }
        let style = match self {
            Self::Wavelet if style.dim() != content.dim() => {
                let (_, height, width) = content.dim();
                CowArray::from(resize_bilinear(style, Size { width, height })?)
            }
            _ => style.as_standard_layout(),
        };
        if !content.is_standard_layout() {
            *content = content.as_standard_layout().into_owned();
        }
        let (_, height, width) = content.dim();
        for (mut content, style) in content.axis_iter_mut(Axis(0)).zip(style.axis_iter(Axis(0))) {
            let content = content.as_slice_mut().expect("standard layout");
            let style = style.to_slice().expect("standard layout");
            match self {
                Self::None => {}
                Self::Adain => adain(content, style),
                Self::Wavelet => wavelet(content, style, height, width),
            }
        }
        Ok(())
    }
}

/// Mean, and standard deviation from the unbiased variance plus 1e-5.
fn statistics(plane: &[f32]) -> (f64, f64) {
    let (sum, squares) = moments(plane);
    let n = plane.len() as f64;
    let variance = ((squares - sum * sum / n) / (n - 1.0).max(1.0)).max(0.0);
    (sum / n, (variance + 1e-5).sqrt())
}

fn adain(content: &mut [f32], style: &[f32]) {
    let (from_mean, from_std) = statistics(content);
    let (to_mean, to_std) = statistics(style);
    let gain = to_std / from_std;
    let (gain, offset) = (gain as f32, (to_mean - gain * from_mean) as f32);
    for v in content {
        *v = (*v * gain + offset).clamp(0.0, 1.0);
    }
}

/// high(content) + low(style) is content + low(style - content), as the filter is linear.
fn wavelet(content: &mut [f32], style: &[f32], height: usize, width: usize) {
    let mut low: Vec<f32> = style.iter().zip(&*content).map(|(s, c)| s - c).collect();
    let mut blurred = vec![0.0; low.len()];
    for level in 0..WAVELET_LEVELS {
        blur(&low, &mut blurred, height, width, 1 << level);
        std::mem::swap(&mut low, &mut blurred);
    }
    for (v, d) in content.iter_mut().zip(&low) {
        *v = (*v + d).clamp(0.0, 1.0);
    }
}

/// \[1 2 1\] ⊗ \[1 2 1\] / 16 with holes of `distance`, edges replicated.
fn blur(from: &[f32], to: &mut [f32], height: usize, width: usize, distance: usize) {
    let row = |y: usize| &from[y * width..(y + 1) * width];
    // One vertically filtered row with its edges replicated on both sides.
    let mut padded = vec![0.0; width + 2 * distance];
    for (y, out) in to.chunks_exact_mut(width).enumerate() {
        let (above, here, below) =
            (row(y.saturating_sub(distance)), row(y), row((y + distance).min(height - 1)));
        for (((p, a), h), b) in padded[distance..].iter_mut().zip(above).zip(here).zip(below) {
            *p = a + 2.0 * h + b;
        }
        let (first, last) = (padded[distance], padded[distance + width - 1]);
        padded[..distance].fill(first);
        padded[distance + width..].fill(last);
        let (left, centre, right) = (&padded[..], &padded[distance..], &padded[2 * distance..]);
        for (((o, l), c), r) in out.iter_mut().zip(left).zip(centre).zip(right) {
            *o = (l + 2.0 * c + r) * (1.0 / 16.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(seed: usize, c: usize, h: usize, w: usize) -> Array3<f32> {
        Array3::from_shape_fn((c, h, w), |(c, y, x)| {
            ((seed * 31 + c * 977 + y * 131 + x * 71) * 2_654_435_761 % 1000) as f32 / 1000.0
        })
    }

    #[test]
    fn statistics_are_taken_over() {
        let mut content = picture(1, 3, 40, 30).mapv(|v| 0.4 + 0.1 * v);
        let style = picture(2, 3, 10, 8).mapv(|v| 0.3 + 0.3 * v);
        ColorFix::Adain.apply(&mut content, style.view()).unwrap();
        for (c, s) in content.axis_iter(Axis(0)).zip(style.axis_iter(Axis(0))) {
            let (c, s) = (statistics(c.as_slice().unwrap()), statistics(s.as_slice().unwrap()));
            assert!((c.0 - s.0).abs() < 1e-5 && (c.1 - s.1).abs() < 2e-3, "{c:?} {s:?}");
        }
    }

    #[test]
    fn equal_pictures_stay() {
        for fix in [ColorFix::None, ColorFix::Adain, ColorFix::Wavelet] {
            let mut content = picture(1, 3, 9, 40);
            let style = content.clone();
            fix.apply(&mut content, style.view()).unwrap();
            assert!(content.iter().zip(&style).all(|(a, b)| (a - b).abs() < 1e-6), "{fix:?}");
        }
    }

    #[test]
    fn wavelet_takes_a_constant_shift() {
        let mut content = picture(1, 3, 50, 60).mapv(|v| 0.3 + 0.2 * v);
        let expected = content.mapv(|v| v + 0.2);
        let style = Array3::from_elem((3, 5, 6), expected.mean().unwrap());
        let before = content.clone();
        ColorFix::Wavelet.apply(&mut content, style.view()).unwrap();
        // The mean moves to the style's and the detail stays.
        assert!((content.mean().unwrap() - style.mean().unwrap()).abs() < 1e-2);
        let detail = |p: &Array3<f32>| p[[0, 20, 20]] - p[[0, 20, 21]];
        assert!((detail(&content) - detail(&before)).abs() < 0.02);
    }

    #[test]
    fn odd_sizes_and_refusals() {
        for fix in [ColorFix::Adain, ColorFix::Wavelet] {
            let mut pixel = Array3::from_elem((3, 1, 1), 0.5);
            fix.apply(&mut pixel, Array3::from_elem((3, 2, 2), 0.25).view()).unwrap();
            assert!(pixel.iter().all(|v| (v - 0.25).abs() < 1e-6), "{fix:?} {pixel}");
            assert!(fix.apply(&mut pixel, Array3::zeros((1, 2, 2)).view()).is_err());
            assert!(fix.apply(&mut pixel, Array3::zeros((3, 0, 2)).view()).is_err());
            fix.apply(&mut Array3::zeros((3, 0, 2)), Array3::zeros((3, 0, 2)).view()).unwrap();
            let mut turned = picture(1, 3, 6, 7).permuted_axes([0, 2, 1]);
            fix.apply(&mut turned, picture(2, 3, 7, 6).view()).unwrap();
        }
    }
}
