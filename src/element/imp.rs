// SPDX-License-Identifier: MPL-2.0

/**
 * SECTION:element-starsr
 *
 * Upscales low-quality video with STAR (https://arxiv.org/abs/2501.02976), a text-to-video diffusion model adapted to
 * video super-resolution. The model is a folder of ONNX graphs, a bundle, run by ONNX Runtime; the small bundle `nano`
 * that is installed with the plugin runs on any CPU.
 *
 * Every raw video format that GStreamer can convert goes in and comes out, no `videoconvert` is needed. The output
 * has the input's format unless downstream asks for another, and `scale` times its width and height unless
 * downstream asks for another size; then the result is resized, keeping the display aspect ratio. The model sees no alpha;
 * where there is one it is enlarged beside the picture. Interlaced video is refused; put `deinterlace` in front.
 *
 * ## Files
 *
 * |[
 * gst-launch-1.0 filesrc location=in.mp4 ! decodebin ! starsr ! x264enc ! mp4mux ! filesink location=out.mp4
 * ]|
 *
 * The model sees a window of `window-length` frames at once, so the first frame comes out after a whole window has
 * gone in. A branch beside the element, an audio track for instance, has to hold more than that, or muxer and
 * demuxer wait for each other forever. A plain `queue` holds one second; give it the latency
 * of the branch with the element, the encoder's included, and a second:
 *
 * |[
 * gst-launch-1.0 filesrc location=in.mp4 ! qtdemux name=d \
 *   d.video_0 ! queue ! decodebin ! starsr ! x264enc ! mp4mux name=m ! filesink location=out.mp4 \
 *   d.audio_0 ! queue max-size-bytes=0 max-size-buffers=0 max-size-time=6000000000 ! m.
 * ]|
 *
 * ## Live
 *
 * |[
 * gst-launch-1.0 v4l2src ! queue ! starsr window-length=4 ! queue ! autovideosink
 * ]|
 *
 * The element adds the frames of a window to the pipeline's latency (with `window-mode=blend` at most the window's
 * length; with a variable framerate, 0/1, it assumes 25 frames a second). The time the model needs comes on top, and
 * the hardware has to keep up with the stream. The frames of a window come out in a burst: the `queue` behind takes them,
 * so that the next window can run while they are shown, and the one in front keeps the source from stalling.
 *
 * With `overload=bypass` windows that would leave later than the latency allows come out as the plain upscale, so that frames are
 * neither late nor lost; whether a window would is judged by what the last ones took. `processing-latency` is the time that a window may
 * take, and without it there is none. For each window left out there is an element message `starsr-bypass` with the fields
 * `running-time` (#GstClockTime of its first frame), `frames` (guint64) and `reason` (string: overload, or error with `on-error=bypass`).
 *
 * |[
 * gst-launch-1.0 v4l2src ! queue ! starsr window-length=4 overload=bypass processing-latency=500000000 ! queue ! autovideosink
 * ]|
 *
 * QoS is switched off, as a frame dropped inside a window would be a hole in what the model sees. With `qos=true` frames
 * that are late are dropped on the way in.
 *
 * ## Scene cuts
 *
 * A window ends where a new scene begins, so that no scene shows in another; the frames before come out without waiting for more.
 * Cuts are found by comparing each frame with those before (`scene-detection`); flashes, fades and dissolves are none. An
 * application that knows better sends the serialized custom event `starsr-scene-cut` before the first frame of a scene:
 *
 * |[
 * gst_pad_push_event (pad, gst_event_new_custom (GST_EVENT_CUSTOM_DOWNSTREAM, gst_structure_new_empty ("starsr-scene-cut")));
 * ]|
 *
 * ## Watching it
 *
 * For each window that the model has restored there is an element message `starsr-progress` with the fields `running-time` (#GstClockTime of
 * its first frame, where it is known), `evaluations` (guint64, runs of the denoiser), `time` (guint64, nanoseconds it took), `frames-in` and
 * `frames-out` (guint64, since the start). The property `stats` counts on; `GST_DEBUG=starsr:5` tells what happens and
 * `GST_DEBUG=starsr-onnxruntime:5` what ONNX Runtime says.
 *
 * ## Prompts
 *
 * A bundle with text condition takes a `prompt`, which may be changed at any time and holds from the next window on. Its
 * suffix is put behind the prompt, see `prompt-suffix`. What exceeds the 77 tokens of the text encoder is cut, with a warning.
 *
 * |[
 * gst-launch-1.0 filesrc location=in.mp4 ! decodebin ! starsr model-path=star-light prompt="a panda plays the guitar" ! autovideosink
 * ]|
 *
 * ## Reproducible output
 *
 * The same input, `seed` and settings give the same output. Each frame has a number, which is taken from its stream time where
 * the framerate is constant and is counted otherwise, also backwards. Its noise depends on it, and windows start at the multiples of
 * `window-length` less `window-overlap`. So after a seek, or in a part of a file, frames come out bit for bit as in the whole, from the
 * first window on that starts within the part (with `wavefront` from as many windows on as there are evaluations). Where frames are
 * missing, windows keep their length and leave that grid until the next scene or discontinuity.
 *
 * Since: 0.1
 */
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use gst::glib;
use gst::subclass::prelude::*;
use gst_base::subclass::BaseTransformMode;
use gst_base::subclass::base_transform::GenerateOutputSuccess;
use gst_base::subclass::prelude::*;
use gst_video::prelude::*;
use gst_video::subclass::prelude::*;
use parking_lot::Mutex;

use super::properties::PROPERTIES;
use super::settings::Settings;
use super::stats::Stats;
use super::stream::Stream;
use super::{caps, loading, metas};
use starsr::cancel::Cancel;
use starsr::error::Error;
use starsr::upscaler::Cut;

pub(super) static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new("starsr", gst::DebugColorFlags::empty(), Some("Video upscaling with STAR"))
});

/// Serialized custom event by which upstream says that a scene begins with the next frame.
const SCENE_CUT: &str = "starsr-scene-cut";

/// Used in caps where the model, which says it, is not loaded.
const UNKNOWN_SCALE: u32 = 0;

/// Why running work should stop. Two reasons, as each ends on its own: a FLUSH_STOP that comes just after the state
/// change must not revoke it.
#[derive(Debug, Default)]
struct Interrupt {
    flushing: bool,
    stopping: bool,
}

/// The element's instance.
#[derive(Default)]
pub struct Starsr {
    pub(super) settings: Mutex<Settings>,
    /// `None` unless started. Only the streaming thread, and start and stop when there is none, hold it, and briefly.
    pub(super) stream: Mutex<Option<Stream>>,
    pub(super) stats: Mutex<Stats>,
    /// Latency of the windows in nanoseconds; apart from the state so that a query never waits.
    pub(super) latency: AtomicU64,
    scale: AtomicU32,
    interrupt: Mutex<Interrupt>,
    pub(super) cancel: Cancel,
}

impl Starsr {
    fn interrupt(&self, change: impl FnOnce(&mut Interrupt)) {
        let mut interrupt = self.interrupt.lock();
        change(&mut interrupt);
        self.cancel.set(interrupt.flushing || interrupt.stopping);
    }

    fn scale(&self) -> Option<u32> {
        match self.scale.load(Ordering::SeqCst) {
            UNKNOWN_SCALE => None,
            scale => Some(scale),
        }
    }

    fn progress(&self, type_: gst::ProgressType, text: &str) {
        let message = gst::message::Progress::builder(type_, "load", text).src(&*self.obj()).build();
        let _ = self.obj().post_message(message);
    }

    /// Tells of tokens that were cut.
    pub(super) fn prompts_set(&self, cut: Cut) {
        self.stats.lock().prompt_tokens_cut = (cut.prompt + cut.negative) as u64;
        for (property, tokens) in [("prompt", cut.prompt), ("negative-prompt", cut.negative)] {
            if tokens > 0 {
                let text =
                    format!("{property} is too long: its last {tokens} tokens were cut; make it shorter");
                gst::warning!(CAT, imp = self, "{text}");
                gst::element_imp_warning!(self, gst::LibraryError::Settings, ("{text}"));
            }
        }
    }

    /// Loads the model and tells the application how it goes.
    pub(super) fn load(&self, settings: &Settings) -> Result<loading::Loaded, Error> {
        let plugin = self.obj().factory().and_then(|f| f.plugin()).and_then(|p| p.filename());
        self.progress(gst::ProgressType::Start, "Loading the model");
        let loaded = loading::load(settings, plugin.as_deref(), &self.cancel);
        match &loaded {
            Ok(loaded) => {
                gst::info!(CAT, imp = self, "Loaded {} on {}", loaded.manifest.name, loaded.provider);
                self.progress(gst::ProgressType::Complete, "Model loaded");
            }
            Err(Error::Cancelled) => self.progress(gst::ProgressType::Canceled, "Loading cancelled"),
            Err(_) => self.progress(gst::ProgressType::Error, "Loading the model failed"),
        }
        loaded
    }
}

#[glib::object_subclass]
impl ObjectSubclass for Starsr {
    const NAME: &'static str = "GstStarsr";
    type Type = super::Starsr;
    type ParentType = gst_video::VideoFilter;
}

impl ObjectImpl for Starsr {
    fn properties() -> &'static [glib::ParamSpec] {
        &PROPERTIES
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        let before = self.own_latency();
        if !self.settings.lock().set(pspec.name(), value) {
            gst::error!(CAT, imp = self, "Property {} cannot be set", pspec.name());
        }
        if self.own_latency() != before {
            self.latency_changed();
        }
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        match self.settings.lock().get(pspec.name()) {
            Some(value) => value,
            None => self.stats.lock().structure().to_value(),
        }
    }

    fn constructed(&self) {
        self.parent_constructed();
        let obj = self.obj();
        // A dropped frame would be a hole in the window.
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
            self.interrupt(|i| i.stopping = true);
        }
        self.parent_change_state(transition)
    }
}

impl BaseTransformImpl for Starsr {
    const MODE: BaseTransformMode = BaseTransformMode::NeverInPlace;
    const PASSTHROUGH_ON_SAME_CAPS: bool = false;
    const TRANSFORM_IP_ON_PASSTHROUGH: bool = false;

    fn start(&self) -> Result<(), gst::ErrorMessage> {
        self.interrupt(|i| *i = Interrupt::default());
        self.latency.store(0, Ordering::SeqCst);
        let settings = self.settings.lock().clone();
        let loaded = self.load(&settings).map_err(|e| loading::message(&e))?;
        if loaded.manifest.prompts.is_none() {
            settings.prompts().refuse(&loaded.manifest.name).map_err(|e| loading::message(&e))?;
        }
        *self.stats.lock() = Stats {
            model: loaded.manifest.name.clone(),
            provider: loaded.provider.clone(),
            device: loaded.device.clone(),
            runtime: loaded.runtime.clone(),
            ..Stats::default()
        };
        let stream = Stream::new(settings, loaded);
        self.scale.store(stream.scale(), Ordering::SeqCst);
        *self.stream.lock() = Some(stream);
        Ok(())
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        self.scale.store(UNKNOWN_SCALE, Ordering::SeqCst);
        gst::info!(CAT, imp = self, "{}", self.stats.lock().structure());
        // Freed outside the lock: closing sessions takes its time.
        let stream = self.stream.lock().take();
        drop(stream);
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

    fn fixate_caps(&self, direction: gst::PadDirection, caps: &gst::Caps, othercaps: gst::Caps) -> gst::Caps {
        let fixed = caps::fixate(caps, &othercaps, caps::Map::of(direction), self.scale().unwrap_or(1));
        gst::debug!(CAT, imp = self, "{caps} goes with {fixed}");
        fixed
    }

    fn set_caps(&self, incaps: &gst::Caps, outcaps: &gst::Caps) -> Result<(), gst::LoggableError> {
        // The base class fails without a word.
        if gst_video::VideoInfo::from_caps(outcaps).is_err() && !self.is_refused(incaps, outcaps) {
            self.refuse(incaps, outcaps);
            let side = |field| outcaps.structure(0).and_then(|s| s.get::<i32>(field).ok()).unwrap_or(0);
            gst::element_imp_error!(
                self,
                gst::CoreError::Negotiation,
                (
                    "Frames of {}x{} would be larger than the 2 GiB that GStreamer allows. Ask for a smaller size behind \
                     starsr, or put a videoscale in front",
                    side("width"),
                    side("height")
                )
            );
        }
        self.parent_set_caps(incaps, outcaps)
    }

    fn submit_input_buffer(
        &self,
        is_discont: bool,
        inbuf: gst::Buffer,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        self.configure_if_interrupted()?;
        self.before_input(&inbuf)?;
        self.parent_submit_input_buffer(is_discont, inbuf)
    }

    fn generate_output(&self) -> Result<GenerateOutputSuccess, gst::FlowError> {
        self.check_downstream()?;
        if let Some(buffer) = self.take_queued_buffer() {
            self.take_frame(buffer)?;
        }
        Ok(match self.next_output()? {
            Some(buffer) => {
                self.output_follows();
                GenerateOutputSuccess::Buffer(buffer)
            }
            None => GenerateOutputSuccess::NoOutput,
        })
    }

    fn sink_event(&self, event: gst::Event) -> bool {
        use gst::EventView;

        match event.view() {
            EventView::FlushStart(_) => {
                self.interrupt(|i| i.flushing = true);
                self.parent_sink_event(event)
            }
            EventView::FlushStop(_) => {
                self.interrupt(|i| i.flushing = false);
                let forwarded = self.parent_sink_event(event);
                // The source pad takes the sticky events that are left only now.
                self.flushed();
                forwarded
            }
            // Leads to set_info, which drains where they differ.
            EventView::Caps(caps) => {
                self.check_caps(&caps.caps_owned());
                self.parent_sink_event(event)
            }
            EventView::Segment(segment) => {
                let segment = segment.segment();
                if !self.is_same_segment(segment) {
                    self.drain_for_event();
                }
                self.segment_started(segment);
                self.parent_sink_event(event)
            }
            EventView::StreamStart(_) => {
                self.drain_for_event();
                self.stream_started();
                self.parent_sink_event(event)
            }
            EventView::Eos(_)
            | EventView::SegmentDone(_)
            | EventView::StreamGroupDone(_)
            | EventView::Gap(_) => {
                self.drain_for_event();
                self.parent_sink_event(event)
            }
            _ if !event.is_serialized() => self.parent_sink_event(event),
            _ => {
                if event.has_name(SCENE_CUT) {
                    gst::debug!(CAT, imp = self, "A scene begins by event");
                    self.stats.lock().scene_cuts += 1;
                    self.drain_for_event();
                }
                // Nothing comes after a still frame for a while.
                if gst_video::StillFrameEvent::parse(&event).is_ok_and(|still| still.in_still) {
                    self.drain_for_event();
                    return self.parent_sink_event(event);
                }
                match self.park(event) {
                    Some(event) => self.parent_sink_event(event),
                    None => true,
                }
            }
        }
    }

    fn query(&self, direction: gst::PadDirection, query: &mut gst::QueryRef) -> bool {
        let gst::QueryViewMut::Latency(latency) = query.view_mut() else {
            return BaseTransformImplExt::parent_query(self, direction, query);
        };
        if direction != gst::PadDirection::Src {
            return BaseTransformImplExt::parent_query(self, direction, query);
        }
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
        let lost = !self.parent_transform_meta(outbuf, gst::MetaRef::clone(&meta), inbuf);
        if let Some((in_info, out_info)) = self.infos().filter(|_| lost) {
            metas::scale(&meta, outbuf, &in_info, &out_info);
        }
        // True would put an unscaled copy beside a scaled one.
        !lost
    }
}

impl VideoFilterImpl for Starsr {
    fn set_info(
        &self,
        incaps: &gst::Caps,
        in_info: &gst_video::VideoInfo,
        outcaps: &gst::Caps,
        out_info: &gst_video::VideoInfo,
    ) -> Result<(), gst::LoggableError> {
        // A flow result is no matter of negotiation; the next buffer gets it.
        self.drain_for_event();
        // Caps that were refused are tried again with each buffer; the application knows by then.
        if !self.is_refused(incaps, outcaps) {
            gst::info!(CAT, imp = self, "{incaps} becomes {outcaps}");
            let Err(message) = self.configure(in_info, out_info) else { return Ok(()) };
            if self.cancel.is_set() {
                // Nothing is wrong with the caps; what comes next goes on with them.
                self.with_stream(|s| s.interrupted = Some((in_info.clone(), out_info.clone())));
                return Ok(());
            }
            self.refuse(incaps, outcaps);
            self.post_error_message(message);
        }
        Err(gst::loggable_error!(CAT, "Caps {} are refused", incaps))
    }
}
