// SPDX-License-Identifier: MPL-2.0

//! Frames and latents of a window, where a latent may hold several frames.

use crate::bundle::{Manifest, WindowSpec};

/// The frames that a window's latents hold: one for the first, `factor` for each of the others.
/// With a factor above 1 a window is encoded and decoded in one piece, of a legal length.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cadence {
    factor: usize,
    window: WindowSpec,
}

impl Cadence {
    pub(super) fn of(manifest: &Manifest) -> Self {
        Self { factor: manifest.latent.temporal_factor, window: manifest.window }
    }

    /// Whether latents hold several frames.
    pub(super) fn joins_frames(self) -> bool {
        self.factor > 1
    }

    /// Frames that a window of `frames` is encoded as: its last frame is repeated up to the next
    /// legal length.
    pub(super) fn padded(self, frames: usize) -> usize {
        if self.joins_frames() { self.window.fit(frames) } else { frames }
    }

    /// Latents of a window of `frames`.
    pub(super) fn latents(self, frames: usize) -> usize {
        self.padded(frames).saturating_sub(1) / self.factor + frames.min(1)
    }

    /// The numbers by which a window's latents get their noise, from those of its frames: of the
    /// last frame that a latent holds. Repeated frames are counted on.
    pub(super) fn numbers(self, frames: &[u64]) -> Vec<u64> {
        let Some(&last) = frames.last() else { return Vec::new() };
        let number = |place: usize| {
            let beyond = (place + 1).saturating_sub(frames.len()) as u64;
            frames.get(place).copied().unwrap_or(last.saturating_add(beyond))
        };
        (0..self.latents(frames.len())).map(|k| number(k * self.factor)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::windows::WindowMode;

    fn cadence(factor: usize) -> Cadence {
        let window = WindowSpec {
            length: 25,
            overlap: 8,
            minimum: 1,
            maximum: 41,
            multiple: 2 * factor,
            offset: 1,
            mode: WindowMode::Blend,
        };
        Cadence { factor, window }
    }

    #[test]
    fn latents_of_windows() {
        let of = |frames| (cadence(4).padded(frames), cadence(4).latents(frames));
        assert_eq!(of(0).1, 0);
        assert_eq!(
            [1, 2, 9, 10, 25, 26, 41].map(of),
            [(1, 1), (9, 3), (9, 3), (17, 5), (25, 7), (33, 9), (41, 11)]
        );
        assert_eq!([0, 1, 2, 7].map(|frames| cadence(1).latents(frames)), [0, 1, 2, 7]);
        assert!(!cadence(1).joins_frames() && cadence(1).padded(7) == 7);
    }

    #[test]
    fn each_latent_has_the_number_of_its_last_frame() {
        let numbers =
            |frames: std::ops::Range<u64>| cadence(4).numbers(&frames.collect::<Vec<_>>());
        assert_eq!(numbers(100..109), [100, 104, 108]);
        assert_eq!(numbers(100..106), [100, 104, 108]);
        assert_eq!(numbers(7..8), [7]);
        assert!(numbers(0..0).is_empty());
        assert_eq!(numbers(u64::MAX - 1..u64::MAX), [u64::MAX - 1]);
        assert_eq!(cadence(1).numbers(&[3, 9, 4]), [3, 9, 4]);
    }
}
