// SPDX-License-Identifier: MPL-2.0

//! Spatial tiles.

use std::ops::Range;

use ndarray::{Array3, ArrayView3, Axis as Dim, s};

use super::{Axis, size_error};
use crate::error::{Error, Result};

/// A stretch of one axis of a canvas that is processed at once.
#[derive(Debug, Clone, PartialEq)]
pub struct Tile {
    /// Pixels of the canvas.
    pub range: Range<usize>,
    /// Weight of each of these pixels: ramps over what tiles share. For each pixel of the canvas the weights sum to 1.
    pub weights: Vec<f32>,
}

/// Covers one axis of a canvas of legal `size` with tiles of one legal size, at most `tile` pixels long, neighbours sharing at least
/// `overlap`: as few as that takes, and no longer than they need be. All start on multiples of `axis.multiple`. 0 for `tile`, or a tile that holds it all, gives the whole axis.
///
/// Fails with [`Error::Setting`] where no legal size is within `tile`, or the overlap leaves tiles no room to advance, and with
/// [`Error::Input`] where `size` is not legal.
pub fn tiles(size: usize, tile: usize, overlap: usize, axis: Axis) -> Result<Vec<Tile>> {
    if axis.fit(size)? != size {
        return Err(size_error("tiles", format!("{size} is not a size the model takes")));
    }
    if tile == 0 || tile >= size {
        return Ok(vec![Tile { range: 0..size, weights: vec![1.0; size] }]);
    }
    let Some(mut length) = axis.fit_within(tile) else {
        return Err(Error::Setting {
            setting: "tile-size",
            reason: format!("{tile} is below {}, the least the model takes", axis.fit(1)?),
        });
    };
    // Legal sizes differ by whole multiples, so the starts can be spread evenly over multiples.
    let room = |length: usize| (size - length) / axis.multiple;
    let gaps_for = |length: usize| {
        let stride = length.saturating_sub(overlap) / axis.multiple;
        (stride > 0).then(|| room(length).div_ceil(stride))
    };
    let Some(gaps) = gaps_for(length) else {
        return Err(Error::Setting {
            setting: "tile-overlap",
            reason: format!(
                "{overlap} is too much for tiles of {length}; the most is {}",
                length - axis.multiple.min(length)
            ),
        });
    };
    // Of as many tiles the smallest that will do cost least.
    while let Some(smaller) = length.checked_sub(axis.multiple).and_then(|less| axis.fit_within(less))
        && gaps_for(smaller) == Some(gaps)
    {
        length = smaller;
    }
    let room = room(length);
    let starts: Vec<usize> = (0..=gaps).map(|i| i * room / gaps * axis.multiple).collect();

    let ramp = overlap.max(1) as f64;
    let raw = |start: usize, x: usize| {
        let left = if start == 0 { ramp } else { (x - start) as f64 + 0.5 };
        let right = if start + length == size { ramp } else { (start + length - x) as f64 - 0.5 };
        left.min(right).min(ramp)
    };
    let mut sums = vec![0.0; size];
    for &start in &starts {
        for (x, sum) in sums.iter_mut().enumerate().skip(start).take(length) {
            *sum += raw(start, x);
        }
    }
    Ok(starts
        .iter()
        .map(|&start| {
            let range = start..start + length;
            let weights = range.clone().map(|x| (raw(start, x) / sums[x]) as f32).collect();
            Tile { range, weights }
        })
        .collect())
}

/// Adds a processed tile `[C,h,w]` to `canvas` `[C,H,W]` (zero before the first) with its weights. Fails with [`Error::Input`] where the
/// tile is not `rows` x `columns` or lies outside the canvas.
pub fn add_tile(canvas: &mut Array3<f32>, tile: ArrayView3<f32>, rows: &Tile, columns: &Tile) -> Result<()> {
    let (channels, height, width) = canvas.dim();
    if tile.dim() != (channels, rows.range.len(), columns.range.len())
        || rows.range.end > height
        || columns.range.end > width
        || rows.weights.len() != rows.range.len()
        || columns.weights.len() != columns.range.len()
    {
        return Err(size_error(
            "tiles",
            format!("{:?} does not fit its place on {:?}", tile.shape(), canvas.shape()),
        ));
    }
    let mut place = canvas.slice_mut(s![.., rows.range.clone(), columns.range.clone()]);
    for (mut to, from) in place.axis_iter_mut(Dim(0)).zip(tile.axis_iter(Dim(0))) {
        for ((mut to, from), &wy) in to.axis_iter_mut(Dim(0)).zip(from.axis_iter(Dim(0))).zip(&rows.weights) {
            for ((to, from), wx) in to.iter_mut().zip(from).zip(&columns.weights) {
                *to += wy * wx * from;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cover_with_weights_that_sum_to_one() {
        for axis in [
            Axis { multiple: 64, offset: 16, minimum: 0 },
            Axis { multiple: 16, offset: 0, minimum: 32 },
            Axis { multiple: 1, offset: 0, minimum: 0 },
        ] {
            for n in 1..40 {
                let size = axis.fit(n * 37).unwrap();
                for tile in [0, 80, 100, 256, 2000] {
                    for overlap in [0, 1, 8, 16, 40] {
                        let tiles = match tiles(size, tile, overlap, axis) {
                            Ok(tiles) => tiles,
                            Err(_) => {
                                let length = axis.fit_within(tile).unwrap();
                                assert!(length < size && length < overlap + axis.multiple);
                                continue;
                            }
                        };
                        let mut sums = vec![0.0; size];
                        for (i, t) in tiles.iter().enumerate() {
                            assert_eq!(axis.fit(t.range.len()).unwrap(), t.range.len());
                            assert_eq!(t.range.start % axis.multiple, 0);
                            assert!(tile == 0 || t.range.len() <= tile.max(1));
                            assert!(i == 0 || tiles[i - 1].range.end >= t.range.start + overlap);
                            assert!(i == 0 || tiles[i - 1].range.start < t.range.start);
                            for (x, w) in t.range.clone().zip(&t.weights) {
                                assert!(*w > 0.0 && *w <= 1.0);
                                sums[x] += w;
                            }
                        }
                        assert!(sums.iter().all(|s: &f32| (s - 1.0).abs() < 1e-6), "{size} {tile} {overlap}");
                    }
                }
            }
        }
    }

    #[test]
    fn tiles_of_a_picture_give_it_back() {
        let axis = Axis { multiple: 4, offset: 0, minimum: 0 };
        let picture = Array3::from_shape_fn((3, 40, 52), |(c, y, x)| (c * 100 + y * 3 + x) as f32);
        let mut canvas = Array3::zeros(picture.dim());
        for rows in &tiles(40, 16, 4, axis).unwrap() {
            for columns in &tiles(52, 20, 7, axis).unwrap() {
                let tile = picture.slice(s![.., rows.range.clone(), columns.range.clone()]);
                add_tile(&mut canvas, tile, rows, columns).unwrap();
            }
        }
        assert!(canvas.iter().zip(&picture).all(|(a, b)| (a - b).abs() < 1e-4 * b.max(1.0)));
        let one = &tiles(40, 0, 0, axis).unwrap()[0];
        assert!(add_tile(&mut canvas, picture.view(), one, one).is_err());
    }

    #[test]
    fn tiles_are_no_longer_than_their_number_needs() {
        let axis = Axis { multiple: 128, offset: 0, minimum: 128 };
        let ranges =
            |size| tiles(size, 1024, 128, axis).unwrap().into_iter().map(|t| t.range).collect::<Vec<_>>();
        assert_eq!(ranges(1024).len(), 1);
        assert_eq!(ranges(1408), [0..768, 640..1408]);
        assert_eq!(ranges(1920), [0..1024, 896..1920]);
        assert_eq!(ranges(2048).len(), 3);
    }

    #[test]
    fn refusals() {
        let axis = Axis { multiple: 64, offset: 16, minimum: 0 };
        assert!(tiles(100, 80, 0, axis).is_err());
        assert!(tiles(720, 10, 0, axis).is_err());
        assert!(tiles(720, 80, 80, axis).is_err());
        assert!(tiles(720, 80, usize::MAX, axis).is_err());
    }
}
