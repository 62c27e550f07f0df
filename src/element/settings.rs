// SPDX-License-Identifier: MPL-2.0

//! The element's properties. A value that stands for "unset" leaves the choice to the model bundle.

use std::path::PathBuf;

use gst::glib;
use gst::prelude::*;

use super::{
    ColorFix, ExecutionProvider, GuidanceBatching, OnError, Overload, Posterior, PromptSuffix, SamplerMode,
    WindowMode,
};
use starsr::diffusion::{guidance, schedule};
use starsr::error::{Error, Result};
use starsr::{color, runtime, text, upscaler, windows};

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
    guidance_interval: Vec<f32>,
    guidance_batching: GuidanceBatching,
    prompt: Option<String>,
    negative_prompt: Option<String>,
    prompt_suffix: PromptSuffix,
    noise_level: u32,
    seed: u64,
    posterior: Posterior,
    decode_overlap: i32,
    color_fix: ColorFix,
    strength: f32,
    tile_size: u32,
    tile_overlap: i32,
    scene_detection: bool,
    overload: Overload,
    processing_latency: u64,
    on_error: OnError,
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
            guidance_interval: vec![0.0, 1.0],
            guidance_batching: GuidanceBatching::default(),
            prompt: None,
            negative_prompt: None,
            prompt_suffix: PromptSuffix::default(),
            noise_level: 0,
            seed: 0,
            posterior: Posterior::default(),
            decode_overlap: -1,
            color_fix: ColorFix::default(),
            strength: -1.0,
            tile_size: 0,
            tile_overlap: -1,
            scene_detection: true,
            overload: Overload::default(),
            processing_latency: 0,
            on_error: OnError::default(),
            threads: 0,
        }
    }
}

impl Settings {
    /// The factor asked for, if any.
    pub(super) fn scale(&self) -> Option<u32> {
        (self.scale > 0).then_some(self.scale)
    }

    /// Number of the GPU.
    pub(super) fn device(&self) -> u32 {
        self.device
    }

    /// Threads for converting frames; 0 means one a core.
    pub(super) fn threads(&self) -> u32 {
        self.threads
    }

    /// Whether windows end at cuts.
    pub(super) fn scene_detection(&self) -> bool {
        self.scene_detection
    }

    /// What to do with windows that would be late.
    pub(super) fn overload(&self) -> Overload {
        self.overload
    }

    /// Time that a window may take.
    pub(super) fn processing_latency(&self) -> gst::ClockTime {
        gst::ClockTime::from_nseconds(self.processing_latency)
    }

    /// What to do with windows for which the model fails.
    pub(super) fn on_error(&self) -> OnError {
        self.on_error
    }

    /// What is asked for in words.
    pub(super) fn prompts(&self) -> text::Prompts {
        text::Prompts {
            prompt: self.prompt.clone(),
            negative: self.negative_prompt.clone(),
            suffix: match self.prompt_suffix {
                PromptSuffix::Spaced => text::PromptSuffix::Spaced,
                PromptSuffix::Glued => text::PromptSuffix::Glued,
                PromptSuffix::None => text::PromptSuffix::None,
            },
        }
    }

    /// What the upscaler is asked for. Fails with [`Error::Setting`] unless `guidance-interval` has two numbers.
    pub(super) fn upscaler(&self) -> Result<upscaler::Settings> {
        let &[low, high] = self.guidance_interval.as_slice() else {
            let reason =
                format!("takes two numbers, such as <0.2,0.8>, not {}", self.guidance_interval.len());
            return Err(Error::Setting { setting: "guidance-interval", reason });
        };
        Ok(upscaler::Settings {
            scale: self.scale(),
            window_length: (self.window_length > 0).then_some(self.window_length as usize),
            window_overlap: usize::try_from(self.window_overlap).ok(),
            window_mode: match self.window_mode {
                WindowMode::Default => None,
                WindowMode::Blend => Some(windows::WindowMode::Blend),
                WindowMode::Wavefront => Some(windows::WindowMode::Wavefront),
            },
            steps: (self.steps > 0).then_some(self.steps),
            sampler_mode: match self.sampler_mode {
                SamplerMode::Default => None,
                SamplerMode::Fast => Some(schedule::SamplerMode::Fast),
                SamplerMode::Normal => Some(schedule::SamplerMode::Normal),
            },
            guidance_scale: (self.guidance_scale >= 0.0).then_some(self.guidance_scale),
            guidance_rescale: (self.guidance_rescale >= 0.0).then_some(self.guidance_rescale),
            guidance_interval: Some((low, high)),
            guidance_batching: match self.guidance_batching {
                GuidanceBatching::Auto => guidance::Batching::Auto,
                GuidanceBatching::Together => guidance::Batching::Together,
                GuidanceBatching::Separate => guidance::Batching::Separate,
            },
            noise_level: (self.noise_level > 0).then_some(self.noise_level),
            seed: self.seed,
            posterior: match self.posterior {
                Posterior::Mean => upscaler::Posterior::Mean,
                Posterior::Sample => upscaler::Posterior::Sample,
            },
            decode_overlap: usize::try_from(self.decode_overlap).ok(),
            color_fix: match self.color_fix {
                ColorFix::Default => None,
                ColorFix::None => Some(color::ColorFix::None),
                ColorFix::Adain => Some(color::ColorFix::Adain),
                ColorFix::Wavelet => Some(color::ColorFix::Wavelet),
            },
            strength: (self.strength >= 0.0).then_some(self.strength),
            tile_size: (self.tile_size > 0).then_some(self.tile_size as usize),
            tile_overlap: usize::try_from(self.tile_overlap).ok(),
            threads: self.threads as usize,
        })
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
            "guidance-interval" => {
                if let Ok(array) = value.get::<gst::Array>() {
                    self.guidance_interval = array.iter().filter_map(|v| v.get().ok()).collect();
                }
            }
            "guidance-batching" => to(&mut self.guidance_batching, value),
            "prompt" => to(&mut self.prompt, value),
            "negative-prompt" => to(&mut self.negative_prompt, value),
            "prompt-suffix" => to(&mut self.prompt_suffix, value),
            "noise-level" => to(&mut self.noise_level, value),
            "seed" => to(&mut self.seed, value),
            "posterior" => to(&mut self.posterior, value),
            "decode-overlap" => to(&mut self.decode_overlap, value),
            "color-fix" => to(&mut self.color_fix, value),
            "strength" => to(&mut self.strength, value),
            "tile-size" => to(&mut self.tile_size, value),
            "tile-overlap" => to(&mut self.tile_overlap, value),
            "scene-detection" => to(&mut self.scene_detection, value),
            "overload" => to(&mut self.overload, value),
            "processing-latency" => to(&mut self.processing_latency, value),
            "on-error" => to(&mut self.on_error, value),
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
            "guidance-interval" => gst::Array::new(self.guidance_interval.iter().copied()).to_value(),
            "guidance-batching" => self.guidance_batching.to_value(),
            "prompt" => self.prompt.to_value(),
            "negative-prompt" => self.negative_prompt.to_value(),
            "prompt-suffix" => self.prompt_suffix.to_value(),
            "noise-level" => self.noise_level.to_value(),
            "seed" => self.seed.to_value(),
            "posterior" => self.posterior.to_value(),
            "decode-overlap" => self.decode_overlap.to_value(),
            "color-fix" => self.color_fix.to_value(),
            "strength" => self.strength.to_value(),
            "tile-size" => self.tile_size.to_value(),
            "tile-overlap" => self.tile_overlap.to_value(),
            "scene-detection" => self.scene_detection.to_value(),
            "overload" => self.overload.to_value(),
            "processing-latency" => self.processing_latency.to_value(),
            "on-error" => self.on_error.to_value(),
            "threads" => self.threads.to_value(),
            _ => return None,
        })
    }
}
