// SPDX-License-Identifier: MPL-2.0

//! What the element says about its latency.

use gst::prelude::*;

use starsr_testkit::rig::*;

fn harness(length: u32) -> gst_check::Harness {
    let mut harness =
        gst_check::Harness::with_element(&starsr(length, 1), Some("sink"), Some("src"));
    harness.set_upstream_latency(gst::ClockTime::from_mseconds(15));
    harness.play();
    harness
}

#[track_caller]
fn check(harness: &gst_check::Harness, milliseconds: u64) {
    assert_eq!(harness.query_latency(), Some(gst::ClockTime::from_mseconds(15 + milliseconds)));
}

#[test]
fn the_latency_is_known_before_the_first_frame() {
    let mut harness = harness(8);
    harness.set_src_caps_str(CAPS);
    let frames: u64 = harness
        .element()
        .unwrap()
        .property::<gst::Structure>("stats")
        .get("latency-frames")
        .unwrap();
    assert!((7..=8).contains(&frames));
    check(&harness, frames * 40);
    harness.set_src_caps_str(&CAPS.replace("25/1", "50/1"));
    check(&harness, frames * 20);
    // A variable framerate counts as 25 frames a second.
    harness.set_src_caps_str(&CAPS.replace("25/1", "0/1"));
    check(&harness, frames * 40);
}

#[test]
fn longer_windows_mean_more_latency() {
    let of = |length: u32| {
        let rig = Rig::started(length, 0);
        rig.stat("latency-frames")
    };
    assert_eq!(of(1), 0);
    assert!(of(16) > of(4));
}

#[test]
fn a_message_follows_each_change() {
    let rig = Rig::new(starsr(8, 1), None);
    let messages = || {
        let mut count = 0;
        while rig.bus.pop_filtered(&[gst::MessageType::Latency]).is_some() {
            count += 1;
        }
        count
    };
    assert_eq!(messages(), 0);
    rig.start(CAPS);
    assert_eq!(messages(), 1);
    rig.caps(&CAPS.replace("25/1", "50/1"));
    assert_eq!(messages(), 1);
    rig.caps(&CAPS.replace("25/1", "50/1").replace("bt601", "bt709"));
    assert_eq!(messages(), 0);
}

/// Length and latency have to agree, whatever is set meanwhile.
#[test]
fn settings_are_read_at_the_start() {
    let rig = Rig::new(starsr(8, 1), None);
    rig.element.set_property("window-length", 2u32);
    rig.start(CAPS);
    assert!(rig.stat("latency-frames") >= 7);
    rig.push_all(0..7);
    assert!(rig.buffers().is_empty());
}

/// A live source, a synchronised sink, and the queue between that takes the bursts.
#[test]
fn a_live_pipeline_waits_long_enough() {
    init();
    let pipeline = gst::Pipeline::new();
    let src = gst::ElementFactory::make("videotestsrc")
        .property("is-live", true)
        .property("num-buffers", 25i32)
        .build()
        .unwrap();
    let caps = CAPS.replace("25/1", "50/1").parse::<gst::Caps>().unwrap();
    let filter = gst::ElementFactory::make("capsfilter").property("caps", caps).build().unwrap();
    let starsr = starsr(8, 2);
    let queue = gst::ElementFactory::make("queue").build().unwrap();
    let sink = gst::ElementFactory::make("fakesink").property("sync", true).build().unwrap();
    let elements = [&src, &filter, &starsr, &queue, &sink];
    pipeline.add_many(elements).unwrap();
    gst::Element::link_many(elements).unwrap();
    super::pipelines::run_with(&pipeline, || {
        let mut latency = gst::query::Latency::new();
        assert!(pipeline.query(&mut latency));
        let (live, min, _) = latency.result();
        let frames =
            starsr.property::<gst::Structure>("stats").get::<u64>("latency-frames").unwrap();
        assert!(live);
        assert!(min >= gst::ClockTime::from_mseconds(20) * frames, "{min} for {frames} frames");
        let stats = sink.property::<gst::Structure>("stats");
        assert_eq!(
            (stats.get::<u64>("rendered").unwrap(), stats.get::<u64>("dropped").unwrap()),
            (25, 0)
        );
    });
}
