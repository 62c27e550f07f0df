// SPDX-License-Identifier: MPL-2.0

//! Where a film is divided.

use std::ops::Range;

use gststarsr::planning::Context;
use serde::{Deserialize, Serialize};

/// The least number of frames of a segment by default.
const LEAST: u64 = 300;
/// By default a segment is at least this many times as long as its context, so that little is
/// restored twice.
const TIMES_CONTEXT: u64 = 8;

/// Frames that are restored in one piece, as places in the film.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The frames of its part.
    pub frames: Range<u64>,
    /// Those frames and all others that they depend on.
    pub context: Range<u64>,
}

/// The film that is divided.
pub struct Film<'a> {
    pub frames: u64,
    /// The first frame of each clip.
    pub clips: &'a [u64],
    pub context: &'a Context,
    /// The absolute number of the frame at a place.
    pub number: &'a dyn Fn(u64) -> u64,
}

impl Film<'_> {
    /// Segments of about `length` frames. They begin with clips where there are some within half a
    /// length, and else where windows begin.
    pub fn divide(&self, length: Option<u64>) -> Vec<Segment> {
        let length = length.unwrap_or_else(|| self.length()).max(1);
        let mut borders = vec![0];
        let mut start = 0;
        while start + length + length / 2 < self.frames {
            start = self.border(start, length);
            borders.push(start);
        }
        borders.push(self.frames);
        borders
            .windows(2)
            .map(|pair| Segment {
                frames: pair[0]..pair[1],
                context: self.around(pair[0]..pair[1]),
            })
            .collect()
    }

    /// The length of segments by default.
    fn length(&self) -> u64 {
        let (long, middle) = (1 << 20, 1 << 19);
        let stride = self.context.stride();
        let fed = self.context.around(middle..middle + stride, long, |place| place as u64);
        LEAST.max(TIMES_CONTEXT * (fed.len() - stride) as u64)
    }

    /// The clip that the frame at `place` is in.
    fn clip(&self, place: u64) -> Range<u64> {
        let next = self.clips.partition_point(|first| *first <= place);
        let first = next.checked_sub(1).and_then(|at| self.clips.get(at)).copied().unwrap_or(0);
        first..self.clips.get(next).copied().unwrap_or(self.frames)
    }

    /// Where the segment ends that begins at `start`.
    fn border(&self, start: u64, length: u64) -> u64 {
        let ideal = start + length;
        let near = (start + (length / 2).max(1))..=(ideal + length / 2);
        let from = self.clips.partition_point(|first| first < near.start());
        let cuts = self.clips[from..].iter().take_while(|first| near.contains(*first));
        if let Some(cut) = cuts.min_by_key(|first| first.abs_diff(ideal)) {
            return *cut;
        }
        let clip = self.clip(ideal);
        let stride = self.context.stride() as u64;
        // Windows begin at the multiples of the stride, counted from the clip's first frame.
        let phase = ((self.number)(clip.start) + ideal - clip.start) % stride;
        let before = ideal - phase;
        if before > start.max(clip.start) { before } else { (before + stride).min(self.frames) }
    }

    /// `frames` with those of their clips that they depend on.
    fn around(&self, frames: Range<u64>) -> Range<u64> {
        let within = |clip: &Range<u64>, wanted: Range<u64>| {
            let place = |frame: u64| (frame - clip.start) as usize;
            let number = |place: usize| (self.number)(clip.start + place as u64);
            let wanted = place(wanted.start)..place(wanted.end);
            let fed = self.context.around(wanted, place(clip.end), number);
            clip.start + fed.start as u64..clip.start + fed.end as u64
        };
        let (first, last) = (self.clip(frames.start), self.clip(frames.end - 1));
        let start = within(&first, frames.start..frames.end.min(first.end)).start;
        let end = within(&last, frames.start.max(last.start)..frames.end).end;
        start..end
    }
}
