// SPDX-License-Identifier: MPL-2.0

//! How fast a bundle is on this machine, by stages, through the whole element.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use gst::prelude::*;
use parking_lot::Mutex;
use serde_json::json;

use crate::interrupts::{Interrupts, Stop};
use crate::media::elements::{always_pad, make, text};
use crate::terminal;
use crate::upscale::{name_and_value, set_property};
use crate::values;

/// Measure a model on this machine: frames a second, the time of each stage, and memory
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Folder of the model bundle [default: the built-in nano2]
    #[arg(long, value_name = "DIR")]
    model: Option<String>,
    /// auto, cpu, cuda, tensorrt, openvino, tensorrt-rtx, webgpu, or plugin with --set provider-library=FILE
    #[arg(long, value_name = "NAME")]
    provider: Option<String>,
    /// Size of the frames to enlarge; may be repeated [default: 160x120 and 426x240]
    #[arg(long, value_name = "WIDTHxHEIGHT", value_parser = size)]
    size: Vec<(i32, i32)>,
    /// Windows to measure, after one that is not
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1000))]
    windows: u64,
    /// Set any other property of starsr; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = name_and_value)]
    set: Vec<(String, String)>,
    /// Print JSON, one object a size
    #[arg(long)]
    json: bool,
}

fn size(words: &str) -> Result<(i32, i32), String> {
    values::size(words)
        .filter(|(width, height)| *width <= 16384 && *height <= 16384)
        .map(|(width, height)| (width.cast_signed(), height.cast_signed()))
        .ok_or_else(|| "expected WIDTHxHEIGHT, such as 426x240".to_owned())
}

/// The stages of a window in the fields of `stats`, with their names here.
const STAGES: [(&str, &str); 7] = [
    ("convert in", "time-convert-in"),
    ("prepare", "time-prepare"),
    ("encode", "time-encode"),
    ("sample", "time-sample"),
    ("decode", "time-decode"),
    ("finish", "time-finish"),
    ("convert out", "time-convert-out"),
];

/// The element's counts when the first frame of a window came out.
struct Snapshot {
    at: Instant,
    frames: u64,
    stats: gst::Structure,
}

impl Snapshot {
    fn number(&self, field: &str) -> u64 {
        self.stats.get(field).unwrap_or(0)
    }
}

/// What is known while frames pass.
#[derive(Default)]
struct Watch {
    frames: u64,
    output: Option<(i32, i32)>,
    first: Option<Snapshot>,
    last: Option<Snapshot>,
}

/// Measures at each of the sizes that `args` name.
pub fn run(args: &Args) -> Result<(), Stop> {
    gst::init().map_err(text)?;
    gststarsr::plugin_register_static().map_err(text)?;
    let interrupts = Interrupts::catch()?;
    let default = [(160, 120), (426, 240)];
    let sizes = if args.size.is_empty() { &default } else { args.size.as_slice() };
    for (number, &size) in sizes.iter().enumerate() {
        let measured = measure(args, size, &interrupts)?;
        if args.json {
            terminal::say(measured.json());
        } else {
            if number == 0 {
                terminal::say(measured.title());
            }
            terminal::say(measured.lines());
        }
    }
    Ok(())
}

fn measure(args: &Args, size: (i32, i32), interrupts: &Interrupts) -> Result<Measured, Stop> {
    let source = make("videotestsrc")?;
    source.set_property("horizontal-speed", 2);
    let filter = make("capsfilter")?;
    let caps = gst::Caps::builder("video/x-raw")
        .field("format", "I420")
        .field("width", size.0)
        .field("height", size.1)
        .field("framerate", gst::Fraction::new(25, 1));
    filter.set_property("caps", caps.build());
    let starsr = make("starsr")?;
    for (name, value) in [("model-path", &args.model), ("execution-provider", &args.provider)] {
        if let Some(value) = value {
            set_property(&starsr, name, value)?;
        }
    }
    args.set.iter().try_for_each(|(name, value)| set_property(&starsr, name, value))?;
    let sink = make("fakesink")?;
    let pipeline = gst::Pipeline::new();
    let chain = [&source, &filter, &starsr, &sink];
    pipeline.add_many(chain).map_err(text)?;
    gst::Element::link_many(chain).map_err(text)?;

    let watch = Arc::new(Mutex::new(Watch::default()));
    let (seen, windows) = (watch.clone(), args.windows);
    let weak = starsr.downgrade();
    always_pad(&sink, "sink")?.add_probe(gst::PadProbeType::BUFFER, move |pad, _| {
        if let Some(starsr) = weak.upgrade() {
            let stats = starsr.property::<gst::Structure>("stats");
            seen.lock().count(stats, windows, pad);
        }
        gst::PadProbeReturn::Ok
    });

    let result = play(&pipeline, &watch, interrupts);
    // Nothing is written, so that nothing is lost if this fails.
    let _ = pipeline.set_state(gst::State::Null);
    result?;
    let mut watch = watch.lock();
    let both = watch.first.take().zip(watch.last.take()).zip(watch.output);
    let ((first, last), output) = both.ok_or_else(|| "no frame came out".to_owned())?;
    Ok(Measured { input: size, output, windows, first, last })
}

impl Watch {
    /// Counts a frame at the sink, when the element's counts are `stats`.
    fn count(&mut self, stats: gst::Structure, windows: u64, pad: &gst::Pad) {
        self.frames += 1;
        let snapshot = Snapshot { at: Instant::now(), frames: self.frames, stats };
        if let Some(first) = &self.first {
            let done = snapshot.number("windows") >= first.number("windows") + windows;
            if done && self.last.is_none() {
                self.last = Some(snapshot);
            }
        } else {
            let caps = pad.current_caps();
            let side = |name| caps.as_ref()?.structure(0)?.get(name).ok();
            self.output = side("width").zip(side("height"));
            self.first = Some(snapshot);
        }
    }
}

/// Plays until all windows have been measured.
fn play(
    pipeline: &gst::Pipeline,
    watch: &Mutex<Watch>,
    interrupts: &Interrupts,
) -> Result<(), Stop> {
    let bus = pipeline.bus().ok_or_else(|| "the pipeline has no bus".to_owned())?;
    // What failed is on the bus.
    let _ = pipeline.set_state(gst::State::Playing);
    while watch.lock().last.is_none() {
        if interrupts.count.load(Ordering::SeqCst) > 0 {
            return Err(Stop::Interrupted);
        }
        let patience = gst::ClockTime::from_mseconds(50);
        let message = bus.timed_pop_filtered(patience, &[gst::MessageType::Error]);
        if let Some(gst::MessageView::Error(error)) = message.as_ref().map(|m| m.view()) {
            return Err(Stop::Failed(error.error().message().to_owned()));
        }
        let alone = |first: &Snapshot| first.number("windows") == 0;
        if watch.lock().first.as_ref().is_some_and(alone) {
            let reason = "windows are measured one by one, but window-mode wavefront restores them \
                          together; add --set window-mode=blend";
            return Err(Stop::Failed(reason.to_owned()));
        }
    }
    Ok(())
}

/// What passed between two snapshots.
struct Measured {
    input: (i32, i32),
    output: (i32, i32),
    windows: u64,
    first: Snapshot,
    last: Snapshot,
}

impl Measured {
    /// Seconds by which a field of nanoseconds has grown, for each window.
    fn seconds(&self, field: &str) -> f64 {
        let time = self.last.number(field).saturating_sub(self.first.number(field));
        Duration::from_nanos(time).as_secs_f64() / self.windows as f64
    }

    fn window(&self) -> f64 {
        (self.last.at - self.first.at).as_secs_f64() / self.windows as f64
    }

    fn frames(&self) -> f64 {
        (self.last.frames - self.first.frames) as f64 / self.windows as f64
    }

    /// Milliseconds outside ONNX Runtime for each million of pixels that came out.
    fn outside(&self) -> f64 {
        let megapixels = f64::from(self.output.0) * f64::from(self.output.1) / 1e6 * self.frames();
        (self.window() - self.seconds("time-onnxruntime")).max(0.0) * 1e3 / megapixels
    }

    /// 10¹² floating-point operations in a second of predictions; `None` where the bundle does not say
    /// how many these take.
    fn teraflops(&self) -> Option<f64> {
        let counted = |field| self.last.number(field).saturating_sub(self.first.number(field));
        let (millions, nanoseconds) = (counted("operations"), counted("time-predict"));
        (millions > 0 && nanoseconds > 0).then(|| millions as f64 * 1e3 / nanoseconds as f64)
    }

    fn text(&self, field: &str) -> String {
        self.last.stats.get::<Option<String>>(field).ok().flatten().unwrap_or_default()
    }

    fn device_memory(&self) -> Option<u64> {
        Some(self.last.number("device-memory-used")).filter(|&bytes| bytes > 0)
    }

    fn title(&self) -> String {
        let [model, precision, device, runtime] =
            ["model", "precision", "device", "onnxruntime-version"].map(|f| self.text(f));
        format!("{model} in {precision}, {device}, ONNX Runtime {runtime}")
    }

    fn lines(&self) -> String {
        let ((w, h), (ow, oh)) = (self.input, self.output);
        let (window, runtime) = (self.window(), self.seconds("time-onnxruntime"));
        let mut lines = vec![
            format!("{w}x{h} to {ow}x{oh}: {:.2} frames/s", self.frames() / window),
            format!("  a window of {:.0} new frames: {window:.3} s", self.frames()),
        ];
        for (name, field) in STAGES {
            lines.push(format!("    {name:<12} {:.3} s", self.seconds(field)));
        }
        lines.push(format!(
            "  in ONNX Runtime {:.0} % of the time; outside {:.1} ms for each output megapixel",
            100.0 * runtime / window,
            self.outside()
        ));
        if let Some(teraflops) = self.teraflops() {
            lines.push(format!("  {teraflops:.3} TFLOP/s in predictions"));
        }
        let gigabytes = |bytes: u64| bytes as f64 / 1e9;
        lines.push(format!(
            "  memory estimate {:.2} GB, peak of the process {:.2} GB",
            gigabytes(self.last.number("memory-estimate")),
            gigabytes(peak_memory().unwrap_or(0))
        ));
        if let Some(used) = self.device_memory() {
            lines.push(format!(
                "  device memory estimate {:.2} GB without weights, used {:.2} GB with them",
                gigabytes(self.last.number("device-memory-estimate")),
                gigabytes(used)
            ));
        }
        lines.join("\n")
    }

    fn json(&self) -> serde_json::Value {
        let stages =
            STAGES.map(|(name, field)| (name.replace(' ', "_"), json!(self.seconds(field))));
        json!({
            "model": self.text("model"),
            "provider": self.text("provider"),
            "device": self.text("device"),
            "precision": self.text("precision"),
            "onnxruntime": self.text("onnxruntime-version"),
            "input": [self.input.0, self.input.1],
            "output": [self.output.0, self.output.1],
            "frames_per_second": self.frames() / self.window(),
            "frames_per_window": self.frames(),
            "seconds_per_window": self.window(),
            "seconds": stages.into_iter().collect::<serde_json::Map<_, _>>(),
            "seconds_in_onnxruntime": self.seconds("time-onnxruntime"),
            "outside_ms_per_megapixel": self.outside(),
            "teraflops": self.teraflops(),
            "memory_estimate": self.last.number("memory-estimate"),
            "memory_peak": peak_memory(),
            "device_memory_estimate": self.last.number("device-memory-estimate"),
            "device_memory_used": self.device_memory(),
        })
    }
}

/// The most bytes that this process has had in main memory.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}
