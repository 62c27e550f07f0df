// SPDX-License-Identifier: MPL-2.0

//! Which manifests are valid: the ranges of their values, and which keys go together.

use super::checks::{Fault, above_zero, check_axis, check_file, within};
use super::manifest::{Manifest, Scale};
use super::process::{ConditionKind, Kind, SolverKind};
use crate::diffusion::family::Family;
use crate::diffusion::guidance_scale::GuidanceScale;
use crate::diffusion::schedule::SamplerMode;
use crate::error::Error;
use crate::geometry::Size;
use crate::names::Role;
use crate::text::CONTEXT;

/// The keys, with their table, that format 1 does not have.
const SINCE_FORMAT_2: [(&str, &str); 19] = [
    ("", "kind"),
    ("", "detail"),
    ("graphs", "upscaler"),
    ("", "condition"),
    ("", "positions"),
    ("latent", "temporal_factor"),
    ("canvas", "trained"),
    ("window", "multiple"),
    ("window", "offset"),
    ("graphs", "modulation"),
    ("schedule", "beta_start"),
    ("schedule", "beta_end"),
    ("schedule", "shift_scale"),
    ("sampler", "solver"),
    ("sampler", "guidance"),
    ("prompts", "embedded"),
    ("prompts", "tokenizer"),
    ("prompts", "length"),
    ("prompts", "memory"),
];

/// What is wrong with such a key.
const NEWER: &str = "is unknown to format 1; the manifest must begin with format = 2";

impl Manifest {
    /// Checks that a manifest of format 1 has no newer keys, and that no key is left out that only
    /// some manifests may lack.
    pub(super) fn check_keys(&self, table: &toml::Table) -> Result<(), Fault> {
        let has = |(place, key): (&str, &str)| {
            let within = table.get(place).and_then(|inner| inner.as_table());
            within.or(place.is_empty().then_some(table)).is_some_and(|t| t.contains_key(key))
        };
        let newer = SINCE_FORMAT_2.into_iter().find(|&key| self.format == 1 && has(key));
        if let Some((place, key)) = newer {
            let dot = if place.is_empty() { "" } else { "." };
            return Err(Fault::new(format!("{place}{dot}{key}"), NEWER));
        }
        let prompts = self.format == 1 && self.prompts.is_some();
        let vae = !self.is_direct() && self.latent.temporal_factor == 1;
        for (needed, place, key) in [
            (prompts, "prompts", "suffix"),
            (prompts, "prompts", "negative"),
            (vae, "vae", "frames_per_encode"),
            (vae, "vae", "frames_per_decode"),
        ] {
            if needed && !has((place, key)) {
                return Err(Fault::new(format!("{place}.{key}"), "is missing"));
            }
        }
        Ok(())
    }

    /// Checks all values and which of them go together.
    pub(super) fn validate(&self) -> Result<(), Fault> {
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
        within("latent.temporal_factor", self.latent.temporal_factor, 1, 16)?;
        above_zero("latent.scaling_factor", self.latent.scaling_factor)?;
        check_axis("canvas.height", self.canvas.height, self.latent.spatial_factor)?;
        check_axis("canvas.width", self.canvas.width, self.latent.spatial_factor)?;
        within("canvas.tile", self.canvas.tile, 0, 65536)?;
        let trained = self.canvas.trained.map_or(0, |size| size.height.min(size.width));
        let side = if self.canvas.tile > 0 { self.canvas.tile } else { trained.max(1) };
        within("canvas.tile_overlap", self.canvas.tile_overlap, 0, side - 1)?;
        if let Some(Size { width, height }) = self.canvas.trained {
            let axes =
                [("height", height, self.canvas.height), ("width", width, self.canvas.width)];
            for (axis, value, legal) in axes {
                if legal.fit(value).ok() != Some(value) {
                    let reason = format!("is {value}, which canvas.{axis} does not allow");
                    return Err(Fault::new(format!("canvas.trained.{axis}"), reason));
                }
            }
        }
        within("canvas.tile_memory", self.canvas.tile_memory, 0, 1 << 32)?;
        for count in self.canvas.operations.into_iter().flatten() {
            within("canvas.operations", count, 0.0, 1e15)?;
        }

        self.window.check(self.latent.temporal_factor)?;
        self.check_direct()?;
        self.check_schedule()?;
        within("sampler.steps", self.sampler.steps, 1, 1000)?;
        let guidance = if self.format == 1 { "sampler.guidance_scale" } else { "sampler.guidance" };
        if let GuidanceScale::Constant(scale) = self.sampler.guidance {
            within(guidance, scale, 1.0, 100.0)?;
        }
        within("sampler.guidance_rescale", self.sampler.guidance_rescale, 0.0, 1.0)?;
        within("sampler.strength", self.sampler.strength, 0.0, 1.0)?;
        within("vae.encode_memory", self.vae.encode_memory, 0, 1 << 32)?;
        within("vae.decode_memory", self.vae.decode_memory, 0, 1 << 32)?;
        within("vae.frames_per_encode", self.vae.frames_per_encode, 1, 4096)?;
        within("vae.frames_per_decode", self.vae.frames_per_decode, 1, 4096)?;
        let fewest = self.vae.frames_per_encode.min(self.vae.frames_per_decode);
        if self.latent.temporal_factor > 1 && fewest < self.window.maximum {
            let reason = "must take windows in one piece with latent.temporal_factor above 1; remove \
                          frames_per_encode and frames_per_decode";
            return Err(Fault::new("vae", reason));
        }

        let most = (self.vae.frames_per_decode - 1) / 2;
        within("vae.decode_overlap", self.vae.decode_overlap, 0, most)?;

        self.check_prompts()?;
        let embeddings = self.prompts.as_ref().and_then(|prompts| prompts.embeddings.as_ref());
        if self.graphs.text_encoder.is_none() && embeddings.is_none() {
            if self.prompts.is_some() {
                let reason = "has no use without graphs.text_encoder or prompts.embeddings; remove the table or add one of them";
                return Err(Fault::new("prompts", reason));
            }
            if !self.sampler.guidance.is_off() {
                let reason = "must be 1 without graphs.text_encoder or prompts.embeddings, since there is nothing to guide by";
                return Err(Fault::new(guidance, reason));
            }
        }
        if let Some(positions) = &self.positions {
            positions.check()?;
        }
        let concat = self.condition.kind == ConditionKind::Concat;
        let other = [
            ("positions", self.positions.is_some()),
            ("graphs.modulation", self.graphs.modulation.is_some()),
        ];
        for (field, present) in other {
            if concat && !present {
                let reason = "is missing; condition.kind = \"concat\" needs it";
                return Err(Fault::new(field, reason));
            }
            if !concat && present {
                let reason = "has no use without condition.kind = \"concat\"; remove it";
                return Err(Fault::new(field, reason));
            }
        }
        if concat {
            self.check_tokens()?;
        }
        if self.shared_prefix && (concat || self.is_direct() || self.prompts.is_none()) {
            let reason = "has no use without a ControlNet and a text condition; remove it";
            return Err(Fault::new("shared_prefix", reason));
        }
        match (self.condition.kind, &self.graphs.controlnet) {
            _ if self.is_direct() => {}
            (ConditionKind::ControlNet, None) => {
                let reason = "is missing; it brings the low-quality latents to the denoiser";
                return Err(Fault::new("graphs.controlnet", reason));
            }
            (ConditionKind::Concat, Some(_)) => {
                let reason = "has no use with condition.kind = \"concat\"; remove it";
                return Err(Fault::new("graphs.controlnet", reason));
            }
            _ => {}
        }
        for role in Role::ALL {
            let Some(graph) = self.graphs.get(role) else { continue };
            check_file(&format!("graphs.{role}"), &graph.file, &graph.sha256)?;
            for (i, data) in graph.data.iter().enumerate() {
                check_file(&format!("graphs.{role}.data[{i}]"), &data.file, &data.sha256)?;
            }
            for (precision, form) in graph.forms() {
                let field = format!("graphs.{role}.{precision}");
                if self.format == 1 {
                    return Err(Fault::new(field, NEWER));
                }
                check_file(&field, &form.file, &form.sha256)?;
                within(&format!("{field}.tile_memory"), form.tile_memory, 0, 1 << 32)?;
            }
        }
        Ok(())
    }

    /// Checks that canvases have whole tokens, of 2 x 2 latents each.
    fn check_tokens(&self) -> Result<(), Fault> {
        let side = 2 * self.latent.spatial_factor;
        for (axis, legal) in [("height", self.canvas.height), ("width", self.canvas.width)] {
            if legal.multiple % side != 0 || legal.offset % side != 0 {
                let reason = format!(
                    "must have multiple and offset that are multiples of {side}, as height and \
                     width of latents must be even with condition.kind = \"concat\""
                );
                return Err(Fault::new(format!("canvas.{axis}"), reason));
            }
        }
        Ok(())
    }

    /// Checks the text condition's files and what needs what.
    fn check_prompts(&self) -> Result<(), Fault> {
        let Some(prompts) = &self.prompts else { return Ok(()) };
        let length = self.text_length();
        within("prompts.length", length, 2, 4096)?;
        within("prompts.memory", prompts.memory, 0, 1 << 48)?;
        if self.has_clip_tokens() && length != CONTEXT {
            let reason = format!("is {length}, but CLIP's tokens are {CONTEXT}; remove it");
            return Err(Fault::new("prompts.length", reason));
        }
        if let Some(data) = &prompts.embeddings {
            check_file("prompts.embeddings", &data.file, &data.sha256)?;
        } else if !prompts.embedded.is_empty() {
            return Err(Fault::new("prompts.embedded", "has no use without prompts.embeddings"));
        }
        match &prompts.tokenizer {
            Some(data) => check_file("prompts.tokenizer", &data.file, &data.sha256),
            None if self.kind == Kind::CogVideoX && self.graphs.text_encoder.is_some() => {
                let reason = "is missing; graphs.text_encoder takes the tokens that it makes";
                Err(Fault::new("prompts.tokenizer", reason))
            }
            None => Ok(()),
        }
    }

    /// Checks the schedule, and that solver and steps fit it.
    fn check_schedule(&self) -> Result<(), Fault> {
        within("schedule.timesteps", self.schedule.family.timesteps(), 2, 100_000)?;
        let solver = match &self.schedule.family {
            Family::LogsnrCosineInterp(config) => {
                let noise_level = self.schedule.noise_level as usize;
                within("schedule.noise_level", noise_level, 1, config.timesteps)?;
                within("schedule.logsnr_min", config.logsnr_min, -60.0, 60.0)?;
                within("schedule.logsnr_max", config.logsnr_max, config.logsnr_min, 60.0)?;
                above_zero("schedule.scale_min", config.scale_min)?;
                above_zero("schedule.scale_max", config.scale_max)?;
                SolverKind::Dpmpp2mSde
            }
            Family::ScaledLinear(config) => {
                above_zero("schedule.beta_start", config.beta_start)?;
                within("schedule.beta_end", config.beta_end, config.beta_start, 1.0)?;
                within("schedule.shift_scale", config.shift_scale, 0.01, 100.0)?;
                let steps = self.sampler.steps as usize;
                within("sampler.steps", steps, 1, config.timesteps.min(1000))?;
                SolverKind::VpSdeDpmpp2m
            }
        };
        if self.sampler.solver != solver {
            let reason = "does not belong to schedule.kind: \"dpmpp-2m-sde\" goes with \
                          \"logsnr-cosine-interp\" and \"vp-sde-dpmpp-2m\" with \
                          \"scaled-linear\"";
            return Err(Fault::new("sampler.solver", reason));
        }
        if solver == SolverKind::VpSdeDpmpp2m && self.sampler.mode != SamplerMode::Normal {
            let reason = "must be \"normal\" with solver \"vp-sde-dpmpp-2m\"";
            return Err(Fault::new("sampler.mode", reason));
        }
        self.schedule.family.check().map_err(|e| match e {
            Error::Input { reason, .. } => Fault::new("schedule", reason),
            other => Fault::new("schedule", other.to_string()),
        })
    }
}
