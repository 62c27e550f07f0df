// SPDX-License-Identifier: MPL-2.0

//! The absolute number of each frame, which selects its noise.

use gst::prelude::*;

/// Numbers frames by their stream time, so that a seek lands on the same numbers. Counts them where
/// the framerate varies or the time is unknown.
#[derive(Debug, Default)]
pub(super) struct Numbering {
    /// Frames per second; `None` where it varies.
    fps: Option<gst::Fraction>,
    /// The last number of the present clip.
    last: Option<u64>,
    /// The next number by counting.
    next: u64,
    /// The next number where upstream has stated it.
    stated: Option<u64>,
}

impl Numbering {
    /// Sets the framerate; 0/1 is a variable framerate.
    pub(super) fn set_framerate(&mut self, fps: gst::Fraction) {
        self.fps = (fps.numer() > 0 && fps.denom() > 0).then_some(fps);
    }

    /// Starts a clip, whose first number need not follow the last one.
    pub(super) fn cut(&mut self) {
        self.last = None;
    }

    /// Takes the next frame's number from upstream.
    pub(super) fn state(&mut self, number: u64) {
        self.stated = Some(number);
    }

    /// Forgets all numbers. Counting starts at 0 again.
    pub(super) fn restart(&mut self) {
        self.last = None;
        self.next = 0;
        self.stated = None;
    }

    fn keyed(&self, stream_time: Option<gst::ClockTime>) -> Option<u64> {
        let fps = self.fps?;
        let (num, den) = (u64::try_from(fps.numer()).ok()?, u64::try_from(fps.denom()).ok()?);
        stream_time?
            .nseconds()
            .mul_div_round(num, den.checked_mul(gst::ClockTime::SECOND.nseconds())?)
    }

    /// Whether a frame at `stream_time` is more than about a second away from its predecessor, and
    /// so does not belong to the same clip. One whose number is stated does.
    pub(super) fn is_jump(&self, stream_time: Option<gst::ClockTime>) -> bool {
        if self.stated.is_some() {
            return false;
        }
        let (Some(last), Some(number)) = (self.last, self.keyed(stream_time)) else { return false };
        let tolerance = self.fps.map_or(2, |fps| (fps.numer() / fps.denom()).max(2) as u64);
        number.abs_diff(last.saturating_add(1)) > tolerance
    }

    /// The number of the next frame: the one stated, or by its stream time, or one more than the
    /// last where the time is unknown or not later.
    pub(super) fn number(&mut self, stream_time: Option<gst::ClockTime>) -> u64 {
        let number = match (self.stated.take(), self.keyed(stream_time), self.last) {
            (Some(stated), ..) => stated,
            (None, Some(keyed), Some(last)) => keyed.max(last.saturating_add(1)),
            (None, Some(keyed), None) => keyed,
            (None, None, _) => self.next,
        };
        self.last = Some(number);
        self.next = number.saturating_add(1);
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(fps: (i32, i32)) -> Numbering {
        gst::init().unwrap();
        let mut numbering = Numbering::default();
        numbering.set_framerate(gst::Fraction::new(fps.0, fps.1));
        numbering
    }

    #[test]
    fn stream_time_gives_the_number() {
        let mut n = at((30000, 1001));
        for k in [0u64, 1, 2, 29, 30, 1_000_000] {
            // As a container with a clock of 1 ms would round it.
            let ms = (k * 1_001_000 + 15_000) / 30_000;
            assert_eq!(n.number(Some(gst::ClockTime::from_mseconds(ms))), k);
        }
    }

    #[test]
    fn a_seek_lands_on_the_same_numbers() {
        let mut n = at((25, 1));
        n.number(Some(gst::ClockTime::from_seconds(4)));
        n.restart();
        assert_eq!(n.number(Some(gst::ClockTime::from_seconds(2))), 50);
        assert_eq!(n.number(None), 51);
    }

    #[test]
    fn numbers_rise_within_a_clip() {
        let mut n = at((25, 1));
        let time = Some(gst::ClockTime::from_mseconds(80));
        assert_eq!(
            [n.number(time), n.number(time), n.number(Some(gst::ClockTime::ZERO))],
            [2, 3, 4]
        );
        n.cut();
        assert_eq!(n.number(time), 2);
    }

    #[test]
    fn a_variable_framerate_is_counted() {
        let mut n = at((0, 1));
        let numbers: Vec<_> =
            [5, 9, 2].map(|s| n.number(Some(gst::ClockTime::from_seconds(s)))).into();
        assert_eq!(numbers, [0, 1, 2]);
        n.cut();
        assert_eq!(n.number(None), 3);
    }

    #[test]
    fn a_stated_number_counts_once() {
        let mut n = at((25, 1));
        let time = |ms| Some(gst::ClockTime::from_mseconds(ms));
        n.number(time(0));
        n.state(500);
        assert!(!n.is_jump(time(80_000)));
        assert_eq!([n.number(time(80_000)), n.number(time(40))], [500, 501]);
        n.state(7);
        n.restart();
        assert_eq!(n.number(time(40)), 1);
    }

    #[test]
    fn only_long_gaps_are_jumps() {
        let mut n = at((25, 1));
        assert!(!n.is_jump(Some(gst::ClockTime::from_seconds(100))));
        n.number(Some(gst::ClockTime::from_seconds(10)));
        for (ms, jump) in [
            (10_040, false),
            (10_000, false),
            (9_960, false),
            (10_800, false),
            (12_000, true),
            (5_000, true),
        ] {
            assert_eq!(n.is_jump(Some(gst::ClockTime::from_mseconds(ms))), jump, "{ms} ms");
        }
        assert!(!n.is_jump(None));
    }
}
