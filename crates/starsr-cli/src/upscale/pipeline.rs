// SPDX-License-Identifier: MPL-2.0

//! The pipeline: file, parsed streams, video through starsr and an encoder, everything into one
//! muxer.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gst::prelude::*;
use parking_lot::Mutex;

use super::args::{Args, set_property};
use super::batch::Job;
use super::elements::make;
use super::input;
use super::mending::{ContainerColors, mend_demuxers};
use super::steady::Steady;
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

/// The frames that have passed starsr, and all that moves.
#[derive(Default)]
pub struct Counts {
    moved: AtomicU64,
    taken: AtomicU64,
    done: AtomicU64,
    /// Times of the first frame and of the end of the last finished one, in ns plus one; 0 before
    /// that frame.
    first: AtomicU64,
    last: AtomicU64,
    /// What the input calls the moment at which the output begins, in ns.
    start: AtomicU64,
}

impl Counts {
    /// Buffers that have entered or left the pipeline, or passed starsr.
    pub fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Frames that went in.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Frames that came out.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// What the input calls the moment that is 0 in the output.
    pub fn start(&self) -> gst::ClockTime {
        gst::ClockTime::from_nseconds(self.start.load(Ordering::Relaxed))
    }

    /// Time from the first frame to the end of the last finished one.
    pub fn position(&self) -> Option<gst::ClockTime> {
        let (first, last) = (self.first.load(Ordering::Relaxed), self.last.load(Ordering::Relaxed));
        (first > 0 && last > 0).then(|| gst::ClockTime::from_nseconds(last.saturating_sub(first)))
    }

    /// Counts what passes `pad`.
    fn watch_pad(self: &Arc<Self>, pad: &gst::Pad) {
        let counts = self.clone();
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, _| {
            counts.moved.fetch_add(1, Ordering::Relaxed);
            gst::PadProbeReturn::Ok
        });
    }

    fn watch(self: &Arc<Self>, starsr: &gst::Element) -> Result<(), String> {
        let pts = |info: &gst::PadProbeInfo| info.buffer().and_then(|buffer| buffer.pts());
        let counts = self.clone();
        always_pad(starsr, "sink")?.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
            counts.taken.fetch_add(1, Ordering::Relaxed);
            if counts.first.load(Ordering::Relaxed) == 0
                && let Some(pts) = pts(info)
            {
                counts.first.store(pts.nseconds().saturating_add(1), Ordering::Relaxed);
                let start = pts.saturating_sub(running_time(pad, pts).unwrap_or(pts));
                counts.start.store(start.nseconds(), Ordering::Relaxed);
            }
            gst::PadProbeReturn::Ok
        });
        let counts = self.clone();
        always_pad(starsr, "src")?.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            counts.done.fetch_add(1, Ordering::Relaxed);
            let duration = info.buffer().and_then(|buffer| buffer.duration()).unwrap_or_default();
            let end = pts(info)
                .map_or(0, |pts| pts.saturating_add(duration).nseconds().saturating_add(1));
            counts.last.store(end, Ordering::Relaxed);
            gst::PadProbeReturn::Ok
        });
        Ok(())
    }
}

/// The running time of `pts` on `pad`, which is its time in the output.
fn running_time(pad: &gst::Pad, pts: gst::ClockTime) -> Option<gst::ClockTime> {
    let segment = pad.sticky_event::<gst::event::Segment>(0)?;
    segment.segment().downcast_ref::<gst::ClockTime>()?.to_running_time(pts)
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

/// What is seen of the streams before they are connected.
#[derive(Default)]
struct Prelude {
    /// Whether the parser has said which streams there are, and a video is none of them.
    lacks_video: bool,
    /// Whether there is a video stream, and whether the first one's data has come.
    video: Option<bool>,
    /// Whether the data of any stream has come.
    data: bool,
    /// Whether [`STREAMS_KNOWN`] was posted.
    known: bool,
}

impl Prelude {
    /// Notes what `change` does. Posts [`STREAMS_KNOWN`], once, when everything is known: all tags
    /// of the video come before its data.
    fn note(this: &Mutex<Self>, element: &gst::Element, change: impl FnOnce(&mut Self)) {
        let mut prelude = this.lock();
        change(&mut prelude);
        let is_known = match prelude.video {
            Some(data) => data,
            None => prelude.lacks_video && prelude.data,
        };
        if is_known && !std::mem::replace(&mut prelude.known, true) {
            drop(prelude);
            let known = gst::Structure::new_empty(STREAMS_KNOWN);
            // It fails where the pipeline is being stopped, and then nobody waits for it.
            let _ = element
                .post_message(gst::message::Application::builder(known).src(element).build());
        }
    }
}

/// A stream at the end of the read-ahead queue, held back until it is linked.
struct Stream {
    /// Where it enters the queue, and where it leaves.
    inlet: gst::Pad,
    pad: gst::Pad,
    /// What the parser announced.
    announced: gst::Caps,
    block: gst::PadProbeId,
}

impl Stream {
    /// Leads `pad` of the parser into `queue` and holds it back at the other end. What is said about
    /// the stream in front of its data gets through.
    fn hold(
        pad: &gst::Pad,
        queue: &gst::Element,
        prelude: &Arc<Mutex<Prelude>>,
    ) -> Result<Self, String> {
        let inlet = queue.request_pad_simple("sink_%u").ok_or("multiqueue refuses another pad")?;
        let outlet = always_pad(queue, &inlet.name().replace("sink", "src"))?;
        let announced = pad
            .current_caps()
            .or_else(|| pad.stream().and_then(|stream| stream.caps()))
            .unwrap_or_else(|| pad.query_caps(None));
        let mut is_video = Kind::of(&announced) == Kind::Video;
        Prelude::note(prelude, queue, |prelude| {
            is_video &= prelude.video.is_none();
            if is_video {
                prelude.video = Some(false);
            }
        });
        let (prelude, queue) = (prelude.clone(), queue.downgrade());
        let block = outlet
            .add_probe(gst::PadProbeType::BLOCK_DOWNSTREAM, move |outlet, info| {
                let Some(queue) = queue.upgrade() else { return gst::PadProbeReturn::Ok };
                match info.event().map(|event| event.view()) {
                    None | Some(gst::EventView::Eos(_) | gst::EventView::Gap(_)) => {}
                    Some(gst::EventView::StreamCollection(event)) => {
                        let lacks_video = !has_video(&event.stream_collection());
                        Prelude::note(&prelude, &queue, |prelude| {
                            prelude.lacks_video = lacks_video;
                        });
                        return gst::PadProbeReturn::Pass;
                    }
                    Some(_) => return gst::PadProbeReturn::Pass,
                }
                // Some parsers announce a stream before its caps are known.
                let turns_out =
                    outlet.current_caps().is_some_and(|caps| Kind::of(&caps) == Kind::Video);
                Prelude::note(&prelude, &queue, |prelude| {
                    prelude.data = true;
                    if is_video || turns_out && prelude.video.is_none() {
                        prelude.video = Some(true);
                    }
                });
                gst::PadProbeReturn::Ok
            })
            .ok_or("a pad cannot be held back")?;
        pad.link(&inlet).map_err(text)?;
        Ok(Self { inlet, pad: outlet, announced, block })
    }

    /// What the stream is, in the words nearest to its data.
    fn caps(&self) -> gst::Caps {
        self.pad.current_caps().unwrap_or_else(|| self.announced.clone())
    }

    /// Whether a player has to rotate the video.
    fn is_rotated(&self) -> bool {
        let mut rotated = false;
        self.pad.sticky_events_foreach(|event| {
            if let gst::EventView::Tag(tag) = event.view()
                && let Some(orientation) = tag.tag().get::<gst::tags::ImageOrientation>()
            {
                rotated = orientation.get() != "rotate-0";
            }
            std::ops::ControlFlow::Continue(gst::EventForeachAction::Keep)
        });
        rotated
    }
}

/// The pipeline; stopped when dropped.
pub struct Pipeline {
    pub pipeline: gst::Pipeline,
    source: gst::Element,
    parser: gst::Element,
    pub counts: Arc<Counts>,
    /// `None` once they are connected.
    streams: Arc<Mutex<Option<Vec<Stream>>>>,
    /// Where the streams enter the read-ahead queue, the video first. Empty before
    /// [`Self::connect`].
    inlets: Mutex<Vec<gst::Pad>>,
    /// What the container says about the video's colours.
    colors: ContainerColors,
    /// What the source reads, where the source did not open it.
    _input: input::Kept,
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
        let ((source, input), parser) = (input::source(input)?, make("parsebin")?);
        // A multiqueue lets a stream grow while another one starves. So neither the frames that
        // starsr and the encoder hold back nor badly interleaved files can block it; bytes are its
        // only hard limit.
        let queue = make("multiqueue")?;
        queue.set_property("max-size-bytes", READ_AHEAD_BYTES);
        queue.set_property("max-size-time", 0u64);
        queue.set_property("max-size-buffers", READ_AHEAD_BUFFERS);
        pipeline.add_many([&source, &parser, &queue]).map_err(text)?;
        source.link(&parser).map_err(text)?;
        let counts: Arc<Counts> = Arc::default();
        counts.watch_pad(&always_pad(&source, "src")?);

        let colors = mend_demuxers(&parser);
        let streams = Arc::new(Mutex::new(Some(Vec::new())));
        let prelude: Arc<Mutex<Prelude>> = Arc::default();
        parser.connect_pad_added({
            let streams = streams.clone();
            move |parser, pad| {
                let mut streams = streams.lock();
                let held = match &mut *streams {
                    Some(streams) => {
                        Stream::hold(pad, &queue, &prelude).map(|stream| streams.push(stream))
                    }
                    // The end of the streams so far completes the output.
                    None => leave_out(parser, pad),
                };
                if let Err(reason) = held {
                    gst::element_error!(parser, gst::StreamError::Format, ("{reason}"));
                }
            }
        });
        let this = Self {
            pipeline,
            source,
            parser,
            counts,
            streams,
            inlets: Mutex::default(),
            colors,
            _input: input,
            size: Arc::default(),
        };
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
        let elements = parser.iterate_recurse().into_iter().flatten().chain([self.source.clone()]);
        elements
            .flat_map(|element| element.pads())
            .any(|pad| pad.task_state() == gst::TaskState::Started)
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
        for inlet in self.inlets.lock().clone() {
            // A stream that has ended refuses another end.
            inlet.send_event(gst::event::Eos::new());
        }
    }

    /// Changes the state; the reason of a failure is on the bus.
    pub fn set_state(&self, state: gst::State) -> Result<(), String> {
        self.pipeline.set_state(state).map(|_| ()).map_err(text)
    }

    /// Connects the streams of the input with `part`, the file to write, and lets them run. With
    /// `video_only` all others are read to nowhere.
    pub fn connect(
        &self,
        args: &Args,
        job: &Job,
        container: Container,
        part: &Path,
        video_only: bool,
    ) -> Result<Input, String> {
        let streams = self.streams.lock().take().unwrap_or_default();
        let video = streams
            .iter()
            .position(|stream| Kind::of(&stream.caps()) == Kind::Video)
            .ok_or_else(|| format!("{}: has no video stream", job.input.display()))?;

        let (muxer, sink) = (make(container.muxer())?, make("filesink")?);
        sink.set_property("location", part);
        sink.set_property("sync", false);
        self.counts.watch_pad(&always_pad(&sink, "sink")?);
        self.pipeline.add_many([&muxer, &sink]).map_err(text)?;
        muxer.link(&sink).map_err(text)?;
        sync([&sink, &muxer])?;

        let mut left_out = Vec::new();
        for (index, stream) in streams.iter().enumerate() {
            let (pad, caps) = (&stream.pad, &stream.caps());
            let target = if index == video {
                self.video_branch(args, &muxer, stream.is_rotated())?
            } else if video_only {
                self.nowhere()?
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

        let mut inlets: Vec<_> = streams.iter().map(|stream| stream.inlet.clone()).collect();
        inlets.swap(0, video);
        *self.inlets.lock() = inlets;
        let video = &streams[video];
        let duration = video.pad.query_duration::<gst::ClockTime>();
        let rate = video
            .caps()
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
        let steady = Steady::new()?;
        let mut chain = Vec::new();
        if args.deinterlace {
            chain.extend([make("videoconvert")?, make("deinterlace")?]);
        }
        chain.extend(steady.elements.clone());
        chain.push(starsr);
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
        self.watch_caps(&format, inlet)?;
        sync(chain.iter().rev())?;

        let decoder = make("decodebin")?;
        let own_format = args.encoder.is_some();
        let colors = self.colors.clone();
        decoder.connect_pad_added(move |decoder, pad| {
            steady.watch(pad, colors.clone());
            if !own_format && let Some(caps) = pad.current_caps() {
                if let Some(caps) = encoder_caps(&caps) {
                    format.set_property("caps", caps);
                }
                warn_of_alpha(decoder, &caps);
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

    /// Notes the size of the frames that leave `last`, and gives a variable frame rate a fine enough
    /// timescale.
    fn watch_caps(&self, last: &gst::Element, muxer_pad: gst::Pad) -> Result<(), String> {
        let size = self.size.clone();
        always_pad(last, "src")?.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
            if let Some(gst::EventView::Caps(caps)) = info.event().map(|event| event.view())
                && let Ok(caps) = gst_video::VideoInfo::from_caps(caps.caps())
            {
                *size.lock() = Some((caps.width(), caps.height()));
                if caps.fps().numer() == 0 && muxer_pad.has_property("trak-timescale") {
                    muxer_pad.set_property("trak-timescale", VARIABLE_RATE_TIMESCALE);
                }
            }
            gst::PadProbeReturn::Ok
        });
        Ok(())
    }

    /// A pad that swallows a stream.
    fn nowhere(&self) -> Result<gst::Pad, String> {
        nowhere(self.pipeline.upcast_ref())
    }
}

/// A pad in `bin` that swallows a stream.
fn nowhere(bin: &gst::Bin) -> Result<gst::Pad, String> {
    let sink = make("fakesink")?;
    sink.set_property("sync", false);
    sink.set_property("async", false);
    bin.add(&sink).map_err(text)?;
    sync([&sink])?;
    always_pad(&sink, "sink")
}

/// Swallows a stream that begins midway, and says so.
fn leave_out(parser: &gst::Element, pad: &gst::Pad) -> Result<(), String> {
    let bin = parser.parent().and_downcast::<gst::Bin>().ok_or("the pipeline is gone")?;
    pad.link(&nowhere(&bin)?).map_err(text)?;
    gst::element_warning!(
        parser,
        gst::StreamError::Format,
        ("the input starts new streams midway, which are not in the output; split it there")
    );
    Ok(())
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

/// Whether a parser's list of streams names a video.
fn has_video(collection: &gst::StreamCollection) -> bool {
    collection.iter().any(|stream| {
        stream.stream_type().contains(gst::StreamType::VIDEO)
            || stream.caps().is_some_and(|caps| Kind::of(&caps) == Kind::Video)
    })
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

/// Says that x264 encodes no transparency, where there is one.
fn warn_of_alpha(element: &gst::Element, decoded: &gst::Caps) {
    if gst_video::VideoInfo::from_caps(decoded).is_ok_and(|info| info.has_alpha()) {
        gst::element_warning!(
            element,
            gst::StreamError::Format,
            ("the transparency of the video is lost: H.264 has none (here: --encoder avenc_ffv1 and an .mkv output keep it)")
        );
    }
}

/// What to do about a stream that `container` cannot hold.
pub fn remedy(container: Container) -> &'static str {
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
