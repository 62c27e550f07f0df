// SPDX-License-Identifier: MPL-2.0

//! The pipeline: file, parsed streams, video through starsr and an encoder, everything into one
//! muxer.

use std::path::Path;
use std::sync::Arc;

use gst::prelude::*;
use gst_video::{VideoFormat, VideoInfo};
use parking_lot::Mutex;

use super::args::Args;
use super::batch::Job;
use super::codec::Codec;
use super::encoding::{Encoded, Encoding, Ending, standard_output};
use super::pictures::Pictures;
use super::preview;
use super::progress::State;
use super::raw;
use super::steady::Steady;
use crate::job::join::Packets;
use crate::media::counts::Counts;
use crate::media::cut::Cut;
use crate::media::elements::{always_pad, make, nowhere, sync, text};
use crate::media::held::{Held, videos};
use crate::media::input;
use crate::media::probe::Probe;
use crate::media::reading::Reading;
use crate::media::streams::{Container, Kind, media_name, passage};
use crate::values::counted;

/// Bytes of upscaled frames that wait for the encoder: part of a window, so that encoder and model
/// work side by side.
const ENCODER_QUEUE_BYTES: u32 = 96 << 20;

/// Where the upscaled video goes.
pub enum Destination<'a> {
    /// Into a file, with the other streams unless the video is wanted alone.
    File { container: Container, path: &'a Path, video_only: bool },
    /// Into a file, beside packets that are the upscaled video.
    Join { container: Container, path: &'a Path, packets: &'a Packets },
    /// Into pictures, whose numbers begin with the given one.
    Pictures(&'a Arc<Pictures>, u64),
    /// As decoded frames, which are not upscaled here.
    Frames(&'a gst::Element),
    /// To standard output, as Y4M, or without a header in this format.
    Pipe(Option<VideoFormat>),
}

/// What is known of the input before its first frame.
pub struct Input {
    /// A name for what the video is encoded as.
    pub codec: String,
    pub size: Option<(i32, i32)>,
    pub rate: Option<gst::Fraction>,
    /// Length, where the container states it.
    pub duration: Option<gst::ClockTime>,
    /// Number of frames, from length and frame rate.
    pub frames: Option<u64>,
    /// What will be missing from the output, a sentence each.
    pub left_out: Vec<String>,
    /// How players have to rotate the frames, in the words of GStreamer's tag.
    pub orientation: Option<String>,
}

/// The pipeline; stopped when dropped.
pub struct Pipeline {
    pub pipeline: gst::Pipeline,
    pub counts: Arc<Counts>,
    reading: Reading,
    /// Where the streams enter the read-ahead queue, the video first. Empty before
    /// [`Self::connect`].
    inlets: Mutex<Vec<gst::Pad>>,
    /// What the source reads, where the source did not open it.
    input: input::Kept,
    encoded: Encoded,
    /// Caps of the frames that leave the decoder, once known.
    decoded: Encoded,
    starsr: Mutex<Option<gst::Element>>,
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        // Going to NULL cancels a running inference; it cannot fail for the elements used here.
        let _ = self.pipeline.set_state(gst::State::Null);
    }
}

impl Pipeline {
    /// Starts reading `input`. The message [`STREAMS_KNOWN`] follows, then [`Self::connect`] may be
    /// called.
    pub fn open(args: &Args, input: &Path, probe: Option<&Probe>) -> Result<Self, String> {
        let pipeline = gst::Pipeline::new();
        let (source, input) = match &args.raw_input {
            Some(raw) => input::raw_source(input, raw, args.framerate, args.cut())?,
            None => input::source(input, probe, args.cut(), args.framerate)?,
        };
        let counts: Arc<Counts> = Arc::default();
        let reading = Reading::new(&pipeline, source, &counts, |parser| {
            gst::element_warning!(
                parser,
                gst::StreamError::Format,
                ("the input starts new streams midway, which are not in the output; split it there")
            );
        })?;
        let this = Self {
            pipeline,
            counts,
            reading,
            inlets: Mutex::default(),
            input,
            encoded: Encoded::default(),
            decoded: Encoded::default(),
            starsr: Mutex::default(),
        };
        // Where it fails, the listener finds the reason on the bus.
        let _ = this.set_state(gst::State::Paused);
        Ok(this)
    }

    /// What may be wrong with video that FFmpeg has decoded to its end.
    pub fn complaint(&self) -> Option<String> {
        self.input.complaint()
    }

    /// Caps of the frames that leave the decoder, once known.
    pub fn decoded(&self) -> Option<gst::Caps> {
        self.decoded.lock().clone()
    }

    /// Whether the video has no transparency, whatever its format.
    pub fn is_opaque(&self) -> bool {
        self.input.is_opaque()
    }

    /// Whether FFmpeg decodes the input.
    pub fn is_converted(&self) -> bool {
        self.input.is_converted()
    }

    /// The upscaled video, once known.
    pub fn encoded(&self) -> Option<VideoInfo> {
        self.encoded.lock().as_deref().and_then(|caps| VideoInfo::from_caps(caps).ok())
    }

    /// The statistics of starsr, once it runs.
    pub fn stats(&self) -> Option<gst::Structure> {
        Some(self.starsr.lock().as_ref()?.property("stats"))
    }

    /// How far the work has come.
    pub fn state(&self) -> State {
        let stats = self.stats();
        let number = |name| stats.as_ref().and_then(|stats| stats.get(name).ok()).unwrap_or(0);
        State {
            taken: self.counts.taken(),
            done: self.counts.done(),
            before: 0,
            position: self.counts.position(),
            evaluations: number("evaluations"),
            window_evaluations: number("window-evaluations"),
        }
    }

    /// Does not wait for ever to know the streams.
    pub fn settle(&self) {
        self.reading.settle(&self.pipeline);
    }

    /// Whether some thread is reading the input.
    pub fn is_reading(&self) -> bool {
        self.reading.is_reading()
    }

    /// Whether the video waits for the input, and not the input for what is behind it.
    pub fn is_starving(&self) -> bool {
        let inlets = self.inlets.lock();
        inlets.first().is_none_or(|inlet| {
            inlet.property::<u32>("current-level-buffers") == 0
                && !inlet.pad_flags().contains(gst::PadFlags::EOS)
        })
    }

    /// Ends all streams of the input here.
    pub fn end(&self) {
        let inlets = self.inlets.lock().clone();
        for inlet in inlets {
            // A stream that has ended refuses another end.
            inlet.send_event(gst::event::Eos::new());
        }
    }

    /// Changes the state; the reason of a failure is on the bus.
    pub fn set_state(&self, state: gst::State) -> Result<(), String> {
        self.pipeline.set_state(state).map(|_| ()).map_err(text)
    }

    /// Connects the streams of the input with `destination` and lets them run.
    pub fn connect(
        &self,
        args: &Args,
        job: &Job,
        destination: &Destination,
    ) -> Result<Input, String> {
        let streams = self.reading.take_streams();
        let (videos, first) = videos(&streams);
        let chosen = match args.video {
            // What FFmpeg decodes is the one.
            Some(number) if !self.input.is_converted() => {
                videos.get(number.wrapping_sub(1)).copied()
            }
            _ => first,
        };
        let video = chosen.ok_or_else(|| match (first, args.video) {
            (Some(_), Some(number)) => format!(
                "{}: has {}, and --video is {number}",
                job.input.display(),
                counted(videos.len() as u64, "video stream")
            ),
            _ => format!("{}: has no video stream", job.input.display()),
        })?;
        let wanted = wanted_streams(args, destination, &streams)?;

        let ending = self.ending(destination)?;
        // What FFmpeg decodes is cut already.
        let cut = args.cut().filter(|_| !self.input.is_converted());
        let mut left_out: Vec<_> = self.input.losses().map(str::to_owned).into_iter().collect();
        for (index, stream) in streams.iter().enumerate() {
            let pad = &stream.pad;
            self.counts.watch_end(pad);
            let target = if index == video
                && let Destination::Join { packets, .. } = destination
            {
                packets.join(&self.pipeline, &ending, pad)?;
                self.nowhere()?
            } else if index == video {
                self.video_branch(args, &ending, cut, stream.orientation().is_some())?
            } else if !wanted[index] {
                self.nowhere()?
            } else {
                if let Some(cut) = cut {
                    cut.clip(pad);
                }
                self.beside(args, destination, &ending, stream, &mut left_out)?
            };
            pad.link(&target).map_err(text)?;
        }

        let mut inlets: Vec<_> = streams.iter().map(|stream| stream.inlet.clone()).collect();
        inlets.swap(0, video);
        *self.inlets.lock() = inlets;
        let video = &streams[video];
        let duration = video.pad.query_duration::<gst::ClockTime>();
        let caps = video.caps();
        let number = |name| caps.structure(0).and_then(|caps| caps.get::<i32>(name).ok());
        let rate = caps.structure(0).and_then(|caps| caps.get::<gst::Fraction>("framerate").ok());
        let input = Input {
            codec: media_name(&caps),
            size: number("width").zip(number("height")),
            rate: rate.filter(|rate| rate.numer() > 0 && rate.denom() > 0),
            duration,
            frames: duration.zip(rate).and_then(|(duration, rate)| frames(duration, rate)),
            left_out,
            orientation: video.orientation(),
        };
        for stream in streams {
            stream.release();
        }
        self.set_state(gst::State::Playing)?;
        Ok(input)
    }

    /// Builds what is behind the encoder, or behind the frames.
    fn ending(&self, destination: &Destination) -> Result<Ending, String> {
        let ending = match destination {
            Destination::File { container, path, .. }
            | Destination::Join { container, path, .. } => {
                let (muxer, sink) = (make(container.muxer())?, make("filesink")?);
                sink.set_property("location", path);
                Ending::Muxer(muxer, sink)
            }
            Destination::Pictures(pictures, number) => {
                Ending::Pictures(make("fdsink")?, (*pictures).clone(), *number)
            }
            Destination::Frames(sink) => Ending::Frames((*sink).clone()),
            Destination::Pipe(format) => {
                let sink = make("fdsink")?;
                sink.set_property("fd", standard_output());
                let mut chain = vec![raw::packer()?];
                if format.is_none() {
                    chain.push(make("y4menc")?);
                }
                chain.push(sink);
                Ending::Pipe(chain, *format)
            }
        };
        let elements = ending.elements();
        let sink = elements.last().ok_or("there is no sink")?;
        sink.set_property("sync", false);
        self.counts.watch_pad(&always_pad(sink, "sink")?);
        self.pipeline.add_many(&elements).map_err(text)?;
        gst::Element::link_many(&elements).map_err(text)?;
        sync(elements.iter().copied().rev())?;
        Ok(ending)
    }

    /// The pad for a stream beside the video.
    fn beside(
        &self,
        args: &Args,
        destination: &Destination,
        ending: &Ending,
        stream: &Held,
        left_out: &mut Vec<String>,
    ) -> Result<gst::Pad, String> {
        let caps = stream.caps();
        let (kind, media) = (Kind::of(&caps), media_name(&caps));
        let (container, video_only) = match destination {
            Destination::File { container, video_only, .. } => (Some(container), *video_only),
            Destination::Join { container, .. } => (Some(container), false),
            _ => (None, false),
        };
        let (Some(container), Ending::Muxer(muxer, _)) = (container, ending) else {
            left_out.push(format!("a stream of {} ({media})", kind.word()));
            return self.nowhere();
        };
        if video_only {
            return self.nowhere();
        }
        match (passage(muxer, &caps), kind) {
            (Some(way), Kind::Audio | Kind::Subtitle) => {
                return way.build(&self.pipeline, muxer, *container);
            }
            (_, Kind::Video) => left_out.push(format!("a further video stream ({media})")),
            (_, Kind::Data) => left_out.push(format!("a data stream ({media})")),
            (None, _) => {
                let media = caps.structure(0).map_or("unknown", |media| media.name().as_str());
                let lacks =
                    format!("{} cannot hold the {} stream {media}", container.name(), kind.word());
                if !args.drop_unsupported {
                    return Err(format!("{lacks}; {}", container.remedy()));
                }
                left_out.push(format!("{lacks}: left out"));
            }
        }
        self.nowhere()
    }

    /// Decoder, starsr and encoder in front of `ending`; gives the pad for the compressed video.
    fn video_branch(
        &self,
        args: &Args,
        ending: &Ending,
        cut: Option<Cut>,
        rotate: bool,
    ) -> Result<gst::Pad, String> {
        let steady = Steady::new(args.deinterlace, self.input.hdr())?;
        let mut chain = steady.elements()?;
        let encoding = if let Ending::Frames(sink) = ending {
            self.pipeline.add_many(&chain).map_err(text)?;
            gst::Element::link_many(chain.iter().chain([sink])).map_err(text)?;
            self.counts.watch_done(&always_pad(sink, "sink")?);
            None
        } else {
            let (restoring, format) = restoring(args, rotate)?;
            self.counts.watch(&restoring[0])?;
            *self.starsr.lock() = Some(restoring[0].clone());
            chain.extend(restoring);
            self.pipeline.add_many(&chain).map_err(text)?;
            gst::Element::link_many(&chain).map_err(text)?;
            let opaque = self.input.is_opaque();
            let encoding = Encoding::new(args, format, ending, opaque, self.encoded.clone())?;
            encoding.watch()?;
            match ending {
                // The default depends on the video, which is unknown before it is decoded.
                Ending::Muxer(..) if args.encoder.is_none() && args.codec.is_none() => {}
                Ending::Muxer(..) => {
                    encoding.plug(&self.pipeline, args.codec.unwrap_or(Codec::H264))?;
                }
                _ => {
                    always_pad(&encoding.format, "src")?.link(&encoding.inlet).map_err(text)?;
                }
            }
            Some(encoding)
        };
        let first = always_pad(&chain[0], "sink")?;
        sync(chain.iter().rev())?;

        let decoder = make("decodebin")?;
        let (colors, decoded) = (self.reading.colors.clone(), self.decoded.clone());
        let pipeline = self.pipeline.downgrade();
        decoder.connect_pad_added(move |decoder, pad| {
            let Some(pipeline) = pipeline.upgrade() else { return };
            if let Some(cut) = cut {
                cut.clip(pad);
            }
            *decoded.lock() = pad.current_caps();
            steady.watch(pad, colors.clone());
            let completed = encoding.as_ref().map_or(Ok(()), |encoding| {
                encoding.complete(&pipeline, pad.current_caps().as_deref())
            });
            let linked = completed.and_then(|()| pad.link(&first).map(|_| ()).map_err(text));
            if let Err(reason) = linked {
                gst::element_error!(
                    decoder,
                    gst::CoreError::Negotiation,
                    ("the decoded video cannot be used: {reason}")
                );
            }
        });
        self.pipeline.add(&decoder).map_err(text)?;
        sync([&decoder])?;
        always_pad(&decoder, "sink")
    }

    /// A pad that swallows a stream.
    fn nowhere(&self) -> Result<gst::Pad, String> {
        nowhere(self.pipeline.upcast_ref())
    }
}

/// The number of frames in `duration`.
pub fn frames(duration: gst::ClockTime, rate: gst::Fraction) -> Option<u64> {
    let (frames, seconds) = (u64::try_from(rate.numer()).ok()?, u64::try_from(rate.denom()).ok()?);
    duration.nseconds().mul_div_round(frames, seconds.checked_mul(1_000_000_000)?)
}

/// Which of the `streams` the options ask for, where they go into the output from here.
fn wanted_streams(
    args: &Args,
    destination: &Destination,
    streams: &[Held],
) -> Result<Vec<bool>, String> {
    let (Destination::File { video_only: false, .. } | Destination::Join { .. }) = destination
    else {
        return Ok(vec![true; streams.len()]);
    };
    let describe = |stream: &Held| (Some(Kind::of(&stream.caps())), stream.language());
    args.choices.select(&streams.iter().map(describe).collect::<Vec<_>>())
}

/// The elements from frames of the input's size to those for an encoder, `starsr` first. The last is
/// the filter for the encoder's format, which is given once more.
pub fn restoring(args: &Args, rotate: bool) -> Result<(Vec<gst::Element>, gst::Element), String> {
    let starsr = make("starsr")?;
    args.configure(&starsr)?;
    if args.preview.is_some() {
        preview::split(&starsr)?;
    }
    let queue = make("queue")?;
    queue.set_property("max-size-bytes", ENCODER_QUEUE_BYTES);
    queue.set_property("max-size-buffers", 0u32);
    queue.set_property("max-size-time", 0u64);
    let format = make("capsfilter")?;
    let mut chain = vec![starsr];
    if args.width.is_some() || args.height.is_some() {
        chain.push(size_filter(args)?);
    }
    chain.extend([queue, make("videoconvert")?]);
    // Not every muxer can store a rotation, so the frames are rotated.
    if rotate {
        let flip = make("videoflip")?;
        flip.set_property_from_str("video-direction", "auto");
        chain.push(flip);
    }
    chain.push(format.clone());
    Ok((chain, format))
}

/// Leaves only the size asked for to what is in front of it.
fn size_filter(args: &Args) -> Result<gst::Element, String> {
    let filter = make("capsfilter")?;
    let mut caps = gst_video::VideoCapsBuilder::new();
    caps = if let Some(width) = args.width { caps.width(width) } else { caps };
    caps = if let Some(height) = args.height { caps.height(height) } else { caps };
    filter.set_property("caps", caps.build());
    Ok(filter)
}
