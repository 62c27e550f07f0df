// SPDX-License-Identifier: MPL-2.0

//! A small exported bundle of STAR on CogVideoX: latents of four frames, windows of 25 frames that
//! start every 17, and two tiles.

use gst::prelude::*;

use super::feeds::same_bytes_for_any_feed;
use starsr_testkit::fixtures;
use starsr_testkit::rig::*;

/// Frames between the starts of windows, and frames that neighbours share.
const STRIDE: u64 = 17;
const OVERLAP: u64 = 8;

/// The bundle; `None` where it is missing.
fn bundle() -> Option<String> {
    fixtures::small_cogvideox("random").map(|folder| folder.to_str().unwrap().to_owned())
}

fn element(bundle: &str) -> gst::Element {
    let element = starsr(25, OVERLAP as i32);
    element.set_property("model-path", bundle);
    element.set_property("strength", 1.0f32);
    element.set_property("steps", 2u32);
    element
}

fn rig(bundle: &str) -> Rig {
    let rig = Rig::new(element(bundle), None);
    rig.start(CAPS);
    rig
}

/// What a whole clip of `frames` frames becomes.
fn played(bundle: &str, frames: u64) -> Vec<Vec<u8>> {
    let rig = rig(bundle);
    rig.push_textured(0..frames);
    assert!(rig.eos());
    rig.taken(0..frames)
}

#[test]
fn as_many_frames_come_out_as_went_in() {
    let Some(bundle) = bundle() else { return };
    let long = played(&bundle, 100);
    assert!(long.iter().all(|frame| frame.len() == 64 * 32 * 3 / 2));
    // The network makes something of them.
    assert!(long.windows(2).all(|pair| pair[0] != pair[1]));
    for count in [0, 1, 2, 9, 24, 25, 26, 49] {
        let short = played(&bundle, count);
        // All windows but the last are those of the long clip.
        let whole = if count < 25 { 0 } else { (count - 25) / STRIDE + 1 };
        let same = (whole * STRIDE) as usize;
        assert!(short[..same] == long[..same], "{count} frames");
    }
}

#[test]
fn frames_leave_within_the_latency() {
    let Some(bundle) = bundle() else { return };
    let rig = rig(&bundle);
    assert_eq!(rig.stat("latency-frames"), 24);
    for k in 0..45 {
        rig.push_textured([k]);
        let out = rig.buffers().len() as u64;
        assert!(out <= k + 1 && out + 24 > k, "{out} frames out after {} in", k + 1);
    }
    assert_eq!(rig.stat("windows"), 2);
}

#[test]
fn after_a_seek_frames_are_those_of_playing_through() {
    let Some(bundle) = bundle() else { return };
    let whole = played(&bundle, 70);
    let rig = rig(&bundle);
    for from in [1, 16, 17, 30, 51] {
        // In the middle of a window.
        rig.push_textured(0..5);
        rig.event(gst::event::FlushStart::new());
        rig.event(gst::event::FlushStop::builder(true).build());
        rig.forget();
        rig.segment(FRAME * from);
        rig.push_textured(from..70);
        rig.eos();
        let part = rig.taken(from..70);
        // Windows lie on a grid, and only the first is cut short.
        let same = from.next_multiple_of(STRIDE) + OVERLAP;
        assert!(part[(same - from) as usize..] == whole[same as usize..], "from {from}");
        rig.event(gst::event::FlushStart::new());
        rig.event(gst::event::FlushStop::builder(true).build());
        rig.forget();
        rig.segment(gst::ClockTime::ZERO);
    }
}

#[test]
fn a_flush_forgets_what_is_inside() {
    let Some(bundle) = bundle() else { return };
    let rig = rig(&bundle);
    rig.push_textured(0..20);
    assert!(rig.buffers().is_empty());
    rig.event(gst::event::FlushStart::new());
    rig.event(gst::event::FlushStop::builder(true).build());
    rig.segment(gst::ClockTime::ZERO);
    rig.push_textured(0..3);
    rig.eos();
    assert!(rig.taken(0..3) == played(&bundle, 3));
}

#[test]
fn a_cut_ends_a_window() {
    let Some(bundle) = bundle() else { return };
    let element = element(&bundle);
    element.set_property("scene-detection", true);
    let rig = Rig::new(element, None);
    rig.start(CAPS);
    // A change of pattern at frame 12.
    let stripes = |k: u64| {
        let mut buffer = textured_frame(k);
        let mut map = buffer.make_mut().map_writable().unwrap();
        for (i, value) in map[..16 * 8].iter_mut().enumerate() {
            let bit = if k < 12 { i % 16 } else { i / 16 };
            *value = if bit & 2 == 0 { 60 } else { 200 };
        }
        drop(map);
        buffer
    };
    for k in 0..30 {
        rig.push(stripes(k)).unwrap();
        if k == 12 {
            assert_eq!(rig.buffers().len(), 12);
        }
    }
    rig.eos();
    rig.taken(0..30);
    // 0 to 12; 12 to 25 and 17 to 30 on the grid.
    assert_eq!((rig.stat("scene-cuts"), rig.stat("windows")), (1, 3));
}

#[test]
fn another_size_than_the_trained_one_is_a_warning() {
    let Some(bundle) = bundle() else { return };
    for (tile, warned) in [(0_u32, false), (32768, true), (48, true)] {
        let element = element(&bundle);
        element.set_property("tile-size", tile);
        let rig = Rig::new(element, None);
        rig.start("video/x-raw,format=I420,width=24,height=24,framerate=25/1");
        let warnings = rig.messages(gst::MessageType::Warning);
        let text = |message: &gst::Message| match message.view() {
            gst::MessageView::Warning(warning) => warning.error().message().to_string(),
            _ => String::new(),
        };
        let texts: Vec<String> = warnings.iter().map(text).collect();
        assert_eq!(!texts.is_empty(), warned, "{tile}: {texts:?}");
        assert!(texts.iter().all(|t| t.contains("trained for pictures of 48x32")), "{texts:?}");
    }
}

#[test]
fn gst_launch_gives_the_same_bytes_for_any_feed() {
    let Some(bundle) = bundle() else { return };
    same_bytes_for_any_feed(&bundle, "steps=2", [1, 25, 26, 49, 100]);
}
