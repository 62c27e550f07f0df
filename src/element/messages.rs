// SPDX-License-Identifier: MPL-2.0

//! Messages to the application: why a stream failed, and what happened on the way.

use std::time::Duration;

use gst::glib;
use gst::prelude::*;

use starsr::{Error, Setting, Size};

use super::log::CAT;

/// Why a stream cannot go on.
#[derive(Debug)]
pub(super) enum Failure {
    /// The engine failed, or was cancelled.
    Engine(Error),
    /// A property has a value that does not go with the others.
    Property { property: &'static str, reason: &'static str },
    /// Downstream returned an error or EOS, and reports it itself.
    Downstream(gst::FlowError),
    /// A frame came before caps.
    NotNegotiated,
    /// The element is not started.
    NotStarted,
    /// The caps are of interlaced video.
    Interlaced(gst_video::VideoInterlaceMode),
    /// The caps are not those of any frame.
    ImpossibleCaps(gst::Caps),
    /// The caps of the source pad are those of a frame that is too large.
    TooLarge(gst::Caps),
    /// GStreamer does not convert between these formats.
    NoConverter {
        from: gst_video::VideoFormat,
        to: gst_video::VideoFormat,
        reason: glib::BoolError,
    },
    /// A frame could not be converted.
    Conversion(glib::BoolError),
    /// The element and its upscaler disagree about the frames inside.
    Inconsistent(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Engine(error)
    }
}

impl Failure {
    /// What the streaming thread returns.
    pub(super) fn flow(&self) -> gst::FlowError {
        match self {
            Self::Engine(Error::Cancelled) | Self::NotStarted => gst::FlowError::Flushing,
            Self::Downstream(flow) => *flow,
            Self::NotNegotiated => gst::FlowError::NotNegotiated,
            _ => gst::FlowError::Error,
        }
    }

    /// Whether the stream ends without an error message of this element.
    pub(super) fn is_silent(&self) -> bool {
        matches!(
            self,
            Self::Engine(Error::Cancelled)
                | Self::Downstream(_)
                | Self::NotNegotiated
                | Self::NotStarted
        )
    }

    /// The error message, under the code that fits best.
    pub(super) fn message(&self) -> gst::ErrorMessage {
        match self {
            Self::Engine(error) => engine_message(error),
            Self::Property { property, reason } => {
                gst::error_msg!(gst::LibraryError::Settings, ("{property}: {reason}"))
            }
            Self::Downstream(flow) => {
                gst::error_msg!(gst::CoreError::Pad, ("Downstream returned {flow:?}"))
            }
            Self::NotNegotiated => {
                gst::error_msg!(gst::CoreError::Negotiation, ("A frame came before its caps"))
            }
            Self::NotStarted => {
                gst::error_msg!(gst::CoreError::StateChange, ("starsr is not started"))
            }
            Self::Interlaced(mode) => gst::error_msg!(
                gst::StreamError::WrongType,
                (
                    "starsr needs progressive video, but this is interlaced ({}). Put a deinterlacer in \
                     front: ... ! deinterlace ! starsr ! ...",
                    mode.to_str()
                )
            ),
            Self::ImpossibleCaps(caps) => gst::error_msg!(
                gst::CoreError::Negotiation,
                ("There are no frames of {caps}: they would be larger than the 2 GiB that GStreamer \
                     allows, or one of the values is wrong. Give starsr smaller frames, or put a \
                     capsfilter with the right values in front")
            ),
            Self::TooLarge(caps) => {
                let side = |field| {
                    let side = caps.structure(0).and_then(|s| s.get::<i32>(field).ok());
                    side.map_or("?".into(), |side| side.to_string())
                };
                gst::error_msg!(
                    gst::CoreError::Negotiation,
                    (
                        "Frames of {}x{} would be larger than the 2 GiB that GStreamer allows. Ask for a \
                         smaller size behind starsr, or put a videoscale in front",
                        side("width"),
                        side("height")
                    )
                )
            }
            Self::NoConverter { from, to, reason } => gst::error_msg!(
                gst::CoreError::Negotiation,
                (
                    "No conversion from {from} to {to}: {}. Put a videoconvert in front or behind",
                    reason.message
                )
            ),
            Self::Conversion(reason) => gst::error_msg!(
                gst::StreamError::Format,
                ("A frame could not be converted: {}", reason.message)
            ),
            Self::Inconsistent(what) => gst::error_msg!(gst::CoreError::Failed, ("{what}")),
        }
    }
}

fn engine_message(error: &Error) -> gst::ErrorMessage {
    let text = engine_text(error);
    match error {
        Error::LibraryMissing { .. }
        | Error::LibraryVersion { .. }
        | Error::LibraryInUse { .. }
        | Error::Provider { .. } => gst::error_msg!(gst::LibraryError::Init, ("{text}")),
        Error::Bundle { .. } => gst::error_msg!(gst::ResourceError::OpenRead, ("{text}")),
        Error::Setting { .. } => gst::error_msg!(gst::LibraryError::Settings, ("{text}")),
        Error::Cancelled => gst::error_msg!(gst::ResourceError::Busy, ("{text}")),
        _ => gst::error_msg!(gst::LibraryError::Failed, ("{text}")),
    }
}

/// The engine's error in the element's words: with the name of the property, and with what to do.
fn engine_text(error: &Error) -> String {
    match error {
        Error::LibraryMissing { .. } => format!(
            "{error}. Set the property ort-library or the variable ORT_DYLIB_PATH to libonnxruntime.so, or \
             run `make build`, which puts it beside the plugin"
        ),
        Error::LibraryVersion { .. } => {
            format!("{error}. Install a newer onnxruntime and point ort-library at it")
        }
        Error::LibraryInUse { .. } => {
            format!(
                "{error}. Give every starsr element the same ort-library, or restart the application"
            )
        }
        Error::Provider { provider, .. } if provider.has_library() => {
            format!(
                "{error}. Set provider-library to name its library, or use execution-provider=auto"
            )
        }
        Error::Provider { .. } => format!(
            "{error}. Use execution-provider=auto to fall back to the CPU, point ort-library at a library \
             with this provider, or set LD_LIBRARY_PATH to what it needs"
        ),
        Error::Bundle { field, .. } if field == "folder" => {
            format!(
                "{error}. Set model-path to the folder of a bundle, or leave it unset for nano2"
            )
        }
        Error::Setting { setting, reason } => format!("{}: {reason}", property(*setting)),
        Error::Memory { .. } => format!("{error}: lower window-length, or give it smaller frames"),
        Error::Cancelled => "Loading the model was cancelled".into(),
        error => error.to_string(),
    }
}

/// The name of the property behind a setting of the engine.
fn property(setting: Setting) -> String {
    match setting {
        Setting::CacheDir => "model-cache-dir".into(),
        setting => setting.name().replace('_', "-"),
    }
}

/// What happened in a stream that goes on.
#[derive(Debug)]
pub(super) enum Notice {
    /// The upscaler is ready for new caps.
    SetUp { latency_frames: usize, memory: u64 },
    /// A scene begins with the next frame.
    SceneCut { pts: Option<gst::ClockTime> },
    /// The model has restored a window.
    Restored {
        running_time: Option<gst::ClockTime>,
        evaluations: u64,
        time: Duration,
        frames_in: u64,
        frames_out: u64,
    },
    /// A window comes out as the plain upscale.
    Bypassed { running_time: Option<gst::ClockTime>, frames: usize, reason: &'static str },
    /// The model failed, and its windows are bypassed.
    ModelFailed(Error),
    /// A prompt lost its last tokens.
    PromptTruncated { property: &'static str, tokens: usize },
    /// The memory does not suffice for both halves of a guided prediction at once.
    GuidanceSeparated,
    /// The model sees pictures of another size than it was trained for.
    Untrained { tile: Size, trained: Size },
    /// The memory does not suffice for larger tiles.
    TilesReduced { size: usize },
}

impl Notice {
    /// Logs the notice and posts its message, if it has one, from `element`.
    pub(super) fn report(self, element: &gst::Element) {
        match self {
            Self::SetUp { latency_frames, memory } => {
                let mebibytes = memory >> 20;
                gst::info!(
                    CAT,
                    obj = element,
                    "Takes about {mebibytes} MiB of memory beside the weights"
                );
                gst::debug!(CAT, obj = element, "A frame waits for up to {latency_frames} others");
            }
            Self::SceneCut { pts } => {
                gst::debug!(CAT, obj = element, "A scene begins at {}", pts.display());
            }
            Self::Restored { running_time, evaluations, time, frames_in, frames_out } => {
                let from = running_time.display();
                gst::debug!(
                    CAT,
                    obj = element,
                    "Restored from {from} on: {evaluations} evaluations in {time:?}"
                );
                let structure = gst::Structure::builder("starsr-progress")
                    .field("running-time", running_time)
                    .field("evaluations", evaluations)
                    .field("time", u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
                    .field("frames-in", frames_in)
                    .field("frames-out", frames_out);
                post(element, structure.build());
            }
            Self::Bypassed { running_time, frames, reason } => {
                let from = running_time.display();
                gst::debug!(CAT, obj = element, "Bypassed {frames} frames from {from}: {reason}");
                let structure = gst::Structure::builder("starsr-bypass")
                    .field("running-time", running_time)
                    .field("frames", frames as u64)
                    .field("reason", reason);
                post(element, structure.build());
            }
            Self::ModelFailed(error) => {
                let text = engine_text(&error);
                gst::warning!(CAT, obj = element, "{text}");
                let effect = "windows for which the model fails come out as the plain upscale";
                gst::element_warning!(element, gst::LibraryError::Failed, ("{text}; {effect}"));
            }
            Self::PromptTruncated { property, tokens } => {
                let text = format!(
                    "{property} is too long: its last {tokens} tokens were cut; make it shorter"
                );
                gst::warning!(CAT, obj = element, "{text}");
                gst::element_warning!(element, gst::LibraryError::Settings, ("{text}"));
            }
            Self::GuidanceSeparated => gst::warning!(
                CAT,
                obj = element,
                "Memory is too short for a batch of two; guidance goes on separately"
            ),
            Self::Untrained { tile, trained } => {
                let text = format!(
                    "The bundle was trained for pictures of {trained}, and restores tiles of {tile} \
                     here; leave tile-size unset unless the result is good"
                );
                gst::warning!(CAT, obj = element, "{text}");
                gst::element_warning!(element, gst::LibraryError::Settings, ("{text}"));
            }
            Self::TilesReduced { size } => gst::warning!(
                CAT,
                obj = element,
                "Memory is too short; windows are restored in tiles of {size} pixels"
            ),
        }
    }
}

/// Posts an element message, which only an element without a bus refuses.
fn post(element: &gst::Element, structure: gst::Structure) {
    let _ = element.post_message(gst::message::Element::builder(structure).src(element).build());
}
