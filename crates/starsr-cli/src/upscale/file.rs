// SPDX-License-Identifier: MPL-2.0

//! From one file to another.

use std::path::Path;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use super::Stop;
use super::args::Args;
use super::batch::Job;
use super::input;
use super::interrupts::Interrupts;
use super::messages::{Event, Listener};
use super::output::{Finished, Output};
use super::pipeline::{Pipeline, remedy};
use super::probe::Probe;
use super::progress::{self, Progress};
use super::remux::Remux;
use super::streams::Container;

/// How much earlier than its container the video may end without a warning, up to a fiftieth.
const MISSING: gst::ClockTime = gst::ClockTime::from_seconds(1);

/// Upscales the input of `job` to its output; gives a line for the user.
pub fn run(args: &Args, job: &Job, interrupts: &Interrupts) -> Result<String, Stop> {
    input::check(&job.input)?;
    let container = Container::from_path(&job.output)?;
    if let Some(codec) = args.codec {
        codec.check(args, container)?;
    }
    let mut output = Output::create(&job.input, &job.output, args.force)?;
    interrupts.remove_at_once(output.part());
    let probe = if args.no_ffmpeg { None } else { Probe::new(&job.input) };
    let remux = match &probe {
        None => None,
        Some(probe) => {
            let drops = args.drop_unsupported;
            Remux::plan(&job.input, probe, container, drops, remedy(container))?
        }
    };
    let pipeline = Pipeline::open(&job.input, probe.as_ref())?;
    let Upscaled { summary, start } =
        upscale(args, job, &pipeline, container, output.part(), remux.as_ref(), &interrupts.count)?;
    drop(pipeline);
    let mut incomplete = None;
    if let Some(remux) = remux {
        let whole = output.another()?;
        match remux.run(output.part(), whole.path(), start, &interrupts.count) {
            Ok(()) => output.replace(whole),
            // The upscaled video is worth keeping without the rest.
            Err(Stop::Failed(reason)) => incomplete = Some(reason),
            Err(Stop::Interrupted) => return Err(Stop::Interrupted),
        }
    }
    let Finished { path, displaced } = output.finish()?;
    if let Some(reason) = displaced {
        let output = job.output.display();
        eprintln!("starsr: {output}: {reason}; the finished video is {}", path.display());
    }
    match incomplete {
        Some(reason) => {
            Err(format!("{} holds the upscaled video alone: {reason}", path.display()).into())
        }
        None => Ok(format!("{}: {summary}", path.display())),
    }
}

/// A finished video.
struct Upscaled {
    /// A summary for the user.
    summary: String,
    /// What the input calls the moment that is 0 in the video.
    start: gst::ClockTime,
}

/// Runs `pipeline` from the input of `job` to `part`. With `remux` only the video gets there.
fn upscale(
    args: &Args,
    job: &Job,
    pipeline: &Pipeline,
    container: Container,
    part: &Path,
    remux: Option<&Remux>,
    interrupts: &AtomicU32,
) -> Result<Upscaled, Stop> {
    // The demuxer's chapters are lost unless something writes them.
    let loses_chapters = remux.is_none() && container != Container::Matroska;
    let mut listener = Listener::new(args, job, pipeline, loses_chapters);
    let mut progress = Progress::new(args.quiet, None, None);
    let mut duration = None;
    while let Event::StreamsKnown = listener.next(pipeline, &mut progress, interrupts)? {
        let input = pipeline.connect(args, job, container, part, remux.is_some());
        // An element that cannot start explains that on the bus.
        let input = input.map_err(|reason| listener.explain(reason))?;
        duration = input.duration;
        progress = Progress::new(args.quiet, input.duration, input.frames);
        let left_out = remux.map_or(&[][..], |remux| &remux.left_out);
        for stream in input.left_out.iter().chain(left_out) {
            listener.say(&progress, &format!("not in the output: {stream}"));
        }
    }
    // Down to READY first: closing the file may fail, and NULL would throw that message away.
    pipeline.set_state(gst::State::Ready)?;
    if let Some(error) = listener.pop_error(Duration::ZERO) {
        return Err(listener.sentence(&error).into());
    }
    let (taken, done) = (pipeline.counts.taken(), pipeline.counts.done());
    if let (Some(end), Some(duration)) = (pipeline.counts.position(), duration)
        && end + MISSING < duration
        && end < duration / 50 * 49
    {
        let (end, duration) = (end.nseconds() as f64 / 1e9, duration.nseconds() as f64 / 1e9);
        listener.say(
            &progress,
            &format!("warning: the video ends after {end:.1} of {duration:.1} s; the input may be damaged or cut off"),
        );
    }
    let input = job.input.display();
    match pipeline.size() {
        _ if taken == 0 => Err(format!("{input}: no video frame could be decoded"))?,
        _ if taken != done => {
            Err(format!("{input}: {taken} frames were read but {done} upscaled"))?
        }
        None => Err(format!("{input}: the size of its video is unknown"))?,
        Some((width, height)) => {
            let time = progress.elapsed();
            let rate = progress::rate(done, time);
            let time = progress::clock(time.as_secs_f64());
            let summary = format!("{done} frames, {width}x{height}, {time} ({rate})");
            Ok(Upscaled { summary, start: pipeline.counts.start() })
        }
    }
}
