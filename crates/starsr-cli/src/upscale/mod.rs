// SPDX-License-Identifier: MPL-2.0

//! From file to file: the video goes through the element `starsr`, audio and subtitles go beside it
//! untouched.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use gst::prelude::*;

mod args;
mod elements;
mod input;
mod output;
mod pipeline;
mod progress;
mod stall;
mod streams;

pub use args::Args;
use output::{Finished, Output};
use pipeline::{Pipeline, STREAMS_KNOWN};
use progress::Progress;
use stall::Watchdog;
use streams::Container;

/// Interval at which the clock and Ctrl-C are checked.
const TICK: gst::ClockTime = gst::ClockTime::from_mseconds(100);
/// An input whose streams are still unknown is given up after this time without any reading.
const UNREAD: Duration = Duration::from_secs(3);
/// How much earlier than its container the video may end without a warning, up to a fiftieth.
const MISSING: gst::ClockTime = gst::ClockTime::from_seconds(1);
/// How long to wait for a better explanation after an error that explains nothing.
const AFTERMATH: Duration = Duration::from_millis(300);

/// Why there is no output.
pub enum Stop {
    /// A sentence for the user.
    Failed(String),
    /// Ctrl-C, SIGTERM or SIGHUP.
    Interrupted,
}

impl From<String> for Stop {
    fn from(reason: String) -> Self {
        Self::Failed(reason)
    }
}

/// Upscales `args.input` to `args.output`.
pub fn run(args: &Args) -> Result<(), Stop> {
    input::check(&args.input)?;
    let container = Container::from_path(&args.output)?;
    gst::init().map_err(|error| error.to_string())?;
    gststarsr::plugin_register_static().map_err(|error| error.to_string())?;

    let output = Output::create(&args.input, &args.output, args.force)?;
    let interrupts = catch_interrupts(output.part())?;
    let summary = upscale(args, container, output.part(), &interrupts)?;
    let Finished { path, displaced } = output.finish()?;
    if let Some(reason) = displaced {
        let output = args.output.display();
        eprintln!("starsr: {output}: {reason}; the finished video is {}", path.display());
    }
    if !args.quiet {
        println!("{}: {summary}", path.display());
    }
    Ok(())
}

/// Counts Ctrl-C, SIGTERM and SIGHUP. The second signal ends the program at once.
fn catch_interrupts(part: &Path) -> Result<Arc<AtomicU32>, String> {
    let interrupts = Arc::new(AtomicU32::new(0));
    let (counter, part) = (interrupts.clone(), part.to_owned());
    ctrlc::set_handler(move || {
        if counter.fetch_add(1, Ordering::SeqCst) > 0 {
            let _ = fs::remove_file(&part);
            std::process::exit(crate::INTERRUPTED.into());
        }
    })
    .map_err(|error| format!("signals cannot be handled: {error}"))?;
    Ok(interrupts)
}

/// Runs the pipeline from `args.input` to `part`; gives a summary for the user.
fn upscale(
    args: &Args,
    container: Container,
    part: &Path,
    interrupts: &AtomicU32,
) -> Result<String, Stop> {
    let pipeline = Pipeline::open(&args.input)?;
    let bus = pipeline.pipeline.bus();
    let watchdog = Watchdog::new(Duration::from_secs(args.stall_timeout));
    let mut run = Run {
        args,
        container,
        bus,
        watchdog,
        known: false,
        ended: false,
        missing: None,
        said: Vec::new(),
    };
    let mut progress = Progress::new(args.quiet, None, None);
    let mut duration = None;
    while let Event::StreamsKnown = run.next(&pipeline, &mut progress, interrupts)? {
        run.known = true;
        // An element that cannot start explains that on the bus.
        let input =
            pipeline.connect(args, container, part).map_err(|reason| run.explain(reason))?;
        duration = input.duration;
        progress = Progress::new(args.quiet, input.duration, input.frames);
        for stream in &input.left_out {
            run.say(&progress, &format!("not in the output: {stream}"));
        }
    }
    // Down to READY first: closing the file may fail, and NULL would throw that message away.
    pipeline.set_state(gst::State::Ready)?;
    if let Some(error) = run.pop_error(Duration::ZERO) {
        return Err(run.sentence(&error).into());
    }
    let (taken, done) = (pipeline.counts.taken(), pipeline.counts.done());
    if let (Some(end), Some(duration)) = (pipeline.counts.position(), duration)
        && end + MISSING < duration
        && end < duration / 50 * 49
    {
        let (end, duration) = (end.nseconds() as f64 / 1e9, duration.nseconds() as f64 / 1e9);
        run.say(
            &progress,
            &format!("warning: the video ends after {end:.1} of {duration:.1} s; the input may be damaged or cut off"),
        );
    }
    let input = args.input.display();
    match pipeline.size() {
        _ if taken == 0 => Err(format!("{input}: no video frame could be decoded"))?,
        _ if taken != done => {
            Err(format!("{input}: {taken} frames were read but {done} upscaled"))?
        }
        None => Err(format!("{input}: the size of its video is unknown"))?,
        Some((width, height)) => {
            let time = progress.elapsed();
            let rate = progress::rate(done, time);
            Ok(format!(
                "{done} frames, {width}x{height}, {} ({rate})",
                progress::clock(time.as_secs_f64())
            ))
        }
    }
}

/// What the pipeline reports.
enum Event {
    StreamsKnown,
    EndOfStream,
}

/// The listening side of a running pipeline.
struct Run<'a> {
    args: &'a Args,
    container: Container,
    bus: Option<gst::Bus>,
    watchdog: Watchdog,
    /// Whether the input's streams are known.
    known: bool,
    /// Whether the streams were ended here, after a stall.
    ended: bool,
    /// Description of a plugin that GStreamer lacks.
    missing: Option<String>,
    said: Vec<String>,
}

impl Run<'_> {
    /// Waits for the next event, keeping the progress up to date.
    fn next(
        &mut self,
        pipeline: &Pipeline,
        progress: &mut Progress,
        interrupts: &AtomicU32,
    ) -> Result<Event, Stop> {
        let bus = self.bus.clone().ok_or_else(|| "the pipeline has no bus".to_owned())?;
        let mut read = Instant::now();
        loop {
            if interrupts.load(Ordering::SeqCst) > 0 {
                return Err(Stop::Interrupted);
            }
            let counts = &pipeline.counts;
            progress.update(counts.taken(), counts.done(), counts.position());
            if self.watchdog.is_stalled(counts.moved()) && pipeline.is_starving() {
                self.end_stalled(pipeline, progress)?;
            }
            let Some(message) = bus.timed_pop(TICK) else {
                if self.known || pipeline.is_reading() {
                    read = Instant::now();
                } else if read.elapsed() > UNREAD {
                    let input = self.args.input.display();
                    Err(format!(
                        "{input}: no stream could be found in it; it may be damaged or cut off"
                    ))?;
                }
                continue;
            };
            self.note(&message, progress);
            match message.view() {
                gst::MessageView::Error(_) => return Err(self.worst(message).into()),
                gst::MessageView::Eos(_) => return Ok(Event::EndOfStream),
                gst::MessageView::Application(application)
                    if application
                        .structure()
                        .is_some_and(|structure| structure.name() == STREAMS_KNOWN) =>
                {
                    return Ok(Event::StreamsKnown);
                }
                _ => {}
            }
        }
    }

    /// Ends the streams of an input that delivers nothing any more, so that what there is becomes a
    /// complete file. Fails where nothing came at all, or where even that does not help.
    fn end_stalled(&mut self, pipeline: &Pipeline, progress: &Progress) -> Result<(), Stop> {
        let (input, seconds) = (self.args.input.display(), self.args.stall_timeout);
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
            gst::MessageView::Toc(_) if self.container != Container::Matroska => {
                self.say(progress, "not in the output: chapters (.mkv keeps them)");
            }
            gst::MessageView::Element(element) => {
                let lacking =
                    element.structure().filter(|structure| structure.name() == "missing-plugin");
                if let Some(name) =
                    lacking.and_then(|structure| structure.get::<String>("name").ok())
                {
                    self.missing = Some(name);
                }
            }
            _ => {}
        }
    }

    /// Prints a line, once.
    fn say(&mut self, progress: &Progress, line: &str) {
        if !self.said.iter().any(|said| said == line) {
            self.said.push(line.to_owned());
            progress.say(&format!("starsr: {line}"));
        }
    }

    /// The next error on the bus; other messages are dropped.
    fn pop_error(&self, timeout: Duration) -> Option<gst::Message> {
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
    fn explain(&self, reason: String) -> String {
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
    fn sentence(&self, message: &gst::Message) -> String {
        let gst::MessageView::Error(error) = message.view() else { return String::new() };
        let (what, debug) = (error.error(), error.debug().unwrap_or_default());
        let source = message.src().and_then(|source| source.downcast_ref::<gst::Element>());
        let factory = source.and_then(|source| source.factory()).map(|factory| factory.name());
        let (input, output) = (self.args.input.display(), self.args.output.display());
        let mut text = match factory.as_deref() {
            Some("filesink") if what.matches(gst::ResourceError::NoSpaceLeft) => {
                format!("{output}: no space left on the device")
            }
            // The system's words stand at the end of the details.
            Some("filesink") => match debug.trim_end().rsplit_once(": ") {
                Some((_, reason)) => format!("{output}: cannot be written: {reason}"),
                None => format!("{output}: cannot be written"),
            },
            Some("starsr") => what.message().to_owned(),
            _ if what.matches(gst::StreamError::TypeNotFound)
                || what.matches(gst::StreamError::WrongType) =>
            {
                format!("{input}: not a media file that GStreamer knows")
            }
            _ => match &self.missing {
                Some(plugin) => {
                    format!("{input}: GStreamer has no {plugin}; install the plugin for it")
                }
                None => format!("{input}: {}", what.message().trim_end_matches('.')),
            },
        };
        if text.contains("deinterlace") && !self.args.deinterlace {
            text += " (here: --deinterlace)";
        }
        if self.args.verbose && !debug.is_empty() {
            text += &format!("\n{debug}");
        }
        text
    }
}

/// Whether the error only says that data stopped flowing, as sources and demuxers do after another
/// element's error.
fn is_aftermath(message: &gst::Message) -> bool {
    let gst::MessageView::Error(error) = message.view() else { return false };
    error.error().matches(gst::StreamError::Failed)
        && error.debug().is_some_and(|debug| debug.contains("streaming stopped, reason"))
}
