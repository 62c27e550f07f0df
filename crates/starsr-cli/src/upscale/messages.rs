// SPDX-License-Identifier: MPL-2.0

//! What the pipeline says on its bus, and what the user is to know of it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use gst::prelude::*;
use serde_json::json;

use super::args::Args;
use super::batch::Job;
use super::pipeline::Pipeline;
use super::progress::Progress;
use crate::interrupts::Stop;
use crate::media::errors::{about_input, is_aftermath, missing_plugin};
use crate::media::held::STREAMS_KNOWN;
use crate::media::stall::Watchdog;

/// Interval at which the clock and Ctrl-C are checked.
const TICK: gst::ClockTime = gst::ClockTime::from_mseconds(100);
/// An input whose streams are still unknown is given up after this time without any reading.
const UNREAD: Duration = Duration::from_secs(3);
/// Windows, and time for at least two of them, that are enough to measure a speed.
const ENOUGH: usize = 8;
const ENOUGH_TIME: Duration = Duration::from_secs(20);
/// How long to wait for a better explanation after an error that explains nothing.
const AFTERMATH: Duration = Duration::from_millis(300);

/// What the pipeline reports.
pub enum Event {
    StreamsKnown,
    EndOfStream,
    /// Enough is measured.
    Measured,
}

/// A speed.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// When so many frames were finished.
    pub at: Instant,
    pub frames: u64,
    /// Frames a second from then on.
    pub rate: f64,
}

/// The listening side of a running pipeline.
pub struct Listener<'a> {
    args: &'a Args,
    job: &'a Job,
    loses_chapters: bool,
    bus: Option<gst::Bus>,
    watchdog: Watchdog,
    /// Whether the input's streams are known.
    known: bool,
    /// Whether the user knows what the output will be.
    described: bool,
    /// When the number of finished frames changed, where that is measured.
    changes: Option<Vec<(Instant, u64)>>,
    /// Whether the streams were ended here, after a stall.
    ended: bool,
    /// When some thread was last seen reading the input.
    read: Instant,
    /// Description of a plugin that GStreamer lacks.
    missing: Option<String>,
    said: Vec<String>,
}

impl<'a> Listener<'a> {
    /// Listens to `pipeline`, from which the output does not get chapters if it `loses_chapters`.
    pub fn new(args: &'a Args, job: &'a Job, pipeline: &Pipeline, loses_chapters: bool) -> Self {
        Self {
            args,
            job,
            loses_chapters,
            bus: pipeline.pipeline.bus(),
            watchdog: Watchdog::new(),
            known: false,
            described: false,
            changes: None,
            ended: false,
            read: Instant::now(),
            missing: None,
            said: Vec::new(),
        }
    }

    /// Ends the waiting once the speed is known.
    pub fn measure(&mut self) {
        self.changes = Some(Vec::new());
    }

    /// The speed, from the first frames that were finished to the last: windows finish several at
    /// once.
    pub fn measured(&self) -> Option<Measured> {
        let changes = self.changes.as_deref()?;
        let ((first, frames), (last, all)) = (*changes.first()?, *changes.last()?);
        let time = (last - first).as_secs_f64();
        (time > 0.0).then(|| Measured { at: first, frames, rate: (all - frames) as f64 / time })
    }

    /// Notes the number of frames that are `done`; whether enough is known.
    fn is_measured(&mut self, done: u64) -> bool {
        let Some(changes) = &mut self.changes else { return false };
        if done > changes.last().map_or(0, |(_, done)| *done) {
            changes.push((Instant::now(), done));
        }
        match changes.as_slice() {
            [(first, _), .., (last, _)] => {
                changes.len() > ENOUGH || *last - *first > ENOUGH_TIME && changes.len() > 2
            }
            _ => false,
        }
    }

    /// Waits for the next event, keeping the progress up to date.
    pub fn next(
        &mut self,
        pipeline: &Pipeline,
        progress: &mut Progress,
        interrupts: &AtomicU32,
    ) -> Result<Event, Stop> {
        loop {
            if let Some(event) = self.step(pipeline, progress, interrupts, TICK)? {
                return Ok(event);
            }
        }
    }

    /// The next event if it comes within `wait`, keeping the progress up to date.
    pub fn step(
        &mut self,
        pipeline: &Pipeline,
        progress: &mut Progress,
        interrupts: &AtomicU32,
        wait: gst::ClockTime,
    ) -> Result<Option<Event>, Stop> {
        let bus = self.bus.clone().ok_or_else(|| "the pipeline has no bus".to_owned())?;
        if interrupts.load(Ordering::SeqCst) > 0 {
            return Err(Stop::Interrupted);
        }
        let counts = &pipeline.counts;
        progress.update(pipeline.state());
        if !self.described
            && let Some((video, stats)) = pipeline.encoded().zip(pipeline.stats())
        {
            self.described = true;
            describe_output(self.job, (video.width(), video.height()), &stats, progress);
        }
        if self.is_measured(counts.done()) {
            return Ok(Some(Event::Measured));
        }
        let idle = self.watchdog.idle_time(counts.moved());
        let patience = self.patience(idle, pipeline);
        if idle > patience && pipeline.is_starving() {
            self.end_stalled(pipeline, progress, patience)?;
        }
        let Some(message) = bus.timed_pop(wait) else {
            if !self.known {
                pipeline.settle();
            }
            if self.known || pipeline.is_reading() {
                self.read = Instant::now();
            } else if self.read.elapsed() > UNREAD {
                let input = self.job.input.display();
                Err(format!(
                    "{input}: no stream could be found in it; it may be damaged or cut off"
                ))?;
            }
            return Ok(None);
        };
        self.note(&message, progress);
        match message.view() {
            gst::MessageView::Error(_) => Err(self.worst(message).into()),
            gst::MessageView::Eos(_) => Ok(Some(Event::EndOfStream)),
            gst::MessageView::Application(application)
                if application
                    .structure()
                    .is_some_and(|structure| structure.name() == STREAMS_KNOWN) =>
            {
                self.known = true;
                Ok(Some(Event::StreamsKnown))
            }
            _ => Ok(None),
        }
    }

    /// How long nothing may happen.
    fn patience(&self, idle: Duration, pipeline: &Pipeline) -> Duration {
        match Duration::from_secs(self.args.stall_timeout) {
            Duration::ZERO => Duration::MAX,
            // Some demuxers stop at the end of the file without a word.
            limit if self.known && idle > UNREAD && !pipeline.is_reading() => limit.min(UNREAD),
            limit => limit,
        }
    }

    /// Ends the streams of an input that delivers nothing any more, so that what there is becomes a
    /// complete file. Fails where nothing came at all, or where even that does not help.
    fn end_stalled(
        &mut self,
        pipeline: &Pipeline,
        progress: &Progress,
        patience: Duration,
    ) -> Result<(), Stop> {
        let (input, seconds) = (self.job.input.display(), patience.as_secs());
        if !self.known || self.ended {
            Err(format!(
                "{input}: nothing has come from it for {seconds} s (see --stall-timeout)"
            ))?;
        }
        self.say(
            progress,
            &format!(
                "warning: {input}: nothing has come from it for {seconds} s, and it did not end; the output ends here"
            ),
        );
        self.ended = true;
        self.watchdog.reset();
        pipeline.end();
        Ok(())
    }

    /// Shows the user warnings and losses, and remembers what may explain a later error.
    fn note(&mut self, message: &gst::Message, progress: &Progress) {
        match message.view() {
            gst::MessageView::Warning(warning) => {
                let text = warning.error().message().to_owned();
                self.say(progress, &format!("warning: {text}"));
            }
            gst::MessageView::Toc(_) if self.loses_chapters => {
                self.say(progress, "not in the output: chapters (.mkv keeps them)");
            }
            gst::MessageView::Element(_) => {
                self.missing = missing_plugin(message).or(self.missing.take());
            }
            _ => {}
        }
    }

    /// Prints a line, once.
    pub fn say(&mut self, progress: &Progress, line: &str) {
        if !self.said.iter().any(|said| said == line) {
            self.said.push(line.to_owned());
            progress.say(line);
        }
    }

    /// The next error on the bus; other messages are dropped.
    pub fn pop_error(&self, timeout: Duration) -> Option<gst::Message> {
        let end = Instant::now() + timeout;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let left = gst::ClockTime::try_from(left).unwrap_or(gst::ClockTime::ZERO);
            let message = self.bus.as_ref()?.timed_pop(left)?;
            if message.type_() == gst::MessageType::Error {
                return Some(message);
            }
        }
    }

    /// The error on the bus, which is more precise, or else `reason`.
    pub fn explain(&self, reason: String) -> String {
        match self.pop_error(Duration::ZERO) {
            Some(message) => self.worst(message),
            None => reason,
        }
    }

    /// The sentence for `first`, or for an error after it where `first` only says that data stopped
    /// flowing.
    fn worst(&self, first: gst::Message) -> String {
        if !is_aftermath(&first) {
            return self.sentence(&first);
        }
        while let Some(message) = self.pop_error(AFTERMATH) {
            if !is_aftermath(&message) {
                return self.sentence(&message);
            }
        }
        self.sentence(&first)
    }

    /// One sentence for the user.
    pub fn sentence(&self, message: &gst::Message) -> String {
        let gst::MessageView::Error(error) = message.view() else { return String::new() };
        let (what, debug) = (error.error(), error.debug().unwrap_or_default());
        let source = message.src().and_then(|source| source.downcast_ref::<gst::Element>());
        let factory = source.and_then(|source| source.factory()).map(|factory| factory.name());
        let output = self.job.output.display();
        let mut text = match factory.as_deref() {
            Some("filesink" | "fdsink") if what.matches(gst::ResourceError::NoSpaceLeft) => {
                format!("{output}: no space left on the device")
            }
            // The system's words stand at the end of the details.
            Some("filesink" | "fdsink") => match debug.trim_end().rsplit_once(": ") {
                Some((_, reason)) => format!("{output}: cannot be written: {reason}"),
                None => format!("{output}: cannot be written"),
            },
            Some("starsr") => what.message().to_owned(),
            _ => about_input(&self.job.input, &what, self.missing.as_deref()),
        };
        if text.contains("deinterlace") && self.args.deinterlace.is_none() {
            text += " (here: --deinterlace)";
        }
        if self.args.verbose && !debug.is_empty() {
            text += &format!("\n{debug}");
        }
        text
    }
}

/// Says what the output will be, and what it needs.
fn describe_output(
    job: &Job,
    (width, height): (u32, u32),
    stats: &gst::StructureRef,
    progress: &Progress,
) {
    let word = |name| stats.get::<String>(name).unwrap_or_default();
    let (model, device, precision) = (word("model"), word("device"), word("precision"));
    let memory = stats.get::<u64>("memory-estimate").unwrap_or_default();
    let output = job.output.display();
    progress.announce(
        &format!(
            "to {output}: {width}x{height}, with {model} on the {device}, about {} MB of memory beside the model",
            memory.div_ceil(1_000_000)
        ),
        "output",
        json!({
            "path": job.output.to_string_lossy(),
            "width": width,
            "height": height,
            "model": model,
            "device": device,
            "precision": precision,
            "memory": memory,
        }),
    );
}
