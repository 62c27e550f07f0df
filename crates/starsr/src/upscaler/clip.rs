// SPDX-License-Identifier: MPL-2.0

//! A clip on its way through the model, and what a way of joining its windows does with it.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use ndarray::{Array3, ArrayView4};

use super::decode_groups::{DecodeGroup, DecodeGroups};
use super::frame_path::FramePath;
use crate::cancel::Cancel;
use crate::diffusion::noise::Noise;
use crate::diffusion::sampler::Sampler;
use crate::diffusion::tiled::Tiled;
use crate::error::Result;
use crate::model::{Conditioning, Memory, Model, Samples};

/// Counts and times since the upscaler was made. Times are wall-clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct StageTimes {
    /// Frames taken.
    pub frames_in: u64,
    /// Frames given out.
    pub frames_out: u64,
    /// Windows sampled on their own (`Blend`).
    pub windows: u64,
    /// Frames that left with a window that the model did not restore, see
    /// [`Upscaler::bypass`](crate::Upscaler::bypass).
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

/// A way of joining windows, with the windows that wait and what they share.
pub(super) trait WindowJoin: Send {
    /// Counts the frame that was queued last, of the absolute number `number`.
    fn push(&mut self, number: u64);

    /// Counts on no further frames in the clip.
    fn flush(&mut self);

    /// Does the next piece of work; false where all that is left needs further frames.
    fn advance(&mut self, clip: &mut Clip) -> Result<bool>;

    /// Lets the frames of the next window out as the plain upscale, and gives their number.
    fn bypass(&mut self, clip: &mut Clip) -> Result<usize>;

    /// Forgets all windows.
    fn reset(&mut self);

    /// Frames of the window that would be restored next on its own.
    fn next_window(&self) -> Option<usize>;

    /// What restores the latents; `None` where the model restores frames without a sampler.
    fn sampler(&self) -> Option<&Sampler>;

    /// The same, to be changed between windows.
    fn sampler_mut(&mut self) -> Option<&mut Sampler>;

    /// The most frames that must follow a frame before it can come out.
    fn latency(&self, groups: &DecodeGroups) -> usize;
}

/// A frame that was taken and has not come out.
struct QueuedFrame {
    number: u64,
    low: Array3<f32>,
}

/// The frames of a clip, and all that restores them but for the sampler.
pub(super) struct Clip {
    pub(super) model: Box<dyn Model>,
    pub(super) path: FramePath,
    pub(super) groups: DecodeGroups,
    pub(super) noise: Box<dyn Noise>,
    pub(super) conditioning: Conditioning,
    pub(super) cancel: Cancel,
    pub(super) times: StageTimes,
    /// Whether no frames follow those queued.
    pub(super) ended: bool,
    /// Frames to give out.
    pub(super) ready: VecDeque<Array3<f32>>,
    /// Frames that have not come out, the first being frame `first` of the clip.
    queued: VecDeque<QueuedFrame>,
    first: usize,
}

impl Clip {
    pub(super) fn new(
        model: Box<dyn Model>,
        path: FramePath,
        groups: DecodeGroups,
        noise: Box<dyn Noise>,
        cancel: Cancel,
    ) -> Self {
        Self {
            model,
            path,
            groups,
            noise,
            conditioning: Conditioning::default(),
            cancel,
            times: StageTimes::default(),
            ended: false,
            ready: VecDeque::new(),
            queued: VecDeque::new(),
            first: 0,
        }
    }

    /// Queues the next frame.
    pub(super) fn push(&mut self, number: u64, low: Array3<f32>) {
        let low =
            if low.is_standard_layout() { low } else { low.as_standard_layout().into_owned() };
        self.queued.push_back(QueuedFrame { number, low });
        self.times.frames_in += 1;
    }

    /// Forgets all frames; another clip may begin.
    pub(super) fn reset(&mut self) {
        self.queued.clear();
        self.ready.clear();
        self.first = 0;
        self.ended = false;
        self.path.free_memory();
    }

    /// The places in the clip of the frames that have not come out.
    pub(super) fn inside(&self) -> Range<usize> {
        self.first..self.first + self.queued.len()
    }

    /// Forgets the frames before place `end` of the clip, which have come out; their number.
    pub(super) fn release(&mut self, end: usize) -> usize {
        let frames = end - self.first;
        self.queued.drain(..frames);
        self.first = end;
        frames
    }

    /// The absolute number of each frame at `places` of the clip.
    pub(super) fn numbers(&self, places: Range<usize>) -> Vec<u64> {
        self.frames(places).map(|frame| frame.number).collect()
    }

    /// The frames at `places` of the clip, enlarged without the model.
    pub(super) fn plain(&self, places: Range<usize>) -> Result<Vec<Array3<f32>>> {
        let enlarge = |frame: &QueuedFrame| {
            self.cancel.check().and_then(|()| self.path.enlarge(frame.low.view()))
        };
        self.frames(places).map(enlarge).collect()
    }

    /// Latents `[T,C,h,w]` of the frames at `places` of the clip, of which the first are `known`.
    /// While the model encodes some, the next are prepared.
    pub(super) fn encode(
        &mut self,
        places: Range<usize>,
        known: Option<Samples>,
    ) -> Result<Samples> {
        let places = places.start + known.as_ref().map_or(0, |known| known.dim().0)..places.end;
        let frames = self.queued.range(places.start - self.first..places.end - self.first);
        let (numbers, mut low): (Vec<_>, Vec<_>) = frames.map(|f| (f.number, &f.low)).unzip();
        let (path, cancel, times) = (&self.path, &self.cancel, &mut self.times);
        let numbers = path.cadence().numbers(&numbers);
        if let Some(&last) = low.last() {
            low.resize(path.cadence().padded(low.len()), last);
        }
        let (model, noise) = (self.model.as_mut(), self.noise.as_ref());
        let mut groups = low.chunks(path.frames_per_encode());
        let mut clock = Instant::now();
        let mut next = groups.next().map(|low| path.prepare(low, cancel));
        clock = lap(&mut times.prepare, clock);
        let mut latents = Vec::from_iter(known);
        for numbers in numbers.chunks(path.frames_per_encode()) {
            let Some(prepared) = next.transpose()? else { break };
            let encode = || path.encode(model, prepared.view(), numbers, noise, cancel);
            let prepare = || groups.next().map(|low| path.prepare(low, cancel));
            let (encoded, following) = path.threads().beside(encode, prepare);
            (next, clock) = (following, lap(&mut times.encode, clock));
            latents.push(encoded?);
        }
        path.join(latents)
    }

    /// What `work` samples with the model as a denoiser of the whole canvas.
    pub(super) fn sample<T>(
        &mut self,
        work: impl FnOnce(&mut Tiled, &dyn Noise, &Conditioning, &Cancel) -> Result<T>,
    ) -> Result<T> {
        let clock = Instant::now();
        let mut denoiser = self.path.denoiser(self.model.as_mut(), &self.cancel);
        let restored = work(&mut denoiser, self.noise.as_ref(), &self.conditioning, &self.cancel)?;
        lap(&mut self.times.sample, clock);
        Ok(restored)
    }

    /// Whether the model leaves the processor to other work.
    pub(super) fn computes_elsewhere(&self) -> bool {
        self.model.memory() != Memory::Main
    }

    /// What the model makes of the frames at `places` of the clip as one window, without a sampler.
    pub(super) fn upscale(&mut self, places: Range<usize>) -> Result<Canvases> {
        let Self { model, path, cancel, times, queued, first, .. } = self;
        let low = low_frames(queued, &places, *first);
        let samples = upscale(path, model.as_mut(), &low, cancel, times)?;
        Ok(Canvases { places, samples })
    }

    /// The finished frames of `canvases`, and the canvases of the frames at `next`, which the model
    /// makes meanwhile.
    pub(super) fn finish(
        &mut self,
        canvases: Canvases,
        next: Option<Range<usize>>,
    ) -> (Result<Vec<Array3<f32>>>, Option<Result<Canvases>>) {
        let Self { model, path, cancel, times, queued, first, .. } = self;
        let low = low_frames(queued, &canvases.places, *first);
        let finish = || path.finish(canvases.samples.view(), &low, cancel);
        let clock = Instant::now();
        let Some(places) = next else {
            let finished = finish();
            lap(&mut times.finish, clock);
            return (finished, None);
        };
        let following = low_frames(queued, &places, *first);
        let work = || upscale(path, model.as_mut(), &following, cancel, times);
        let (samples, finished) = path.threads().beside(work, finish);
        (finished, Some(samples.map(|samples| Canvases { places, samples })))
    }

    /// The finished frames that `groups` keep of restored latents `[T,C,h,w]`, the first of which
    /// is at `place` of the clip. While the model decodes a group, the one before it is finished.
    pub(super) fn decode(
        &mut self,
        latents: ArrayView4<f32>,
        groups: impl Iterator<Item = DecodeGroup>,
        place: usize,
    ) -> Result<Vec<Array3<f32>>> {
        let low = self.queued.iter().map(|frame| &frame.low).collect::<Vec<_>>();
        let first = self.first;
        let (path, cancel, times) = (&self.path, &self.cancel, &mut self.times);
        let model = self.model.as_mut();
        let finish = |decoded: Option<(Samples, DecodeGroup)>| {
            let Some((canvases, group)) = decoded else { return Ok(Vec::new()) };
            let before = group.kept.start - group.decoded.start;
            let canvases = canvases.frames(before..before + group.kept.len());
            let kept = place + group.kept.start - first..place + group.kept.end - first;
            path.finish(canvases, &low[kept], cancel)
        };
        let mut clock = Instant::now();
        let (mut decoded, mut results) = (None, Vec::new());
        for group in groups {
            let before = decoded.take();
            let decode = || path.decode(model, latents, &group.decoded, cancel);
            let (canvases, finished) = path.threads().beside(decode, || finish(before));
            clock = lap(&mut times.decode, clock);
            results.extend(finished?);
            decoded = Some((canvases?, group));
        }
        results.extend(finish(decoded)?);
        lap(&mut times.finish, clock);
        Ok(results)
    }

    fn frames(&self, places: Range<usize>) -> std::collections::vec_deque::Iter<'_, QueuedFrame> {
        self.queued.range(places.start - self.first..places.end - self.first)
    }
}

/// What a model without a sampler has made of the frames at `places` of a clip.
pub(super) struct Canvases {
    pub(super) places: Range<usize>,
    samples: Samples,
}

/// The frames at `places` of a clip, of which `queued` begin at place `first`.
fn low_frames<'a>(
    queued: &'a VecDeque<QueuedFrame>,
    places: &Range<usize>,
    first: usize,
) -> Vec<&'a Array3<f32>> {
    queued.range(places.start - first..places.end - first).map(|frame| &frame.low).collect()
}

/// The canvases that `model` makes of a window's frames `low`, without a sampler.
fn upscale(
    path: &FramePath,
    model: &mut dyn Model,
    low: &[&Array3<f32>],
    cancel: &Cancel,
    times: &mut StageTimes,
) -> Result<Samples> {
    let clock = Instant::now();
    let prepared = path.prepare_low(low, cancel)?;
    let clock = lap(&mut times.prepare, clock);
    let canvases = path.upscale(model, prepared.view(), cancel)?;
    lap(&mut times.sample, clock);
    Ok(canvases)
}

/// Adds the time since `clock` to `total` and starts anew.
pub(super) fn lap(total: &mut Duration, clock: Instant) -> Instant {
    let now = Instant::now();
    *total += now - clock;
    now
}
