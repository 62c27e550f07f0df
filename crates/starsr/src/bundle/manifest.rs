// SPDX-License-Identifier: MPL-2.0

//! The manifest `bundle.toml`: its keys, their meaning and their limits. `models/README.md`
//! describes it for users.

use std::path::Path;

use serde::Deserialize;

use super::checks::{Fault, toml_error};
use super::direct::{DetailSpec, check_tables};
use super::process::{ConditionSpec, Kind, SamplerSpec, ScheduleSpec};
use super::video::{PositionsSpec, WindowSpec};
use crate::error::{Error, Result};
use crate::geometry::{Interpolation, LegalSizes, Padding, Size};
use crate::names::{Precision, Role};
use crate::text::{CONTEXT, T5_LENGTH};

/// The newest version of the bundle format that this crate reads. It reads all older ones, too.
pub const FORMAT: i64 = 2;

/// The whole of `bundle.toml`. [`Self::parse`] checks the ranges given at the fields.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the format, 1..=[`FORMAT`].
    pub format: i64,
    /// The networks that the model descends from.
    #[serde(default)]
    pub kind: Kind,
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
    /// Whether the conditions of a batch may share one `x`, `hint` and `t` with a batch size of 1:
    /// what does not depend on the prompt is then computed once.
    #[serde(default)]
    pub shared_prefix: bool,
    /// Upscaling factors.
    pub scale: Scale,
    /// Shape of the latents. This table and those of schedule, sampler and autoencoder belong to
    /// bundles without `graphs.upscaler`; others have defaults there, see [`Self::is_direct`].
    #[serde(default)]
    pub latent: Latent,
    /// Which frame sizes the graphs take and how frames are brought to them.
    pub canvas: CanvasSpec,
    /// How many frames the graphs take at once.
    pub window: WindowSpec,
    /// Noise schedule and start of the sampling.
    #[serde(default)]
    pub schedule: ScheduleSpec,
    /// Defaults of the sampler.
    #[serde(default)]
    pub sampler: SamplerSpec,
    /// How the low-quality latents reach the denoiser.
    #[serde(default)]
    pub condition: ConditionSpec,
    /// The tables of positions that the denoiser takes; only with [`ConditionKind::Concat`].
    ///
    /// [`ConditionKind::Concat`]: super::ConditionKind::Concat
    pub positions: Option<PositionsSpec>,
    /// Runs of the autoencoder. Optional with a temporal factor above 1, where they take a window
    /// each.
    #[serde(default)]
    pub vae: Vae,
    /// Defaults of the text condition; only with a text encoder or precomputed embeddings.
    pub prompts: Option<PromptsSpec>,
    /// The two sets of weights of `graphs.upscaler`, where it has them.
    pub detail: Option<DetailSpec>,
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
/// pixels, or for the first of a window's frames and each `temporal_factor` further ones.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Latent {
    /// Channels `C`, 1..=4096.
    pub channels: usize,
    /// Output pixels along each side of a latent, 1..=64.
    pub spatial_factor: usize,
    /// Frames to a latent but for the first, 1..=16.
    #[serde(default = "one")]
    pub temporal_factor: usize,
    /// Factor between the autoencoder's latents and the diffusion's. The graphs apply it; here it
    /// only informs.
    pub scaling_factor: f64,
}

/// Legal frame sizes in output pixels and the way to them. `multiple` and `offset` of both axes are
/// multiples of the latents' spatial factor; at most 4096, 4096 and, for `minimum`, 16384.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
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
    /// The size that the networks were trained for; tiles have it unless the user sets another, or
    /// there is a `tile`.
    pub trained: Option<Size>,
    /// Largest side of a tile in output pixels unless the user sets another, at most 65536; 0
    /// processes whole frames, or tiles of the `trained` size.
    #[serde(default)]
    pub tile: usize,
    /// Output pixels that neighbouring tiles share, less than a side of `tile` or `trained`.
    #[serde(default)]
    pub tile_overlap: usize,
    /// Bytes that the graphs need for each pixel of a tile and frame of a window, at most 2^32; 0
    /// where that is not known.
    #[serde(default)]
    pub tile_memory: u64,
    /// Floating-point operations `[a, b]` of one prediction, without autoencoder and text encoder:
    /// `a + b p` for each pixel and frame of a tile with `p` pixels a frame, at most 1e15 each; absent
    /// where they are not known.
    pub operations: Option<[f64; 2]>,
    /// Most pixels of a tile, times frames of a window and predictions of a batch, that the graphs
    /// can count; 0 where there is no limit.
    #[serde(default)]
    pub run_pixels: u64,
}

/// Frames in one run of the autoencoder, 1..=4096 each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vae {
    /// Frames in one run of `vae_encoder`; absent where it takes a window in one piece.
    #[serde(default = "window")]
    pub frames_per_encode: usize,
    /// The same of `vae_decoder`.
    #[serde(default = "window")]
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

impl Default for Vae {
    /// A window of any length in one run.
    fn default() -> Self {
        Self {
            frames_per_encode: window(),
            frames_per_decode: window(),
            decode_overlap: 0,
            encode_memory: 0,
            decode_memory: 0,
            run_pixels: 0,
        }
    }
}

/// Defaults of the text condition.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptsSpec {
    /// Prompt, unless the user gives one.
    pub default: String,
    /// Appended to every prompt.
    #[serde(default)]
    pub suffix: String,
    /// Negative prompt, unless the user gives one.
    #[serde(default)]
    pub negative: String,
    /// Embeddings of some prompts, see [`super::Bundle::embeddings`].
    pub embeddings: Option<DataFile>,
    /// The texts of `embeddings` in their order, where these come without tokens; empty for
    /// `default` alone.
    #[serde(default)]
    pub embedded: Vec<String>,
    /// SentencePiece's file of T5's tokens. Without it tokens are those of CLIP, or there are none.
    pub tokenizer: Option<DataFile>,
    /// Tokens of a text, 2..=4096; by default CLIP's 77 or T5's 226.
    pub length: Option<usize>,
    /// Bytes that the text encoder takes while it is loaded, its weights included, at most 2^48; 0
    /// where that is not known.
    #[serde(default)]
    pub memory: u64,
}

/// The ONNX graphs by role: `upscaler` alone, or autoencoder and denoiser.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphsSpec {
    /// Pixels to latents.
    pub vae_encoder: Option<GraphFile>,
    /// Latents to pixels.
    pub vae_decoder: Option<GraphFile>,
    /// Noisy and low-quality latents to controls; absent unless they are the denoiser's condition.
    pub controlnet: Option<GraphFile>,
    /// Timestep to the modulation of the denoiser's layers; only with [`ConditionKind::Concat`].
    ///
    /// [`ConditionKind::Concat`]: super::ConditionKind::Concat
    pub modulation: Option<GraphFile>,
    /// Noisy latents, and controls or low-quality latents, to the prediction.
    pub denoiser: Option<GraphFile>,
    /// Tokens to an embedding; absent where the model has no text condition.
    pub text_encoder: Option<GraphFile>,
    /// Frames to enlarged frames, in place of all other graphs.
    pub upscaler: Option<GraphFile>,
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
    /// The same graph in 16-bit floats, over the same data.
    pub fp16: Option<GraphForm>,
    /// The same graph in 8-bit integers, over the same data.
    pub int8: Option<GraphForm>,
}

/// A graph in another precision.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphForm {
    /// ONNX file, relative to the bundle's folder.
    pub file: String,
    /// SHA-256 of the file in hexadecimal.
    pub sha256: String,
    /// In place of [`CanvasSpec::tile_memory`] where it is known, at most 2^32; 0 otherwise.
    #[serde(default)]
    pub tile_memory: u64,
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

impl GraphFile {
    /// The graph's forms in other precisions.
    pub fn forms(&self) -> impl Iterator<Item = (Precision, &GraphForm)> {
        let forms = [(Precision::Fp16, &self.fp16), (Precision::Int8, &self.int8)];
        forms.into_iter().filter_map(|(precision, form)| Some((precision, form.as_ref()?)))
    }
}

impl GraphsSpec {
    /// The graph of a role, where the bundle has it.
    pub fn get(&self, role: Role) -> Option<&GraphFile> {
        match role {
            Role::VaeEncoder => self.vae_encoder.as_ref(),
            Role::VaeDecoder => self.vae_decoder.as_ref(),
            Role::ControlNet => self.controlnet.as_ref(),
            Role::Modulation => self.modulation.as_ref(),
            Role::Denoiser => self.denoiser.as_ref(),
            Role::TextEncoder => self.text_encoder.as_ref(),
            Role::Upscaler => self.upscaler.as_ref(),
        }
    }

    /// The form of a role's graph in a precision that is not its own, where the bundle has it.
    pub fn form(&self, role: Role, precision: Precision) -> Option<&GraphForm> {
        self.get(role)?.forms().find_map(|(own, form)| (own == precision).then_some(form))
    }

    /// Whether a graph has a form in this precision.
    pub fn have(&self, precision: Precision) -> bool {
        Role::ALL.iter().any(|&role| self.form(role, precision).is_some())
    }
}

impl Manifest {
    /// The manifest of graphs in the given precision, which differs in the memory that they need.
    pub(crate) fn in_precision(&self, precision: Precision) -> Self {
        let mut manifest = self.clone();
        let roles = [Role::Upscaler, Role::Denoiser];
        let forms = roles.into_iter().filter_map(|role| self.graphs.form(role, precision));
        if let Some(memory) = forms.map(|form| form.tile_memory).find(|&bytes| bytes > 0) {
            manifest.canvas.tile_memory = memory;
        }
        manifest
    }

    /// Reads the text of a manifest; errors name `file`.
    ///
    /// # Errors
    /// [`Error::Bundle`], which names the field.
    pub fn parse(text: &str, file: &Path) -> Result<Self> {
        // The version comes first: a newer format may well have keys that are unknown here.
        let table = text.parse::<toml::Table>().map_err(|e| toml_error(text, file, e))?;
        let reason = match table.get("format") {
            Some(toml::Value::Integer(1..=FORMAT)) => {
                let mut manifest: Self =
                    toml::from_str(text).map_err(|e| toml_error(text, file, e))?;
                if manifest.is_direct() {
                    manifest.latent.spatial_factor = manifest.scale.default as usize;
                }
                let tables = || check_tables(&table, manifest.is_direct());
                let keys = manifest.check_keys(&table).and_then(|()| tables());
                let checked = keys.and_then(|()| manifest.validate());
                checked.map_err(|Fault { field, reason }| Error::bundle(file, field, reason))?;
                return Ok(manifest);
            }
            Some(toml::Value::Integer(other)) => {
                let advice =
                    if *other > FORMAT { "update starsr" } else { "export the bundle again" };
                format!(
                    "format {other} is not understood, this starsr reads formats 1 to {FORMAT}; \
                     {advice}"
                )
            }
            Some(_) => format!("must be an integer, 1 to {FORMAT}"),
            None => {
                format!("is missing; a manifest begins with format = 1 or another, up to {FORMAT}")
            }
        };
        Err(Error::bundle(file, "format", reason))
    }

    /// Whether tokens are those of CLIP.
    pub(crate) fn has_clip_tokens(&self) -> bool {
        let tokenizer = self.prompts.as_ref().and_then(|prompts| prompts.tokenizer.as_ref());
        self.kind == Kind::I2vGen && tokenizer.is_none()
    }

    /// Number of tokens that stand for a text.
    pub fn text_length(&self) -> usize {
        let length = self.prompts.as_ref().and_then(|prompts| prompts.length);
        length.unwrap_or(match self.kind {
            Kind::I2vGen => CONTEXT,
            Kind::CogVideoX => T5_LENGTH,
        })
    }
}

fn one() -> usize {
    1
}

/// Frames of the longest window that any bundle allows.
fn window() -> usize {
    4096
}
