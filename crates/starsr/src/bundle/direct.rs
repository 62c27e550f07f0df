// SPDX-License-Identifier: MPL-2.0

//! Bundles that restore a window in one evaluation of one graph: what they have in place of the
//! tables of a sampler.

use serde::Deserialize;

use super::checks::{Fault, check_file, within};
use super::manifest::{DataFile, Latent, Manifest};
use super::process::{Prediction, SamplerSpec, ScheduleSpec, SolverKind};
use crate::color::ColorFix;
use crate::diffusion::family::Family;
use crate::diffusion::guidance_scale::GuidanceScale;
use crate::diffusion::schedule::{SamplerMode, ScheduleConfig};
use crate::geometry::Padding;
use crate::windows::WindowMode;

/// Two sets of weights of `graphs.upscaler`, between which is interpolated: those of its first data
/// file for fidelity, and others for detail.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetailSpec {
    /// Share of the weights for detail unless the user sets another, 0..=1.
    pub default: f32,
    /// The weights for detail: tensors of the same names, types and shapes.
    pub weights: DataFile,
}

/// Tables that all bundles with a sampler have, and only they.
const OF_SAMPLERS: [&str; 3] = ["latent", "schedule", "sampler"];

/// Further keys that bundles with `graphs.upscaler` do not have.
const UNUSED: [&str; 5] = ["vae", "kind", "condition", "positions", "prompts"];

/// Graphs that only bundles with a sampler have, and whether each of these has it.
const GRAPHS: [(&str, bool); 6] = [
    ("vae_encoder", true),
    ("vae_decoder", true),
    ("denoiser", true),
    ("controlnet", false),
    ("modulation", false),
    ("text_encoder", false),
];

/// Checks that the manifest has the tables and graphs of its way to restore.
pub(super) fn check_tables(table: &toml::Table, is_direct: bool) -> Result<(), Fault> {
    let graphs = table.get("graphs").and_then(toml::Value::as_table);
    let has_graph = |name: &str| graphs.is_some_and(|graphs| graphs.contains_key(name));
    let missing = |field: String| Err(Fault::new(field, "is missing"));
    let no_use = |field: String| {
        let reason = "has no use with graphs.upscaler, which restores without a sampler; remove it";
        Err(Fault::new(field, reason))
    };
    for name in OF_SAMPLERS {
        match table.contains_key(name) {
            true if is_direct => return no_use(name.into()),
            false if !is_direct => return missing(name.into()),
            _ => {}
        }
    }
    for (name, required) in GRAPHS {
        match has_graph(name) {
            true if is_direct => return no_use(format!("graphs.{name}")),
            false if required && !is_direct => return missing(format!("graphs.{name}")),
            _ => {}
        }
    }
    if let Some(name) = UNUSED.into_iter().find(|&name| is_direct && table.contains_key(name)) {
        return no_use(name.into());
    }
    if !is_direct && table.contains_key("detail") {
        return Err(Fault::new("detail", "has no use without graphs.upscaler; remove the table"));
    }
    Ok(())
}

impl Manifest {
    /// Whether `graphs.upscaler` restores the windows, without autoencoder and sampler.
    pub fn is_direct(&self) -> bool {
        self.graphs.upscaler.is_some()
    }

    /// Checks what `graphs.upscaler` asks for.
    pub(super) fn check_direct(&self) -> Result<(), Fault> {
        let Some(graph) = &self.graphs.upscaler else { return Ok(()) };
        within("scale.minimum", self.scale.minimum, self.scale.default, self.scale.default)?;
        within("scale.maximum", self.scale.maximum, self.scale.default, self.scale.default)?;
        if self.canvas.padding == Padding::Official {
            return Err(Fault::new("canvas.padding", "must be \"edge\" or \"white\""));
        }
        if self.window.mode != WindowMode::Blend {
            return Err(Fault::new("window.mode", "must be \"blend\" without a sampler"));
        }
        let Some(detail) = &self.detail else { return Ok(()) };
        within("detail.default", detail.default, 0.0, 1.0)?;
        check_file("detail.weights", &detail.weights.file, &detail.weights.sha256)?;
        if graph.data.is_empty() {
            let reason = "is missing; the first file holds the weights for fidelity";
            return Err(Fault::new("graphs.upscaler.data", reason));
        }
        Ok(())
    }
}

// What stands in the tables that a bundle with `graphs.upscaler` does not have.

impl Default for Latent {
    fn default() -> Self {
        Self { channels: 3, spatial_factor: 1, temporal_factor: 1, scaling_factor: 1.0 }
    }
}

impl Default for ScheduleSpec {
    fn default() -> Self {
        Self {
            family: Family::LogsnrCosineInterp(ScheduleConfig::default()),
            prediction: Prediction::V,
            noise_level: 1,
        }
    }
}

impl Default for SamplerSpec {
    fn default() -> Self {
        Self {
            solver: SolverKind::default(),
            mode: SamplerMode::Normal,
            steps: 1,
            guidance: GuidanceScale::Constant(1.0),
            guidance_rescale: 0.0,
            color_fix: ColorFix::None,
            strength: 1.0,
        }
    }
}
