// SPDX-License-Identifier: MPL-2.0

//! What surrounds the sampler in space: upscale, canvas, tiles, autoencoder, colour fix.

use std::ops::Range;

use ndarray::{Array3, Array4, ArrayView3, ArrayView4, Axis, Slice, Zip, s};

use super::decode_groups::DecodeGroup;
use super::settings::{Posterior, Settings};
use crate::bundle::Manifest;
use crate::cancel::Cancel;
use crate::color::ColorFix;
use crate::diffusion::noise::{Noise, POSTERIOR_STEP};
use crate::diffusion::tiled::Tiled;
use crate::error::{Error, Result};
use crate::geometry::{Canvas, Grid, Interpolation, LegalSizes, Size, upscale};
use crate::model::Model;
use crate::parallel::Threads;

/// The way of frames of one size to the model and back.
pub(super) struct FramePath {
    /// Size of the frames that come in.
    input: Size,
    canvas: Canvas,
    /// The tiles, in pixels and in latents.
    grid: Grid,
    latent_grid: Grid,
    /// Legal sizes of rows and columns.
    legal: [LegalSizes; 2],
    /// As set; small tiles share less.
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

impl FramePath {
    /// `tile` is the size of tiles that `settings` leave open; 0 processes whole frames.
    pub(super) fn new(
        manifest: &Manifest,
        settings: &Settings,
        input: Size,
        tile: usize,
        threads: Threads,
    ) -> Result<Self> {
        let rules = &manifest.canvas;
        let scale = settings.model_scale(manifest);
        let tile_size = settings.tile_size.unwrap_or(tile);
        let overlap = settings.tile_overlap.unwrap_or(rules.tile_overlap.min(tile_size / 4));
        let large = input.enlarged(scale)?;
        let canvas = Canvas::new(large, rules.height, rules.width, rules.padding)?;
        let legal = [rules.height, rules.width];
        let grid = Grid::new(canvas.size, tile_size, overlap, legal)?;
        Ok(Self {
            input,
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
            threads,
        })
    }

    /// Size of the frames that come in.
    pub(super) fn input_size(&self) -> Size {
        self.input
    }

    /// Size of the result.
    pub(super) fn output_size(&self) -> Size {
        self.canvas.picture
    }

    /// Size of what the model sees.
    pub(super) fn canvas_size(&self) -> Size {
        self.canvas.size
    }

    /// Size of a tile, in pixels of the canvas.
    pub(super) fn tile_size(&self) -> Size {
        self.grid.tile_size()
    }

    /// Number of tiles.
    pub(super) fn tiles(&self) -> usize {
        self.grid.tiles()
    }

    /// Output pixels per input pixel in each direction.
    pub(super) fn scale(&self) -> usize {
        self.scale
    }

    /// Goes on in tiles of half the size, or of the smallest legal one; gives that size, `None`
    /// where nothing smaller is legal.
    pub(super) fn reduce_tiles(&mut self) -> Option<usize> {
        let Size { width, height } = self.tile_size();
        let present = width.max(height);
        let [rows, columns] = self.legal;
        let size = (present / 2).max(rows.fit(1).ok()?).max(columns.fit(1).ok()?);
        if size >= present {
            return None;
        }
        let overlap = self.tile_overlap.min(size / 4);
        self.grid = Grid::new(self.canvas.size, size, overlap, self.legal).ok()?;
        self.latent_grid = self.grid.shrunk(self.factor);
        Some(size)
    }

    /// Frames that are encoded in one run.
    pub(super) fn frames_per_encode(&self) -> usize {
        self.frames_per_encode
    }

    /// Goes on to encode half as many frames in one run; false where it is one already.
    pub(super) fn shorten_encoding(&mut self) -> bool {
        let shortened = self.frames_per_encode > 1;
        self.frames_per_encode = self.frames_per_encode.div_ceil(2);
        shortened
    }

    /// `model` as a denoiser of the whole canvas.
    pub(super) fn denoiser<'a>(
        &'a self,
        model: &'a mut dyn Model,
        cancel: &'a Cancel,
    ) -> Tiled<'a> {
        Tiled::new(model, &self.latent_grid, cancel)
    }

    /// A frame `[3,h,w]` enlarged, `[3,H,W]` in `[0,1]`.
    pub(super) fn enlarge(&self, low: ArrayView3<f32>) -> Result<Array3<f32>> {
        let mut plain = upscale(low, self.scale, self.interpolation)?;
        plain.mapv_inplace(|v| v.clamp(0.0, 1.0));
        Ok(plain)
    }

    /// Frames `[3,h,w]` in `[0,1]` on the canvas, `[F,3,H,W]` in `[-1,1]`.
    pub(super) fn prepare<'a>(
        &self,
        frames: impl ExactSizeIterator<Item = &'a Array3<f32>> + Send,
        cancel: &Cancel,
    ) -> Result<Array4<f32>> {
        let Size { width, height } = self.canvas.size;
        let mut prepared = Array4::zeros((frames.len(), 3, height, width));
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
        for (group, numbers) in frames.zip(numbers.chunks(self.frames_per_encode)) {
            let mut parts = self.latent_grid.blend(|rows, columns| {
                cancel.check()?;
                let pixels = |r: Range<usize>| factor * r.start..factor * r.end;
                let tile = group.slice(s![.., .., pixels(rows), pixels(columns)]);
                Ok(match self.posterior {
                    Posterior::Mean => vec![model.encode(tile)?],
                    Posterior::Sample => model.encode_posterior(tile)?.into(),
                })
            })?;
            let std = if parts.len() > 1 { parts.pop() } else { None };
            let mut latents = one(parts)?;
            if let Some(std) = std {
                draw(&mut latents, &std, numbers, noise);
            }
            groups.push(latents);
        }
        Ok(join(groups))
    }

    /// The frames on the canvas `[F,3,H,W]` that `group` keeps of latents `[F,C,h,w]`, decoded.
    pub(super) fn decode(
        &self,
        model: &mut dyn Model,
        latents: ArrayView4<f32>,
        DecodeGroup { decoded, kept }: &DecodeGroup,
        cancel: &Cancel,
    ) -> Result<Array4<f32>> {
        let factor = self.factor;
        let before = kept.start - decoded.start;
        let canvases = self.grid.blend(|rows, columns| {
            cancel.check()?;
            let small = |r: Range<usize>| r.start / factor..r.end / factor;
            let tile = latents.slice(s![decoded.clone(), .., small(rows), small(columns)]);
            let mut pixels = model.decode(tile)?;
            pixels.slice_axis_inplace(Axis(0), Slice::from(before..before + kept.len()));
            Ok(vec![pixels])
        })?;
        one(canvases)
    }

    /// The finished frames `[3,H,W]` in `[0,1]` of decoded canvases `[F,3,H,W]` and the frames
    /// `[3,h,w]` that they came from.
    pub(super) fn finish<'a>(
        &self,
        canvases: ArrayView4<f32>,
        frames: impl ExactSizeIterator<Item = &'a Array3<f32>> + Send,
        cancel: &Cancel,
    ) -> Result<Vec<Array3<f32>>> {
        // Allocated by the calling thread: frames that the pool's threads allocate would be
        // scattered over a heap for each of them.
        let Size { width, height } = self.canvas.picture;
        let new = |_| Array3::zeros((canvases.dim().1, height, width));
        let mut results: Vec<_> = (0..frames.len()).map(new).collect();
        let work = results.iter_mut().zip(canvases.outer_iter()).zip(frames);
        self.threads.map(work, |((result, canvas), low)| {
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
        let to_unit = |to: &mut f32, &from: &f32| *to = (0.5 * from + 0.5).clamp(0.0, 1.0);
        Zip::from(&mut *result).and(picture).for_each(to_unit);
        self.color_fix.apply(result, low)?;
        if self.strength < 1.0 {
            cancel.check()?;
            let plain = self.enlarge(low)?;
            let blend = |to: &mut f32, &from: &f32| *to = from + self.strength * (*to - from);
            Zip::from(result).and(&plain).for_each(blend);
        }
        Ok(())
    }
}

/// Draws latents `[F,C,h,w]` from a posterior of the given mean, whose place they take, and
/// standard deviation.
fn draw(mean: &mut Array4<f32>, std: &Array4<f32>, numbers: &[u64], noise: &dyn Noise) {
    for ((mut latents, std), &number) in mean.outer_iter_mut().zip(std.outer_iter()).zip(numbers) {
        let mut drawn = Array3::zeros(latents.raw_dim());
        let values = drawn.as_slice_mut().expect("standard layout");
        noise.fill(number, POSTERIOR_STEP, values);
        Zip::from(&mut latents).and(std).and(&drawn).for_each(|x, &std, &n| *x += std * n);
    }
}

/// The only one of `arrays`.
fn one(mut arrays: Vec<Array4<f32>>) -> Result<Array4<f32>> {
    match arrays.pop() {
        Some(array) if arrays.is_empty() => Ok(array),
        _ => Err(Error::input("tiles", "there is not one array of each")),
    }
}

/// Groups of frames one after the other.
fn join(mut groups: Vec<Array4<f32>>) -> Array4<f32> {
    if groups.len() == 1 {
        return groups.remove(0);
    }
    let views: Vec<_> = groups.iter().map(|g| g.view()).collect();
    ndarray::concatenate(Axis(0), &views).unwrap_or_default()
}
