// SPDX-License-Identifier: MPL-2.0

//! Ten hours of stream time, and the ends of what a time can be.

use gst::prelude::*;

use starsr_testkit::rig::{Rig, starsr};

const HOURS: u64 = 10;

/// Frames of 8x8 grey pixels at `times`, each until the next one, through windows of four: all come
/// out at their times.
fn check(rate: &str, segment: gst::ClockTime, times: impl Iterator<Item = gst::ClockTime>) {
    let rig = Rig::new(starsr(4, 1), None);
    rig.event(gst::event::StreamStart::new("test"));
    rig.caps(&format!("video/x-raw,format=GRAY8,width=8,height=8,framerate={rate}"));
    rig.segment(segment);
    let mut awaited = std::collections::VecDeque::new();
    let mut count = 0u64;
    let compare = |awaited: &mut std::collections::VecDeque<_>| {
        for buffer in rig.buffers() {
            assert_eq!(
                Some((buffer.offset(), buffer.pts(), buffer.dts(), buffer.duration())),
                awaited.pop_front()
            );
        }
        rig.forget();
    };
    let mut times = times.peekable();
    while let Some(time) = times.next() {
        let duration = times.peek().and_then(|next| next.checked_sub(time));
        let mut buffer = gst::Buffer::from_mut_slice([90u8; 64]);
        let b = buffer.make_mut();
        b.set_pts(time);
        b.set_dts(time);
        b.set_duration(duration);
        b.set_offset(count);
        awaited.push_back((count, Some(time), Some(time), duration));
        count += 1;
        rig.push(buffer).unwrap_or_else(|e| panic!("frame at {time}: {e:?} {:?}", rig.errors()));
        compare(&mut awaited);
    }
    rig.eos();
    compare(&mut awaited);
    assert!(awaited.is_empty(), "{awaited:?} are missing");
    assert_eq!((rig.stat("frames-in"), rig.stat("frames-out")), (count, count));
    assert!(count > 0 && rig.errors().is_empty());
    println!("{rate}: {count} frames");
}

/// The time of frame `k` at 30000/1001 frames a second, as exactly as nanoseconds allow.
fn ntsc(k: u64) -> gst::ClockTime {
    gst::ClockTime::SECOND.mul_div_round(k * 1001, 30_000).unwrap()
}

/// Of every `minutes` minutes some frames.
fn ten_hours(minutes: u64) {
    let a_minute = 30_000 * 60 / 1001;
    let bursts = (0..=HOURS * 60 / minutes)
        .flat_map(move |m| (0..11).map(move |i| m * minutes * a_minute + i));
    check("30000/1001", gst::ClockTime::ZERO, bursts.map(ntsc));
    let second = gst::ClockTime::SECOND;
    check(
        "1/10",
        gst::ClockTime::ZERO,
        (0..=HOURS * 360 / minutes).map(|k| second * 10 * k * minutes),
    );
    check(
        "0/1",
        gst::ClockTime::ZERO,
        (0..=HOURS * 60 / minutes).map(|k| second * 60 * k * minutes),
    );
}

#[test]
fn ten_hours_do_not_drift() {
    ten_hours(20);
}

#[test]
#[ignore = "long: run by make soak"]
fn long() {
    ten_hours(1);
    // And all frames of the last ten minutes of them.
    let (first, last) = (ten_hours_of_frames() - 17_982, ten_hours_of_frames());
    check("30000/1001", ntsc(first), (first..last).map(ntsc));
}

fn ten_hours_of_frames() -> u64 {
    HOURS * 3600 * 30_000 / 1001
}

#[test]
fn frames_at_the_end_of_time_keep_theirs() {
    let frame = gst::ClockTime::from_mseconds(40);
    for rate in ["25/1", "0/1", "30000/1001", "2147483647/1", "1/2147483647"] {
        let first = gst::ClockTime::MAX - frame * 19;
        for segment in [gst::ClockTime::ZERO, first, gst::ClockTime::MAX] {
            check(rate, segment, (0..20).map(|k| first + frame * k));
        }
    }
}
