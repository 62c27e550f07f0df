// SPDX-License-Identifier: MPL-2.0

//! Tables of the positions of image tokens (docs/star.md, B.6), for any grid. Tokens are ordered by
//! frame, row and column.

use ndarray::Array2;

use crate::bundle::PositionsSpec;

/// Frames, rows and columns of tokens.
pub type TokenGrid = [usize; 3];

impl PositionsSpec {
    /// The tables' names and widths.
    pub fn widths(&self) -> Vec<(&'static str, usize)> {
        match *self {
            Self::Rotary { frames, rows, columns, .. } => {
                let width = (frames + rows + columns) / 2;
                vec![("cos", width), ("sin", width)]
            }
            Self::Sincos { width, .. } => vec![("positions", width)],
        }
    }

    /// The tables of `grid` by the name of the denoiser's input: `cos` and `sin` `[N,d]`, or
    /// `positions` `[N,D]`.
    pub fn tables(&self, grid: TokenGrid) -> Vec<(&'static str, Array2<f32>)> {
        match *self {
            Self::Rotary { base, frames, rows, columns } => {
                let parts = [frames, rows, columns];
                let angles = |[t, y, x]: TokenGrid| {
                    let places = [t, y, x].into_iter().zip(parts);
                    let part = move |(place, n): (usize, usize)| {
                        (0..n / 2).map(move |j| place as f64 * frequency(base, 2 * j, n))
                    };
                    places.flat_map(part)
                };
                let width = parts.iter().map(|n| n / 2).sum();
                vec![
                    ("cos", table(grid, width, |place| angles(place).map(f64::cos))),
                    ("sin", table(grid, width, |place| angles(place).map(f64::sin))),
                ]
            }
            Self::Sincos { base, width, spatial_scale } => {
                let across = 3 * width / 8;
                let features = |[t, y, x]: TokenGrid| {
                    let parts = [
                        (t as f64, width / 4),
                        (x as f64 / spatial_scale, across),
                        (y as f64 / spatial_scale, across),
                    ];
                    parts.into_iter().flat_map(move |(place, n)| {
                        let angle = move |j: usize| place * frequency(base, j, n / 2);
                        let sines = (0..n / 2).map(move |j| angle(j).sin());
                        sines.chain((0..n / 2).map(move |j| angle(j).cos()))
                    })
                };
                vec![("positions", table(grid, width, features))]
            }
        }
    }
}

fn frequency(base: f64, j: usize, n: usize) -> f64 {
    base.powf(-(j as f64) / n as f64)
}

fn table<I: Iterator<Item = f64>>(
    [frames, rows, columns]: TokenGrid,
    width: usize,
    features: impl Fn(TokenGrid) -> I,
) -> Array2<f32> {
    let mut table = Array2::zeros((frames * rows * columns, width));
    for (i, mut row) in table.outer_iter_mut().enumerate() {
        let place = [i / columns / rows, i / columns % rows, i % columns];
        row.iter_mut().zip(features(place)).for_each(|(to, value)| *to = value as f32);
    }
    table
}
