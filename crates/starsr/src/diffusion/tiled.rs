// SPDX-License-Identifier: MPL-2.0

//! Predictions of a large canvas from overlapping tiles, blended at every evaluation (MultiDiffusion, arXiv 2302.08113), so that the
//! memory a model takes is bounded by the tile.

use ndarray::{Array4, ArrayView4, s};

use crate::cancel::Cancel;
use crate::geometry::Grid;
use crate::error::{Error, Result};
use crate::model::{Condition, Denoiser};

/// A denoiser of whole canvases that asks another one for each tile. What is blended are the velocities; as `x0` depends linearly on
/// them, and the weights sum to 1, blended `x0` would be the same. With a single tile it is the other denoiser and nothing else.
///
/// Guidance is to be put around it: its deviations are then those of the whole canvas, and no tile is rescaled by another factor
/// than its neighbour.
pub struct Tiled<'a> {
    model: &'a mut dyn Denoiser,
    /// In latents.
    grid: &'a Grid,
    cancel: &'a Cancel,
}

impl<'a> Tiled<'a> {
    /// `grid` is that of the latents. `cancel` is looked at before each tile.
    pub fn new(model: &'a mut dyn Denoiser, grid: &'a Grid, cancel: &'a Cancel) -> Self {
        Self { model, grid, cancel }
    }

    /// Velocities of the whole canvas, `N` of them, from those of the tiles.
    fn blend<const N: usize>(
        &mut self,
        x: ArrayView4<f32>,
        hint: ArrayView4<f32>,
        mut predict: impl FnMut(&mut dyn Denoiser, ArrayView4<f32>, ArrayView4<f32>) -> Result<[Array4<f32>; N]>,
    ) -> Result<[Array4<f32>; N]> {
        self.grid.blend(|rows, columns| {
            self.cancel.check()?;
            let place = s![.., .., rows, columns];
            let x = x.slice(place);
            let parts = predict(self.model, x, hint.slice(place))?;
            match parts.iter().find(|part| part.dim() != x.dim()) {
                Some(part) => Err(Error::Inference {
                    graph: "denoiser".into(),
                    reason: format!("it gave {:?} for an input of {:?}", part.shape(), x.shape()),
                }),
                None => Ok(parts),
            }
        })
    }
}

impl Denoiser for Tiled<'_> {
    fn velocity(
        &mut self,
        x: ArrayView4<f32>,
        t: i64,
        hint: ArrayView4<f32>,
        condition: Condition,
    ) -> Result<Array4<f32>> {
        let predict = |model: &mut dyn Denoiser, x: ArrayView4<f32>, hint: ArrayView4<f32>| {
            model.velocity(x, t, hint, condition).map(|v| [v])
        };
        self.blend(x, hint, predict).map(|[v]| v)
    }

    fn velocities(
        &mut self,
        x: ArrayView4<f32>,
        t: i64,
        hint: ArrayView4<f32>,
        conditions: [Condition; 2],
    ) -> Result<[Array4<f32>; 2]> {
        self.blend(x, hint, |model, x, hint| model.velocities(x, t, hint, conditions))
    }

    fn prefers_batches(&self) -> bool {
        self.model.prefers_batches()
    }
}
