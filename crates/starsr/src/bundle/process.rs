// SPDX-License-Identifier: MPL-2.0

//! The tables of a manifest that say how a model samples and what it is conditioned by.

use serde::Deserialize;

use crate::color::ColorFix;
use crate::diffusion::family::Family;
use crate::diffusion::guidance_scale::GuidanceScale;
use crate::diffusion::scaled_linear::ScaledLinearConfig;
use crate::diffusion::schedule::{SamplerMode, ScheduleConfig};

/// The networks that a model descends from. They decide its tokens and what stands for no prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum Kind {
    /// I2VGen-XL (docs/star.md, A.6): CLIP's tokens, and guidance away from a negative prompt.
    #[default]
    #[serde(rename = "i2vgen")]
    I2vGen,
    /// CogVideoX (docs/star.md, B): T5's tokens, and guidance away from zeros.
    #[serde(rename = "cogvideox")]
    CogVideoX,
}

/// What a guided prediction is moved away from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unconditional {
    /// The embedding of the negative prompt.
    NegativePrompt,
    /// Zeros ([`crate::model::Embedding::zeros_like`]).
    Zeros,
}

impl Kind {
    /// What a guided prediction is moved away from.
    pub fn unconditional(self) -> Unconditional {
        match self {
            Self::I2vGen => Unconditional::NegativePrompt,
            Self::CogVideoX => Unconditional::Zeros,
        }
    }
}

/// How the low-quality latents reach the denoiser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConditionSpec {
    /// The way.
    pub kind: ConditionKind,
}

/// Ways of the low-quality latents to the denoiser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConditionKind {
    /// Through a ControlNet, as its hint.
    #[default]
    ControlNet,
    /// As further channels of the denoiser's input, after those of the noisy latents.
    Concat,
}

/// Noise schedule and the point of it at which sampling starts.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "FlatSchedule")]
pub struct ScheduleSpec {
    /// The schedule, with its parameters.
    pub family: Family,
    /// What the denoiser predicts.
    pub prediction: Prediction,
    /// Noise levels used, 1..=timesteps; sampling starts at timestep `noise_level - 1`. All of them
    /// for [`Family::ScaledLinear`].
    pub noise_level: u32,
}

/// Families of noise schedules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ScheduleKind {
    LogsnrCosineInterp,
    ScaledLinear,
}

/// What the denoiser predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Prediction {
    /// Velocity `v = alpha * noise - sigma * x0`.
    V,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FlatSchedule {
    kind: ScheduleKind,
    timesteps: usize,
    logsnr_min: Option<f64>,
    logsnr_max: Option<f64>,
    scale_min: Option<f64>,
    scale_max: Option<f64>,
    beta_start: Option<f64>,
    beta_end: Option<f64>,
    shift_scale: Option<f64>,
    zero_terminal_snr: bool,
    prediction: Prediction,
    noise_level: Option<u32>,
}

impl TryFrom<FlatSchedule> for ScheduleSpec {
    type Error = String;

    fn try_from(flat: FlatSchedule) -> Result<Self, String> {
        let FlatSchedule { timesteps, zero_terminal_snr, prediction, .. } = flat;
        let (family, noise_level) = match flat.kind {
            ScheduleKind::LogsnrCosineInterp => {
                let kind = "logsnr-cosine-interp";
                unused("beta_start", flat.beta_start, kind)?;
                unused("beta_end", flat.beta_end, kind)?;
                unused("shift_scale", flat.shift_scale, kind)?;
                let config = ScheduleConfig {
                    timesteps,
                    logsnr_min: needed("logsnr_min", flat.logsnr_min)?,
                    logsnr_max: needed("logsnr_max", flat.logsnr_max)?,
                    scale_min: needed("scale_min", flat.scale_min)?,
                    scale_max: needed("scale_max", flat.scale_max)?,
                    zero_terminal_snr,
                };
                let noise_level = needed("noise_level", flat.noise_level)?;
                (Family::LogsnrCosineInterp(config), noise_level)
            }
            ScheduleKind::ScaledLinear => {
                let kind = "scaled-linear";
                unused("logsnr_min", flat.logsnr_min, kind)?;
                unused("logsnr_max", flat.logsnr_max, kind)?;
                unused("scale_min", flat.scale_min, kind)?;
                unused("scale_max", flat.scale_max, kind)?;
                unused("noise_level", flat.noise_level, kind)?;
                let config = ScaledLinearConfig {
                    timesteps,
                    beta_start: needed("beta_start", flat.beta_start)?,
                    beta_end: needed("beta_end", flat.beta_end)?,
                    shift_scale: needed("shift_scale", flat.shift_scale)?,
                    zero_terminal_snr,
                };
                // What is out of range here is refused with the other ranges.
                let all = u32::try_from(timesteps).unwrap_or(u32::MAX);
                (Family::ScaledLinear(config), all)
            }
        };
        Ok(Self { family, prediction, noise_level })
    }
}

/// Defaults of the sampler.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(try_from = "FlatSampler")]
pub struct SamplerSpec {
    /// The solver.
    pub solver: SolverKind,
    /// Spacing of the timesteps.
    pub mode: SamplerMode,
    /// Model evaluations in `normal` mode, 1..=1000.
    pub steps: u32,
    /// Guidance scale, 1..=100; exactly 1 without a text encoder or precomputed embeddings.
    pub guidance: GuidanceScale,
    /// Guidance rescale, 0..=1.
    pub guidance_rescale: f32,
    /// Colour correction against the input.
    pub color_fix: ColorFix,
    /// Blend with the plain upscale, 0..=1; 1 is the model's picture.
    pub strength: f32,
}

/// Solvers of the diffusion equation, each with the schedule that it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum SolverKind {
    /// DPM-Solver++(2M) SDE over noise-to-signal ratios (docs/star.md, A.5).
    #[default]
    #[serde(rename = "dpmpp-2m-sde")]
    Dpmpp2mSde,
    /// The same over signal amplitudes, from pure noise (docs/star.md, B.2).
    #[serde(rename = "vp-sde-dpmpp-2m")]
    VpSdeDpmpp2m,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FlatSampler {
    #[serde(default)]
    solver: SolverKind,
    mode: Option<SamplerMode>,
    steps: u32,
    guidance: Option<GuidanceScale>,
    guidance_scale: Option<f32>,
    guidance_rescale: Option<f32>,
    color_fix: Option<ColorFix>,
    strength: Option<f32>,
}

impl TryFrom<FlatSampler> for SamplerSpec {
    type Error = String;

    fn try_from(flat: FlatSampler) -> Result<Self, String> {
        let guidance = match (flat.guidance, flat.guidance_scale) {
            (Some(_), Some(_)) => {
                return Err("has both `guidance` and `guidance_scale`; remove one".into());
            }
            (guidance, scale) => guidance.or(scale.map(GuidanceScale::Constant)),
        };
        let FlatSampler { solver, steps, .. } = flat;
        match solver {
            SolverKind::Dpmpp2mSde => Ok(Self {
                solver,
                steps,
                mode: needed("mode", flat.mode)?,
                guidance: needed("guidance_scale", guidance)?,
                guidance_rescale: needed("guidance_rescale", flat.guidance_rescale)?,
                color_fix: needed("color_fix", flat.color_fix)?,
                strength: needed("strength", flat.strength)?,
            }),
            SolverKind::VpSdeDpmpp2m => Ok(Self {
                solver,
                steps,
                mode: flat.mode.unwrap_or(SamplerMode::Normal),
                guidance: needed("guidance", guidance)?,
                guidance_rescale: flat.guidance_rescale.unwrap_or(0.0),
                color_fix: flat.color_fix.unwrap_or(ColorFix::Adain),
                strength: flat.strength.unwrap_or(1.0),
            }),
        }
    }
}

fn needed<T>(key: &str, value: Option<T>) -> Result<T, String> {
    value.ok_or_else(|| format!("missing field `{key}`"))
}

fn unused<T>(key: &str, value: Option<T>, kind: &str) -> Result<(), String> {
    match value {
        Some(_) => Err(format!("unknown field `{key}`, which kind {kind} does not have")),
        None => Ok(()),
    }
}
