// SPDX-License-Identifier: MPL-2.0

//! Making clips and looking into files.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use gst::prelude::*;
use parking_lot::Mutex;

use starsr_testkit::patience::patiently;

/// Input frames are this large and come out four times larger.
pub const SIZE: (u32, u32) = (48, 32);

/// Runs a pipeline to its end.
pub fn play(pipeline: &gst::Pipeline) {
    pipeline.set_state(gst::State::Playing).unwrap();
    let bus = pipeline.bus().unwrap();
    let ends = [gst::MessageType::Eos, gst::MessageType::Error];
    let message =
        patiently("the pipeline hangs", || bus.timed_pop_filtered(gst::ClockTime::SECOND, &ends));
    pipeline.set_state(gst::State::Null).unwrap();
    if let gst::MessageView::Error(error) = message.view() {
        panic!("{} ({:?})", error.error(), error.debug());
    }
}

/// Runs a described pipeline, in which the file sink is named `file`, to write `path`.
pub fn write(path: &Path, description: &str) {
    gst::init().unwrap();
    let pipeline = gst::parse::launch(description).unwrap().downcast::<gst::Pipeline>().unwrap();
    pipeline.by_name("file").unwrap().set_property("location", path);
    play(&pipeline);
}

pub fn video(frames: u32) -> String {
    let (width, height) = SIZE;
    format!(
        "videotestsrc num-buffers={frames} pattern=ball ! video/x-raw,format=I420,width={width},height={height},framerate=25/1 \
         ! x264enc speed-preset=ultrafast ! h264parse ! queue ! mux."
    )
}

/// A clip of 25 frames a second, without sound.
pub fn clip(path: &Path, frames: u32) {
    let mux = if path.extension() == Some(OsStr::new("mp4")) { "mp4mux" } else { "matroskamux" };
    write(path, &format!("{mux} name=mux ! filesink name=file {}", video(frames)));
}

/// Lets an MP4 with one track ask players to rotate it by 90 degrees: GStreamer's muxer cannot.
pub fn rotate(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let header = bytes.windows(4).position(|name| name == b"tkhd").unwrap();
    // The matrix of version 0, ISO/IEC 14496-12, section 8.3.2: fixed point, 16.16 and 2.30.
    let matrix = [0, 1 << 16, 0, -1 << 16, 0, 0, (SIZE.1 as i32) << 16, 0, 1 << 30];
    for (number, value) in matrix.into_iter().enumerate() {
        let start = header + 44 + 4 * number;
        bytes[start..start + 4].copy_from_slice(&i32::to_be_bytes(value));
    }
    fs::write(path, bytes).unwrap();
}

/// One packet of a compressed stream.
#[derive(Debug, PartialEq, Eq)]
pub struct Packet {
    pub pts: Option<gst::ClockTime>,
    pub bytes: Vec<u8>,
}

/// Packets of all streams of a file except the video, by media type, in the order in which the file
/// holds the streams.
pub fn packets(path: &Path) -> Vec<(String, Vec<Packet>)> {
    gst::init().unwrap();
    let pipeline = gst::Pipeline::new();
    let source = gst::ElementFactory::make("filesrc").property("location", path).build().unwrap();
    let parser = gst::ElementFactory::make("parsebin").build().unwrap();
    pipeline.add_many([&source, &parser]).unwrap();
    source.link(&parser).unwrap();
    type Stream = (String, Arc<Mutex<Vec<Packet>>>);
    let streams: Arc<Mutex<Vec<Stream>>> = Arc::default();
    parser.connect_pad_added({
        let (pipeline, streams) = (pipeline.downgrade(), streams.clone());
        move |_, pad| {
            let pipeline = pipeline.upgrade().unwrap();
            let queue = gst::ElementFactory::make("queue").build().unwrap();
            let sink =
                gst::ElementFactory::make("fakesink").property("sync", false).build().unwrap();
            for limit in ["max-size-buffers", "max-size-bytes"] {
                queue.set_property(limit, 0u32);
            }
            queue.set_property("max-size-time", 0u64);
            pipeline.add_many([&queue, &sink]).unwrap();
            queue.link(&sink).unwrap();
            // Some parsers announce a stream before its caps are known.
            let caps = pad.current_caps().unwrap_or_else(|| pad.query_caps(None));
            let stream: Stream = (caps.structure(0).unwrap().name().to_string(), Arc::default());
            let collected = stream.1.clone();
            streams.lock().push(stream);
            sink.static_pad("sink").unwrap().add_probe(
                gst::PadProbeType::BUFFER,
                move |_, info| {
                    let buffer = info.buffer().unwrap();
                    let bytes = buffer.map_readable().unwrap().to_vec();
                    collected.lock().push(Packet { pts: buffer.pts(), bytes });
                    gst::PadProbeReturn::Ok
                },
            );
            queue.sync_state_with_parent().unwrap();
            sink.sync_state_with_parent().unwrap();
            pad.link(&queue.static_pad("sink").unwrap()).unwrap();
        }
    });
    play(&pipeline);
    let streams = std::mem::take(&mut *streams.lock());
    streams
        .into_iter()
        .filter(|(media, _)| !media.starts_with("video/"))
        .map(|(media, packets)| (media, std::mem::take(&mut *packets.lock())))
        .collect()
}

/// Presentation times of frames, and their size.
pub type Frames = (Vec<gst::ClockTime>, (u32, u32));

/// The decoded frames of a file.
pub fn frames(path: &Path) -> Frames {
    gst::init().unwrap();
    let pipeline = gst::parse::launch("filesrc name=file ! decodebin name=decoder")
        .unwrap()
        .downcast::<gst::Pipeline>()
        .unwrap();
    pipeline.by_name("file").unwrap().set_property("location", path);
    let found: Arc<Mutex<Frames>> = Arc::default();
    pipeline.by_name("decoder").unwrap().connect_pad_added({
        let (pipeline, found) = (pipeline.downgrade(), found.clone());
        move |_, pad| {
            let pipeline = pipeline.upgrade().unwrap();
            let sink =
                gst::ElementFactory::make("fakesink").property("sync", false).build().unwrap();
            pipeline.add(&sink).unwrap();
            sink.sync_state_with_parent().unwrap();
            pad.link(&sink.static_pad("sink").unwrap()).unwrap();
            let Ok(info) = gst_video::VideoInfo::from_caps(&pad.current_caps().unwrap()) else {
                return;
            };
            found.lock().1 = (info.width(), info.height());
            let found = found.clone();
            pad.add_probe(gst::PadProbeType::BUFFER, move |_, probe| {
                found.lock().0.extend(probe.buffer().unwrap().pts());
                gst::PadProbeReturn::Ok
            });
        }
    });
    play(&pipeline);
    let found = found.lock();
    (found.0.clone(), found.1)
}

/// The pixels of all frames.
pub fn decoded(path: &Path) -> Vec<u8> {
    gst::init().unwrap();
    let pipeline =
        gst::parse::launch("filesrc name=file ! decodebin ! appsink name=frames sync=false")
            .unwrap()
            .downcast::<gst::Pipeline>()
            .unwrap();
    pipeline.by_name("file").unwrap().set_property("location", path);
    let frames = pipeline.by_name("frames").unwrap().downcast::<gst_app::AppSink>().unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let mut pixels = Vec::new();
    while let Ok(sample) = frames.pull_sample() {
        pixels.extend_from_slice(&sample.buffer().unwrap().map_readable().unwrap());
    }
    pipeline.set_state(gst::State::Null).unwrap();
    assert!(!pixels.is_empty());
    pixels
}
