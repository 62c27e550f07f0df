// SPDX-License-Identifier: MPL-2.0

//! Spatial tiles.

use std::ops::Range;

use ndarray::s;

use super::canvas::LegalSizes;
use super::size::Size;
use crate::buffers::{Buffers, Lease};
use crate::error::{Error, Result};
use crate::model::Samples;
use crate::names::Setting;
use crate::parallel::Threads;

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
    pub fn new(size: Size, tile: usize, overlap: usize, legal: [LegalSizes; 2]) -> Result<Self> {
        Self::of_tiles(size, Size { width: tile, height: tile }, overlap, legal)
    }

    /// [`Self::new`] with tiles that may be wider than high, or the other way round.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of_tiles(
        size: Size,
        tile: Size,
        overlap: usize,
        [rows, columns]: [LegalSizes; 2],
    ) -> Result<Self> {
        Ok(Self {
            rows: tiles(size.height, tile.height, overlap, rows)?,
            columns: tiles(size.width, tile.width, overlap, columns)?,
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
    pub(crate) fn blend(
        &self,
        threads: &Threads,
        buffers: &Buffers,
        mut work: impl FnMut(Range<usize>, Range<usize>) -> Result<Vec<Samples>>,
    ) -> Result<Vec<Samples>> {
        if let ([rows], [columns]) = (self.rows.as_slice(), self.columns.as_slice()) {
            return work(rows.range.clone(), columns.range.clone());
        }
        let end = |tiles: &[Tile]| tiles.last().map_or(0, |tile| tile.range.end);
        let (height, width) = (end(&self.rows), end(&self.columns));
        let mut whole: Vec<(Lease, [usize; 4])> = Vec::new();
        // Where the tiles before reach to, down and across.
        let (mut above, mut left) = (0, 0);
        for rows in &self.rows {
            for columns in &self.columns {
                let parts = work(rows.range.clone(), columns.range.clone())?;
                if whole.is_empty() {
                    let empty = |part: &Samples| {
                        let (frames, channels, ..) = part.dim();
                        let shape = [frames, channels, height, width];
                        (buffers.lease(shape.iter().product()), shape)
                    };
                    whole = parts.iter().map(empty).collect();
                }
                for ((whole, shape), part) in whole.iter_mut().zip(&parts) {
                    let (part, channels) = (part.view(), shape[1]);
                    if part.dim() != (shape[0], channels, rows.range.len(), columns.range.len()) {
                        let reason =
                            format!("{:?} does not fit its place on {shape:?}", part.shape());
                        return Err(Error::input("tiles", reason));
                    }
                    let planes = whole.chunks_exact_mut(height * width).enumerate();
                    threads.for_each(planes, |(place, plane)| {
                        let part = part.slice(s![place / channels, place % channels, .., ..]);
                        if let Some(part) = part.to_slice() {
                            add_tile(plane, width, part, (rows, above), (columns, left));
                        }
                    });
                }
                left = columns.range.end;
            }
            (above, left) = (rows.range.end, 0);
        }
        whole.into_iter().map(|(values, shape)| Samples::new(values, shape)).collect()
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

/// Adds a plane `[h,w]` of a tile with its weights to that of the canvas, whose rows are `width`
/// long. Where no tile before it lies, from row `above` on and from column `left` on, the canvas
/// has no values yet.
fn add_tile(
    canvas: &mut [f32],
    width: usize,
    tile: &[f32],
    (rows, above): (&Tile, usize),
    (columns, left): (&Tile, usize),
) {
    let lines = canvas.chunks_exact_mut(width).enumerate().skip(rows.range.start);
    let tile = tile.chunks_exact(columns.range.len());
    for (((y, line), tile), &wy) in lines.zip(tile).zip(&rows.weights) {
        let begun = if y < above { tile.len() } else { left.saturating_sub(columns.range.start) };
        let (old, new) = line[columns.range.clone()].split_at_mut(begun.min(tile.len()));
        let (tile_old, tile_new) = tile.split_at(old.len());
        let (weights_old, weights_new) = columns.weights.split_at(old.len());
        for ((to, from), wx) in old.iter_mut().zip(tile_old).zip(weights_old) {
            *to += wy * wx * from;
        }
        for ((to, from), wx) in new.iter_mut().zip(tile_new).zip(weights_new) {
            *to = wy * wx * from;
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array4;

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
        let (threads, buffers) = (Threads::new(3), Buffers::default());
        // What was in the memory before does not matter.
        [10_000, 20_000].map(|len| buffers.lease(len)).iter_mut().for_each(|b| b.fill(f32::NAN));
        assert_eq!(
            (grid.rows.len() * grid.columns.len(), grid.tile_size()),
            (12, Size::new(20, 20))
        );
        let both = grid
            .blend(&threads, &buffers, |rows, columns| {
                let tile = picture.slice(s![.., .., rows, columns]);
                Ok(vec![tile.to_owned().into(), (&tile * 0.5).into()])
            })
            .unwrap();
        let [canvas, half] = &both[..] else { panic!("{} arrays", both.len()) };
        let (canvas, half) = (canvas.view(), half.view());
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
        let wrong = |_, _| Ok(vec![Array4::zeros((1, 3, 20, 20)).into()]);
        assert!(coarse.blend(&threads, &buffers, wrong).is_err());
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
