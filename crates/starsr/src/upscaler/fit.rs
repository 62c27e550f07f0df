// SPDX-License-Identifier: MPL-2.0

//! What an upscaler takes of memory, and how its work is fitted to what there is.

use super::clip::Clip;
use super::{Upscaler, memory};
use crate::diffusion::sampler::Sampler;
use crate::error::{Error, Result};
use crate::model::Memory;
use crate::names::Setting;

impl Upscaler {
    /// The most bytes that a clip is estimated to take while a window is restored: frames, latents,
    /// and what the graphs need for a tile, or the text encoder while it is loaded, according to the
    /// bundle, where they compute in main memory. The weights of the other graphs come on top.
    pub fn memory_estimate(&self) -> u64 {
        let elsewhere = self.clip.computes_elsewhere();
        self.memory_of_arrays() + if elsewhere { 0 } else { self.runs().most() }
    }

    /// The most bytes of a device's memory that the graphs are estimated to take according to the
    /// bundle, without their weights; 0 where they compute in main memory.
    pub fn device_memory_estimate(&self) -> u64 {
        if self.clip.computes_elsewhere() { self.runs().most() } else { 0 }
    }

    /// See [`Model::device_memory_used`](crate::model::Model::device_memory_used).
    pub fn device_memory_used(&self) -> Option<u64> {
        self.clip.model.device_memory_used()
    }

    fn runs(&self) -> memory::Runs {
        let Clip { model, path, groups, .. } = &self.clip;
        let guidance = self.join.sampler().map(Sampler::guidance);
        let is_batched = guidance.is_some_and(|g| g.is_used() && g.batches(model.as_ref()));
        let batch = if is_batched { 2 } else { 1 };
        let (window, text) = (self.layout.longest(), model.text_memory());
        memory::of_runs(path, &self.manifest, window, batch, groups.size(), text)
    }

    /// The bytes that [`ReadAhead`](crate::ReadAhead) takes besides: the frames of the next windows,
    /// and as many finished ones.
    pub fn read_ahead_memory(&self) -> u64 {
        let frame = self.input_size().area() + self.output_size().area();
        memory::of_pixels(frame) * self.frames_to_read_ahead() as u64
    }

    fn memory_of_arrays(&self) -> u64 {
        let path = &self.clip.path;
        match self.join.sampler() {
            Some(sampler) => {
                memory::of_arrays(path, &self.manifest, &self.layout, sampler, self.latency)
            }
            None => memory::of_direct_arrays(path, &self.layout, self.windows_ahead()),
        }
    }

    /// Fits runs of the graphs to what they can count, and to what the model may take of a device's
    /// memory: guidance becomes separate, runs of the autoencoder shorter, and tiles smaller, unless
    /// these were set; see [`Self::reduced_tile_size`].
    fn fit_runs(&mut self) {
        let available = match self.clip.model.memory() {
            Memory::Device(Some(bytes)) => bytes,
            _ => u64::MAX,
        };
        let fits = |run: &memory::Run| run.bytes <= available && !run.overflows;
        loop {
            let memory::Runs { encode, predict, decode, .. } = &self.runs();
            let Clip { model, path, groups, .. } = &mut self.clip;
            let sampler = self.join.sampler_mut();
            let separate = |sampler: &mut Sampler| sampler.separate_guidance(model.as_ref());
            let fitted = (!fits(predict) && sampler.is_some_and(separate))
                || (!fits(decode) && groups.shorten())
                || (!fits(encode) && path.shorten_encoding());
            if fitted {
                continue;
            }
            if [encode, predict, decode].into_iter().all(fits) || !self.auto_tiles {
                break;
            }
            let Some(size) = path.reduce_tiles() else { break };
            self.reduced = Some(size);
        }
        self.latency = self.join.latency(&self.clip.groups);
    }

    /// Fits the work to the `available` bytes of main memory and to those of the model's device:
    /// goes over to smaller tiles, unless their size was set, see [`Self::reduced_tile_size`]. On a
    /// device the halves of guidance are computed separately before, and the autoencoder's runs
    /// become shorter.
    ///
    /// # Errors
    /// [`Error::Setting`] where frames and latents alone are more than the main memory, and where
    /// tiles of the size that was set have more pixels than the graphs can count.
    pub fn fit_memory(&mut self, available: u64) -> Result<()> {
        self.fit_runs();
        if self.runs().overflow() {
            let reason = format!(
                "tiles of {} pixels are more than the bundle can count in windows of {} frames; use \
                 smaller ones",
                self.tile_size(),
                self.layout.length()
            );
            return Err(Error::setting(Setting::TileSize, reason));
        }
        while self.auto_tiles && self.memory_estimate() > available {
            let Some(size) = self.clip.path.reduce_tiles() else { break };
            self.reduced = Some(size);
        }
        let least = self.memory_of_arrays();
        if least <= available {
            return Ok(());
        }
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        let reason = format!(
            "windows of {} frames of {} pixels, enlarged to {}, take at least {:.1} GiB of memory, but \
             there are {:.1} GiB; use shorter windows or smaller frames",
            self.layout.length(),
            self.input_size(),
            self.output_size(),
            gib(least),
            gib(available)
        );
        Err(Error::setting(Setting::WindowLength, reason))
    }
}
