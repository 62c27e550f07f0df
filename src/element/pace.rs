// SPDX-License-Identifier: MPL-2.0

//! How long the model takes, and whether a live pipeline has that much time.

use gst::prelude::*;
use gst_base::prelude::*;

/// How long the model takes for a frame of a window, judged by the last window.
#[derive(Debug, Default)]
pub(super) struct Pace {
    per_frame: gst::ClockTime,
}

impl Pace {
    /// The time that a window of `frames` should take; zero before the first window.
    pub(super) fn expected(&self, frames: usize) -> gst::ClockTime {
        self.per_frame.saturating_mul(frames as u64)
    }

    /// Notes that a window of `frames` has taken `time`.
    pub(super) fn measured(&mut self, time: gst::ClockTime, frames: usize) {
        self.per_frame = time / frames.max(1) as u64;
    }

    /// Notes that a window was bypassed. Each one makes the measurement older and the estimate
    /// smaller, so that the model is soon tried again.
    pub(super) fn skipped(&mut self) {
        self.per_frame = self.per_frame.mul_div_floor(9, 10).unwrap_or(gst::ClockTime::ZERO);
    }
}

/// The clock of the pipeline, and when frames are due by it.
#[derive(Debug)]
pub(super) struct Timing {
    pub(super) clock: gst::Clock,
    /// Clock time at which a frame of running time 0 must have left; `None` in a pipeline that is
    /// not live.
    pub(super) due: Option<gst::ClockTime>,
}

impl Timing {
    /// The timing of `element`, which adds `own_latency` to that of upstream. `None` without a
    /// clock.
    pub(super) fn of(
        element: &gst_base::BaseTransform,
        own_latency: gst::ClockTime,
    ) -> Option<Self> {
        let mut upstream = gst::query::Latency::new();
        let answered = element.sink_pad().peer_query(&mut upstream);
        let (live, latency, _) = upstream.result();
        let due = element.base_time().filter(|_| answered && live);
        let due = due.map(|base| base.saturating_add(latency).saturating_add(own_latency));
        Some(Self { clock: element.clock()?, due })
    }

    /// Whether a frame of `running_time` that leaves `time` from now is late.
    pub(super) fn is_late(
        &self,
        running_time: Option<gst::ClockTime>,
        time: gst::ClockTime,
    ) -> bool {
        let (Some(due), Some(running_time)) = (self.due, running_time) else { return false };
        self.clock.time().saturating_add(time) > due.saturating_add(running_time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_learnt_and_forgotten() {
        let seconds = gst::ClockTime::from_seconds;
        let mut pace = Pace::default();
        assert_eq!(pace.expected(8), gst::ClockTime::ZERO);
        pace.measured(seconds(8), 8);
        assert_eq!((pace.expected(8), pace.expected(2)), (seconds(8), seconds(2)));
        pace.measured(seconds(4), 8);
        assert_eq!(pace.expected(8), seconds(4));
        // After some bypassed windows half the estimate is left, and in the end nothing.
        let until = |pace: &mut Pace, time| {
            (0..1000).find(|_| (pace.expected(8) <= time, pace.skipped()).0).unwrap()
        };
        assert!((5..=10).contains(&until(&mut pace, seconds(2))));
        until(&mut pace, gst::ClockTime::ZERO);
        pace.measured(gst::ClockTime::MAX, 0);
        assert_eq!(pace.expected(usize::MAX), gst::ClockTime::MAX);
    }

    #[test]
    fn only_live_frames_with_a_time_can_be_late() {
        gst::init().unwrap();
        let seconds = gst::ClockTime::from_seconds;
        let clock = gst_check::TestClock::new();
        clock.set_time(seconds(10));
        let mut timing = Timing { clock: clock.upcast(), due: Some(seconds(4)) };
        for (running_time, time, late) in [(6, 0, false), (6, 1, true), (7, 1, false), (0, 0, true)]
        {
            assert_eq!(timing.is_late(Some(seconds(running_time)), seconds(time)), late);
        }
        assert!(timing.is_late(Some(gst::ClockTime::ZERO), gst::ClockTime::MAX));
        assert!(!timing.is_late(None, gst::ClockTime::MAX));
        timing.due = None;
        assert!(!timing.is_late(Some(gst::ClockTime::ZERO), gst::ClockTime::MAX));
    }
}
