// SPDX-License-Identifier: MPL-2.0

//! The element `starsr` inside an application: frames in memory go in, upscaled frames in memory
//! come out.
//!
//! The frames are raw RGB from standard input, and go to standard output. What follows size and
//! framerate are properties of the element, as `gst-launch-1.0` takes them:
//!
//! `embed 160x120 25/1 strength=0.8 <frames.rgb >upscaled.rgb`

use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::thread;

use gst::prelude::*;
use gst_video::prelude::*;

const USAGE: &str =
    "usage: embed WIDTHxHEIGHT FRAMERATE [PROPERTY=VALUE ...] <frames.rgb >upscaled.rgb";
const BYTES_PER_PIXEL: usize = 3;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [size, rate, properties @ ..] = arguments.as_slice() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match run(size, rate, &properties.join(" ")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("embed: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn run(size: &str, rate: &str, properties: &str) -> Result<(), String> {
    gst::init().map_err(|error| error.to_string())?;
    // The element is part of this program; GStreamer needs no plugin file.
    gststarsr::plugin_register_static().map_err(|error| error.to_string())?;

    let info = format(size, rate).ok_or(USAGE)?;
    let caps = info.to_caps().map_err(|error| error.to_string())?;
    // A queue behind lets the model work on the next window while this one is taken.
    let description =
        format!("appsrc name=in ! starsr name=starsr {properties} ! queue ! appsink name=out");
    let pipeline = gst::parse::launch(&description).map_err(|error| error.to_string())?;
    let pipeline = pipeline.downcast::<gst::Pipeline>().map_err(|_| "this is no pipeline")?;
    let source =
        pipeline.by_name("in").and_downcast::<gst_app::AppSrc>().ok_or("there is no appsrc")?;
    let sink =
        pipeline.by_name("out").and_downcast::<gst_app::AppSink>().ok_or("there is no appsink")?;

    source.set_caps(Some(&caps));
    source.set_format(gst::Format::Time);
    // Pushing waits where the model is slower than this program, instead of piling up frames.
    source.set_max_buffers(4);
    source.set_block(true);
    // Frames are wanted as soon as they are done, not at the times at which they would be shown.
    sink.set_sync(false);
    sink.set_caps(Some(
        &gst_video::VideoCapsBuilder::new()
            .format(info.format())
            .pixel_aspect_ratio(info.par())
            .build(),
    ));
    sink.set_callbacks(
        gst_app::AppSinkCallbacks::builder()
            .new_sample(|sink| {
                let sample = sink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
                take(&sample).map_err(|reason| {
                    gst::element_error!(sink, gst::ResourceError::Write, ("{reason}"));
                    gst::FlowError::Error
                })?;
                Ok(gst::FlowSuccess::Ok)
            })
            .build(),
    );

    let bus = pipeline.bus().ok_or("the pipeline has no bus")?;
    // The bus has a better explanation of a failure to start.
    let _ = pipeline.set_state(gst::State::Playing);
    thread::spawn(move || feed(&source, &info));
    let result = listen(&pipeline, &bus);
    if let Some(starsr) = pipeline.by_name("starsr").filter(|_| result.is_ok()) {
        eprintln!("{}", starsr.property::<gst::Structure>("stats"));
    }
    pipeline.set_state(gst::State::Null).map_err(|error| error.to_string())?;
    result
}

/// Frames of a size such as `160x120` at a rate such as `25/1`.
fn format(size: &str, rate: &str) -> Option<gst_video::VideoInfo> {
    let (width, height) = size.split_once('x')?;
    let (number, of) = rate.split_once('/').unwrap_or((rate, "1"));
    let (number, of): (i32, i32) = (number.parse().ok()?, of.parse().ok()?);
    if number <= 0 || of <= 0 {
        return None;
    }
    let format = gst_video::VideoFormat::Rgb;
    gst_video::VideoInfo::builder(format, width.parse().ok()?, height.parse().ok()?)
        .fps(gst::Fraction::new(number, of))
        .build()
        .ok()
}

/// Hands all frames of standard input to the element, then the end of the stream.
fn feed(source: &gst_app::AppSrc, info: &gst_video::VideoInfo) {
    let mut input = io::stdin().lock();
    for number in 0.. {
        let buffer = match frame(&mut input, info, number) {
            Ok(Some(buffer)) => buffer,
            Ok(None) => break,
            Err(reason) => {
                gst::element_error!(source, gst::ResourceError::Read, ("{reason}"));
                return;
            }
        };
        // Refused where the pipeline has failed or stops; the bus has the reason.
        if source.push_buffer(buffer).is_err() {
            return;
        }
    }
    let _ = source.end_of_stream();
}

/// Frame `number`, read from `input`; `None` at its end.
fn frame(
    input: &mut impl Read,
    info: &gst_video::VideoInfo,
    number: u64,
) -> Result<Option<gst::Buffer>, String> {
    let row = info.width() as usize * BYTES_PER_PIXEL;
    let mut pixels = Vec::new();
    let bytes = row * info.height() as usize;
    input.take(bytes as u64).read_to_end(&mut pixels).map_err(|error| error.to_string())?;
    if pixels.is_empty() {
        return Ok(None);
    }
    if pixels.len() < bytes {
        return Err(format!("the last frame has {} of {bytes} bytes", pixels.len()));
    }
    let buffer = gst::Buffer::with_size(info.size()).map_err(|error| error.to_string())?;
    let mut frame =
        gst_video::VideoFrame::from_buffer_writable(buffer, info).map_err(|_| "no memory")?;
    // Rows in GStreamer's memory may be longer than their pixels.
    let stride = frame.plane_stride()[0] as usize;
    let rows = frame.plane_data_mut(0).map_err(|error| error.to_string())?.chunks_mut(stride);
    for (to, from) in rows.zip(pixels.chunks(row)) {
        to[..row].copy_from_slice(from);
    }
    let mut buffer = frame.into_buffer();
    let stamped = buffer.make_mut();
    let time = |number: u64| {
        let (rate, of) = (info.fps().numer() as u64, info.fps().denom() as u64);
        (gst::ClockTime::SECOND * of).mul_div_floor(number, rate)
    };
    stamped.set_pts(time(number));
    stamped.set_duration(time(number + 1).zip(time(number)).map(|(end, start)| end - start));
    Ok(Some(buffer))
}

/// An upscaled frame: writes its rows to standard output.
fn take(sample: &gst::Sample) -> Result<(), String> {
    let (buffer, caps) =
        sample.buffer().zip(sample.caps()).ok_or("a frame without pixels or format")?;
    let info = gst_video::VideoInfo::from_caps(caps).map_err(|error| error.to_string())?;
    let frame = gst_video::VideoFrameRef::from_buffer_ref_readable(buffer, &info)
        .map_err(|_| "a frame cannot be read")?;
    let row = info.width() as usize * BYTES_PER_PIXEL;
    let stride = frame.plane_stride()[0] as usize;
    let mut output = io::stdout().lock();
    let rows = frame.plane_data(0).map_err(|error| error.to_string())?.chunks(stride);
    for pixels in rows.take(info.height() as usize) {
        output.write_all(&pixels[..row]).map_err(|error| error.to_string())?;
    }
    output.flush().map_err(|error| error.to_string())
}

/// Waits for the end of the stream and prints what happens until then.
fn listen(pipeline: &gst::Pipeline, bus: &gst::Bus) -> Result<(), String> {
    for message in bus.iter_timed(None) {
        match message.view() {
            gst::MessageView::Eos(_) => break,
            gst::MessageView::Error(error) => return Err(error.error().to_string()),
            gst::MessageView::Warning(warning) => eprintln!("warning: {}", warning.error()),
            // The element's latency has changed; a live pipeline has to wait for it.
            gst::MessageView::Latency(_) => {
                let _ = pipeline.recalculate_latency();
            }
            gst::MessageView::Element(element) => {
                if let Some(structure) = element.structure() {
                    report(structure);
                }
            }
            _ => (),
        }
    }
    Ok(())
}

/// What starsr reports about a window of frames.
fn report(structure: &gst::StructureRef) {
    let time = structure.get::<Option<gst::ClockTime>>("running-time").ok().flatten();
    let number = |field: &str| structure.get::<u64>(field).unwrap_or_default();
    match structure.name().as_str() {
        "starsr-progress" => eprintln!(
            "restored from {}: {} evaluations in {}, {} frames in, {} out",
            time.display(),
            number("evaluations"),
            gst::ClockTime::from_nseconds(number("time")),
            number("frames-in"),
            number("frames-out")
        ),
        "starsr-bypass" => eprintln!(
            "left out from {}: {} frames, reason {}",
            time.display(),
            number("frames"),
            structure.get::<&str>("reason").unwrap_or("unknown")
        ),
        _ => (),
    }
}
