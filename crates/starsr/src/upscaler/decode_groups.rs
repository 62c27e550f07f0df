// SPDX-License-Identifier: MPL-2.0

//! Which frames the decoder takes at once.

use std::ops::Range;

use super::cadence::Cadence;
use crate::error::{Error, Result};
use crate::names::Setting;

/// One run of the decoder, in places of a sequence of frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DecodeGroup {
    /// The latents that are decoded.
    pub(super) decoded: Range<usize>,
    /// The decoded frames that are used.
    pub(super) kept: Range<usize>,
}

/// Groups that follow each other: each decodes `overlap` frames more on either side than it keeps,
/// as far as the sequence reaches. Without overlap they are those of the official program
/// (docs/star.md, A.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DecodeGroups {
    kept: usize,
    overlap: usize,
    /// Whether a run takes a window, however long.
    whole: bool,
}

impl DecodeGroups {
    /// Runs of up to `size` frames. Fails with [`Error::Setting`] unless `2 * overlap < size`.
    pub(super) fn new(size: usize, overlap: usize) -> Result<Self> {
        let shared = overlap.checked_mul(2);
        let kept = shared.and_then(|shared| size.checked_sub(shared)).filter(|&kept| kept > 0);
        let kept = kept.ok_or_else(|| {
            let most = size.saturating_sub(1) / 2;
            let reason = format!(
                "{overlap} is more than {most}, the most that the bundle's runs of {size} frames allow"
            );
            Error::setting(Setting::DecodeOverlap, reason)
        })?;
        Ok(Self { kept, overlap, whole: false })
    }

    /// Runs that take a window each, of up to `length` frames.
    pub(super) fn whole_windows(length: usize) -> Self {
        Self { kept: length, overlap: 0, whole: true }
    }

    /// The runs that decode a window of `frames` frames.
    pub(super) fn of_window(self, frames: usize, cadence: Cadence) -> Vec<DecodeGroup> {
        if self.whole {
            return vec![DecodeGroup { decoded: 0..cadence.latents(frames), kept: 0..frames }];
        }
        self.all(frames).collect()
    }

    /// The most frames of a run.
    pub(super) fn size(&self) -> usize {
        self.kept + 2 * self.overlap
    }

    /// Goes over to runs that keep half as many frames; false where they keep one already, or
    /// must take a window.
    pub(super) fn shorten(&mut self) -> bool {
        if self.kept == 1 || self.whole {
            return false;
        }
        self.kept = self.kept.div_ceil(2);
        true
    }

    /// The most frames that must follow a frame before it can be decoded.
    pub(super) fn latency(&self) -> usize {
        self.kept + self.overlap - 1
    }

    /// Frames that later groups need besides those which they keep.
    pub(super) fn overlap(&self) -> usize {
        self.overlap
    }

    /// The first frame that is kept by the run which keeps the one at `place`.
    pub(super) fn first(&self, place: usize) -> usize {
        place - place % self.kept
    }

    /// The group that keeps the frames from `start` on, where there are `frames`.
    pub(super) fn group(&self, start: usize, frames: usize) -> DecodeGroup {
        let end = (start + self.kept).min(frames);
        DecodeGroup {
            decoded: start.saturating_sub(self.overlap)..(end + self.overlap).min(frames),
            kept: start..end,
        }
    }

    /// The groups of a sequence of `frames` frames. They keep each frame once.
    pub(super) fn all(self, frames: usize) -> impl Iterator<Item = DecodeGroup> {
        (0..frames).step_by(self.kept).map(move |start| self.group(start, frames))
    }

    /// The group that keeps the frames from `start` on, if `frames` frames are enough to know it:
    /// more may follow unless `ended`.
    pub(super) fn next(&self, start: usize, frames: usize, ended: bool) -> Option<DecodeGroup> {
        let whole = start + self.kept + self.overlap <= frames;
        (whole || (ended && start < frames)).then(|| self.group(start, frames))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(size: usize, overlap: usize, frames: usize) -> Vec<(Range<usize>, Range<usize>)> {
        let groups = DecodeGroups::new(size, overlap).unwrap();
        groups.all(frames).map(|group| (group.decoded, group.kept)).collect()
    }

    #[test]
    fn official_groups() {
        assert_eq!(list(3, 0, 7), [(0..3, 0..3), (3..6, 3..6), (6..7, 6..7)]);
        assert_eq!(list(3, 0, 0), []);
    }

    #[test]
    fn each_frame_in_the_middle_of_its_own_group() {
        assert_eq!(list(3, 1, 4), [(0..2, 0..1), (0..3, 1..2), (1..4, 2..3), (2..4, 3..4)]);
        assert_eq!(list(3, 1, 1), [(0..1, 0..1)]);
        assert_eq!(list(7, 2, 7), [(0..5, 0..3), (1..7, 3..6), (4..7, 6..7)]);
    }

    #[test]
    fn too_much_overlap_is_refused() {
        for (size, overlap) in [(3, 2), (4, 2), (1, 1), (3, usize::MAX)] {
            assert!(matches!(
                DecodeGroups::new(size, overlap),
                Err(Error::Setting { setting: Setting::DecodeOverlap, .. })
            ));
        }
    }
}
