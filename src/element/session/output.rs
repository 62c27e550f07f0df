// SPDX-License-Identifier: MPL-2.0

//! A frame's way out of a session.

use std::time::Instant;

use gst::prelude::*;
use ndarray::Array3;

use starsr::geometry::{Interpolation, upscale};
use starsr::upscaler::Run;
use starsr::{Error, Received};

use super::{Facts, HeldBuffer, Outgoing, Session};
use crate::element::frames::RgbFrame;
use crate::element::messages::{Failure, Notice};
use crate::element::pace::Timing;
use crate::element::settings::{OnError, Overload};
use crate::element::stats::ElementStats;

impl Session {
    /// Whether the next window may be bypassed for want of time, so that [`Self::pull`] needs the
    /// timing.
    pub(in super::super) fn may_bypass(&self) -> bool {
        self.settings.overload == Overload::Bypass
            && self.worker.as_ref().is_some_and(|worker| worker.upscaler.next_window().is_some())
    }

    /// The next finished frame, for which the model runs where a window is complete. `None` where
    /// more frames, or a drain, are needed first.
    pub(in super::super) fn pull(&mut self, facts: &Facts) -> Result<Option<Outgoing>, Failure> {
        self.update_prompts(&facts.prompts)?;
        let (running_time, bypassed) = (self.next_running_time(), self.bypassed());
        let received = self.receive(facts.timing.as_ref());
        // A bypassed window's frames leave at once, and those that it has kept for cross-fading at
        // the end of a clip.
        let frames = (self.bypassed() - bypassed) as usize;
        if let (1.., Some(reason)) = (frames, self.bypass_reason) {
            self.notices.push(Notice::Bypassed { running_time, frames, reason });
        }
        self.update_stats()?;
        match received? {
            Received::Frame(pixels) => self.outgoing(pixels).map(Some),
            Received::Drained if !self.held.is_empty() => {
                Err(Failure::Inconsistent(format!("{} frames did not come out", self.held.len())))
            }
            Received::NeedMoreFrames | Received::Drained => Ok(None),
        }
    }

    /// What the upscaler has next. Windows that would be late are bypassed where that is asked for.
    fn receive(&mut self, timing: Option<&Timing>) -> Result<Received, Failure> {
        let running_time = self.next_running_time();
        let worker = self.worker.as_mut().ok_or(Failure::NotNegotiated)?;
        let (Some(timing), Some(frames)) = (timing, worker.upscaler.next_window()) else {
            return self.run_model();
        };
        if timing.is_late(running_time, worker.pace.expected(frames)) {
            worker.pace.skipped();
            self.bypass("overload")?;
            return self.run_model();
        }
        let started = timing.clock.time();
        let received = self.run_model();
        let worker = self.worker.as_mut().ok_or(Failure::NotNegotiated)?;
        worker.pace.measured(timing.clock.time().saturating_sub(started), frames);
        received
    }

    /// Runs the model where a window is complete. A window for which it fails is bypassed where
    /// that is asked for.
    fn run_model(&mut self) -> Result<Received, Failure> {
        let running_time = self.next_running_time();
        let worker = self.worker.as_mut().ok_or(Failure::NotNegotiated)?;
        let received = worker.upscaler.receive_frame();
        let Run { evaluations, time } = worker.upscaler.take_run();
        self.stats.lock().upscale += time;
        let error = match received {
            Ok(received) => {
                if evaluations > 0 {
                    let ElementStats { frames_in, frames_out, .. } = *self.stats.lock();
                    let notice =
                        Notice::Restored { running_time, evaluations, time, frames_in, frames_out };
                    self.notices.push(notice);
                }
                return Ok(received);
            }
            Err(error) => error,
        };
        let is_failure = matches!(error, Error::Inference { .. } | Error::Memory { .. });
        if !is_failure || self.settings.on_error != OnError::Bypass {
            return Err(error.into());
        }
        if !std::mem::replace(&mut self.failure_reported, true) {
            self.notices.push(Notice::ModelFailed(error));
        }
        self.bypass("error")?;
        let worker = self.worker.as_mut().ok_or(Failure::NotNegotiated)?;
        Ok(worker.upscaler.receive_frame()?)
    }

    /// Lets the next window out as the plain upscale.
    fn bypass(&mut self, reason: &'static str) -> Result<(), Failure> {
        let worker = self.worker.as_mut().ok_or(Failure::NotNegotiated)?;
        worker.upscaler.bypass()?;
        self.bypass_reason = Some(reason);
        Ok(())
    }

    /// Puts a frame's pixels together with everything else that belongs to it.
    fn outgoing(&mut self, pixels: Array3<f32>) -> Result<Outgoing, Failure> {
        let surplus = || Failure::Inconsistent("More frames came out than went in".into());
        let HeldBuffer { skeleton, alpha, events } = self.held.pop_front().ok_or_else(surplus)?;
        let worker = self.worker.as_ref().ok_or(Failure::NotNegotiated)?;
        let started = Instant::now();
        let scale = worker.upscaler.scale();
        let alpha =
            alpha.map(|alpha| upscale(alpha.view(), scale, Interpolation::Bicubic)).transpose()?;
        self.stats.lock().convert_out += started.elapsed();
        Ok(Outgoing { skeleton, events, picture: RgbFrame { pixels, alpha } })
    }

    /// Writes a finished frame into the buffer that is pushed next.
    pub(in super::super) fn write(
        &mut self,
        picture: RgbFrame,
        buffer: &mut gst::BufferRef,
    ) -> Result<(), Failure> {
        let worker = self.worker.as_mut().ok_or(Failure::NotNegotiated)?;
        let started = Instant::now();
        worker.converters.writer.write(&picture, buffer).map_err(Failure::Conversion)?;
        worker.upscaler.reuse_frame(picture.pixels);
        let mut stats = self.stats.lock();
        stats.convert_out += started.elapsed();
        stats.frames_out += 1;
        // From here on the source pad's flow result is about the present segment.
        self.stale_flow = false;
        Ok(())
    }

    /// Checks what downstream returned for the last buffer.
    pub(in super::super) fn check_downstream(
        &self,
        flow: Result<gst::FlowSuccess, gst::FlowError>,
    ) -> Result<(), Failure> {
        match flow {
            Err(flow @ (gst::FlowError::Eos | gst::FlowError::Error)) if !self.stale_flow => {
                Err(Failure::Downstream(flow))
            }
            _ => Ok(()),
        }
    }
}
