// SPDX-License-Identifier: MPL-2.0

//! Whole pipelines, as users write them.

use std::sync::{Arc, Mutex};

use gst::prelude::*;

use starsr_testkit::fixtures;
use starsr_testkit::rig::*;

/// Plays to the end and returns to NULL.
#[track_caller]
pub fn run(pipeline: &gst::Pipeline) {
    run_with(pipeline, || ());
}

/// [`run`] with a look at the end, before NULL.
#[track_caller]
pub fn run_with(pipeline: &gst::Pipeline, look: impl FnOnce()) {
    pipeline.set_state(gst::State::Playing).unwrap();
    wait_for_end(pipeline);
    look();
    pipeline.set_state(gst::State::Null).unwrap();
}

/// Waits for the end, and has the latency distributed anew where an element asks for it, as
/// gst-launch and playbin do.
#[track_caller]
pub fn wait_for_end(pipeline: &gst::Pipeline) {
    let awaited = [gst::MessageType::Eos, gst::MessageType::Error, gst::MessageType::Latency];
    loop {
        match message(pipeline, &awaited).view() {
            gst::MessageView::Latency(_) => {
                let _ = pipeline.recalculate_latency();
            }
            gst::MessageView::Error(error) => panic!("{}: {:?}", error.error(), error.debug()),
            _ => return,
        }
    }
}

/// Parses `description`, in which `starsr` stands for the element with the tiny bundle.
pub fn pipeline(description: &str) -> gst::Pipeline {
    init();
    let element = format!(
        "starsr name=s model-path=\"{}\" ort-library=\"{}\" execution-provider=cpu threads=1 \
         window-length=8 window-overlap=2 strength=0 scene-detection=false",
        fixtures::tiny().display(),
        fixtures::onnx_runtime().display()
    );
    gst::parse::launch(&description.replace("! starsr ", &format!("! {element} ")))
        .unwrap()
        .downcast()
        .unwrap()
}

pub type Seen = Arc<Mutex<Vec<(Option<gst::ClockTime>, gst::Caps)>>>;

/// Records time and caps of each buffer that enters the pad.
pub fn watch(pipeline: &gst::Pipeline, element: &str, pad: &str) -> Seen {
    let seen = Seen::default();
    let to = seen.clone();
    let pad = pipeline.by_name(element).unwrap().static_pad(pad).unwrap();
    pad.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
        if let Some(buffer) = info.buffer() {
            to.lock().unwrap().push((buffer.pts(), pad.current_caps().unwrap()));
        }
        gst::PadProbeReturn::Ok
    });
    seen
}

pub fn times(seen: &Seen) -> Vec<Option<gst::ClockTime>> {
    seen.lock().unwrap().iter().map(|(time, _)| *time).collect()
}

/// An MP4 of `frames` frames, 64x48, and with sound if asked for.
pub fn make_clip(path: &std::path::Path, frames: u32, sound: bool) {
    let audio = if sound {
        format!(
            "audiotestsrc num-buffers={frames} samplesperbuffer=1920 ! audio/x-raw,rate=48000 ! avenc_aac ! m. "
        )
    } else {
        String::new()
    };
    run(&pipeline(&format!(
        "videotestsrc num-buffers={frames} pattern=ball ! video/x-raw,width=64,height=48,framerate=25/1,\
         pixel-aspect-ratio=4/3 ! x264enc speed-preset=ultrafast bframes=2 key-int-max=10 ! h264parse ! m. {audio}\
         mp4mux name=m ! filesink location=\"{}\"",
        path.display()
    )));
}

#[test]
fn a_file_goes_through_as_written() {
    init();
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("in.mp4"), folder.path().join("aus gäbe.mp4"));
    make_clip(&from, 20, false);
    let p = pipeline(&format!(
        "filesrc location=\"{}\" ! decodebin ! starsr ! x264enc speed-preset=ultrafast ! mp4mux ! filesink location=\"{}\"",
        from.display(),
        to.display()
    ));
    let (entered, left) = (watch(&p, "s", "sink"), watch(&p, "s", "src"));
    run(&p);
    assert_eq!(times(&entered).len(), 20);
    assert_eq!(times(&entered), times(&left));

    let p =
        pipeline(&format!("filesrc location=\"{}\" ! decodebin ! fakesink name=f", to.display()));
    let seen = watch(&p, "f", "sink");
    run(&p);
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 20);
    let s = seen[0].1.structure(0).unwrap();
    assert_eq!((s.get::<i32>("width").unwrap(), s.get::<i32>("height").unwrap()), (256, 192));
    assert_eq!(s.get::<gst::Fraction>("pixel-aspect-ratio").unwrap(), gst::Fraction::new(4, 3));
    assert_eq!(s.get::<gst::Fraction>("framerate").unwrap(), gst::Fraction::new(25, 1));
}

/// As in MJPEG files and yuvj420p ones: full-range YUV.
#[test]
fn the_full_range_of_jpeg_is_kept() {
    let p = pipeline(
        "videotestsrc num-buffers=10 ! video/x-raw,width=32,height=16,format=I420 ! jpegenc ! jpegdec ! starsr ! \
         fakesink name=f",
    );
    let (entered, left) = (watch(&p, "s", "sink"), watch(&p, "f", "sink"));
    run(&p);
    let (entered, left) = (entered.lock().unwrap(), left.lock().unwrap());
    assert_eq!(left.len(), 10);
    let colours =
        |caps: &gst::Caps| caps.structure(0).unwrap().get::<String>("colorimetry").unwrap();
    assert_eq!(colours(&left[0].1), colours(&entered[0].1));
    assert!(colours(&left[0].1).starts_with("1:"), "{}", colours(&left[0].1));
}

/// The documented rule: a branch beside the element holds two windows and one more second.
#[test]
fn sound_beside_the_element_is_muxed() {
    init();
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("in.mp4"), folder.path().join("out.mp4"));
    make_clip(&from, 75, true);
    let p = pipeline(&format!(
        "filesrc location=\"{}\" ! qtdemux name=d \
         d.video_0 ! queue ! decodebin ! starsr ! x264enc speed-preset=ultrafast tune=zerolatency ! mp4mux name=m ! \
         filesink location=\"{}\" \
         d.audio_0 ! queue max-size-bytes=0 max-size-buffers=0 max-size-time=1640000000 ! m.",
        from.display(),
        to.display()
    ));
    let left = watch(&p, "s", "src");
    run(&p);
    assert_eq!(times(&left).len(), 75);
}

#[test]
fn seeks_land_and_then_everything_plays() {
    init();
    let folder = tempfile::tempdir().unwrap();
    let from = folder.path().join("in.mp4");
    make_clip(&from, 60, false);
    let p = pipeline(&format!(
        "filesrc location=\"{}\" ! decodebin ! starsr ! fakesink name=f sync=false",
        from.display()
    ));
    let seen = watch(&p, "f", "sink");
    let bus = p.bus().unwrap();
    p.set_state(gst::State::Paused).unwrap();
    settle(&p);
    p.set_state(gst::State::Playing).unwrap();
    for i in 0..30u64 {
        let to = gst::ClockTime::from_mseconds(i * 613 % 2300);
        p.seek_simple(gst::SeekFlags::FLUSH | gst::SeekFlags::ACCURATE, to).unwrap();
    }
    settle(&p);
    // After the last one, from frame 12, nothing may be missing.
    seen.lock().unwrap().clear();
    p.seek_simple(gst::SeekFlags::FLUSH | gst::SeekFlags::ACCURATE, FRAME * 12).unwrap();
    while bus.pop().is_some() {}
    wait_for_end(&p);
    let times = times(&seen);
    let first = times.iter().rposition(|t| *t == times[times.len() - 48]).unwrap();
    assert_eq!(first, times.len() - 48);
    for pair in times[first..].windows(2) {
        assert_eq!(pair[1].unwrap() - pair[0].unwrap(), FRAME);
    }
    p.set_state(gst::State::Null).unwrap();
}

#[test]
fn two_elements_in_a_row() {
    let p = pipeline(
        "videotestsrc num-buffers=20 ! video/x-raw,width=16,height=8,framerate=25/1 ! starsr ! queue ! \
         fakesink name=f",
    );
    let second = starsr(4, 1);
    p.add(&second).unwrap();
    let (first, sink) = (p.by_name("s").unwrap(), p.by_name("f").unwrap());
    let queue = first.static_pad("src").unwrap().peer().unwrap().parent_element().unwrap();
    first.unlink(&queue);
    gst::Element::link_many([&first, &second, &queue]).unwrap();
    let seen = watch(&p, "f", "sink");
    run(&p);
    drop(sink);
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 20);
    assert_eq!(seen[0].1.structure(0).unwrap().get::<i32>("width").unwrap(), 256);
}

#[test]
fn switching_inputs_loses_nothing() {
    let p = pipeline(
        "concat name=c ! starsr ! fakesink name=f \
         videotestsrc num-buffers=11 ! video/x-raw,width=16,height=8,framerate=25/1 ! c. \
         videotestsrc num-buffers=13 ! video/x-raw,width=32,height=24,framerate=25/1 ! c.",
    );
    let seen = watch(&p, "f", "sink");
    run(&p);
    let widths: Vec<_> = seen
        .lock()
        .unwrap()
        .iter()
        .map(|(_, caps)| caps.structure(0).unwrap().get::<i32>("width").unwrap())
        .collect();
    assert_eq!(widths, [vec![64; 11], vec![128; 13]].concat());
}

/// An encoder or file that fails: its error and the source's, none of ours, and no hang.
#[test]
fn a_failing_sink_ends_the_pipeline() {
    init();
    let p = pipeline(
        "videotestsrc num-buffers=100 ! video/x-raw,width=16,height=8,framerate=25/1 ! starsr ! \
         identity error-after=5 ! fakesink",
    );
    p.set_state(gst::State::Playing).unwrap();
    let end = message(&p, &[gst::MessageType::Eos, gst::MessageType::Error]);
    assert_eq!(end.type_(), gst::MessageType::Error);
    assert_ne!(end.src(), p.by_name("s").as_ref().map(|s| s.upcast_ref()));
    p.set_state(gst::State::Null).unwrap();
}
