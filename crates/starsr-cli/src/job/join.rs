// SPDX-License-Identifier: MPL-2.0

//! From parts to the film: the packets go into one file as they are, and the rest of the input beside
//! them, as in `starsr upscale`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use gst::prelude::*;
use gst_app::AppSrc;
use gst_video::VideoInfo;
use parking_lot::Mutex;

use super::part::{About, Packet, Reader};
use super::plan::Job;
use super::work::{Failed, checked};
use crate::interrupts::{Interrupts, Stop};
use crate::media::counts::Beginning;
use crate::media::elements::{always_pad, make, sync, text};
use crate::media::probe::Probe;
use crate::media::streams::Container;
use crate::output::Output;
use crate::upscale::batch;
use crate::upscale::encoder;
use crate::upscale::encoding::{Ending, set_timescale, tag};
use crate::upscale::file::{Upscaled, complete, probe};
use crate::upscale::luminance;
use crate::upscale::messages::{Event, Listener};
use crate::upscale::pipeline::{Destination, Pipeline};
use crate::upscale::progress::Progress;
use crate::upscale::{Args as Options, Remux};
use crate::values::counted;

/// Where the film begins on the clock of the muxer's input: times in front of the first frame, at
/// which encoders let B-frames be decoded, are not negative there.
const ZERO: gst::ClockTime = gst::ClockTime::from_seconds(3_600_000);
/// Packets that wait in front of the muxer, in bytes.
const AHEAD: u64 = 16 << 20;
const TICK: gst::ClockTime = gst::ClockTime::from_mseconds(100);

/// Put the parts of a job together
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Folder of the job
    #[arg(long, value_name = "DIR")]
    job: PathBuf,
    /// The file to write: .mp4, .m4v, .mov or .mkv
    output: PathBuf,
    /// Where the input is on this machine [default: where it was for the plan]
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Replace OUTPUT if it exists
    #[arg(short, long)]
    force: bool,
    /// Print nothing
    #[arg(short, long)]
    quiet: bool,
    /// Print results as JSON, one object a line
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
}

/// Joins the parts of a job.
pub fn run(args: &Args) -> Result<(), Stop> {
    super::start()?;
    let interrupts = Interrupts::catch()?;
    let job = Job::open(&args.job)?;
    let source = args.input.clone().unwrap_or_else(|| job.plan.input.path.clone());
    let mut options = job.args()?;
    (options.quiet, options.json, options.force) = (args.quiet, args.json, args.force);
    let mut progress = Progress::new(&options, false);
    join(&job, &options, &source, &args.output, &mut progress, &interrupts)
}

/// Fails where the container of `output` cannot hold what is asked for.
pub fn check_output(options: &Options, output: &Path) -> Result<Container, String> {
    let container = Container::from_path(output)?;
    if let Some(codec) = options.codec {
        encoder::check(codec, options, container)?;
    }
    Ok(container)
}

/// Joins the parts of `job` and the rest of `source` to `output`.
pub fn join(
    job: &Job,
    options: &Options,
    source: &Path,
    output: &Path,
    progress: &mut Progress,
    interrupts: &Interrupts,
) -> Result<(), Stop> {
    let container = check_output(options, output)?;
    job.plan.input.check(source)?;
    let about = check_parts(job, progress, interrupts)?;
    let files = batch::Job {
        input: source.to_owned(),
        source: source.to_owned(),
        output: output.to_owned(),
    };
    let file = Output::create(&[source], output, options.force)?;
    interrupts.remove_at_once(file.part());
    let probe = probe(options, &files, &interrupts.count)?;
    let remux = match &probe {
        None => None,
        Some(probe) => Remux::plan(options, source, probe, container)?,
    };
    for stream in remux.iter().flat_map(|remux| &remux.left_out) {
        progress.say(&format!("not in the output: {stream}"));
    }
    let packets = Packets::new(options, &about)?;
    let info = VideoInfo::from_caps(&packets.encoded).map_err(text)?;
    let destination = Destination::Join { container, path: file.part(), packets: &packets };
    if remux.is_some() {
        mux(job, &packets, container, file.part(), interrupts)?;
    } else {
        let probe = probe.as_ref();
        mux_beside(job, options, &files, probe, &destination, progress, interrupts)?;
    }
    let time = gst::ClockTime::from_nseconds;
    let video = Upscaled {
        frames: job.plan.video.frames,
        size: (info.width(), info.height()),
        first: Beginning {
            in_input: time(job.plan.video.first),
            running: time(job.plan.video.first_running),
        },
        colors: info.colorimetry(),
    };
    job.note_joined(output)?;
    complete(options, &files, (file, container), remux, &video, progress, interrupts)
}

/// Reads all parts to their ends. Gives what is said about the first.
fn check_parts(job: &Job, progress: &Progress, interrupts: &Interrupts) -> Result<About, Stop> {
    let shown = job.folder.display();
    let (mut first, mut missing, mut damaged) = (None::<About>, Vec::new(), Vec::new());
    let mut bypassed = 0;
    let mut machines = Vec::new();
    for segment in 0..job.plan.segments.len() {
        if interrupts.count.load(Ordering::SeqCst) > 0 {
            return Err(Stop::Interrupted);
        }
        match checked(job, segment, true) {
            Ok(None) => missing.push(segment),
            Ok(Some(about)) => {
                let first = first.get_or_insert_with(|| about.clone());
                if (&about.caps, &about.encoded) != (&first.caps, &first.encoded) {
                    return Err(format!(
                        "{shown}: the parts of segments {} and {segment} have different formats; remove one of them, and restore it with the program of the other",
                        first.segment
                    )
                    .into());
                }
                bypassed += about.bypassed;
                let machine = (about.machine, about.evaluations);
                if !machines.contains(&machine) {
                    machines.push(machine);
                }
            }
            Err(reason) => damaged.push((segment, reason)),
        }
    }
    if let Some((_, reason)) = damaged.first() {
        for (segment, _) in &damaged {
            let part = job.part(*segment);
            fs::remove_file(&part).map_err(|error| super::store::failed(&part, &error))?;
        }
        let count = counted(damaged.len() as u64, "part");
        return Err(format!(
            "{reason}; {count} removed, which starsr work --job {shown} makes again"
        )
        .into());
    }
    if let Some(segment) = missing.first() {
        let count = counted(missing.len() as u64, "segment");
        let failed = missing.iter().find_map(|at| Some((at, Failed::of(job, *at)?)));
        let why = match failed {
            Some((at, failed)) => format!("segment {at} failed: {}", failed.error),
            None => format!("the first is segment {segment}; run starsr work --job {shown}"),
        };
        return Err(format!("{shown}: {count} to restore; {why}").into());
    }
    if bypassed > 0 {
        let frames = counted(bypassed, "frame");
        progress.say(&format!("warning: the model failed for {frames}, which are plain upscales"));
    }
    if machines.len() > 1 {
        let words: Vec<_> = machines.into_iter().map(|(machine, _)| machine).collect();
        progress.say(&format!(
            "the segments were restored by different means ({}): another run may differ in last bits",
            words.join(", ")
        ));
    }
    first.ok_or_else(|| format!("{shown}: has no segments").into())
}

/// Where the packets of the parts come into a pipeline.
pub struct Packets {
    source: AppSrc,
    caps: gst::Caps,
    /// Caps of the frames that were encoded.
    encoded: gst::Caps,
    /// Whether the encoder is one of this program's.
    is_ours: bool,
}

impl Packets {
    fn new(options: &Options, about: &About) -> Result<Self, String> {
        let caps: gst::Caps = about.caps.parse().map_err(text)?;
        let source = AppSrc::builder()
            .caps(&caps)
            .format(gst::Format::Time)
            .handle_segment_change(true)
            .block(true)
            .max_bytes(AHEAD)
            .build();
        let encoded = about.encoded.parse().map_err(text)?;
        Ok(Self { source, caps, encoded, is_ours: options.encoder.is_none() })
    }

    /// Leads the packets into the muxer of `ending`, with what the stream at `pad` of the input is
    /// tagged with.
    pub fn join(
        &self,
        pipeline: &gst::Pipeline,
        ending: &Ending,
        pad: &gst::Pad,
    ) -> Result<(), String> {
        let Ending::Muxer(muxer, _) = ending else { return Err("there is no muxer".to_owned()) };
        pipeline.add(&self.source).map_err(text)?;
        self.link(muxer)?;
        sync([self.source.upcast_ref()])?;
        pad.sticky_events_foreach(|event| {
            if matches!(event.type_(), gst::EventType::Tag | gst::EventType::Toc) {
                self.source.send_event(event.clone());
            }
            std::ops::ControlFlow::Continue(gst::EventForeachAction::Keep)
        });
        Ok(())
    }

    fn link(&self, muxer: &gst::Element) -> Result<(), String> {
        let template = muxer.pad_template("video_%u");
        let inlet = template.and_then(|template| muxer.request_pad(&template, None, None));
        let inlet = inlet.ok_or("the muxer takes no video")?;
        if self.is_ours {
            tag(&inlet, &Arc::new(Mutex::new(Some(self.encoded.clone()))));
        }
        luminance::correct(muxer, &inlet);
        set_timescale(&inlet, &VideoInfo::from_caps(&self.encoded).map_err(text)?);
        always_pad(self.source.upcast_ref(), "src")?.link(&inlet).map(drop).map_err(|_| {
            "the output cannot hold the encoder's stream; join to another container, such as .mkv"
                .to_owned()
        })
    }

    /// Gives the packets of all parts.
    fn push(&self, job: &Job, interrupts: &Interrupts) -> Result<(), Stop> {
        let mut segment = gst::FormattedSegment::<gst::ClockTime>::new();
        segment.set_start(ZERO);
        segment.set_time(gst::ClockTime::ZERO);
        let mut last = None;
        for number in 0..job.plan.segments.len() {
            let path = job.part(number);
            let Some(mut part) = Reader::open(&path)? else {
                return Err(format!("{}: is gone", path.display()).into());
            };
            while let Some(packet) = part.next()? {
                if interrupts.count.load(Ordering::SeqCst) > 0 {
                    return Err(Stop::Interrupted);
                }
                let buffer = buffer(packet, &mut last);
                let sample = gst::Sample::builder().buffer(&buffer).caps(&self.caps);
                if self.source.push_sample(&sample.segment(&segment).build()).is_err() {
                    // The pipeline knows why.
                    return Ok(());
                }
            }
        }
        let _ = self.source.end_of_stream();
        Ok(())
    }
}

/// Writes the packets of all parts into the file `target`.
fn mux(
    job: &Job,
    packets: &Packets,
    container: Container,
    target: &Path,
    interrupts: &Interrupts,
) -> Result<(), Stop> {
    let pipeline = Stopped(gst::Pipeline::new());
    let (muxer, sink) = (make(container.muxer())?, make("filesink")?);
    sink.set_property("location", target);
    sink.set_property("sync", false);
    pipeline.0.add_many([packets.source.upcast_ref(), &muxer, &sink]).map_err(text)?;
    muxer.link(&sink).map_err(text)?;
    packets.link(&muxer)?;
    let bus = pipeline.0.bus().ok_or_else(|| "the pipeline has no bus".to_owned())?;
    let failure = |message: &gst::Message| {
        let gst::MessageView::Error(error) = message.view() else { return String::new() };
        let target = target.display();
        if error.error().matches(gst::ResourceError::NoSpaceLeft) {
            return format!("{target}: no space is left on the device");
        }
        format!("{target}: {}", error.error().message())
    };
    pipeline.0.set_state(gst::State::Playing).map_err(text)?;
    packets.push(job, interrupts)?;
    loop {
        if interrupts.count.load(Ordering::SeqCst) > 0 {
            return Err(Stop::Interrupted);
        }
        let ends = [gst::MessageType::Error, gst::MessageType::Eos];
        match bus.timed_pop_filtered(Some(TICK), &ends) {
            None => {}
            Some(message) if message.type_() == gst::MessageType::Error => {
                return Err(failure(&message).into());
            }
            Some(_) => break,
        }
    }
    // Down to READY first: closing the file may fail, and NULL would throw that message away.
    pipeline.0.set_state(gst::State::Ready).map_err(text)?;
    match bus.pop_filtered(&[gst::MessageType::Error]) {
        Some(message) => Err(failure(&message).into()),
        None => Ok(()),
    }
}

/// Writes the packets of all parts and the other streams of the input into a file, where FFmpeg does
/// not add these.
fn mux_beside(
    job: &Job,
    options: &Options,
    files: &batch::Job,
    probe: Option<&Probe>,
    destination: &Destination,
    progress: &mut Progress,
    interrupts: &Interrupts,
) -> Result<(), Stop> {
    let Destination::Join { packets, container, .. } = destination else {
        return Err("there is nothing to join".to_owned().into());
    };
    let pipeline = Pipeline::open(options, &files.source, probe)?;
    let mut listener = Listener::new(options, files, &pipeline, *container != Container::Matroska);
    std::thread::scope(|scope| {
        let mut pusher = None;
        let listened = loop {
            match listener.next(&pipeline, progress, &interrupts.count) {
                Ok(Event::StreamsKnown) => {}
                Ok(_) => break Ok(()),
                Err(stop) => break Err(stop),
            }
            match pipeline.connect(options, files, destination) {
                Err(reason) => break Err(Stop::Failed(listener.explain(reason))),
                Ok(input) => {
                    for stream in &input.left_out {
                        listener.say(progress, &format!("not in the output: {stream}"));
                    }
                }
            }
            pusher.get_or_insert_with(|| scope.spawn(|| packets.push(job, interrupts)));
        };
        // Down to READY first: closing the file may fail, and NULL would throw that message away.
        let stopped = pipeline.set_state(gst::State::Ready).map_err(Stop::Failed);
        let pushed = pusher.map_or(Ok(()), |pusher| {
            pusher.join().unwrap_or_else(|_| Err("the parts cannot be read".to_owned().into()))
        });
        listened.and(pushed).and(stopped)?;
        match listener.pop_error(std::time::Duration::ZERO) {
            Some(error) => Err(listener.sentence(&error).into()),
            None => Ok(()),
        }
    })
}

/// A pipeline that is stopped when dropped.
struct Stopped(gst::Pipeline);

impl Drop for Stopped {
    fn drop(&mut self) {
        // It cannot fail for the elements used here.
        let _ = self.0.set_state(gst::State::Null);
    }
}

/// The packet as a buffer, decoded later than the one before it, whose time is `last`: an encoder
/// that begins anew does not know how long the frames in front of it are shown.
fn buffer(packet: Packet, last: &mut Option<gst::ClockTime>) -> gst::Buffer {
    let at = |time: i64| {
        let apart = gst::ClockTime::from_nseconds(time.unsigned_abs());
        if time < 0 { ZERO.saturating_sub(apart) } else { ZERO.saturating_add(apart) }
    };
    let Packet { pts, dts, duration, flags, bytes } = packet;
    let pts = pts.map(at);
    let dts = dts.map(at).map(|dts| {
        let after = last.map_or(dts, |last| dts.max(last.saturating_add(gst::ClockTime::NSECOND)));
        pts.map_or(after, |pts| after.min(pts))
    });
    *last = dts.or(*last);
    let mut buffer = gst::Buffer::from_mut_slice(bytes);
    if let Some(buffer) = buffer.get_mut() {
        buffer.set_pts(pts);
        buffer.set_dts(dts);
        buffer.set_duration(
            duration.and_then(|time| u64::try_from(time).ok()).map(gst::ClockTime::from_nseconds),
        );
        let flags = gst::BufferFlags::from_bits_truncate(flags);
        buffer.set_flags(flags - gst::BufferFlags::DISCONT - gst::BufferFlags::TAG_MEMORY);
    }
    buffer
}
