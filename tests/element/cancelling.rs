// SPDX-License-Identifier: MPL-2.0

//! Stopping while the model runs.

use std::thread::{self, JoinHandle};
use std::time::Duration;

use gst::prelude::*;

use starsr_testkit::rig::*;

type Flow = Result<gst::FlowSuccess, gst::FlowError>;

/// A rig whose model is at work on a window that takes long, and the thread that waits for it.
fn at_work() -> (Rig, JoinHandle<Flow>) {
    let rig = Rig::new(slow_starsr(), None);
    rig.start(SLOW_CAPS);
    for k in 0..3 {
        rig.push(slow_frame(k)).unwrap();
    }
    let pad = rig.src.clone();
    let pushing = thread::spawn(move || pad.push(slow_frame(3)));
    while rig.stat("frames-in") < 4 {
        thread::sleep(Duration::from_millis(1));
    }
    thread::sleep(Duration::from_millis(100));
    assert!(!pushing.is_finished(), "the model is too fast for this test");
    (rig, pushing)
}

/// Flushing is returned only by work that was broken off: had it come to its end there would be frames.
#[track_caller]
fn check_cancelled(rig: &Rig, pushing: JoinHandle<Flow>) {
    assert_eq!(pushing.join().unwrap(), Err(gst::FlowError::Flushing));
    assert!(rig.buffers().is_empty());
    assert!(rig.errors().is_empty(), "{:?}", rig.errors());
}

#[test]
fn a_flush_stops_the_model() {
    let (rig, pushing) = at_work();
    rig.event(gst::event::FlushStart::new());
    check_cancelled(&rig, pushing);
    rig.event(gst::event::FlushStop::new(true));
    rig.segment(FRAME * 100);
    assert_eq!(rig.push(slow_frame(100)), Ok(gst::FlowSuccess::Ok));
}

#[test]
fn a_state_change_stops_the_model() {
    for state in [gst::State::Ready, gst::State::Null] {
        let (rig, pushing) = at_work();
        rig.element.set_state(state).unwrap();
        check_cancelled(&rig, pushing);
    }
}

#[test]
fn a_state_change_stops_a_drain() {
    let rig = Rig::new(slow_starsr(), None);
    rig.start(SLOW_CAPS);
    for k in 0..3 {
        rig.push(slow_frame(k)).unwrap();
    }
    let pad = rig.src.clone();
    let draining = thread::spawn(move || pad.push_event(gst::event::Eos::new()));
    thread::sleep(Duration::from_millis(100));
    assert!(!draining.is_finished(), "the model is too fast for this test");
    rig.element.set_state(gst::State::Null).unwrap();
    draining.join().unwrap();
    assert!(rig.buffers().is_empty());
}

#[test]
fn a_flush_beside_a_state_change_does_not_hang() {
    let (rig, pushing) = at_work();
    rig.event(gst::event::FlushStart::new());
    let element = rig.element.clone();
    let stopping = thread::spawn(move || element.set_state(gst::State::Null).map(|_| ()));
    rig.event(gst::event::FlushStop::new(true));
    stopping.join().unwrap().unwrap();
    check_cancelled(&rig, pushing);
}

/// Nothing asked from another thread waits for the model.
#[test]
fn queries_and_properties_do_not_wait_for_the_model() {
    let (rig, pushing) = at_work();
    let mut latency = gst::query::Latency::new();
    // Upstream of the element there is nobody who knows a latency; the answer comes all the same.
    rig.sink.peer_query(&mut latency);
    rig.sink.peer_query_caps(None);
    assert_eq!(rig.stat("frames-in"), 4);
    rig.element.set_property("seed", 3u64);
    let mut position = gst::query::Position::new(gst::Format::Time);
    rig.sink.peer_query(&mut position);
    assert!(!pushing.is_finished());
    rig.event(gst::event::FlushStart::new());
    check_cancelled(&rig, pushing);
}

#[test]
fn a_cancelled_element_starts_again() {
    let (rig, pushing) = at_work();
    rig.element.set_state(gst::State::Ready).unwrap();
    check_cancelled(&rig, pushing);
    rig.element.set_property_from_str("steps", "1");
    rig.play();
    rig.start(SLOW_CAPS);
    for k in 0..6 {
        rig.push(slow_frame(k)).unwrap();
    }
    rig.eos();
    assert_eq!(rig.buffers().len(), 6);
}
