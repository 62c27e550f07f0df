// SPDX-License-Identifier: MPL-2.0

//! The manifest `bundle.toml`: its keys, their meaning and their limits. `models/README.md`
//! describes it for users.

use std::fmt;
use std::path::{Component, Path};

use serde::Deserialize;

use crate::color::ColorFix;
use crate::diffusion::schedule::{self, SamplerMode, ScheduleConfig};
use crate::error::{Error, Result};
use crate::geometry::{Interpolation, LegalSizes, Padding};
use crate::names::Role;
use crate::windows::WindowMode;

/// The version of the bundle format that this crate reads.
pub const FORMAT: i64 = 1;

/// The whole of `bundle.toml`. [`Self::parse`] checks the ranges given at the fields.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the format, [`FORMAT`].
    pub format: i64,
    /// Short name, for instance `nano`.
    pub name: String,
    /// Version of the bundle.
    pub version: String,
    /// Licence of the weights, an SPDX expression where there is one.
    pub licence: String,
    /// Where the weights come from.
    pub provenance: String,
    /// What the weights were trained on.
    pub training_data: String,
    /// Order of the axes inside the graphs.
    #[serde(default)]
    pub layout: Layout,
    /// Upscaling factors.
    pub scale: Scale,
    /// Shape of the latents.
    pub latent: Latent,
    /// Which frame sizes the graphs take and how frames are brought to them.
    pub canvas: CanvasSpec,
    /// How many frames the graphs take at once.
    pub window: WindowSpec,
    /// Noise schedule and start of the sampling.
    pub schedule: ScheduleSpec,
    /// Defaults of the sampler.
    pub sampler: SamplerSpec,
    /// Frames in one run of the autoencoder.
    pub vae: Vae,
    /// Defaults of the text condition; only with a text encoder or precomputed embeddings.
    pub prompts: Option<PromptsSpec>,
    /// The ONNX graphs.
    pub graphs: GraphsSpec,
}

/// Order of the axes inside the graphs; their inputs and outputs are the same in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// Standard operators, which all providers have.
    #[default]
    ChannelsFirst,
    /// Fused operators, which ONNX Runtime has for NVIDIA GPUs alone.
    ChannelsLast,
}

/// Upscaling factors, `1 <= minimum <= default <= maximum <= 16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// Used unless the user asks for another.
    pub default: u32,
    /// Lowest factor the model works at.
    pub minimum: u32,
    /// Highest factor the model works at.
    pub maximum: u32,
}

/// Shape of the latents: `C x H/spatial_factor x W/spatial_factor` for each frame of `H x W`
/// pixels.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Latent {
    /// Channels `C`, 1..=4096.
    pub channels: usize,
    /// Output pixels along each side of a latent, 1..=64.
    pub spatial_factor: usize,
    /// Factor between the autoencoder's latents and the diffusion's. The graphs apply it; here it
    /// only informs.
    pub scaling_factor: f64,
}

/// Legal frame sizes in output pixels and the way to them. `multiple` and `offset` of both axes are
/// multiples of the latents' spatial factor; at most 4096, 4096 and, for `minimum`, 16384.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CanvasSpec {
    /// How frames are upscaled before they are encoded.
    pub upscale: Interpolation,
    /// What fills the canvas around the frame.
    pub padding: Padding,
    /// Legal heights.
    pub height: LegalSizes,
    /// Legal widths.
    pub width: LegalSizes,
    /// Largest side of a tile in output pixels unless the user sets another, at most 65536; 0
    /// processes whole frames.
    #[serde(default)]
    pub tile: usize,
    /// Output pixels that neighbouring tiles share, less than `tile` unless that is 0.
    #[serde(default)]
    pub tile_overlap: usize,
    /// Bytes that the graphs need for each pixel of a tile and frame of a window, at most 2^32; 0
    /// where that is not known.
    #[serde(default)]
    pub tile_memory: u64,
    /// Most pixels of a tile, times frames of a window and predictions of a batch, that the graphs
    /// can count; 0 where there is no limit.
    #[serde(default)]
    pub run_pixels: u64,
}

/// Frames in a window: `1 <= minimum <= length <= maximum <= 4096`, `overlap < length`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowSpec {
    /// Default length `L`.
    pub length: usize,
    /// Default overlap `O`.
    pub overlap: usize,
    /// Lowest length that may be set.
    pub minimum: usize,
    /// Highest length that may be set.
    pub maximum: usize,
    /// Default way of joining windows.
    pub mode: WindowMode,
}

/// Noise schedule (docs/star.md, A.4) and the point of it at which sampling starts.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(from = "FlatSchedule")]
pub struct ScheduleSpec {
    /// The family of schedules.
    pub kind: ScheduleKind,
    /// The schedule's parameters.
    pub config: ScheduleConfig,
    /// What the denoiser predicts.
    pub prediction: Prediction,
    /// Noise levels used, 1..=timesteps; sampling starts at timestep `noise_level - 1`.
    pub noise_level: u32,
}

/// Families of noise schedules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleKind {
    /// Cosine in log-SNR, interpolated between two shifts (docs/star.md, A.4).
    LogsnrCosineInterp,
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
    logsnr_min: f64,
    logsnr_max: f64,
    scale_min: f64,
    scale_max: f64,
    zero_terminal_snr: bool,
    prediction: Prediction,
    noise_level: u32,
}

impl From<FlatSchedule> for ScheduleSpec {
    fn from(flat: FlatSchedule) -> Self {
        let config = ScheduleConfig {
            timesteps: flat.timesteps,
            logsnr_min: flat.logsnr_min,
            logsnr_max: flat.logsnr_max,
            scale_min: flat.scale_min,
            scale_max: flat.scale_max,
            zero_terminal_snr: flat.zero_terminal_snr,
        };
        Self { kind: flat.kind, config, prediction: flat.prediction, noise_level: flat.noise_level }
    }
}

/// Defaults of the sampler.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplerSpec {
    /// Spacing of the timesteps.
    pub mode: SamplerMode,
    /// Model evaluations in `normal` mode, 1..=1000.
    pub steps: u32,
    /// Guidance scale, 1..=100; exactly 1 without a text encoder or precomputed embeddings.
    pub guidance_scale: f32,
    /// Guidance rescale, 0..=1.
    pub guidance_rescale: f32,
    /// Colour correction against the input.
    pub color_fix: ColorFix,
    /// Blend with the plain upscale, 0..=1; 1 is the model's picture.
    pub strength: f32,
}

/// Frames in one run of the autoencoder, 1..=4096 each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vae {
    /// Frames in one run of `vae_encoder`.
    pub frames_per_encode: usize,
    /// Frames in one run of `vae_decoder`.
    pub frames_per_decode: usize,
    /// Frames on either side of such a run whose result is discarded, as the neighbouring runs
    /// decode them too; `2 * decode_overlap < frames_per_decode`.
    #[serde(default)]
    pub decode_overlap: usize,
    /// Bytes that `vae_encoder` needs for each pixel of a tile and frame of a run, at most 2^32; 0
    /// where that is not known.
    #[serde(default)]
    pub encode_memory: u64,
    /// The same of `vae_decoder`.
    #[serde(default)]
    pub decode_memory: u64,
    /// Most pixels of a tile, times frames of a run, that both graphs can count; 0 where there is
    /// no limit.
    #[serde(default)]
    pub run_pixels: u64,
}

/// Defaults of the text condition.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptsSpec {
    /// Prompt, unless the user gives one.
    pub default: String,
    /// Appended to every prompt.
    pub suffix: String,
    /// Negative prompt, unless the user gives one.
    pub negative: String,
    /// Embeddings of some prompts, see [`super::Bundle::embeddings`].
    pub embeddings: Option<DataFile>,
}

/// The ONNX graphs by role.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphsSpec {
    /// Pixels to latents.
    pub vae_encoder: GraphFile,
    /// Latents to pixels.
    pub vae_decoder: GraphFile,
    /// Noisy and low-quality latents to controls.
    pub controlnet: GraphFile,
    /// Noisy latents and controls to the prediction.
    pub denoiser: GraphFile,
    /// Tokens to an embedding; absent where the model has no text condition.
    pub text_encoder: Option<GraphFile>,
}

/// One graph: an ONNX file and the files that hold its weights.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphFile {
    /// ONNX file, relative to the bundle's folder.
    pub file: String,
    /// SHA-256 of the file in hexadecimal.
    pub sha256: String,
    /// External data files that the ONNX file refers to.
    #[serde(default)]
    pub data: Vec<DataFile>,
}

/// A further file of the bundle.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataFile {
    /// File name, relative to the bundle's folder.
    pub file: String,
    /// SHA-256 of the file in hexadecimal.
    pub sha256: String,
}

impl GraphsSpec {
    /// The graph of a role; only [`Role::TextEncoder`] may be absent.
    pub fn get(&self, role: Role) -> Option<&GraphFile> {
        match role {
            Role::VaeEncoder => Some(&self.vae_encoder),
            Role::VaeDecoder => Some(&self.vae_decoder),
            Role::ControlNet => Some(&self.controlnet),
            Role::Denoiser => Some(&self.denoiser),
            Role::TextEncoder => self.text_encoder.as_ref(),
        }
    }
}

impl Manifest {
    /// Reads the text of a manifest; errors name `file`.
    ///
    /// # Errors
    /// [`Error::Bundle`], which names the field.
    pub fn parse(text: &str, file: &Path) -> Result<Self> {
        // The version comes first: a newer format may well have keys that are unknown here.
        let table = text.parse::<toml::Table>().map_err(|e| toml_error(text, file, e))?;
        let reason = match table.get("format") {
            Some(toml::Value::Integer(FORMAT)) => {
                let manifest: Self = toml::from_str(text).map_err(|e| toml_error(text, file, e))?;
                let checked = manifest.validate();
                checked.map_err(|Fault { field, reason }| Error::bundle(file, field, reason))?;
                return Ok(manifest);
            }
            Some(toml::Value::Integer(other)) => {
                let advice =
                    if *other > FORMAT { "update starsr" } else { "export the bundle again" };
                format!(
                    "format {other} is not understood, this starsr reads format {FORMAT}; {advice}"
                )
            }
            Some(_) => format!("must be the integer {FORMAT}"),
            None => format!("is missing; a manifest begins with format = {FORMAT}"),
        };
        Err(Error::bundle(file, "format", reason))
    }

    fn validate(&self) -> Result<(), Fault> {
        for (field, text) in
            [("name", &self.name), ("version", &self.version), ("licence", &self.licence)]
        {
            if text.trim().is_empty() {
                return Err(Fault::new(field, "must not be empty"));
            }
        }

        let Scale { default, minimum, maximum } = self.scale;
        within("scale.minimum", minimum, 1, 16)?;
        within("scale.maximum", maximum, minimum, 16)?;
        within("scale.default", default, minimum, maximum)?;

        within("latent.channels", self.latent.channels, 1, 4096)?;
        within("latent.spatial_factor", self.latent.spatial_factor, 1, 64)?;
        above_zero("latent.scaling_factor", self.latent.scaling_factor)?;
        check_axis("canvas.height", self.canvas.height, self.latent.spatial_factor)?;
        check_axis("canvas.width", self.canvas.width, self.latent.spatial_factor)?;
        within("canvas.tile", self.canvas.tile, 0, 65536)?;
        within("canvas.tile_overlap", self.canvas.tile_overlap, 0, self.canvas.tile.max(1) - 1)?;
        within("canvas.tile_memory", self.canvas.tile_memory, 0, 1 << 32)?;

        let WindowSpec { length, overlap, minimum, maximum, .. } = self.window;
        within("window.minimum", minimum, 1, 4096)?;
        within("window.maximum", maximum, minimum, 4096)?;
        within("window.length", length, minimum, maximum)?;
        within("window.overlap", overlap, 0, length - 1)?;

        let config = &self.schedule.config;
        within("schedule.timesteps", config.timesteps, 2, 100_000)?;
        within("schedule.noise_level", self.schedule.noise_level as usize, 1, config.timesteps)?;
        within("schedule.logsnr_min", config.logsnr_min, -60.0, 60.0)?;
        within("schedule.logsnr_max", config.logsnr_max, config.logsnr_min, 60.0)?;
        above_zero("schedule.scale_min", config.scale_min)?;
        above_zero("schedule.scale_max", config.scale_max)?;
        schedule::Schedule::new(config).map_err(|e| match e {
            Error::Input { reason, .. } => Fault::new("schedule", reason),
            other => Fault::new("schedule", other.to_string()),
        })?;

        within("sampler.steps", self.sampler.steps, 1, 1000)?;
        within("sampler.guidance_scale", self.sampler.guidance_scale, 1.0, 100.0)?;
        within("sampler.guidance_rescale", self.sampler.guidance_rescale, 0.0, 1.0)?;
        within("sampler.strength", self.sampler.strength, 0.0, 1.0)?;
        within("vae.encode_memory", self.vae.encode_memory, 0, 1 << 32)?;
        within("vae.decode_memory", self.vae.decode_memory, 0, 1 << 32)?;
        within("vae.frames_per_encode", self.vae.frames_per_encode, 1, 4096)?;
        within("vae.frames_per_decode", self.vae.frames_per_decode, 1, 4096)?;

        let most = (self.vae.frames_per_decode - 1) / 2;
        within("vae.decode_overlap", self.vae.decode_overlap, 0, most)?;

        let embeddings = self.prompts.as_ref().and_then(|prompts| prompts.embeddings.as_ref());
        if self.graphs.text_encoder.is_none() && embeddings.is_none() {
            if self.prompts.is_some() {
                let reason = "has no use without graphs.text_encoder or prompts.embeddings; remove the table or add one of them";
                return Err(Fault::new("prompts", reason));
            }
            if self.sampler.guidance_scale != 1.0 {
                let reason = "must be 1 without graphs.text_encoder or prompts.embeddings, since there is nothing to guide by";
                return Err(Fault::new("sampler.guidance_scale", reason));
            }
        }
        if let Some(data) = embeddings {
            check_file("prompts.embeddings", &data.file, &data.sha256)?;
        }
        for role in Role::ALL {
            let Some(graph) = self.graphs.get(role) else { continue };
            check_file(&format!("graphs.{role}"), &graph.file, &graph.sha256)?;
            for (i, data) in graph.data.iter().enumerate() {
                check_file(&format!("graphs.{role}.data[{i}]"), &data.file, &data.sha256)?;
            }
        }
        Ok(())
    }
}

/// What is wrong with a field of the manifest.
struct Fault {
    field: String,
    reason: String,
}

impl Fault {
    fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into() }
    }
}

fn check_axis(field: &str, axis: LegalSizes, factor: usize) -> Result<(), Fault> {
    within(&format!("{field}.multiple"), axis.multiple, 1, 4096)?;
    within(&format!("{field}.offset"), axis.offset, 0, axis.multiple - 1)?;
    within(&format!("{field}.minimum"), axis.minimum, 0, 16384)?;
    for (key, value) in [("multiple", axis.multiple), ("offset", axis.offset)] {
        if value % factor != 0 {
            let reason =
                format!("is {value}, but must be a multiple of latent.spatial_factor, {factor}");
            return Err(Fault::new(format!("{field}.{key}"), reason));
        }
    }
    Ok(())
}

fn within<T: PartialOrd + fmt::Display>(
    field: &str,
    value: T,
    low: T,
    high: T,
) -> Result<(), Fault> {
    // Written so that NaN fails.
    if value >= low && value <= high {
        Ok(())
    } else {
        Err(Fault::new(field, format!("is {value}, but must be between {low} and {high}")))
    }
}

fn above_zero(field: &str, value: f64) -> Result<(), Fault> {
    if value.is_finite() && value > 0.0 {
        Ok(())
    } else {
        Err(Fault::new(field, format!("is {value}, but must be a number above 0")))
    }
}

/// A file name must be a plain relative path which stays in the folder; a hash 64 hexadecimal
/// digits.
fn check_file(field: &str, file: &str, sha256: &str) -> Result<(), Fault> {
    let mut components = Path::new(file).components().peekable();
    let plain =
        components.peek().is_some() && components.all(|c| matches!(c, Component::Normal(_)));
    if !plain || file.contains(['\\', '\0']) || file.ends_with('/') {
        let reason = format!(
            "{file:?} must be a plain path inside the bundle's folder, without `..` or a leading `/`"
        );
        return Err(Fault::new(format!("{field}.file"), reason));
    }
    if sha256.len() != 64 || !sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
        let reason = format!("must be the 64 hexadecimal digits that `sha256sum {file}` prints");
        return Err(Fault::new(format!("{field}.sha256"), reason));
    }
    Ok(())
}

/// Turns a TOML error into one sentence which names the line and, where there is one, the key.
fn toml_error(text: &str, file: &Path, e: toml::de::Error) -> Error {
    let message = e.message().trim().replace('\n', "; ");
    let Some(before) = e.span().and_then(|span| text.get(..span.start)) else {
        return Error::bundle(file, "manifest", message).caused_by(e);
    };
    let number = before.matches('\n').count();
    let mut table = "";
    for line in text.lines().take(number + 1) {
        if let Some(rest) = line.trim().strip_prefix('[') {
            table = rest.trim_start_matches('[').split(']').next().unwrap_or("").trim();
        }
    }
    let line = text.lines().nth(number).unwrap_or("").trim();
    let key = line.split_once('=').map_or("", |(key, _)| key.trim());
    let dot = if table.is_empty() || key.is_empty() { "" } else { "." };
    let gap = if table.is_empty() && key.is_empty() { "" } else { " " };
    let field = format!("{table}{dot}{key}{gap}(line {})", number + 1);
    Error::bundle(file, field, message).caused_by(e)
}
