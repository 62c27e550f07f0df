// SPDX-License-Identifier: MPL-2.0

//! The element `starsr`: its type, its registration and its documentation for users.
//!
//! A frame's way: `imp` talks to GStreamer and `session` does the work. The session is a plain
//! struct that knows neither pads nor the bus; it takes buffers, events and facts, and returns what
//! `imp` then pushes and posts. The other modules serve these two and know nothing of them.

/**
 * SECTION:element-starsr
 *
 * Upscales low-quality video with STAR (https://arxiv.org/abs/2501.02976), a text-to-video
 * diffusion model adapted to video super-resolution. The model is a bundle, a folder of ONNX graphs
 * that ONNX Runtime runs. The small bundle `nano2`, which is installed with the plugin, runs on any
 * CPU.
 *
 * The element accepts and produces every raw video format that GStreamer can convert, so no
 * `videoconvert` is needed. The output has the input's format unless downstream asks for another, and
 * `scale` times its width and height unless downstream asks for another size. In that case the result
 * is resized and keeps its display aspect ratio. The model does not see alpha; an alpha channel is
 * enlarged beside the picture. Interlaced video is refused; put `deinterlace` in front.
 *
 * ## Files
 *
 * |[
 * gst-launch-1.0 filesrc location=in.mp4 ! decodebin ! starsr ! x264enc ! mp4mux ! filesink location=out.mp4
 * ]|
 *
 * The model looks at a window of `window-length` frames at once, so the first frame leaves after a
 * whole window has arrived. A branch beside the element, such as an audio track, has to hold more
 * than that, or muxer and demuxer wait for each other forever. A plain `queue` holds one second.
 * Give it the latency of the branch with the element, including the encoder's, and one more second:
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
 * The element adds the frames of a window to the pipeline's latency: with `window-mode=blend` at
 * most the window's length. With a variable framerate (0/1) it assumes 25 frames a second. The time
 * that the model needs comes on top, and the hardware has to keep up with the stream. The frames of
 * a window leave in a burst. The `queue` behind the element holds them, so that the next window can
 * run while they are shown. The one in front keeps the source from stalling.
 *
 * With `overload=bypass`, windows that would leave later than the latency allows come out as the
 * plain upscale, so that no frame is late or lost. The element judges by how long the last windows
 * took. Set `processing-latency` to the time that a window may take; it is zero by default. For each
 * bypassed window the element posts an element message `starsr-bypass` with the fields
 * `running-time` (#GstClockTime of its first frame), `frames` (guint64) and `reason` (string:
 * overload, or error with `on-error=bypass`). If a clip ends with a bypassed window, another message
 * follows for the frames that the window kept for cross-fading.
 *
 * |[
 * gst-launch-1.0 v4l2src ! queue ! starsr window-length=4 overload=bypass processing-latency=500000000 ! queue ! autovideosink
 * ]|
 *
 * QoS is off, as a frame dropped inside a window would leave a hole in what the model sees. With
 * `qos=true`, late frames are dropped at the input.
 *
 * ## Scene cuts
 *
 * A window ends where a new scene begins, so that no scene shows in another. The frames before the
 * cut leave at once. Cuts are found by comparing each frame with those before it
 * (`scene-detection`); flashes, fades and dissolves do not count as cuts. An application that knows
 * better sends the serialized custom event `starsr-scene-cut` before the first frame of a scene:
 *
 * |[
 * gst_pad_push_event (pad, gst_event_new_custom (GST_EVENT_CUSTOM_DOWNSTREAM, gst_structure_new_empty ("starsr-scene-cut")));
 * ]|
 *
 * ## Frame numbers
 *
 * An application that processes a file in parts knows the number that a frame has in the whole, even
 * where it does not follow from the time. It sends the serialized custom event `starsr-frame-number`
 * with the field `number` (guint64) before the frame. The event goes no further than the element.
 *
 * ## Progress and logs
 *
 * For each window that the model has restored, the element posts an element message
 * `starsr-progress` with the fields `running-time` (#GstClockTime of its first frame, where known),
 * `evaluations` (guint64, runs of the denoiser), `time` (guint64, nanoseconds that the window
 * took), `frames-in` and
 * `frames-out` (guint64, since the start). The property `stats` holds the totals. `GST_DEBUG=starsr:5`
 * logs what the element does, and `GST_DEBUG=starsr-onnxruntime:5` logs ONNX Runtime's own
 * messages.
 *
 * ## Prompts
 *
 * A bundle with a text condition takes a `prompt`. It can be changed at any time and applies from
 * the next window on. The bundle's suffix follows the prompt, see `prompt-suffix`. Tokens beyond
 * the 77 that the text encoder takes are cut off, with a warning.
 *
 * |[
 * gst-launch-1.0 filesrc location=in.mp4 ! decodebin ! starsr model-path=star-light prompt="a panda plays the guitar" ! autovideosink
 * ]|
 *
 * ## Reproducible output
 *
 * The same input, `seed` and settings give the same output. Each frame has a number: with a
 * constant framerate the number follows from the stream time, otherwise and when playing backwards
 * the frames are counted. A frame's noise depends on its number, and windows start at the multiples
 * of
 * `window-length` minus `window-overlap`. After a seek, or in a part of a file, frames are therefore
 * identical to those of the whole file from the first window that starts within the part (with
 * `wavefront`, after as many further windows as there are evaluations). Where frames are missing,
 * windows keep their length and leave that grid until the next scene or discontinuity.
 *
 * Since: 0.1
 */
use gst::glib;
use gst::prelude::*;

mod caps;
mod frames;
mod imp;
mod interrupt;
mod loading;
mod log;
mod messages;
mod metas;
mod negotiation;
mod numbering;
mod pace;
pub mod planning;
mod properties;
mod session;
mod settings;
mod stats;
mod streaming;

use settings::{
    ColorFix, ExecutionProvider, GuidanceBatching, OnError, Overload, Posterior, Precision,
    PromptSuffix, SamplerMode, WindowMode,
};

glib::wrapper! {
    /// The element `starsr`.
    pub struct Starsr(ObjectSubclass<properties::Starsr>)
        @extends gst_video::VideoFilter, gst_base::BaseTransform, gst::Element, gst::Object;
}

/// Registers the element and the types of its properties with `plugin`.
pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    for type_ in [
        ExecutionProvider::static_type(),
        WindowMode::static_type(),
        SamplerMode::static_type(),
        ColorFix::static_type(),
        PromptSuffix::static_type(),
        GuidanceBatching::static_type(),
        Precision::static_type(),
        Posterior::static_type(),
        Overload::static_type(),
        OnError::static_type(),
    ] {
        type_.mark_as_plugin_api(gst::PluginAPIFlags::empty());
    }
    gst::Element::register(Some(plugin), "starsr", gst::Rank::NONE, Starsr::static_type())
}
