// SPDX-License-Identifier: MPL-2.0

//! The documented rule for queues beside the element: they hold the latency of the branch with
//! starsr, and a second.

use std::path::Path;
use std::time::{Duration, Instant};

use gst::prelude::*;

use super::live::{of_the_documentation, replaced};
use super::rig::*;
use starsr_testkit::fixtures;
use starsr_testkit::patience::patiently;

const FRAMES: u32 = 250;
/// Without any movement for this long a pipeline whose queue is full is taken to stand.
const STILL: Duration = Duration::from_secs(10);

#[derive(Debug, PartialEq)]
enum End {
    Complete,
    Stalled,
}

/// The documented pipeline with sound, with these elements in it, and the end it comes to.
fn play(folder: &Path, starsr: &str, encoder: &str, queue: &str) -> (End, gst::Pipeline) {
    let documented = of_the_documentation("qtdemux").remove(0);
    let [from, to] =
        ["in.mp4", "out.mp4"].map(|name| format!("\"{}\"", folder.join(name).display()));
    let description = replaced(&replaced(&documented, "input.mp4", &from), "output.mp4", &to);
    let bundle = properties(&fixtures::tiny()).join(" ");
    let starsr = format!(" starsr name=s {bundle} scene-detection=false {starsr} ");
    let description = replaced(
        &replaced(&description, " starsr ", &starsr),
        " x264enc ",
        &format!(" {encoder} "),
    );
    let (before, after) = description.split_once("demux.audio_0 ! queue ").unwrap();
    let (_, after) = after.split_once(" ! ").unwrap();
    let pipeline = parse(&format!("{before} demux.audio_0 ! queue name=sound {queue} ! {after}"));
    let (element, sound) = (pipeline.by_name("s").unwrap(), pipeline.by_name("sound").unwrap());
    pipeline.set_state(gst::State::Playing).unwrap();
    let bus = pipeline.bus().unwrap();
    let (mut last, mut since) = (None, Instant::now());
    let end = patiently("neither an end nor a stall", || {
        let awaited = [gst::MessageType::Eos, gst::MessageType::Error];
        match bus.timed_pop_filtered(gst::ClockTime::from_mseconds(50), &awaited) {
            Some(message) if message.type_() == gst::MessageType::Eos => {
                return Some(End::Complete);
            }
            Some(message) => panic!("{message:?}"),
            None => (),
        }
        let level = sound.property::<u64>("current-level-time");
        let state = Some((stat(&element, "frames-in"), stat(&element, "frames-out"), level));
        if state != last {
            (last, since) = (state, Instant::now());
        }
        let full = level >= sound.property::<u64>("max-size-time");
        (since.elapsed() > STILL && full).then_some(End::Stalled)
    });
    (end, pipeline)
}

#[test]
fn a_queue_that_holds_the_latency_does_not_stall() {
    let folder = tempfile::tempdir().unwrap();
    make_clip(&folder.path().join("in.mp4"), FRAMES, true);
    let fast = "x264enc tune=zerolatency speed-preset=ultrafast";
    for (starsr, frames) in [
        ("window-length=64 window-overlap=2", 63),
        ("window-mode=wavefront window-length=8 window-overlap=4 sampler-mode=fast", 64),
    ] {
        let (end, pipeline) = play(folder.path(), starsr, fast, "");
        assert_eq!(end, End::Stalled, "{starsr} with a queue of one second");
        assert_eq!(stat(&pipeline.by_name("s").unwrap(), "latency-frames"), frames, "{starsr}");
        pipeline.set_state(gst::State::Null).unwrap();

        let rule = gst::ClockTime::SECOND + gst::ClockTime::from_mseconds(40) * frames;
        let queue =
            format!("max-size-bytes=0 max-size-buffers=0 max-size-time={}", rule.nseconds());
        let (end, pipeline) = play(folder.path(), starsr, fast, &queue);
        assert_eq!(end, End::Complete, "{starsr} with a queue of {rule}");
        assert_eq!(stat(&pipeline.by_name("s").unwrap(), "frames-out"), u64::from(FRAMES));
        pipeline.set_state(gst::State::Null).unwrap();
    }
}

/// An encoder that looks ahead counts too: the documented queue holds the default window and what
/// x264enc wants.
#[test]
fn the_queue_of_the_documentation_holds_what_the_encoder_looks_ahead() {
    let folder = tempfile::tempdir().unwrap();
    make_clip(&folder.path().join("in.mp4"), FRAMES, true);
    let default = "window-length=6 window-overlap=1";
    let (end, pipeline) = play(folder.path(), default, "x264enc", "");
    assert_eq!(end, End::Stalled);
    pipeline.set_state(gst::State::Null).unwrap();
    let documented = of_the_documentation("qtdemux").remove(0);
    let (_, queue) = documented.split_once("demux.audio_0 ! queue ").unwrap();
    let (end, pipeline) =
        play(folder.path(), default, "x264enc", queue.split_once(" ! ").unwrap().0);
    assert_eq!(end, End::Complete);
    pipeline.set_state(gst::State::Null).unwrap();
}
