// SPDX-License-Identifier: MPL-2.0

//! Running the model, and the windows that come out as the plain upscale instead: where it has no time for them, and where it fails.

use std::time::{Duration, Instant};

use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::prelude::*;

use starsr::error::{Error, Result};
use starsr::upscaler::Received;
use starsr::windows;

use super::imp::{CAT, Starsr};
use super::stream::Worker;
use super::{OnError, Overload};

/// Fails with [`Error::Setting`] where windows cannot be left out.
pub(super) fn check_overload(overload: Overload, mode: windows::WindowMode) -> Result<()> {
    if overload == Overload::Bypass && mode == windows::WindowMode::Wavefront {
        let reason =
            "bypass leaves out single windows, but window-mode wavefront restores them together; use blend";
        return Err(Error::Setting { setting: "overload", reason: reason.into() });
    }
    Ok(())
}

/// How long the model takes.
#[derive(Debug, Default)]
pub(super) struct Load {
    /// For a frame of a window.
    per_frame: gst::ClockTime,
}

impl Load {
    /// The time that a window of `frames` will take; none as long as that is unknown.
    fn expected(&self, frames: usize) -> gst::ClockTime {
        self.per_frame.saturating_mul(frames as u64)
    }

    /// A window of `frames` has taken `time`.
    fn measured(&mut self, time: gst::ClockTime, frames: usize) {
        self.per_frame = time / frames.max(1) as u64;
    }

    /// A window was left out. The less certain is what others took, so that the model is tried again before long.
    fn skipped(&mut self) {
        self.per_frame = self.per_frame.mul_div_floor(9, 10).unwrap_or_default();
    }
}

impl Starsr {
    fn now(&self) -> Option<gst::ClockTime> {
        self.obj().clock().map(|clock| clock.time())
    }

    /// Whether this is a live pipeline in which the next frame, leaving after `time`, would be later than the latency allows.
    fn is_late(&self, time: gst::ClockTime) -> bool {
        let mut upstream = gst::query::Latency::new();
        if !self.obj().sink_pad().peer_query(&mut upstream) {
            return false;
        }
        let (true, latency, _) = upstream.result() else { return false };
        let running = self.with_stream(|s| s.next_running_time()).flatten();
        let (Some(running), Some(base), Some(now)) = (running, self.obj().base_time(), self.now()) else {
            return false;
        };
        let allowed = base.saturating_add(running).saturating_add(latency).saturating_add(self.own_latency());
        now.saturating_add(time) > allowed
    }

    /// Lets the next window out as the plain upscale and tells the application.
    fn bypass(&self, worker: &mut Worker, reason: &str) -> Result<()> {
        let running = self.with_stream(|s| s.next_running_time()).flatten();
        let frames = worker.upscaler.bypass()?;
        gst::debug!(CAT, imp = self, "Bypassed {frames} frames from {}: {reason}", running.display());
        let structure = gst::Structure::builder("starsr-bypass")
            .field("running-time", running)
            .field("frames", frames as u64)
            .field("reason", reason)
            .build();
        self.tell(structure);
        Ok(())
    }

    /// What the upscaler has to offer next. Windows that would be late, or for which the model fails, are bypassed where that is asked for.
    pub(super) fn receive(&self, worker: &mut Worker) -> Result<Received> {
        let settings = self.with_stream(|s| (s.settings.overload(), s.settings.on_error()));
        let (overload, on_error) = settings.unwrap_or_default();
        if overload == Overload::Bypass
            && let Some(frames) = worker.upscaler.next_window()
        {
            if self.is_late(worker.load.expected(frames)) {
                worker.load.skipped();
                self.bypass(worker, "overload")?;
            } else {
                let started = self.now();
                let received = self.run_model(worker, on_error);
                if let Some((started, ended)) = started.zip(self.now()) {
                    worker.load.measured(ended.saturating_sub(started), frames);
                }
                return received;
            }
        }
        self.run_model(worker, on_error)
    }

    fn run_model(&self, worker: &mut Worker, on_error: OnError) -> Result<Received> {
        let (before, started) = (worker.upscaler.evaluations(), Instant::now());
        match worker.upscaler.receive_frame() {
            Err(error @ (Error::Inference { .. } | Error::Memory { .. })) if on_error == OnError::Bypass => {
                let reported = self.with_stream(|s| std::mem::replace(&mut s.failure_reported, true));
                if reported == Some(false) {
                    gst::warning!(CAT, imp = self, "{error}");
                    let text = "windows for which the model fails come out as the plain upscale";
                    gst::element_imp_warning!(self, gst::LibraryError::Failed, ("{error}; {text}"));
                }
                self.bypass(worker, "error")?;
                worker.upscaler.receive_frame()
            }
            received => {
                let evaluations = worker.upscaler.evaluations() - before;
                if evaluations > 0 && received.is_ok() {
                    self.progressed(evaluations, started.elapsed());
                }
                received
            }
        }
    }

    /// Tells the application what the model has done.
    fn progressed(&self, evaluations: u64, time: Duration) {
        let running = self.with_stream(|s| s.next_running_time()).flatten();
        gst::debug!(
            CAT,
            imp = self,
            "Restored from {} on: {evaluations} evaluations in {time:?}",
            running.display()
        );
        let (frames_in, frames_out) = {
            let stats = self.stats.lock();
            (stats.frames_in, stats.frames_out)
        };
        let structure = gst::Structure::builder("starsr-progress")
            .field("running-time", running)
            .field("evaluations", evaluations)
            .field("time", u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
            .field("frames-in", frames_in)
            .field("frames-out", frames_out)
            .build();
        self.tell(structure);
    }

    fn tell(&self, structure: gst::Structure) {
        let message = gst::message::Element::builder(structure).src(&*self.obj()).build();
        let _ = self.obj().post_message(message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_windows_take_is_learnt_and_forgotten() {
        let seconds = gst::ClockTime::from_seconds;
        let mut load = Load::default();
        assert_eq!(load.expected(8), gst::ClockTime::ZERO);
        load.measured(seconds(8), 8);
        assert_eq!((load.expected(8), load.expected(2)), (seconds(8), seconds(2)));
        load.measured(seconds(4), 8);
        assert_eq!(load.expected(8), seconds(4));
        // Half of it is tried again after some windows, and nothing is left of it in the end.
        let until =
            |load: &mut Load, time| (0..).find(|_| (load.expected(8) <= time, load.skipped()).0).unwrap();
        assert!((5..=10).contains(&until(&mut load, seconds(2))));
        until(&mut load, gst::ClockTime::ZERO);
        load.measured(gst::ClockTime::MAX, 0);
        assert_eq!(load.expected(usize::MAX), gst::ClockTime::MAX);
    }
}
