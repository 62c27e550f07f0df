// SPDX-License-Identifier: MPL-2.0

//! The end of the video's way: from upscaled frames to a muxer, to pictures or to a pipe.

use std::iter;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use gst::prelude::*;
use gst_video::{VideoFormat, VideoInfo};
use parking_lot::Mutex;

use super::args::Args;
use super::codec::Codec;
use super::encoder;
use super::luminance;
use super::pictures::Pictures;
use crate::media::elements::{always_pad, rewrite_caps, sync, text};

/// Ticks per second for video without a constant frame rate; the value that MPEG uses.
const VARIABLE_RATE_TIMESCALE: u32 = 90_000;

/// What caps say of colours.
const COLORS: [&str; 3] = ["colorimetry", "mastering-display-info", "content-light-level"];

/// What the video ends in.
pub enum Ending {
    /// A muxer and its sink.
    Muxer(gst::Element, gst::Element),
    /// A sink for raw frames, the pictures that it feeds, and the number of the first one.
    Pictures(gst::Element, Arc<Pictures>, u64),
    /// What takes packets instead of a muxer: a filter for their format, and a sink.
    Packets([gst::Element; 2]),
    /// A sink for decoded frames.
    Frames(gst::Element),
    /// The way of raw frames to a sink, and their format where one is wanted.
    Pipe(Vec<gst::Element>, Option<VideoFormat>),
}

impl Ending {
    /// The elements, in their order.
    pub fn elements(&self) -> Vec<&gst::Element> {
        match self {
            Self::Muxer(muxer, sink) => vec![muxer, sink],
            Self::Pipe(chain, _) => chain.iter().collect(),
            Self::Packets(chain) => chain.iter().collect(),
            Self::Pictures(sink, ..) | Self::Frames(sink) => vec![sink],
        }
    }

    /// The pad for the video.
    fn inlet(&self) -> Result<gst::Pad, String> {
        match self {
            Self::Muxer(muxer, _) => {
                let template = muxer.pad_template("video_%u");
                let pad = template.and_then(|template| muxer.request_pad(&template, None, None));
                pad.ok_or_else(|| "the muxer takes no video".to_owned())
            }
            Self::Pipe(..) | Self::Pictures(..) | Self::Packets(..) | Self::Frames(..) => {
                let elements = self.elements();
                always_pad(elements.first().ok_or("nothing takes the frames")?, "sink")
            }
        }
    }
}

/// The descriptor of standard output.
pub fn standard_output() -> i32 {
    std::io::stdout().as_raw_fd()
}

/// Caps of the frames that are encoded, once known.
pub type Encoded = Arc<Mutex<Option<gst::Caps>>>;

/// From the filter that holds the encoder's format to the ending.
pub struct Encoding {
    args: Args,
    pub format: gst::Element,
    pub inlet: gst::Pad,
    /// The decoded video, and whether it has transparency.
    decoded: Arc<Mutex<Option<(VideoInfo, bool)>>>,
    is_opaque: bool,
    encoded: Encoded,
    /// The pictures, their sink and their first number.
    pictures: Option<(Arc<Pictures>, gst::Element, u64)>,
    /// The format of frames without a header.
    raw: Option<VideoFormat>,
}

impl Encoding {
    /// Video that `is_opaque` may have a format with transparency all the same.
    pub fn new(
        args: &Args,
        format: gst::Element,
        ending: &Ending,
        is_opaque: bool,
        encoded: Encoded,
    ) -> Result<Self, String> {
        let pictures = match ending {
            Ending::Pictures(sink, pictures, number) => {
                Some((pictures.clone(), sink.clone(), *number))
            }
            _ => None,
        };
        let raw = if let Ending::Pipe(_, format) = ending { *format } else { None };
        let (args, inlet, decoded) = (args.clone(), ending.inlet()?, Arc::default());
        if matches!(ending, Ending::Muxer(..)) && args.encoder.is_none() {
            tag(&inlet, &encoded);
        }
        if let Ending::Muxer(muxer, _) = ending {
            luminance::correct(muxer, &inlet);
        }
        Ok(Self { args, format, inlet, decoded, is_opaque, encoded, pictures, raw })
    }

    /// Sets up the encoder for `decoded` frames, in the format in which they leave the decoder.
    pub fn complete(
        &self,
        pipeline: &gst::Pipeline,
        decoded: Option<&gst::CapsRef>,
    ) -> Result<(), String> {
        let Some(video) = decoded.and_then(|caps| VideoInfo::from_caps(caps).ok()) else {
            // What is no raw video is refused where it is linked.
            return Ok(());
        };
        let codec = self.args.codec.unwrap_or_else(|| Codec::for_video(&video));
        let fixed = self.pictures.as_ref().map(|_| Pictures::format(&video)).or(self.raw);
        let caps = if let Some(format) = fixed {
            Some(gst_video::VideoCapsBuilder::new().format(format).build())
        } else if self.args.encoder.is_none() {
            encoder::format_caps(codec, &video)
        } else {
            None
        };
        if let Some(caps) = caps {
            self.format.set_property("caps", caps);
        }
        if !always_pad(&self.format, "src")?.is_linked() {
            self.plug(pipeline, codec)?;
        }
        let has_alpha = video.has_alpha() && !self.is_opaque;
        *self.decoded.lock() = Some((video, has_alpha));
        Ok(())
    }

    /// Puts the encoder of `codec` between the filter and the muxer.
    pub fn plug(&self, pipeline: &gst::Pipeline, codec: Codec) -> Result<(), String> {
        let encoder = encoder::build(&self.args, codec)?;
        pipeline.add_many(&encoder).map_err(text)?;
        gst::Element::link_many(iter::once(&self.format).chain(&encoder)).map_err(text)?;
        let outlet = encoder.last().ok_or("there is no encoder")?;
        always_pad(outlet, "src")?.link(&self.inlet).map_err(|_| {
            "the output cannot hold the encoder's stream; a parser at its end may help, such as h265parse"
                .to_owned()
        })?;
        sync(encoder.iter().rev())
    }

    /// Notes the caps of the frames for the encoder, says what they lose, and gives a variable
    /// frame rate a fine enough timescale.
    pub fn watch(&self) -> Result<(), String> {
        let (inlet, decoded) = (self.inlet.clone(), self.decoded.clone());
        let (filter, pictures) = (self.format.downgrade(), self.pictures.clone());
        let encoded = self.encoded.clone();
        always_pad(&self.format, "src")?.add_probe(
            gst::PadProbeType::EVENT_DOWNSTREAM,
            move |_, info| {
                if let Some(gst::EventView::Caps(caps)) = info.event().map(|event| event.view())
                    && let Ok(video) = VideoInfo::from_caps(caps.caps())
                    && let Some(filter) = filter.upgrade()
                {
                    *encoded.lock() = Some(caps.caps_owned());
                    set_timescale(&inlet, &video);
                    let Some((decoded, has_alpha)) = decoded.lock().take() else {
                        return gst::PadProbeReturn::Ok;
                    };
                    if let Some((pictures, sink, number)) = &pictures {
                        match pictures.start(&video, has_alpha, *number) {
                            Ok(descriptor) => sink.set_property("fd", descriptor),
                            Err(reason) => {
                                gst::element_error!(
                                    filter,
                                    gst::ResourceError::Failed,
                                    ("{reason}")
                                );
                            }
                        }
                    } else if let Some(losses) = encoder::losses(&decoded, has_alpha, &video) {
                        gst::element_warning!(filter, gst::StreamError::Format, ("{losses}"));
                    }
                }
                gst::PadProbeReturn::Ok
            },
        );
        let Some((pictures, ..)) = &self.pictures else { return Ok(()) };
        if pictures.is_one() {
            refuse_more_than_one(&self.format)?;
        }
        Ok(())
    }
}

/// Gives the muxer's `inlet` a fine enough timescale for `video` without a constant frame rate.
pub fn set_timescale(inlet: &gst::Pad, video: &VideoInfo) {
    if video.fps().numer() == 0 && inlet.has_property("trak-timescale") {
        inlet.set_property("trak-timescale", VARIABLE_RATE_TIMESCALE);
    }
}

/// Lets the muxer's `inlet` know the colours of the frames that are `encoded`: not every encoder passes
/// them on.
pub fn tag(inlet: &gst::Pad, encoded: &Encoded) {
    let encoded = encoded.clone();
    rewrite_caps(inlet, move |caps| {
        let frames = encoded.lock().clone()?;
        let frames = frames.structure(0)?;
        let mut caps = caps.to_owned();
        let structure = caps.make_mut().structure_mut(0)?;
        for name in COLORS {
            if let Ok(value) = frames.value(name) {
                structure.set_value(name, value.clone());
            }
        }
        Some(caps)
    });
}

/// Makes a second frame that leaves `filter` an error.
fn refuse_more_than_one(filter: &gst::Element) -> Result<(), String> {
    let first = Mutex::new(true);
    always_pad(filter, "src")?.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
        if std::mem::replace(&mut *first.lock(), false) {
            return gst::PadProbeReturn::Ok;
        }
        if let Some(filter) = pad.parent_element() {
            gst::element_error!(
                filter,
                gst::StreamError::Format,
                ("has more than one frame: give the output a name with a number, such as frame_%05d.png")
            );
        }
        info.flow_res = Err(gst::FlowError::Error);
        gst::PadProbeReturn::Handled
    });
    Ok(())
}
