// SPDX-License-Identifier: MPL-2.0

//! How far the work has come.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::elements::always_pad;
use gst::prelude::*;

/// The frames that have passed starsr, and all that moves.
#[derive(Default)]
pub struct Counts {
    moved: AtomicU64,
    taken: AtomicU64,
    done: AtomicU64,
    /// Times of the first frame and of the end of the last finished one, in ns plus one; 0 before
    /// that frame.
    first: AtomicU64,
    last: AtomicU64,
    /// What the input calls the pipeline's beginning, in ns.
    start: AtomicU64,
    /// The latest end of a packet of any stream, in ns.
    furthest: AtomicU64,
}

/// When the first frame is shown.
#[derive(Debug, Clone, Copy)]
pub struct Beginning {
    /// As the input counts time.
    pub in_input: gst::ClockTime,
    /// Since the pipeline's beginning.
    pub running: gst::ClockTime,
}

impl Counts {
    /// Buffers that have entered or left the pipeline, or passed starsr.
    pub fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Frames that went in.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Frames that came out.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// When the first frame is shown, as the input and as the pipeline count time.
    pub fn first(&self) -> Beginning {
        let first = self.first.load(Ordering::Relaxed).saturating_sub(1);
        let start = self.start.load(Ordering::Relaxed);
        Beginning {
            in_input: gst::ClockTime::from_nseconds(first),
            running: gst::ClockTime::from_nseconds(first.saturating_sub(start)),
        }
    }

    /// Time from the first frame to the end of the last finished one.
    pub fn position(&self) -> Option<gst::ClockTime> {
        let (first, last) = (self.first.load(Ordering::Relaxed), self.last.load(Ordering::Relaxed));
        (first > 0 && last > 0).then(|| gst::ClockTime::from_nseconds(last.saturating_sub(first)))
    }

    /// The latest time that any stream of the input reaches.
    pub fn furthest(&self) -> gst::ClockTime {
        gst::ClockTime::from_nseconds(self.furthest.load(Ordering::Relaxed))
    }

    /// Notes how far the stream at `pad` reaches.
    pub fn watch_end(self: &Arc<Self>, pad: &gst::Pad) {
        let counts = self.clone();
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            if let Some(buffer) = info.buffer()
                && let Some(pts) = buffer.pts()
            {
                let end = pts.saturating_add(buffer.duration().unwrap_or_default());
                counts.furthest.fetch_max(end.nseconds(), Ordering::Relaxed);
            }
            gst::PadProbeReturn::Ok
        });
    }

    /// Counts what passes `pad`.
    pub fn watch_pad(self: &Arc<Self>, pad: &gst::Pad) {
        let counts = self.clone();
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, _| {
            counts.moved.fetch_add(1, Ordering::Relaxed);
            gst::PadProbeReturn::Ok
        });
    }

    pub fn watch(self: &Arc<Self>, starsr: &gst::Element) -> Result<(), String> {
        let pts = |info: &gst::PadProbeInfo| info.buffer().and_then(|buffer| buffer.pts());
        let counts = self.clone();
        always_pad(starsr, "sink")?.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
            counts.taken.fetch_add(1, Ordering::Relaxed);
            if counts.first.load(Ordering::Relaxed) == 0
                && let Some(pts) = pts(info)
            {
                counts.first.store(pts.nseconds().saturating_add(1), Ordering::Relaxed);
                let start = pts.saturating_sub(running_time(pad, pts).unwrap_or(pts));
                counts.start.store(start.nseconds(), Ordering::Relaxed);
            }
            gst::PadProbeReturn::Ok
        });
        self.watch_done(&always_pad(starsr, "src")?);
        Ok(())
    }

    /// Counts the frames that pass `pad` as finished.
    pub fn watch_done(self: &Arc<Self>, pad: &gst::Pad) {
        let counts = self.clone();
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            counts.done.fetch_add(1, Ordering::Relaxed);
            let duration = info.buffer().and_then(|buffer| buffer.duration()).unwrap_or_default();
            let pts = info.buffer().and_then(|buffer| buffer.pts());
            let end =
                pts.map_or(0, |pts| pts.saturating_add(duration).nseconds().saturating_add(1));
            counts.last.store(end, Ordering::Relaxed);
            gst::PadProbeReturn::Ok
        });
    }
}

/// The running time of `pts` on `pad`, which is its time in the output.
pub fn running_time(pad: &gst::Pad, pts: gst::ClockTime) -> Option<gst::ClockTime> {
    let segment = pad.sticky_event::<gst::event::Segment>(0)?;
    segment.segment().downcast_ref::<gst::ClockTime>()?.to_running_time(pts)
}
