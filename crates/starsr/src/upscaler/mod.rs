// SPDX-License-Identifier: MPL-2.0

//! Frames in, upscaled frames out later: windows, autoencoder, sampler, colour fix and cross-fade
//! put together.

mod blend;
mod cadence;
mod clip;
mod context;
mod decode_groups;
mod fit;
mod frame_path;
mod memory;
mod read_ahead;
mod settings;
mod wavefront;

use std::time::{Duration, Instant};

use ndarray::Array3;

use crate::bundle::{Manifest, Unconditional};
use crate::cancel::Cancel;
use crate::diffusion::noise::FrameNoise;
use crate::error::{Error, Result};
use crate::geometry::Size;
use crate::model::{Conditioning, Embedded, Embedding, Memory, Model, no_std};
use crate::names::{Role, Setting};
use crate::parallel::Threads;
use crate::text::Prompts;
use crate::windows::Windows;

pub use crate::color::ColorFix;
pub use crate::diffusion::guidance::Batching;
pub use crate::diffusion::noise::Noise;
pub use crate::diffusion::schedule::SamplerMode;
pub use crate::machine::memory_of_this_machine;
pub use crate::windows::WindowMode;
use blend::BlendWindows;
pub use clip::StageTimes;
use clip::{Clip, WindowJoin, lap};
pub use context::Context;
use frame_path::FramePath;
pub use read_ahead::{Notify, ReadAhead, Report, Run};
pub use settings::{Posterior, Settings};
use wavefront::WavefrontWindows;

/// Numbers of tokens that did not fit, see [`Upscaler::set_prompts`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TruncatedTokens {
    /// Of the prompt with its suffix.
    pub prompt: usize,
    /// Of the negative prompt.
    pub negative: usize,
}

/// What [`Upscaler::receive_frame`] gives.
#[derive(Debug)]
pub enum Received {
    /// The next upscaled frame in order, `[3,H,W]` RGB in `[0,1]`.
    Frame(Array3<f32>),
    /// Nothing yet: send more frames, or flush.
    NeedMoreFrames,
    /// Everything sent before the flush has been received; a new clip may begin.
    Drained,
}

/// Restores clips of frames of one size: N frames in, N larger frames out, some frames later.
pub struct Upscaler {
    clip: Clip,
    join: Box<dyn WindowJoin>,
    layout: Windows,
    manifest: Manifest,
    latency: usize,
    /// Whether the size of the tiles is left to the bundle and to memory.
    auto_tiles: bool,
    /// See [`Self::reduced_tile_size`].
    reduced: Option<usize>,
}

impl Upscaler {
    /// Prepares for clips of frames of `size`. `cancel` stops a running [`Self::receive_frame`] and
    /// what the model runs in it, with [`Error::Cancelled`].
    ///
    /// # Errors
    /// [`Error::Setting`] where a setting contradicts the bundle, and [`Error::Input`] where the
    /// frames are empty or too large.
    pub fn new(
        mut model: Box<dyn Model>,
        manifest: &Manifest,
        settings: &Settings,
        size: Size,
        cancel: Cancel,
    ) -> Result<Self> {
        let threads = Threads::new(settings.threads);
        let sampler = if manifest.is_direct() {
            settings.check_direct(manifest)?;
            None
        } else {
            Some(settings.sampler(manifest, threads.clone())?)
        };
        let layout = settings.windows(manifest)?;
        let groups = settings.decode_groups(manifest)?;
        if settings.posterior == Posterior::Sample && !model.has_std() {
            return Err(no_std());
        }
        // The bundle's tiles are those of a machine's main memory; a device's is known later.
        let known = manifest.canvas.tile_memory > 0;
        let tile = match model.memory() {
            Memory::Device(Some(_)) if known => 0,
            _ => manifest.canvas.tile,
        };
        let path = FramePath::new(manifest, settings, size, tile, threads)?;
        model.cancel_with(&cancel)?;
        let join: Box<dyn WindowJoin> = match (layout.mode(), sampler) {
            (WindowMode::Wavefront, Some(sampler)) => {
                Box::new(WavefrontWindows::new(sampler, layout)?)
            }
            (_, sampler) => Box::new(BlendWindows::new(sampler, layout)),
        };
        let noise = Box::new(FrameNoise::new(settings.seed));
        Ok(Self {
            latency: join.latency(&groups),
            clip: Clip::new(model, path, groups, noise, cancel),
            join,
            layout,
            manifest: manifest.clone(),
            auto_tiles: settings.tile_size.is_none(),
            reduced: None,
        })
    }

    /// Takes its noise from `noise` in place of the seed's.
    pub fn with_noise(mut self, noise: Box<dyn Noise>) -> Self {
        self.clip.noise = noise;
        self
    }

    /// Restores under `conditioning` from the next window on; windows at work keep theirs. A bundle
    /// with text condition needs a conditioning before its first window. Where the bundle is guided
    /// away from zeros, these are the negative half.
    ///
    /// # Errors
    /// [`Error::Setting`] where the bundle has no text condition, and where the negative half is
    /// missing though guidance needs it.
    pub fn set_conditioning(&mut self, mut conditioning: Conditioning) -> Result<()> {
        if self.manifest.prompts.is_none() && conditioning != Conditioning::default() {
            let reason = format!("the bundle {} has no text condition", self.manifest.name);
            return Err(Error::setting(Setting::Prompt, reason));
        }
        if self.manifest.kind.unconditional() == Unconditional::Zeros {
            conditioning.negative = conditioning.positive.as_ref().map(Embedding::zeros_like);
        }
        let half = conditioning.positive.is_some() && conditioning.negative.is_none();
        if half && self.is_guided() {
            let reason = "guidance needs its embedding; give one, or guide by a scale of 1";
            return Err(Error::setting(Setting::NegativePrompt, reason));
        }
        self.clip.conditioning = conditioning;
        Ok(())
    }

    /// [`Self::set_conditioning`] with the embeddings of `prompts`; the negative one only where
    /// guidance needs it. Gives the numbers of tokens that did not fit.
    ///
    /// # Errors
    /// As [`Model::embed`], and [`Error::Setting`] where a text is given but the bundle has no text
    /// condition.
    pub fn set_prompts(&mut self, prompts: &Prompts) -> Result<TruncatedTokens> {
        let Some(defaults) = &self.manifest.prompts else {
            return prompts.refuse(&self.manifest.name).map(|()| TruncatedTokens::default());
        };
        let prompt = prompts.prompt.as_ref().unwrap_or(&defaults.default);
        let prompt = prompts.suffix.compose(prompt, &defaults.suffix);
        let negative = prompts.negative.as_ref().unwrap_or(&defaults.negative);
        let zeros = self.manifest.kind.unconditional() == Unconditional::Zeros;
        if zeros && prompts.negative.is_some() {
            let reason = format!(
                "the bundle {} guides away from no prompt at all; leave it unset",
                self.manifest.name
            );
            return Err(Error::setting(Setting::NegativePrompt, reason));
        }
        let texts = [&prompt, negative];
        let count = if self.is_guided() && !zeros { 2 } else { 1 };
        let mut embedded = self.clip.model.embed(&texts.map(String::as_str)[..count])?.into_iter();
        let (positive, negative) = (embedded.next(), embedded.next());
        let cut = |text: &Option<Embedded>| text.as_ref().map_or(0, |text| text.truncated);
        let truncated = TruncatedTokens { prompt: cut(&positive), negative: cut(&negative) };
        let [positive, negative] = [positive, negative].map(|text| text.map(|t| t.embedding));
        self.set_conditioning(Conditioning { positive, negative })?;
        Ok(truncated)
    }

    /// The size of tiles that the model was trained for, where settings or short memory have led
    /// to another one.
    pub fn trained_otherwise(&self) -> Option<Size> {
        self.clip.path.trained_otherwise()
    }

    /// Size of the tiles that the model sees, in pixels of the output.
    pub fn tile_size(&self) -> Size {
        self.clip.path.tile_size()
    }

    /// Size of the frames that come in.
    pub fn input_size(&self) -> Size {
        self.clip.path.input_size()
    }

    /// Size of the frames given out.
    pub fn output_size(&self) -> Size {
        self.clip.path.output_size()
    }

    /// Factor by which width and height of frames grow.
    pub fn scale(&self) -> usize {
        self.clip.path.scale()
    }

    /// The most frames that must follow a frame before it can come out.
    pub fn latency(&self) -> usize {
        self.latency
    }

    /// Frames that later windows than the present one need, where the model is not to wait for them.
    fn frames_to_read_ahead(&self) -> usize {
        (1 + self.windows_ahead()) * (self.layout.length() - self.layout.overlap())
    }

    /// Windows that the model restores before the present one is finished.
    fn windows_ahead(&self) -> usize {
        usize::from(self.join.sampler().is_none() && self.clip.computes_elsewhere())
    }

    /// How windows are joined.
    pub fn window_mode(&self) -> WindowMode {
        self.layout.mode()
    }

    /// Counts and times so far.
    pub fn stats(&self) -> StageTimes {
        self.clip.times
    }

    /// Whether memory was too short for both halves of a guided prediction together, so that they
    /// are computed separately.
    pub fn is_guidance_separated(&self) -> bool {
        self.join.sampler().is_some_and(|sampler| sampler.guidance().is_separated())
    }

    /// Runs of the model's denoiser so far, see [`Model::evaluations`].
    pub fn evaluations(&self) -> u64 {
        self.clip.model.evaluations()
    }

    /// Runs of the model's denoiser that restore a window: one for each tile and prediction.
    pub fn window_evaluations(&self) -> u64 {
        let model = self.clip.model.as_ref();
        let predictions = self.join.sampler().map_or(1, |sampler| sampler.predictions(model));
        (predictions * self.clip.path.tiles()) as u64
    }

    /// Time spent in the model's own runtime so far, see [`Model::busy`].
    pub fn model_busy(&self) -> Duration {
        self.clip.model.busy()
    }

    /// Takes the next frame, `[3,h,w]` RGB in `[0,1]`. `number` is its absolute number, which selects
    /// its noise. The number of a clip's first frame also decides where windows start: they lie on
    /// a grid of absolute frame numbers. Cheap: [`Self::receive_frame`] does the work.
    ///
    /// # Errors
    /// [`Error::Input`] where the frame has another size than the clip, or after [`Self::flush`]
    /// until all frames have been received.
    pub fn send_frame(&mut self, number: u64, pixels: Array3<f32>) -> Result<()> {
        check_frame(number, &pixels, self.input_size(), self.clip.ended)?;
        self.clip.push(number, pixels);
        self.join.push(number);
        Ok(())
    }

    /// Gives the next finished frame, running the model when a window is complete. Blocks for as
    /// long as that takes. Where memory is too short the window is restored in smaller tiles, see
    /// [`Self::reduced_tile_size`].
    ///
    /// # Errors
    /// As the model, [`Error::Memory`] where memory is too short for the smallest tiles, and
    /// [`Error::Cancelled`]. Call [`Self::bypass`] then, or the clip is lost and [`Self::reset`]
    /// begins another.
    pub fn receive_frame(&mut self) -> Result<Received> {
        loop {
            if let Some(frame) = self.clip.ready.pop_front() {
                self.clip.times.frames_out += 1;
                return Ok(Received::Frame(frame));
            }
            if self.advance()? {
                continue;
            }
            if !self.clip.ended {
                return Ok(Received::NeedMoreFrames);
            }
            self.reset();
            return Ok(Received::Drained);
        }
    }

    /// Does the next piece of work; false where all that is left needs further frames. Where memory
    /// is too short for it, in shorter runs of the encoder, then in smaller tiles: a window begins
    /// anew then, while a wavefront goes on with the latents it has.
    fn advance(&mut self) -> Result<bool> {
        loop {
            let result = self.join.advance(&mut self.clip);
            let Err(Error::Memory { graph, reason }) = result else { return result };
            if graph == Role::VaeEncoder && self.clip.path.shorten_encoding() {
                continue;
            }
            let tile = self.clip.path.tile_size();
            let Some(size) = self.clip.path.reduce_tiles() else {
                let frames = self.layout.length();
                let reason = format!(
                    "{reason}; this was for windows of {frames} frames in tiles of {tile} pixels, and \
                     the bundle takes no smaller tiles"
                );
                return Err(Error::Memory { graph, reason });
            };
            self.reduced = Some(size);
        }
    }

    /// Whether [`Self::receive_frame`] has a frame without running the model.
    fn has_frame(&self) -> bool {
        !self.clip.ready.is_empty()
    }

    /// Stops at a flag of its own from now on, which is also set while the present one is.
    fn branch_cancel(&mut self) -> Result<Cancel> {
        let branch = self.clip.cancel.branch();
        self.clip.model.cancel_with(&branch)?;
        self.clip.cancel = branch.clone();
        Ok(branch)
    }

    /// Takes back a frame that [`Self::receive_frame`] gave, so that a later one gets its memory.
    pub fn reuse_frame(&self, frame: Array3<f32>) {
        if frame.dim() == (3, self.output_size().height, self.output_size().width) {
            self.clip.path.reuse(frame);
        }
    }

    /// Finishes the next window without the model: its frames are the plain upscale, cross-faded
    /// with its neighbours like any other. With `Wavefront` all frames inside come out so, and what
    /// follows is a new clip. Gives the number of frames that leave so. Also possible after
    /// [`Self::receive_frame`] has failed.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub fn bypass(&mut self) -> Result<usize> {
        let clock = Instant::now();
        let bypassed = self.join.bypass(&mut self.clip)?;
        lap(&mut self.clip.times.finish, clock);
        self.clip.times.bypassed += bypassed as u64;
        Ok(bypassed)
    }

    /// Ends the clip: what was sent comes out without waiting for further frames.
    pub fn flush(&mut self) {
        if !self.clip.ended {
            self.clip.ended = true;
            self.join.flush();
        }
    }

    /// Forgets all frames.
    pub fn reset(&mut self) {
        self.clip.reset();
        self.join.reset();
    }

    /// Gives the model back, so that the next clip need not load it again.
    pub fn into_model(self) -> Box<dyn Model> {
        self.clip.model
    }

    /// Frames of the window that [`Self::receive_frame`] would restore next; `None` where it would
    /// restore no window, and with `Wavefront`, whose windows are restored together.
    pub fn next_window(&self) -> Option<usize> {
        self.join.next_window().filter(|_| self.clip.ready.is_empty())
    }

    /// Side in pixels of the tiles that short memory has led to; `None` while those of the settings
    /// fit.
    pub fn reduced_tile_size(&self) -> Option<usize> {
        self.reduced
    }

    fn is_guided(&self) -> bool {
        self.join.sampler().is_some_and(|sampler| sampler.guidance().is_used())
    }
}

/// Fails with [`Error::Input`] where a clip of frames of `size` does not take `pixels` as its next
/// frame.
fn check_frame(number: u64, pixels: &Array3<f32>, size: Size, ended: bool) -> Result<()> {
    let refuse = |reason: String| Err(Error::input(format!("frame {number}"), reason));
    let Size { width, height } = size;
    if pixels.dim() != (3, height, width) {
        let shape = pixels.shape();
        return refuse(format!("its shape {shape:?} is not [3, {height}, {width}]"));
    }
    if ended {
        return refuse("the clip has been ended; receive its frames first".into());
    }
    Ok(())
}
