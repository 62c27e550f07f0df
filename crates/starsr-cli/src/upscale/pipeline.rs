// SPDX-License-Identifier: MPL-2.0

//! The pipeline: file, parsed streams, video through starsr and an encoder, everything into one
//! muxer.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use gst::prelude::*;
use parking_lot::Mutex;

use super::args::{Args, set_property};
use super::elements::make;
use super::streams::{Container, Kind, always_pad, passage};

/// Name of the message posted once all streams of the input are known.
pub const STREAMS_KNOWN: &str = "streams-known";
/// The most bytes of one compressed stream that are read ahead.
const READ_AHEAD_BYTES: u32 = 128 << 20;
/// Buffers of one stream read ahead while no other stream starves.
const READ_AHEAD_BUFFERS: u32 = 32;
/// Bytes of upscaled frames that wait for the encoder: part of a window, so that encoder and model
/// work side by side.
const ENCODER_QUEUE_BYTES: u32 = 96 << 20;
/// Ticks per second for video without a constant frame rate; the value that MPEG uses.
const VARIABLE_RATE_TIMESCALE: u32 = 90_000;

/// The frames that have passed starsr.
#[derive(Default)]
pub struct Counts {
    taken: AtomicU64,
    done: AtomicU64,
    /// Times of the first frame and of the last finished one, in ns plus one; 0 before that frame.
    first: AtomicU64,
    last: AtomicU64,
}

impl Counts {
    /// Frames that went in.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Frames that came out.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Time between the first frame and the last finished one.
    pub fn position(&self) -> Option<gst::ClockTime> {
        let (first, last) = (self.first.load(Ordering::Relaxed), self.last.load(Ordering::Relaxed));
        (first > 0 && last > 0).then(|| gst::ClockTime::from_nseconds(last.saturating_sub(first)))
    }

    fn watch(self: &Arc<Self>, starsr: &gst::Element) -> Result<(), String> {
        let time = |info: &gst::PadProbeInfo| {
            info.buffer()
                .and_then(|buffer| buffer.pts())
                .map_or(0, |pts| pts.nseconds().saturating_add(1))
        };
        let counts = self.clone();
        always_pad(starsr, "sink")?.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            counts.taken.fetch_add(1, Ordering::Relaxed);
            let _ =
                counts.first.compare_exchange(0, time(info), Ordering::Relaxed, Ordering::Relaxed);
            gst::PadProbeReturn::Ok
        });
        let counts = self.clone();
        always_pad(starsr, "src")?.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            counts.done.fetch_add(1, Ordering::Relaxed);
            counts.last.store(time(info), Ordering::Relaxed);
            gst::PadProbeReturn::Ok
        });
        Ok(())
    }
}

/// What is known of the input before its first frame.
pub struct Input {
    /// Length, where the container states it.
    pub duration: Option<gst::ClockTime>,
    /// Number of frames, from length and frame rate.
    pub frames: Option<u64>,
    /// What will be missing from the output, a sentence each.
    pub left_out: Vec<String>,
}

/// A stream at the end of the read-ahead queue, held back until it is linked.
struct Stream {
    pad: gst::Pad,
    caps: gst::Caps,
    block: gst::PadProbeId,
}

impl Stream {
    /// Leads `pad` of the parser into `queue` and holds it back at the other end. The first data to
    /// get there sets
    /// `complete`: parsebin exposes all pads before it lets data through.
    fn hold(
        pad: &gst::Pad,
        queue: &gst::Element,
        complete: &Arc<AtomicBool>,
    ) -> Result<Self, String> {
        let inlet = queue.request_pad_simple("sink_%u").ok_or("multiqueue refuses another pad")?;
        let outlet = always_pad(queue, &inlet.name().replace("sink", "src"))?;
        let (complete, queue) = (complete.clone(), queue.downgrade());
        let block = outlet
            .add_probe(gst::PadProbeType::BLOCK_DOWNSTREAM, move |_, _| {
                if !complete.swap(true, Ordering::SeqCst)
                    && let Some(queue) = queue.upgrade()
                {
                    let known = gst::Structure::new_empty(STREAMS_KNOWN);
                    // It fails where the pipeline is being stopped, and then nobody waits for it.
                    let _ = queue.post_message(
                        gst::message::Application::builder(known).src(&queue).build(),
                    );
                }
                gst::PadProbeReturn::Ok
            })
            .ok_or("a pad cannot be held back")?;
        pad.link(&inlet).map_err(text)?;
        let caps = pad
            .current_caps()
            .or_else(|| pad.stream().and_then(|stream| stream.caps()))
            .unwrap_or_else(|| pad.query_caps(None));
        Ok(Self { pad: outlet, caps, block })
    }
}

/// The pipeline; stopped when dropped.
pub struct Pipeline {
    pub pipeline: gst::Pipeline,
    parser: gst::Element,
    pub counts: Arc<Counts>,
    streams: Arc<Mutex<Vec<Stream>>>,
    size: Arc<Mutex<Option<(u32, u32)>>>,
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
    pub fn open(input: &Path) -> Result<Self, String> {
        let pipeline = gst::Pipeline::new();
        let (source, parser) = (make("filesrc")?, make("parsebin")?);
        source.set_property("location", input);
        // A multiqueue lets a stream grow while another one starves. So neither the frames that
        // starsr and the encoder hold back nor badly interleaved files can block it; bytes are its
        // only hard limit.
        let queue = make("multiqueue")?;
        queue.set_property("max-size-bytes", READ_AHEAD_BYTES);
        queue.set_property("max-size-time", 0u64);
        queue.set_property("max-size-buffers", READ_AHEAD_BUFFERS);
        pipeline.add_many([&source, &parser, &queue]).map_err(text)?;
        source.link(&parser).map_err(text)?;

        let streams = Arc::new(Mutex::new(Vec::new()));
        let complete = Arc::new(AtomicBool::new(false));
        parser.connect_pad_added({
            let streams = streams.clone();
            move |parser, pad| {
                let stream = if complete.load(Ordering::SeqCst) {
                    Err("the input starts new streams midway; split it there and upscale the parts"
                        .to_owned())
                } else {
                    Stream::hold(pad, &queue, &complete)
                };
                match stream {
                    Ok(stream) => streams.lock().push(stream),
                    Err(reason) => {
                        gst::element_error!(parser, gst::StreamError::Format, ("{reason}"));
                    }
                }
            }
        });
        let this = Self { pipeline, parser, counts: Arc::default(), streams, size: Arc::default() };
        this.set_state(gst::State::Paused)?;
        Ok(this)
    }

    /// Size of the upscaled frames, once known.
    pub fn size(&self) -> Option<(u32, u32)> {
        *self.size.lock()
    }

    /// Whether some thread is reading the input. parsebin drops a demuxer's error that comes while
    /// the demuxer is still starting; then this is the only sign of it.
    pub fn is_reading(&self) -> bool {
        let Some(parser) = self.parser.downcast_ref::<gst::Bin>() else { return true };
        let pads =
            parser.iterate_recurse().into_iter().flatten().flat_map(|element| element.pads());
        pads.into_iter().any(|pad| pad.task_state() == gst::TaskState::Started)
    }

    /// Changes the state; the reason of a failure is on the bus.
    pub fn set_state(&self, state: gst::State) -> Result<(), String> {
        self.pipeline.set_state(state).map(|_| ()).map_err(text)
    }

    /// Connects the streams of the input with `part`, the file to write, and lets them run.
    pub fn connect(&self, args: &Args, container: Container, part: &Path) -> Result<Input, String> {
        let streams = std::mem::take(&mut *self.streams.lock());
        let video = streams
            .iter()
            .position(|stream| Kind::of(&stream.caps) == Kind::Video)
            .ok_or_else(|| format!("{}: has no video stream", args.input.display()))?;

        let (muxer, sink) = (make(container.muxer())?, make("filesink")?);
        sink.set_property("location", part);
        sink.set_property("sync", false);
        self.pipeline.add_many([&muxer, &sink]).map_err(text)?;
        muxer.link(&sink).map_err(text)?;
        sync([&sink, &muxer])?;

        let mut left_out = Vec::new();
        for (index, Stream { pad, caps, .. }) in streams.iter().enumerate() {
            let target = if index == video {
                self.video_branch(args, &muxer, is_rotated(pad))?
            } else {
                let kind = Kind::of(caps);
                match passage(&muxer, caps) {
                    Some(way) if matches!(kind, Kind::Audio | Kind::Subtitle) => {
                        way.build(&self.pipeline, &muxer, container)?
                    }
                    _ => {
                        let media = caps
                            .structure(0)
                            .map_or("unknown", |structure| structure.name().as_str());
                        let lacks = format!(
                            "{} cannot hold the {} stream {media}",
                            container.name(),
                            kind.word()
                        );
                        match kind {
                            Kind::Video => {
                                left_out.push(format!("a further video stream ({media})"));
                            }
                            Kind::Data => left_out.push(format!("a data stream ({media})")),
                            _ if args.drop_unsupported => {
                                left_out.push(format!("{lacks}: left out"));
                            }
                            _ => return Err(format!("{lacks}; {}", remedy(container))),
                        }
                        self.nowhere()?
                    }
                }
            };
            pad.link(&target).map_err(text)?;
        }

        let video = &streams[video];
        let duration = video.pad.query_duration::<gst::ClockTime>();
        let rate = video
            .caps
            .structure(0)
            .and_then(|structure| structure.get::<gst::Fraction>("framerate").ok());
        let frames = duration
            .zip(rate)
            .filter(|(_, rate)| rate.numer() > 0 && rate.denom() > 0)
            .and_then(|(duration, rate)| {
                duration
                    .nseconds()
                    .mul_div_round(rate.numer() as u64, rate.denom() as u64 * 1_000_000_000)
            });
        for stream in streams {
            stream.pad.remove_probe(stream.block);
        }
        self.set_state(gst::State::Playing)?;
        Ok(Input { duration, frames, left_out })
    }

    /// Decoder, starsr and encoder into `muxer`; gives the pad for the compressed video.
    fn video_branch(
        &self,
        args: &Args,
        muxer: &gst::Element,
        rotate: bool,
    ) -> Result<gst::Pad, String> {
        let starsr = make("starsr")?;
        args.configure(&starsr)?;
        self.counts.watch(&starsr)?;
        let queue = make("queue")?;
        queue.set_property("max-size-bytes", ENCODER_QUEUE_BYTES);
        queue.set_property("max-size-buffers", 0u32);
        queue.set_property("max-size-time", 0u64);
        let format = make("capsfilter")?;
        let mut chain = Vec::new();
        if args.deinterlace {
            chain.extend([make("videoconvert")?, make("deinterlace")?]);
        }
        chain.extend([starsr.clone(), queue, make("videoconvert")?]);
        // Not every muxer can store a rotation, so the frames are rotated.
        if rotate {
            let flip = make("videoflip")?;
            flip.set_property_from_str("video-direction", "auto");
            chain.push(flip);
        }
        chain.extend([format.clone(), encoder(args)?]);
        self.pipeline.add_many(&chain).map_err(text)?;
        gst::Element::link_many(&chain).map_err(text)?;
        let (first, last) = (chain[0].clone(), chain[chain.len() - 1].clone());
        let outlet = always_pad(&last, "src")?;
        let template = muxer.pad_template("video_%u").ok_or("the muxer takes no video")?;
        let inlet = muxer.request_pad(&template, None, None).ok_or("the muxer takes no video")?;
        outlet.link(&inlet).map_err(|_| {
            "the output cannot hold the encoder's stream; a parser at its end may help, such as h265parse"
                .to_owned()
        })?;
        self.watch_caps(&starsr, inlet)?;
        sync(chain.iter().rev())?;

        let decoder = make("decodebin")?;
        let own_format = args.encoder.is_some();
        decoder.connect_pad_added(move |decoder, pad| {
            if !own_format
                && let Some(caps) = pad.current_caps().and_then(|caps| encoder_caps(&caps))
            {
                format.set_property("caps", caps);
            }
            let linked = always_pad(&first, "sink").and_then(|sink| pad.link(&sink).map_err(text));
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

    /// Notes the size of the upscaled frames, and gives a variable frame rate a fine enough
    /// timescale.
    fn watch_caps(&self, starsr: &gst::Element, muxer_pad: gst::Pad) -> Result<(), String> {
        let size = self.size.clone();
        always_pad(starsr, "src")?.add_probe(
            gst::PadProbeType::EVENT_DOWNSTREAM,
            move |_, info| {
                if let Some(gst::EventView::Caps(caps)) = info.event().map(|event| event.view())
                    && let Ok(caps) = gst_video::VideoInfo::from_caps(caps.caps())
                {
                    *size.lock() = Some((caps.width(), caps.height()));
                    if caps.fps().numer() == 0 && muxer_pad.has_property("trak-timescale") {
                        muxer_pad.set_property("trak-timescale", VARIABLE_RATE_TIMESCALE);
                    }
                }
                gst::PadProbeReturn::Ok
            },
        );
        Ok(())
    }

    /// A pad that swallows a stream.
    fn nowhere(&self) -> Result<gst::Pad, String> {
        let sink = make("fakesink")?;
        sink.set_property("sync", false);
        sink.set_property("async", false);
        self.pipeline.add(&sink).map_err(text)?;
        sync([&sink])?;
        always_pad(&sink, "sink")
    }
}

/// The encoder asked for, with constant quality where it is x264.
fn encoder(args: &Args) -> Result<gst::Element, String> {
    if let Some(description) = &args.encoder {
        return gst::parse::bin_from_description(description, true)
            .map(|bin| bin.upcast())
            .map_err(|error| format!("--encoder: {}", error.message()));
    }
    let encoder = make("x264enc")?;
    encoder.set_property_from_str("pass", "qual");
    encoder.set_property("quantizer", args.quality);
    // Without this x264enc caps the bit rate at its default of 2 Mbit/s even at constant quality.
    encoder.set_property("vbv-buf-capacity", 0u32);
    set_property(&encoder, "speed-preset", &args.preset)
        .map_err(|error| error.replace("speed-preset", "--preset"))?;
    Ok(encoder)
}

/// Caps for the encoder where players of H.264 do not know the decoded format: 4:2:0 of the same
/// depth.
fn encoder_caps(decoded: &gst::Caps) -> Option<gst::Caps> {
    let info = gst_video::VideoInfo::from_caps(decoded).ok()?;
    let format = info.format_info();
    if !format.is_rgb() && !format.is_gray() {
        return None;
    }
    let deep = format.depth().iter().any(|depth| *depth > 8);
    let format = if deep { gst_video::VideoFormat::I42010le } else { gst_video::VideoFormat::I420 };
    Some(gst_video::VideoCapsBuilder::new().format(format).build())
}

/// Whether a player has to rotate the video.
fn is_rotated(pad: &gst::Pad) -> bool {
    let tags = pad.stream().and_then(|stream| stream.tags());
    tags.as_ref()
        .and_then(|tags| tags.get::<gst::tags::ImageOrientation>())
        .is_some_and(|orientation| orientation.get() != "rotate-0")
}

fn remedy(container: Container) -> &'static str {
    if container == Container::Matroska {
        "--drop-unsupported leaves it out"
    } else {
        "an .mkv output may, and --drop-unsupported leaves it out"
    }
}

fn sync<'a>(elements: impl IntoIterator<Item = &'a gst::Element>) -> Result<(), String> {
    elements.into_iter().try_for_each(|element| element.sync_state_with_parent().map_err(text))
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
