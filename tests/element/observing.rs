// SPDX-License-Identifier: MPL-2.0

//! Messages, statistics and the log.

use std::sync::{Arc, Mutex};

use gst::prelude::*;

use starsr_testkit::rig::*;

/// The progress messages so far.
fn progress(rig: &Rig) -> Vec<gst::Structure> {
    let messages = rig.messages(gst::MessageType::Element);
    messages
        .iter()
        .filter_map(|m| m.structure())
        .filter(|s| s.name() == "starsr-progress")
        .map(|s| s.to_owned())
        .collect()
}

#[test]
fn each_window_is_announced() {
    let element = starsr(4, 1);
    element.set_property_from_str("sampler-mode", "normal");
    element.set_property("steps", 5u32);
    let rig = Rig::new(element, None);
    rig.start(CAPS);
    rig.push_all(0..3);
    assert!(progress(&rig).is_empty());
    rig.push_all(3..7);
    rig.eos();
    let announced = progress(&rig);
    let times: Vec<_> =
        announced.iter().map(|s| s.get::<gst::ClockTime>("running-time").unwrap()).collect();
    assert_eq!(times, [gst::ClockTime::ZERO, FRAME * 3]);
    for (s, (frames_in, frames_out)) in announced.iter().zip([(4u64, 0u64), (7, 3)]) {
        assert_eq!(s.get::<u64>("evaluations").unwrap(), 5);
        assert!(s.get::<u64>("time").unwrap() > 0);
        assert_eq!(
            (s.get::<u64>("frames-in").unwrap(), s.get::<u64>("frames-out").unwrap()),
            (frames_in, frames_out)
        );
    }
    assert_eq!((rig.stat("evaluations"), rig.stat("window-evaluations")), (10, 5));
}

#[test]
fn a_wavefront_is_announced_too() {
    let element = starsr(4, 2);
    element.set_property_from_str("window-mode", "wavefront");
    element.set_property_from_str("sampler-mode", "normal");
    element.set_property("steps", 3u32);
    let rig = Rig::new(element, None);
    rig.start(CAPS);
    rig.push_all(0..20);
    rig.eos();
    let evaluations =
        progress(&rig).iter().map(|s| s.get::<u64>("evaluations").unwrap()).sum::<u64>();
    assert!(evaluations > 20);
    assert_eq!(rig.stat("evaluations"), evaluations);
}

#[test]
fn the_stats_are_complete() {
    let rig = Rig::started(4, 1);
    rig.push_all(0..9);
    rig.eos();
    let stats = rig.element.property::<gst::Structure>("stats");
    for field in [
        "frames-in",
        "frames-out",
        "windows",
        "evaluations",
        "window-evaluations",
        "bypassed",
        "scene-cuts",
        "latency-frames",
        "memory-estimate",
        "prompt-tokens-cut",
        "time-convert-in",
        "time-upscale",
        "time-prepare",
        "time-encode",
        "time-sample",
        "time-decode",
        "time-finish",
        "time-convert-out",
        "time-onnxruntime",
    ] {
        assert!(stats.get::<u64>(field).is_ok(), "{field}");
    }
    for (field, value) in [("model", "tiny"), ("provider", "cpu"), ("device", "CPU")] {
        assert_eq!(stats.get::<&str>(field).unwrap(), value);
    }
    assert!(stats.has_field("onnxruntime-version"));
    // The blurb names every field.
    let blurb = rig.element.find_property("stats").unwrap().blurb().unwrap().to_string();
    for field in stats.fields().filter(|field| !field.starts_with("time-")) {
        assert!(blurb.contains(field.as_str()), "{field}");
    }
}

#[test]
fn the_log_has_the_steps() {
    init();
    let lines = Arc::new(Mutex::new(Vec::<(gst::DebugLevel, String)>::new()));
    let to = lines.clone();
    let name = "the-log-has-the-steps";
    let function = gst::log::add_log_function(move |category, level, _, _, _, object, message| {
        let object = object.map(|o| o.to_string()).unwrap_or_default();
        if category.name() == "starsr" && object.contains(name) {
            to.lock()
                .unwrap()
                .push((level, message.get().map(|m| m.to_string()).unwrap_or_default()));
        }
    });
    gst::log::set_threshold_for_name("starsr", gst::DebugLevel::Debug);
    let element = starsr(4, 1);
    element.set_property("name", name);
    let rig = Rig::new(element, None);
    rig.start(CAPS);
    rig.push_all(0..6);
    rig.event(gst::event::CustomDownstream::new(gst::Structure::new_empty("starsr-scene-cut")));
    rig.push_all(6..8);
    rig.eos();
    rig.element.set_state(gst::State::Null).unwrap();
    gst::log::unset_threshold_for_name("starsr");
    gst::log::remove_log_function(function);
    let lines = lines.lock().unwrap();
    for (level, part) in [
        (gst::DebugLevel::Info, "Loaded tiny on cpu"),
        (gst::DebugLevel::Info, "becomes video/x-raw"),
        (gst::DebugLevel::Info, "Latency is"),
        (gst::DebugLevel::Info, "of memory beside the weights"),
        (gst::DebugLevel::Debug, "Restored from"),
        (gst::DebugLevel::Debug, "A scene begins"),
        (gst::DebugLevel::Debug, "Draining"),
        (gst::DebugLevel::Info, "frames-out=(guint64)8"),
    ] {
        assert!(
            lines.iter().any(|(l, line)| *l == level && line.contains(part)),
            "{part:?} is not in: {lines:#?}"
        );
    }
}
