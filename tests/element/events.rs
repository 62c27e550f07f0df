// SPDX-License-Identifier: MPL-2.0

//! Events keep their place among the frames.

use gst::prelude::*;

use starsr_testkit::rig::*;

fn custom(name: &str) -> gst::Event {
    gst::event::CustomDownstream::new(gst::Structure::new_empty(name))
}

fn title(title: &str) -> gst::Event {
    let mut tags = gst::TagList::new();
    tags.make_mut().add::<gst::tags::Title>(&title, gst::TagMergeMode::Replace);
    gst::event::Tag::new(tags)
}

#[track_caller]
fn check_order(rig: &Rig, expected: &[&str]) {
    let labels = rig.labels();
    let start = labels.iter().position(|l| l == "segment").unwrap() + 1;
    assert_eq!(labels[start..], *expected);
}

#[test]
fn serialized_events_leave_before_the_frame_they_came_before() {
    let rig = Rig::started(8, 2);
    rig.event(custom("first"));
    rig.push_all(0..3);
    rig.event(title("one"));
    rig.event(custom("after-two"));
    rig.push_all(3..5);
    rig.event(custom("after-four"));
    rig.push_all(5..7);
    rig.event(custom("last"));
    rig.eos();
    check_order(
        &rig,
        &[
            "first",
            "0",
            "1",
            "2",
            "tag",
            "after-two",
            "3",
            "4",
            "after-four",
            "5",
            "6",
            "last",
            "eos",
        ],
    );
}

#[test]
fn events_that_are_not_serialized_do_not_wait() {
    let rig = Rig::started(8, 2);
    rig.push_all(0..3);
    rig.event(gst::event::CustomDownstreamOob::new(gst::Structure::new_empty("now")));
    assert_eq!(rig.labels().last().unwrap(), "custom-downstream-oob");
    assert!(rig.buffers().is_empty());
}

#[test]
fn ends_of_all_kinds_let_the_frames_out_first() {
    let still = gst_video::StillFrameEvent::builder(true).build();
    for (event, label) in [
        (gst::event::Gap::builder(FRAME * 3).duration(FRAME).build(), "gap"),
        (gst::event::SegmentDone::new(FRAME * 3), "segment-done"),
        (gst::event::StreamStart::new("other"), "stream-start"),
        (gst::event::StreamGroupDone::new(gst::GroupId::next()), "stream-group-done"),
        (still, "GstEventStillFrame"),
    ] {
        init();
        let rig = Rig::started(8, 2);
        rig.push_all(0..3);
        rig.event(event);
        check_order(&rig, &["0", "1", "2", label]);
    }
}

#[test]
fn another_segment_lets_the_frames_out_under_the_old_one() {
    let rig = Rig::started(8, 2);
    rig.push_all(0..3);
    rig.segment(FRAME * 50);
    rig.push_all(50..52);
    rig.eos();
    check_order(&rig, &["0", "1", "2", "segment", "50", "51", "eos"]);
}

#[test]
fn the_same_segment_again_does_not_cut() {
    let rig = Rig::started(8, 2);
    rig.push_all(0..3);
    let mut segment = gst::FormattedSegment::<gst::ClockTime>::new();
    segment.set_time(gst::ClockTime::ZERO);
    segment.set_position(FRAME * 3);
    rig.event(gst::event::Segment::new(&segment));
    assert!(rig.buffers().is_empty());
    rig.push_all(3..6);
    rig.eos();
    assert_eq!(rig.offsets(), (0..6).collect::<Vec<_>>());
}

#[test]
fn a_flush_forgets_frames_but_not_tags() {
    let rig = Rig::started(8, 2);
    rig.push_all(0..3);
    rig.event(title("kept"));
    rig.event(custom("dropped"));
    rig.push_all(3..4);
    rig.event(gst::event::FlushStart::new());
    assert_eq!(rig.push(frame(4)), Err(gst::FlowError::Flushing));
    rig.event(gst::event::FlushStop::new(true));
    rig.segment(FRAME * 100);
    rig.push_all(100..110);
    rig.eos();
    assert_eq!(rig.offsets(), (100..110).collect::<Vec<_>>());
    let labels = rig.labels();
    assert!(!labels.contains(&"dropped".to_string()));
    let tag = labels.iter().position(|l| l == "tag").expect("the tags are lost");
    assert!(tag < labels.iter().position(|l| l == "100").unwrap());
}

#[test]
fn qos_is_off_and_late_frames_are_kept() {
    let rig = Rig::started(4, 1);
    assert!(!rig.element.property::<bool>("qos"));
    rig.push_all(0..4);
    // Downstream says that everything up to frame 40 is too late.
    let late =
        gst::event::Qos::builder(gst::QOSType::Underflow, 2.0, (FRAME * 40).nseconds() as i64)
            .timestamp(gst::ClockTime::ZERO)
            .build();
    rig.sink.push_event(late);
    rig.push_all(4..12);
    rig.eos();
    assert_eq!(rig.offsets(), (0..12).collect::<Vec<_>>());
}
