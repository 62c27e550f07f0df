// SPDX-License-Identifier: MPL-2.0

//! The specifications of the element's properties.

use std::sync::LazyLock;

use gst::glib;
use gst::prelude::*;

use super::{
    ColorFix, ExecutionProvider, GuidanceBatching, OnError, Overload, Posterior, PromptSuffix, SamplerMode,
    WindowMode,
};

fn path(name: &str, nick: &str, blurb: &str) -> glib::ParamSpec {
    glib::ParamSpecString::builder(name).nick(nick).blurb(blurb).mutable_ready().build()
}

fn text(name: &str, nick: &str, blurb: &str) -> glib::ParamSpec {
    glib::ParamSpecString::builder(name).nick(nick).blurb(blurb).mutable_playing().build()
}

fn int(name: &str, nick: &str, blurb: &str, max: i32) -> glib::ParamSpec {
    glib::ParamSpecInt::builder(name)
        .nick(nick)
        .blurb(blurb)
        .minimum(-1)
        .maximum(max)
        .default_value(-1)
        .mutable_ready()
        .build()
}

fn uint(name: &str, nick: &str, blurb: &str, max: u32) -> glib::ParamSpec {
    glib::ParamSpecUInt::builder(name).nick(nick).blurb(blurb).maximum(max).mutable_ready().build()
}

fn float(name: &str, nick: &str, blurb: &str, max: f32) -> glib::ParamSpec {
    glib::ParamSpecFloat::builder(name)
        .nick(nick)
        .blurb(blurb)
        .minimum(-1.0)
        .maximum(max)
        .default_value(-1.0)
        .mutable_ready()
        .build()
}

fn choice<T>(name: &str, nick: &str, blurb: &str) -> glib::ParamSpec
where
    T: StaticType
        + Default
        + glib::HasParamSpec
        + glib::translate::FromGlib<i32>
        + glib::translate::IntoGlib<GlibType = i32>,
{
    glib::ParamSpecEnum::builder_with_default::<T>(name, T::default())
        .nick(nick)
        .blurb(blurb)
        .mutable_ready()
        .build()
}

/// All properties. Those that can be set take effect when the element starts (READY to PAUSED), the prompts at any time.
pub(super) static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
    vec![
        path(
            "model-path",
            "Model path",
            "Folder of the model bundle, with its bundle.toml; unset: the bundle nano installed with the plugin",
        ),
        choice::<ExecutionProvider>(
            "execution-provider",
            "Execution provider",
            "What ONNX Runtime runs the model on; one that is named but not available is an error",
        ),
        uint("device", "Device", "Number of the GPU to use", i32::MAX as u32),
        path(
            "model-cache-dir",
            "Model cache directory",
            "Folder in which compiled engines are kept (TensorRT); unset: none are kept",
        ),
        path(
            "ort-library",
            "ONNX Runtime library",
            "Path of libonnxruntime.so; unset: ORT_DYLIB_PATH, beside the plugin, the user's data folder, the system",
        ),
        uint("scale", "Scale", "Factor by which width and height grow; 0: the bundle's", 8),
        uint("window-length", "Window length", "Frames the model sees at once; 0: the bundle's", 1024),
        int(
            "window-overlap",
            "Window overlap",
            "Frames shared by neighbouring windows, less than window-length; -1: the bundle's",
            1023,
        ),
        choice::<WindowMode>("window-mode", "Window mode", "How neighbouring windows are joined; default: the bundle's"),
        uint("steps", "Steps", "Model evaluations in sampler-mode normal; 0: the bundle's", 1000),
        choice::<SamplerMode>("sampler-mode", "Sampler mode", "Spacing of the timesteps; default: the bundle's"),
        float(
            "guidance-scale",
            "Guidance scale",
            "Weight of the prompt against the negative prompt; 1 uses the prompt alone, in half the time; -1: the bundle's",
            100.0,
        ),
        float("guidance-rescale", "Guidance rescale", "Correction of contrast under guidance; -1: the bundle's", 1.0),
        gst::ParamSpecArray::builder("guidance-interval")
            .nick("Guidance interval")
            .blurb("Two numbers from 0 to 1: the part of the evaluations that is guided, the others using the prompt alone")
            .element_spec(
                &glib::ParamSpecFloat::builder("fraction")
                    .nick("Fraction")
                    .blurb("Fraction of the evaluations")
                    .minimum(0.0)
                    .maximum(1.0)
                    .build(),
            )
            .mutable_ready()
            .build(),
        choice::<GuidanceBatching>(
            "guidance-batching",
            "Guidance batching",
            "How the model is asked for the two halves of a guided prediction",
        ),
        text("prompt", "Prompt", "What the video shows; applies from the next window on; unset: the bundle's"),
        text(
            "negative-prompt",
            "Negative prompt",
            "What the result should not look like; applies from the next window on; unset: the bundle's",
        ),
        glib::ParamSpecEnum::builder_with_default("prompt-suffix", PromptSuffix::default())
            .nick("Prompt suffix")
            .blurb("How the bundle's suffix follows the prompt; applies from the next window on")
            .mutable_playing()
            .build(),
        uint(
            "noise-level",
            "Noise level",
            "Noise levels used: 1 stays close to the input, 1000 invents most; 0: the bundle's",
            1000,
        ),
        glib::ParamSpecUInt64::builder("seed")
            .nick("Seed")
            .blurb("Seed of the noise; the same seed, input and settings give the same output")
            .mutable_ready()
            .build(),
        choice::<Posterior>(
            "posterior",
            "Posterior",
            "Which of the latents that the encoder holds possible are used; sample needs a bundle whose encoder tells them",
        ),
        int(
            "decode-overlap",
            "Decode overlap",
            "Frames decoded on either side of those that are used, against seams; 0: as in the official program; -1: the bundle's",
            1023,
        ),
        choice::<ColorFix>(
            "color-fix",
            "Colour fix",
            "How colours are corrected against the input; default: the bundle's",
        ),
        float(
            "strength",
            "Strength",
            "Blend with the plain upscale: 0 the plain upscale, 1 the model's picture; -1: the bundle's",
            1.0,
        ),
        uint(
            "tile-size",
            "Tile size",
            "Largest side in output pixels that is processed at once, to save memory; 0: the bundle's, or less where memory is short",
            32768,
        ),
        int(
            "tile-overlap",
            "Tile overlap",
            "Output pixels shared by neighbouring tiles; -1: the bundle's",
            4096,
        ),
        glib::ParamSpecBoolean::builder("scene-detection")
            .nick("Scene detection")
            .blurb("Whether windows end where a new scene begins; the event starsr-scene-cut cuts in any case")
            .default_value(true)
            .mutable_ready()
            .build(),
        choice::<Overload>(
            "overload",
            "Overload",
            "What happens in a live pipeline to windows that would leave later than the latency allows",
        ),
        glib::ParamSpecUInt64::builder("processing-latency")
            .nick("Processing latency")
            .blurb("Time in nanoseconds that the model may take for a window; added to the latency of the window's frames")
            .maximum(gst::ClockTime::MAX.nseconds())
            .mutable_playing()
            .build(),
        choice::<OnError>("on-error", "On error", "What happens to a window for which the model fails"),
        uint("threads", "Threads", "CPU threads for the model and all work on pixels; 0: one a core", 1024),
        glib::ParamSpecBoxed::builder::<gst::Structure>("stats")
            .nick("Statistics")
            .blurb(
                "Since the start: frames-in, frames-out, windows, evaluations (runs of the denoiser), bypassed (frames), scene-cuts, latency-frames, memory-estimate (bytes of \
                 frames, latents and graphs, without weights), prompt-tokens-cut (guint64); time-convert-in, time-upscale \
                 and in it time-prepare, time-encode, time-sample, time-decode, time-finish, then time-convert-out, and \
                 time-onnxruntime (guint64, ns); model, provider, device, onnxruntime-version (string)",
            )
            .read_only()
            .build(),
    ]
});
