// SPDX-License-Identifier: MPL-2.0

//! What holds for files holds for live streams, those in time and those that are late.

use gst::prelude::*;

use starsr_testkit::fixtures;
use starsr_testkit::rig::*;

const KINDS: [&str; 3] = ["not live", "live", "live and late"];

/// A rig of each kind; with `overload=bypass` where it is live.
fn rig(kind: &str, change: impl FnOnce(&gst::Element)) -> Rig {
    let element = starsr(8, 2);
    element.set_property("strength", 1.0f32);
    let clock = gst_check::TestClock::new();
    if kind != "not live" {
        element.set_property_from_str("overload", "bypass");
        element.set_property("processing-latency", gst::ClockTime::SECOND.nseconds());
        element.set_clock(Some(&clock)).unwrap();
    }
    if kind == "live and late" {
        clock.set_time(gst::ClockTime::from_seconds(1000));
    }
    change(&element);
    let rig = Rig::new(element, None);
    rig.element.set_base_time(gst::ClockTime::ZERO);
    rig.set_upstream_latency((kind != "not live").then_some(FRAME));
    rig.start(CAPS);
    rig
}

/// All frames came out, and those that were late as the plain upscale, with nothing to complain
/// about.
#[track_caller]
fn check(rig: &Rig, kind: &str, frames: u64) {
    assert_eq!(rig.offsets(), (0..frames).collect::<Vec<_>>(), "{kind}");
    assert_eq!(rig.stat("bypassed"), if kind == "live and late" { frames } else { 0 }, "{kind}");
    assert!(rig.errors().is_empty(), "{kind}");
}

fn cut() -> gst::Event {
    gst::event::CustomDownstream::new(gst::Structure::new_empty("starsr-scene-cut"))
}

#[test]
fn scene_cuts_let_the_scene_before_out() {
    for kind in KINDS {
        let rig = rig(kind, |_| ());
        rig.push_all(0..3);
        rig.event(cut());
        assert_eq!(rig.offsets(), [0, 1, 2], "{kind}");
        rig.push_all(3..15);
        rig.eos();
        check(&rig, kind, 15);
        assert_eq!(rig.stat("scene-cuts"), 1);
    }
}

#[test]
fn detected_cuts_let_the_scene_before_out() {
    // Halves that change places.
    let scene = |k: u64, swapped: bool| {
        let mut buffer = frame(k);
        let mut map = buffer.make_mut().map_writable().unwrap();
        for (i, value) in map[..16 * 8].iter_mut().enumerate() {
            *value = if (i % 16 < 8) == swapped { 220 } else { 30 };
        }
        drop(map);
        buffer
    };
    for kind in KINDS {
        let rig = rig(kind, |element| element.set_property("scene-detection", true));
        for k in 0..3 {
            rig.push(scene(k, false)).unwrap();
        }
        rig.push(scene(3, true)).unwrap();
        assert_eq!(rig.offsets(), [0, 1, 2], "{kind}");
        for k in 4..9 {
            rig.push(scene(k, true)).unwrap();
        }
        rig.eos();
        check(&rig, kind, 9);
        assert_eq!(rig.stat("scene-cuts"), 1);
    }
}

#[test]
fn other_caps_let_the_frames_out_under_the_old_ones() {
    for kind in KINDS {
        let rig = rig(kind, |_| ());
        rig.push_all(0..3);
        rig.caps(&CAPS.replace("25/1", "30/1"));
        assert_eq!(rig.offsets(), [0, 1, 2], "{kind}");
        rig.push_all(3..14);
        rig.eos();
        check(&rig, kind, 14);
        let rates: Vec<i32> = rig
            .caps_of_buffers()
            .iter()
            .map(|caps| {
                caps.structure(0).unwrap().get::<gst::Fraction>("framerate").unwrap().numer()
            })
            .collect();
        assert_eq!(rates, [vec![25; 3], vec![30; 11]].concat(), "{kind}");
    }
}

#[test]
fn an_end_within_a_window_lets_the_frames_out() {
    for kind in KINDS {
        for frames in [1, 7, 8, 9, 13] {
            let rig = rig(kind, |_| ());
            rig.push_all(0..frames);
            rig.eos();
            check(&rig, kind, frames);
            assert_eq!(rig.labels().last().unwrap(), "eos");
        }
    }
}

#[test]
fn a_flush_within_a_window_forgets_its_frames() {
    for kind in KINDS {
        let rig = rig(kind, |_| ());
        rig.push_all(0..13);
        let before = rig.offsets();
        assert_eq!(before, (0..6).collect::<Vec<_>>(), "{kind}");
        rig.event(gst::event::FlushStart::new());
        rig.event(gst::event::FlushStop::new(true));
        rig.segment(FRAME * 100);
        rig.forget();
        rig.push_all(100..113);
        rig.eos();
        assert_eq!(rig.offsets(), (100..113).collect::<Vec<_>>(), "{kind}");
        assert!(rig.errors().is_empty(), "{kind}");
    }
}

/// Windows that are late are not tried, so only those in time can fail.
#[test]
fn windows_that_fail_come_out_plain() {
    for kind in KINDS {
        let bundle = fixtures::tiny_with(&[("denoiser", "denoiser_nan.onnx")]);
        let rig = rig(kind, |element| {
            element.set_property("model-path", bundle.path().to_str().unwrap());
            element.set_property_from_str("on-error", "bypass");
        });
        rig.push_all(0..5);
        rig.event(cut());
        rig.push_all(5..20);
        rig.eos();
        assert_eq!(rig.offsets(), (0..20).collect::<Vec<_>>(), "{kind}");
        assert_eq!(rig.stat("bypassed"), 20, "{kind}");
        let warnings = rig.messages(gst::MessageType::Warning).len();
        assert_eq!(warnings, usize::from(kind != "live and late"), "{kind}");
    }
}

/// The same from sources of both kinds: two sizes in a row, a cut between, and an end within a
/// window.
#[test]
fn real_sources_of_both_kinds() {
    use super::pipelines::{pipeline, run_with, times, watch};

    for live in [false, true] {
        let source = |frames: u32, width: u32| {
            format!(
                "videotestsrc is-live={live} num-buffers={frames} ! video/x-raw,format=GRAY8,width={width},height=24,framerate=50/1"
            )
        };
        let p = pipeline(&format!(
            "concat name=c ! starsr scene-detection=true overload=bypass processing-latency=2000000000 ! queue ! \
             fakesink name=f sync={live} {} ! c. {} ! c.",
            source(13, 32),
            source(21, 40)
        ));
        let (entered, left) = (watch(&p, "s", "sink"), watch(&p, "f", "sink"));
        run_with(&p, || {
            let stats = p.by_name("s").unwrap().property::<gst::Structure>("stats");
            assert_eq!(stats.get::<u64>("frames-out").unwrap() as usize, times(&entered).len());
        });
        // Live sources both run from the start, and concat waits for no frame of the second.
        assert!(times(&entered).len() >= 13 && (live || times(&entered).len() == 34));
        assert_eq!(times(&entered), times(&left), "live: {live}");
    }
}
