// SPDX-License-Identifier: MPL-2.0

//! The live pipelines of the documentation, with test pictures in place of a camera and without a
//! window.

use std::net::UdpSocket;
use std::sync::{Arc, Mutex};

use gst::prelude::*;

use super::rig::*;

/// The `gst-launch-1.0` pipelines in README.md and the pages of docs/ that hold `part`.
pub fn of_the_documentation(part: &str) -> Vec<String> {
    let mut pages = vec![source("README.md")];
    pages.extend(source("docs").read_dir().unwrap().map(|entry| entry.unwrap().path()));
    pages.retain(|page| page.extension().is_some_and(|extension| extension == "md"));
    pages.sort();
    let text: String = pages.iter().map(|page| std::fs::read_to_string(page).unwrap()).collect();
    let found: Vec<_> = text
        .replace("\\\n", " ")
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("gst-launch-1.0 "))
        .filter(|line| line.contains(part))
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    assert!(!found.is_empty(), "no page has a pipeline with {part}");
    found
}

/// `from` in `text`, which has to be there, becomes `to`.
pub fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from:?} is not in: {text}");
    text.replace(from, to)
}

/// With small frames and a sink that shows them at their times, to nobody.
fn small(pipeline: &str) -> String {
    let pipeline = replaced(pipeline, "starsr ", "starsr name=s ");
    replaced(&pipeline, "autovideosink", "fakesink name=f sync=true")
}

fn rendered(pipeline: &gst::Pipeline) -> u64 {
    stat(&pipeline.by_name("f").unwrap(), "rendered")
}

/// Every frame has left, and each window was restored or left out.
#[track_caller]
fn assert_complete(pipeline: &gst::Pipeline, posted: &[gst::Structure]) {
    let starsr = pipeline.by_name("s").unwrap();
    let frames = stat(&starsr, "frames-in");
    assert!(frames > 0);
    assert_eq!((stat(&starsr, "frames-out"), rendered(pipeline)), (frames, frames));
    let of = |name: &'static str| posted.iter().filter(move |s| s.name() == name);
    let bypassed: u64 = of("starsr-bypass").map(|s| s.get::<u64>("frames").unwrap()).sum();
    assert_eq!(stat(&starsr, "bypassed"), bypassed, "{posted:?}");
    assert!(of("starsr-progress").count() + of("starsr-bypass").count() > 0);
    let caps = pipeline.by_name("f").unwrap().static_pad("sink").unwrap().current_caps().unwrap();
    let s = caps.structure(0).unwrap();
    assert_eq!((s.get("width"), s.get("height")), (Ok(128), Ok(96)));
}

#[test]
fn a_camera_is_upscaled() {
    for description in of_the_documentation("v4l2src") {
        let description = replaced(
            &small(&description),
            "width=160,height=120",
            "width=32,height=24,framerate=25/1",
        );
        let camera = "videotestsrc is-live=true num-buffers=15";
        let pipeline = parse(&replaced(&description, "v4l2src", camera));
        pipeline.set_state(gst::State::Playing).unwrap();
        let posted = wait(&pipeline, || false);
        assert_complete(&pipeline, &posted);
        assert_eq!(rendered(&pipeline), 15);
        pipeline.set_state(gst::State::Null).unwrap();
    }
}

/// Sender and receiver of the documentation over the loopback interface, then with another codec.
#[test]
fn a_stream_is_received_and_upscaled() {
    let [sender, receiver] =
        ["udpsink", "udpsrc"].map(|element| of_the_documentation(element).remove(0));
    stream(&sender, &receiver);
    let sender = replaced(
        &sender,
        "x264enc tune=zerolatency key-int-max=25",
        "vp8enc deadline=1 keyframe-max-dist=25",
    );
    let receiver = replaced(&replaced(&receiver, "=H264", "=VP8"), "avdec_h264", "vp8dec");
    let sender = replaced(&sender, "rtph264pay config-interval=-1", "rtpvp8pay");
    stream(&sender, &replaced(&receiver, "rtph264depay", "rtpvp8depay"));
}

fn stream(sender: &str, receiver: &str) {
    const FRAMES: u64 = 40;
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let port = format!("port={port}");
    let sender = parse(&replaced(
        &replaced(sender, "port=5004", &port),
        "width=160,height=120",
        "width=32,height=24",
    ));
    let receiver = parse(&small(&replaced(receiver, "port=5004", &port)));
    let [came, left] = ["s", "f"].map(|name| {
        let times = Arc::new(Mutex::new(Vec::new()));
        let noted = times.clone();
        let pad = receiver.by_name(name).unwrap().static_pad("sink").unwrap();
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            noted.lock().unwrap().push(info.buffer().unwrap().pts().unwrap());
            gst::PadProbeReturn::Ok
        });
        times
    });
    receiver.set_state(gst::State::Playing).unwrap();
    sender.set_state(gst::State::Playing).unwrap();
    let starsr = receiver.by_name("s").unwrap();
    let mut posted = wait(&receiver, || stat(&starsr, "frames-in") >= FRAMES);
    // A socket has no end; the application says when it has enough.
    assert!(receiver.send_event(gst::event::Eos::new()));
    posted.extend(wait(&receiver, || false));
    assert_complete(&receiver, &posted);
    let [came, left] = [&came, &left].map(|times| times.lock().unwrap().clone());
    assert_eq!(left, came);
    // On a busy machine the jitter buffer gives neighbours the same time.
    assert!(left.is_sorted(), "{left:?}");
    for pipeline in [sender, receiver] {
        pipeline.set_state(gst::State::Null).unwrap();
    }
}
