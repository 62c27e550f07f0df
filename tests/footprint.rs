// SPDX-License-Identifier: MPL-2.0

//! Memory of the whole process, which is why there is one test here only.
//! Needs ONNX Runtime: `ORT_DYLIB_PATH`, or beside the test's executable.
#![cfg(target_os = "linux")]

use std::path::Path;

use gst::prelude::*;
use starsr_testkit::fixtures;

fn resident() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<i64>().unwrap() * 1024
}

/// A harness with starsr and `bundle`, through which `frames` frames have gone.
fn play(bundle: &Path, (width, height): (usize, usize), frames: u64) -> gst_check::Harness {
    let element = gst::ElementFactory::make("starsr").build().unwrap();
    element.set_property("model-path", bundle.to_str().unwrap());
    element.set_property("ort-library", fixtures::onnx_runtime().to_str().unwrap());
    element.set_property_from_str("execution-provider", "cpu");
    element.set_property("threads", 1u32);
    let mut harness = gst_check::Harness::with_element(&element, Some("sink"), Some("src"));
    harness.play();
    harness.set_src_caps_str(&format!(
        "video/x-raw,format=GRAY8,width={width},height={height},framerate=25/1"
    ));
    for k in 0..frames {
        let mut buffer =
            gst::Buffer::from_mut_slice((0..width * height).map(|i| i as u8).collect::<Vec<_>>());
        buffer.make_mut().set_pts(gst::ClockTime::from_mseconds(40) * k);
        harness.push(buffer).unwrap();
    }
    harness.push_event(gst::event::Eos::new());
    assert_eq!(std::iter::from_fn(|| harness.try_pull()).count() as u64, frames);
    harness
}

#[test]
fn a_second_element_costs_little_and_a_stopped_one_nothing() {
    gst::init().unwrap();
    gststarsr::plugin_register_static().unwrap();
    let nano = fixtures::repository("models/nano");
    let size = (128, 96);

    let before = resident();
    // The allocator keeps part of what the first arrays leave, which is not the second element's.
    drop(play(&nano, size, 12));
    let first = play(&nano, size, 12);
    let with_first = resident();
    let second = play(&nano, size, 12);
    let with_second = resident();
    println!("{before} bytes, {with_first} with one element, {with_second} with two");
    let (one, another) = (with_first - before, with_second - with_first);
    assert!(one > 50 << 20, "the first takes {one} bytes");
    assert!(another * 10 < one, "the second takes {another} bytes more than {one}");

    drop((first, second));
    let after = resident();
    println!("{after} after both");
    assert!(after - before < one / 2, "{} of {one} bytes are kept", after - before);

    const CYCLES: usize = 1000;
    let cycle = || drop(play(&fixtures::tiny(), (16, 8), 4));
    (0..CYCLES / 10).for_each(|_| cycle());
    let early = resident();
    (0..CYCLES).for_each(|_| cycle());
    let late = resident();
    println!("{early} bytes, {late} after {CYCLES} further cycles");
    assert!(late - early < 4 << 20, "{} bytes more after {CYCLES} cycles", late - early);
}
