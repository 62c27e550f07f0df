// SPDX-License-Identifier: MPL-2.0

//! Frames in, upscaled frames out later: windows, autoencoder, sampler, colour fix and cross-fade put together.

mod groups;
mod memory;
mod picture;
mod settings;
mod work;

use std::collections::VecDeque;
use std::time::Duration;

use ndarray::Array3;

use crate::bundle::Manifest;
use crate::cancel::Cancel;
use crate::diffusion::noise::{FrameNoise, Noise};
use crate::diffusion::sampler::Sampler;
use crate::diffusion::wavefront::Wavefront;
use crate::error::{Error, Result};
use crate::model::{Conditioning, Model, no_deviation};
use crate::text::{Prompts, tokenize};
use crate::windows::{Planner, Window, WindowMode, Windows};

use groups::Groups;
pub use memory::memory_of_this_machine;
use picture::Picture;
pub use settings::{Posterior, Settings};

/// Tokens that did not fit, see [`Upscaler::set_prompts`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cut {
    /// Of the prompt with its suffix.
    pub prompt: usize,
    /// Of the negative prompt.
    pub negative: usize,
}

/// What [`Upscaler::receive_frame`] has to offer.
#[derive(Debug)]
pub enum Received {
    /// The next upscaled frame in order, `[3,H,W]` RGB in [0,1].
    Frame(Array3<f32>),
    /// Send more frames, or flush.
    NeedMoreFrames,
    /// Everything sent before the flush has been received; a new clip may begin.
    Drained,
}

/// Counts and times since the upscaler was made. Times are wall-clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stats {
    /// Frames taken.
    pub frames_in: u64,
    /// Frames given out.
    pub frames_out: u64,
    /// Windows sampled on their own (`Blend`).
    pub windows: u64,
    /// Frames that left with a window the model did not restore, see [`Upscaler::bypass`].
    pub bypassed: u64,
    /// Upscaling and padding.
    pub prepare: Duration,
    /// Encoding.
    pub encode: Duration,
    /// Sampling: noise, solver, ControlNet and denoiser.
    pub sample: Duration,
    /// Decoding.
    pub decode: Duration,
    /// Cropping, colour fix and cross-fade.
    pub finish: Duration,
}

/// A frame that was taken and has not come out.
struct Pending {
    number: u64,
    low: Array3<f32>,
}

/// How far the windows of a clip are.
enum Progress {
    Blend {
        planner: Planner,
        /// Complete windows that wait to be sampled.
        closed: VecDeque<Window>,
        /// Number of the next window.
        next: usize,
        /// Frames of the last window that the next one covers too.
        tail: VecDeque<Array3<f32>>,
        /// Whether the last window was not restored by the model.
        plain_tail: bool,
    },
    Wavefront {
        wavefront: Box<Wavefront>,
        /// Restored latents: those that later groups need as context, then those that wait to be decoded.
        restored: VecDeque<Array3<f32>>,
        /// Frames that have been encoded, counted from the first pending one.
        encoded: usize,
        /// Decoded frames whose latents are kept as context.
        context: usize,
    },
}

/// N frames in, N frames out later.
pub struct Upscaler {
    model: Box<dyn Model>,
    picture: Picture,
    sampler: Sampler,
    groups: Groups,
    noise: Box<dyn Noise>,
    manifest: Manifest,
    conditioning: Conditioning,
    cancel: Cancel,
    windows: Windows,
    latency: usize,
    progress: Progress,
    /// Whether the size of the tiles is left to the bundle and to memory.
    auto_tiles: bool,
    /// See [`Self::reduced_tile_size`].
    reduced: Option<usize>,
    /// Frames not given out yet, the first being frame `first` of the clip.
    pending: VecDeque<Pending>,
    first: usize,
    flushing: bool,
    ready: VecDeque<Array3<f32>>,
    stats: Stats,
}

impl Upscaler {
    /// Prepares for a clip of frames of `width` x `height` pixels. Fails when a setting contradicts the bundle.
    /// `cancel` stops a running [`Self::receive_frame`] with [`Error::Cancelled`].
    pub fn new(
        model: Box<dyn Model>,
        manifest: &Manifest,
        settings: &Settings,
        width: usize,
        height: usize,
        cancel: Cancel,
    ) -> Result<Self> {
        let sampler = settings.sampler(manifest)?;
        let windows = settings.windows(manifest)?;
        let overlap = settings.decode_overlap.unwrap_or(manifest.vae.decode_overlap);
        let groups = Groups::new(manifest.vae.frames_per_decode, overlap)?;
        if settings.posterior == Posterior::Sample && !model.has_deviation() {
            return Err(no_deviation());
        }
        let picture = Picture::new(manifest, settings, (width, height))?;
        let (latency, progress) = match windows.mode() {
            WindowMode::Blend => (
                windows.latency(sampler.evaluations()),
                Progress::Blend {
                    planner: windows.planner(),
                    closed: VecDeque::new(),
                    next: 0,
                    tail: VecDeque::new(),
                    plain_tail: false,
                },
            ),
            WindowMode::Wavefront => {
                let wavefront = Wavefront::new(sampler.clone(), windows.length(), windows.overlap())?.into();
                let latency = windows.latency(sampler.evaluations()) + groups.latency();
                let restored = VecDeque::new();
                (latency, Progress::Wavefront { wavefront, restored, encoded: 0, context: 0 })
            }
        };
        Ok(Self {
            model,
            picture,
            sampler,
            groups,
            noise: Box::new(FrameNoise::new(settings.seed)),
            manifest: manifest.clone(),
            conditioning: Conditioning::default(),
            cancel,
            windows,
            latency,
            progress,
            auto_tiles: settings.tile_size.is_none(),
            reduced: None,
            pending: VecDeque::new(),
            first: 0,
            flushing: false,
            ready: VecDeque::new(),
            stats: Stats::default(),
        })
    }

    /// Takes its noise from `noise` in place of the seed's.
    pub fn with_noise(self, noise: Box<dyn Noise>) -> Self {
        Self { noise, ..self }
    }

    /// Restores under `conditioning` from the next window on; windows that are at work keep theirs. A bundle with text condition
    /// needs one before its first window. Fails with [`Error::Setting`] where the bundle has none, and where the negative half
    /// is missing though guidance needs it.
    pub fn set_conditioning(&mut self, conditioning: Conditioning) -> Result<()> {
        if self.manifest.prompts.is_none() && conditioning != Conditioning::default() {
            let reason = format!("the bundle {} has no text condition", self.manifest.name);
            return Err(Error::Setting { setting: "prompt", reason });
        }
        if conditioning.positive.is_some()
            && conditioning.negative.is_none()
            && self.sampler.guidance().is_used()
        {
            let reason = "guidance needs its embedding; give one, or set guidance-scale to 1".into();
            return Err(Error::Setting { setting: "negative-prompt", reason });
        }
        self.conditioning = conditioning;
        Ok(())
    }

    /// [`Self::set_conditioning`] with the embeddings of `prompts`; the negative one only where guidance needs it. Gives the
    /// numbers of tokens that did not fit. Fails as the text encoder does, and with [`Error::Setting`] where the bundle has no
    /// text condition but a text is given.
    pub fn set_prompts(&mut self, prompts: &Prompts) -> Result<Cut> {
        let Some(defaults) = &self.manifest.prompts else {
            return prompts.refuse(&self.manifest.name).map(|()| Cut::default());
        };
        let prompt = prompts.prompt.as_ref().unwrap_or(&defaults.default);
        let positive = tokenize(&prompts.suffix.compose(prompt, &defaults.suffix));
        let negative = tokenize(prompts.negative.as_ref().unwrap_or(&defaults.negative));
        let mut cut = Cut { prompt: positive.cut, negative: 0 };
        let mut conditioning =
            Conditioning { positive: Some(self.model.embed(&positive.ids)?), negative: None };
        if self.sampler.guidance().is_used() {
            cut.negative = negative.cut;
            conditioning.negative = Some(self.model.embed(&negative.ids)?);
        }
        self.set_conditioning(conditioning)?;
        Ok(cut)
    }

    /// Size `(width, height)` of the frames given out.
    pub fn output_size(&self) -> (usize, usize) {
        self.picture.size()
    }

    /// Factor by which width and height of frames grow.
    pub fn scale(&self) -> usize {
        self.picture.scale()
    }

    /// Frames that must follow a frame before it can come out, at most.
    pub fn latency(&self) -> usize {
        self.latency
    }

    /// How its windows are joined.
    pub fn window_mode(&self) -> WindowMode {
        self.windows.mode()
    }

    /// Counts and times so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Whether memory was too short for both halves of a guided prediction together, so that they are asked for separately.
    pub fn is_guidance_separated(&self) -> bool {
        self.sampler.guidance().is_separated()
    }

    /// Runs of the model's denoiser so far, see [`Model::evaluations`].
    pub fn evaluations(&self) -> u64 {
        self.model.evaluations()
    }

    /// Time spent in the model's own runtime so far, see [`Model::busy`].
    pub fn model_busy(&self) -> Duration {
        self.model.busy()
    }

    /// Takes the next frame, `[3,h,w]` RGB in [0,1]. `number` is its absolute number, which selects its noise
    /// and, that of a clip's first frame, where windows start (see [`Windows::anchored`]).
    /// Cheap: the work is done by [`Self::receive_frame`]. Fails with [`Error::Input`] where the frame has another size
    /// than the clip, or after [`Self::flush`] until all frames have been received.
    pub fn send_frame(&mut self, number: u64, pixels: Array3<f32>) -> Result<()> {
        let refuse = |reason| Err(Error::Input { what: format!("frame {number}"), reason });
        let (channels, height, width) = pixels.dim();
        if channels != 3 || self.picture.input_size() != (width, height) {
            let (w, h) = self.picture.input_size();
            return refuse(format!("its shape {:?} is not [3, {h}, {w}]", pixels.shape()));
        }
        if self.flushing {
            return refuse("the clip has been ended; receive its frames first".into());
        }
        self.pending.push_back(Pending { number, low: pixels });
        self.stats.frames_in += 1;
        if let Progress::Blend { planner, closed, .. } = &mut self.progress {
            closed.extend(planner.push(number));
        }
        Ok(())
    }

    /// Gives the next finished frame, running the model when a window is complete. Blocks for as long as that takes.
    /// Where memory is too short the window is restored in smaller tiles, see [`Self::reduced_tile_size`]. After an error call
    /// [`Self::bypass`], or the clip is lost and [`Self::reset`] begins another.
    pub fn receive_frame(&mut self) -> Result<Received> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                self.stats.frames_out += 1;
                return Ok(Received::Frame(frame));
            }
            if self.advance()? {
                continue;
            }
            if !self.flushing {
                return Ok(Received::NeedMoreFrames);
            }
            self.reset();
            return Ok(Received::Drained);
        }
    }

    /// Ends the clip: what was sent comes out without waiting for further frames.
    pub fn flush(&mut self) {
        if self.flushing {
            return;
        }
        self.flushing = true;
        if let Progress::Blend { planner, closed, .. } = &mut self.progress {
            closed.extend(planner.finish());
        }
    }

    /// Forgets all frames.
    pub fn reset(&mut self) {
        self.pending.clear();
        self.ready.clear();
        self.first = 0;
        self.flushing = false;
        match &mut self.progress {
            Progress::Blend { planner, closed, next, tail, .. } => {
                *planner = self.windows.planner();
                closed.clear();
                *next = 0;
                tail.clear();
            }
            Progress::Wavefront { .. } => self.restart_wavefront(),
        }
    }

    /// Gives the model back, so that the next clip need not load it again.
    pub fn into_model(self) -> Box<dyn Model> {
        self.model
    }

    /// Frames of the window that [`Self::receive_frame`] would restore next; `None` where it would restore none, and with
    /// `Wavefront`, whose windows are restored together.
    pub fn next_window(&self) -> Option<usize> {
        match &self.progress {
            Progress::Blend { closed, .. } if self.ready.is_empty() => closed.front().map(Window::len),
            _ => None,
        }
    }

    /// Side in pixels of the tiles that short memory has led to; `None` while that of the settings will do.
    pub fn reduced_tile_size(&self) -> Option<usize> {
        self.reduced
    }
}
