// SPDX-License-Identifier: MPL-2.0

//! From one file to another.

use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::Stop;
use super::args::Args;
use super::batch::Job;
use super::input;
use super::interrupts::Interrupts;
use super::messages::{Event, Listener};
use super::output::{Finished, Output};
use super::pipeline::{Input, Pipeline, remedy};
use super::probe::Probe;
use super::progress::{Progress, clock, counted};
use super::remux::Remux;
use super::streams::{Container, media_name};

/// How much earlier than its container the video may end without a warning, up to a fiftieth.
const MISSING: gst::ClockTime = gst::ClockTime::from_seconds(1);

/// Upscales the input of `job` to its output.
pub fn run(args: &Args, job: &Job, interrupts: &Interrupts) -> Result<(), Stop> {
    input::check(&job.input)?;
    let container = Container::from_path(&job.output)?;
    if let Some(codec) = args.codec {
        codec.check(args, container)?;
    }
    let mut output = Output::create(&job.input, &job.output, args.force)?;
    interrupts.remove_at_once(output.part());
    let probe = if args.no_ffmpeg { None } else { Probe::new(&job.input) };
    if let Some(duration) = probe.as_ref().and_then(Probe::duration)
        && let Some(start) = args.start.filter(|start| *start >= duration)
    {
        let input = job.input.display();
        Err(format!("{input}: is {duration} s long, and --start is {start} s"))?;
    }
    let remux = match &probe {
        None => None,
        Some(probe) => {
            let drops = args.drop_unsupported;
            Remux::plan(&job.input, probe, container, args.cut(), drops, remedy(container))?
        }
    };
    let pipeline = Pipeline::open(&job.input, probe.as_ref(), args.cut())?;
    let mut progress = Progress::new(args);
    let part = output.part();
    let Upscaled { frames, size, start } =
        upscale(args, job, &pipeline, container, part, remux.as_ref(), &mut progress, interrupts)?;
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
        progress.say(&format!("{output}: {reason}; the finished video is {}", path.display()));
    }
    match incomplete {
        Some(reason) => {
            Err(format!("{} holds the upscaled video alone: {reason}", path.display()).into())
        }
        None => {
            progress.finish(&path, frames, size);
            Ok(())
        }
    }
}

/// A finished video.
struct Upscaled {
    frames: u64,
    size: (u32, u32),
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
    progress: &mut Progress,
    interrupts: &Interrupts,
) -> Result<Upscaled, Stop> {
    // The demuxer's chapters are lost unless something writes them.
    let loses_chapters = remux.is_none() && container != Container::Matroska;
    let mut listener = Listener::new(args, job, pipeline, loses_chapters);
    let mut duration = None;
    while let Event::StreamsKnown = listener.next(pipeline, progress, &interrupts.count)? {
        let input = pipeline.connect(args, job, container, part, remux.is_some());
        // An element that cannot start explains that on the bus.
        let input = input.map_err(|reason| listener.explain(reason))?;
        duration = input.duration.filter(|_| args.cut().is_none());
        let (mut expected, mut frames) = (input.duration, input.frames);
        if let Some(cut) = args.cut() {
            expected = cut.duration.map(gst::ClockTime::from_seconds_f64);
            frames = None;
        }
        progress.expect(expected, frames);
        describe_input(job, &input, progress);
        let left_out = remux.map_or(&[][..], |remux| &remux.left_out);
        for stream in input.left_out.iter().chain(left_out) {
            listener.say(progress, &format!("not in the output: {stream}"));
        }
    }
    // Down to READY first: closing the file may fail, and NULL would throw that message away.
    pipeline.set_state(gst::State::Ready)?;
    if let Some(error) = listener.pop_error(Duration::ZERO) {
        return Err(listener.sentence(&error).into());
    }
    let (taken, done) = (pipeline.counts.taken(), pipeline.counts.done());
    if let (Some(end), Some(duration)) = (pipeline.counts.position(), duration)
        && let furthest = end.max(pipeline.counts.furthest())
        && furthest.saturating_add(MISSING) < duration
        && furthest < duration / 50 * 49
    {
        let (end, duration) = (end.nseconds() as f64 / 1e9, duration.nseconds() as f64 / 1e9);
        listener.say(
            progress,
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
        Some(size) => Ok(Upscaled { frames: done, size, start: pipeline.counts.start() }),
    }
}

/// Says what the input is.
fn describe_input(job: &Job, input: &Input, progress: &Progress) {
    let codec = media_name(&input.video);
    let video = input.video.structure(0);
    let number = |name| video.and_then(|video| video.get::<i32>(name).ok());
    let rate = video.and_then(|video| video.get::<gst::Fraction>("framerate").ok());
    let rate = rate.filter(|rate| rate.numer() > 0);
    let mut words = vec![codec.clone()];
    if let Some((width, height)) = number("width").zip(number("height")) {
        words.push(format!("{width}x{height}"));
    }
    if let Some(rate) = rate {
        let rate = f64::from(rate.numer()) / f64::from(rate.denom());
        words.push(format!("{} frames/s", (rate * 1000.0).round() / 1000.0));
    }
    if let Some(duration) = input.duration {
        words.push(clock(duration.nseconds() as f64 / 1e9));
    }
    if let Some(frames) = input.frames {
        words.push(format!("about {}", counted(frames)));
    }
    progress.announce(
        &format!("{}: {}", job.input.display(), words.join(", ")),
        "input",
        json!({
            "path": job.input.to_string_lossy(),
            "codec": codec,
            "width": number("width"),
            "height": number("height"),
            "frame_rate": rate.map(|rate| format!("{}/{}", rate.numer(), rate.denom())),
            "seconds": input.duration.map(|duration| duration.nseconds() as f64 / 1e9),
            "frames": input.frames,
        }),
    );
}
