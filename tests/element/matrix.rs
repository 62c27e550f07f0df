// SPDX-License-Identifier: MPL-2.0

//! Pipelines of many real elements: every frame that goes in comes out.

use std::path::Path;

use gst::prelude::*;

use super::pipelines::{pipeline, run, run_with, times, watch};
use starsr_testkit::fixtures;
use starsr_testkit::rig::*;

pub const CLIP: &str =
    "videotestsrc num-buffers=23 pattern=ball ! video/x-raw,width=32,height=24,framerate=25/1";

/// Plays `description` and counts: what leaves starsr has the times of what enters, and as many
/// frames as entered enter the element `f` behind it.
#[track_caller]
pub fn check(description: &str, frames: Option<usize>) {
    row(description, description, frames);
}

/// [`check`] of a pipeline that goes by another `name` in the table that `--nocapture` shows:
/// frames in, frames out, name.
#[track_caller]
pub fn row(name: &str, description: &str, frames: Option<usize>) {
    let p = pipeline(description);
    let (entered, left, arrived) =
        (watch(&p, "s", "sink"), watch(&p, "s", "src"), watch(&p, "f", "sink"));
    run_with(&p, || {
        let stats = p.by_name("s").unwrap().property::<gst::Structure>("stats");
        let count = |field| stats.get::<u64>(field).unwrap() as usize;
        assert_eq!(
            (count("frames-in"), count("frames-out")),
            (times(&entered).len(), times(&left).len())
        );
    });
    let entered = times(&entered);
    println!("{:5} {:5}  {name}", entered.len(), times(&arrived).len());
    assert!(entered == times(&left), "{description}: {entered:?}, but {:?}", times(&left));
    assert_eq!(times(&arrived).len(), entered.len(), "{description}");
    assert!(
        frames.is_none_or(|frames| frames == entered.len()),
        "{description}: {} frames",
        entered.len()
    );
    assert!(!entered.is_empty(), "{description}");
}

#[test]
fn sources_of_every_kind() {
    for source in [
        CLIP.to_string(),
        CLIP.replace("video/x-raw,", "video/x-raw,format=NV12,"),
        CLIP.replace("video/x-raw,", "video/x-raw,format=BGRx,"),
        CLIP.replace("video/x-raw,", "video/x-raw,format=P010_10LE,"),
        CLIP.replace("25/1", "30000/1001"),
        CLIP.replace("25/1", "1/2"),
        CLIP.replace("num-buffers=23", "num-buffers=1"),
        format!("{CLIP} ! videorate ! video/x-raw,framerate=50/1"),
        format!("{CLIP} ! imagefreeze num-buffers=23"),
        format!("{CLIP} ! videocrop left=1 top=1 bottom=2 ! video/x-raw,width=31,height=21"),
        format!("{CLIP} ! videoflip method=clockwise"),
        format!("{CLIP} ! identity drop-probability=0.3"),
        format!("{CLIP} ! identity single-segment=true ! queue max-size-buffers=2"),
        format!("{CLIP} ! rtpvrawpay ! rtpvrawdepay"),
        format!("{CLIP} ! interlace field-pattern=1:1 ! deinterlace fields=all"),
        format!("{CLIP} ! pngenc ! pngdec"),
    ] {
        check(&format!("{source} ! starsr ! fakesink name=f"), None);
    }
}

#[test]
fn codecs_and_containers_in_front() {
    for coded in [
        "x264enc speed-preset=ultrafast bframes=2 ! h264parse ! mpegtsmux ! tsdemux ! h264parse ! avdec_h264",
        "x264enc speed-preset=ultrafast ! h264parse ! matroskamux ! matroskademux ! h264parse ! avdec_h264",
        "x264enc speed-preset=ultrafast tune=zerolatency ! rtph264pay ! rtph264depay ! h264parse ! avdec_h264",
        "vp8enc deadline=1 ! matroskamux ! matroskademux ! vp8dec",
        "vp9enc deadline=1 cpu-used=8 ! webmmux ! matroskademux ! vp9dec",
        "jpegenc ! matroskamux ! matroskademux ! jpegdec",
    ] {
        check(&format!("{CLIP} ! videoconvert ! {coded} ! starsr ! fakesink name=f"), Some(23));
    }
}

#[test]
fn sinks_of_every_kind() {
    for sink in [
        "fakesink name=f sync=true",
        "x264enc name=f speed-preset=ultrafast tune=zerolatency ! h264parse ! fakesink",
        "x264enc name=f speed-preset=ultrafast ! mp4mux ! fakesink",
        "vp8enc name=f deadline=1 ! webmmux ! fakesink",
        "vp9enc name=f deadline=1 cpu-used=8 ! matroskamux ! fakesink",
        "jpegenc name=f ! avimux ! fakesink",
        "pngenc name=f ! fakesink",
        "theoraenc name=f ! oggmux ! fakesink",
        "queue name=f max-size-buffers=1 ! videoscale ! video/x-raw,width=17,height=19 ! fakesink",
        "tee name=f ! queue ! fakesink f. ! queue ! fakesink",
        "videorate name=f ! video/x-raw,framerate=10/1 ! fakesink",
        "capsfilter name=f caps=video/x-raw,format=RGB,width=50 ! fakesink",
    ] {
        check(&format!("{CLIP} ! starsr ! {sink}"), Some(23));
    }
}

/// Frames of an application, without any times.
#[test]
fn an_application_may_push_frames_without_times() {
    init();
    let p = pipeline(&format!("appsrc name=a format=time caps={CAPS} ! starsr ! fakesink name=f"));
    let arrived = watch(&p, "f", "sink");
    let source = p.by_name("a").unwrap().downcast::<gst_app::AppSrc>().unwrap();
    for k in 0..21 {
        let mut buffer = frame(k);
        let b = buffer.make_mut();
        b.set_pts(None);
        b.set_dts(None);
        b.set_duration(None);
        source.push_buffer(buffer).unwrap();
    }
    source.end_of_stream().unwrap();
    run(&p);
    assert_eq!(times(&arrived), vec![None; 21]);
}

/// Frames for an application, which takes them one by one.
#[test]
fn an_application_may_pull_frames() {
    init();
    let p = pipeline(&format!("{CLIP} ! starsr ! appsink name=f sync=false max-buffers=2"));
    let entered = watch(&p, "s", "sink");
    let sink = p.by_name("f").unwrap().downcast::<gst_app::AppSink>().unwrap();
    p.set_state(gst::State::Playing).unwrap();
    let pulled: Vec<_> =
        std::iter::from_fn(|| sink.pull_sample().ok()).map(|s| s.buffer().unwrap().pts()).collect();
    p.set_state(gst::State::Null).unwrap();
    assert_eq!(pulled.len(), 23);
    assert_eq!(pulled, times(&entered));
}

#[test]
fn every_real_clip() {
    let Some(folder) = fixtures::media("real") else { return };
    let mut clips = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "mp4") {
            clips += 1;
            check_clip(&path);
        }
    }
    assert!(clips >= 9, "only {clips} clips");
}

#[track_caller]
fn check_clip(path: &Path) {
    // Small, as it is not the model that is tested.
    check(
        &format!(
            "filesrc location=\"{}\" ! decodebin ! videoscale ! video/x-raw,width=79,height=45 ! starsr scene-detection=true ! \
             fakesink name=f",
            path.display()
        ),
        None,
    );
}
