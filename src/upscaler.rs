// SPDX-License-Identifier: MPL-2.0

//! Frames in, upscaled frames out later: windows, autoencoder, sampler, colour fix and cross-fade put together.

mod picture;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use ndarray::{Array3, Array4, Axis};

use crate::bundle::Manifest;
use crate::cancel::Cancel;
use crate::color::ColorFix;
use crate::diffusion::guidance::Guidance;
use crate::diffusion::noise::FrameNoise;
use crate::diffusion::sampler::Sampler;
use crate::diffusion::schedule::{SamplerMode, Schedule};
use crate::diffusion::wavefront::Wavefront;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::window::{Planner, Window, WindowMode, Windows, cross_fade};

use picture::Picture;

/// What a user may set; `None` means the bundle's own default.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {
    /// Upscaling factor asked for; where the bundle does not work at it the nearest it allows is used.
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
    /// Noise levels used, 1..=1000; sampling starts at timestep `noise_level - 1`.
    pub noise_level: Option<u32>,
    /// Seed of the noise.
    pub seed: u64,
    /// Colour correction against the input.
    pub color_fix: Option<ColorFix>,
    /// Blend with the plain upscale: 0 is the plain upscale, 1 the model's picture.
    pub strength: Option<f32>,
    /// Largest side of a spatial tile in output pixels; 0 processes whole frames.
    pub tile_size: Option<usize>,
    /// Pixels shared by neighbouring tiles.
    pub tile_overlap: Option<usize>,
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
    /// Windows sampled on their own (`Blend`), over all tiles.
    pub windows: u64,
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
        windows: Windows,
        planner: Planner,
        /// Complete windows that wait to be sampled.
        closed: VecDeque<Window>,
        /// Number of the next window.
        next: usize,
        /// Frames of the last window that the next one covers too.
        tail: VecDeque<Array3<f32>>,
    },
    Wavefront {
        tiles: Vec<TileWavefront>,
        /// Frames that have been encoded, counted from the first pending one.
        encoded: usize,
    },
}

/// One tile's frames on their way through the sampler.
struct TileWavefront {
    wavefront: Wavefront,
    /// Restored latents that wait to be decoded.
    restored: VecDeque<Array3<f32>>,
}

/// N frames in, N frames out later.
pub struct Upscaler {
    model: Box<dyn Model>,
    picture: Picture,
    sampler: Sampler,
    noise: FrameNoise,
    cancel: Cancel,
    latency: usize,
    progress: Progress,
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
        let defaults = &manifest.sampler;
        let guidance = Guidance::new(
            settings.guidance_scale.unwrap_or(defaults.guidance_scale),
            settings.guidance_rescale.unwrap_or(defaults.guidance_rescale),
        )?;
        if settings.guidance_scale.is_some_and(|g| g != 1.0) && manifest.graphs.text_encoder.is_none() {
            return Err(Error::Setting {
                setting: "guidance-scale",
                reason: format!("the bundle {} has no text encoder and works at 1 only", manifest.name),
            });
        }
        let schedule = Schedule::new(&manifest.schedule.config)?;
        let plan = schedule.plan(
            settings.sampler_mode.unwrap_or(defaults.mode),
            settings.steps.unwrap_or(defaults.steps),
            settings.noise_level.unwrap_or(manifest.schedule.noise_level),
        )?;
        let sampler = Sampler::new(&schedule, &plan, guidance)?;
        let windows = windows(manifest, settings)?;
        let strength = settings.strength.unwrap_or(defaults.strength);
        if !(0.0..=1.0).contains(&strength) {
            return Err(Error::Setting {
                setting: "strength",
                reason: format!("{strength} is outside 0 to 1"),
            });
        }
        let tile_size = settings.tile_size.unwrap_or(manifest.canvas.tile);
        let picture = Picture::new(
            manifest,
            (width, height),
            settings.model_scale(manifest),
            (tile_size, settings.tile_overlap.unwrap_or(manifest.canvas.tile_overlap.min(tile_size / 4))),
            settings.color_fix.unwrap_or(defaults.color_fix),
            strength,
        )?;
        let (latency, progress) = match windows.mode() {
            WindowMode::Blend => (
                windows.latency(sampler.evaluations()),
                Progress::Blend {
                    windows,
                    planner: windows.planner(),
                    closed: VecDeque::new(),
                    next: 0,
                    tail: VecDeque::new(),
                },
            ),
            WindowMode::Wavefront => {
                let tile = || -> Result<TileWavefront> {
                    let wavefront = Wavefront::new(sampler.clone(), windows.length(), windows.overlap())?;
                    Ok(TileWavefront { wavefront, restored: VecDeque::new() })
                };
                let tiles = picture.tiles().map(|_| tile()).collect::<Result<Vec<_>>>()?;
                let latency = windows.latency(sampler.evaluations()) + picture.frames_per_decode() - 1;
                (latency, Progress::Wavefront { tiles, encoded: 0 })
            }
        };
        Ok(Self {
            model,
            picture,
            sampler,
            noise: FrameNoise::new(settings.seed),
            cancel,
            latency,
            progress,
            pending: VecDeque::new(),
            first: 0,
            flushing: false,
            ready: VecDeque::new(),
            stats: Stats::default(),
        })
    }

    /// Size `(width, height)` of the frames given out.
    pub fn output_size(&self) -> (usize, usize) {
        self.picture.size()
    }

    /// Frames that must follow a frame before it can come out, at most.
    pub fn latency(&self) -> usize {
        self.latency
    }

    /// Counts and times so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Time spent in the model's own runtime so far, see [`Model::busy`].
    pub fn model_busy(&self) -> Duration {
        self.model.busy()
    }

    /// Takes the next frame, `[3,h,w]` RGB in [0,1]. `number` is its absolute number, which selects its noise.
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
            closed.extend(planner.push());
        }
        Ok(())
    }

    /// Gives the next finished frame, running the model when a window is complete. Blocks for as long as that takes.
    /// After an error the clip is lost; call [`Self::reset`].
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
            Progress::Blend { windows, planner, closed, next, tail } => {
                *planner = windows.planner();
                closed.clear();
                *next = 0;
                tail.clear();
            }
            Progress::Wavefront { tiles, encoded } => {
                *encoded = 0;
                for tile in tiles {
                    tile.wavefront.reset();
                    tile.restored.clear();
                }
            }
        }
    }

    /// Gives the model back, so that the next clip need not load it again.
    pub fn into_model(self) -> Box<dyn Model> {
        self.model
    }

    /// Does the next piece of work; false when there is none without further frames.
    fn advance(&mut self) -> Result<bool> {
        match &mut self.progress {
            Progress::Blend { closed, tail, .. } => match closed.pop_front() {
                Some(window) => self.sample_window(window).map(|()| true),
                None if self.flushing && !tail.is_empty() => {
                    self.ready.append(tail);
                    Ok(true)
                }
                None => Ok(false),
            },
            Progress::Wavefront { .. } => self.advance_wavefront(),
        }
    }

    /// Restores one window on its own and cross-fades it with the one before.
    fn sample_window(&mut self, window: Window) -> Result<()> {
        let frames = window.start - self.first..window.end - self.first;
        let clock = Instant::now();
        let numbers: Vec<u64> = self.pending.range(frames.clone()).map(|p| p.number).collect();
        let prepared = self
            .pending
            .range(frames.clone())
            .map(|p| self.picture.prepare(p.low.view()))
            .collect::<Result<Vec<_>>>()?;
        let mut clock = lap(&mut self.stats.prepare, clock);

        let mut canvases = Vec::with_capacity(frames.len());
        for tile in self.picture.tiles() {
            let model = self.model.as_mut();
            let hint = self.picture.encode(model, &prepared, tile, &self.cancel)?;
            clock = lap(&mut self.stats.encode, clock);
            let noise = self.picture.noise(&self.noise, tile);
            let restored = self.sampler.sample(&mut *model, hint.view(), &numbers, &noise, &self.cancel)?;
            self.stats.windows += 1;
            clock = lap(&mut self.stats.sample, clock);
            self.picture.decode(model, &restored, tile, &mut canvases, &self.cancel)?;
            clock = lap(&mut self.stats.decode, clock);
        }
        drop(prepared);

        let Progress::Blend { windows, closed, next, tail, .. } = &mut self.progress else { return Ok(()) };
        let k = *next;
        *next += 1;
        // The clip may end here: then there is no further window to share frames with.
        let last = self.flushing && closed.is_empty();
        let settled = if last { window.end } else { windows.start(k + 1) };
        let mut before = std::mem::take(tail);
        for ((frame, canvas), pending) in (window.start..).zip(canvases).zip(self.pending.range(frames)) {
            let mut result = self.picture.finish(canvas, pending.low.view())?;
            if let Some(mut mixed) = before.pop_front() {
                cross_fade(&mut mixed, result.view(), windows.weight(k, frame))?;
                result = mixed;
            }
            if frame < settled {
                self.ready.push_back(result);
            } else {
                tail.push_back(result);
            }
        }
        lap(&mut self.stats.finish, clock);
        self.pending.drain(..settled - self.first);
        self.first = settled;
        Ok(())
    }

    /// Encodes new frames, runs every evaluation that can be run, and decodes what is restored.
    fn advance_wavefront(&mut self) -> Result<bool> {
        let Progress::Wavefront { tiles, encoded } = &mut self.progress else { return Ok(false) };
        let model = self.model.as_mut();
        let mut worked = false;
        for pending in self.pending.range(*encoded..) {
            let clock = Instant::now();
            let prepared = [self.picture.prepare(pending.low.view())?];
            let clock = lap(&mut self.stats.prepare, clock);
            for (tile, place) in tiles.iter_mut().zip(self.picture.tiles()) {
                let hint = self.picture.encode(model, &prepared, place, &self.cancel)?;
                tile.wavefront.push(pending.number, hint.index_axis_move(Axis(0), 0))?;
            }
            lap(&mut self.stats.encode, clock);
            *encoded += 1;
            worked = true;
        }

        let clock = Instant::now();
        let finishing = self.flushing && !self.pending.is_empty();
        for (tile, place) in tiles.iter_mut().zip(self.picture.tiles()) {
            if finishing {
                tile.wavefront.finish();
            }
            let noise = self.picture.noise(&self.noise, place);
            tile.restored.extend(tile.wavefront.advance(&mut *model, &noise, &self.cancel)?);
        }
        let mut clock = lap(&mut self.stats.sample, clock);

        let group = self.picture.frames_per_decode();
        loop {
            let waiting = tiles.first().map_or(0, |tile| tile.restored.len());
            if waiting == 0 || (waiting < group && !self.flushing) {
                break;
            }
            let frames = waiting.min(group);
            let mut canvases = Vec::with_capacity(frames);
            for (tile, place) in tiles.iter_mut().zip(self.picture.tiles()) {
                let restored: Vec<_> = tile.restored.drain(..frames).collect();
                self.picture.decode(model, &stack(&restored), place, &mut canvases, &self.cancel)?;
            }
            clock = lap(&mut self.stats.decode, clock);
            for (canvas, pending) in canvases.into_iter().zip(self.pending.drain(..frames)) {
                self.ready.push_back(self.picture.finish(canvas, pending.low.view())?);
            }
            clock = lap(&mut self.stats.finish, clock);
            *encoded -= frames;
            self.first += frames;
            worked = true;
        }
        Ok(worked)
    }
}

impl Settings {
    /// The factor that the model enlarges by: the nearest to what was asked for that the bundle allows.
    pub fn model_scale(&self, manifest: &Manifest) -> usize {
        let scale = &manifest.scale;
        self.scale.unwrap_or(scale.default).clamp(scale.minimum, scale.maximum) as usize
    }
}

/// The layout of the windows that `settings` ask for, within the bundle's limits.
fn windows(manifest: &Manifest, settings: &Settings) -> Result<Windows> {
    let defaults = &manifest.window;
    let mode = settings.window_mode.unwrap_or(defaults.mode);
    let length = settings.window_length.unwrap_or(defaults.length);
    if !(defaults.minimum..=defaults.maximum).contains(&length) {
        return Err(Error::Setting {
            setting: "window-length",
            reason: format!(
                "the bundle {} takes {} to {} frames, not {length}",
                manifest.name, defaults.minimum, defaults.maximum
            ),
        });
    }
    let overlap = settings.window_overlap.unwrap_or(match mode {
        // What the official program does (SPEC A.5).
        WindowMode::Wavefront => length / 2,
        WindowMode::Blend => defaults.overlap.min(length / 2),
    });
    Windows::new(mode, length, overlap)
}

/// Frames `[C,h,w]` of one shape as `[F,C,h,w]`.
fn stack(frames: &[Array3<f32>]) -> Array4<f32> {
    let views: Vec<_> = frames.iter().map(|f| f.view()).collect();
    ndarray::stack(Axis(0), &views).unwrap_or_default()
}

/// Adds the time since `clock` to `total` and starts anew.
fn lap(total: &mut Duration, clock: Instant) -> Instant {
    let now = Instant::now();
    *total += now - clock;
    now
}
