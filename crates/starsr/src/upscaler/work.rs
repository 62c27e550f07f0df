// SPDX-License-Identifier: MPL-2.0

//! The work that [`Upscaler::receive_frame`] does: windows restored one by one or together, in tiles that memory allows, or not at all.

use std::ops::Range;
use std::time::{Duration, Instant};

use ndarray::{Array3, Array4, Axis};

use crate::error::{Error, Result};
use crate::windows::{Window, cross_fade};

use super::{Pending, Progress, Upscaler};

impl Upscaler {
    /// Finishes the next window without the model: its frames are the plain upscale, cross-faded with its neighbours like any other.
    /// With `Wavefront` all frames inside are given out so, and what follows is a new clip. Gives the number of frames that leave so.
    /// Also possible after [`Self::receive_frame`] has failed.
    pub fn bypass(&mut self) -> Result<usize> {
        let clock = Instant::now();
        let bypassed = match &mut self.progress {
            Progress::Blend { closed, .. } => {
                let Some(window) = closed.pop_front() else { return Ok(0) };
                let plain = self.plain(window.start - self.first..window.end - self.first)?;
                self.settle(window, plain, true)?
            }
            Progress::Wavefront { .. } => {
                let plain = self.plain(0..self.pending.len())?;
                let frames = plain.len();
                self.ready.extend(plain);
                self.pending.clear();
                self.first += frames;
                self.restart_wavefront();
                frames
            }
        };
        lap(&mut self.stats.finish, clock);
        self.stats.bypassed += bypassed as u64;
        Ok(bypassed)
    }

    /// Does the next piece of work; false when there is none without further frames. Where memory is too short for it, in smaller tiles:
    /// a window begins anew then, while a wavefront goes on with the latents it has.
    pub(super) fn advance(&mut self) -> Result<bool> {
        loop {
            let result = match &mut self.progress {
                Progress::Blend { closed, tail, plain_tail, .. } => match closed.front().copied() {
                    Some(window) => self.sample_window(window).map(|()| true),
                    None if self.flushing && !tail.is_empty() => {
                        if *plain_tail {
                            self.stats.bypassed += tail.len() as u64;
                        }
                        self.ready.append(tail);
                        Ok(true)
                    }
                    None => Ok(false),
                },
                Progress::Wavefront { .. } => self.advance_wavefront(),
            };
            let Err(Error::Memory { graph, reason }) = result else { return result };
            let (width, height) = self.picture.tile_size();
            let Some(size) = self.picture.reduce_tiles() else {
                let frames = self.windows.length();
                let reason = format!(
                    "{reason}; this was for windows of {frames} frames in tiles of {width}x{height} pixels, and the bundle takes none \
                     that are smaller"
                );
                return Err(Error::Memory { graph, reason });
            };
            self.reduced = Some(size);
        }
    }

    /// Restores one window on its own and cross-fades it with the one before.
    fn sample_window(&mut self, window: Window) -> Result<()> {
        let frames = window.start - self.first..window.end - self.first;
        let clock = Instant::now();
        let numbers: Vec<u64> = self.pending.range(frames.clone()).map(|p| p.number).collect();
        let low = || self.pending.range(frames.clone()).map(|p| &p.low);
        let prepared = self.picture.prepare(low(), &self.cancel)?;
        let mut clock = lap(&mut self.stats.prepare, clock);

        let (model, noise, cancel) = (self.model.as_mut(), self.noise.as_ref(), &self.cancel);
        let hint = self.picture.encode(model, prepared.view(), &numbers, noise, cancel)?;
        drop(prepared);
        clock = lap(&mut self.stats.encode, clock);
        let mut denoiser = self.picture.denoiser(model, cancel);
        let restored =
            self.sampler.sample(&mut denoiser, hint.view(), &numbers, noise, &self.conditioning, cancel)?;
        drop(hint);
        self.stats.windows += 1;
        clock = lap(&mut self.stats.sample, clock);
        let mut results = Vec::with_capacity(numbers.len());
        for group in self.groups.all(numbers.len()) {
            let canvases = self.picture.decode(model, restored.view(), &group, cancel)?;
            clock = lap(&mut self.stats.decode, clock);
            let low = low().skip(group.kept.start).take(group.kept.len());
            results.extend(self.picture.finish(canvases.view(), low, cancel)?);
            clock = lap(&mut self.stats.finish, clock);
        }
        drop(restored);
        if let Progress::Blend { closed, .. } = &mut self.progress {
            closed.pop_front();
        }
        self.settle(window, results, false)?;
        lap(&mut self.stats.finish, clock);
        Ok(())
    }

    /// Cross-fades the `results` of a window, taken from those that are closed, with the one before, and lets out what no further
    /// window shares; gives the number of those frames. `plain` results are not the model's.
    fn settle(&mut self, window: Window, results: Vec<Array3<f32>>, plain: bool) -> Result<usize> {
        let Progress::Blend { planner, closed, next, tail, plain_tail } = &mut self.progress else {
            return Ok(0);
        };
        let windows = planner.windows();
        *plain_tail = plain;
        let k = *next;
        *next += 1;
        // The clip may end here: then there is no further window to share frames with.
        let last = self.flushing && closed.is_empty();
        let settled = if last { window.end } else { windows.start(k + 1) };
        let mut before = std::mem::take(tail);
        for (frame, mut result) in (window.start..).zip(results) {
            if let Some(mut mixed) = before.pop_front() {
                cross_fade(&mut mixed, result.view(), windows.weight(k, frame))?;
                result = mixed;
            }
            if frame < settled {
                self.ready.push_back(result);
            } else {
                tail.push_back(result);
            }
        }
        let frames = settled - self.first;
        self.pending.drain(..frames);
        self.first = settled;
        Ok(frames)
    }

    /// Encodes new frames, runs every evaluation that can be run, and decodes what is restored.
    fn advance_wavefront(&mut self) -> Result<bool> {
        let Progress::Wavefront { wavefront, restored, encoded, context } = &mut self.progress else {
            return Ok(false);
        };
        let (model, noise, cancel) = (self.model.as_mut(), self.noise.as_ref(), &self.cancel);
        let mut worked = false;
        for pending in self.pending.range(*encoded..) {
            let clock = Instant::now();
            let prepared = self.picture.prepare([&pending.low].into_iter(), cancel)?;
            let clock = lap(&mut self.stats.prepare, clock);
            let hint = self.picture.encode(model, prepared.view(), &[pending.number], noise, cancel)?;
            wavefront.push(pending.number, hint.index_axis_move(Axis(0), 0))?;
            lap(&mut self.stats.encode, clock);
            *encoded += 1;
            worked = true;
        }

        let clock = Instant::now();
        if self.flushing && !self.pending.is_empty() {
            wavefront.finish();
        }
        let mut denoiser = self.picture.denoiser(model, cancel);
        restored.extend(wavefront.advance(&mut denoiser, noise, &self.conditioning, cancel)?);
        let mut clock = lap(&mut self.stats.sample, clock);

        while let Some(group) = self.groups.next(*context, restored.len(), self.flushing) {
            let frames = group.kept.len();
            let forgotten = group.kept.end.saturating_sub(self.groups.overlap());
            let latents = stack(restored.range(..group.decoded.end));
            let canvases = self.picture.decode(model, latents.view(), &group, cancel)?;
            restored.drain(..forgotten);
            *context = group.kept.end - forgotten;
            clock = lap(&mut self.stats.decode, clock);
            let low = self.pending.range(..frames).map(|p| &p.low);
            self.ready.extend(self.picture.finish(canvases.view(), low, cancel)?);
            self.pending.drain(..frames);
            clock = lap(&mut self.stats.finish, clock);
            *encoded -= frames;
            self.first += frames;
            worked = true;
        }
        Ok(worked)
    }

    /// Pending frames enlarged without the model.
    fn plain(&self, frames: Range<usize>) -> Result<Vec<Array3<f32>>> {
        let enlarge = |p: &Pending| self.cancel.check().and_then(|()| self.picture.enlarge(p.low.view()));
        self.pending.range(frames).map(enlarge).collect()
    }

    /// Forgets how far the windows of `Wavefront` are; begins anew with the frames that have not come out.
    pub(super) fn restart_wavefront(&mut self) {
        if let Progress::Wavefront { wavefront, restored, encoded, context } = &mut self.progress {
            (*encoded, *context) = (0, 0);
            wavefront.reset();
            restored.clear();
        }
    }
}

/// Frames `[C,h,w]` of one shape as `[F,C,h,w]`.
fn stack<'a>(frames: impl Iterator<Item = &'a Array3<f32>>) -> Array4<f32> {
    let views: Vec<_> = frames.map(|f| f.view()).collect();
    ndarray::stack(Axis(0), &views).unwrap_or_default()
}

/// Adds the time since `clock` to `total` and starts anew.
fn lap(total: &mut Duration, clock: Instant) -> Instant {
    let now = Instant::now();
    *total += now - clock;
    now
}
