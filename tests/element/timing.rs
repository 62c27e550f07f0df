// SPDX-License-Identifier: MPL-2.0

//! Timestamps of every kind, segments of every rate, and the grid of the windows.

use std::ops::Range;

use gst::prelude::*;

use starsr_testkit::rig::*;

type Segment = gst::FormattedSegment<gst::ClockTime>;

fn segment(rate: f64, frames: Range<u64>) -> Segment {
    let mut segment = Segment::new();
    segment.set_rate(rate);
    segment.set_start(FRAME * frames.start);
    segment.set_time(FRAME * frames.start);
    segment.set_stop(FRAME * frames.end);
    segment
}

/// A rig whose result is the model's, with windows of four frames of which one is shared, that has
/// got `segment`.
fn restoring(mode: &str, seed: u64, segment: &Segment) -> Rig {
    let element = starsr(4, 1);
    element.set_property("strength", 1.0f32);
    element.set_property("seed", seed);
    element.set_property_from_str("window-mode", mode);
    element.set_property_from_str("sampler-mode", "normal");
    element.set_property("steps", 2u32);
    let rig = Rig::new(element, None);
    rig.event(gst::event::StreamStart::new("test"));
    rig.caps(CAPS);
    rig.event(gst::event::Segment::new(segment));
    rig
}

/// What leaves for textured frames, each with its offset.
fn restored(rig: &Rig, frames: impl IntoIterator<Item = u64>) -> Vec<(u64, Vec<u8>)> {
    for k in frames {
        rig.push(textured_frame(k)).unwrap();
    }
    rig.eos();
    rig.buffers().iter().map(|b| (b.offset(), bytes(b))).collect()
}

/// Noise and windows belong to a frame's place in the stream, so a part of a clip comes out as in
/// the whole.
#[test]
fn a_part_from_anywhere_is_the_same_as_in_the_whole() {
    let clip = |mode, seed, frames: Range<u64>| {
        restored(&restoring(mode, seed, &segment(1.0, frames.clone())), frames)
    };
    let whole = clip("blend", 7, 0..24);
    assert_eq!(whole, clip("blend", 7, 0..24));
    assert_ne!(whole, clip("blend", 8, 0..24));
    for from in 0..12 {
        let part = clip("blend", 7, from..24);
        assert_eq!(part.len() as u64, 24 - from);
        // Windows start every three frames; the first that does so in the part shares one frame
        // with the incomplete one before.
        let same = if from == 0 { 0 } else { from.next_multiple_of(3) + 1 };
        assert!(part[(same - from) as usize..] == whole[same as usize..], "from {from}");
        assert!(from % 3 == 0 || part[0] != whole[from as usize], "from {from}");
    }
    // Two evaluations carry what the first window lacks into the second, up to the middle of what
    // that shares with the third.
    let whole = clip("wavefront", 7, 0..40);
    for from in 0..7u64 {
        let part = clip("wavefront", 7, from..40);
        let same = from / 3 * 3 + 6;
        assert!(part[(same - from) as usize..] == whole[same as usize..], "from {from}");
    }
}

#[test]
fn the_rate_changes_no_picture() {
    let whole = restored(&restoring("blend", 7, &segment(1.0, 0..20)), 0..20);
    for rate in [0.5, 2.0, 16.0] {
        let mut segment = segment(rate, 0..20);
        segment.set_base(FRAME * 1000);
        segment.set_offset(FRAME);
        let rig = restoring("blend", 7, &segment);
        assert!(restored(&rig, 0..20) == whole, "rate {rate}");
        check_times(&rig, &segment, 0..20);
    }
    // A server that plays faster itself: one frame of two, whose places in the stream are two
    // apart.
    let mut faster = segment(1.0, 0..20);
    faster.set_applied_rate(2.0);
    let rig = restoring("blend", 7, &faster);
    restored(&rig, 0..20);
    check_times(&rig, &faster, 0..20);
}

#[test]
fn backwards_frames_keep_their_order() {
    for rate in [-1.0, -0.5, -4.0] {
        let mut segment = segment(rate, 0..60);
        segment.set_base(FRAME * 7);
        let rig = Rig::new(starsr(4, 1), None);
        rig.event(gst::event::StreamStart::new("test"));
        rig.caps(CAPS);
        rig.event(gst::event::Segment::new(&segment));
        rig.push_all((0..60).rev());
        rig.eos();
        check_times(&rig, &segment, (0..60).rev());
        // One clip, not one a frame.
        assert!(rig.stat("windows") <= 20);
    }
}

/// Checks that the frames left under `segment`, and that the times in progress messages follow it.
#[track_caller]
fn check_times(rig: &Rig, segment: &Segment, frames: impl IntoIterator<Item = u64>) {
    let segments: Vec<_> = rig
        .items()
        .iter()
        .filter_map(|item| match item {
            Item::Event(event) => match event.view() {
                gst::EventView::Segment(event) => Some(event.segment().clone()),
                _ => None,
            },
            Item::Buffer(_) => None,
        })
        .collect();
    let [left] = &segments[..] else { panic!("{} segments", segments.len()) };
    let left = left.downcast_ref::<gst::ClockTime>().unwrap();
    assert_eq!(
        (left.rate(), left.applied_rate(), left.base(), left.offset()),
        (segment.rate(), segment.applied_rate(), segment.base(), segment.offset())
    );
    assert_eq!(
        (left.start(), left.stop(), left.time()),
        (segment.start(), segment.stop(), segment.time())
    );
    let frames: Vec<_> = frames.into_iter().collect();
    assert_eq!(rig.offsets(), frames);
    let running: Vec<_> = rig.buffers().iter().map(|b| segment.to_running_time(b.pts())).collect();
    assert!(running.iter().all(Option::is_some) && running.is_sorted());
    let announced: Vec<Option<gst::ClockTime>> = rig
        .messages(gst::MessageType::Element)
        .iter()
        .filter_map(|m| {
            m.structure().filter(|s| s.name() == "starsr-progress")?.get("running-time").ok()
        })
        .collect();
    assert!(announced.len() >= frames.len() / 4);
    assert_eq!(announced[0], running[0]);
    assert!(announced.iter().all(|time| running.contains(time)) && announced.is_sorted());
}

/// Timestamps, in milliseconds, that a constant framerate does not have.
const STRANGE: [&[Option<u64>]; 6] = [
    &[
        Some(0),
        Some(7),
        Some(90),
        Some(91),
        Some(400),
        Some(410),
        Some(420),
        Some(9000),
        Some(9001),
    ],
    &[Some(0), Some(0), Some(0), Some(40), Some(40), Some(80), Some(80), Some(80), Some(120)],
    &[Some(400), Some(360), Some(320), Some(280), Some(0), Some(40), Some(20), Some(0), Some(4000)],
    &[None, None, None, None, None, None, None, None, None],
    &[Some(0), None, None, Some(120), None, Some(200), None, None, Some(320)],
    &[
        Some(u64::MAX / 1_000_001),
        Some(0),
        Some(1 << 40),
        Some(1),
        None,
        Some(u64::MAX / 1_000_001),
        None,
        None,
        None,
    ],
];

#[test]
fn times_of_every_kind_stay_with_their_frames() {
    for fps in ["25/1", "0/1", "30000/1001", "1/1001", "2147483647/1", "1/2147483647"] {
        for (case, times) in STRANGE.iter().enumerate() {
            let rig = Rig::new(starsr(4, 1), None);
            rig.start(&CAPS.replace("25/1", fps));
            for (k, time) in times.iter().enumerate() {
                let mut buffer = frame(k as u64);
                let b = buffer.make_mut();
                b.set_pts(time.map(gst::ClockTime::from_mseconds));
                b.set_dts(if case == 1 { None } else { Some(FRAME * (k as u64)) });
                b.set_duration(None);
                rig.push(buffer).unwrap();
            }
            rig.eos();
            let left = rig.buffers();
            let pts: Vec<_> = left.iter().map(|b| b.pts().map(gst::ClockTime::mseconds)).collect();
            assert_eq!(pts, *times, "{fps}");
            assert_eq!(rig.offsets(), (0..times.len() as u64).collect::<Vec<_>>());
            assert!(left.iter().all(|b| b.duration().is_none()));
            assert!(left.iter().all(|b| b.dts().is_none() == (case == 1)));
            assert!(rig.errors().is_empty());
        }
    }
}

/// A stream that is seldom: each frame is followed by gaps until the next one.
#[test]
fn a_still_picture_leaves_when_a_gap_says_that_nothing_follows() {
    for live in [None, Some(gst::ClockTime::ZERO)] {
        let rig = Rig::started(8, 2);
        rig.set_upstream_latency(live);
        let minute = gst::ClockTime::from_seconds(60);
        for k in [0, 7500] {
            rig.push_all([k]);
            assert!(!rig.offsets().contains(&k));
            for i in 0..5 {
                rig.event(
                    gst::event::Gap::builder(FRAME * (k + 1) + minute * i).duration(minute).build(),
                );
                assert_eq!(rig.offsets().last(), Some(&k));
            }
        }
        rig.eos();
        let labels = rig.labels();
        let first = labels.iter().position(|l| l == "0").unwrap();
        let gaps = ["gap"; 5];
        assert_eq!(labels[first..], [&["0"], &gaps[..], &["7500"], &gaps[..], &["eos"]].concat());
        assert_eq!(rig.buffers()[1].duration(), Some(FRAME));
    }
}

/// Without gaps it leaves at the end, as it is.
#[test]
fn a_still_picture_leaves_at_the_end() {
    let rig = Rig::new(starsr(8, 2), None);
    rig.start(&CAPS.replace("25/1", "0/1"));
    let mut still = frame(3);
    still.make_mut().set_duration(None);
    rig.push(still).unwrap();
    assert!(rig.buffers().is_empty());
    rig.eos();
    let [left] = &rig.buffers()[..] else { panic!("{:?}", rig.labels()) };
    assert_eq!((left.pts(), left.duration(), left.offset()), (Some(FRAME * 3), None, 3));
}
