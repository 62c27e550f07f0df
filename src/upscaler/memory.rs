// SPDX-License-Identifier: MPL-2.0

//! How much memory a clip takes, before it is taken.

use crate::error::{Error, Result};
use crate::window::WindowMode;

use super::Upscaler;

/// Bytes of a number.
const NUMBER: u64 = 4;

impl Upscaler {
    /// Bytes that frames and latents take at least while a window is restored. What the graphs need for themselves, which
    /// grows with the tiles, comes on top; it is not known before they run.
    pub fn memory_estimate(&self) -> u64 {
        let area = |(width, height): (usize, usize)| width as u64 * height as u64;
        let frame = |size| 3 * NUMBER * area(size);
        let (input, output, canvas) =
            (self.picture.input_size(), self.picture.size(), self.picture.canvas_size());
        let vae = &self.manifest.vae;
        let of_latents = |pixels: u64| {
            let latent = &self.manifest.latent;
            NUMBER * latent.channels as u64 * pixels / (latent.spatial_factor as u64).pow(2)
        };
        let (length, overlap) = (self.windows.length() as u64, self.windows.overlap() as u64);
        let tile = self.picture.tile_size();
        // In the tiles: pixels that are encoded or decoded at once, and hint, noise, state and prediction.
        let work = frame(tile) * vae.frames_per_encode.max(vae.frames_per_decode) as u64;
        match self.windows.mode() {
            WindowMode::Blend => {
                // Frames on the canvas before and after, and what the window before left.
                length * (frame(input) + 2 * frame(canvas) + 4 * of_latents(area(tile)))
                    + overlap * frame(output)
                    + work
            }
            WindowMode::Wavefront => {
                // Hint, state and last prediction of all frames inside.
                let inside = self.latency as u64 + 1;
                inside * (frame(input) + 3 * of_latents(area(canvas)))
                    + vae.frames_per_decode as u64 * (frame(canvas) + frame(output))
                    + work
            }
        }
    }

    /// Fails with [`Error::Setting`] where [`Self::memory_estimate`] is more than `available` bytes.
    pub fn check_memory(&self, available: u64) -> Result<()> {
        let estimate = self.memory_estimate();
        if estimate <= available {
            return Ok(());
        }
        let ((width, height), (wide, high)) = (self.picture.input_size(), self.picture.size());
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        let reason = format!(
            "windows of {} frames of {width}x{height} pixels, enlarged to {wide}x{high}, take at least {:.1} GiB of memory, but there are \
             {:.1} GiB; use shorter windows or smaller frames",
            self.windows.length(),
            gib(estimate),
            gib(available)
        );
        Err(Error::Setting { setting: "window-length", reason })
    }
}

/// Bytes of memory that this machine has; `None` where it does not tell.
pub fn memory_of_this_machine() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kibibytes =
        text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB"))?;
    kibibytes.trim().parse::<u64>().ok()?.checked_mul(1024)
}
