// SPDX-License-Identifier: MPL-2.0

//! What surrounds the sampler in space: upscale, canvas, tiles, autoencoder, colour fix.

use std::ops::Range;

use ndarray::{Array3, Array4, ArrayView3, Axis, Zip, s};

use crate::bundle::Manifest;
use crate::cancel::Cancel;
use crate::canvas::{Axis as Legal, Canvas, Interpolation, Tile, add_tile, tiles, upscale};
use crate::color::ColorFix;
use crate::diffusion::noise::{Noise, NoiseRegion, POSTERIOR_STEP};
use crate::error::Result;
use crate::model::Model;

use super::groups::Group;
use super::settings::Posterior;

/// The way of a frame of one size to the model and back.
pub(super) struct Picture {
    canvas: Canvas,
    rows: Vec<Tile>,
    columns: Vec<Tile>,
    /// Legal sizes of rows and columns.
    legal: [Legal; 2],
    /// As wanted; small tiles have less.
    tile_overlap: usize,
    scale: usize,
    interpolation: Interpolation,
    /// Pixels per latent in each direction.
    factor: usize,
    latent_channels: usize,
    frames_per_encode: usize,
    posterior: Posterior,
    color_fix: ColorFix,
    strength: f32,
}

impl Picture {
    /// For frames of `width` x `height` pixels enlarged by `scale`. `None` for size or overlap of tiles leaves it to the bundle.
    pub(super) fn new(
        manifest: &Manifest,
        (width, height): (usize, usize),
        scale: usize,
        (tile_size, tile_overlap): (Option<usize>, Option<usize>),
        posterior: Posterior,
        color_fix: ColorFix,
        strength: f32,
    ) -> Result<Self> {
        let rules = &manifest.canvas;
        let tile_size = tile_size.unwrap_or(rules.tile);
        let overlap = tile_overlap.unwrap_or(rules.tile_overlap.min(tile_size / 4));
        let canvas = Canvas::new(height * scale, width * scale, rules.height, rules.width, rules.padding)?;
        Ok(Self {
            rows: tiles(canvas.height, tile_size, overlap, rules.height)?,
            columns: tiles(canvas.width, tile_size, overlap, rules.width)?,
            legal: [rules.height, rules.width],
            tile_overlap: tile_overlap.unwrap_or(rules.tile_overlap),
            canvas,
            scale,
            interpolation: rules.upscale,
            factor: manifest.latent.spatial_factor,
            latent_channels: manifest.latent.channels,
            frames_per_encode: manifest.vae.frames_per_encode,
            posterior,
            color_fix,
            strength,
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

    /// The tiles, row by row.
    pub(super) fn tiles(&self) -> impl Iterator<Item = (&Tile, &Tile)> {
        self.rows.iter().flat_map(|rows| self.columns.iter().map(move |columns| (rows, columns)))
    }

    /// Width and height of a tile, in pixels.
    pub(super) fn tile_size(&self) -> (usize, usize) {
        let longest = |tiles: &[Tile]| tiles.iter().map(|tile| tile.range.len()).max().unwrap_or(0);
        (longest(&self.columns), longest(&self.rows))
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
        let smaller = (
            tiles(self.canvas.height, size, overlap, rows),
            tiles(self.canvas.width, size, overlap, columns),
        );
        let (Ok(rows), Ok(columns)) = smaller else { return None };
        (self.rows, self.columns) = (rows, columns);
        Some(size)
    }

    /// The part of the whole canvas's noise that belongs to one tile.
    pub(super) fn noise<'a>(&self, noise: &'a dyn Noise, (rows, columns): (&Tile, &Tile)) -> NoiseRegion<'a> {
        let latents = |pixels: &Range<usize>| pixels.start / self.factor..pixels.end / self.factor;
        let whole = (self.latent_channels, self.canvas.height / self.factor, self.canvas.width / self.factor);
        NoiseRegion::new(noise, whole, latents(&rows.range), latents(&columns.range))
    }

    /// A frame `[3,h,w]` enlarged, `[3,H,W]` in [0,1].
    pub(super) fn enlarge(&self, low: ArrayView3<f32>) -> Result<Array3<f32>> {
        let mut plain = upscale(low, self.scale, self.interpolation)?;
        plain.mapv_inplace(|v| v.clamp(0.0, 1.0));
        Ok(plain)
    }

    /// A frame `[3,h,w]` in [0,1] on the canvas, in [-1,1].
    pub(super) fn prepare(&self, low: ArrayView3<f32>, cancel: &Cancel) -> Result<Array3<f32>> {
        cancel.check()?;
        let mut plain = self.enlarge(low)?;
        plain.mapv_inplace(|v| 2.0 * v - 1.0);
        if (self.canvas.height, self.canvas.width) == (plain.dim().1, plain.dim().2) {
            return Ok(plain);
        }
        self.canvas.pad(plain.view())
    }

    /// Latents `[F,C,h,w]` of one tile of prepared frames with the given `numbers`.
    pub(super) fn encode(
        &self,
        model: &mut dyn Model,
        prepared: &[Array3<f32>],
        numbers: &[u64],
        (rows, columns): (&Tile, &Tile),
        noise: &dyn Noise,
        cancel: &Cancel,
    ) -> Result<Array4<f32>> {
        let mut groups = Vec::new();
        let frames = prepared.chunks(self.frames_per_encode).zip(numbers.chunks(self.frames_per_encode));
        for (group, numbers) in frames {
            cancel.check()?;
            let mut pixels = Array4::zeros((group.len(), 3, rows.range.len(), columns.range.len()));
            for (mut slot, frame) in pixels.axis_iter_mut(Axis(0)).zip(group) {
                slot.assign(&frame.slice(s![.., rows.range.clone(), columns.range.clone()]));
            }
            groups.push(match self.posterior {
                Posterior::Mean => model.encode(pixels.view())?,
                Posterior::Sample => {
                    let [mean, deviation] = model.encode_posterior(pixels.view())?;
                    draw(mean, &deviation, numbers, noise)
                }
            });
        }
        Ok(join(groups))
    }

    /// Adds the frames that `groups` keep of one tile's latents, decoded, to `canvases`, which are empty before the first tile.
    pub(super) fn decode(
        &self,
        model: &mut dyn Model,
        latents: &Array4<f32>,
        groups: impl Iterator<Item = Group>,
        (rows, columns): (&Tile, &Tile),
        canvases: &mut Vec<Array3<f32>>,
        cancel: &Cancel,
    ) -> Result<()> {
        let whole = self.rows.len() == 1 && self.columns.len() == 1;
        let mut frame = 0;
        for Group { decoded, kept } in groups {
            cancel.check()?;
            let pixels = model.decode(latents.slice(s![decoded.clone(), .., .., ..]))?;
            let before = kept.start - decoded.start;
            for pixels in pixels.outer_iter().skip(before).take(kept.len()) {
                if whole {
                    canvases.push(pixels.to_owned());
                    continue;
                }
                if frame == canvases.len() {
                    canvases.push(Array3::zeros((3, self.canvas.height, self.canvas.width)));
                }
                add_tile(&mut canvases[frame], pixels, rows, columns)?;
                frame += 1;
            }
        }
        Ok(())
    }

    /// The finished frame `[3,H,W]` in [0,1] of a decoded canvas and the frame `[3,h,w]` that it came from.
    pub(super) fn finish(
        &self,
        canvas: Array3<f32>,
        low: ArrayView3<f32>,
        cancel: &Cancel,
    ) -> Result<Array3<f32>> {
        cancel.check()?;
        let picture = self.canvas.crop(&canvas)?;
        let mut result = Array3::zeros(picture.raw_dim());
        Zip::from(&mut result).and(picture).for_each(|to, &from| *to = (0.5 * from + 0.5).clamp(0.0, 1.0));
        self.color_fix.apply(&mut result, low)?;
        if self.strength < 1.0 {
            cancel.check()?;
            let plain = self.enlarge(low)?;
            Zip::from(&mut result)
                .and(&plain)
                .for_each(|to, &from| *to = from + self.strength * (*to - from));
        }
        Ok(result)
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
