// SPDX-License-Identifier: MPL-2.0

//! STAR's sampling of a long video, whose windows' predictions are merged at every step
//! (docs/star.md, A.5, "chunks"), on an endless stream.
//!
//! Evaluation i of window k needs the states after evaluation i-1 of the frames in window k, and
//! nothing else. So instead of keeping the whole video and making one evaluation after the other,
//! pairs (i, k) are run in the order of i + k.

use std::collections::VecDeque;

use ndarray::{Array3, Array4, Axis};

use super::noise::Noise;
use super::sampler::Sampler;
use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::model::{Conditioning, Denoiser};
use crate::windows::{Planner, Window, WindowMode, Windows};

/// A frame between two evaluations.
struct State {
    x: Array3<f32>,
    /// The prediction that led here.
    previous: Option<Array3<f32>>,
}

/// An evaluation, with the frames that wait for it.
#[derive(Default)]
struct Evaluation {
    /// Place of the first frame held in the clip.
    first: usize,
    states: VecDeque<State>,
    /// The next window to evaluate.
    window: usize,
}

/// A window whose frames are certain.
struct Closed {
    window: Window,
    /// What its first evaluation was made under; all further ones are too.
    conditioning: Option<Conditioning>,
}

impl Closed {
    fn new(window: Window) -> Self {
        Self { window, conditioning: None }
    }
}

struct Hint {
    number: u64,
    latents: Array3<f32>,
}

/// Restores a clip of any length frame by frame; the result is that of the official program on the
/// whole clip.
pub struct Wavefront {
    sampler: Sampler,
    planner: Planner,
    finished: bool,
    /// Closed windows that some evaluation still needs, the first being window `first_window`.
    closed: VecDeque<Closed>,
    first_window: usize,
    /// Low-quality latents that some evaluation still needs, the first being of frame `first_hint`.
    hints: VecDeque<Hint>,
    first_hint: usize,
    evaluations: Vec<Evaluation>,
    done: Vec<Array3<f32>>,
}

impl Wavefront {
    /// Windows of `length` frames of which neighbours share `overlap`; STAR: 32 and 16.
    ///
    /// # Errors
    /// [`Error::Setting`] unless `overlap < length`.
    pub fn new(sampler: Sampler, length: usize, overlap: usize) -> Result<Self> {
        let windows = Windows::new(WindowMode::Wavefront, length, overlap)?;
        let mut wavefront = Self {
            sampler,
            planner: windows.planner(),
            finished: false,
            closed: VecDeque::new(),
            first_window: 0,
            hints: VecDeque::new(),
            first_hint: 0,
            evaluations: Vec::new(),
            done: Vec::new(),
        };
        wavefront.reset();
        Ok(wavefront)
    }

    /// Forgets all frames; a new clip may begin.
    pub fn reset(&mut self) {
        self.planner = self.planner.windows().planner();
        self.finished = false;
        self.closed.clear();
        self.first_window = 0;
        self.hints.clear();
        self.first_hint = 0;
        self.evaluations = (0..self.sampler.evaluations()).map(|_| Evaluation::default()).collect();
        self.done.clear();
    }

    /// The sampler.
    pub fn sampler(&self) -> &Sampler {
        &self.sampler
    }

    /// The same, to be changed between evaluations.
    pub fn sampler_mut(&mut self) -> &mut Sampler {
        &mut self.sampler
    }

    /// Takes the low-quality latents `[C,h,w]` of the clip's next frame. `frame` is its absolute
    /// number, which selects its noise.
    ///
    /// # Errors
    /// [`Error::Input`] where the shape differs from the clip's or the clip has been finished and
    /// not yet given out.
    pub fn push(&mut self, frame: u64, hint: Array3<f32>) -> Result<()> {
        let refuse =
            |reason: String| Err(Error::input(format!("latents of frame {frame}"), reason));
        if self.finished {
            return refuse("the clip is finished; take its frames or reset first".into());
        }
        if hint.is_empty() {
            return refuse(format!("their shape {:?} is empty", hint.shape()));
        }
        if let Some(before) = self.hints.back()
            && before.latents.dim() != hint.dim()
        {
            let (hint, before) = (hint.shape(), before.latents.shape());
            return refuse(format!("their shape {hint:?} is not the clip's {before:?}"));
        }
        self.hints.push_back(Hint { number: frame, latents: hint });
        self.closed.extend(self.planner.push(frame).map(Closed::new));
        Ok(())
    }

    /// Ends the clip: [`Self::advance`] gives out all that is left, and then a new clip may be
    /// pushed.
    pub fn finish(&mut self) {
        self.finished = true;
        self.closed.extend(self.planner.finish().map(Closed::new));
    }

    /// Runs every evaluation whose frames are there and gives the restored latents `[C,h,w]` of the
    /// frames that became ready, in order. A window is restored under the `conditioning` of its
    /// first evaluation.
    ///
    /// # Errors
    /// As [`Sampler::denoise`], and [`Error::Cancelled`] (checked before each evaluation). Nothing
    /// is lost then, and the call may be repeated.
    pub fn advance(
        &mut self,
        model: &mut dyn Denoiser,
        noise: &dyn Noise,
        conditioning: &Conditioning,
        cancel: &Cancel,
    ) -> Result<Vec<Array3<f32>>> {
        self.start(noise);
        while let Some(i) = self.next() {
            cancel.check()?;
            self.evaluate(i, model, noise, conditioning)?;
        }
        let done = std::mem::take(&mut self.done);
        if self.finished {
            self.reset();
        }
        Ok(done)
    }

    /// Gives every frame its start state.
    fn start(&mut self, noise: &dyn Noise) {
        let evaluation = &mut self.evaluations[0];
        let started = evaluation.first + evaluation.states.len() - self.first_hint;
        for hint in self.hints.iter().skip(started) {
            let latents = hint.latents.as_standard_layout();
            let mut x = Array3::zeros(latents.raw_dim());
            let values = x.as_slice_mut().expect("standard layout");
            noise.fill(hint.number, 0, 0, values);
            self.sampler.solver().start(latents.as_slice().expect("standard layout"), values);
            evaluation.states.push_back(State { x, previous: None });
        }
    }

    /// The evaluation to run next: of those whose frames are there the one with the smallest i + k,
    /// then the smallest i.
    fn next(&self) -> Option<usize> {
        let ready = |&i: &usize| {
            let evaluation = &self.evaluations[i];
            self.closed.get(evaluation.window - self.first_window).is_some_and(|closed| {
                closed.window.end <= evaluation.first + evaluation.states.len()
            })
        };
        (0..self.evaluations.len())
            .filter(ready)
            .min_by_key(|&i| (i + self.evaluations[i].window, i))
    }

    /// Runs evaluation `i` of its next window.
    fn evaluate(
        &mut self,
        i: usize,
        model: &mut dyn Denoiser,
        noise: &dyn Noise,
        conditioning: &Conditioning,
    ) -> Result<()> {
        let solver = self.sampler.solver();
        let evaluation = &self.evaluations[i];
        let k = evaluation.window;
        let closed = &mut self.closed[k - self.first_window];
        let window = closed.window;
        let conditioning = closed.conditioning.get_or_insert_with(|| conditioning.clone()).clone();
        let last = self.finished && k + 1 - self.first_window == self.closed.len();
        let kept = self.planner.windows().kept(k, window, last);

        let (channels, height, width) = evaluation.states[0].x.dim();
        let mut input = Array4::zeros((window.len(), channels, height, width));
        let mut hint = input.clone();
        let slots = input.axis_iter_mut(Axis(0)).zip(hint.axis_iter_mut(Axis(0)));
        for (frame, (mut input, mut hint)) in (window.start..).zip(slots) {
            input.assign(&evaluation.states[frame - evaluation.first].x);
            solver.scale_model_input(i, input.as_slice_mut().expect("standard layout"));
            hint.assign(&self.hints[frame - self.first_hint].latents);
        }
        self.sampler.denoise(model, i, input.view_mut(), hint.view(), &conditioning)?;
        let denoised = input;

        let solver = self.sampler.solver();
        let end = i + 1 == self.evaluations.len();
        let evaluation = &mut self.evaluations[i];
        let mut drawn = vec![0.0; channels * height * width];
        let mut moved = Vec::with_capacity(kept.len());
        for frame in kept.start..kept.end {
            let predicted = denoised.index_axis(Axis(0), frame - window.start).to_owned();
            if end {
                self.done.push(predicted);
                continue;
            }
            let state = &mut evaluation.states[frame - evaluation.first];
            let previous = state.previous.take();
            let mut x = state.x.clone();
            noise.fill(self.hints[frame - self.first_hint].number, i as u32 + 1, 0, &mut drawn);
            solver.step(
                i,
                x.as_slice_mut().expect("standard layout"),
                predicted.as_slice().expect("standard layout"),
                previous.as_ref().map(|p| p.as_slice().expect("standard layout")),
                &drawn,
            );
            moved.push(State { x, previous: Some(predicted) });
        }
        if let Some(after) = self.evaluations.get_mut(i + 1) {
            after.states.extend(moved);
        }

        let evaluation = &mut self.evaluations[i];
        evaluation.window += 1;
        let needed = if last { window.end } else { self.planner.windows().start(k + 1) };
        evaluation.states.drain(..needed - evaluation.first);
        evaluation.first = needed;
        let oldest = self.evaluations.last().expect("at least one evaluation");
        self.hints.drain(..oldest.first - self.first_hint);
        self.first_hint = oldest.first;
        self.closed.drain(..oldest.window - self.first_window);
        self.first_window = oldest.window;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::guidance::Guidance;
    use super::super::noise::FrameNoise;
    use super::super::schedule::{SamplerMode, Schedule, ScheduleConfig};
    use super::*;
    use crate::model::{Query, Samples};

    struct StandIn;

    impl Denoiser for StandIn {
        fn predict(&mut self, query: &Query) -> Result<Vec<Samples>> {
            Ok(vec![(&query.x * 0.4 - query.hint).into(); query.conditions.len()])
        }
    }

    /// Arrays of a frame's latents held at the moment: hints, states and predictions.
    fn held(wavefront: &Wavefront) -> usize {
        let states = wavefront.evaluations.iter().flat_map(|e| &e.states);
        let states: usize = states.map(|s| 1 + usize::from(s.previous.is_some())).sum();
        wavefront.hints.len() + states + wavefront.done.len()
    }

    /// On an endless stream what is held is bounded. No frame waits longer than the layout's
    /// latency, and some frame waits that long.
    #[test]
    fn endless_streams() {
        let schedule = Schedule::new(&ScheduleConfig::default()).unwrap();
        let (noise, conditioning) = (FrameNoise::new(0), Conditioning::default());
        for (length, overlap, steps) in
            [(8, 4, 15), (8, 2, 5), (32, 16, 14), (5, 3, 4), (6, 5, 3), (4, 0, 6), (1, 0, 3)]
        {
            let plan = schedule.plan(SamplerMode::Normal, steps, 900).unwrap();
            let guidance = Guidance::new(1.0, 0.0).unwrap();
            let sampler = Sampler::new(&schedule, &plan, guidance).unwrap();
            let mut wavefront = Wavefront::new(sampler, length, overlap).unwrap();
            let latency = wavefront.planner.windows().latency(steps as usize);
            let advance = |wavefront: &mut Wavefront| {
                let cancel = Cancel::default();
                wavefront.advance(&mut StandIn, &noise, &conditioning, &cancel).unwrap()
            };
            let mut pending = VecDeque::new();
            let (mut most_early, mut most_late, mut longest) = (0, 0, 0);
            let frames = 1200;
            for f in 0..frames {
                let hint = Array3::from_elem((2, 2, 3), (f % 13) as f32 / 6.0 - 1.0);
                wavefront.push(f as u64, hint).unwrap();
                pending.push_back(f);
                for _ in advance(&mut wavefront) {
                    longest = longest.max(f - pending.pop_front().unwrap());
                }
                assert!(pending.front().is_none_or(|&first| f - first < latency || length == 1));
                let most = if f < frames / 2 { &mut most_early } else { &mut most_late };
                *most = held(&wavefront).max(*most);
            }
            assert_eq!(longest, latency, "{length} {overlap} {steps}");
            assert_eq!(most_late, most_early, "{length} {overlap} {steps}");
            // A hint for every frame that waits; a state and a prediction for those in an
            // evaluation's window and the next.
            let bound = latency + 1 + steps as usize * 2 * 2 * length;
            assert!(most_late <= bound, "{length} {overlap} {steps}: {most_late} over {bound}");
            wavefront.finish();
            assert_eq!(advance(&mut wavefront).len(), pending.len());
            assert_eq!(held(&wavefront), 0);
        }
    }
}
