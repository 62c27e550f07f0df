// SPDX-License-Identifier: MPL-2.0

//! Which frames have to be restored together, so that some of them come out as in the whole clip.

use std::ops::Range;

use super::decode_groups::DecodeGroups;
use super::settings::Settings;
use crate::bundle::Manifest;
use crate::error::Result;
use crate::parallel::Threads;
use crate::windows::{WindowMode, Windows};

/// How far the frames of a clip depend on each other under given settings.
#[derive(Debug, Clone, Copy)]
pub struct Context {
    layout: Windows,
    groups: DecodeGroups,
    evaluations: usize,
}

impl Context {
    /// That of the windows, the evaluations and the runs of the decoder which `settings` and the
    /// bundle of `manifest` make.
    ///
    /// # Errors
    /// [`Error::Setting`](crate::Error::Setting) where a setting contradicts the bundle.
    pub fn new(settings: &Settings, manifest: &Manifest) -> Result<Self> {
        Ok(Self {
            layout: settings.windows(manifest)?,
            groups: settings.decode_groups(manifest)?,
            evaluations: settings.sampler(manifest, Threads::new(1))?.evaluations(),
        })
    }

    /// Frames between the starts of neighbouring windows, `L - O`.
    pub fn stride(&self) -> usize {
        self.layout.stride()
    }

    /// The frames of a clip, as places from 0, that have to be restored in order to get those at
    /// `wanted` as they are in the whole clip of `frames` frames. `number` gives the absolute number
    /// of the frame at a place.
    pub fn around(
        &self,
        wanted: Range<usize>,
        frames: usize,
        number: impl Fn(usize) -> u64,
    ) -> Range<usize> {
        if wanted.is_empty() || wanted.end > frames {
            return wanted;
        }
        let layout = self.layout.anchored(number(0));
        let last = layout.last(frames);
        let (length, stride) = (layout.length(), self.stride());
        let is_wavefront = layout.mode() == WindowMode::Wavefront;
        let (mut start, mut end) = (wanted.start, wanted.end);
        if is_wavefront {
            let decoded = |place| self.groups.group(self.groups.first(place), frames).decoded;
            (start, end) = (decoded(start).start, decoded(end - 1).end);
            // Each evaluation reads the windows whose predictions it keeps, and all that led to them.
            for _ in 0..self.evaluations {
                let kept = |place: usize| layout.keeper(place).min(last);
                let (earliest, latest) = (kept(start), kept(end - 1));
                start = layout.start(earliest);
                end = if latest == last { frames } else { layout.end(latest).min(frames) };
            }
            // A window that ends here would hold all that is left.
            end = (end + length / 4 + 1).min(frames);
        } else {
            // The first window that covers a frame, and the last.
            let newest = |place: usize| ((place + layout.missing()) / stride).min(last);
            let mut first = newest(start);
            while first > 0 && layout.end(first - 1) > start {
                first -= 1;
            }
            (start, end) = (layout.start(first), layout.end(newest(end - 1)).min(frames));
        }
        // On the same grids of windows and of the decoder's runs.
        let is_on_grid = |place: usize| {
            let windows =
                number(place) % stride as u64 == ((place + layout.missing()) % stride) as u64;
            windows && (!is_wavefront || self.groups.first(place) == place)
        };
        while start > 0 && !is_on_grid(start) {
            start -= 1;
        }
        start..end
    }
}
