// SPDX-License-Identifier: MPL-2.0

//! The property `stats`.

use std::time::Duration;

use gst::glib;
use gst::prelude::*;

use starsr::StageTimes;
use starsr::runtime::GraphTimes;

use super::loading::Loaded;

/// Counts and times since the element started.
#[derive(Debug, Default)]
pub(super) struct ElementStats {
    pub(super) frames_in: u64,
    pub(super) frames_out: u64,
    /// Scenes that began after the first frame, announced by event or detected.
    pub(super) scene_cuts: u64,
    /// See [`starsr::Upscaler::latency`].
    pub(super) latency_frames: u64,
    /// See [`starsr::Upscaler::memory_estimate`].
    pub(super) memory: u64,
    /// See [`starsr::Upscaler::device_memory_estimate`].
    pub(super) device_memory: u64,
    /// See [`starsr::Upscaler::device_memory_used`].
    pub(super) device_memory_used: u64,
    /// Tokens of the present prompts that did not fit.
    pub(super) prompt_tokens_cut: u64,
    /// Time spent on converting frames to RGB.
    pub(super) convert_in: Duration,
    /// Time spent in the upscaler.
    pub(super) upscale: Duration,
    /// Time spent on converting frames from RGB, and on resizing them.
    pub(super) convert_out: Duration,
    /// Runs of the denoiser, when the upscaler last rested.
    pub(super) evaluations: u64,
    /// See [`starsr::Upscaler::window_evaluations`].
    pub(super) window_evaluations: u64,
    /// Time spent inside ONNX Runtime.
    pub(super) model_busy: Duration,
    /// Times of the present upscaler's stages.
    pub(super) stages: StageTimes,
    /// Times of the stages of the upscalers for earlier caps.
    earlier: StageTimes,
    /// Where the model counts its runs while it is at work.
    times: Option<GraphTimes>,
    model: String,
    provider: String,
    device: String,
    precision: String,
    runtime: String,
}

impl ElementStats {
    /// Everything at zero, with the names of what is `loaded`.
    pub(super) fn new(loaded: &Loaded) -> Self {
        Self {
            times: loaded.times.clone(),
            model: loaded.manifest.name.clone(),
            provider: loaded.provider.clone(),
            device: loaded.device.clone(),
            precision: loaded.precision.clone(),
            runtime: loaded.runtime.clone(),
            ..Self::default()
        }
    }

    /// Keeps the times of the present upscaler, as the next one counts from zero.
    pub(super) fn upscaler_replaced(&mut self) {
        self.earlier = sum(&self.earlier, &self.stages);
        self.stages = StageTimes::default();
    }

    /// The specification of the property, whose fields [`Self::structure`] gives.
    pub(super) fn spec() -> glib::ParamSpec {
        glib::ParamSpecBoxed::builder::<gst::Structure>("stats")
            .nick("Statistics")
            .blurb(
                "Since the start: frames-in, frames-out, windows, evaluations (runs of the denoiser, those in the \
                 present window included), window-evaluations (runs for a window), bypassed (frames), scene-cuts, \
                 latency-frames, memory-estimate (bytes of frames, latents and graphs, without weights), \
                 device-memory-estimate (bytes of a GPU's memory for graphs, without weights), \
                 device-memory-used (bytes, with weights; 0: unknown), \
                 prompt-tokens-cut, operations (millions of \
                 floating-point operations in predictions, where the bundle says how many they take) (guint64); \
                 time-convert-in, time-upscale and, within it, time-prepare, time-encode, \
                 time-sample, time-decode and time-finish, then time-convert-out, time-onnxruntime and, within it, \
                 time-predict (guint64, ns); model, provider, device, precision, onnxruntime-version (string)",
            )
            .read_only()
            .build()
    }

    pub(super) fn structure(&self) -> gst::Structure {
        let nanoseconds = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        let times = self.times.clone().unwrap_or_default();
        let stages = sum(&self.earlier, &self.stages);
        gst::Structure::builder("starsr-stats")
            .field("frames-in", self.frames_in)
            .field("frames-out", self.frames_out)
            .field("windows", stages.windows)
            .field("evaluations", self.evaluations.max(times.evaluations()))
            .field("window-evaluations", self.window_evaluations)
            .field("bypassed", stages.bypassed)
            .field("scene-cuts", self.scene_cuts)
            .field("latency-frames", self.latency_frames)
            .field("memory-estimate", self.memory)
            .field("device-memory-estimate", self.device_memory)
            .field("device-memory-used", self.device_memory_used)
            .field("prompt-tokens-cut", self.prompt_tokens_cut)
            .field("operations", times.operations())
            .field("time-convert-in", nanoseconds(self.convert_in))
            .field("time-upscale", nanoseconds(self.upscale))
            .field("time-prepare", nanoseconds(stages.prepare))
            .field("time-encode", nanoseconds(stages.encode))
            .field("time-sample", nanoseconds(stages.sample))
            .field("time-decode", nanoseconds(stages.decode))
            .field("time-finish", nanoseconds(stages.finish))
            .field("time-convert-out", nanoseconds(self.convert_out))
            .field("time-onnxruntime", nanoseconds(self.model_busy))
            .field("time-predict", nanoseconds(times.predicting()))
            .field("model", &self.model)
            .field("provider", &self.provider)
            .field("device", &self.device)
            .field("precision", &self.precision)
            .field("onnxruntime-version", &self.runtime)
            .build()
    }
}

fn sum(a: &StageTimes, b: &StageTimes) -> StageTimes {
    StageTimes {
        frames_in: a.frames_in + b.frames_in,
        frames_out: a.frames_out + b.frames_out,
        windows: a.windows + b.windows,
        bypassed: a.bypassed + b.bypassed,
        prepare: a.prepare + b.prepare,
        encode: a.encode + b.encode,
        sample: a.sample + b.sample,
        decode: a.decode + b.decode,
        finish: a.finish + b.finish,
    }
}
