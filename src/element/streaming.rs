// SPDX-License-Identifier: MPL-2.0

//! What the streaming thread does with the session: formats and frames go in, buffers and events
//! come out.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use gst::subclass::prelude::*;
use gst_base::subclass::base_transform::{InputBuffer, PrepareOutputBufferSuccess};
use gst_base::subclass::prelude::*;
use gst_video::prelude::*;

use starsr::Error;

use super::loading::{self, Loaded};
use super::log::CAT;
use super::messages::Failure;
use super::negotiation::Formats;
use super::pace::Timing;
use super::properties::Starsr;
use super::session::{Facts, Session};
use super::settings::Settings;

impl Starsr {
    /// Takes the session out of its mutex for `work`, and then posts the notices. What `work`
    /// returns is pushed when the session is back, so that no lock is held and events may come in
    /// again.
    pub(super) fn session<T>(
        &self,
        work: impl FnOnce(&mut Session) -> T,
    ) -> Result<T, gst::FlowError> {
        let mut session = self.session.lock().take().ok_or(gst::FlowError::Flushing)?;
        let result = work(&mut session);
        let notices = session.take_notices();
        *self.session.lock() = Some(session);
        for notice in notices {
            notice.report(self.obj().upcast_ref());
        }
        Ok(result)
    }

    /// [`Self::session`] where `work` may fail, which is reported.
    pub(super) fn try_session<T>(
        &self,
        work: impl FnOnce(&mut Session) -> Result<T, Failure>,
    ) -> Result<T, gst::FlowError> {
        self.session(work)?.map_err(|failure| self.failed(&failure))
    }

    pub(super) fn load(&self, settings: &Settings) -> Result<Loaded, Error> {
        loading::load(settings, self.obj().upcast_ref(), self.interrupt.cancel())
    }

    /// Sets up for new formats; the frames of the old ones have left. Where that is cancelled
    /// nothing is wrong with the formats: they are kept for the next frame, and the result is
    /// `false`.
    pub(super) fn configure(&self, formats: Formats) -> Result<bool, Failure> {
        let Err(failure) = self.set_up(&formats) else { return Ok(true) };
        if !self.interrupt.is_set() {
            return Err(failure);
        }
        self.session(|s| s.interrupt(formats)).map_err(|_| Failure::NotStarted)?;
        Ok(false)
    }

    fn set_up(&self, formats: &Formats) -> Result<(), Failure> {
        formats.check_progressive()?;
        let lost = self.session(|s| s.lost_model()).map_err(|_| Failure::NotStarted)?;
        let model =
            lost.map(|settings| self.load(&settings)).transpose()?.map(|loaded| loaded.model);
        let prompts = self.settings().prompts();
        let configured = self.session(|s| s.configure(formats, prompts, model));
        let latency = configured.map_err(|_| Failure::NotStarted)??.nseconds();
        if self.latency.swap(latency, Ordering::SeqCst) != latency {
            self.latency_changed();
        }
        Ok(())
    }

    /// Sets up for the formats for which that was cancelled.
    pub(super) fn configure_if_interrupted(&self) -> Result<(), gst::FlowError> {
        let Some(formats) = self.session(Session::take_interrupted)? else { return Ok(()) };
        match self.configure(formats) {
            Ok(true) => Ok(()),
            Ok(false) => Err(gst::FlowError::Flushing),
            Err(failure) => {
                self.post_failure(&failure);
                Err(gst::FlowError::NotNegotiated)
            }
        }
    }

    /// Reports that these caps are refused, unless that was reported before.
    pub(super) fn refuse(&self, incaps: &gst::Caps, outcaps: &gst::Caps, failure: &Failure) {
        if self.session(|s| s.refused.insert(incaps, outcaps)) == Ok(true) {
            self.post_failure(failure);
        }
    }

    /// Takes the frame that the base class has queued, if any. Where a scene begins with it, the
    /// frames of the last scene leave first.
    pub(super) fn take_frame(&self) -> Result<(), gst::FlowError> {
        let Some(buffer) = self.take_queued_buffer() else { return Ok(()) };
        let pts = buffer.pts();
        let frame = self.try_session(|s| s.read(buffer))?;
        if frame.begins_scene {
            self.drain()?;
        }
        let number = self.try_session(|s| s.push(frame))?;
        gst::log!(CAT, imp = self, "Frame {number}, {}", pts.display());
        Ok(())
    }

    /// The next finished frame, in a buffer; its events are pushed. `None` where more frames, or a
    /// drain, are needed first.
    pub(super) fn next_buffer(&self) -> Result<Option<gst::Buffer>, gst::FlowError> {
        let timing = if self.session(|s| s.may_bypass())? {
            Timing::of(self.obj().upcast_ref(), self.own_latency())
        } else {
            None
        };
        let facts = Facts { prompts: self.settings().prompts(), timing };
        let Some(outgoing) = self.try_session(|s| s.pull(&facts))? else { return Ok(None) };
        self.push_events(outgoing.events);
        let skeleton = InputBuffer::Readable(&outgoing.skeleton);
        let prepared = self.parent_prepare_output_buffer(skeleton)?;
        let PrepareOutputBufferSuccess::Buffer(mut buffer) = prepared else {
            return Err(gst::FlowError::NotSupported);
        };
        self.try_session(|s| s.write(outgoing.picture, buffer.make_mut()))?;
        Ok(Some(buffer))
    }

    pub(super) fn check_downstream(&self) -> Result<(), gst::FlowError> {
        let flow = self.obj().src_pad().last_flow_result();
        self.try_session(|s| s.check_downstream(flow))
    }

    /// Pushes all frames inside, then the events that waited behind them.
    fn drain(&self) -> Result<(), gst::FlowError> {
        let result = self.push_all();
        if result.is_err() {
            self.abandon();
        }
        self.push_events(self.session(Session::drained)?);
        result
    }

    fn push_all(&self) -> Result<(), gst::FlowError> {
        if !self.session(|s| s.has_frames())? {
            return Ok(());
        }
        gst::debug!(CAT, imp = self, "Draining");
        self.check_downstream()?;
        self.session(Session::flush)?;
        self.push_finished()
    }

    fn push_finished(&self) -> Result<(), gst::FlowError> {
        while let Some(buffer) = self.next_buffer()? {
            self.obj().src_pad().push(buffer)?;
        }
        Ok(())
    }

    /// Pushes the frames that the model has finished while none came in, in a thread of GStreamer's
    /// in which that may take as long as it does.
    fn push_aside(&self) {
        // What the streaming thread holds while it works.
        let sink = self.obj().sink_pad().clone();
        let _lock = sink.stream_lock();
        let result = self.check_downstream().and_then(|()| self.push_finished());
        if let Err(flow) = result {
            gst::debug!(CAT, imp = self, "Pushing finished frames ended with {flow:?}");
            self.abandon();
            // Without a session there is no next buffer.
            let _ = self.session(|s| s.keep_failure(flow));
        }
    }

    /// What starts [`Self::push_aside`], and returns at once.
    pub(super) fn on_frames(&self) -> Arc<dyn Fn() + Send + Sync> {
        let element = self.obj().downgrade();
        Arc::new(move || {
            if let Some(element) = element.upgrade() {
                element.call_async(|element| element.imp().push_aside());
            }
        })
    }

    /// [`Self::drain`] where the next frame is not compared with the last one.
    pub(super) fn end_clip(&self) -> Result<(), gst::FlowError> {
        let result = self.drain();
        self.session(Session::forget_scene)?;
        result
    }

    /// [`Self::end_clip`] where no flow result can be returned: the next buffer gets it.
    pub(super) fn end_clip_for_event(&self) {
        if let Err(flow) = self.end_clip() {
            gst::debug!(CAT, imp = self, "Drain ended with {flow:?}");
            // Without a session there is no next buffer.
            let _ = self.session(|s| s.keep_failure(flow));
        }
    }

    /// Forgets all frames inside.
    pub(super) fn abandon(&self) {
        if let Ok(events) = self.session(Session::abandon) {
            self.store_events(&events);
        }
    }

    fn push_events(&self, events: Vec<gst::Event>) {
        for event in events {
            gst::log!(CAT, imp = self, "Forwarding {event:?}");
            self.obj().src_pad().push_event(event);
        }
    }

    /// Keeps sticky events, whose frames are gone, on the source pad.
    pub(super) fn store_events(&self, events: &[gst::Event]) {
        for event in events {
            let _ = self.obj().src_pad().store_sticky_event(event);
        }
    }
}
