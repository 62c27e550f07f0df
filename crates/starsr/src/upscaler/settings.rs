// SPDX-License-Identifier: MPL-2.0

//! What a user may set, completed with a bundle's defaults.

use super::decode_groups::DecodeGroups;
use crate::bundle::Manifest;
use crate::color::ColorFix;
use crate::diffusion::guidance::{Batching, Guidance};
use crate::diffusion::guidance_scale::GuidanceScale;
use crate::diffusion::sampler::Sampler;
use crate::diffusion::schedule::SamplerMode;
use crate::error::{Error, Result};
use crate::names::Setting;
use crate::parallel::Threads;
use crate::windows::{WindowMode, Windows};

/// Which latents of the encoder's posterior are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Posterior {
    /// Its mean.
    #[default]
    Mean,
    /// A sample, as in the official program.
    Sample,
}

/// What a user may set; `None` means the bundle's own default.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {
    /// Upscaling factor; where the bundle does not work at it, the nearest that it allows is used.
    pub scale: Option<u32>,
    /// Frames in a window, `L`.
    pub window_length: Option<usize>,
    /// Frames shared by neighbouring windows, `O < L`.
    pub window_overlap: Option<usize>,
    /// How windows are joined.
    pub window_mode: Option<WindowMode>,
    /// Model evaluations (`normal` mode).
    pub steps: Option<u32>,
    /// Spacing of the timesteps.
    pub sampler_mode: Option<SamplerMode>,
    /// Guidance scale `g`; 1 skips the negative half.
    pub guidance_scale: Option<f32>,
    /// Guidance rescale, 0..=1.
    pub guidance_rescale: Option<f32>,
    /// The part of the evaluations that is guided, as `(low, high)` within 0 to 1: evaluations `i`
    /// of `n` with `low <= i / n < high`. `None` is all of them.
    pub guidance_interval: Option<(f32, f32)>,
    /// How the two halves of a guided prediction are computed.
    pub guidance_batching: Batching,
    /// Noise levels used, 1..=1000; sampling starts at timestep `noise_level - 1`.
    pub noise_level: Option<u32>,
    /// Seed of the noise.
    pub seed: u64,
    /// Which latents of the encoder's posterior are used.
    pub posterior: Posterior,
    /// Frames on either side of a run of the decoder whose result is discarded; less than half of
    /// the bundle's `frames_per_decode`.
    pub decode_overlap: Option<usize>,
    /// Colour correction against the input.
    pub color_fix: Option<ColorFix>,
    /// Blend with the plain upscale: 0 is the plain upscale, 1 the model's picture.
    pub strength: Option<f32>,
    /// Largest side of a spatial tile in output pixels; 0 processes whole frames. `None` also lets
    /// [`Upscaler::fit_memory`](crate::Upscaler::fit_memory) choose less.
    pub tile_size: Option<usize>,
    /// Pixels shared by neighbouring tiles.
    pub tile_overlap: Option<usize>,
    /// CPU threads for work on pixels and latents; 0 is one for each core.
    pub threads: usize,
}

impl Settings {
    /// The factor that the model enlarges by: of those that the bundle allows, the nearest to the
    /// one set.
    pub fn model_scale(&self, manifest: &Manifest) -> usize {
        let scale = &manifest.scale;
        self.scale.unwrap_or(scale.default).clamp(scale.minimum, scale.maximum) as usize
    }

    pub(super) fn sampler(&self, manifest: &Manifest, threads: Threads) -> Result<Sampler> {
        let defaults = &manifest.sampler;
        let solver = manifest.schedule.family.solver(
            self.sampler_mode.unwrap_or(defaults.mode),
            self.steps.unwrap_or(defaults.steps),
            self.noise_level.unwrap_or(manifest.schedule.noise_level),
        )?;
        let timesteps: Vec<i64> = (0..solver.evaluations()).map(|i| solver.timestep(i)).collect();
        let scale = self.guidance_scale.map_or(defaults.guidance, GuidanceScale::Constant);
        let guidance = Guidance::scheduled(
            scale.at(&timesteps).into_iter().map(|scale| scale as f32).collect(),
            self.guidance_rescale.unwrap_or(defaults.guidance_rescale),
        )?
        .within(self.guidance_interval.unwrap_or((0.0, 1.0)))?
        .batched(self.guidance_batching);
        if self.guidance_scale.is_some_and(|g| g != 1.0) && manifest.prompts.is_none() {
            let reason =
                format!("the bundle {} has no text condition and works at 1 only", manifest.name);
            return Err(Error::setting(Setting::GuidanceScale, reason));
        }
        Ok(Sampler::of(solver, guidance).with_threads(threads))
    }

    /// Refuses what only bundles with a sampler have.
    pub(super) fn check_direct(&self, manifest: &Manifest) -> Result<()> {
        let set = [
            (Setting::Steps, self.steps.is_some_and(|steps| steps != 1)),
            (Setting::SamplerMode, self.sampler_mode == Some(SamplerMode::Fast)),
            (Setting::GuidanceScale, self.guidance_scale.is_some_and(|scale| scale != 1.0)),
            (Setting::NoiseLevel, self.noise_level.is_some()),
            (Setting::WindowMode, self.window_mode == Some(WindowMode::Wavefront)),
            (Setting::DecodeOverlap, self.decode_overlap.is_some_and(|frames| frames > 0)),
        ];
        let Some((setting, _)) = set.into_iter().find(|&(_, is_set)| is_set) else { return Ok(()) };
        let reason = format!(
            "the bundle {} restores each window in one evaluation, without a sampler; leave it \
             unset",
            manifest.name
        );
        Err(Error::setting(setting, reason))
    }

    /// The layout of the windows, within the bundle's limits.
    pub(super) fn windows(&self, manifest: &Manifest) -> Result<Windows> {
        let defaults = &manifest.window;
        let mode = self.window_mode.unwrap_or(defaults.mode);
        let length = self.window_length.unwrap_or(defaults.length);
        if !defaults.is_legal(length) {
            let reason = format!(
                "the bundle {} takes {} frames, not {length}",
                manifest.name,
                defaults.rule()
            );
            return Err(Error::setting(Setting::WindowLength, reason));
        }
        let factor = manifest.latent.temporal_factor;
        if factor > 1 && mode == WindowMode::Wavefront {
            let reason = format!(
                "wavefront merges latents of single frames, but those of the bundle {} hold \
                 {factor}; use blend",
                manifest.name
            );
            return Err(Error::setting(Setting::WindowMode, reason));
        }
        let overlap = self.window_overlap.unwrap_or(match mode {
            // What the official program does (docs/star.md, A.5).
            WindowMode::Wavefront => length / 2,
            WindowMode::Blend => defaults.overlap.min(length / 2 / factor * factor),
        });
        if !overlap.is_multiple_of(factor) {
            let reason =
                format!("the bundle {} takes multiples of {factor}, not {overlap}", manifest.name);
            return Err(Error::setting(Setting::WindowOverlap, reason));
        }
        Windows::new(mode, length, overlap)
    }

    /// The runs of the decoder: a window each where latents hold several frames.
    pub(super) fn decode_groups(&self, manifest: &Manifest) -> Result<DecodeGroups> {
        let overlap = self.decode_overlap.unwrap_or(manifest.vae.decode_overlap);
        if manifest.latent.temporal_factor == 1 {
            return DecodeGroups::new(manifest.vae.frames_per_decode, overlap);
        }
        if overlap == 0 {
            return Ok(DecodeGroups::whole_windows(self.windows(manifest)?.longest()));
        }
        let reason =
            format!("the bundle {} decodes windows in one piece; leave it unset", manifest.name);
        Err(Error::setting(Setting::DecodeOverlap, reason))
    }

    pub(super) fn strength(&self, manifest: &Manifest) -> Result<f32> {
        let strength = self.strength.unwrap_or(manifest.sampler.strength);
        if !(0.0..=1.0).contains(&strength) {
            let reason = format!("{strength} is outside 0 to 1");
            return Err(Error::setting(Setting::Strength, reason));
        }
        Ok(strength)
    }
}
