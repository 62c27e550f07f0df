// SPDX-License-Identifier: MPL-2.0

//! What surrounds the sampler in space: upscale, canvas, tiles, autoencoder, colour fix.

use std::ops::Range;

use ndarray::{Array3, Array4, ArrayView3, ArrayView4, ArrayViewMut2, Zip, s};

use super::cadence::Cadence;
use super::settings::{Posterior, Settings};
use crate::buffers::Buffers;
use crate::bundle::Manifest;
use crate::cancel::Cancel;
use crate::color::ColorFix;
use crate::diffusion::noise::{Noise, POSTERIOR_STEP};
use crate::diffusion::tiled::Tiled;
use crate::error::{Error, Result};
use crate::geometry::{Canvas, Enlarger, Grid, Interpolation, LegalSizes, Size, upscale};
use crate::model::{Model, Samples};
use crate::parallel::Threads;

/// The way of frames of one size to the model and back.
pub(super) struct FramePath {
    /// Size of the frames that come in.
    input: Size,
    canvas: Canvas,
    /// The canvas of frames that are not enlarged before; of a model without autoencoder.
    low: Option<Canvas>,
    /// The tiles, in pixels and in latents.
    grid: Grid,
    latent_grid: Grid,
    /// Legal sizes of rows and columns.
    legal: [LegalSizes; 2],
    /// As set; small tiles share less.
    tile_overlap: usize,
    scale: usize,
    interpolation: Interpolation,
    enlarger: Enlarger,
    /// Pixels per latent in each direction.
    factor: usize,
    frames_per_encode: usize,
    /// Frames and latents of windows.
    cadence: Cadence,
    /// The size of tiles that the model was trained for.
    trained: Option<Size>,
    posterior: Posterior,
    color_fix: ColorFix,
    strength: f32,
    threads: Threads,
    /// For arrays of windows.
    buffers: Buffers,
    /// For finished frames.
    frames: Buffers,
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
        let (rules, cadence) = (&manifest.canvas, Cadence::of(manifest));
        let scale = settings.model_scale(manifest);
        let square = |side: usize| Size { width: side, height: side };
        let tile = match (settings.tile_size, rules.trained) {
            (Some(side), _) => square(side),
            (None, Some(trained)) if rules.tile == 0 => trained,
            _ => square(tile),
        };
        let quarter = tile.width.min(tile.height) / 4;
        let overlap = settings.tile_overlap.unwrap_or(rules.tile_overlap.min(quarter));
        let large = input.enlarged(scale)?;
        let canvas = Canvas::new(large, rules.height, rules.width, rules.padding)?;
        let legal = [rules.height, rules.width];
        let factor = manifest.latent.spatial_factor;
        let [rows, columns] = legal.map(|legal| legal.shrunk(factor));
        let low = || Canvas::new(input, rows, columns, rules.padding);
        let low = manifest.is_direct().then(low).transpose()?;
        let grid = Grid::of_tiles(canvas.size, tile, overlap, legal)?;
        Ok(Self {
            input,
            latent_grid: grid.shrunk(manifest.latent.spatial_factor),
            grid,
            legal,
            tile_overlap: settings.tile_overlap.unwrap_or(rules.tile_overlap),
            canvas,
            low,
            scale,
            interpolation: rules.upscale,
            enlarger: Enlarger::new(scale, rules.upscale),
            factor: manifest.latent.spatial_factor,
            frames_per_encode: if cadence.joins_frames() {
                settings.windows(manifest)?.longest()
            } else {
                manifest.vae.frames_per_encode
            },
            cadence,
            trained: rules.trained,
            posterior: settings.posterior,
            color_fix: settings.color_fix.unwrap_or(manifest.sampler.color_fix),
            strength: settings.strength(manifest)?,
            threads,
            buffers: Buffers::default(),
            frames: Buffers::default(),
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

    /// The size of tiles that the model was trained for, where theirs is another one.
    pub(super) fn trained_otherwise(&self) -> Option<Size> {
        self.trained.filter(|&trained| trained != self.tile_size())
    }

    /// Frames and latents of windows.
    pub(super) fn cadence(&self) -> Cadence {
        self.cadence
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

    /// Goes on to encode half as many frames in one run; false where it is one already, or
    /// must be a window.
    pub(super) fn shorten_encoding(&mut self) -> bool {
        if self.frames_per_encode == 1 || self.cadence.joins_frames() {
            return false;
        }
        self.frames_per_encode = self.frames_per_encode.div_ceil(2);
        true
    }

    /// `model` as a denoiser of the whole canvas.
    pub(super) fn denoiser<'a>(
        &'a self,
        model: &'a mut dyn Model,
        cancel: &'a Cancel,
    ) -> Tiled<'a> {
        Tiled::new(model, &self.latent_grid, cancel, &self.threads, &self.buffers)
    }

    /// A frame `[3,h,w]` enlarged, `[3,H,W]` in `[0,1]`.
    pub(super) fn enlarge(&self, low: ArrayView3<f32>) -> Result<Array3<f32>> {
        let mut plain = upscale(low, self.scale, self.interpolation)?;
        plain.mapv_inplace(|v| v.clamp(0.0, 1.0));
        Ok(plain)
    }

    /// What shares the work on frames.
    pub(super) fn threads(&self) -> &Threads {
        &self.threads
    }

    /// Memory of a finished frame that is not needed any more.
    pub(super) fn reuse(&self, frame: Array3<f32>) {
        self.frames.give(frame.into_raw_vec_and_offset().0);
    }

    /// Where [`Self::reuse`] keeps the memory of finished frames.
    pub(super) fn finished_frames(&self) -> Buffers {
        self.frames.clone()
    }

    /// Frees the memory that is kept for the next window.
    pub(super) fn free_memory(&self) {
        self.buffers.clear();
        self.frames.clear();
    }

    /// Frames `[3,h,w]` in `[0,1]`, in standard layout, on the canvas: `[F,3,H,W]` in `[-1,1]`.
    pub(super) fn prepare(&self, frames: &[&Array3<f32>], cancel: &Cancel) -> Result<Samples> {
        self.planes(frames, self.canvas.size, cancel, |low, plane| self.prepare_plane(low, plane))
    }

    /// Frames `[3,h,w]` in `[0,1]`, in standard layout, on their own canvas `[F,3,H/s,W/s]`.
    pub(super) fn prepare_low(&self, frames: &[&Array3<f32>], cancel: &Cancel) -> Result<Samples> {
        let Some(canvas) = &self.low else {
            return Err(Error::input("frames", "the model takes latents"));
        };
        self.planes(frames, canvas.size, cancel, |low, plane| {
            for (y, row) in low.chunks_exact(self.input.width).enumerate() {
                canvas.row_mut(plane, y).copy_from_slice(row);
            }
            canvas.surround(plane);
        })
    }

    /// Planes of `size` `[F,3,H,W]` that `fill` makes of those of `frames` `[3,h,w]`.
    fn planes(
        &self,
        frames: &[&Array3<f32>],
        size: Size,
        cancel: &Cancel,
        fill: impl Fn(&[f32], &mut [f32]) + Send + Sync,
    ) -> Result<Samples> {
        let shape = [frames.len(), 3, size.height, size.width];
        let mut planes = self.buffers.lease(shape.iter().product());
        let places = planes.chunks_exact_mut(size.height * size.width).enumerate();
        self.threads.map(places, |(place, plane)| {
            cancel.check()?;
            let low = frames[place / 3].slice(s![place % 3, .., ..]);
            fill(low.to_slice().unwrap_or_default(), plane);
            Ok(())
        })?;
        Samples::new(planes, shape)
    }

    /// The frames on the canvas `[F,3,H,W]` that the model gives for prepared ones
    /// `[F,3,H/s,W/s]`, in one run for each tile.
    pub(super) fn upscale(
        &self,
        model: &mut dyn Model,
        prepared: ArrayView4<f32>,
        cancel: &Cancel,
    ) -> Result<Samples> {
        self.in_tiles(prepared, cancel, |tile| model.upscale(tile))
    }

    /// The frames on the canvas `[F,3,H,W]` that `run` gives for `small` `[T,C,h,w]`, tile by tile.
    fn in_tiles(
        &self,
        small: ArrayView4<f32>,
        cancel: &Cancel,
        mut run: impl FnMut(ArrayView4<f32>) -> Result<Samples>,
    ) -> Result<Samples> {
        let part = |r: Range<usize>| r.start / self.factor..r.end / self.factor;
        one(self.grid.blend(&self.threads, &self.buffers, |rows, columns| {
            cancel.check()?;
            Ok(vec![run(small.slice(s![.., .., part(rows), part(columns)]))?])
        })?)
    }

    fn prepare_plane(&self, low: &[f32], plane: &mut [f32]) {
        let Size { width, height } = self.canvas.picture;
        let mut band = vec![0.0; BAND.min(height) * width];
        for first in (0..height).step_by(BAND) {
            let band = &mut band[..BAND.min(height - first) * width];
            self.enlarger.rows(low, self.input.width, first, band);
            for (y, row) in (first..).zip(band.chunks_exact(width)) {
                for (to, from) in self.canvas.row_mut(plane, y).iter_mut().zip(row) {
                    *to = 2.0 * from.clamp(0.0, 1.0) - 1.0;
                }
            }
        }
        self.canvas.surround(plane);
    }

    /// Latents `[T,C,h,w]` of prepared frames `[F,3,H,W]`, in one run for each tile. `numbers` are
    /// the latents'.
    pub(super) fn encode(
        &self,
        model: &mut dyn Model,
        prepared: ArrayView4<f32>,
        numbers: &[u64],
        noise: &dyn Noise,
        cancel: &Cancel,
    ) -> Result<Samples> {
        let factor = self.factor;
        let mut parts = self.latent_grid.blend(&self.threads, &self.buffers, |rows, columns| {
            cancel.check()?;
            let pixels = |r: Range<usize>| factor * r.start..factor * r.end;
            let tile = prepared.slice(s![.., .., pixels(rows), pixels(columns)]);
            Ok(match self.posterior {
                Posterior::Mean => vec![model.encode(tile)?],
                Posterior::Sample => model.encode_posterior(tile)?.into(),
            })
        })?;
        let std = if parts.len() > 1 { parts.pop() } else { None };
        let mean = one(parts)?;
        Ok(match std {
            Some(std) => draw(mean.view().to_owned(), std.view(), numbers, noise).into(),
            None => mean,
        })
    }

    /// Latents of groups of frames one after the other.
    pub(super) fn join(&self, mut groups: Vec<Samples>) -> Result<Samples> {
        if groups.len() == 1 {
            return Ok(groups.remove(0));
        }
        let (_, channels, height, width) = groups.first().map_or((0, 0, 0, 0), Samples::dim);
        let frames = groups.iter().map(|group| group.dim().0).sum();
        let shape = [frames, channels, height, width];
        let mut joined = self.buffers.lease(shape.iter().product());
        let mut rest = &mut *joined;
        for group in &groups {
            let (frames, c, h, w) = group.dim();
            let Some((to, after)) = rest.split_at_mut_checked(frames * c * h * w) else {
                return Err(Error::input("latents", "frames differ in size"));
            };
            self.copy(group.view(), to);
            rest = after;
        }
        Samples::new(joined, shape)
    }

    /// The latents of `frames` of `latents`, in memory of their own.
    pub(super) fn keep(&self, latents: &Samples, frames: Range<usize>) -> Result<Samples> {
        let latents = latents.frames(frames);
        let mut kept = self.buffers.lease(latents.len());
        self.copy(latents, &mut kept);
        Samples::new(kept, latents.dim().into())
    }

    /// Copies the planes `from` to as many values, in standard layout.
    fn copy(&self, from: ArrayView4<f32>, to: &mut [f32]) {
        self.threads.for_each_plane(from, to, |from, to| {
            from.assign_to(ArrayViewMut2::from_shape(from.raw_dim(), to).expect("one plane"));
        });
    }

    /// The frames on the canvas `[F,3,H,W]` of the latents `[T,C,h,w]` at the places `decoded`.
    pub(super) fn decode(
        &self,
        model: &mut dyn Model,
        latents: ArrayView4<f32>,
        decoded: &Range<usize>,
        cancel: &Cancel,
    ) -> Result<Samples> {
        let latents = latents.slice(s![decoded.clone(), .., .., ..]);
        self.in_tiles(latents, cancel, |tile| model.decode(tile))
    }

    /// The finished frames `[3,H,W]` in `[0,1]` of decoded canvases `[F,3,H,W]` and the frames
    /// `[3,h,w]`, in standard layout, that they came from.
    pub(super) fn finish(
        &self,
        canvases: ArrayView4<f32>,
        frames: &[&Array3<f32>],
        cancel: &Cancel,
    ) -> Result<Vec<Array3<f32>>> {
        let Size { width, height } = self.canvas.picture;
        let new = |_| {
            let values = self.frames.lease(3 * height * width).into_vec();
            Array3::from_shape_vec((3, height, width), values).unwrap_or_default()
        };
        let mut results: Vec<_> = (0..frames.len()).map(new).collect();
        let all = |results: &mut [Array3<f32>], work: &(dyn Fn(&mut Band) -> Result<()> + Sync)| {
            let bands = bands(results, [height, width]);
            let done = self.threads.map(bands.into_iter(), |mut band| {
                cancel.check()?;
                work(&mut band)
            });
            done.map(|_| ())
        };
        let crop = |band: &mut Band| self.crop(canvases, band);
        let mix = |band: &mut Band| {
            self.mix(frames[band.frame], band);
            Ok(())
        };
        if self.color_fix == ColorFix::None {
            all(&mut results, &|band| crop(band).and_then(|()| mix(band)))?;
            return Ok(results);
        }
        all(&mut results, &crop)?;
        self.threads.map(results.iter_mut().zip(frames), |(result, low)| {
            cancel.check()?;
            self.color_fix.apply(result, low.view())
        })?;
        all(&mut results, &mix)?;
        Ok(results)
    }

    /// Takes a band of the picture from its canvas, in `[0,1]`.
    fn crop(&self, canvases: ArrayView4<f32>, band: &mut Band) -> Result<()> {
        let Size { width, height } = self.canvas.size;
        let plane = canvases.slice(s![band.frame, band.channel, .., ..]);
        let plane = plane.to_slice().filter(|plane| plane.len() == height * width);
        let Some(plane) = plane else {
            let reason = format!("{:?} are not canvases of {}", canvases.shape(), self.canvas.size);
            return Err(Error::input("decoded frames", reason));
        };
        let lines = band.rows.chunks_exact_mut(self.canvas.picture.width);
        // Autoencoders work in [-1,1].
        let (gain, offset) = if self.low.is_some() { (1.0, 0.0) } else { (0.5, 0.5) };
        for (y, line) in (band.first..).zip(lines) {
            for (to, from) in line.iter_mut().zip(self.canvas.row(plane, y)) {
                *to = (gain * from + offset).clamp(0.0, 1.0);
            }
        }
        Ok(())
    }

    /// Mixes a band of a finished frame with the plain upscale of `low`.
    fn mix(&self, low: &Array3<f32>, band: &mut Band) {
        if self.strength >= 1.0 {
            return;
        }
        let low = low.slice(s![band.channel, .., ..]);
        let mut plain = vec![0.0; band.rows.len()];
        let low = low.to_slice().unwrap_or_default();
        self.enlarger.rows(low, self.input.width, band.first, &mut plain);
        for (to, from) in band.rows.iter_mut().zip(plain) {
            let from = from.clamp(0.0, 1.0);
            *to = from + self.strength * (*to - from);
        }
    }
}

/// Rows that a thread works on at a time, so that they stay in its core's cache.
const BAND: usize = 64;

/// Some rows of one channel of a finished frame.
struct Band<'a> {
    frame: usize,
    channel: usize,
    /// The number of the first row.
    first: usize,
    rows: &'a mut [f32],
}

/// All bands of frames of the given height and width.
fn bands(frames: &mut [Array3<f32>], [height, width]: [usize; 2]) -> Vec<Band<'_>> {
    let mut bands = Vec::new();
    for (frame, values) in frames.iter_mut().enumerate() {
        let planes = values.as_slice_mut().unwrap_or_default().chunks_exact_mut(height * width);
        for (channel, plane) in planes.enumerate() {
            let rows = plane.chunks_mut(BAND * width).enumerate();
            bands.extend(rows.map(|(i, rows)| Band { frame, channel, first: i * BAND, rows }));
        }
    }
    bands
}

/// Latents `[F,C,h,w]` drawn from a posterior of the given mean and standard deviation.
fn draw(
    mut mean: Array4<f32>,
    std: ArrayView4<f32>,
    numbers: &[u64],
    noise: &dyn Noise,
) -> Array4<f32> {
    for ((mut latents, std), &number) in mean.outer_iter_mut().zip(std.outer_iter()).zip(numbers) {
        let mut drawn = Array3::zeros(latents.raw_dim());
        let values = drawn.as_slice_mut().expect("standard layout");
        noise.fill(number, POSTERIOR_STEP, 0, values);
        Zip::from(&mut latents).and(std).and(&drawn).for_each(|x, &std, &n| *x += std * n);
    }
    mean
}

/// The only one of `arrays`.
fn one(mut arrays: Vec<Samples>) -> Result<Samples> {
    match arrays.pop() {
        Some(array) if arrays.is_empty() => Ok(array),
        _ => Err(Error::input("tiles", "there is not one array of each")),
    }
}
