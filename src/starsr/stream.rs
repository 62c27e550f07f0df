// SPDX-License-Identifier: MPL-2.0

//! The way of the frames through the element: in, to the upscaler, out again; draining and dropping.
//!
//! Everything here runs in the streaming thread. What works on pixels is taken out of the state meanwhile, so that
//! no lock is held while the model runs or something is pushed.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Instant;

use gst::glib;
use gst::subclass::prelude::*;
use gst_base::subclass::base_transform::{InputBuffer, PrepareOutputBufferSuccess};
use gst_base::subclass::prelude::*;
use gst_video::prelude::*;

use crate::bundle::Manifest;
use crate::error::Error;
use crate::model::Model;
use crate::text::Prompts;
use crate::upscaler::{Received, Upscaler};

use super::frames::{Reader, Writer};
use super::imp::{CAT, Starsr};
use super::model::{self, Loaded};
use super::numbering::Numbering;
use super::settings::Settings;

/// Assumed where the framerate is variable or unknown (0/1), to turn frames of latency into time.
const ASSUMED_FRAMERATE: (i32, i32) = (25, 1);

/// A frame inside the upscaler: everything of its buffer but the memory.
struct Pending {
    skeleton: gst::Buffer,
    /// Serialized events that came before it and leave before it.
    events: Vec<gst::Event>,
}

/// What works on the pixels of one caps.
struct Worker {
    upscaler: Upscaler,
    /// What `upscaler` was given last.
    prompts: Prompts,
    /// Whether it was reported that memory was too short for a batch of two.
    separated: bool,
    reader: Reader,
    writer: Writer,
}

/// State between start and stop.
pub(super) struct Stream {
    /// As they were when the element started.
    settings: Settings,
    manifest: Manifest,
    /// The model while there is no worker that has it.
    model: Option<Box<dyn Model>>,
    /// `None` before caps and while the streaming thread works with it.
    worker: Option<Worker>,
    /// Formats of the sink and source pad that `worker` is made for.
    infos: Option<(gst_video::VideoInfo, gst_video::VideoInfo)>,
    pending: VecDeque<Pending>,
    /// Events for the next frame to come in.
    parked: Vec<gst::Event>,
    segment: Option<gst::Segment>,
    numbering: Numbering,
    /// A failed drain's result, for the next buffer.
    drained: Option<gst::FlowError>,
    /// The source pad's last flow result is from before a new segment and says nothing about it.
    stale_flow: bool,
    /// Caps of the sink and source pad whose refusal was reported.
    refused: Option<(gst::Caps, gst::Caps)>,
}

impl Stream {
    pub(super) fn new(settings: Settings, loaded: Loaded) -> Self {
        Self {
            settings,
            manifest: loaded.manifest,
            model: Some(loaded.model),
            worker: None,
            infos: None,
            pending: VecDeque::new(),
            parked: Vec::new(),
            segment: None,
            numbering: Numbering::default(),
            drained: None,
            stale_flow: false,
            refused: None,
        }
    }

    /// The factor by which the element enlarges unless another size is negotiated.
    pub(super) fn scale(&self) -> u32 {
        self.settings.scale().unwrap_or(self.manifest.scale.default)
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
    fn with_stream<T>(&self, f: impl FnOnce(&mut Stream) -> T) -> Option<T> {
        self.stream.lock().as_mut().map(f)
    }

    /// Posts `error`, unless it is the wish to stop, and gives the flow error to return.
    fn failed(&self, error: &Error) -> gst::FlowError {
        if matches!(error, Error::Cancelled) {
            gst::debug!(CAT, imp = self, "Cancelled");
            return gst::FlowError::Flushing;
        }
        gst::error!(CAT, imp = self, "{error}");
        self.post_error_message(model::message(error));
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

    /// Sets up for new caps. Frames of the old ones have left.
    pub(super) fn configure(
        &self,
        in_info: &gst_video::VideoInfo,
        out_info: &gst_video::VideoInfo,
    ) -> Result<(), gst::ErrorMessage> {
        if in_info.is_interlaced() {
            return Err(gst::error_msg!(
                gst::StreamError::WrongType,
                (
                    "starsr needs progressive video, but this is interlaced ({}). Put a deinterlacer in front: \
                     ... ! deinterlace ! starsr ! ...",
                    in_info.interlace_mode().to_str()
                )
            ));
        }
        let parts = self.with_stream(|s| {
            let model = s.worker.take().map(|w| w.upscaler.into_model()).or_else(|| s.model.take());
            (model, s.manifest.clone(), s.settings.clone())
        });
        let Some((model, manifest, settings)) = parts else {
            return Err(gst::error_msg!(gst::CoreError::StateChange, ("starsr is not started")));
        };
        // A refused setting has taken the model with it.
        let model = match model {
            Some(model) => model,
            None => self.load(&settings).map_err(|e| model::message(&e))?.model,
        };
        let size = (in_info.width() as usize, in_info.height() as usize);
        let prompts = self.settings.lock().prompts();
        let upscaler = settings.upscaler().and_then(|asked| {
            let cancel = self.cancel.clone();
            let mut upscaler = Upscaler::new(model, &manifest, &asked, size.0, size.1, cancel)?;
            self.prompts_set(upscaler.set_prompts(&prompts)?);
            Ok(upscaler)
        });
        let upscaler = upscaler.map_err(|e| model::message(&e))?;

        let threads = settings.threads();
        let reader = Reader::new(in_info, threads);
        let writer = Writer::new(out_info, upscaler.output_size(), threads);
        let (reader, writer) = match (reader, writer) {
            (Ok(reader), Ok(writer)) => (reader, writer),
            (Err(e), _) | (_, Err(e)) => {
                self.with_stream(|s| s.model = Some(upscaler.into_model()));
                return Err(gst::error_msg!(
                    gst::CoreError::Negotiation,
                    (
                        "No conversion from {} to {}: {}. Put a videoconvert in front or behind",
                        in_info.format(),
                        out_info.format(),
                        e.message
                    )
                ));
            }
        };
        let latency = upscaler.latency();
        self.with_stream(|s| {
            s.worker = Some(Worker { upscaler, prompts, separated: false, reader, writer });
            s.infos = Some((in_info.clone(), out_info.clone()));
            s.numbering.set_framerate(in_info.fps());
            s.refused = None;
        });
        self.stats.lock().upscaler_replaced();
        self.set_latency(latency, in_info.fps());
        Ok(())
    }

    /// Whether these caps were refused last.
    pub(super) fn is_refused(&self, incaps: &gst::Caps, outcaps: &gst::Caps) -> bool {
        self.with_stream(|s| s.refused.as_ref().is_some_and(|(i, o)| i == incaps && o == outcaps))
            .unwrap_or(false)
    }

    /// Remembers that these caps are refused.
    pub(super) fn refuse(&self, incaps: &gst::Caps, outcaps: &gst::Caps) {
        self.with_stream(|s| s.refused = Some((incaps.clone(), outcaps.clone())));
    }

    fn set_latency(&self, frames: usize, fps: gst::Fraction) {
        let fps = if fps.numer() > 0 { fps } else { gst::Fraction::from(ASSUMED_FRAMERATE) };
        let (num, den) = (fps.numer().max(1) as u64, fps.denom().max(1) as u64);
        let time = (frames as u64).checked_mul(den).and_then(|n| gst::ClockTime::SECOND.mul_div_ceil(n, num));
        let nanoseconds = time.unwrap_or(gst::ClockTime::ZERO).nseconds();
        self.stats.lock().latency_frames = frames as u64;
        if self.latency.swap(nanoseconds, Ordering::SeqCst) != nanoseconds {
            gst::info!(
                CAT,
                imp = self,
                "Latency is {frames} frames, {}",
                gst::ClockTime::from_nseconds(nanoseconds)
            );
            let _ = self.obj().post_message(gst::message::Latency::builder().src(&*self.obj()).build());
        }
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
        if cut { self.drain() } else { Ok(()) }
    }

    /// Takes the pixels of `buffer` and lets go of it.
    pub(super) fn take_frame(&self, buffer: gst::Buffer) -> Result<(), gst::FlowError> {
        let Some(mut worker) = self.with_stream(|s| s.worker.take()).flatten() else {
            return Err(gst::FlowError::NotNegotiated);
        };
        let started = Instant::now();
        let read = worker.reader.read(&buffer).and_then(|pixels| Ok((pixels, skeleton(&buffer)?)));
        self.stats.lock().convert_in += started.elapsed();
        let result = match read {
            Ok((pixels, skeleton)) => {
                let number = self.with_stream(|s| s.numbering.number(s.stream_time(&buffer))).unwrap_or(0);
                gst::log!(CAT, imp = self, "Frame {number}, {:?}", buffer.pts());
                drop(buffer);
                worker.upscaler.send_frame(number, pixels).map(|()| skeleton).map_err(|e| self.failed(&e))
            }
            Err(e) => Err(self.conversion_failed(&e)),
        };
        let result = self.with_stream(|s| {
            s.worker = Some(worker);
            result.map(|skeleton| {
                let events = std::mem::take(&mut s.parked);
                s.pending.push_back(Pending { skeleton, events });
            })
        });
        match result {
            Some(Ok(())) => {
                self.stats.lock().frames_in += 1;
                Ok(())
            }
            Some(Err(e)) => {
                self.abandon();
                Err(e)
            }
            None => Err(gst::FlowError::Flushing),
        }
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
        let Some(mut worker) = self.with_stream(|s| s.worker.take()).flatten() else {
            return Ok(None);
        };
        let result = self.produce(&mut worker);
        self.with_stream(|s| s.worker = Some(worker));
        if result.is_err() {
            self.abandon();
        }
        result
    }

    fn produce(&self, worker: &mut Worker) -> Result<Option<gst::Buffer>, gst::FlowError> {
        let started = Instant::now();
        self.update_prompts(worker).map_err(|e| self.failed(&e))?;
        let received = worker.upscaler.receive_frame();
        {
            let mut stats = self.stats.lock();
            stats.upscale += started.elapsed();
            stats.stages = worker.upscaler.stats();
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
        let pixels = match received {
            Ok(Received::Frame(pixels)) => pixels,
            Ok(Received::NeedMoreFrames | Received::Drained) => return Ok(None),
            Err(e) => return Err(self.failed(&e)),
        };
        let Some(Pending { skeleton, events }) = self.with_stream(|s| s.pending.pop_front()).flatten() else {
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
        worker.writer.write(&pixels, buffer.make_mut()).map_err(|e| self.conversion_failed(&e))?;
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

    /// [`Self::drain`] where no flow result can be returned: a failure is kept for the next buffer.
    pub(super) fn drain_for_event(&self) {
        if let Err(error) = self.drain() {
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

    /// Keeps a serialized event for the next frame where others are still inside; otherwise gives it back.
    pub(super) fn park(&self, event: gst::Event) -> Option<gst::Event> {
        let mut event = Some(event);
        self.with_stream(|s| {
            if !s.pending.is_empty() || !s.parked.is_empty() {
                s.parked.extend(event.take());
            }
        });
        event
    }
}
