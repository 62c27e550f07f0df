// SPDX-License-Identifier: MPL-2.0

//! The bundle nano2 in the element: one graph, a blend of two sets of weights, windows of six
//! frames of which neighbours share one.

use gst::prelude::*;

use super::feeds::same_bytes_for_any_feed;
use starsr_testkit::fixtures;
use starsr_testkit::rig::*;

/// Frames of a window, and those that neighbours share.
const LENGTH: u64 = 6;
const OVERLAP: u64 = 1;
const STRIDE: u64 = LENGTH - OVERLAP;

fn bundle() -> String {
    fixtures::repository("models/nano2").to_str().unwrap().to_owned()
}

/// The element with the bundle's own windows, and its own detail unless one is given.
fn element(detail: Option<f32>) -> gst::Element {
    let element = starsr(0, -1);
    element.set_property("model-path", bundle());
    element.set_property("strength", 1.0f32);
    if let Some(detail) = detail {
        element.set_property("detail", detail);
    }
    element
}

fn rig() -> Rig {
    let rig = Rig::new(element(None), None);
    rig.start(CAPS);
    rig
}

fn flush(rig: &Rig) {
    rig.event(gst::event::FlushStart::new());
    rig.event(gst::event::FlushStop::builder(true).build());
    rig.forget();
}

/// What a whole clip of `frames` frames becomes.
fn played(frames: u64) -> Vec<Vec<u8>> {
    let rig = rig();
    rig.push_textured(0..frames);
    assert!(rig.eos());
    assert_eq!(rig.labels().last().unwrap(), "eos");
    assert_eq!((rig.stat("frames-in"), rig.stat("frames-out")), (frames, frames));
    rig.taken(0..frames)
}

#[test]
fn as_many_frames_come_out_as_went_in() {
    let long = played(26);
    assert!(long.iter().all(|frame| frame.len() == 64 * 32 * 3 / 2));
    assert!(long.windows(2).all(|pair| pair[0] != pair[1]));
    for count in [0, 1, 2, 5, 6, 7, 10, 11, 12, 16, 17] {
        let short = played(count);
        // All windows but the last are those of the long clip.
        let whole = if count < LENGTH { 0 } else { (count - LENGTH) / STRIDE + 1 };
        let same = (whole * STRIDE) as usize;
        assert!(short[..same] == long[..same], "{count} frames");
    }
}

#[test]
fn frames_leave_with_the_last_of_their_window() {
    let rig = rig();
    assert_eq!(rig.stat("latency-frames"), LENGTH - 1);
    for k in 0..26 {
        rig.push_textured([k]);
        let out = rig.buffers().len() as u64;
        // The shared frame waits for its next window.
        let windows = if k + 1 < LENGTH { 0 } else { (k + 1 - LENGTH) / STRIDE + 1 };
        assert_eq!((rig.stat("windows"), out), (windows, windows * STRIDE), "{} frames", k + 1);
    }
}

#[test]
fn after_a_seek_frames_are_those_of_playing_through() {
    let whole = played(31);
    let rig = rig();
    for from in [1, 4, 5, 6, 13, 24] {
        // In the middle of a window.
        rig.push_textured(0..3);
        flush(&rig);
        rig.segment(FRAME * from);
        rig.push_textured(from..31);
        rig.eos();
        let part = rig.taken(from..31);
        // Windows lie on a grid, and only the first is cut short.
        let same = from.next_multiple_of(STRIDE) + OVERLAP;
        assert!(part[(same - from) as usize..] == whole[same as usize..], "from {from}");
        flush(&rig);
        rig.segment(gst::ClockTime::ZERO);
    }
}

#[test]
fn a_flush_forgets_what_is_inside() {
    let rig = rig();
    rig.push_textured(0..5);
    assert!(rig.buffers().is_empty());
    flush(&rig);
    rig.segment(gst::ClockTime::ZERO);
    rig.push_textured(0..8);
    rig.eos();
    assert!(rig.taken(0..8) == played(8));
}

#[test]
fn detail_changes_the_picture_and_nothing_else() {
    let run = |detail| {
        let rig = Rig::new(element(detail), None);
        rig.start(CAPS);
        rig.push_textured(0..12);
        rig.eos();
        rig.taken(0..12)
    };
    let default = run(None);
    let manifest = starsr::Bundle::open(bundle().as_ref()).unwrap().manifest().clone();
    assert!(run(Some(manifest.detail.unwrap().default)) == default);
    assert!(run(Some(-1.0)) == default);
    let [fidelity, detail] = [0.0, 1.0].map(|share| run(Some(share)));
    for ((a, b), c) in fidelity.iter().zip(&detail).zip(&default) {
        assert!(a != b && b != c && a != c);
    }
}

#[test]
fn reading_ahead_gives_the_same_bytes() {
    let element = element(None);
    element.set_property("read-ahead", true);
    let rig = Rig::new(element, None);
    rig.start(CAPS);
    rig.push_textured(0..23);
    rig.eos();
    assert!(rig.taken(0..23) == played(23));
}

#[test]
fn gst_launch_gives_the_same_bytes_for_any_feed() {
    same_bytes_for_any_feed(&bundle(), "detail=0.5", [1, 6, 7, 23]);
}
