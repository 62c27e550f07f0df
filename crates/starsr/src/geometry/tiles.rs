// SPDX-License-Identifier: MPL-2.0

//! Spatial tiles.

use std::ops::Range;

use ndarray::{Array4, ArrayView3, ArrayViewMut3, Axis, s};

use super::canvas::LegalSizes;
use super::size::Size;
use crate::error::{Error, Result};
use crate::names::Setting;

/// A stretch of one axis of a canvas that is processed at once.
#[derive(Debug, Clone, PartialEq)]
struct Tile {
    /// Pixels of the canvas.
    range: Range<usize>,
    /// Weight of each of these pixels. The weights rise and fall smoothly over what tiles share;
    /// for each pixel of the canvas they sum to 1.
    weights: Vec<f32>,
}

impl Tile {
    /// The same stretch counted in steps of `factor` pixels, of which start and length are
    /// multiples.
    fn shrunk(&self, factor: usize) -> Self {
        let mean = |weights: &[f32]| weights.iter().sum::<f32>() / weights.len() as f32;
        Self {
            range: self.range.start / factor..self.range.end / factor,
            weights: self.weights.chunks(factor).map(mean).collect(),
        }
    }
}

/// The tiles of a whole canvas.
#[derive(Debug, Clone, PartialEq)]
pub struct Grid {
    rows: Vec<Tile>,
    columns: Vec<Tile>,
}

impl Grid {
    /// Covers a canvas of `size` with tiles of one legal size each way, at most `tile` pixels long
    /// (0: the whole canvas). Neighbours share at least `overlap` pixels.
    ///
    /// # Errors
    /// [`Error::Setting`] where no legal size is within `tile`, or the overlap leaves tiles no room
    /// to advance, and [`Error::Input`] where the canvas is not of legal size.
    pub fn new(
        size: Size,
        tile: usize,
        overlap: usize,
        [rows, columns]: [LegalSizes; 2],
    ) -> Result<Self> {
        Ok(Self {
            rows: tiles(size.height, tile, overlap, rows)?,
            columns: tiles(size.width, tile, overlap, columns)?,
        })
    }

    /// The grid of the latents, each of `factor` x `factor` pixels, where all legal sizes are
    /// multiples of `factor`.
    pub fn shrunk(&self, factor: usize) -> Self {
        let shrunk = |tiles: &[Tile]| tiles.iter().map(|tile| tile.shrunk(factor)).collect();
        Self { rows: shrunk(&self.rows), columns: shrunk(&self.columns) }
    }

    /// Size of a tile.
    pub fn tile_size(&self) -> Size {
        let longest = |tiles: &[Tile]| tiles.iter().map(|t| t.range.len()).max().unwrap_or(0);
        Size { width: longest(&self.columns), height: longest(&self.rows) }
    }

    /// Number of tiles.
    pub fn tiles(&self) -> usize {
        self.rows.len() * self.columns.len()
    }

    /// Whole frames `[F,C,H,W]`, blended from the arrays `[F,C,h,w]` that `work` gives for the rows
    /// and columns of each tile. `work` may give several arrays, and as many come out. The arrays
    /// of a single tile come out as they are.
    ///
    /// # Errors
    /// As `work`, and [`Error::Input`] where an array and its tile differ in size.
    pub fn blend(
        &self,
        mut work: impl FnMut(Range<usize>, Range<usize>) -> Result<Vec<Array4<f32>>>,
    ) -> Result<Vec<Array4<f32>>> {
        if let ([rows], [columns]) = (self.rows.as_slice(), self.columns.as_slice()) {
            return work(rows.range.clone(), columns.range.clone());
        }
        let end = |tiles: &[Tile]| tiles.last().map_or(0, |tile| tile.range.end);
        let (height, width) = (end(&self.rows), end(&self.columns));
        let mut whole: Vec<Array4<f32>> = Vec::new();
        for rows in &self.rows {
            for columns in &self.columns {
                let parts = work(rows.range.clone(), columns.range.clone())?;
                if whole.is_empty() {
                    let empty = |part: &Array4<f32>| {
                        Array4::zeros((part.dim().0, part.dim().1, height, width))
                    };
                    whole = parts.iter().map(empty).collect();
                }
                for (whole, part) in whole.iter_mut().zip(&parts) {
                    for (mut whole, part) in whole.outer_iter_mut().zip(part.outer_iter()) {
                        add_tile(&mut whole, part, rows, columns)?;
                    }
                }
            }
        }
        Ok(whole)
    }
}

/// Covers one axis of a canvas of legal `size` with tiles of one legal size, at most `tile` pixels
/// long, neighbours sharing at least `overlap`: as few tiles as that takes, and no longer than
/// needed. All start on multiples of `legal.multiple`. 0 for `tile`, or a tile that holds it all,
/// gives the whole axis. Fails as [`Grid::new`].
fn tiles(size: usize, tile: usize, overlap: usize, legal: LegalSizes) -> Result<Vec<Tile>> {
    if legal.fit(size)? != size {
        return Err(Error::input("tiles", format!("{size} is not a size the model takes")));
    }
    if tile == 0 || tile >= size {
        return Ok(vec![Tile { range: 0..size, weights: vec![1.0; size] }]);
    }
    let Some(mut length) = legal.fit_within(tile) else {
        let reason = format!("{tile} is below {}, the least the model takes", legal.fit(1)?);
        return Err(Error::setting(Setting::TileSize, reason));
    };
    // Legal sizes differ by whole multiples, so the starts can be spread evenly over multiples.
    let room = |length: usize| (size - length) / legal.multiple;
    let gaps_for = |length: usize| {
        let stride = length.saturating_sub(overlap) / legal.multiple;
        (stride > 0).then(|| room(length).div_ceil(stride))
    };
    let Some(gaps) = gaps_for(length) else {
        let most = length - legal.multiple.min(length);
        let reason = format!("{overlap} is too much for tiles of {length}; the most is {most}");
        return Err(Error::setting(Setting::TileOverlap, reason));
    };
    // Among layouts of as many tiles, the one with the smallest tiles costs least.
    while let Some(smaller) =
        length.checked_sub(legal.multiple).and_then(|less| legal.fit_within(less))
        && gaps_for(smaller) == Some(gaps)
    {
        length = smaller;
    }
    let room = room(length);
    let starts: Vec<usize> = (0..=gaps).map(|i| i * room / gaps * legal.multiple).collect();

    // Rises over all that two tiles share, with no bend at either end: a tile knows least next to
    // its edge.
    let rise = |place: usize, shared: usize| {
        let u = ((place as f64 + 0.5) / shared.max(1) as f64).min(1.0);
        if shared == 0 { 1.0 } else { u * u * (3.0 - 2.0 * u) }
    };
    let shared =
        |i: usize| i.checked_sub(1).map_or(0, |before| starts[before] + length - starts[i]);
    let raw = |i: usize, x: usize| {
        let after = if i < gaps { shared(i + 1) } else { 0 };
        rise(x - starts[i], shared(i)) * rise(starts[i] + length - 1 - x, after)
    };
    let mut sums = vec![0.0; size];
    for (i, &start) in starts.iter().enumerate() {
        for (x, sum) in sums.iter_mut().enumerate().skip(start).take(length) {
            *sum += raw(i, x);
        }
    }
    Ok(starts
        .iter()
        .enumerate()
        .map(|(i, &start)| {
            let range = start..start + length;
            let weights = range.clone().map(|x| (raw(i, x) / sums[x]) as f32).collect();
            Tile { range, weights }
        })
        .collect())
}

/// Adds a processed tile `[C,h,w]` to `canvas` `[C,H,W]` with its weights. Fails with
/// [`Error::Input`] where the tile is not `rows` x `columns` or lies outside the canvas.
fn add_tile(
    canvas: &mut ArrayViewMut3<f32>,
    tile: ArrayView3<f32>,
    rows: &Tile,
    columns: &Tile,
) -> Result<()> {
    let (channels, height, width) = canvas.dim();
    if tile.dim() != (channels, rows.range.len(), columns.range.len())
        || rows.range.end > height
        || columns.range.end > width
        || rows.weights.len() != rows.range.len()
        || columns.weights.len() != columns.range.len()
    {
        let reason = format!("{:?} does not fit its place on {:?}", tile.shape(), canvas.shape());
        return Err(Error::input("tiles", reason));
    }
    let mut place = canvas.slice_mut(s![.., rows.range.clone(), columns.range.clone()]);
    for (mut to, from) in place.axis_iter_mut(Axis(0)).zip(tile.axis_iter(Axis(0))) {
        for ((mut to, from), &wy) in
            to.axis_iter_mut(Axis(0)).zip(from.axis_iter(Axis(0))).zip(&rows.weights)
        {
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
            LegalSizes { multiple: 64, offset: 16, minimum: 0 },
            LegalSizes { multiple: 16, offset: 0, minimum: 32 },
            LegalSizes { multiple: 1, offset: 0, minimum: 0 },
        ] {
            for n in 1..40 {
                let size = axis.fit(n * 37).unwrap();
                for tile in [0, 80, 100, 256, 2000] {
                    for overlap in [0, 1, 8, 16, 40] {
                        let Ok(tiles) = tiles(size, tile, overlap, axis) else {
                            let length = axis.fit_within(tile).unwrap();
                            assert!(length < size && length < overlap + axis.multiple);
                            continue;
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
                        assert!(
                            sums.iter().all(|s: &f32| (s - 1.0).abs() < 1e-6),
                            "{size} {tile} {overlap}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn tiles_of_a_picture_give_it_back() {
        let axis = LegalSizes { multiple: 4, offset: 0, minimum: 0 };
        let picture = Array4::from_shape_fn((2, 3, 40, 52), |(f, c, y, x)| {
            (f * 7 + c * 100 + y * 3 + x) as f32
        });
        let grid = Grid::new(Size::new(52, 40), 20, 7, [axis, axis]).unwrap();
        assert_eq!(
            (grid.rows.len() * grid.columns.len(), grid.tile_size()),
            (12, Size::new(20, 20))
        );
        let both = grid
            .blend(|rows, columns| {
                let tile = picture.slice(s![.., .., rows, columns]);
                Ok(vec![tile.to_owned(), &tile * 0.5])
            })
            .unwrap();
        let [canvas, half] = &both[..] else { panic!("{} arrays", both.len()) };
        assert!(canvas.iter().zip(&picture).all(|(a, b)| (a - b).abs() < 1e-6 * b.max(1.0)));
        assert!(half.iter().zip(&picture).all(|(a, b)| (a - 0.5 * b).abs() < 1e-6 * b.max(1.0)));

        let coarse = grid.shrunk(4);
        let average =
            |x: usize| (0..4).map(|i| grid.columns[1].weights[4 * x + i]).sum::<f32>() / 4.0;
        assert_eq!(
            (coarse.rows.len() * coarse.columns.len(), coarse.tile_size()),
            (12, Size::new(5, 5))
        );
        assert!((0..5).all(|x| (coarse.columns[1].weights[x] - average(x)).abs() < 1e-6));
        assert!(coarse.blend(|_, _| Ok(vec![Array4::zeros((1, 3, 20, 20))])).is_err());
    }

    #[test]
    fn tiles_are_no_longer_than_their_number_needs() {
        let axis = LegalSizes { multiple: 128, offset: 0, minimum: 128 };
        let ranges = |size| {
            tiles(size, 1024, 128, axis).unwrap().into_iter().map(|t| t.range).collect::<Vec<_>>()
        };
        assert_eq!(ranges(1024).len(), 1);
        assert_eq!(ranges(1408), [0..768, 640..1408]);
        assert_eq!(ranges(1920), [0..1024, 896..1920]);
        assert_eq!(ranges(2048).len(), 3);
    }

    #[test]
    fn refusals() {
        let axis = LegalSizes { multiple: 64, offset: 16, minimum: 0 };
        assert!(tiles(100, 80, 0, axis).is_err());
        assert!(tiles(720, 10, 0, axis).is_err());
        assert!(tiles(720, 80, 80, axis).is_err());
        assert!(tiles(720, 80, usize::MAX, axis).is_err());
    }
}
