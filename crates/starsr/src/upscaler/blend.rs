// SPDX-License-Identifier: MPL-2.0

//! Windows that are restored one by one, and cross-faded with their neighbours.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Instant;

use ndarray::Array3;

use super::clip::{Canvases, Clip, WindowJoin, lap};
use super::decode_groups::DecodeGroups;
use crate::diffusion::sampler::Sampler;
use crate::error::{Error, Result};
use crate::model::Samples;
use crate::windows::{Planner, Window, Windows, cross_fade};

/// How far the windows of a clip are with [`WindowMode::Blend`](crate::windows::WindowMode::Blend).
pub(super) struct BlendWindows {
    /// `None` where the model restores frames without one.
    sampler: Option<Sampler>,
    planner: Planner,
    /// Complete windows that wait to be sampled.
    closed: VecDeque<Window>,
    /// Number of the next window.
    next: usize,
    /// Frames of the last window that the next one covers too.
    tail: VecDeque<Array3<f32>>,
    /// Whether the last window is not the model's work.
    plain_tail: bool,
    /// Low-quality latents of frames that the next window shares with the last, and the place of
    /// the first of them in the clip.
    shared: Option<(usize, Samples)>,
    /// What a model without sampler made of the next window while the last was finished.
    ahead: Option<Canvases>,
}

impl BlendWindows {
    pub(super) fn new(sampler: Option<Sampler>, layout: Windows) -> Self {
        Self {
            sampler,
            planner: layout.planner(),
            closed: VecDeque::new(),
            next: 0,
            tail: VecDeque::new(),
            plain_tail: false,
            shared: None,
            ahead: None,
        }
    }

    /// Restores one window on its own and cross-fades it with the one before.
    fn restore(&mut self, window: Window, clip: &mut Clip) -> Result<()> {
        let results = self.finished(window, clip)?;
        clip.times.windows += 1;
        let clock = Instant::now();
        self.settle(results, false, clip)?;
        lap(&mut clip.times.finish, clock);
        Ok(())
    }

    /// The finished frames of one window.
    fn finished(&mut self, window: Window, clip: &mut Clip) -> Result<Vec<Array3<f32>>> {
        let places = window.start..window.end;
        let Some(sampler) = &mut self.sampler else { return self.upscaled(places, clip) };
        let cadence = clip.path.cadence();
        let numbers = cadence.numbers(&clip.numbers(places.clone()));
        let shared = self
            .shared
            .take()
            .filter(|(place, latents)| *place == window.start && latents.dim().0 <= window.len());
        let hint = clip.encode(places, shared.map(|(_, latents)| latents))?;
        let restored = clip.sample(|model, noise, conditioning, cancel| {
            sampler.sample(model, hint.view(), &numbers, noise, conditioning, cancel)
        })?;
        let next = self.planner.windows().start(self.next + 1);
        // Latents of several frames depend on where their window starts.
        if next < window.end && !cadence.joins_frames() {
            let shared = clip.path.keep(&hint, next - window.start..window.len())?;
            self.shared = Some((next, shared));
        }
        drop(hint);
        loop {
            let groups = clip.groups.of_window(window.len(), cadence);
            match clip.decode(restored.view(), groups.into_iter(), window.start) {
                // What is restored is too dear to begin anew in smaller tiles.
                Err(Error::Memory { .. }) if clip.groups.shorten() => {}
                results => return results,
            }
        }
    }

    /// The finished frames at `places` of the clip, the first closed window, which the model restores
    /// without a sampler. If it leaves the processor to other work, it restores the next window while
    /// this one is finished.
    fn upscaled(&mut self, places: Range<usize>, clip: &mut Clip) -> Result<Vec<Array3<f32>>> {
        let canvases = match self.ahead.take() {
            Some(canvases) if canvases.places == places => canvases,
            _ => clip.upscale(places)?,
        };
        let next = self.closed.get(1).filter(|_| clip.computes_elsewhere());
        let (finished, ahead) = clip.finish(canvases, next.map(|window| window.start..window.end));
        // What fails now is tried again when that window's turn comes.
        self.ahead = ahead.and_then(Result::ok);
        finished
    }

    /// Cross-fades the `results` of the first closed window with the window before, and lets out
    /// what no further window shares; gives the number of those frames. `plain` results are not the
    /// model's.
    fn settle(&mut self, results: Vec<Array3<f32>>, plain: bool, clip: &mut Clip) -> Result<usize> {
        let Some(window) = self.closed.pop_front() else { return Ok(0) };
        let windows = self.planner.windows();
        self.plain_tail = plain;
        let k = self.next;
        self.next += 1;
        // The clip may end here: then there is no further window to share frames with.
        let last = clip.ended && self.closed.is_empty();
        let settled = if last { window.end } else { windows.start(k + 1) };
        let mut before = std::mem::take(&mut self.tail);
        for (frame, mut result) in (window.start..).zip(results) {
            if let Some(mut mixed) = before.pop_front() {
                let threads = clip.path.threads();
                cross_fade(&mut mixed, result.view(), windows.weight(k, frame), threads)?;
                clip.path.reuse(std::mem::replace(&mut result, mixed));
            }
            if frame < settled {
                clip.ready.push_back(result);
            } else {
                self.tail.push_back(result);
            }
        }
        Ok(clip.release(settled))
    }
}

impl WindowJoin for BlendWindows {
    fn push(&mut self, number: u64) {
        self.closed.extend(self.planner.push(number));
    }

    fn flush(&mut self) {
        self.closed.extend(self.planner.finish());
    }

    fn advance(&mut self, clip: &mut Clip) -> Result<bool> {
        if let Some(&window) = self.closed.front() {
            self.restore(window, clip)?;
            return Ok(true);
        }
        if !clip.ended || self.tail.is_empty() {
            return Ok(false);
        }
        if self.plain_tail {
            clip.times.bypassed += self.tail.len() as u64;
        }
        clip.ready.append(&mut self.tail);
        Ok(true)
    }

    fn bypass(&mut self, clip: &mut Clip) -> Result<usize> {
        let Some(&window) = self.closed.front() else { return Ok(0) };
        let plain = clip.plain(window.start..window.end)?;
        self.settle(plain, true, clip)
    }

    fn reset(&mut self) {
        self.planner = self.planner.windows().planner();
        self.closed.clear();
        self.next = 0;
        self.tail.clear();
        self.shared = None;
        self.ahead = None;
        if let Some(sampler) = &mut self.sampler {
            sampler.free_memory();
        }
    }

    fn next_window(&self) -> Option<usize> {
        self.closed.front().map(Window::len)
    }

    fn sampler(&self) -> Option<&Sampler> {
        self.sampler.as_ref()
    }

    fn sampler_mut(&mut self) -> Option<&mut Sampler> {
        self.sampler.as_mut()
    }

    fn latency(&self, _groups: &DecodeGroups) -> usize {
        let evaluations = self.sampler.as_ref().map_or(1, Sampler::evaluations);
        self.planner.windows().latency(evaluations)
    }
}
