// SPDX-License-Identifier: MPL-2.0

//! Making a plan: the input is decoded once.

use std::io;
use std::path::Path;
use std::sync::Arc;

use gst::prelude::*;
use gst_video::VideoInfo;
use gststarsr::planning::{Outline, Scanned, Scanner};
use parking_lot::Mutex;

use super::frames::{Frames, Record, Writer, pixels};
use super::identity::Identity;
use super::plan::{Job, Model, Plan, VERSION, Video};
use super::segments::Film;
use super::store::{self, failed};
use crate::interrupts::{Interrupts, Stop};
use crate::media::elements::{always_pad, make};
use crate::media::input;
use crate::upscale::Args;
use crate::upscale::batch;
use crate::upscale::file::{describe_input, probe};
use crate::upscale::messages::{Event, Listener};
use crate::upscale::pipeline::{Destination, Pipeline};
use crate::upscale::progress::Progress;

/// Plans the work on `input` in `folder`.
pub fn make_plan(
    args: &Args,
    input: &Path,
    folder: &Path,
    progress: &mut Progress,
    interrupts: &Interrupts,
) -> Result<(), Stop> {
    let shown = input.display();
    if input.exists() && !input.is_file() {
        return Err(format!("{shown}: a job needs a regular file, which can be read again").into());
    }
    input::check(input)?;
    if !input.is_file() {
        return Err(format!("{shown}: stands for several pictures; a job needs a video").into());
    }
    let starsr = make("starsr")?;
    args.configure(&starsr)?;
    let outline = Outline::new(&starsr)?;
    Job::make_folder(folder)?;
    let identity = Identity::new(input)?;
    let (records, video, clips) = decode(args, input, folder, &outline, progress, interrupts)?;
    let number = |place: u64| records.get(place).map_or(place, |record| record.number);
    let film =
        Film { frames: video.frames, clips: &clips, context: &outline.context, number: &number };
    identity.check_unchanged(input)?;
    let plan = Plan {
        version: VERSION,
        input: identity,
        options: args.given.clone(),
        model: Model { name: outline.model.clone(), sha256: outline.model_sha256.clone() },
        segments: film.divide(args.segment_length),
        video,
        clips,
    };
    Job::create(folder, &plan)?;
    Ok(())
}

/// Decodes `input` to its end. Gives the frames' records, which are in `folder` then, what all frames
/// have in common, and the first frame of each clip.
fn decode(
    args: &Args,
    input: &Path,
    folder: &Path,
    outline: &Outline,
    progress: &mut Progress,
    interrupts: &Interrupts,
) -> Result<(Frames, Video, Vec<u64>), Stop> {
    let target = Job::records(folder);
    let job =
        batch::Job { input: input.to_owned(), source: input.to_owned(), output: folder.to_owned() };
    let probe = probe(args, &job, &interrupts.count)?;
    let pipeline = Pipeline::open(args, &job.source, probe.as_ref())?;
    let mut listener = Listener::new(args, &job, &pipeline, false);
    let sink = make("fakesink")?;
    let writer = Writer::new(&target).map_err(|error| failed(&target, &error))?;
    let recorder = Arc::new(Mutex::new(Some(Recorder::new(writer, outline.detects_scenes))));
    Recorder::watch(&recorder, &always_pad(&sink, "sink")?);
    let mut orientation = None;
    while let Event::StreamsKnown = listener.next(&pipeline, progress, &interrupts.count)? {
        let connected = pipeline.connect(args, &job, &Destination::Frames(&sink));
        let known = connected.map_err(|reason| listener.explain(reason))?;
        describe_input(&job, &known, progress);
        progress.expect_frames(known.frames.unwrap_or(0));
        orientation = known.orientation;
    }
    if let Some(complaint) = pipeline.complaint() {
        listener.say(progress, &format!("warning: {}: {complaint}", input.display()));
    }
    let (decoded, is_opaque) = (pipeline.decoded(), pipeline.is_opaque());
    drop(listener);
    drop(pipeline);
    let taken = recorder.lock().take();
    let Recorder { writer, clips, first, caps, failure, .. } =
        taken.ok_or_else(|| "the frames are lost".to_owned())?;
    if let Some(failure) = failure {
        return Err(match failure {
            Failure::Store(error) => failed(&target, &error),
            Failure::Frame(reason) => format!("{}: {reason}", input.display()),
        }
        .into());
    }
    let frames = writer.count();
    let (Some((first, first_running)), Some(caps), Some(decoded)) = (first, caps, decoded) else {
        return Err(format!("{}: no video frame could be decoded", input.display()).into());
    };
    let sha256 = writer.finish(&target).map_err(|error| failed(&target, &error))?;
    let video = Video {
        frames,
        records_sha256: sha256.clone(),
        decoded: decoded.to_string(),
        caps: caps.to_string(),
        first,
        first_running,
        is_opaque,
        orientation,
    };
    store::remove_unfinished(folder);
    Ok((Frames::open(&target, frames, &sha256)?, video, clips))
}

/// Why frames could not be recorded.
enum Failure {
    Store(io::Error),
    Frame(String),
}

/// Writes down the frames that pass.
struct Recorder {
    scanner: Scanner,
    writer: Writer,
    clips: Vec<u64>,
    /// When the input and the pipeline show the first frame.
    first: Option<(u64, u64)>,
    caps: Option<gst::Caps>,
    info: Option<VideoInfo>,
    segment: Option<gst::Segment>,
    failure: Option<Failure>,
}

impl Recorder {
    fn new(writer: Writer, detects_scenes: bool) -> Self {
        Self {
            scanner: Scanner::new(detects_scenes),
            writer,
            clips: Vec::new(),
            first: None,
            caps: None,
            info: None,
            segment: None,
            failure: None,
        }
    }

    /// Records what passes `pad`.
    fn watch(this: &Arc<Mutex<Option<Self>>>, pad: &gst::Pad) {
        let this = this.clone();
        let mask = gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_DOWNSTREAM;
        pad.add_probe(mask, move |_, info| {
            let mut this = this.lock();
            let Some(recorder) = this.as_mut().filter(|recorder| recorder.failure.is_none()) else {
                return gst::PadProbeReturn::Ok;
            };
            let taken = match &info.data {
                Some(gst::PadProbeData::Event(event)) => recorder.event(event),
                Some(gst::PadProbeData::Buffer(buffer)) => recorder.frame(buffer),
                _ => Ok(()),
            };
            recorder.failure = taken.err();
            gst::PadProbeReturn::Ok
        });
    }

    fn event(&mut self, event: &gst::EventRef) -> Result<(), Failure> {
        match event.view() {
            gst::EventView::Caps(caps) => {
                let info = VideoInfo::from_caps(caps.caps());
                let info = info.map_err(|error| Failure::Frame(error.to_string()))?;
                self.scanner.caps(&info).map_err(Failure::Frame)?;
                self.caps.get_or_insert_with(|| caps.caps_owned());
                self.info = Some(info);
            }
            gst::EventView::Segment(segment) => {
                self.segment = Some(segment.segment().clone());
                self.scanner.event(event);
            }
            _ if event.is_serialized() => self.scanner.event(event),
            _ => {}
        }
        Ok(())
    }

    fn frame(&mut self, buffer: &gst::BufferRef) -> Result<(), Failure> {
        let place = self.writer.count();
        let lacks =
            |what: &str| Failure::Frame(format!("frame {place} of its video has no {what}"));
        let Scanned { number, begins_clip } = self.scanner.frame(buffer).map_err(Failure::Frame)?;
        let info = self.info.as_ref().ok_or_else(|| lacks("format"))?;
        let segment = self.segment.as_ref().and_then(|s| s.downcast_ref::<gst::ClockTime>());
        let (segment, pts) = segment.zip(buffer.pts()).ok_or_else(|| lacks("time"))?;
        let times = segment.to_stream_time(pts).zip(segment.to_running_time(pts));
        let (stream, running) = times.ok_or_else(|| lacks("time in the video"))?;
        if begins_clip {
            self.clips.push(place);
        }
        self.first.get_or_insert((pts.nseconds(), running.nseconds()));
        let record = Record {
            stream: stream.nseconds(),
            running: running.nseconds(),
            duration: buffer.duration().map(gst::ClockTime::nseconds),
            number,
            pixels: pixels(buffer, info).ok_or_else(|| lacks("pixels"))?,
        };
        self.writer.push(&record).map_err(Failure::Store)
    }
}
