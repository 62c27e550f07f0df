// SPDX-License-Identifier: MPL-2.0

//! Windows whose predictions are merged at every step, so that they are restored together.

use std::collections::VecDeque;

use ndarray::{Array3, Array4, Axis};

use super::clip::{Clip, WindowJoin};
use super::decode_groups::DecodeGroups;
use crate::diffusion::sampler::Sampler;
use crate::diffusion::wavefront::Wavefront;
use crate::error::Result;
use crate::windows::Windows;

/// How far the windows of a clip are with
/// [`WindowMode::Wavefront`](crate::windows::WindowMode::Wavefront).
pub(super) struct WavefrontWindows {
    wavefront: Wavefront,
    layout: Windows,
    /// Restored latents: those that later groups need as context, then those that wait to be
    /// decoded.
    restored: VecDeque<Array3<f32>>,
    /// Frames that have been encoded, counted from the first that has not come out.
    encoded: usize,
    /// Decoded frames whose latents are kept as context.
    context: usize,
}

impl WavefrontWindows {
    pub(super) fn new(sampler: Sampler, layout: Windows) -> Result<Self> {
        let wavefront = Wavefront::new(sampler, layout.length(), layout.overlap())?;
        Ok(Self { wavefront, layout, restored: VecDeque::new(), encoded: 0, context: 0 })
    }
}

impl WindowJoin for WavefrontWindows {
    // Frames are encoded one by one when there is time for work, and the wavefront counts them
    // then.
    fn push(&mut self, _number: u64) {}

    fn flush(&mut self) {}

    /// Encodes new frames, runs every evaluation that can be run, and decodes what is restored.
    fn advance(&mut self, clip: &mut Clip) -> Result<bool> {
        let mut worked = false;
        for place in clip.inside().skip(self.encoded) {
            let hint = clip.encode(place..place + 1, None)?;
            let number = clip.numbers(place..place + 1)[0];
            self.wavefront.push(number, hint.view().index_axis_move(Axis(0), 0).to_owned())?;
            self.encoded += 1;
            worked = true;
        }
        if clip.ended && !clip.inside().is_empty() {
            self.wavefront.finish();
        }
        self.restored.extend(clip.sample(|model, noise, conditioning, cancel| {
            self.wavefront.advance(model, noise, conditioning, cancel)
        })?);

        while let Some(group) = clip.groups.next(self.context, self.restored.len(), clip.ended) {
            let forgotten = group.kept.end.saturating_sub(clip.groups.overlap());
            let latents = stack(self.restored.range(..group.decoded.end));
            let next = clip.inside().start;
            let (kept, end) = (group.kept.start, group.kept.end);
            let finished = clip.decode(latents.view(), std::iter::once(group), next - kept)?;
            self.restored.drain(..forgotten);
            self.context = end - forgotten;
            self.encoded -= finished.len();
            clip.release(next + finished.len());
            clip.ready.extend(finished);
            worked = true;
        }
        Ok(worked)
    }

    fn bypass(&mut self, clip: &mut Clip) -> Result<usize> {
        let inside = clip.inside();
        let plain = clip.plain(inside.clone())?;
        clip.ready.extend(plain);
        self.reset();
        Ok(clip.release(inside.end))
    }

    /// Begins anew with the frames that have not come out.
    fn reset(&mut self) {
        self.wavefront.reset();
        self.restored.clear();
        (self.encoded, self.context) = (0, 0);
    }

    fn next_window(&self) -> Option<usize> {
        None
    }

    fn sampler(&self) -> Option<&Sampler> {
        Some(self.wavefront.sampler())
    }

    fn sampler_mut(&mut self) -> Option<&mut Sampler> {
        Some(self.wavefront.sampler_mut())
    }

    fn latency(&self, groups: &DecodeGroups) -> usize {
        self.layout.latency(self.wavefront.sampler().evaluations()) + groups.latency()
    }
}

/// Frames `[C,h,w]` of one shape as `[F,C,h,w]`.
fn stack<'a>(frames: impl Iterator<Item = &'a Array3<f32>>) -> Array4<f32> {
    let views: Vec<_> = frames.map(|f| f.view()).collect();
    ndarray::stack(Axis(0), &views).unwrap_or_default()
}
