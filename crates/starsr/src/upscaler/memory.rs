// SPDX-License-Identifier: MPL-2.0

//! How much memory a clip takes, before it is taken.

use crate::error::{Error, Result};
use crate::windows::WindowMode;

use super::Upscaler;

/// Bytes of a number.
const NUMBER: u64 = 4;

/// Arrays of a window's latents that sampling holds: hint, state, the model's input and its prediction.
const SAMPLING: u64 = 4;

/// Arrays of a tile's latents that a run of the denoiser takes and gives: input, hint and prediction.
const RUN: u64 = 3;

impl Upscaler {
    /// Bytes that a clip is thought to take while a window is restored, at most: frames, latents, and what the graphs need for a
    /// tile as the bundle tells it, where they compute in main memory. The graphs' weights come on top.
    pub fn memory_estimate(&self) -> u64 {
        let (width, height) = self.picture.tile_size();
        let graphs = if self.model.uses_main_memory() { self.manifest.canvas.tile_memory } else { 0 };
        self.memory_of_arrays() + graphs * self.frames_at_once() * width as u64 * height as u64
    }

    /// Frames of the longest window.
    fn frames_at_once(&self) -> u64 {
        let length = self.windows.length() as u64;
        match self.windows.mode() {
            WindowMode::Blend => length,
            WindowMode::Wavefront => length + length / 4,
        }
    }

    /// Bytes of all frames and latents.
    fn memory_of_arrays(&self) -> u64 {
        let area = |(width, height): (usize, usize)| width as u64 * height as u64;
        let frame = |size| 3 * NUMBER * area(size);
        let (input, output, canvas) =
            (self.picture.input_size(), self.picture.size(), self.picture.canvas_size());
        let latents = |size| {
            let latent = &self.manifest.latent;
            NUMBER * latent.channels as u64 * area(size) / (latent.spatial_factor as u64).pow(2)
        };
        let (tile, window) = (self.picture.tile_size(), self.frames_at_once());
        let vae = &self.manifest.vae;
        let coded = frame(tile) * vae.frames_per_encode.max(vae.frames_per_decode) as u64;
        let run = window * RUN * latents(tile) + coded;
        let previous = u64::from(self.sampler.evaluations() > 1);
        let guided = u64::from(self.sampler.guidance().is_used());
        match self.windows.mode() {
            WindowMode::Blend => {
                let sampled = (SAMPLING + previous + guided) * latents(canvas);
                // Before and after, pixels of the canvas are held beside latents.
                let pixels = frame(canvas) + latents(canvas);
                let overlap = self.windows.overlap() as u64;
                window * (frame(input) + sampled.max(pixels)) + overlap * frame(output) + run
            }
            WindowMode::Wavefront => {
                // Hint, state and last prediction of all frames inside; input, hint and prediction of a window.
                let inside = self.latency as u64 + 1;
                inside * (frame(input) + (2 + previous) * latents(canvas))
                    + window * (3 + guided) * latents(canvas)
                    + vae.frames_per_decode as u64 * (frame(canvas) + frame(output))
                    + run
            }
        }
    }

    /// Goes over to smaller tiles while [`Self::memory_estimate`] is more than `available` bytes, unless their size was set; see
    /// [`Self::reduced_tile_size`]. Fails with [`Error::Setting`] where frames and latents alone are more.
    pub fn fit_memory(&mut self, available: u64) -> Result<()> {
        while self.auto_tiles && self.memory_estimate() > available {
            let Some(size) = self.picture.reduce_tiles() else { break };
            self.reduced = Some(size);
        }
        let least = self.memory_of_arrays();
        if least <= available {
            return Ok(());
        }
        let ((width, height), (wide, high)) = (self.picture.input_size(), self.picture.size());
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        let reason = format!(
            "windows of {} frames of {width}x{height} pixels, enlarged to {wide}x{high}, take at least {:.1} GiB of memory, but there are \
             {:.1} GiB; use shorter windows or smaller frames",
            self.windows.length(),
            gib(least),
            gib(available)
        );
        Err(Error::Setting { setting: "window-length", reason })
    }
}

/// Bytes of memory that this process may use: the machine's, or its control group's where that is less; `None` where neither is told.
pub fn memory_of_this_machine() -> Option<u64> {
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let limit = limit.and_then(|text| text.trim().parse::<u64>().ok());
    [memory_in_total(), limit].into_iter().flatten().min()
}

fn memory_in_total() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kibibytes =
        text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB"))?;
    kibibytes.trim().parse::<u64>().ok()?.checked_mul(1024)
}
