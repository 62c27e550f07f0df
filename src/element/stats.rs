// SPDX-License-Identifier: MPL-2.0

//! What the property `stats` shows.

use std::time::Duration;

use starsr::upscaler;

/// Counts and times since the element started.
#[derive(Debug, Default)]
pub(super) struct Stats {
    pub(super) frames_in: u64,
    pub(super) frames_out: u64,
    /// Scenes that began after the first frame, asked for by event or detected.
    pub(super) scene_cuts: u64,
    /// See [`upscaler::Upscaler::latency`].
    pub(super) latency_frames: u64,
    /// See [`upscaler::Upscaler::memory_estimate`].
    pub(super) memory: u64,
    /// Tokens of the present prompts that did not fit.
    pub(super) prompt_tokens_cut: u64,
    /// Conversion to RGB.
    pub(super) convert_in: Duration,
    /// Everything in the upscaler.
    pub(super) upscale: Duration,
    /// Conversion from RGB, with the resize where there is one.
    pub(super) convert_out: Duration,
    /// Runs of the denoiser.
    pub(super) evaluations: u64,
    /// Inside ONNX Runtime.
    pub(super) model_busy: Duration,
    /// The stages of the upscaler at work.
    pub(super) stages: upscaler::Stats,
    /// Those of the upscalers for earlier caps.
    pub(super) earlier: upscaler::Stats,
    pub(super) model: String,
    pub(super) provider: String,
    /// Where the provider computes.
    pub(super) device: String,
    pub(super) runtime: String,
}

impl Stats {
    /// Another upscaler begins to count from zero, with an estimate of `memory`.
    pub(super) fn upscaler_replaced(&mut self, memory: u64) {
        self.memory = memory;
        self.earlier = sum(&self.earlier, &self.stages);
        self.stages = upscaler::Stats::default();
    }

    pub(super) fn structure(&self) -> gst::Structure {
        let nanoseconds = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        let stages = sum(&self.earlier, &self.stages);
        gst::Structure::builder("starsr-stats")
            .field("frames-in", self.frames_in)
            .field("frames-out", self.frames_out)
            .field("windows", stages.windows)
            .field("evaluations", self.evaluations)
            .field("bypassed", stages.bypassed)
            .field("scene-cuts", self.scene_cuts)
            .field("latency-frames", self.latency_frames)
            .field("memory-estimate", self.memory)
            .field("prompt-tokens-cut", self.prompt_tokens_cut)
            .field("time-convert-in", nanoseconds(self.convert_in))
            .field("time-upscale", nanoseconds(self.upscale))
            .field("time-prepare", nanoseconds(stages.prepare))
            .field("time-encode", nanoseconds(stages.encode))
            .field("time-sample", nanoseconds(stages.sample))
            .field("time-decode", nanoseconds(stages.decode))
            .field("time-finish", nanoseconds(stages.finish))
            .field("time-convert-out", nanoseconds(self.convert_out))
            .field("time-onnxruntime", nanoseconds(self.model_busy))
            .field("model", &self.model)
            .field("provider", &self.provider)
            .field("device", &self.device)
            .field("onnxruntime-version", &self.runtime)
            .build()
    }
}

fn sum(a: &upscaler::Stats, b: &upscaler::Stats) -> upscaler::Stats {
    upscaler::Stats {
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
