// SPDX-License-Identifier: MPL-2.0

//! Stopping while the model runs.

use std::thread::{self, JoinHandle};
use std::time::Duration;

use gst::prelude::*;

use starsr_testkit::{fixtures, rig::*};

type Flow = Result<gst::FlowSuccess, gst::FlowError>;

/// A rig whose model never finishes its first window, which has three of its four frames.
fn endless() -> (tempfile::TempDir, Rig) {
    let (bundle, element) = endless_starsr("denoiser");
    let rig = Rig::new(element, None);
    rig.start(CAPS);
    rig.push_all(0..3);
    (bundle, rig)
}

/// A rig whose model is at work on a window, and the thread that waits for it.
fn at_work() -> (tempfile::TempDir, Rig, JoinHandle<Flow>) {
    let (bundle, rig) = endless();
    let pad = rig.src.clone();
    let pushing = thread::spawn(move || pad.push(frame(3)));
    while rig.stat("frames-in") < 4 {
        thread::sleep(Duration::from_millis(1));
    }
    // The model may be about to start; whether it has makes no difference to the tests.
    thread::sleep(Duration::from_millis(100));
    assert!(!pushing.is_finished(), "the model has an end");
    (bundle, rig, pushing)
}

/// The work has no end, so it comes back only because it was broken off.
#[track_caller]
fn check_cancelled(rig: &Rig, pushing: JoinHandle<Flow>) {
    assert_eq!(pushing.join().unwrap(), Err(gst::FlowError::Flushing));
    assert!(rig.buffers().is_empty());
    assert!(rig.errors().is_empty(), "{:?}", rig.errors());
}

#[test]
fn a_flush_stops_the_model() {
    let (_bundle, rig, pushing) = at_work();
    rig.event(gst::event::FlushStart::new());
    check_cancelled(&rig, pushing);
    rig.event(gst::event::FlushStop::new(true));
    rig.segment(FRAME * 100);
    assert_eq!(rig.push(frame(100)), Ok(gst::FlowSuccess::Ok));
}

#[test]
fn a_state_change_stops_the_model() {
    for state in [gst::State::Ready, gst::State::Null] {
        let (_bundle, rig, pushing) = at_work();
        rig.element.set_state(state).unwrap();
        check_cancelled(&rig, pushing);
    }
}

#[test]
fn a_state_change_stops_a_drain() {
    let (_bundle, rig) = endless();
    let pad = rig.src.clone();
    let draining = thread::spawn(move || pad.push_event(gst::event::Eos::new()));
    thread::sleep(Duration::from_millis(100));
    assert!(!draining.is_finished(), "the model has an end");
    rig.element.set_state(gst::State::Null).unwrap();
    draining.join().unwrap();
    assert!(rig.buffers().is_empty());
}

#[test]
fn a_flush_beside_a_state_change_does_not_hang() {
    let (_bundle, rig, pushing) = at_work();
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
    let (_bundle, rig, pushing) = at_work();
    let mut latency = gst::query::Latency::new();
    // Nobody upstream knows a latency, but the answer comes all the same.
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
    let (_bundle, rig, pushing) = at_work();
    rig.element.set_state(gst::State::Ready).unwrap();
    check_cancelled(&rig, pushing);
    rig.element.set_property("model-path", fixtures::tiny().to_str().unwrap());
    rig.play();
    rig.start(CAPS);
    rig.push_all(0..6);
    rig.eos();
    assert_eq!(rig.buffers().len(), 6);
}
