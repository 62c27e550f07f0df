// SPDX-License-Identifier: MPL-2.0

//! What surrounds the sampler in space: upscale, canvas, tiles, autoencoder, colour fix.

use std::ops::Range;

use ndarray::{Array3, Array4, ArrayView3, ArrayView4, Axis, Slice, Zip, s};

use crate::bundle::Manifest;
use crate::cancel::Cancel;
use crate::geometry::{Axis as Legal, Canvas, Grid, Interpolation, upscale};
use crate::color::ColorFix;
use crate::diffusion::noise::{Noise, POSTERIOR_STEP};
use crate::diffusion::tiled::Tiled;
use crate::error::Result;
use crate::model::Model;
use crate::parallel::Threads;

use super::groups::Group;
use super::settings::{Posterior, Settings};

/// The way of a frame of one size to the model and back.
pub(super) struct Picture {
    canvas: Canvas,
    /// The tiles, in pixels and in latents.
    grid: Grid,
    latent_grid: Grid,
    /// Legal sizes of rows and columns.
    legal: [Legal; 2],
    /// As wanted; small tiles have less.
    tile_overlap: usize,
    scale: usize,
    interpolation: Interpolation,
    /// Pixels per latent in each direction.
    factor: usize,
    frames_per_encode: usize,
    posterior: Posterior,
    color_fix: ColorFix,
    strength: f32,
    threads: Threads,
}

impl Picture {
    /// For frames of `width` x `height` pixels.
    pub(super) fn new(
        manifest: &Manifest,
        settings: &Settings,
        (width, height): (usize, usize),
    ) -> Result<Self> {
        let rules = &manifest.canvas;
        let scale = settings.model_scale(manifest);
        let tile_size = settings.tile_size.unwrap_or(rules.tile);
        let overlap = settings.tile_overlap.unwrap_or(rules.tile_overlap.min(tile_size / 4));
        let canvas = Canvas::new(height * scale, width * scale, rules.height, rules.width, rules.padding)?;
        let legal = [rules.height, rules.width];
        let grid = Grid::new((canvas.height, canvas.width), tile_size, overlap, legal)?;
        Ok(Self {
            latent_grid: grid.shrunk(manifest.latent.spatial_factor),
            grid,
            legal,
            tile_overlap: settings.tile_overlap.unwrap_or(rules.tile_overlap),
            canvas,
            scale,
            interpolation: rules.upscale,
            factor: manifest.latent.spatial_factor,
            frames_per_encode: manifest.vae.frames_per_encode,
            posterior: settings.posterior,
            color_fix: settings.color_fix.unwrap_or(manifest.sampler.color_fix),
            strength: settings.strength(manifest)?,
            threads: Threads::new(settings.threads),
        })
    }

    /// Size `(width, height)` of the result.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.canvas.picture_width, self.canvas.picture_height)
    }

    /// Size `(width, height)` of what the model sees.
    pub(super) fn canvas_size(&self) -> (usize, usize) {
        (self.canvas.width, self.canvas.height)
    }

    /// Output pixels per input pixel in each direction.
    pub(super) fn scale(&self) -> usize {
        self.scale
    }

    /// Size `(width, height)` of the frames that come in.
    pub(super) fn input_size(&self) -> (usize, usize) {
        (self.canvas.picture_width / self.scale, self.canvas.picture_height / self.scale)
    }

    /// Width and height of a tile, in pixels.
    pub(super) fn tile_size(&self) -> (usize, usize) {
        self.grid.tile_size()
    }

    /// Goes on in tiles of half the size, or of the least legal one; gives that size, `None` where nothing smaller is legal.
    pub(super) fn reduce_tiles(&mut self) -> Option<usize> {
        let (width, height) = self.tile_size();
        let present = width.max(height);
        let [rows, columns] = self.legal;
        let size = (present / 2).max(rows.fit(1).ok()?).max(columns.fit(1).ok()?);
        if size >= present {
            return None;
        }
        let overlap = self.tile_overlap.min(size / 4);
        self.grid = Grid::new((self.canvas.height, self.canvas.width), size, overlap, self.legal).ok()?;
        self.latent_grid = self.grid.shrunk(self.factor);
        Some(size)
    }

    /// `model` as a denoiser of the whole canvas.
    pub(super) fn denoiser<'a>(&'a self, model: &'a mut dyn Model, cancel: &'a Cancel) -> Tiled<'a> {
        Tiled::new(model, &self.latent_grid, cancel)
    }

    /// A frame `[3,h,w]` enlarged, `[3,H,W]` in [0,1].
    pub(super) fn enlarge(&self, low: ArrayView3<f32>) -> Result<Array3<f32>> {
        let mut plain = upscale(low, self.scale, self.interpolation)?;
        plain.mapv_inplace(|v| v.clamp(0.0, 1.0));
        Ok(plain)
    }

    /// Frames `[3,h,w]` in [0,1] on the canvas, `[F,3,H,W]` in [-1,1].
    pub(super) fn prepare<'a>(
        &self,
        frames: impl ExactSizeIterator<Item = &'a Array3<f32>> + Send,
        cancel: &Cancel,
    ) -> Result<Array4<f32>> {
        let mut prepared = Array4::zeros((frames.len(), 3, self.canvas.height, self.canvas.width));
        self.threads.map(prepared.outer_iter_mut().zip(frames), |(mut to, low)| {
            cancel.check()?;
            let mut plain = self.enlarge(low.view())?;
            plain.mapv_inplace(|v| 2.0 * v - 1.0);
            self.canvas.pad(plain.view(), &mut to)
        })?;
        Ok(prepared)
    }

    /// Latents `[F,C,h,w]` of prepared frames `[F,3,H,W]` with the given `numbers`.
    pub(super) fn encode(
        &self,
        model: &mut dyn Model,
        prepared: ArrayView4<f32>,
        numbers: &[u64],
        noise: &dyn Noise,
        cancel: &Cancel,
    ) -> Result<Array4<f32>> {
        let factor = self.factor;
        let mut groups = Vec::new();
        let frames = prepared.axis_chunks_iter(Axis(0), self.frames_per_encode);
        let frames = frames.zip(numbers.chunks(self.frames_per_encode));
        for (group, numbers) in frames {
            let tile = |rows: Range<usize>, columns: Range<usize>| {
                cancel.check()?;
                let place = s![
                    ..,
                    ..,
                    factor * rows.start..factor * rows.end,
                    factor * columns.start..factor * columns.end
                ];
                Ok(group.slice(place))
            };
            groups.push(match self.posterior {
                Posterior::Mean => {
                    let [mean] = self
                        .latent_grid
                        .blend(|rows, columns| model.encode(tile(rows, columns)?).map(|mean| [mean]))?;
                    mean
                }
                Posterior::Sample => {
                    let [mean, deviation] = self
                        .latent_grid
                        .blend(|rows, columns| model.encode_posterior(tile(rows, columns)?))?;
                    draw(mean, &deviation, numbers, noise)
                }
            });
        }
        Ok(join(groups))
    }

    /// The frames on the canvas `[F,3,H,W]` that `group` keeps of latents `[F,C,h,w]`, decoded.
    pub(super) fn decode(
        &self,
        model: &mut dyn Model,
        latents: ArrayView4<f32>,
        Group { decoded, kept }: &Group,
        cancel: &Cancel,
    ) -> Result<Array4<f32>> {
        let factor = self.factor;
        let before = kept.start - decoded.start;
        let [canvases] = self.grid.blend(|rows, columns| {
            cancel.check()?;
            let place = s![
                decoded.clone(),
                ..,
                rows.start / factor..rows.end / factor,
                columns.start / factor..columns.end / factor
            ];
            let mut pixels = model.decode(latents.slice(place))?;
            pixels.slice_axis_inplace(Axis(0), Slice::from(before..before + kept.len()));
            Ok([pixels])
        })?;
        Ok(canvases)
    }

    /// The finished frames `[3,H,W]` in [0,1] of decoded canvases `[F,3,H,W]` and the frames `[3,h,w]` that they came from.
    pub(super) fn finish<'a>(
        &self,
        canvases: ArrayView4<f32>,
        frames: impl ExactSizeIterator<Item = &'a Array3<f32>> + Send,
        cancel: &Cancel,
    ) -> Result<Vec<Array3<f32>>> {
        // Made here, since what many threads allocate is scattered over as many heaps.
        let size = (canvases.dim().1, self.canvas.picture_height, self.canvas.picture_width);
        let mut results: Vec<_> = canvases.outer_iter().map(|_| Array3::zeros(size)).collect();
        self.threads
            .map(results.iter_mut().zip(canvases.outer_iter()).zip(frames), |((result, canvas), low)| {
                self.finish_frame(canvas, low.view(), result, cancel)
            })?;
        Ok(results)
    }

    fn finish_frame(
        &self,
        canvas: ArrayView3<f32>,
        low: ArrayView3<f32>,
        result: &mut Array3<f32>,
        cancel: &Cancel,
    ) -> Result<()> {
        cancel.check()?;
        let picture = self.canvas.crop(canvas)?;
        Zip::from(&mut *result).and(picture).for_each(|to, &from| *to = (0.5 * from + 0.5).clamp(0.0, 1.0));
        self.color_fix.apply(result, low)?;
        if self.strength < 1.0 {
            cancel.check()?;
            let plain = self.enlarge(low)?;
            Zip::from(result).and(&plain).for_each(|to, &from| *to = from + self.strength * (*to - from));
        }
        Ok(())
    }
}

/// Draws latents `[F,C,h,w]` from a posterior of the given mean and deviation.
fn draw(mut mean: Array4<f32>, deviation: &Array4<f32>, numbers: &[u64], noise: &dyn Noise) -> Array4<f32> {
    for ((mut latents, deviation), &number) in mean.outer_iter_mut().zip(deviation.outer_iter()).zip(numbers)
    {
        let mut drawn = Array3::zeros(latents.raw_dim());
        noise.fill(number, POSTERIOR_STEP, drawn.as_slice_mut().expect("standard layout"));
        Zip::from(&mut latents).and(deviation).and(&drawn).for_each(|x, &std, &noise| *x += std * noise);
    }
    mean
}

/// Groups of frames one after the other.
fn join(mut groups: Vec<Array4<f32>>) -> Array4<f32> {
    if groups.len() == 1 {
        return groups.remove(0);
    }
    let views: Vec<_> = groups.iter().map(|g| g.view()).collect();
    ndarray::concatenate(Axis(0), &views).unwrap_or_default()
}
