// SPDX-License-Identifier: MPL-2.0

//! A part of the input.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use gst::prelude::*;

use super::counts::running_time;

/// How much earlier than needed FFmpeg begins to decode, in seconds: some formats have no index of
/// the frames at which decoding can begin.
const LEAD: f64 = 20.0;

/// FFmpeg's bitstream filter for what is in front of the part, where the times count from its
/// beginning.
pub const NOT_BEFORE: &str = "noise=drop=lt(pts\\,0)";

/// Where the part begins, and how long it is, in seconds.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    pub start: f64,
    pub duration: Option<f64>,
}

impl Cut {
    /// How long the part is of an input that may be known to be `all` long.
    pub fn of(&self, all: Option<gst::ClockTime>) -> Option<gst::ClockTime> {
        let start = gst::ClockTime::from_seconds_f64(self.start);
        let rest = all.map(|all| all.saturating_sub(start));
        let wanted = self.duration.map(gst::ClockTime::from_seconds_f64);
        rest.into_iter().chain(wanted).min()
    }

    /// Lets FFmpeg skip most of what is in front of the part in its next input.
    pub fn skip(&self, command: &mut Command) {
        if self.start > LEAD {
            command.args(["-ss", &(self.start - LEAD).to_string()]);
        }
    }

    /// FFmpeg's filter for the frames of the part in an input whose times begin at `origin`.
    pub fn filter(&self, origin: f64) -> String {
        let start = self.start + origin;
        match self.duration {
            Some(duration) => format!("trim=start={start}:end={}", start + duration),
            None => format!("trim=start={start}"),
        }
    }

    /// Lets FFmpeg end its next output with the part.
    pub fn limit(&self, command: &mut Command) {
        if let Some(duration) = self.duration {
            command.args(["-t", &duration.to_string()]);
        }
    }

    /// Lets only the part of the stream leave `pad`, at times that count from its beginning.
    pub fn clip(self, pad: &gst::Pad) {
        let time = |seconds: f64| gst::ClockTime::from_seconds_f64(seconds);
        let (start, stop) = (time(self.start), self.duration.map(|d| time(self.start + d)));
        pad.set_offset(-i64::try_from(start.nseconds()).unwrap_or(i64::MAX));
        let ended = AtomicBool::new(false);
        pad.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
            let Some(time) = info.buffer().and_then(|buffer| running_time(pad, buffer.pts()?))
            else {
                return gst::PadProbeReturn::Ok;
            };
            if stop.is_some_and(|stop| time >= stop) {
                if !ended.swap(true, Ordering::SeqCst) {
                    pad.push_event(gst::event::Eos::new());
                }
                info.flow_res = Err(gst::FlowError::Eos);
                return gst::PadProbeReturn::Handled;
            }
            if time < start { gst::PadProbeReturn::Drop } else { gst::PadProbeReturn::Ok }
        });
    }
}
