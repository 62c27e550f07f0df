// SPDX-License-Identifier: MPL-2.0

//! Predictions of a large canvas from overlapping tiles, blended at every evaluation
//! (MultiDiffusion, arXiv 2302.08113), so that the tile bounds the memory a model takes.

use ndarray::s;

use crate::buffers::Buffers;
use crate::cancel::Cancel;
use crate::error::Result;
use crate::geometry::Grid;
use crate::model::{Denoiser, Query, Samples};
use crate::parallel::Threads;

/// A denoiser of whole canvases that asks another one for each tile. What is blended are the
/// velocities; as `x0` depends linearly on them, and the weights sum to 1, blended `x0` would be
/// the same. With a single tile it passes the query on.
///
/// Guidance belongs around it: standard deviations are then those of the whole canvas, and no tile
/// is rescaled by another factor than its neighbour.
pub struct Tiled<'a> {
    model: &'a mut dyn Denoiser,
    /// In latents.
    grid: &'a Grid,
    cancel: &'a Cancel,
    /// What blends the tiles, and where.
    threads: &'a Threads,
    buffers: &'a Buffers,
}

impl<'a> Tiled<'a> {
    /// `grid` is that of the latents. `cancel` is checked before each tile.
    pub(crate) fn new(
        model: &'a mut dyn Denoiser,
        grid: &'a Grid,
        cancel: &'a Cancel,
        threads: &'a Threads,
        buffers: &'a Buffers,
    ) -> Self {
        Self { model, grid, cancel, threads, buffers }
    }
}

impl Denoiser for Tiled<'_> {
    fn predict(&mut self, query: &Query) -> Result<Vec<Samples>> {
        self.grid.blend(self.threads, self.buffers, |rows, columns| {
            self.cancel.check()?;
            let place = s![.., .., rows, columns];
            let (x, hint) = (query.x.slice(place), query.hint.slice(place));
            Query { x, hint, ..*query }.ask(self.model)
        })
    }

    fn prepare(&mut self, timesteps: &[i64]) -> Result<()> {
        self.model.prepare(timesteps)
    }

    fn prefers_batches(&self) -> bool {
        self.model.prefers_batches()
    }
}
