// SPDX-License-Identifier: MPL-2.0

//! The element's virtual methods, its latency and its messages.
//!
//! The state of the stream is a [`Session`], which the streaming thread takes out of its mutex
//! while it works ([`super::streaming`]). So no lock is held while the model runs or something is
//! pushed, and queries and properties never wait: what they need is kept beside the session.

use std::sync::atomic::Ordering;
use std::sync::{LazyLock, MutexGuard, PoisonError};

use gst::glib;
use gst::subclass::prelude::*;
use gst_base::subclass::BaseTransformMode;
use gst_base::subclass::base_transform::GenerateOutputSuccess;
use gst_base::subclass::prelude::*;
use gst_video::prelude::*;
use gst_video::subclass::prelude::*;

use super::log::CAT;
use super::messages::Failure;
use super::negotiation::Formats;
use super::properties::{PROVIDER_OPTIONS, Starsr, provider_options_spec};
use super::session::Session;
use super::settings::Settings;
use super::stats::ElementStats;
use super::{caps, metas};

/// The scale in caps before the model is loaded, which gives it.
const UNKNOWN_SCALE: u32 = 0;

/// Properties, messages and latency, from any thread.
impl Starsr {
    pub(super) fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_processing_latency(&self, time: u64) {
        if std::mem::replace(&mut self.settings().processing_latency, time) != time {
            self.latency_changed();
        }
    }

    /// What the element adds to the pipeline's latency.
    pub(super) fn own_latency(&self) -> gst::ClockTime {
        let windows = gst::ClockTime::from_nseconds(self.latency.load(Ordering::SeqCst));
        windows.saturating_add(self.settings().processing_latency())
    }

    /// Asks the application to distribute the latency anew.
    pub(super) fn latency_changed(&self) {
        gst::info!(CAT, imp = self, "Latency is {}", self.own_latency());
        let _ = self.obj().post_message(gst::message::Latency::builder().src(&*self.obj()).build());
    }

    fn scale(&self) -> Option<u32> {
        Some(self.scale.load(Ordering::SeqCst)).filter(|scale| *scale != UNKNOWN_SCALE)
    }

    /// Posts the error message of `failure`, if it has one, and returns its flow error.
    pub(super) fn failed(&self, failure: &Failure) -> gst::FlowError {
        if failure.is_silent() {
            gst::debug!(CAT, imp = self, "{failure:?}");
        } else {
            self.post_failure(failure);
        }
        failure.flow()
    }

    pub(super) fn post_failure(&self, failure: &Failure) {
        gst::error!(CAT, imp = self, "{failure:?}");
        self.post_error_message(failure.message());
    }
}

#[glib::object_subclass]
impl ObjectSubclass for Starsr {
    const NAME: &'static str = "GstStarsr";
    type Type = super::Starsr;
    type ParentType = gst_video::VideoFilter;
}

#[glib::derived_properties]
impl ObjectImpl for Starsr {
    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
            let others = [provider_options_spec(), ElementStats::spec()];
            [Starsr::derived_properties(), &others].concat()
        });
        &PROPERTIES
    }

    fn set_property(&self, id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        match pspec.name() {
            PROVIDER_OPTIONS => {
                self.settings().provider_options = value.get().expect("GObject checks the type");
            }
            _ => self.derived_set_property(id, value, pspec),
        }
    }

    fn property(&self, id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        match pspec.name() {
            PROVIDER_OPTIONS => self.settings().provider_options.to_value(),
            "stats" => self.stats.lock().structure().to_value(),
            _ => self.derived_property(id, pspec),
        }
    }

    fn constructed(&self) {
        self.parent_constructed();
        let obj = self.obj();
        // A dropped frame would leave a hole in the window.
        obj.set_qos(false);
        // Otherwise upstream is offered downstream's size untransformed.
        obj.set_prefer_passthrough(false);
    }
}

impl GstObjectImpl for Starsr {}

impl ElementImpl for Starsr {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            gst::subclass::ElementMetadata::with_additional(
                "STAR video super-resolution",
                "Filter/Converter/Video/Scaler",
                "Upscales low-quality video with STAR diffusion models",
                "The starsr developers",
                &[("doc-uri", concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main/docs/element.md"))],
            )
        });
        Some(&*METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
            [("sink", gst::PadDirection::Sink), ("src", gst::PadDirection::Src)]
                .into_iter()
                .filter_map(|(name, direction)| {
                    let caps = caps::template(direction);
                    gst::PadTemplate::new(name, direction, gst::PadPresence::Always, &caps).ok()
                })
                .collect()
        });
        &TEMPLATES
    }

    fn change_state(
        &self,
        transition: gst::StateChange,
    ) -> Result<gst::StateChangeSuccess, gst::StateChangeError> {
        if transition == gst::StateChange::PausedToReady {
            // Before the parent, which waits for the streaming thread.
            self.interrupt.set_stopping();
        }
        self.parent_change_state(transition)
    }
}

impl BaseTransformImpl for Starsr {
    const MODE: BaseTransformMode = BaseTransformMode::NeverInPlace;
    const PASSTHROUGH_ON_SAME_CAPS: bool = false;
    const TRANSFORM_IP_ON_PASSTHROUGH: bool = false;

    fn start(&self) -> Result<(), gst::ErrorMessage> {
        self.interrupt.reset();
        self.latency.store(0, Ordering::SeqCst);
        let settings = self.settings().clone();
        let message = |error| Failure::Engine(error).message();
        let loaded = self.load(&settings).map_err(message)?;
        if loaded.manifest.prompts.is_none() {
            settings.prompts().refuse(&loaded.manifest.name).map_err(message)?;
        }
        *self.stats.lock() = ElementStats::new(&loaded);
        let cancel = self.interrupt.cancel().clone();
        let session = Session::new(settings, loaded, cancel, self.on_frames(), self.stats.clone());
        self.scale.store(session.scale(), Ordering::SeqCst);
        *self.session.lock() = Some(Box::new(session));
        Ok(())
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        self.scale.store(UNKNOWN_SCALE, Ordering::SeqCst);
        gst::info!(CAT, imp = self, "{}", self.stats.lock().structure());
        // Dropped outside the lock: freeing the graphs takes a while.
        let session = self.session.lock().take();
        drop(session);
        Ok(())
    }

    fn transform_caps(
        &self,
        direction: gst::PadDirection,
        caps: &gst::Caps,
        filter: Option<&gst::Caps>,
    ) -> Option<gst::Caps> {
        let other = caps::transform(caps, caps::Map::of(direction), self.scale());
        let other = match filter {
            Some(filter) => filter.intersect_with_mode(&other, gst::CapsIntersectMode::First),
            None => other,
        };
        gst::trace!(CAT, imp = self, "{direction:?} {caps} becomes {other}");
        Some(other)
    }

    fn fixate_caps(
        &self,
        direction: gst::PadDirection,
        caps: &gst::Caps,
        othercaps: gst::Caps,
    ) -> gst::Caps {
        let fixed =
            caps::fixate(caps, &othercaps, caps::Map::of(direction), self.scale().unwrap_or(1));
        gst::debug!(CAT, imp = self, "{caps} goes with {fixed}");
        fixed
    }

    fn set_caps(&self, incaps: &gst::Caps, outcaps: &gst::Caps) -> Result<(), gst::LoggableError> {
        // The base class fails without a message.
        if caps::video_info(outcaps).is_err() {
            self.refuse(incaps, outcaps, &Failure::TooLarge(outcaps.clone()));
        }
        self.parent_set_caps(incaps, outcaps)
    }

    fn submit_input_buffer(
        &self,
        is_discont: bool,
        inbuf: gst::Buffer,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        self.configure_if_interrupted()?;
        if self.try_session(|s| s.begins_clip(&inbuf))? {
            self.end_clip()?;
        }
        self.parent_submit_input_buffer(is_discont, inbuf)
    }

    fn generate_output(&self) -> Result<GenerateOutputSuccess, gst::FlowError> {
        let output = self
            .check_downstream()
            .and_then(|()| self.take_frame())
            .and_then(|()| self.next_buffer());
        match output.inspect_err(|_| self.abandon())? {
            Some(buffer) => Ok(GenerateOutputSuccess::Buffer(buffer)),
            None => Ok(GenerateOutputSuccess::NoOutput),
        }
    }

    fn sink_event(&self, event: gst::Event) -> bool {
        use gst::EventView;

        match event.view() {
            EventView::FlushStart(_) => {
                self.interrupt.set_flushing(true);
                return self.parent_sink_event(event);
            }
            EventView::FlushStop(_) => {
                self.interrupt.set_flushing(false);
                let forwarded = self.parent_sink_event(event);
                // Only now does the source pad take the sticky events that are left.
                if let Ok(events) = self.session(Session::flushed) {
                    self.store_events(&events);
                }
                return forwarded;
            }
            // Leads to set_info, which drains where the caps differ.
            EventView::Caps(view) => {
                let incaps = view.caps_owned();
                // The base class fails without a message.
                if caps::video_info(&incaps).is_err() {
                    self.refuse(
                        &incaps,
                        &gst::Caps::new_empty(),
                        &Failure::ImpossibleCaps(incaps.clone()),
                    );
                }
                return self.parent_sink_event(event);
            }
            _ if !event.is_serialized() => return self.parent_sink_event(event),
            _ => {}
        }
        let Ok(ends_clip) = self.session(|s| s.ends_clip(&event)) else { return false };
        if ends_clip {
            self.end_clip_for_event();
        }
        match self.session(|s| s.event(event)) {
            Ok(Some(event)) => self.parent_sink_event(event),
            Ok(None) => true,
            Err(_) => false,
        }
    }

    fn query(&self, direction: gst::PadDirection, query: &mut gst::QueryRef) -> bool {
        let (gst::PadDirection::Src, gst::QueryViewMut::Latency(latency)) =
            (direction, query.view_mut())
        else {
            return BaseTransformImplExt::parent_query(self, direction, query);
        };
        let mut upstream = gst::query::Latency::new();
        if !self.obj().sink_pad().peer_query(&mut upstream) {
            return false;
        }
        let (live, min, max) = upstream.result();
        let own = self.own_latency();
        gst::debug!(CAT, imp = self, "Upstream's latency is {min}, own {own}");
        latency.set(live, min.saturating_add(own), max.opt_saturating_add(own));
        true
    }

    fn transform_meta<'a>(
        &self,
        outbuf: &mut gst::BufferRef,
        meta: gst::MetaRef<'a, gst::Meta>,
        inbuf: &'a gst::BufferRef,
    ) -> bool {
        let is_kept = self.parent_transform_meta(outbuf, gst::MetaRef::clone(&meta), inbuf);
        if !is_kept && let Ok(Some(formats)) = self.session(|s| s.formats()) {
            metas::scale(&meta, outbuf, &formats.input, &formats.output);
        }
        // True would put an unscaled copy beside a scaled one.
        is_kept
    }
}

impl VideoFilterImpl for Starsr {
    fn set_info(
        &self,
        incaps: &gst::Caps,
        _in_info: &gst_video::VideoInfo,
        outcaps: &gst::Caps,
        _out_info: &gst_video::VideoInfo,
    ) -> Result<(), gst::LoggableError> {
        // A flow result is no matter of negotiation.
        self.end_clip_for_event();
        let refusal = || gst::loggable_error!(CAT, "Caps {} are refused", incaps);
        if self.session(|s| s.refused.contains(incaps, outcaps)) == Ok(true) {
            return Err(refusal());
        }
        gst::info!(CAT, imp = self, "{incaps} becomes {outcaps}");
        // The base class's infos have lost what the caps do not say in full.
        let (Ok(input), Ok(output)) = (caps::video_info(incaps), caps::video_info(outcaps)) else {
            return Err(refusal());
        };
        let formats = Formats { input, output };
        self.configure(formats).map(drop).map_err(|failure| {
            self.refuse(incaps, outcaps, &failure);
            refusal()
        })
    }
}
