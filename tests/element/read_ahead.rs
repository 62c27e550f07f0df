// SPDX-License-Identifier: MPL-2.0

//! Frames that are taken, and leave, while the model works.

use std::thread;
use std::time::Duration;

use gst::prelude::*;

use starsr_testkit::patience::patiently;
use starsr_testkit::rig::*;

fn read_ahead(element: gst::Element, enabled: bool) -> gst::Element {
    element.set_property("read-ahead", enabled);
    element.set_property("strength", 1.0f32);
    element
}

fn contents(rig: &Rig) -> Vec<(String, Vec<u8>)> {
    let content = |item: &Item| match item {
        Item::Buffer(buffer) => bytes(buffer),
        Item::Event(_) => Vec::new(),
    };
    rig.items().iter().map(|item| (item.label(), content(item))).collect()
}

#[test]
fn everything_leaves_in_the_same_order_with_the_same_bytes() {
    let play = |mode: &str, enabled| {
        let element = read_ahead(starsr(5, 2), enabled);
        element.set_property_from_str("window-mode", mode);
        let rig = Rig::new(element, None);
        rig.start(CAPS);
        for k in 0..40 {
            match k {
                7 => drop(rig.event(gst::event::CustomDownstream::new(gst::Structure::new_empty(
                    "before-7",
                )))),
                13 => drop(rig.event(gst::event::CustomDownstream::new(
                    gst::Structure::new_empty("starsr-scene-cut"),
                ))),
                21 => drop(rig.caps(&CAPS.replace("25/1", "30/1"))),
                30 => drop(rig.event(gst::event::Gap::builder(FRAME * 30).build())),
                _ => {}
            }
            rig.push(textured_frame(k)).unwrap();
        }
        rig.eos();
        assert_eq!((rig.errors(), rig.stat("frames-out")), (Vec::new(), 40));
        contents(&rig)
    };
    for mode in ["blend", "wavefront"] {
        assert!(play(mode, true) == play(mode, false), "{mode}");
    }
}

#[test]
fn a_windows_frames_leave_though_no_further_frame_comes() {
    let rig = Rig::new(read_ahead(starsr(4, 1), true), None);
    rig.start(CAPS);
    assert_eq!(rig.stat("latency-frames"), 3);
    for (end, out) in [(4, 3), (7, 6)] {
        rig.push_all(rig.stat("frames-in")..end);
        patiently("the frames stay inside", || (rig.buffers().len() == out).then_some(()));
    }
    rig.eos();
    assert_eq!(rig.offsets(), (0..7).collect::<Vec<_>>());
}

#[test]
fn a_failure_of_downstream_that_nobody_waits_for_reaches_the_next_frame() {
    for flow in [gst::FlowError::Eos, gst::FlowError::Error] {
        let rig = Rig::new(read_ahead(starsr(4, 1), true), None);
        rig.start(CAPS);
        rig.set_flow(Err(flow));
        let mut next = 0..;
        let result = patiently("the failure is lost", || rig.push(frame(next.next()?)).err());
        assert_eq!(result, flow);
        assert!(rig.buffers().is_empty());
        // A segment begins anew.
        rig.set_flow(Ok(gst::FlowSuccess::Ok));
        rig.event(gst::event::FlushStart::new());
        rig.event(gst::event::FlushStop::new(true));
        rig.segment(gst::ClockTime::ZERO);
        rig.push_all(0..4);
        rig.eos();
        assert_eq!(rig.offsets(), [0, 1, 2, 3]);
    }
}

/// A model that never finishes its first window, and has all but one frame of the next.
fn at_work() -> (tempfile::TempDir, Rig) {
    let (bundle, element) = endless_starsr("denoiser");
    let rig = Rig::new(read_ahead(element, true), None);
    rig.start(CAPS);
    rig.push_all(0..6);
    (bundle, rig)
}

#[test]
fn a_flush_stops_work_that_nobody_waits_for() {
    let (_bundle, rig) = at_work();
    // Windows begin with these, so that one has four of the frames, and two are left.
    for start in [99, 198] {
        rig.event(gst::event::FlushStart::new());
        rig.event(gst::event::FlushStop::new(true));
        rig.segment(FRAME * start);
        rig.push_all(start..start + 6);
    }
    assert!(rig.buffers().is_empty() && rig.errors().is_empty());
}

#[test]
fn a_state_change_stops_work_whether_or_not_somebody_waits() {
    for waits in [false, true] {
        let (_bundle, rig) = at_work();
        let pad = rig.src.clone();
        // Until the frames of the next window are all there, and one has to wait.
        let push_on = move || (6..60).map(|k| pad.push(frame(k))).find(Result::is_err);
        let pushing = waits.then(|| thread::spawn(push_on));
        if waits {
            patiently("the frame is not taken", || (rig.stat("frames-in") >= 7).then_some(()));
            // Whether the thread waits already makes no difference.
            thread::sleep(Duration::from_millis(50));
        }
        rig.element.set_state(gst::State::Ready).unwrap();
        if let Some(pushing) = pushing {
            assert_eq!(pushing.join().unwrap(), Some(Err(gst::FlowError::Flushing)));
        }
        assert!(rig.buffers().is_empty() && rig.errors().is_empty());
    }
}
