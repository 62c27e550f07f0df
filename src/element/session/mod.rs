// SPDX-License-Identifier: MPL-2.0

//! The one owner of a stream's state between start and stop.
//!
//! A session does no I/O. It takes buffers, events, caps and facts, and returns what is to be
//! pushed; its notices wait in [`Session::take_notices`]. Everything here runs in the streaming
//! thread.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use ndarray::Array3;
use parking_lot::Mutex;

use starsr::bundle::Manifest;
use starsr::model::Model;
use starsr::scene::SceneDetector;
use starsr::text::Prompts;
use starsr::upscaler::Notify;
use starsr::{Cancel, ReadAhead, TruncatedTokens, Upscaler};

use super::frames::RgbFrame;
use super::loading::Loaded;
use super::messages::{Failure, Notice};
use super::metas;
use super::negotiation::{Converters, Formats, Refused, prepare, reads_ahead};
use super::numbering::Numbering;
use super::pace::{Pace, Timing};
use super::settings::Settings;
use super::stats::ElementStats;

pub(super) mod events;
mod output;
#[cfg(test)]
mod tests;

/// A frame that has been read and is not yet inside the upscaler.
pub(super) struct Incoming {
    skeleton: gst::Buffer,
    frame: RgbFrame,
    /// Whether a scene begins with this frame, so that the frames inside have to leave first.
    pub(super) begins_scene: bool,
}

/// A frame inside the upscaler.
struct HeldBuffer {
    /// Everything of its buffer except the memory.
    skeleton: gst::Buffer,
    /// Its alpha, `[1,h,w]` at the input's size.
    alpha: Option<Array3<f32>>,
    /// Serialized events that came before it and leave before it.
    events: Vec<gst::Event>,
}

/// A finished frame.
pub(super) struct Outgoing {
    /// Everything of the input buffer except the memory.
    pub(super) skeleton: gst::Buffer,
    /// Events to push before the frame.
    pub(super) events: Vec<gst::Event>,
    /// The picture, at the upscaler's output size.
    pub(super) picture: RgbFrame,
}

/// What the session has to ask for before a window.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) prompts: Prompts,
    /// Asked for only where [`Session::may_bypass`] says so; `None` without a clock.
    pub(super) timing: Option<Timing>,
}

/// What works on the frames of one format.
struct Worker {
    upscaler: ReadAhead,
    converters: Converters,
    formats: Formats,
    /// The prompts that `upscaler` was given last.
    prompts: Prompts,
    pace: Pace,
    /// Whether separate guidance was reported.
    guidance_separated: bool,
    /// The reduced tile size that was reported.
    tile_size: Option<usize>,
}

/// A stream's state.
pub(super) struct Session {
    /// The settings when the element started.
    settings: Settings,
    manifest: Manifest,
    /// The model while no worker has it.
    model: Option<Box<dyn Model>>,
    cancel: Cancel,
    /// Is called where there are frames to pull though none has come in.
    on_frames: Arc<dyn Fn() + Send + Sync>,
    /// Shared with the property `stats`, which can be read at any time.
    stats: Arc<Mutex<ElementStats>>,
    /// `None` before caps.
    worker: Option<Worker>,
    held: VecDeque<HeldBuffer>,
    /// Events for the next frame to come in.
    parked: Vec<gst::Event>,
    segment: Option<gst::Segment>,
    numbering: Numbering,
    /// `None` where windows do not end at cuts.
    scenes: Option<SceneDetector>,
    /// The result of a push that failed where it could not be returned, for the next buffer.
    failed_push: Option<gst::FlowError>,
    /// Whether the source pad's last flow result is older than the present segment and says nothing
    /// about it.
    stale_flow: bool,
    pub(super) refused: Refused,
    /// Formats for which setting up was cancelled.
    interrupted: Option<Formats>,
    /// Whether a failure of the model was reported in this stream.
    failure_reported: bool,
    /// Why the last bypassed window was bypassed.
    bypass_reason: Option<&'static str>,
    notices: Vec<Notice>,
}

impl Session {
    pub(super) fn new(
        settings: Settings,
        loaded: Loaded,
        cancel: Cancel,
        on_frames: Arc<dyn Fn() + Send + Sync>,
        stats: Arc<Mutex<ElementStats>>,
    ) -> Self {
        Self {
            scenes: settings.scene_detection.then(SceneDetector::default),
            settings,
            manifest: loaded.manifest,
            model: Some(loaded.model),
            cancel,
            on_frames,
            stats,
            worker: None,
            held: VecDeque::new(),
            parked: Vec::new(),
            segment: None,
            numbering: Numbering::default(),
            failed_push: None,
            stale_flow: false,
            refused: Refused::default(),
            interrupted: None,
            failure_reported: false,
            bypass_reason: None,
            notices: Vec::new(),
        }
    }

    /// The factor by which frames grow unless another size is negotiated.
    pub(super) fn scale(&self) -> u32 {
        match self.settings.scale {
            0 => self.manifest.scale.default,
            scale => scale,
        }
    }

    /// What has happened since the last call, in order.
    pub(super) fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    // Caps.

    /// The settings to load the model with, where refused caps have cost the model.
    pub(super) fn lost_model(&self) -> Option<Settings> {
        (self.model.is_none() && self.worker.is_none()).then(|| self.settings.clone())
    }

    /// Sets up for new formats, with `model` where the session's own is lost, and returns the
    /// latency of their windows. The frames of the old formats have left.
    pub(super) fn configure(
        &mut self,
        formats: &Formats,
        prompts: Prompts,
        model: Option<Box<dyn Model>>,
    ) -> Result<gst::ClockTime, Failure> {
        let settings = self.settings.upscaler()?;
        let own = self.worker.take().and_then(|worker| worker.upscaler.into_model());
        let model = own.or_else(|| self.model.take()).or(model).ok_or(Failure::NotStarted)?;
        let (size, cancel) = (formats.input_size(), self.cancel.clone());
        let mut upscaler = Upscaler::new(model, &self.manifest, &settings, size, cancel)?;
        let (converters, truncated) =
            match prepare(&mut upscaler, &self.settings, formats, &prompts) {
                Ok(prepared) => prepared,
                Err(failure) => {
                    self.model = Some(upscaler.into_model());
                    return Err(failure);
                }
            };
        self.report_truncated(truncated);
        if let Some(trained) = upscaler.trained_otherwise() {
            self.notices.push(Notice::Untrained { tile: upscaler.tile_size(), trained });
        }
        let device_memory = upscaler.device_memory_estimate();
        let window_evaluations = upscaler.window_evaluations();
        let mut memory = upscaler.memory_estimate();
        let mut notify: Option<Notify> = None;
        if reads_ahead(&self.settings, &upscaler) {
            memory += upscaler.read_ahead_memory();
            let on_frames = self.on_frames.clone();
            notify = Some(Box::new(move || on_frames()));
        }
        let upscaler = ReadAhead::new(upscaler, notify)?;
        let latency_frames = upscaler.latency();
        self.notices.push(Notice::SetUp { latency_frames, memory });
        let mut stats = self.stats.lock();
        stats.upscaler_replaced();
        stats.memory = memory;
        stats.device_memory = device_memory;
        stats.latency_frames = latency_frames as u64;
        stats.window_evaluations = window_evaluations;
        drop(stats);
        self.worker = Some(Worker {
            upscaler,
            converters,
            formats: formats.clone(),
            prompts,
            pace: Pace::default(),
            guidance_separated: false,
            tile_size: None,
        });
        self.numbering.set_framerate(formats.input.fps());
        self.refused = Refused::default();
        self.interrupted = None;
        Ok(formats.latency(latency_frames))
    }

    /// Remembers formats for which setting up was cancelled.
    pub(super) fn interrupt(&mut self, formats: Formats) {
        self.interrupted = Some(formats);
    }

    /// The formats to set up for before the next frame.
    pub(super) fn take_interrupted(&mut self) -> Option<Formats> {
        self.interrupted.take()
    }

    /// The formats of the frames inside.
    pub(super) fn formats(&self) -> Option<Formats> {
        self.worker.as_ref().map(|worker| worker.formats.clone())
    }

    // A frame's way in.

    /// Whether `buffer` begins a new clip, so that the frames inside have to leave first.
    pub(super) fn begins_clip(&mut self, buffer: &gst::BufferRef) -> Result<bool, Failure> {
        if let Some(flow) = self.failed_push.take() {
            return Err(Failure::Downstream(flow));
        }
        // The base class's own notion of a discontinuity lasts until the first output.
        let is_discont = buffer.flags().contains(gst::BufferFlags::DISCONT);
        Ok(is_discont || self.numbering.is_jump(self.stream_time(buffer)))
    }

    /// Reads the pixels of `buffer` and lets go of it.
    pub(super) fn read(&mut self, buffer: gst::Buffer) -> Result<Incoming, Failure> {
        let worker = self.worker.as_mut().ok_or(Failure::NotNegotiated)?;
        let started = Instant::now();
        let frame = worker.converters.reader.read(&buffer).map_err(Failure::Conversion)?;
        let skeleton = metas::skeleton(&buffer).map_err(Failure::Conversion)?;
        self.stats.lock().convert_in += started.elapsed();
        let begins_scene =
            self.scenes.as_mut().is_some_and(|scenes| scenes.is_cut(frame.pixels.view()));
        if begins_scene {
            self.scene_begins(skeleton.pts());
        }
        Ok(Incoming { skeleton, frame, begins_scene })
    }

    /// Gives a frame to the upscaler. Returns its number.
    pub(super) fn push(&mut self, incoming: Incoming) -> Result<u64, Failure> {
        let Incoming { skeleton, frame: RgbFrame { pixels, alpha }, .. } = incoming;
        let number = self.numbering.number(self.stream_time(&skeleton));
        let worker = self.worker.as_mut().ok_or(Failure::NotNegotiated)?;
        worker.upscaler.send_frame(number, pixels)?;
        let events = std::mem::take(&mut self.parked);
        self.held.push_back(HeldBuffer { skeleton, alpha, events });
        self.stats.lock().frames_in += 1;
        Ok(number)
    }

    // The ends of clips and streams.

    /// Whether there are frames inside.
    pub(super) fn has_frames(&self) -> bool {
        !self.held.is_empty()
    }

    /// Begins a drain: [`Self::pull`] then gives all frames inside.
    pub(super) fn flush(&mut self) {
        if let Some(worker) = &mut self.worker {
            worker.upscaler.flush();
        }
    }

    /// Ends a drain. Returns the events that waited behind the last frame.
    pub(super) fn drained(&mut self) -> Vec<gst::Event> {
        self.numbering.cut();
        std::mem::take(&mut self.parked)
    }

    /// Does not compare the next frame with those before it.
    pub(super) fn forget_scene(&mut self) {
        if let Some(scenes) = &mut self.scenes {
            scenes.reset();
        }
    }

    /// Keeps the failure of a push outside of the next buffer's own for that buffer.
    pub(super) fn keep_failure(&mut self, flow: gst::FlowError) {
        self.failed_push = Some(flow);
    }

    /// Forgets all frames inside. Returns the sticky events that waited for them, which stay valid.
    pub(super) fn abandon(&mut self) -> Vec<gst::Event> {
        if let Some(worker) = &mut self.worker {
            worker.upscaler.reset();
        }
        self.numbering.cut();
        self.forget_scene();
        let mut events: Vec<_> = self.held.drain(..).flat_map(|held| held.events).collect();
        events.append(&mut self.parked);
        events.retain(|event| event.is_sticky());
        events
    }

    /// Forgets everything after a flush, like [`Self::abandon`].
    pub(super) fn flushed(&mut self) -> Vec<gst::Event> {
        self.failed_push = None;
        self.stale_flow = true;
        self.segment = None;
        self.numbering.restart();
        self.abandon()
    }

    // Events.

    /// Whether all frames inside have to leave before the serialized `event`.
    pub(super) fn ends_clip(&self, event: &gst::EventRef) -> bool {
        events::ends_clip(event, self.segment.as_ref())
    }

    /// Takes note of a serialized event after the drain. Returns the event, unless it waits for the
    /// next frame.
    pub(super) fn event(&mut self, event: gst::Event) -> Option<gst::Event> {
        use gst::EventView;

        if let Some(number) = events::frame_number(&event) {
            self.numbering.state(number);
            return None;
        }
        match event.view() {
            EventView::Segment(segment) => {
                self.segment = Some(segment.segment().clone());
                self.expect_flow();
                return Some(event);
            }
            EventView::StreamStart(_) => {
                self.numbering.restart();
                self.failure_reported = false;
                self.expect_flow();
                return Some(event);
            }
            _ if events::is_scene_cut(&event) => self.scene_begins(None),
            // Nothing is left inside that the event could wait for.
            _ if self.ends_clip(&event) => return Some(event),
            _ => {}
        }
        // A custom event may be about the next frame even where there are no others inside. The
        // latency tracer, for one, measures the time between its event and the frame behind it.
        let is_custom = event.type_() == gst::EventType::CustomDownstream;
        if is_custom || !self.held.is_empty() || !self.parked.is_empty() {
            self.parked.push(event);
            return None;
        }
        Some(event)
    }

    /// The source pad's flow result, and an EOS that a drain met, are about what came before.
    fn expect_flow(&mut self) {
        self.stale_flow = true;
        self.failed_push.take_if(|flow| *flow == gst::FlowError::Eos);
    }

    fn scene_begins(&mut self, pts: Option<gst::ClockTime>) {
        self.stats.lock().scene_cuts += 1;
        self.notices.push(Notice::SceneCut { pts });
    }

    // Bookkeeping.

    /// Hands over prompts that were changed.
    fn update_prompts(&mut self, prompts: &Prompts) -> Result<(), Failure> {
        let worker = self.worker.as_mut().ok_or(Failure::NotNegotiated)?;
        if *prompts != worker.prompts {
            let truncated = worker.upscaler.set_prompts(prompts)?;
            worker.prompts = prompts.clone();
            self.report_truncated(truncated);
        }
        Ok(())
    }

    fn report_truncated(&mut self, truncated: TruncatedTokens) {
        self.stats.lock().prompt_tokens_cut = (truncated.prompt + truncated.negative) as u64;
        for (property, tokens) in
            [("prompt", truncated.prompt), ("negative-prompt", truncated.negative)]
        {
            if tokens > 0 {
                self.notices.push(Notice::PromptTruncated { property, tokens });
            }
        }
    }

    /// Counts what the upscaler has done, and reports what short memory has led to.
    fn update_stats(&mut self) -> Result<(), Failure> {
        let worker = self.worker.as_mut().ok_or(Failure::NotNegotiated)?;
        let report = worker.upscaler.report();
        let mut stats = self.stats.lock();
        stats.stages = report.stages;
        stats.evaluations = report.evaluations;
        stats.model_busy = report.model_busy;
        stats.device_memory_used = report.device_memory_used.unwrap_or(0);
        if report.guidance_separated && !worker.guidance_separated {
            worker.guidance_separated = true;
            self.notices.push(Notice::GuidanceSeparated);
        }
        if let Some(size) = report.reduced_tile_size
            && worker.tile_size != Some(size)
        {
            worker.tile_size = Some(size);
            self.notices.push(Notice::TilesReduced { size });
        }
        Ok(())
    }

    /// The number of bypassed frames that have left the upscaler.
    fn bypassed(&self) -> u64 {
        self.worker.as_ref().map_or(0, |worker| worker.upscaler.report().stages.bypassed)
    }

    /// Running time of the next frame to leave.
    fn next_running_time(&self) -> Option<gst::ClockTime> {
        let segment = self.segment.as_ref()?.downcast_ref::<gst::ClockTime>()?;
        segment.to_running_time(self.held.front()?.skeleton.pts()?)
    }

    /// Stream time of `buffer`; `None` backwards, where the numbers would fall and frames are
    /// counted instead.
    fn stream_time(&self, buffer: &gst::BufferRef) -> Option<gst::ClockTime> {
        let segment = self.segment.as_ref()?;
        if segment.rate() < 0.0 {
            return None;
        }
        segment.downcast_ref::<gst::ClockTime>()?.to_stream_time(buffer.pts()?)
    }
}
