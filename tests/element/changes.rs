// SPDX-License-Identifier: MPL-2.0

//! Pipelines that change while they play, and ways of playing.

use std::sync::atomic::{AtomicUsize, Ordering};

use gst::prelude::*;

use super::pipelines::{make_clip, pipeline, run, times, wait_for_end, watch};
use starsr_testkit::rig::*;

fn sizes(seen: &super::pipelines::Seen) -> Vec<(i32, i32)> {
    let size = |caps: &gst::Caps| {
        let s = caps.structure(0).unwrap();
        (s.get("width").unwrap(), s.get("height").unwrap())
    };
    seen.lock().unwrap().iter().map(|(_, caps)| size(caps)).collect()
}

/// Does something before the frame `k` that enters `element`.
fn before_frame(
    pipeline: &gst::Pipeline,
    element: &str,
    k: usize,
    change: impl Fn(&gst::Pipeline) + Send + Sync + 'static,
) {
    let (seen, weak) = (AtomicUsize::new(0), pipeline.downgrade());
    let pad = pipeline.by_name(element).unwrap().static_pad("sink").unwrap();
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, _| {
        if seen.fetch_add(1, Ordering::SeqCst) == k {
            change(&weak.upgrade().unwrap());
        }
        gst::PadProbeReturn::Ok
    });
}

#[test]
fn a_selector_switches_between_inputs() {
    let p = pipeline(
        "input-selector name=i sync-streams=false ! identity eos-after=41 ! starsr ! fakesink name=f \
         videotestsrc ! video/x-raw,width=16,height=8,framerate=25/1 ! identity sleep-time=2000 ! i.sink_0 \
         videotestsrc ! video/x-raw,width=32,height=24,framerate=25/1 ! identity sleep-time=2000 ! i.sink_1",
    );
    let (entered, left) = (watch(&p, "s", "sink"), watch(&p, "f", "sink"));
    for k in [5, 12, 17, 24] {
        before_frame(&p, "s", k, |p| {
            let selector = p.by_name("i").unwrap();
            let active = selector.property::<gst::Pad>("active-pad").name();
            let other = if active == "sink_0" { "sink_1" } else { "sink_0" };
            selector.set_property("active-pad", selector.static_pad(other).unwrap());
        });
    }
    run(&p);
    let entered = sizes(&entered);
    let switches = entered.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert_eq!((entered.len(), switches), (40, 4), "{entered:?}");
    let enlarged: Vec<_> = entered.iter().map(|(w, h)| (4 * w, 4 * h)).collect();
    assert_eq!(enlarged, sizes(&left));
}

#[test]
fn another_size_may_be_wanted_while_it_plays() {
    let p = pipeline(
        "videotestsrc num-buffers=40 ! video/x-raw,format=I420,width=32,height=24,framerate=25/1 ! \
         starsr ! capsfilter name=c caps=video/x-raw,width=128 ! fakesink name=f",
    );
    let (entered, left) = (watch(&p, "s", "sink"), watch(&p, "f", "sink"));
    before_frame(&p, "s", 21, |p| {
        let caps: gst::Caps = "video/x-raw,width=64,height=48".parse().unwrap();
        p.by_name("c").unwrap().set_property("caps", caps);
    });
    run(&p);
    assert_eq!(times(&entered), times(&left));
    let sizes = sizes(&left);
    let first = sizes.iter().position(|size| *size == (64, 48)).expect("the size does not change");
    // What was inside goes out as it was wanted when it came.
    assert!((20..=22).contains(&first), "from frame {first} on");
    assert!(
        sizes[..first].iter().all(|size| *size == (128, 96))
            && sizes[first..].iter().all(|s| *s == (64, 48))
    );
}

#[test]
fn what_becomes_impossible_ends_with_an_error_after_the_frames_inside() {
    let p = pipeline(
        "videotestsrc num-buffers=40 ! video/x-raw,format=I420,width=32,height=24,framerate=25/1 ! \
         starsr read-ahead=false ! capsfilter name=c ! fakesink name=f",
    );
    // Downstream takes no frame of the old caps any more, so those of a window at work would be lost.
    let left = watch(&p, "f", "sink");
    before_frame(&p, "s", 21, |p| {
        p.by_name("c").unwrap().set_property("caps", "audio/x-raw".parse::<gst::Caps>().unwrap());
    });
    p.set_state(gst::State::Playing).unwrap();
    let end = message(&p, &[gst::MessageType::Error, gst::MessageType::Eos]);
    let gst::MessageView::Error(error) = end.view() else { panic!("no error") };
    assert!(error.debug().unwrap().contains("not-negotiated"), "{:?}", error.debug());
    p.set_state(gst::State::Null).unwrap();
    // Windows of eight frames, two of them shared, out of 21.
    assert!(times(&left).len() >= 18, "{} frames came out", times(&left).len());
}

#[test]
fn a_file_plays_backwards() {
    init();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in.mp4");
    make_clip(&path, 60, false);
    let p = pipeline(&format!(
        "filesrc location=\"{}\" ! decodebin ! starsr ! fakesink name=f sync=false",
        path.display()
    ));
    let (entered, left) = (watch(&p, "s", "sink"), watch(&p, "f", "sink"));
    p.set_state(gst::State::Paused).unwrap();
    settle(&p);

    let flags = gst::SeekFlags::FLUSH | gst::SeekFlags::ACCURATE;
    let set = gst::SeekType::Set;
    p.seek(-1.0, flags, set, gst::ClockTime::ZERO, set, FRAME * 60).unwrap();
    settle(&p);
    // The frames of before the seek are gone.
    p.set_state(gst::State::Playing).unwrap();
    wait_for_end(&p);
    // From the last frame on; a decoder may leave out some that have lost what they refer to.
    let [came, out] = [&entered, &left].map(|seen| {
        let times = times(seen);
        let from = times
            .iter()
            .rposition(|time| *time == Some(FRAME * 59))
            .expect("the last frame is missing");
        times[from..].to_vec()
    });
    assert_eq!(out, came);
    assert!(out.len() >= 56 && out.windows(2).all(|pair| pair[0] > pair[1]), "{out:?}");

    p.set_state(gst::State::Null).unwrap();
}
