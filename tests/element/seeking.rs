// SPDX-License-Identifier: MPL-2.0

//! Seeks, rates and trick modes in pipelines that play a file.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use gst::prelude::*;

use super::pipelines::{make_clip, pipeline};
use starsr_testkit::rig::*;

const FRAMES: u64 = 60;

/// Frame number and bytes of what arrives.
type Arrived = Arc<Mutex<Vec<(u64, Vec<u8>)>>>;

struct Player {
    pipeline: gst::Pipeline,
    arrived: Arrived,
    _folder: tempfile::TempDir,
}

impl Player {
    /// Prerolls a file of [`FRAMES`] frames, of which every tenth is a key frame.
    fn new() -> Self {
        init();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("in.mp4");
        make_clip(&file, FRAMES as u32, false);
        let pipeline = pipeline(&format!(
            "filesrc location=\"{}\" ! decodebin ! starsr ! fakesink name=f sync=false",
            file.display()
        ));
        pipeline.by_name("s").unwrap().set_property("strength", 1.0f32);
        let arrived = Arrived::default();
        let to = arrived.clone();
        let pad = pipeline.by_name("f").unwrap().static_pad("sink").unwrap();
        let sink = pipeline.by_name("f").unwrap();
        let kinds = gst::PadProbeType::BUFFER
            | gst::PadProbeType::EVENT_DOWNSTREAM
            | gst::PadProbeType::EVENT_FLUSH;
        pad.add_probe(kinds, move |pad, info| {
            match &info.data {
                Some(gst::PadProbeData::Buffer(buffer)) => {
                    let segment = pad.sticky_event::<gst::event::Segment>(0).unwrap();
                    let segment = segment.segment().downcast_ref::<gst::ClockTime>().unwrap();
                    let time = segment.to_stream_time(buffer.pts()).unwrap();
                    to.lock().unwrap().push(((time + FRAME / 2) / FRAME, bytes(buffer)));
                }
                Some(gst::PadProbeData::Event(event)) => match event.type_() {
                    gst::EventType::FlushStop => to.lock().unwrap().clear(),
                    // The demuxer's own message comes before the frames do.
                    gst::EventType::SegmentDone => {
                        let done = gst::Structure::new_empty("segment-done");
                        sink.post_message(gst::message::Application::new(done)).unwrap();
                    }
                    _ => {}
                },
                _ => {}
            }
            gst::PadProbeReturn::Ok
        });
        let player = Self { pipeline, arrived, _folder: folder };
        player.pipeline.set_state(gst::State::Paused).unwrap();
        player.wait_for(gst::MessageType::AsyncDone);
        player
    }

    #[track_caller]
    fn wait_for(&self, kind: gst::MessageType) {
        let message = message(&self.pipeline, &[kind, gst::MessageType::Error]);
        assert_eq!(message.type_(), kind, "{message:?}");
    }

    /// Seeks in PAUSED and waits until the first frame is there.
    #[track_caller]
    fn seek(&self, rate: f64, flags: gst::SeekFlags, frames: std::ops::Range<u64>) {
        let flags = flags | gst::SeekFlags::FLUSH;
        let set = gst::SeekType::Set;
        self.pipeline
            .seek(rate, flags, set, FRAME * frames.start, set, FRAME * frames.end)
            .unwrap();
        self.wait_for(gst::MessageType::AsyncDone);
    }

    /// Plays until a message of `kind` and gives what has arrived since the last flush.
    #[track_caller]
    fn play(&self, kind: gst::MessageType) -> Vec<(u64, Vec<u8>)> {
        self.pipeline.set_state(gst::State::Playing).unwrap();
        self.wait_for(kind);
        self.pipeline.set_state(gst::State::Paused).unwrap();
        self.arrived.lock().unwrap().clone()
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        let _ = self.pipeline.set_state(gst::State::Null);
    }
}

fn numbers(frames: &[(u64, Vec<u8>)]) -> Vec<u64> {
    frames.iter().map(|(number, _)| *number).collect()
}

#[test]
fn after_a_seek_frames_are_those_of_playing_through() {
    let player = Player::new();
    let whole = player.play(gst::MessageType::Eos);
    assert_eq!(numbers(&whole), (0..FRAMES).collect::<Vec<_>>());
    for from in [1, 12, 29, 30, 43] {
        player.seek(1.0, gst::SeekFlags::ACCURATE, from..FRAMES);
        let part = player.play(gst::MessageType::Eos);
        assert_eq!(numbers(&part), (from..FRAMES).collect::<Vec<_>>());
        // Windows of eight frames start every six and share two.
        let same = from.next_multiple_of(6) + 2;
        assert!(part[(same - from) as usize..] == whole[same as usize..], "from {from}");
    }
}

#[test]
fn every_rate_plays_every_frame() {
    let player = Player::new();
    let whole: BTreeMap<_, _> = player.play(gst::MessageType::Eos).into_iter().collect();
    for rate in [0.5, 2.0, -1.0, -2.0] {
        player.seek(rate, gst::SeekFlags::ACCURATE, 0..FRAMES);
        let played = player.play(gst::MessageType::Eos);
        let mut expected: Vec<_> = (0..FRAMES).collect();
        if rate < 0.0 {
            expected.reverse();
        }
        assert_eq!(numbers(&played), expected, "rate {rate}");
        assert!(
            rate < 0.0 || played.iter().all(|(number, bytes)| whole[number] == *bytes),
            "rate {rate}"
        );
    }
}

/// A part is played again and again without a flush in between.
#[test]
fn segment_seeks_loop_without_losing_a_frame() {
    let player = Player::new();
    player.seek(1.0, gst::SeekFlags::ACCURATE | gst::SeekFlags::SEGMENT, 12..36);
    let once = player.play(gst::MessageType::Application);
    assert_eq!(numbers(&once), (12..36).collect::<Vec<_>>());
    for loops in 2..=4 {
        let set = gst::SeekType::Set;
        let flags = gst::SeekFlags::ACCURATE | gst::SeekFlags::SEGMENT;
        player.pipeline.seek(1.0, flags, set, FRAME * 12, set, FRAME * 36).unwrap();
        let all = player.play(gst::MessageType::Application);
        assert!(all == vec![once.clone(); loops].concat(), "{loops} loops: {:?}", numbers(&all));
    }
}

/// Fast forward over key frames: each comes out at once, as no neighbour of its is there to wait
/// for.
#[test]
fn key_units_come_out_one_by_one() {
    let player = Player::new();
    let flags = gst::SeekFlags::TRICKMODE | gst::SeekFlags::TRICKMODE_KEY_UNITS;
    player.seek(4.0, flags, 0..FRAMES);
    let played = player.play(gst::MessageType::Eos);
    assert_eq!(numbers(&played), (0..FRAMES).step_by(10).collect::<Vec<_>>());
    player.seek(-4.0, flags, 0..FRAMES);
    let played = player.play(gst::MessageType::Eos);
    assert_eq!(numbers(&played), [50, 40, 30, 20, 10, 0]);
}
