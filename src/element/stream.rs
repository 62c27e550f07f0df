// SPDX-License-Identifier: MPL-2.0

//! The way of the frames through the element: in, to the upscaler, out again; draining and dropping.
//!
//! Everything here runs in the streaming thread. What works on pixels is taken out of the state meanwhile, so that
//! no lock is held while the model runs or something is pushed.

use std::collections::VecDeque;
use std::time::Instant;

use gst::glib;
use gst::subclass::prelude::*;
use gst_base::subclass::base_transform::{InputBuffer, PrepareOutputBufferSuccess};
use gst_base::subclass::prelude::*;
use gst_video::prelude::*;
use ndarray::Array3;

use starsr::bundle::Manifest;
use starsr::geometry::{Interpolation, upscale};
use starsr::error::Error;
use starsr::model::Model;
use starsr::scene::SceneDetector;
use starsr::text::Prompts;
use starsr::upscaler::{Received, Upscaler};

use super::bypass::Load;
use super::frames::{Picture, Reader, Writer};
use super::imp::{CAT, Starsr};
use super::loading::{self, Loaded};
use super::numbering::Numbering;
use super::settings::Settings;

/// A frame inside the upscaler: everything of its buffer but the memory.
struct Pending {
    skeleton: gst::Buffer,
    /// Its alpha, `[1,h,w]`.
    alpha: Option<Array3<f32>>,
    /// Serialized events that came before it and leave before it.
    events: Vec<gst::Event>,
}

/// What works on the pixels of one caps.
pub(super) struct Worker {
    pub(super) upscaler: Upscaler,
    /// What `upscaler` was given last.
    pub(super) prompts: Prompts,
    /// Whether it was reported that memory was too short for a batch of two.
    pub(super) separated: bool,
    /// Size of the tiles that memory has led to, as reported.
    pub(super) tile_size: Option<usize>,
    pub(super) load: Load,
    pub(super) reader: Reader,
    pub(super) writer: Writer,
}

/// State between start and stop.
pub(super) struct Stream {
    /// As they were when the element started.
    pub(super) settings: Settings,
    pub(super) manifest: Manifest,
    /// The model while there is no worker that has it.
    pub(super) model: Option<Box<dyn Model>>,
    /// `None` before caps and while the streaming thread works with it.
    pub(super) worker: Option<Worker>,
    /// Formats of the sink and source pad that `worker` is made for.
    pub(super) infos: Option<(gst_video::VideoInfo, gst_video::VideoInfo)>,
    pending: VecDeque<Pending>,
    /// Events for the next frame to come in.
    parked: Vec<gst::Event>,
    segment: Option<gst::Segment>,
    /// Whether it was reported in this stream that the model fails.
    pub(super) failure_reported: bool,
    pub(super) numbering: Numbering,
    /// `None` where cuts are not looked for.
    scenes: Option<SceneDetector>,
    /// A failed drain's result, for the next buffer.
    drained: Option<gst::FlowError>,
    /// The source pad's last flow result is from before a new segment and says nothing about it.
    stale_flow: bool,
    /// Caps of the sink and source pad whose refusal was reported.
    pub(super) refused: Option<(gst::Caps, gst::Caps)>,
    /// Formats for which setting up was told to stop.
    pub(super) interrupted: Option<(gst_video::VideoInfo, gst_video::VideoInfo)>,
}

impl Stream {
    pub(super) fn new(settings: Settings, loaded: Loaded) -> Self {
        Self {
            scenes: settings.scene_detection().then(SceneDetector::default),
            settings,
            manifest: loaded.manifest,
            model: Some(loaded.model),
            worker: None,
            infos: None,
            pending: VecDeque::new(),
            parked: Vec::new(),
            segment: None,
            failure_reported: false,
            numbering: Numbering::default(),
            drained: None,
            stale_flow: false,
            refused: None,
            interrupted: None,
        }
    }

    /// The factor by which the element enlarges unless another size is negotiated.
    pub(super) fn scale(&self) -> u32 {
        self.settings.scale().unwrap_or(self.manifest.scale.default)
    }

    fn forget_scene(&mut self) {
        if let Some(scenes) = &mut self.scenes {
            scenes.reset();
        }
    }

    /// Running time of the next frame to leave.
    pub(super) fn next_running_time(&self) -> Option<gst::ClockTime> {
        let segment = self.segment.as_ref()?.downcast_ref::<gst::ClockTime>()?;
        segment.to_running_time(self.pending.front()?.skeleton.pts()?)
    }

    fn stream_time(&self, buffer: &gst::BufferRef) -> Option<gst::ClockTime> {
        let segment = self.segment.as_ref()?;
        // Backwards the numbers would fall, so frames are counted.
        if segment.rate() < 0.0 {
            return None;
        }
        segment.downcast_ref::<gst::ClockTime>()?.to_stream_time(buffer.pts()?)
    }
}

/// `segment` without the position, which moves while it is played.
fn without_position(segment: &gst::Segment) -> gst::Segment {
    let mut segment = segment.clone();
    let none = gst::GenericFormattedValue::none_for_format(segment.format());
    segment.set_position(none);
    segment
}

/// Everything of `buffer` but its memory. The copy is deep: a plain one would take the reference along by which a
/// buffer keeps the buffer that owns its memory, and upstream's pool would run dry.
fn skeleton(buffer: &gst::BufferRef) -> Result<gst::Buffer, glib::BoolError> {
    let flags = gst::BufferCopyFlags::FLAGS
        | gst::BufferCopyFlags::TIMESTAMPS
        | gst::BufferCopyFlags::META
        | gst::BufferCopyFlags::DEEP;
    let mut skeleton = gst::Buffer::new();
    buffer.copy_into(skeleton.make_mut(), flags, ..)?;
    Ok(skeleton)
}

impl Starsr {
    pub(super) fn with_stream<T>(&self, f: impl FnOnce(&mut Stream) -> T) -> Option<T> {
        self.stream.lock().as_mut().map(f)
    }

    /// Works with what works on pixels, taken out of the state meanwhile; `None` before caps.
    fn with_worker<T>(&self, f: impl FnOnce(&mut Worker) -> T) -> Option<T> {
        let mut worker = self.with_stream(|s| s.worker.take()).flatten()?;
        let result = f(&mut worker);
        self.with_stream(|s| s.worker = Some(worker));
        Some(result)
    }

    /// Posts `error`, unless it is the wish to stop, and gives the flow error to return.
    fn failed(&self, error: &Error) -> gst::FlowError {
        if matches!(error, Error::Cancelled) {
            gst::debug!(CAT, imp = self, "Cancelled");
            return gst::FlowError::Flushing;
        }
        gst::error!(CAT, imp = self, "{error}");
        self.post_error_message(loading::message(error));
        gst::FlowError::Error
    }

    fn conversion_failed(&self, error: &glib::BoolError) -> gst::FlowError {
        gst::error!(CAT, imp = self, "{error}");
        gst::element_imp_error!(
            self,
            gst::StreamError::Format,
            ("A frame could not be converted: {}", error.message)
        );
        gst::FlowError::Error
    }

    /// Formats of the frames that leave now.
    pub(super) fn infos(&self) -> Option<(gst_video::VideoInfo, gst_video::VideoInfo)> {
        self.with_stream(|s| s.infos.clone()).flatten()
    }

    /// Before a buffer goes in: the failure of an earlier drain, and a drain where `buffer` begins a new clip.
    pub(super) fn before_input(&self, buffer: &gst::BufferRef) -> Result<(), gst::FlowError> {
        if let Some(error) = self.with_stream(|s| s.drained.take()).flatten() {
            return Err(error);
        }
        // The base class's own notion of a discontinuity lasts until the first output.
        let cut = buffer.flags().contains(gst::BufferFlags::DISCONT)
            || self.with_stream(|s| s.numbering.is_jump(s.stream_time(buffer))).unwrap_or(false);
        if cut { self.end_clip() } else { Ok(()) }
    }

    /// Takes the pixels of `buffer` and lets go of it. Where a scene begins with it, the frames of the last one leave first.
    pub(super) fn take_frame(&self, buffer: gst::Buffer) -> Result<(), gst::FlowError> {
        let started = Instant::now();
        let read = self.with_worker(|w| w.reader.read(&buffer).and_then(|p| Ok((p, skeleton(&buffer)?))));
        let (Picture { pixels, alpha }, skeleton) =
            read.ok_or(gst::FlowError::NotNegotiated)?.map_err(|e| {
                let error = self.conversion_failed(&e);
                self.abandon();
                error
            })?;
        self.stats.lock().convert_in += started.elapsed();
        drop(buffer);

        let is_cut = |s: &mut Stream| s.scenes.as_mut().is_some_and(|d| d.is_cut(pixels.view()));
        if self.with_stream(is_cut).unwrap_or(false) {
            gst::debug!(CAT, imp = self, "A scene begins at {:?}", skeleton.pts());
            self.stats.lock().scene_cuts += 1;
            self.drain()?;
        }

        let number = self.with_stream(|s| s.numbering.number(s.stream_time(&skeleton))).unwrap_or(0);
        gst::log!(CAT, imp = self, "Frame {number}, {:?}", skeleton.pts());
        let sent = self.with_worker(|w| w.upscaler.send_frame(number, pixels));
        sent.ok_or(gst::FlowError::NotNegotiated)?.map_err(|e| {
            let error = self.failed(&e);
            self.abandon();
            error
        })?;
        self.with_stream(|s| {
            let events = std::mem::take(&mut s.parked);
            s.pending.push_back(Pending { skeleton, alpha, events });
        });
        self.stats.lock().frames_in += 1;
        Ok(())
    }

    /// Hands over prompts that were changed.
    fn update_prompts(&self, worker: &mut Worker) -> Result<(), Error> {
        let prompts = self.settings.lock().prompts();
        if prompts != worker.prompts {
            self.prompts_set(worker.upscaler.set_prompts(&prompts)?);
            worker.prompts = prompts;
        }
        Ok(())
    }

    /// The next finished frame with all that belongs to it; its events are pushed. `None` where more frames, or a
    /// drain, are needed first.
    pub(super) fn next_output(&self) -> Result<Option<gst::Buffer>, gst::FlowError> {
        let Some(result) = self.with_worker(|worker| self.produce(worker)) else { return Ok(None) };
        if result.is_err() {
            self.abandon();
        }
        result
    }

    fn produce(&self, worker: &mut Worker) -> Result<Option<gst::Buffer>, gst::FlowError> {
        let started = Instant::now();
        self.update_prompts(worker).map_err(|e| self.failed(&e))?;
        let received = self.receive(worker);
        {
            let mut stats = self.stats.lock();
            stats.upscale += started.elapsed();
            stats.stages = worker.upscaler.stats();
            stats.evaluations = worker.upscaler.evaluations();
            stats.model_busy = worker.upscaler.model_busy();
        }
        if worker.upscaler.is_guidance_separated() && !worker.separated {
            worker.separated = true;
            gst::warning!(
                CAT,
                imp = self,
                "Memory is too short for a batch of two; guidance goes on separately"
            );
        }
        if let Some(size) = worker.upscaler.reduced_tile_size()
            && worker.tile_size != Some(size)
        {
            worker.tile_size = Some(size);
            gst::warning!(
                CAT,
                imp = self,
                "Memory is too short; windows are restored in tiles of {size} pixels"
            );
        }
        let pixels = match received {
            Ok(Received::Frame(pixels)) => pixels,
            Ok(Received::NeedMoreFrames | Received::Drained) => return Ok(None),
            Err(e) => return Err(self.failed(&e)),
        };
        let Some(Pending { skeleton, alpha, events }) = self.with_stream(|s| s.pending.pop_front()).flatten()
        else {
            gst::element_imp_error!(self, gst::CoreError::Failed, ("More frames came out than went in"));
            return Err(gst::FlowError::Error);
        };
        self.push_events(events);
        let PrepareOutputBufferSuccess::Buffer(mut buffer) =
            self.parent_prepare_output_buffer(InputBuffer::Readable(&skeleton))?
        else {
            return Err(gst::FlowError::NotSupported);
        };
        let started = Instant::now();
        let scale = worker.upscaler.scale();
        let enlarged = alpha.map(|alpha| upscale(alpha.view(), scale, Interpolation::Bicubic)).transpose();
        let picture = Picture { pixels, alpha: enlarged.map_err(|e| self.failed(&e))? };
        worker.writer.write(&picture, buffer.make_mut()).map_err(|e| self.conversion_failed(&e))?;
        let mut stats = self.stats.lock();
        stats.convert_out += started.elapsed();
        stats.frames_out += 1;
        Ok(Some(buffer))
    }

    fn push_events(&self, events: Vec<gst::Event>) {
        for event in events {
            gst::log!(CAT, imp = self, "Forwarding {event:?}");
            self.obj().src_pad().push_event(event);
        }
    }

    /// What downstream said to the last buffer, where it asks to stop.
    pub(super) fn check_downstream(&self) -> Result<(), gst::FlowError> {
        if self.with_stream(|s| s.stale_flow).unwrap_or(true) {
            return Ok(());
        }
        match self.obj().src_pad().last_flow_result() {
            Err(e @ (gst::FlowError::Eos | gst::FlowError::Error)) => {
                gst::debug!(CAT, imp = self, "Downstream returned {e:?}");
                self.abandon();
                Err(e)
            }
            _ => Ok(()),
        }
    }

    /// From here on the source pad's flow result tells of the present segment.
    pub(super) fn output_follows(&self) {
        self.with_stream(|s| s.stale_flow = false);
    }

    /// Lets out all frames, then the events that waited behind them. What comes next is a new clip.
    fn drain(&self) -> Result<(), gst::FlowError> {
        let result = if self.with_stream(|s| s.pending.is_empty()).unwrap_or(true) {
            Ok(())
        } else {
            gst::debug!(CAT, imp = self, "Draining");
            self.push_pending()
        };
        if result.is_err() {
            self.abandon();
        }
        let parked = self.with_stream(|s| {
            s.numbering.cut();
            std::mem::take(&mut s.parked)
        });
        self.push_events(parked.unwrap_or_default());
        result
    }

    fn push_pending(&self) -> Result<(), gst::FlowError> {
        self.check_downstream()?;
        self.with_stream(|s| {
            if let Some(worker) = &mut s.worker {
                worker.upscaler.flush();
            }
        });
        while let Some(buffer) = self.next_output()? {
            self.output_follows();
            self.obj().src_pad().push(buffer)?;
        }
        let left = self.with_stream(|s| s.pending.len()).unwrap_or(0);
        if left > 0 {
            gst::element_imp_error!(self, gst::CoreError::Failed, ("{left} frames did not come out"));
            return Err(gst::FlowError::Error);
        }
        Ok(())
    }

    /// [`Self::drain`] where what comes is not compared with what was.
    fn end_clip(&self) -> Result<(), gst::FlowError> {
        let result = self.drain();
        self.with_stream(Stream::forget_scene);
        result
    }

    /// [`Self::end_clip`] where no flow result can be returned: a failure is kept for the next buffer.
    pub(super) fn drain_for_event(&self) {
        if let Err(error) = self.end_clip() {
            gst::debug!(CAT, imp = self, "Drain ended with {error:?}");
            self.with_stream(|s| s.drained = Some(error));
        }
    }

    /// Forgets all frames inside. Sticky events that waited for them stay valid and are kept on the source pad.
    fn abandon(&self) {
        let events = self.with_stream(|s| {
            if let Some(worker) = &mut s.worker {
                worker.upscaler.reset();
            }
            s.numbering.cut();
            s.forget_scene();
            let mut events: Vec<_> = s.pending.drain(..).flat_map(|p| p.events).collect();
            events.append(&mut s.parked);
            events
        });
        for event in events.unwrap_or_default().into_iter().filter(|e| e.is_sticky()) {
            let _ = self.obj().src_pad().store_sticky_event(&event);
        }
    }

    /// A flush has ended: nothing inside belongs to what comes.
    pub(super) fn flushed(&self) {
        self.abandon();
        self.with_stream(|s| {
            s.drained = None;
            s.stale_flow = true;
            s.segment = None;
            s.numbering.restart();
        });
    }

    /// A new stream begins; the old one has been drained.
    pub(super) fn stream_started(&self) {
        self.with_stream(|s| {
            s.stale_flow = true;
            s.drained.take_if(|e| *e == gst::FlowError::Eos);
            s.numbering.restart();
            s.failure_reported = false;
        });
    }

    /// Whether `segment` continues the present one.
    pub(super) fn is_same_segment(&self, segment: &gst::Segment) -> bool {
        let same = |s: &Stream| s.segment.as_ref().map(without_position) == Some(without_position(segment));
        self.with_stream(|s| same(s)).unwrap_or(false)
    }

    /// Frames that come belong to `segment`.
    pub(super) fn segment_started(&self, segment: &gst::Segment) {
        self.with_stream(|s| {
            s.stale_flow = true;
            s.drained.take_if(|e| *e == gst::FlowError::Eos);
            s.segment = Some(segment.clone());
        });
    }

    /// Keeps a serialized event for the next frame where others are still inside, or where it may be about that frame; otherwise gives
    /// it back. The latency tracer, for one, takes the time between a frame and the custom event that came before it.
    pub(super) fn park(&self, event: gst::Event) -> Option<gst::Event> {
        let is_custom = event.type_() == gst::EventType::CustomDownstream;
        let mut event = Some(event);
        self.with_stream(|s| {
            if is_custom || !s.pending.is_empty() || !s.parked.is_empty() {
                s.parked.extend(event.take());
            }
        });
        event
    }
}
