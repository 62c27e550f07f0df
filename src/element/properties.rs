// SPDX-License-Identifier: MPL-2.0

//! The element's instance and its properties.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

use gst::glib;
use gst::prelude::*;
use parking_lot::Mutex;

use super::interrupt::Interrupt;
use super::session::Session;
use super::settings::{
    ColorFix, ExecutionProvider, GuidanceBatching, OnError, Overload, Posterior, Precision,
    PromptSuffix, SamplerMode, Settings, WindowMode,
};
use super::stats::ElementStats;

/// The name of the property with the options of the execution provider.
pub(super) const PROVIDER_OPTIONS: &str = "provider-options";

/// The element's instance.
#[derive(Default, glib::Properties)]
#[properties(wrapper_type = super::Starsr)]
pub struct Starsr {
    // The settings take effect when the element starts (READY to PAUSED), the prompts at any time.
    #[property(name = "model-path", get, set, nullable, type = Option<PathBuf>, member = model_path,
        mutable_ready, nick = "Model path",
        blurb = "Folder of the model bundle, with its bundle.toml; unset: the bundle nano2 \
            installed with the plugin")]
    #[property(name = "execution-provider", get, set, default, type = ExecutionProvider,
        member = execution_provider, mutable_ready, nick = "Execution provider",
        blurb = "What ONNX Runtime runs the model on; naming one that is not available is an \
            error")]
    #[property(name = "provider-name", get, set, nullable, type = Option<String>,
        member = provider_name, mutable_ready, nick = "Provider name",
        blurb = "With execution-provider=plugin: the provider's name in ONNX Runtime; unset: the \
            only one in provider-library")]
    #[property(name = "provider-library", get, set, nullable, type = Option<PathBuf>,
        member = provider_library, mutable_ready, nick = "Provider library",
        blurb = "Library of a provider that is not part of ONNX Runtime; unset: searched beside \
            ONNX Runtime and the plugin and in the user's data folder")]
    #[property(name = "device", get, set, type = u32, member = device, maximum = i32::MAX as u32,
        mutable_ready, nick = "Device",
        blurb = "Number of the GPU to use, or of the device that a provider from a library found, \
            GPUs first")]
    #[property(name = "device-memory", get, set, type = u32, member = device_memory,
        mutable_ready, nick = "Device memory",
        blurb = "Memory of the GPU in MiB that the model may take; 0: what is free")]
    #[property(name = "model-cache-dir", get, set, nullable, type = Option<PathBuf>,
        member = model_cache_dir, mutable_ready, nick = "Model cache directory",
        blurb = "Folder that keeps compiled engines (TensorRT); unset: engines are not kept")]
    #[property(name = "ort-library", get, set, nullable, type = Option<PathBuf>,
        member = ort_library, mutable_ready, nick = "ONNX Runtime library",
        blurb = "Path of libonnxruntime.so; unset: searched in ORT_DYLIB_PATH, beside the plugin, \
            in the user's data folder and in the system")]
    #[property(name = "scale", get, set, type = u32, member = scale, maximum = 8, mutable_ready,
        nick = "Scale",
        blurb = "Factor by which width and height grow; 0: the bundle's")]
    #[property(name = "window-length", get, set, type = u32, member = window_length, maximum = 1024,
        mutable_ready, nick = "Window length",
        blurb = "Frames that the model sees at once; 0: the bundle's")]
    #[property(name = "window-overlap", get, set, type = i32, member = window_overlap, minimum = -1,
        maximum = 1023, default = -1, mutable_ready, nick = "Window overlap",
        blurb = "Frames that neighbouring windows share, fewer than window-length; -1: the \
            bundle's")]
    #[property(name = "window-mode", get, set, default, type = WindowMode, member = window_mode,
        mutable_ready, nick = "Window mode",
        blurb = "How neighbouring windows are joined; default: the bundle's")]
    #[property(name = "steps", get, set, type = u32, member = steps, maximum = 1000, mutable_ready,
        nick = "Steps",
        blurb = "Model evaluations with sampler-mode=normal; 0: the bundle's")]
    #[property(name = "sampler-mode", get, set, default, type = SamplerMode, member = sampler_mode,
        mutable_ready, nick = "Sampler mode",
        blurb = "Spacing of the timesteps; default: the bundle's")]
    #[property(name = "guidance-scale", get, set, type = f32, member = guidance_scale,
        minimum = -1.0, maximum = 100.0, default = -1.0, mutable_ready, nick = "Guidance scale",
        blurb = "Weight of the prompt against the negative prompt; 1: the prompt alone, in half \
            the time; -1: the bundle's")]
    #[property(name = "guidance-rescale", get, set, type = f32, member = guidance_rescale,
        minimum = -1.0, maximum = 1.0, default = -1.0, mutable_ready, nick = "Guidance rescale",
        blurb = "How far the contrast that guidance raises is corrected; -1: the bundle's")]
    #[property(name = "guidance-interval", get, set, type = gst::Array, member = guidance_interval,
        mutable_ready, element_spec = &fraction_spec(), nick = "Guidance interval",
        blurb = "Two numbers from 0 to 1: the part of the evaluations that is guided; the others \
            use the prompt alone")]
    #[property(name = "guidance-batching", get, set, default, type = GuidanceBatching,
        member = guidance_batching, mutable_ready, nick = "Guidance batching",
        blurb = "How the two halves of a guided prediction are run")]
    #[property(name = "prompt", get, set, nullable, type = Option<String>, member = prompt,
        mutable_playing, nick = "Prompt",
        blurb = "What the video shows; applies from the next window on; unset: the bundle's")]
    #[property(name = "negative-prompt", get, set, nullable, type = Option<String>,
        member = negative_prompt, mutable_playing, nick = "Negative prompt",
        blurb = "What the result should not look like; applies from the next window on; unset: the \
            bundle's")]
    #[property(name = "prompt-suffix", get, set, default, type = PromptSuffix,
        member = prompt_suffix, mutable_playing, nick = "Prompt suffix",
        blurb = "How the bundle's suffix follows the prompt; applies from the next window on")]
    #[property(name = "noise-level", get, set, type = u32, member = noise_level, maximum = 1000,
        mutable_ready, nick = "Noise level",
        blurb = "Noise levels used: 1 stays close to the input, 1000 invents the most; 0: the \
            bundle's")]
    #[property(name = "seed", get, set, type = u64, member = seed, mutable_ready, nick = "Seed",
        blurb = "Seed of the noise; the same seed, input and settings give the same output")]
    #[property(name = "posterior", get, set, default, type = Posterior, member = posterior,
        mutable_ready, nick = "Posterior",
        blurb = "Latents taken from the encoder: the mean or a sample; a sample needs a bundle \
            whose encoder gives the standard deviation")]
    #[property(name = "decode-overlap", get, set, type = i32, member = decode_overlap, minimum = -1,
        maximum = 1023, default = -1, mutable_ready, nick = "Decode overlap",
        blurb = "Extra frames decoded on either side of those used, to avoid seams; 0: as in the \
            official program; -1: the bundle's")]
    #[property(name = "color-fix", get, set, default, type = ColorFix, member = color_fix,
        mutable_ready, nick = "Colour fix",
        blurb = "How colours are corrected towards the input; default: the bundle's")]
    #[property(name = "strength", get, set, type = f32, member = strength, minimum = -1.0,
        maximum = 1.0, default = -1.0, mutable_ready, nick = "Strength",
        blurb = "Blend of the plain upscale (0) and the model's picture (1); -1: the bundle's")]
    #[property(name = "detail", get, set, type = f32, member = detail, minimum = -1.0,
        maximum = 1.0, default = -1.0, mutable_ready, nick = "Detail",
        blurb = "Blend of a bundle's weights for fidelity (0) and for detail (1); -1: the bundle's")]
    #[property(name = "precision", get, set, default, type = Precision, member = precision,
        mutable_ready, nick = "Precision",
        blurb = "What the model computes in; auto: 8-bit integers on processors that are faster \
            with them, where the bundle has them")]
    #[property(name = "tile-size", get, set, type = u32, member = tile_size, maximum = 32768,
        mutable_ready, nick = "Tile size",
        blurb = "Largest side in output pixels that is processed at once, to save memory; 0: the \
            bundle's, or less where memory is short")]
    #[property(name = "tile-overlap", get, set, type = i32, member = tile_overlap, minimum = -1,
        maximum = 4096, default = -1, mutable_ready, nick = "Tile overlap",
        blurb = "Output pixels that neighbouring tiles share; -1: the bundle's")]
    #[property(name = "scene-detection", get, set, type = bool, member = scene_detection,
        default = true, mutable_ready, nick = "Scene detection",
        blurb = "Whether windows end where a new scene begins; the event starsr-scene-cut ends \
            them in any case")]
    #[property(name = "read-ahead", get, set, type = bool, member = read_ahead, default = true,
        mutable_ready, nick = "Read ahead",
        blurb = "Whether frames of the next window are taken, and those of the last one leave, \
            while the model works; never with overload=bypass")]
    #[property(name = "overload", get, set, default, type = Overload, member = overload,
        mutable_ready, nick = "Overload",
        blurb = "What happens in a live pipeline to windows that would leave later than the \
            latency allows")]
    #[property(name = "processing-latency", get, set = Self::set_processing_latency, type = u64,
        member = processing_latency, maximum = gst::ClockTime::MAX.nseconds(), mutable_playing,
        nick = "Processing latency",
        blurb = "Time in nanoseconds that the model may take for a window; added to the latency of \
            the window's frames")]
    #[property(name = "on-error", get, set, default, type = OnError, member = on_error,
        mutable_ready, nick = "On error",
        blurb = "What happens to a window for which the model fails")]
    #[property(name = "threads", get, set, type = u32, member = threads, maximum = 1024,
        mutable_ready, nick = "Threads",
        blurb = "CPU threads for the model and for all work on pixels; 0: one per core")]
    pub(super) settings: std::sync::Mutex<Settings>,
    /// `None` unless started, and while the streaming thread works with it.
    pub(super) session: Mutex<Option<Box<Session>>>,
    pub(super) stats: Arc<Mutex<ElementStats>>,
    /// Latency of the windows in nanoseconds.
    pub(super) latency: AtomicU64,
    pub(super) scale: AtomicU32,
    pub(super) interrupt: Interrupt,
}

/// The specification of `provider-options`; derived properties take no structures.
pub(super) fn provider_options_spec() -> glib::ParamSpec {
    glib::ParamSpecBoxed::builder::<gst::Structure>(PROVIDER_OPTIONS)
        .nick("Provider options")
        .blurb(
            "Options of the execution provider, such as options,num_streams=1; they replace those \
             that starsr sets; unset: none",
        )
        .mutable_ready()
        .build()
}

/// The specification of the numbers in `guidance-interval`.
fn fraction_spec() -> glib::ParamSpec {
    glib::ParamSpecFloat::builder("fraction")
        .nick("Fraction")
        .blurb("Fraction of the evaluations")
        .minimum(0.0)
        .maximum(1.0)
        .build()
}
