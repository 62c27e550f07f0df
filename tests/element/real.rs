// SPDX-License-Identifier: MPL-2.0

//! The matrix goes on: files, transport streams, RTP over sockets, and real clips at their own
//! size.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use gst::prelude::*;

use super::matrix::{CLIP, check, row};
use super::pipelines::{pipeline, run, run_with, times, watch};
use starsr_testkit::fixtures;
use starsr_testkit::patience::patiently;
use starsr_testkit::rig::*;

// What does not go well with `videoscale` in the place of starsr either is left out. In GStreamer
// 1.22 that is `avenc_mpeg2video`, which asks libavcodec for 1000000000 frames a second and is
// refused; `avimux` and `oggmux` straight into their demuxers, of which the one has a whole header
// only in a file and the other is critical of itself; `mpegpsdemux` on a file, which gives 5 of 23
// frames; and MPEG-TS in RTP, whose last frame is lost.
#[test]
fn more_codecs_and_containers_in_front() {
    for coded in [
        "mpeg2enc ! mpegvideoparse ! mpegtsmux ! tsdemux ! mpegvideoparse ! avdec_mpeg2video",
        "mpeg2enc ! mpegvideoparse ! mpegpsmux ! mpegpsdemux ! mpegvideoparse ! mpeg2dec",
        "x264enc speed-preset=ultrafast ! h264parse ! flvmux ! flvdemux ! h264parse ! avdec_h264",
        "x265enc speed-preset=ultrafast ! h265parse ! matroskamux ! matroskademux ! h265parse ! avdec_h265",
        "av1enc cpu-used=8 ! av1parse ! matroskamux ! matroskademux ! av1dec",
        "vp8enc deadline=1 ! rtpvp8pay ! rtpvp8depay ! vp8dec",
        "vp9enc deadline=1 cpu-used=8 ! rtpvp9pay ! rtpvp9depay ! vp9dec",
        // The payloader takes 4:2:0 and 4:2:2 only.
        "video/x-raw,format=I420 ! jpegenc ! rtpjpegpay ! rtpjpegdepay ! jpegdec",
    ] {
        check(&format!("{CLIP} ! videoconvert ! {coded} ! starsr ! fakesink name=f"), Some(23));
    }
}

#[test]
fn files_of_every_kind() {
    init();
    let folder = tempfile::tempdir().unwrap();
    for (ending, coded) in [
        ("avi", "jpegenc ! avimux"),
        ("avi", "avenc_mpeg4 ! mpeg4videoparse ! avimux"),
        ("ogv", "theoraenc ! oggmux"),
        ("mov", "x264enc speed-preset=ultrafast bframes=2 ! h264parse ! qtmux"),
        ("mp4", "x264enc speed-preset=ultrafast ! h264parse ! mp4mux fragment-duration=200"),
        ("ts", "x264enc speed-preset=ultrafast ! h264parse ! mpegtsmux"),
        ("webm", "vp8enc deadline=1 ! webmmux"),
        ("mkv", "x264enc speed-preset=ultrafast ! h264parse ! matroskamux"),
        ("flv", "x264enc speed-preset=ultrafast ! h264parse ! flvmux"),
        ("y4m", "video/x-raw,format=I420 ! y4menc"),
    ] {
        let path = folder.path().join(format!("clip.{ending}"));
        let path = path.display();
        run(&pipeline(&format!("{CLIP} ! videoconvert ! {coded} ! filesink location=\"{path}\"")));
        let before = format!("filesrc location=\"{path}\" ! decodebin");
        row(
            &format!("{coded} ! filesink"),
            &format!("{before} ! starsr ! fakesink name=f"),
            Some(23),
        );
    }
}

/// Frames that `sender` pays out, over a socket of this machine, into `receiver`. The sender's
/// elements `p` and `u` are payloader and sink, the receiver's `d` depayloader.
#[track_caller]
fn over_a_socket(sender: &str, receiver: &str) {
    const FRAMES: usize = 40;
    init();
    let source = "videotestsrc num-buffers=40 pattern=ball ! video/x-raw,format=I420,width=32,height=24,framerate=50/1";
    let sending =
        gst::parse::launch(&format!("{source} ! {sender} name=p ! udpsink name=u host=127.0.0.1"));
    let sending = sending.unwrap().downcast::<gst::Pipeline>().unwrap();
    sending.set_state(gst::State::Paused).unwrap();
    // The first packet waits in the sink.
    settle(&sending);
    let caps = sending.by_name("p").unwrap().static_pad("src").unwrap().current_caps().unwrap();

    let description = format!(
        "udpsrc name=r port=0 ! rtpjitterbuffer latency=50 ! {receiver} ! starsr ! fakesink name=f sync=false"
    );
    let p = pipeline(&description);
    let source = p.by_name("r").unwrap();
    source.set_property("caps", &caps);
    let (taken, entered, left) =
        (watch(&p, "d", "src"), watch(&p, "s", "sink"), watch(&p, "f", "sink"));
    p.set_state(gst::State::Playing).unwrap();
    sending.by_name("u").unwrap().set_property("port", source.property::<i32>("port"));
    sending.set_state(gst::State::Playing).unwrap();
    patiently(&format!("{sender}: not all frames came"), || {
        thread::sleep(Duration::from_millis(10));
        (times(&taken).len() >= FRAMES).then_some(())
    });
    // No end is sent over a socket.
    source.send_event(gst::event::Eos::new());
    run_with(&p, || ());
    sending.set_state(gst::State::Null).unwrap();
    let (entered, left) = (times(&entered), times(&left));
    println!("{:5} {:5}  {sender} ! udpsink, {description}", entered.len(), left.len());
    assert_eq!(entered.len(), FRAMES, "{sender}");
    assert!(entered == left, "{sender}: {entered:?}, but {left:?}");
}

#[test]
fn rtp_over_sockets() {
    for (sender, receiver) in [
        (
            "x264enc speed-preset=ultrafast tune=zerolatency key-int-max=10 ! rtph264pay config-interval=-1",
            "rtph264depay name=d ! h264parse ! avdec_h264",
        ),
        ("vp8enc deadline=1 ! rtpvp8pay", "rtpvp8depay name=d ! vp8dec"),
        ("jpegenc ! rtpjpegpay", "rtpjpegdepay name=d ! jpegdec"),
        ("rtpvrawpay", "rtpvrawdepay name=d"),
    ] {
        over_a_socket(sender, receiver);
    }
}

/// Sinks that the clips go to in turn.
const SINKS: [&str; 5] = [
    "fakesink name=f",
    "x264enc name=f speed-preset=ultrafast ! mp4mux ! fakesink",
    "jpegenc name=f ! fakesink",
    "vp8enc name=f deadline=1 cpu-used=16 ! webmmux ! fakesink",
    "vp9enc name=f deadline=1 cpu-used=9 ! matroskamux ! fakesink",
];

/// Nothing between decoder and element, and windows that the frames do not fill evenly. The windows
/// are short, as one of eight such frames takes gigabytes.
#[test]
fn every_real_clip_at_its_own_size() {
    let Some(folder) = fixtures::media("real") else { return };
    let mut clips: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    clips.retain(|path| path.extension().is_some_and(|e| e == "mp4"));
    clips.sort();
    assert!(clips.len() >= 9, "only {} clips", clips.len());
    for (path, sink) in clips.iter().zip(SINKS.iter().cycle()) {
        let name = Path::file_name(path).unwrap().to_string_lossy();
        row(
            &format!("{name}, its first frames"),
            &format!(
                "filesrc location=\"{}\" ! decodebin ! identity eos-after=5 ! starsr window-length=4 window-overlap=1 \
                 scene-detection=true ! {sink}",
                path.display()
            ),
            // Frames that the decoder's threads have still to give are let through or not.
            None,
        );
    }
}

/// Frames of an application at their own times, and for one that takes them late.
#[test]
fn from_one_application_to_another() {
    init();
    let description = format!(
        "appsrc name=a format=time caps={CAPS} ! starsr ! appsink name=f sync=false max-buffers=1 wait-on-eos=true"
    );
    let p = pipeline(&description);
    let source = p.by_name("a").unwrap().downcast::<gst_app::AppSrc>().unwrap();
    let sink = p.by_name("f").unwrap().downcast::<gst_app::AppSink>().unwrap();
    let pulled = Arc::new(Mutex::new(Vec::new()));
    p.set_state(gst::State::Playing).unwrap();
    let pulling = thread::spawn({
        let pulled = pulled.clone();
        move || {
            while let Ok(sample) = sink.pull_sample() {
                pulled.lock().unwrap().push(sample.buffer().unwrap().offset());
                thread::sleep(Duration::from_millis(2));
            }
        }
    });
    for k in 0..31 {
        source.push_buffer(frame(k)).unwrap();
    }
    source.end_of_stream().unwrap();
    run_with(&p, || pulling.join().unwrap());
    let pulled = pulled.lock().unwrap();
    println!("{:5} {:5}  {description}", 31, pulled.len());
    assert_eq!(*pulled, (0..31).collect::<Vec<_>>());
}
