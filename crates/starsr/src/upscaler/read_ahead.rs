// SPDX-License-Identifier: MPL-2.0

//! An upscaler at work in a thread of its own, while frames go in and come out.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use ndarray::Array3;

use super::{Received, StageTimes, TruncatedTokens, Upscaler, check_frame};
use crate::buffers::{Buffers, trim};
use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::geometry::Size;
use crate::model::Model;
use crate::text::Prompts;

/// What an upscaler has done since it was made, and what short memory has led to. As of the last
/// time that it rested.
#[derive(Debug, Clone, Copy, Default)]
pub struct Report {
    /// See [`Upscaler::stats`].
    pub stages: StageTimes,
    /// See [`Upscaler::evaluations`].
    pub evaluations: u64,
    /// See [`Upscaler::model_busy`].
    pub model_busy: Duration,
    /// See [`Upscaler::device_memory_used`].
    pub device_memory_used: Option<u64>,
    /// See [`Upscaler::is_guidance_separated`].
    pub guidance_separated: bool,
    /// See [`Upscaler::reduced_tile_size`].
    pub reduced_tile_size: Option<usize>,
}

/// Work on windows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Run {
    /// Runs of the model's denoiser.
    pub evaluations: u64,
    /// Time that the work took.
    pub time: Duration,
}

/// An [`Upscaler`] that takes the frames of the next window while it works on the present one, and
/// works on the next while the present one's frames are received. The frames are the same.
pub struct ReadAhead {
    /// `None` while the thread has it.
    upscaler: Option<Box<Upscaler>>,
    /// `None` where the calling thread does the work.
    thread: Option<Worker>,
    cancel: Cancel,
    size: Size,
    scale: usize,
    latency: usize,
    /// Frames that are taken while the upscaler works.
    room: usize,
    /// Memory of finished frames.
    frames: Buffers,
    /// Frames that the upscaler does not have yet, with their numbers.
    waiting: VecDeque<(u64, Array3<f32>)>,
    /// How many of these were sent since frames were last asked for.
    fresh: usize,
    /// Whether the clip ends behind them.
    ended: bool,
    /// Whether the upscaler has work without further frames.
    has_work: bool,
    ready: VecDeque<Array3<f32>>,
    /// Why a window failed, until that is asked for.
    failed: Option<Error>,
    report: Report,
    run: Run,
}

/// Is called in the thread that works.
pub type Notify = Box<dyn Fn() + Send>;

/// The thread that an upscaler works in.
struct Worker {
    /// `None` when it shall end.
    jobs: Option<Sender<Box<Upscaler>>>,
    results: Receiver<Done>,
    thread: Option<JoinHandle<()>>,
}

/// An upscaler after it has worked on a window.
struct Done {
    upscaler: Box<Upscaler>,
    frames: Vec<Array3<f32>>,
    /// What there is when the frames have been received.
    end: Result<End>,
    report: Report,
    run: Run,
}

/// Why an upscaler gives no further frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It has not been asked for them.
    More,
    NeedMoreFrames,
    Drained,
}

impl ReadAhead {
    /// Works with `upscaler`, which has no frames inside. What stopped the upscaler's work still
    /// does.
    ///
    /// With `notify` a thread does the work, and calls `notify` whenever there is something to
    /// receive without waiting. It must return soon. Without `notify` the work is done when frames
    /// are asked for.
    ///
    /// # Errors
    /// As [`Model::cancel_with`].
    pub fn new(mut upscaler: Upscaler, notify: Option<Notify>) -> Result<Self> {
        let cancel = upscaler.branch_cancel()?;
        let thread = notify.and_then(Worker::new);
        let room = upscaler.frames_to_read_ahead();
        Ok(Self {
            thread,
            cancel,
            size: upscaler.input_size(),
            scale: upscaler.scale(),
            latency: upscaler.latency(),
            room,
            frames: upscaler.clip.path.finished_frames(),
            waiting: VecDeque::new(),
            fresh: 0,
            ended: false,
            has_work: false,
            ready: VecDeque::new(),
            failed: None,
            report: Report::of(&upscaler, None),
            run: Run::default(),
            upscaler: Some(Box::new(upscaler)),
        })
    }

    /// See [`Upscaler::latency`].
    pub fn latency(&self) -> usize {
        self.latency
    }

    /// See [`Upscaler::scale`].
    pub fn scale(&self) -> usize {
        self.scale
    }

    /// What the upscaler has done so far.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// What was done since the last call.
    pub fn take_run(&mut self) -> Run {
        std::mem::take(&mut self.run)
    }

    /// See [`Upscaler::next_window`]; `None` where a thread restores the windows.
    pub fn next_window(&self) -> Option<usize> {
        let upscaler = self.upscaler.as_ref().filter(|_| self.thread.is_none())?;
        upscaler.next_window().filter(|_| self.ready.is_empty())
    }

    /// See [`Upscaler::reuse_frame`].
    pub fn reuse_frame(&self, frame: Array3<f32>) {
        let Size { width, height } = self.size;
        if frame.dim() == (3, height * self.scale, width * self.scale) {
            self.frames.give(frame.into_raw_vec_and_offset().0);
        }
    }

    /// Takes the next frame, see [`Upscaler::send_frame`]. Never waits.
    ///
    /// # Errors
    /// As [`Upscaler::send_frame`].
    pub fn send_frame(&mut self, number: u64, pixels: Array3<f32>) -> Result<()> {
        check_frame(number, &pixels, self.size, self.ended)?;
        self.waiting.push_back((number, pixels));
        self.fresh += 1;
        if self.thread.is_none() {
            self.supply(0)?;
        }
        Ok(())
    }

    /// Gives the next finished frame. Waits for it where the clip has ended, or all frames of the
    /// next window have been taken.
    ///
    /// # Errors
    /// As [`Upscaler::receive_frame`].
    pub fn receive_frame(&mut self) -> Result<Received> {
        self.fresh = 0;
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Ok(Received::Frame(frame));
            }
            if !self.start(0)? {
                return Ok(Received::NeedMoreFrames);
            }
            let wait = self.thread.is_none() || self.ended || self.waiting.len() >= self.room;
            let Some(end) = self.collect(wait)? else { return Ok(Received::NeedMoreFrames) };
            match end {
                // Works on while the frames are received.
                End::More if self.thread.is_some() => drop(self.start(0)?),
                End::Drained => return Ok(Received::Drained),
                _ => {}
            }
        }
    }

    /// Ends the clip, see [`Upscaler::flush`].
    pub fn flush(&mut self) {
        self.ended = true;
        if let (Some(upscaler), None) = (&mut self.upscaler, &self.thread) {
            upscaler.flush();
            self.has_work = true;
        }
    }

    /// Finishes the next window without the model, see [`Upscaler::bypass`].
    ///
    /// # Errors
    /// As [`Upscaler::bypass`].
    pub fn bypass(&mut self) -> Result<usize> {
        while self.upscaler.is_none() {
            self.collect(true)?;
        }
        let Some(upscaler) = &mut self.upscaler else { return Ok(0) };
        self.has_work = true;
        let bypassed = upscaler.bypass();
        self.report = Report::of(upscaler, self.report.device_memory_used);
        bypassed
    }

    /// Restores the windows that the frames sent since the last [`Self::receive_frame`] complete,
    /// and later ones, under `prompts`, see [`Upscaler::set_prompts`]. Waits for the windows before
    /// them.
    ///
    /// # Errors
    /// As [`Upscaler::set_prompts`]. Where a window fails, [`Self::receive_frame`] says so.
    pub fn set_prompts(&mut self, prompts: &Prompts) -> Result<TruncatedTokens> {
        // Without a thread, those windows were restored when frames were asked for.
        while self.thread.is_some() && self.failed.is_none() && self.start(self.fresh)? {
            self.failed = self.collect(true).err();
        }
        match &mut self.upscaler {
            Some(upscaler) => upscaler.set_prompts(prompts),
            None => Ok(TruncatedTokens::default()),
        }
    }

    /// Forgets all frames.
    pub fn reset(&mut self) {
        self.stop();
        if let Some(upscaler) = &mut self.upscaler {
            upscaler.reset();
        }
        self.waiting.clear();
        self.ready.clear();
        self.failed = None;
        (self.fresh, self.ended, self.has_work) = (0, false, false);
    }

    /// Gives the model back; `None` where the thread has lost it.
    pub fn into_model(mut self) -> Option<Box<dyn Model>> {
        self.stop();
        self.upscaler.take().map(|upscaler| upscaler.into_model())
    }

    /// Gives the upscaler all frames that wait, but for the last `later`.
    fn supply(&mut self, later: usize) -> Result<()> {
        let Some(upscaler) = &mut self.upscaler else { return Ok(()) };
        while self.waiting.len() > later {
            let Some((number, pixels)) = self.waiting.pop_front() else { break };
            upscaler.send_frame(number, pixels)?;
            self.has_work = true;
        }
        if self.ended && self.waiting.is_empty() {
            upscaler.flush();
            self.has_work = true;
        }
        Ok(())
    }

    /// Lets the upscaler work, with the frames that wait but for the last `later`; false where
    /// there is nothing to do.
    fn start(&mut self, later: usize) -> Result<bool> {
        self.supply(later)?;
        if self.upscaler.is_some() && !self.has_work {
            return Ok(false);
        }
        if let Some(worker) = &self.thread
            && let Some(upscaler) = self.upscaler.take()
        {
            worker.start(upscaler);
        }
        Ok(true)
    }

    /// Takes what the upscaler has finished; `None` where it is still at work, unless this shall
    /// `wait`.
    fn collect(&mut self, wait: bool) -> Result<Option<End>> {
        let done = match &mut self.thread {
            Some(worker) => worker.result(wait),
            None => self.upscaler.take().map(work),
        };
        let Some(done) = done else { return Ok(None) };
        self.upscaler = Some(done.upscaler);
        let used = done.report.device_memory_used.or(self.report.device_memory_used);
        self.report = Report { device_memory_used: used, ..done.report };
        self.run.evaluations += done.run.evaluations;
        self.run.time += done.run.time;
        self.ready.extend(done.frames);
        self.has_work = !matches!(done.end, Ok(End::NeedMoreFrames | End::Drained));
        if let Ok(End::Drained) = done.end {
            self.ended = false;
        }
        done.end.map(Some)
    }

    /// Stops the upscaler's work.
    fn stop(&mut self) {
        if self.upscaler.is_none()
            && let Some(worker) = &mut self.thread
        {
            self.cancel.set(true);
            self.upscaler = worker.result(true).map(|done| done.upscaler);
            self.cancel.set(false);
        }
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.cancel.set(true);
    }
}

impl Report {
    fn of(upscaler: &Upscaler, device_memory_used: Option<u64>) -> Self {
        Self {
            stages: upscaler.stats(),
            evaluations: upscaler.evaluations(),
            model_busy: upscaler.model_busy(),
            device_memory_used,
            guidance_separated: upscaler.is_guidance_separated(),
            reduced_tile_size: upscaler.reduced_tile_size(),
        }
    }
}

/// Works until there are frames or none can come.
fn work(mut upscaler: Box<Upscaler>) -> Done {
    let (started, before) = (Instant::now(), upscaler.evaluations());
    let mut frames = Vec::new();
    let end = loop {
        match upscaler.receive_frame() {
            Ok(Received::Frame(frame)) => frames.push(frame),
            Ok(Received::NeedMoreFrames) => break Ok(End::NeedMoreFrames),
            Ok(Received::Drained) => break Ok(End::Drained),
            Err(error) => break Err(error),
        }
        if !upscaler.has_frame() {
            break Ok(End::More);
        }
    };
    let evaluations = upscaler.evaluations() - before;
    // Asking the driver takes time, and what is used grows only while the model runs.
    let used = if evaluations > 0 { upscaler.device_memory_used() } else { None };
    let report = Report::of(&upscaler, used);
    let run = Run { evaluations, time: started.elapsed() };
    Done { upscaler, frames, end, report, run }
}

impl Worker {
    /// A thread that calls `notify` after each piece of work; `None` where the system refuses one.
    fn new(notify: Notify) -> Option<Self> {
        let (jobs, taken) = channel::<Box<Upscaler>>();
        let (given, results) = channel();
        let run = move || {
            for upscaler in taken {
                let done = work(upscaler);
                if let Ok(End::Drained) = done.end {
                    trim();
                }
                if given.send(done).is_err() {
                    break;
                }
                notify();
            }
        };
        let thread = Builder::new().name("starsr-windows".into()).spawn(run).ok()?;
        Some(Self { jobs: Some(jobs), results, thread: Some(thread) })
    }

    fn start(&self, upscaler: Box<Upscaler>) {
        if let Some(jobs) = &self.jobs {
            // Where the thread has ended, `result` says why.
            let _ = jobs.send(upscaler);
        }
    }

    /// What the thread has finished; `None` where it is still at work, unless this shall `wait`. A
    /// panic goes on here.
    fn result(&mut self, wait: bool) -> Option<Done> {
        if !wait {
            match self.results.try_recv() {
                Err(TryRecvError::Empty) => return None,
                Ok(done) => return Some(done),
                Err(_) => {}
            }
        }
        if let Ok(done) = self.results.recv() {
            return Some(done);
        }
        let panic = self.thread.take().and_then(|thread| thread.join().err());
        panic.map(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs = None;
        // What `notify` owns may end with it, in the thread itself.
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // A panic has been reported, or nobody waits for its work.
            let _ = thread.join();
        }
    }
}
