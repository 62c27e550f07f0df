// SPDX-License-Identifier: MPL-2.0

//! The element's properties. A value that stands for "unset" leaves the choice to the model bundle.

use std::path::PathBuf;
use std::sync::LazyLock;

use gst::glib;
use gst::prelude::*;

use super::{ColorFix, ExecutionProvider, SamplerMode, WindowMode};
use crate::{color, diffusion::schedule, runtime, upscaler, window};

/// What a user has set, read when the element starts.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) model_path: Option<PathBuf>,
    execution_provider: ExecutionProvider,
    device: u32,
    model_cache_dir: Option<PathBuf>,
    ort_library: Option<PathBuf>,
    scale: u32,
    window_length: u32,
    window_overlap: i32,
    window_mode: WindowMode,
    steps: u32,
    sampler_mode: SamplerMode,
    guidance_scale: f32,
    guidance_rescale: f32,
    noise_level: u32,
    seed: u64,
    color_fix: ColorFix,
    strength: f32,
    tile_size: u32,
    tile_overlap: i32,
    threads: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            model_path: None,
            execution_provider: ExecutionProvider::default(),
            device: 0,
            model_cache_dir: None,
            ort_library: None,
            scale: 0,
            window_length: 0,
            window_overlap: -1,
            window_mode: WindowMode::default(),
            steps: 0,
            sampler_mode: SamplerMode::default(),
            guidance_scale: -1.0,
            guidance_rescale: -1.0,
            noise_level: 0,
            seed: 0,
            color_fix: ColorFix::default(),
            strength: -1.0,
            tile_size: 0,
            tile_overlap: -1,
            threads: 0,
        }
    }
}

impl Settings {
    /// The factor asked for, if any.
    pub(super) fn scale(&self) -> Option<u32> {
        (self.scale > 0).then_some(self.scale)
    }

    /// Threads for converting frames; 0 means one a core.
    pub(super) fn threads(&self) -> u32 {
        self.threads
    }

    /// What the upscaler is asked for.
    pub(super) fn upscaler(&self) -> upscaler::Settings {
        upscaler::Settings {
            scale: self.scale(),
            window_length: (self.window_length > 0).then_some(self.window_length as usize),
            window_overlap: usize::try_from(self.window_overlap).ok(),
            window_mode: match self.window_mode {
                WindowMode::Default => None,
                WindowMode::Blend => Some(window::WindowMode::Blend),
                WindowMode::Wavefront => Some(window::WindowMode::Wavefront),
            },
            steps: (self.steps > 0).then_some(self.steps),
            sampler_mode: match self.sampler_mode {
                SamplerMode::Default => None,
                SamplerMode::Fast => Some(schedule::SamplerMode::Fast),
                SamplerMode::Normal => Some(schedule::SamplerMode::Normal),
            },
            guidance_scale: (self.guidance_scale >= 0.0).then_some(self.guidance_scale),
            guidance_rescale: (self.guidance_rescale >= 0.0).then_some(self.guidance_rescale),
            noise_level: (self.noise_level > 0).then_some(self.noise_level),
            seed: self.seed,
            color_fix: match self.color_fix {
                ColorFix::Default => None,
                ColorFix::None => Some(color::ColorFix::None),
                ColorFix::Adain => Some(color::ColorFix::Adain),
                ColorFix::Wavelet => Some(color::ColorFix::Wavelet),
            },
            strength: (self.strength >= 0.0).then_some(self.strength),
            tile_size: (self.tile_size > 0).then_some(self.tile_size as usize),
            tile_overlap: usize::try_from(self.tile_overlap).ok(),
        }
    }

    /// What the runtime is asked for; `near` are the folders in which library and bundle are looked for.
    pub(super) fn runtime(&self, near: Vec<PathBuf>) -> runtime::Options {
        runtime::Options {
            library: self.ort_library.clone(),
            near,
            provider: match self.execution_provider {
                ExecutionProvider::Auto => runtime::Provider::Auto,
                ExecutionProvider::Cpu => runtime::Provider::Cpu,
                ExecutionProvider::Cuda => runtime::Provider::Cuda,
                ExecutionProvider::TensorRt => runtime::Provider::TensorRt,
            },
            device: self.device,
            cache_dir: self.model_cache_dir.clone(),
            threads: self.threads as usize,
        }
    }

    /// Takes over a property's new value; `false` when the property is not one of these.
    pub(super) fn set(&mut self, name: &str, value: &glib::Value) -> bool {
        fn to<'a, T: glib::value::FromValue<'a>>(field: &mut T, value: &'a glib::Value) {
            // GObject has checked the type against the property's.
            if let Ok(value) = value.get::<T>() {
                *field = value;
            }
        }
        match name {
            "model-path" => to(&mut self.model_path, value),
            "execution-provider" => to(&mut self.execution_provider, value),
            "device" => to(&mut self.device, value),
            "model-cache-dir" => to(&mut self.model_cache_dir, value),
            "ort-library" => to(&mut self.ort_library, value),
            "scale" => to(&mut self.scale, value),
            "window-length" => to(&mut self.window_length, value),
            "window-overlap" => to(&mut self.window_overlap, value),
            "window-mode" => to(&mut self.window_mode, value),
            "steps" => to(&mut self.steps, value),
            "sampler-mode" => to(&mut self.sampler_mode, value),
            "guidance-scale" => to(&mut self.guidance_scale, value),
            "guidance-rescale" => to(&mut self.guidance_rescale, value),
            "noise-level" => to(&mut self.noise_level, value),
            "seed" => to(&mut self.seed, value),
            "color-fix" => to(&mut self.color_fix, value),
            "strength" => to(&mut self.strength, value),
            "tile-size" => to(&mut self.tile_size, value),
            "tile-overlap" => to(&mut self.tile_overlap, value),
            "threads" => to(&mut self.threads, value),
            _ => return false,
        }
        true
    }

    /// A property's value; `None` when the property is not one of these.
    pub(super) fn get(&self, name: &str) -> Option<glib::Value> {
        Some(match name {
            "model-path" => self.model_path.to_value(),
            "execution-provider" => self.execution_provider.to_value(),
            "device" => self.device.to_value(),
            "model-cache-dir" => self.model_cache_dir.to_value(),
            "ort-library" => self.ort_library.to_value(),
            "scale" => self.scale.to_value(),
            "window-length" => self.window_length.to_value(),
            "window-overlap" => self.window_overlap.to_value(),
            "window-mode" => self.window_mode.to_value(),
            "steps" => self.steps.to_value(),
            "sampler-mode" => self.sampler_mode.to_value(),
            "guidance-scale" => self.guidance_scale.to_value(),
            "guidance-rescale" => self.guidance_rescale.to_value(),
            "noise-level" => self.noise_level.to_value(),
            "seed" => self.seed.to_value(),
            "color-fix" => self.color_fix.to_value(),
            "strength" => self.strength.to_value(),
            "tile-size" => self.tile_size.to_value(),
            "tile-overlap" => self.tile_overlap.to_value(),
            "threads" => self.threads.to_value(),
            _ => return None,
        })
    }
}

fn path(name: &str, nick: &str, blurb: &str) -> glib::ParamSpec {
    glib::ParamSpecString::builder(name).nick(nick).blurb(blurb).mutable_ready().build()
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

/// All properties. Those that can be set take effect when the element starts (READY to PAUSED).
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
        glib::ParamSpecInt::builder("window-overlap")
            .nick("Window overlap")
            .blurb("Frames shared by neighbouring windows, less than window-length; -1: the bundle's")
            .minimum(-1)
            .maximum(1023)
            .default_value(-1)
            .mutable_ready()
            .build(),
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
            "Largest side in output pixels that is processed at once, to save memory; 0: the bundle's",
            32768,
        ),
        glib::ParamSpecInt::builder("tile-overlap")
            .nick("Tile overlap")
            .blurb("Output pixels shared by neighbouring tiles; -1: the bundle's")
            .minimum(-1)
            .maximum(4096)
            .default_value(-1)
            .mutable_ready()
            .build(),
        uint("threads", "Threads", "CPU threads for model and conversion; 0: one a core", 1024),
        glib::ParamSpecBoxed::builder::<gst::Structure>("stats")
            .nick("Statistics")
            .blurb(
                "Since the start: frames-in, frames-out, windows, latency-frames (guint64); time-convert-in, time-upscale \
                 and in it time-prepare, time-encode, time-sample, time-decode, time-finish, then time-convert-out, and \
                 time-onnxruntime (guint64, ns); model, provider, onnxruntime-version (string)",
            )
            .read_only()
            .build(),
    ]
});
