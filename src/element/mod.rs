// SPDX-License-Identifier: MPL-2.0

//! The public face of the element `starsr`: its type, the types of its properties, and its registration.

use gst::glib;
use gst::prelude::*;

mod bypass;
mod caps;
mod negotiation;
mod frames;
mod imp;
mod metas;
mod loading;
mod numbering;
mod properties;
mod settings;
mod stats;
mod stream;

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
    #[enum_value(name = "AdaIN: mean and deviation of each channel from the input", nick = "adain")]
    Adain = 2,
    /// Low frequencies.
    #[enum_value(name = "Wavelet: low frequencies from the input", nick = "wavelet")]
    Wavelet = 3,
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
    #[enum_value(name = "Bypass: windows that would be late come out as the plain upscale", nick = "bypass")]
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

glib::wrapper! {
    /// The element `starsr`.
    pub struct Starsr(ObjectSubclass<imp::Starsr>)
        @extends gst_video::VideoFilter, gst_base::BaseTransform, gst::Element, gst::Object;
}

/// Registers the element and the types of its properties with `plugin`.
pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    for type_ in [
        ExecutionProvider::static_type(),
        WindowMode::static_type(),
        SamplerMode::static_type(),
        ColorFix::static_type(),
        PromptSuffix::static_type(),
        GuidanceBatching::static_type(),
        Posterior::static_type(),
        Overload::static_type(),
        OnError::static_type(),
    ] {
        type_.mark_as_plugin_api(gst::PluginAPIFlags::empty());
    }
    gst::Element::register(Some(plugin), "starsr", gst::Rank::NONE, Starsr::static_type())
}
