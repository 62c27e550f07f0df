// SPDX-License-Identifier: MPL-2.0

//! The values of the element's properties, and what they become in the engine.

use std::path::PathBuf;

use gst::glib;
use gst::prelude::*;

use starsr::diffusion::{guidance, schedule};
use starsr::{Error, Result, Setting, color, runtime, text, upscaler, windows};

/// GstStarsrExecutionProvider:
///
/// What ONNX Runtime runs the model on.
///
/// Since: 0.1
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstStarsrExecutionProvider")]
#[repr(i32)]
pub enum ExecutionProvider {
    /// The best that is available.
    #[default]
    #[enum_value(name = "Auto: TensorRT if available, else CUDA, else the CPU", nick = "auto")]
    Auto = 0,
    /// The CPU.
    #[enum_value(name = "CPU", nick = "cpu")]
    Cpu = 1,
    /// NVIDIA CUDA; an error where it is missing.
    #[enum_value(name = "CUDA: an error if not available", nick = "cuda")]
    Cuda = 2,
    /// NVIDIA TensorRT; an error where it is missing.
    #[enum_value(name = "TensorRT: an error if not available", nick = "tensorrt")]
    TensorRt = 3,
    /// Intel's OpenVINO, from a library of its own; an error where it is missing.
    #[enum_value(name = "OpenVINO: from its library, an error if not available", nick = "openvino")]
    OpenVino = 4,
    /// NVIDIA TensorRT for RTX, from a library of its own; an error where it is missing.
    #[enum_value(
        name = "TensorRT for RTX: from its library, an error if not available",
        nick = "tensorrt-rtx"
    )]
    TensorRtRtx = 5,
    /// WebGPU, from a library of its own; an error where it is missing.
    #[enum_value(name = "WebGPU: from its library, an error if not available", nick = "webgpu")]
    WebGpu = 6,
    /// Any other provider from a library of its own.
    #[enum_value(
        name = "Plugin: the one that provider-name or provider-library names, or an error",
        nick = "plugin"
    )]
    Plugin = 7,
}

impl From<ExecutionProvider> for runtime::Provider {
    fn from(value: ExecutionProvider) -> Self {
        match value {
            ExecutionProvider::Auto => Self::Auto,
            ExecutionProvider::Cpu => Self::Cpu,
            ExecutionProvider::Cuda => Self::Cuda,
            ExecutionProvider::TensorRt => Self::TensorRt,
            ExecutionProvider::OpenVino => Self::OpenVino,
            ExecutionProvider::TensorRtRtx => Self::TensorRtRtx,
            ExecutionProvider::WebGpu => Self::WebGpu,
            ExecutionProvider::Plugin => Self::Plugin,
        }
    }
}

/// GstStarsrWindowMode:
///
/// How neighbouring windows of frames are joined.
///
/// Since: 0.1
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstStarsrWindowMode")]
#[repr(i32)]
pub enum WindowMode {
    /// As the model bundle says.
    #[default]
    #[enum_value(name = "Default: as the model bundle says", nick = "default")]
    Default = 0,
    /// Pixels are cross-faded.
    #[enum_value(
        name = "Blend: windows are sampled on their own, pixels of the overlap cross-faded",
        nick = "blend"
    )]
    Blend = 1,
    /// Predictions are merged at every step.
    #[enum_value(
        name = "Wavefront: predictions are merged at every step, as in the paper",
        nick = "wavefront"
    )]
    Wavefront = 2,
}

impl From<WindowMode> for Option<windows::WindowMode> {
    fn from(value: WindowMode) -> Self {
        match value {
            WindowMode::Default => None,
            WindowMode::Blend => Some(windows::WindowMode::Blend),
            WindowMode::Wavefront => Some(windows::WindowMode::Wavefront),
        }
    }
}

/// GstStarsrSamplerMode:
///
/// How the sampler's timesteps are spaced.
///
/// Since: 0.1
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstStarsrSamplerMode")]
#[repr(i32)]
pub enum SamplerMode {
    /// As the model bundle says.
    #[default]
    #[enum_value(name = "Default: as the model bundle says", nick = "default")]
    Default = 0,
    /// The official 14 evaluations.
    #[enum_value(name = "Fast: 14 evaluations", nick = "fast")]
    Fast = 1,
    /// As many evaluations as `steps`.
    #[enum_value(name = "Normal: as many evaluations as steps, evenly spaced", nick = "normal")]
    Normal = 2,
}

impl From<SamplerMode> for Option<schedule::SamplerMode> {
    fn from(value: SamplerMode) -> Self {
        match value {
            SamplerMode::Default => None,
            SamplerMode::Fast => Some(schedule::SamplerMode::Fast),
            SamplerMode::Normal => Some(schedule::SamplerMode::Normal),
        }
    }
}

/// GstStarsrColorFix:
///
/// How the colours of the result are corrected against the input.
///
/// Since: 0.1
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstStarsrColorFix")]
#[repr(i32)]
pub enum ColorFix {
    /// As the model bundle says.
    #[default]
    #[enum_value(name = "Default: as the model bundle says", nick = "default")]
    Default = 0,
    /// Not at all.
    #[enum_value(name = "None: colours as the model gives them", nick = "none")]
    None = 1,
    /// Statistics of each channel.
    #[enum_value(
        name = "AdaIN: mean and standard deviation of each channel from the input",
        nick = "adain"
    )]
    Adain = 2,
    /// Low frequencies.
    #[enum_value(name = "Wavelet: low frequencies from the input", nick = "wavelet")]
    Wavelet = 3,
}

impl From<ColorFix> for Option<color::ColorFix> {
    fn from(value: ColorFix) -> Self {
        match value {
            ColorFix::Default => None,
            ColorFix::None => Some(color::ColorFix::None),
            ColorFix::Adain => Some(color::ColorFix::Adain),
            ColorFix::Wavelet => Some(color::ColorFix::Wavelet),
        }
    }
}

/// GstStarsrPromptSuffix:
///
/// How the model bundle's suffix follows the prompt.
///
/// Since: 0.1
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstStarsrPromptSuffix")]
#[repr(i32)]
pub enum PromptSuffix {
    /// Behind a space.
    #[default]
    #[enum_value(name = "Spaced: behind a space", nick = "spaced")]
    Spaced = 0,
    /// Without one.
    #[enum_value(name = "Glued: without a space, as in the official program", nick = "glued")]
    Glued = 1,
    /// No suffix.
    #[enum_value(name = "None: the prompt alone", nick = "none")]
    None = 2,
}

impl From<PromptSuffix> for text::PromptSuffix {
    fn from(value: PromptSuffix) -> Self {
        match value {
            PromptSuffix::Spaced => Self::Spaced,
            PromptSuffix::Glued => Self::Glued,
            PromptSuffix::None => Self::None,
        }
    }
}

/// GstStarsrGuidanceBatching:
///
/// How the model is asked for the two halves of a guided prediction.
///
/// Since: 0.1
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstStarsrGuidanceBatching")]
#[repr(i32)]
pub enum GuidanceBatching {
    /// By provider and memory.
    #[default]
    #[enum_value(
        name = "Auto: together on a GPU while its memory allows, separate on the CPU",
        nick = "auto"
    )]
    Auto = 0,
    /// As a batch of two.
    #[enum_value(name = "Together: as a batch of two", nick = "together")]
    Together = 1,
    /// One after the other.
    #[enum_value(name = "Separate: one after the other, with less memory", nick = "separate")]
    Separate = 2,
}

impl From<GuidanceBatching> for guidance::Batching {
    fn from(value: GuidanceBatching) -> Self {
        match value {
            GuidanceBatching::Auto => Self::Auto,
            GuidanceBatching::Together => Self::Together,
            GuidanceBatching::Separate => Self::Separate,
        }
    }
}

/// GstStarsrPrecision:
///
/// What the model computes in.
///
/// Since: 0.2
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstStarsrPrecision")]
#[repr(i32)]
pub enum Precision {
    /// By bundle and processor.
    #[default]
    #[enum_value(
        name = "Auto: 8-bit integers where the bundle has them and the processor is faster with them",
        nick = "auto"
    )]
    Auto = 0,
    /// The bundle's floats.
    #[enum_value(name = "Float: as the bundle has them", nick = "float")]
    Float = 1,
    /// 16-bit floats.
    #[enum_value(name = "Fp16: 16-bit floats, for GPUs", nick = "fp16")]
    Fp16 = 2,
    /// 8-bit integers.
    #[enum_value(name = "Int8: 8-bit integers", nick = "int8")]
    Int8 = 3,
}

impl From<Precision> for runtime::Precision {
    fn from(value: Precision) -> Self {
        match value {
            Precision::Auto => Self::Auto,
            Precision::Float => Self::Float,
            Precision::Fp16 => Self::Fp16,
            Precision::Int8 => Self::Int8,
        }
    }
}

/// GstStarsrPosterior:
///
/// Which latents of the encoder's posterior are used.
///
/// Since: 0.1
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstStarsrPosterior")]
#[repr(i32)]
pub enum Posterior {
    /// The mean.
    #[default]
    #[enum_value(name = "Mean", nick = "mean")]
    Mean = 0,
    /// A sample.
    #[enum_value(name = "Sample: drawn by the seed, as in the official program", nick = "sample")]
    Sample = 1,
}

impl From<Posterior> for upscaler::Posterior {
    fn from(value: Posterior) -> Self {
        match value {
            Posterior::Mean => Self::Mean,
            Posterior::Sample => Self::Sample,
        }
    }
}

/// GstStarsrOverload:
///
/// What happens in a live pipeline when the model is slower than the stream.
///
/// Since: 0.1
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstStarsrOverload")]
#[repr(i32)]
pub enum Overload {
    /// Frames are late.
    #[default]
    #[enum_value(name = "Block: frames leave late, and upstream waits", nick = "block")]
    Block = 0,
    /// Windows are left out.
    #[enum_value(
        name = "Bypass: windows that would be late come out as the plain upscale",
        nick = "bypass"
    )]
    Bypass = 1,
}

/// GstStarsrOnError:
///
/// What happens when the model fails while it runs.
///
/// Since: 0.1
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstStarsrOnError")]
#[repr(i32)]
pub enum OnError {
    /// The stream ends with an error.
    #[default]
    #[enum_value(name = "Fail: an error message, and the stream ends", nick = "fail")]
    Fail = 0,
    /// Windows are left out.
    #[enum_value(
        name = "Bypass: the window comes out as the plain upscale, with a warning once per stream",
        nick = "bypass"
    )]
    Bypass = 1,
}

/// What a user has set. A value that stands for "unset" leaves the choice to the model bundle.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) model_path: Option<PathBuf>,
    pub(super) execution_provider: ExecutionProvider,
    pub(super) provider_name: Option<String>,
    pub(super) provider_library: Option<PathBuf>,
    pub(super) provider_options: Option<gst::Structure>,
    pub(super) device: u32,
    pub(super) device_memory: u32,
    pub(super) model_cache_dir: Option<PathBuf>,
    pub(super) ort_library: Option<PathBuf>,
    pub(super) scale: u32,
    pub(super) window_length: u32,
    pub(super) window_overlap: i32,
    pub(super) window_mode: WindowMode,
    pub(super) steps: u32,
    pub(super) sampler_mode: SamplerMode,
    pub(super) guidance_scale: f32,
    pub(super) guidance_rescale: f32,
    pub(super) guidance_interval: gst::Array,
    pub(super) guidance_batching: GuidanceBatching,
    pub(super) prompt: Option<String>,
    pub(super) negative_prompt: Option<String>,
    pub(super) prompt_suffix: PromptSuffix,
    pub(super) noise_level: u32,
    pub(super) seed: u64,
    pub(super) posterior: Posterior,
    pub(super) decode_overlap: i32,
    pub(super) color_fix: ColorFix,
    pub(super) strength: f32,
    pub(super) detail: f32,
    pub(super) precision: Precision,
    pub(super) tile_size: u32,
    pub(super) tile_overlap: i32,
    pub(super) scene_detection: bool,
    pub(super) read_ahead: bool,
    pub(super) overload: Overload,
    pub(super) processing_latency: u64,
    pub(super) on_error: OnError,
    pub(super) threads: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            model_path: None,
            execution_provider: ExecutionProvider::default(),
            provider_name: None,
            provider_library: None,
            provider_options: None,
            device: 0,
            device_memory: 0,
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
            guidance_interval: gst::Array::new([0.0f32, 1.0]),
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
            detail: -1.0,
            precision: Precision::default(),
            tile_size: 0,
            tile_overlap: -1,
            scene_detection: true,
            read_ahead: true,
            overload: Overload::default(),
            processing_latency: 0,
            on_error: OnError::default(),
            threads: 0,
        }
    }
}

/// `None` where 0 stands for "unset".
fn nonzero(value: u32) -> Option<u32> {
    (value > 0).then_some(value)
}

/// `None` where a negative number stands for "unset".
fn nonnegative(value: f32) -> Option<f32> {
    (value >= 0.0).then_some(value)
}

/// The fields of a structure as texts.
fn options(structure: &gst::StructureRef) -> Vec<(String, String)> {
    let text = |value: &glib::SendValue| match value.get::<String>() {
        Ok(text) => text,
        Err(_) => value.serialize().map(|text| text.to_string()).unwrap_or_default(),
    };
    structure.iter().map(|(name, value)| (name.to_string(), text(value))).collect()
}

impl Settings {
    /// The time that a window may take.
    pub(super) fn processing_latency(&self) -> gst::ClockTime {
        gst::ClockTime::from_nseconds(self.processing_latency)
    }

    /// The prompts for the next window.
    pub(super) fn prompts(&self) -> text::Prompts {
        text::Prompts {
            prompt: self.prompt.clone(),
            negative: self.negative_prompt.clone(),
            suffix: self.prompt_suffix.into(),
        }
    }

    /// The settings of the upscaler.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] unless `guidance_interval` has two numbers.
    pub(super) fn upscaler(&self) -> Result<upscaler::Settings> {
        let interval: Vec<f32> =
            self.guidance_interval.iter().filter_map(|v| v.get().ok()).collect();
        let &[low, high] = interval.as_slice() else {
            let reason = format!("takes two numbers, such as <0.2,0.8>, not {}", interval.len());
            return Err(Error::setting(Setting::GuidanceInterval, reason));
        };
        Ok(upscaler::Settings {
            scale: nonzero(self.scale),
            window_length: nonzero(self.window_length).map(|frames| frames as usize),
            window_overlap: usize::try_from(self.window_overlap).ok(),
            window_mode: self.window_mode.into(),
            steps: nonzero(self.steps),
            sampler_mode: self.sampler_mode.into(),
            guidance_scale: nonnegative(self.guidance_scale),
            guidance_rescale: nonnegative(self.guidance_rescale),
            guidance_interval: Some((low, high)),
            guidance_batching: self.guidance_batching.into(),
            noise_level: nonzero(self.noise_level),
            seed: self.seed,
            posterior: self.posterior.into(),
            decode_overlap: usize::try_from(self.decode_overlap).ok(),
            color_fix: self.color_fix.into(),
            strength: nonnegative(self.strength),
            tile_size: nonzero(self.tile_size).map(|pixels| pixels as usize),
            tile_overlap: usize::try_from(self.tile_overlap).ok(),
            threads: self.threads as usize,
        })
    }

    /// The options of the runtime, which searches `folders` for its library.
    pub(super) fn runtime(&self, folders: Vec<PathBuf>) -> runtime::Options {
        runtime::Options {
            library: self.ort_library.clone(),
            near: folders,
            provider: self.execution_provider.into(),
            provider_name: self.provider_name.clone(),
            provider_library: self.provider_library.clone(),
            provider_options: self.provider_options.as_deref().map(options).unwrap_or_default(),
            device: self.device,
            cache_dir: self.model_cache_dir.clone(),
            device_memory: nonzero(self.device_memory).map(|mebibytes| u64::from(mebibytes) << 20),
            detail: nonnegative(self.detail),
            precision: self.precision.into(),
            threads: self.threads as usize,
        }
    }
}
