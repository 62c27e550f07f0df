// SPDX-License-Identifier: MPL-2.0

//! One segment through the model and the encoder.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use gst::prelude::*;
use gst_app::{AppSink, AppSrc};
use parking_lot::Mutex;

use super::decode::{Decoded, Decoder};
use super::part::{self, About, Packet};
use super::plan::Job;
use super::segments::Segment;
use super::store::failed;
use crate::interrupts::{Interrupts, Stop};
use crate::media::elements::{always_pad, make, sync, text};
use crate::media::errors::is_aftermath;
use crate::upscale::Args;
use crate::upscale::encoding::{Encoded, Encoding, Ending};
use crate::upscale::pipeline::restoring;

/// Frames that wait in front of the model.
const AHEAD: u64 = 4;
const TICK: gst::ClockTime = gst::ClockTime::from_mseconds(50);
/// How long to wait for a better explanation after an error that explains nothing.
const AFTERMATH: gst::ClockTime = gst::ClockTime::from_mseconds(300);
/// Names of the events that state what the element would find out otherwise.
const SCENE_CUT: &str = "starsr-scene-cut";
const FRAME_NUMBER: &str = "starsr-frame-number";

/// Why there is no part.
pub enum Failure {
    /// The segment failed; another may succeed.
    Segment(String),
    /// The job cannot go on now.
    Job(String),
    Interrupted,
    /// Somebody else has taken over the segment.
    Lost,
}

impl From<Stop> for Failure {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Failed(reason) => Self::Segment(reason),
            Stop::Interrupted => Self::Interrupted,
        }
    }
}

impl From<String> for Failure {
    fn from(reason: String) -> Self {
        Self::Segment(reason)
    }
}

/// What restores the segments of a job.
pub struct Restorer<'a> {
    pub job: &'a Job,
    pub args: &'a Args,
    pub interrupts: &'a Interrupts,
    /// Frames of the present segment that are done.
    pub done: &'a Arc<AtomicU64>,
}

impl Restorer<'_> {
    /// Restores the segment of `number` with frames from `decoder` and puts its part in place, unless
    /// it `is_lost` meanwhile.
    pub fn run(
        &self,
        number: usize,
        segment: &Segment,
        decoder: &mut Decoder,
        is_lost: &AtomicBool,
    ) -> Result<About, Failure> {
        let (started, target) = (Instant::now(), self.job.part(number));
        self.done.store(0, Ordering::SeqCst);
        let stored = |error: std::io::Error| Failure::Job(failed(&target, &error));
        let mut writer = part::Writer::new(&target).map_err(stored)?;
        let line = Line::new(self, segment)?;
        let stop = AtomicBool::new(false);
        let encoded = std::thread::scope(|scope| {
            let feeder = scope.spawn(|| {
                let fed = self.feed(segment, decoder, &line, &stop);
                if !matches!(fed, Err(Failure::Interrupted)) {
                    // The other side waits for packets.
                    let _ = line.source.end_of_stream();
                }
                fed
            });
            let written = self.collect(&line, &mut writer, is_lost, &target);
            // Whatever the feeder waits for, it waits no longer.
            stop.store(true, Ordering::SeqCst);
            line.stop();
            let fed =
                feeder.join().unwrap_or_else(|_| Err(Failure::Segment("feeding failed".into())));
            match (fed, written) {
                // An input that ends too early explains why there are too few packets.
                (Err(failure), _) | (Ok(()), Err(failure)) => Err(failure),
                (Ok(()), Ok(caps)) => Ok(caps),
            }
        })?;
        let count = segment.frames.end - segment.frames.start;
        let frames = line.passed.load(Ordering::SeqCst);
        if frames != count {
            return Err(Failure::Segment(format!("{frames} of {count} frames were restored")));
        }
        let stats = line.starsr.property::<gst::Structure>("stats");
        let word = |name| stats.get::<String>(name).unwrap_or_default();
        let about = About {
            plan: self.job.id.clone(),
            segment: number,
            frames,
            packets: writer.packets,
            caps: encoded,
            encoded: line.encoded.lock().as_ref().map(ToString::to_string).unwrap_or_default(),
            machine: format!("{} on {} in {}", word("provider"), word("device"), word("precision")),
            evaluations: stats.get("window-evaluations").unwrap_or(0),
            bypassed: stats.get("bypassed").unwrap_or(0),
            milliseconds: started.elapsed().as_millis() as u64,
            sha256: String::new(),
        };
        if is_lost.load(Ordering::SeqCst) {
            return Err(Failure::Lost);
        }
        writer.finish(about.clone(), &target).map_err(stored)?;
        Ok(about)
    }

    /// Feeds the frames of `segment`, and those in front of it and behind it that it depends on.
    fn feed(
        &self,
        segment: &Segment,
        decoder: &mut Decoder,
        line: &Line,
        stop: &AtomicBool,
    ) -> Result<(), Failure> {
        decoder.seek(segment.context.start)?;
        let clips = &self.job.plan.clips;
        for place in segment.context.clone() {
            if stop.load(Ordering::SeqCst) {
                return Ok(());
            }
            let Decoded { buffer, number } = decoder.next()?;
            if clips.binary_search(&place).is_ok() {
                line.say(gst::Structure::new_empty(SCENE_CUT));
            }
            line.say(gst::Structure::builder(FRAME_NUMBER).field("number", number).build());
            if line.source.push_buffer(buffer).is_err() {
                // The other side knows why.
                break;
            }
        }
        Ok(())
    }

    /// Writes the packets to `writer` as they come. Gives their caps.
    fn collect(
        &self,
        line: &Line,
        writer: &mut part::Writer,
        is_lost: &AtomicBool,
        target: &Path,
    ) -> Result<String, Failure> {
        let mut caps: Option<gst::Caps> = None;
        loop {
            if self.interrupts.count.load(Ordering::SeqCst) > 0 {
                return Err(Failure::Interrupted);
            }
            if is_lost.load(Ordering::SeqCst) {
                return Err(Failure::Lost);
            }
            if let Some(reason) = line.error() {
                return Err(Failure::Segment(reason));
            }
            self.done.store(line.passed.load(Ordering::SeqCst), Ordering::SeqCst);
            let Some(sample) = line.sink.try_pull_sample(TICK) else {
                if !line.sink.is_eos() {
                    continue;
                }
                if let Some(reason) = line.error() {
                    return Err(Failure::Segment(reason));
                }
                let caps = caps.ok_or_else(|| "the encoder gave nothing".to_owned())?;
                return Ok(caps.to_string());
            };
            let new = sample.caps_owned();
            if caps.is_some() && caps != new {
                return Err(Failure::Segment("the encoder changed its format midway".to_owned()));
            }
            caps = new;
            let packet = packet(&sample).ok_or_else(|| "a packet has no time".to_owned())?;
            writer.push(&packet).map_err(|error| Failure::Job(failed(target, &error)))?;
        }
    }
}

/// The packet in a sample, at its running time.
fn packet(sample: &gst::Sample) -> Option<Packet> {
    let segment = sample.segment()?.downcast_ref::<gst::ClockTime>()?;
    let buffer = sample.buffer()?;
    let running = |time: Option<gst::ClockTime>| {
        let time = segment.to_running_time_full(time?)?;
        let nanoseconds = i64::try_from(time.abs().nseconds()).ok()?;
        Some(if time.is_negative() { -nanoseconds } else { nanoseconds })
    };
    let duration = buffer.duration().and_then(|time| i64::try_from(time.nseconds()).ok());
    Some(Packet {
        pts: running(buffer.pts()),
        dts: running(buffer.dts()),
        duration,
        flags: buffer.flags().bits(),
        bytes: buffer.map_readable().ok()?.to_vec(),
    })
}

/// The pipeline from decoded frames to packets; stopped when dropped.
struct Line {
    pipeline: gst::Pipeline,
    source: AppSrc,
    starsr: gst::Element,
    sink: AppSink,
    encoded: Encoded,
    /// Frames of the segment that have left the model.
    passed: Arc<AtomicU64>,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Line {
    fn new(restorer: &Restorer, segment: &Segment) -> Result<Self, String> {
        let Restorer { args, job, .. } = restorer;
        let video = &job.plan.video;
        let parse = |caps: &str| caps.parse::<gst::Caps>().map_err(text);
        let source = AppSrc::builder()
            .caps(&parse(&video.caps)?)
            .format(gst::Format::Time)
            .block(true)
            .max_buffers(AHEAD)
            .max_bytes(0)
            .build();
        let (restoring, format) = restoring(args, video.orientation.is_some())?;
        let starsr = restoring[0].clone();
        // Cuts come from the plan.
        starsr.set_property("scene-detection", false);
        let filter = make("capsfilter")?;
        filter.set_property("caps", muxable()?);
        let sink = AppSink::builder().sync(false).max_buffers(AHEAD as u32).build();
        let pipeline = gst::Pipeline::new();
        let ending = [filter, sink.clone().upcast()];
        pipeline.add(&source).map_err(text)?;
        pipeline.add_many(&restoring).map_err(text)?;
        pipeline.add_many(&ending).map_err(text)?;
        let chain: Vec<_> = [source.clone().upcast()].into_iter().chain(restoring).collect();
        gst::Element::link_many(&chain).map_err(text)?;
        gst::Element::link_many(&ending).map_err(text)?;
        let encoded = Encoded::default();
        let packets = Ending::Packets(ending);
        let encoding = Encoding::new(args, format, &packets, video.is_opaque, encoded.clone())?;
        encoding.watch()?;
        let decoded = parse(&video.decoded)?;
        encoding.complete(&pipeline, Some(&*decoded))?;
        sync(chain.iter().rev())?;
        let passed: Arc<AtomicU64> = Arc::default();
        cut(&always_pad(&starsr, "src")?, segment, &passed);
        let this = Self { pipeline, source, starsr, sink, encoded, passed };
        let started = this.pipeline.set_state(gst::State::Playing);
        started.map_err(|error| this.error().unwrap_or_else(|| error.to_string()))?;
        if let Some(orientation) = &video.orientation {
            let mut tags = gst::TagList::new();
            if let Some(tags) = tags.get_mut() {
                let orientation = orientation.as_str();
                tags.add::<gst::tags::ImageOrientation>(&orientation, gst::TagMergeMode::Replace);
            }
            this.source.send_event(gst::event::Tag::new(tags));
        }
        Ok(this)
    }

    /// Sends an event to the element in front of the next frame.
    fn say(&self, structure: gst::Structure) {
        // An element that is being stopped refuses it.
        self.source.send_event(gst::event::CustomDownstream::new(structure));
    }

    /// The sentence for an error.
    fn error(&self) -> Option<String> {
        let bus = self.pipeline.bus()?;
        let mut message = bus.pop_filtered(&[gst::MessageType::Error])?;
        while is_aftermath(&message) {
            let next = bus.timed_pop_filtered(Some(AFTERMATH), &[gst::MessageType::Error]);
            let Some(next) = next else { break };
            message = next;
        }
        let gst::MessageView::Error(error) = message.view() else { return None };
        Some(error.error().message().trim_end_matches('.').to_owned())
    }

    fn stop(&self) {
        // Going to NULL cancels a running inference; it cannot fail for the elements used here.
        let _ = self.pipeline.set_state(gst::State::Null);
    }
}

/// Lets only the frames of `segment` leave the model at `pad`, counts them, and ends with them.
fn cut(pad: &gst::Pad, segment: &Segment, passed: &Arc<AtomicU64>) {
    let before = segment.frames.start - segment.context.start;
    let count = segment.frames.end - segment.frames.start;
    let (seen, passed) = (Mutex::new(0), passed.clone());
    pad.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
        let mut seen = seen.lock();
        *seen += 1;
        if *seen <= before {
            return gst::PadProbeReturn::Drop;
        }
        if *seen <= before + count {
            passed.fetch_add(1, Ordering::SeqCst);
            return gst::PadProbeReturn::Ok;
        }
        if *seen == before + count + 1 {
            pad.push_event(gst::event::Eos::new());
        }
        info.flow_res = Err(gst::FlowError::Eos);
        gst::PadProbeReturn::Handled
    });
}

/// The caps of packets that some muxer for films takes, whichever the film will need.
fn muxable() -> Result<gst::Caps, String> {
    let mut all = gst::Caps::new_empty();
    for muxer in ["matroskamux", "mp4mux", "qtmux"] {
        let muxer = make(muxer)?;
        if let Some(template) = muxer.pad_template("video_%u") {
            all.merge(template.caps().clone());
        }
    }
    Ok(all)
}
