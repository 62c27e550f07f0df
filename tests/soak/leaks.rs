// SPDX-License-Identifier: MPL-2.0

//! No object, buffer, caps or event outlives its pipeline, as GStreamer's own tracer sees it.

use gst::prelude::*;

use starsr_testkit::{fixtures, rig};

use super::child;

const CASE: &str = "STARSR_LEAKS_CASE";

/// A pipeline of tests' sources, starsr with the tiny bundle, and what is behind it.
fn pipeline(frames: u32, options: &str, rest: &str) -> gst::Pipeline {
    rig::init();
    gst::parse::launch(&format!(
        "videotestsrc num-buffers={frames} ! video/x-raw,width=16,height=16,framerate=25/1 ! taginject tags=title=soak ! \
         starsr name=s model-path=\"{}\" ort-library=\"{}\" execution-provider=cpu threads=1 window-length=8 {options} ! {rest}",
        fixtures::tiny().display(),
        fixtures::onnx_runtime().display(),
    ))
    .unwrap()
    .downcast()
    .unwrap()
}

fn play(pipeline: &gst::Pipeline) {
    pipeline.set_state(gst::State::Playing).unwrap();
    let kind = rig::message(pipeline, &[gst::MessageType::Eos, gst::MessageType::Error]);
    assert_eq!(kind.type_(), gst::MessageType::Eos, "{kind:?}");
}

fn stop(pipeline: gst::Pipeline) {
    pipeline.set_state(gst::State::Null).unwrap();
}

fn end() {
    let pipeline = pipeline(30, "", "fakesink");
    play(&pipeline);
    stop(pipeline);
}

/// One that downstream makes, and one of the model.
fn error() {
    let downstream = pipeline(30, "", "identity error-after=5 ! fakesink");
    downstream.set_state(gst::State::Playing).unwrap();
    rig::message(&downstream, &[gst::MessageType::Error]);
    stop(downstream);
    let failing = fixtures::tiny_with(&[("denoiser", "denoiser_nan.onnx")]);
    let model = pipeline(30, "", "fakesink");
    model.by_name("s").unwrap().set_property("model-path", failing.path().to_str().unwrap());
    model.set_state(gst::State::Playing).unwrap();
    rig::message(&model, &[gst::MessageType::Error]);
    stop(model);
}

fn flush() {
    let pipeline = pipeline(3000, "", "fakesink");
    pipeline.set_state(gst::State::Paused).unwrap();
    rig::message(&pipeline, &[gst::MessageType::AsyncDone]);
    for k in 0..10 {
        pipeline.seek_simple(gst::SeekFlags::FLUSH, rig::FRAME * k * 7).unwrap();
        rig::message(&pipeline, &[gst::MessageType::AsyncDone]);
    }
    stop(pipeline);
}

/// With frames and events inside.
fn stop_in_a_window() {
    let rig = rig::Rig::started(8, 2);
    rig.push_all(0..3);
    rig.event(gst::event::CustomDownstream::new(gst::Structure::new_empty("inside")));
    rig.push_all(3..4);
    rig.event(gst::event::CustomDownstream::new(gst::Structure::new_empty("parked")));
    rig.element.set_state(gst::State::Null).unwrap();
}

fn caps_change() {
    let rig = rig::Rig::started(8, 2);
    rig.push_all(0..3);
    rig.caps("video/x-raw,format=I420,width=16,height=8,framerate=30/1");
    rig.push_all(3..5);
    assert_eq!(rig.buffers().len(), 3);
    // Refused, and then with frames inside again.
    rig.caps("video/x-raw,format=I420,width=16,height=8,framerate=30/1,interlace-mode=mixed");
    assert!(rig.push(rig::frame(5)).is_err());
    rig.start(rig::CAPS);
    rig.push_all(6..8);
}

fn bypass() {
    let failing = fixtures::tiny_with(&[("denoiser", "denoiser_nan.onnx")]);
    let pipeline = pipeline(30, "on-error=bypass", "fakesink");
    pipeline.by_name("s").unwrap().set_property("model-path", failing.path().to_str().unwrap());
    play(&pipeline);
    let stats = pipeline.by_name("s").unwrap().property::<gst::Structure>("stats");
    assert_eq!(stats.get::<u64>("bypassed").unwrap(), 30);
    stop(pipeline);
}

const CASES: [(&str, fn()); 6] = [
    ("end", end),
    ("error", error),
    ("flush", flush),
    ("stop-in-a-window", stop_in_a_window),
    ("caps-change", caps_change),
    ("bypass", bypass),
];

/// Plays the case of the environment, or all, and ends GStreamer; the tracer writes what is left.
#[test]
#[ignore = "run in a process of its own by the next ones and by make valgrind"]
fn play_case() {
    rig::init();
    let asked = std::env::var(CASE).ok();
    for (name, case) in CASES {
        if asked.as_deref().is_none_or(|asked| asked == name) {
            println!("{name}");
            case();
        }
    }
    match asked.as_deref() {
        Some("leaked-buffer") => std::mem::forget(rig::frame(0)),
        Some("leaked-element") => std::mem::forget(rig::starsr(4, 1)),
        _ => {}
    }
    // SAFETY: nothing of GStreamer is used after it.
    unsafe { gst::deinit() };
}

/// What the tracer found alive after `case`.
fn alive(case: &str) -> Vec<String> {
    let variables = [
        (CASE, case),
        ("GST_TRACERS", "leaks"),
        ("GST_DEBUG", "GST_TRACER:7"),
        ("GST_DEBUG_NO_COLOR", "1"),
    ];
    let output = child("leaks::play_case", &variables);
    let (told, log) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && told.contains("1 passed"), "{case}: {told}{log}");
    assert!(log.contains("leaks"), "{case}: there is no tracer of leaks: {log}");
    log.lines()
        .filter(|line| line.contains("object-alive, type-name=(string)Gst"))
        .map(String::from)
        .collect()
}

#[test]
fn nothing_is_left() {
    for (case, _) in CASES {
        let left = alive(case);
        assert!(left.is_empty(), "{case}: {left:#?}");
    }
}

#[test]
fn what_is_left_is_seen() {
    for (case, kind) in [("leaked-buffer", "GstBuffer"), ("leaked-element", "GstStarsr")] {
        let left = alive(case);
        assert!(left.iter().any(|line| line.contains(kind)), "{case}: {left:#?}");
    }
}
