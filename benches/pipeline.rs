// SPDX-License-Identifier: MPL-2.0

//! The element in a whole pipeline: frames per second, the time in each stage, and the share of the
//! wall time that is spent outside ONNX Runtime. Arguments: WIDTHxHEIGHT (160x120), frames (48),
//! threads (2).

use std::sync::Arc;
use std::time::{Duration, Instant};

use gst::prelude::*;
use parking_lot::Mutex;

type AnyError = Box<dyn std::error::Error>;

struct Run {
    wall: Duration,
    stats: gst::Structure,
}

fn run(width: u32, height: u32, frames: u32, threads: u32) -> Result<Run, AnyError> {
    let description = format!(
        "videotestsrc pattern=smpte num-buffers={frames} \
         ! video/x-raw,format=I420,width={width},height={height},framerate=25/1 \
         ! starsr name=starsr threads={threads} ! fakesink sync=false"
    );
    let pipeline = gst::parse::launch(&description)?
        .downcast::<gst::Pipeline>()
        .map_err(|_| "not a pipeline")?;
    let starsr = pipeline.by_name("starsr").ok_or("no starsr")?;
    let first = Arc::new(Mutex::new(None));
    let begun = first.clone();
    starsr.static_pad("sink").ok_or("no sink pad")?.add_probe(
        gst::PadProbeType::BUFFER,
        move |_, _| {
            begun.lock().get_or_insert_with(Instant::now);
            gst::PadProbeReturn::Ok
        },
    );
    pipeline.set_state(gst::State::Playing)?;
    let bus = pipeline.bus().ok_or("no bus")?;
    let message = bus.timed_pop_filtered(None, &[gst::MessageType::Eos, gst::MessageType::Error]);
    let end = Instant::now();
    let stats = starsr.property::<gst::Structure>("stats");
    pipeline.set_state(gst::State::Null)?;
    if let Some(gst::MessageView::Error(error)) = message.as_ref().map(|m| m.view()) {
        return Err(error.error().to_string().into());
    }
    let wall = first.lock().map(|begun| end - begun).ok_or("no frame arrived")?;
    Ok(Run { wall, stats })
}

fn main() -> Result<(), AnyError> {
    // Cargo passes --bench and filters; only our own arguments count.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let argument =
        |i: usize, default: &str| arguments.get(i).cloned().unwrap_or_else(|| default.to_string());
    let size = argument(0, "160x120");
    let (width, height) = size.split_once('x').ok_or("the size is WIDTHxHEIGHT")?;
    let (width, height): (u32, u32) = (width.parse()?, height.parse()?);
    let (frames, threads): (u32, u32) = (argument(1, "48").parse()?, argument(2, "2").parse()?);

    gst::init()?;
    gststarsr::plugin_register_static()?;
    run(width, height, 8, threads)?;
    let Run { wall, stats } = run(width, height, frames, threads)?;

    let out = stats.get::<u64>("frames-out")?;
    println!(
        "{width}x{height}, {out} frames, {threads} threads: {:.2} frames/s",
        out as f64 / wall.as_secs_f64()
    );
    let line = |name: &str, time: Duration| {
        let share = 100.0 * time.as_secs_f64() / wall.as_secs_f64();
        println!(
            "{name:<24}{:>9.1} ms a frame {share:>6.1} %",
            1e3 * time.as_secs_f64() / out.max(1) as f64
        );
    };
    for stage in ["convert-in", "prepare", "encode", "sample", "decode", "finish", "convert-out"] {
        line(stage, Duration::from_nanos(stats.get::<u64>(format!("time-{stage}"))?));
    }
    let inference = Duration::from_nanos(stats.get::<u64>("time-onnxruntime")?);
    line("inside ONNX Runtime", inference);
    line("outside ONNX Runtime", wall.saturating_sub(inference));
    line("wall", wall);
    Ok(())
}
