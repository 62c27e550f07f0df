// SPDX-License-Identifier: MPL-2.0

//! From one file to another.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use gst_video::VideoColorimetry;
use serde_json::json;

use super::args::{Args, Deinterlace};
use super::batch::Job;
use super::encoder;
use super::messages::{Event, Listener};
use super::pictures::Pictures;
use super::pipeline::{Destination, Input, Pipeline, frames};
use super::progress::Progress;
use super::remux::{Remux, write_colors};
use crate::interrupts::{Interrupts, Stop};
use crate::media::counts::Beginning;
use crate::media::folder::is_picture_name;
use crate::media::input;
use crate::media::pattern::Pattern;
use crate::media::probe::{Probe, seconds, word};
use crate::media::scan::Scan;
use crate::media::spool::Spool;
use crate::media::streams::Container;
use crate::output::{Finished, Output};
use crate::values::{clock, counted};

/// How much earlier than its container the video may end without a warning, up to a fiftieth.
const MISSING: gst::ClockTime = gst::ClockTime::from_seconds(1);

/// Upscales the input of `job` to its output.
pub fn run(args: &Args, job: &Job, interrupts: &Interrupts) -> Result<(), Stop> {
    input::check(&job.input)?;
    if job.output == Path::new("-") {
        return to_standard_output(args, job, interrupts);
    }
    if args.raw_output.is_some() {
        let output = job.output.display();
        return Err(
            format!("--raw-output: writes to standard output; name - instead of {output}").into()
        );
    }
    if is_picture_name(&job.output) {
        to_pictures(args, job, interrupts)
    } else {
        to_file(args, job, interrupts)
    }
}

/// Waits for an input that comes through a pipe; gives what has to stay for it, and the job of reading
/// it from where it is.
fn arrive(args: &Args, job: &Job, interrupts: &Interrupts) -> Result<(Option<Spool>, Job), Stop> {
    let spool = match args.raw_input {
        Some(_) => None,
        None => Spool::new(&job.source, args.stall_timeout, &interrupts.count)?,
    };
    let copied = spool.as_ref().and_then(Spool::path);
    let source = copied.unwrap_or_else(|| job.source.clone());
    Ok((spool, Job { source, input: job.input.clone(), output: job.output.clone() }))
}

/// What FFmpeg says about the input, where it may be asked. Fails where the part that is wanted is
/// not in it.
pub fn probe(args: &Args, job: &Job, interrupts: &AtomicU32) -> Result<Option<Probe>, Stop> {
    let says_nothing = args.no_ffmpeg || args.raw_input.is_some();
    let mut probe = if says_nothing { None } else { Probe::new(&job.source) };
    let failed = |reason| format!("{}: {reason}", job.input.display());
    if let (Some(probe), Some(number)) = (&mut probe, args.video) {
        probe.choose_video(number).map_err(failed)?;
    }
    if let (Some(probe), Some(Deinterlace::Auto)) = (&mut probe, args.deinterlace) {
        probe.examine(&job.source, interrupts)?;
    }
    if let Some(duration) = probe.as_ref().and_then(Probe::duration)
        && let Some(start) = args.start.filter(|start| *start >= duration)
    {
        let input = job.input.display();
        return Err(format!("{input}: is {duration} s long, and --start is {start} s").into());
    }
    Ok(probe)
}

/// Into a file of a container, with all other streams.
fn to_file(args: &Args, job: &Job, interrupts: &Interrupts) -> Result<(), Stop> {
    let container = Container::from_path(&job.output)?;
    if let Some(codec) = args.codec {
        encoder::check(codec, args, container)?;
    }
    let output = Output::create(&[&job.source], &job.output, args.force)?;
    interrupts.remove_at_once(output.part());
    let (_spool, job) = &arrive(args, job, interrupts)?;
    let probe = probe(args, job, &interrupts.count)?;
    let remux = match &probe {
        None => None,
        Some(probe) => Remux::plan(args, &job.source, probe, container)?,
    };
    let mut work = Work::open(args, job, probe.as_ref())?;
    // The demuxer's chapters are lost unless something writes them.
    work.loses_chapters = remux.is_none() && container != Container::Matroska;
    let destination =
        Destination::File { container, path: output.part(), video_only: remux.is_some() };
    let left_out = remux.as_ref().map_or(&[][..], |remux| &remux.left_out);
    if args.estimate {
        return work.estimate(&destination, left_out, interrupts);
    }
    let (video, progress) = work.upscale(&destination, left_out, interrupts)?;
    complete(args, job, (output, container), remux, &video, &progress, interrupts)
}

/// Adds the rest of the input to the upscaled video in `output`, and gives the file its name.
pub fn complete(
    args: &Args,
    job: &Job,
    (mut output, container): (Output, Container),
    remux: Option<Remux>,
    video: &Upscaled,
    progress: &Progress,
    interrupts: &Interrupts,
) -> Result<(), Stop> {
    let Upscaled { frames, size, first, colors } = video;
    let mut incomplete = None;
    if let Some(remux) = remux {
        let whole = output.another()?;
        match remux.run(output.part(), whole.path(), *first, colors, &interrupts.count) {
            Ok(()) => output.replace(whole),
            // The upscaled video is worth keeping without the rest.
            Err(Stop::Failed(reason)) => incomplete = Some(reason),
            Err(Stop::Interrupted) => return Err(Stop::Interrupted),
        }
    } else if let Some(codec) = args.codec.filter(|_| !args.no_ffmpeg) {
        let whole = output.another()?;
        let (part, to) = (output.part(), whole.path());
        // The container has the colours in any case.
        match write_colors(codec, part, to, container, colors, &interrupts.count) {
            Ok(true) => output.replace(whole),
            Ok(false) | Err(Stop::Failed(_)) => {}
            Err(Stop::Interrupted) => return Err(Stop::Interrupted),
        }
    }
    let Finished { path, displaced } = output.finish()?;
    if let Some(reason) = displaced {
        let output = job.output.display();
        progress.say(&format!("{output}: {reason}; the finished video is {}", path.display()));
    }
    if let Some(reason) = incomplete {
        Err(format!("{} holds the upscaled video alone: {reason}", path.display()))?;
    }
    progress.finish(&path, *frames, *size);
    Ok(())
}

/// Into a picture, or one for each frame.
fn to_pictures(args: &Args, job: &Job, interrupts: &Interrupts) -> Result<(), Stop> {
    no_encoder(args, job)?;
    let pictures = Arc::new(Pictures::create(&job.output, args.force)?);
    // Pictures keep the numbers of those they are made of.
    let number = Pattern::of(&job.source).and_then(|pattern| pattern.first()).unwrap_or(1);
    let (_spool, job) = &arrive(args, job, interrupts)?;
    let work = Work::open(args, job, probe(args, job, &interrupts.count)?.as_ref())?;
    let destination = Destination::Pictures(&pictures, number);
    let upscaled = work.upscale(&destination, &[], interrupts).map_err(|stop| match stop {
        // The pipeline only knows that its pipe is broken.
        Stop::Failed(reason) => Stop::Failed(pictures.failure().unwrap_or(reason)),
        Stop::Interrupted => Stop::Interrupted,
    });
    let (Upscaled { frames, size, .. }, progress) = upscaled?;
    pictures.finish()?;
    progress.finish(&job.output, frames, size);
    Ok(())
}

/// To standard output, uncompressed.
fn to_standard_output(args: &Args, job: &Job, interrupts: &Interrupts) -> Result<(), Stop> {
    no_encoder(args, job)?;
    if args.json {
        return Err("--json does not go with - as output".to_owned().into());
    }
    let (_spool, job) = &arrive(args, job, interrupts)?;
    let work = Work::open(args, job, probe(args, job, &interrupts.count)?.as_ref())?;
    let (Upscaled { frames, size, .. }, progress) =
        work.upscale(&Destination::Pipe(args.raw_output), &[], interrupts)?;
    progress.finish(&job.output, frames, size);
    Ok(())
}

/// Fails where the options choose an encoder that the output is not for.
fn no_encoder(args: &Args, job: &Job) -> Result<(), String> {
    let options = [
        ("--estimate", args.estimate),
        ("--codec", args.codec.is_some()),
        ("--quality", args.quality.is_some()),
        ("--preset", args.preset.is_some()),
        ("--encoder", args.encoder.is_some()),
    ];
    match options.iter().find(|(_, given)| *given) {
        Some((option, _)) => Err(format!("{option} does not go with {}", job.output.display())),
        None => Ok(()),
    }
}

/// A finished video.
pub struct Upscaled {
    pub frames: u64,
    pub size: (u32, u32),
    pub first: Beginning,
    pub colors: VideoColorimetry,
}

/// A file that is being read.
struct Work<'a> {
    args: &'a Args,
    job: &'a Job,
    pipeline: Pipeline,
    /// The codec of an input that FFmpeg decodes, or of pictures.
    codec: Option<String>,
    /// The length as FFmpeg has it, or that of pictures.
    duration: Option<gst::ClockTime>,
    /// How many pictures there are, where all of several are wanted.
    pictures: Option<u64>,
    loses_chapters: bool,
    is_telecined: bool,
    /// Whether --deinterlace=auto has nothing to go by.
    guesses_fields: bool,
}

impl<'a> Work<'a> {
    fn open(args: &'a Args, job: &'a Job, probe: Option<&Probe>) -> Result<Self, String> {
        let pipeline = Pipeline::open(args, &job.source, probe)?;
        let video = probe.and_then(Probe::video);
        let own = video.and_then(|video| seconds(&video["duration"]));
        // A damaged file may state any length.
        let length =
            own.or(probe.and_then(Probe::duration)).filter(|time| (0.0..1e9).contains(time));
        let mut this = Self {
            args,
            job,
            pipeline,
            codec: None,
            duration: length.map(gst::ClockTime::from_seconds_f64),
            pictures: None,
            loses_chapters: false,
            guesses_fields: args.deinterlace == Some(Deinterlace::Auto) && probe.is_none(),
            is_telecined: probe.and_then(Probe::scan) == Some(Scan::Telecined),
        };
        if let Some((name, count)) = input::count_of_pictures(&job.source) {
            this.codec = Some(name);
            this.duration = args.framerate.duration_of(count);
            this.pictures = args.cut().is_none().then_some(count);
        } else if let Some(video) = video.filter(|_| this.pipeline.is_converted()) {
            this.codec = Some(word(video, "codec_name").to_uppercase());
        }
        Ok(this)
    }

    /// Connects the streams once they are known, and says what will be done.
    fn connect(
        &self,
        destination: &Destination,
        left_out: &[String],
        listener: &mut Listener,
        progress: &mut Progress,
    ) -> Result<Input, String> {
        let input = self.pipeline.connect(self.args, self.job, destination);
        // An element that cannot start explains that on the bus.
        let mut input = input.map_err(|reason| listener.explain(reason))?;
        if let Some(codec) = &self.codec {
            input.codec.clone_from(codec);
        }
        // GStreamer's demuxer of MPEG program streams knows of far too short a length.
        let is_short = |own| self.duration.is_some_and(|known| own < known / 2);
        if self.codec.is_some() || input.duration.is_none_or(is_short) {
            input.duration = self.duration;
            let length = input.duration.zip(input.rate);
            input.frames = length.and_then(|(time, rate)| frames(time, rate));
        }
        describe_input(self.job, &input, progress);
        if self.guesses_fields {
            let text = "its fields are not looked at without FFmpeg: --deinterlace=auto is double";
            listener.say(progress, &format!("{}: {text}", self.job.input.display()));
        }
        if self.is_telecined {
            let text = "is telecined: its 24 frames of every 30 are restored";
            listener.say(progress, &format!("{}: {text}", self.job.input.display()));
        }
        if let Some(cut) = self.args.cut() {
            input.duration = cut.of(input.duration);
            let length = input.duration.zip(input.rate);
            input.frames = length.and_then(|(time, rate)| frames(time, rate));
        }
        progress.expect(input.duration, input.frames);
        for stream in input.left_out.iter().chain(left_out) {
            listener.say(progress, &format!("not in the output: {stream}"));
        }
        Ok(input)
    }

    /// Runs the pipeline into `destination` for some windows, and says what all would take.
    fn estimate(
        self,
        destination: &Destination,
        left_out: &[String],
        interrupts: &Interrupts,
    ) -> Result<(), Stop> {
        let mut listener = Listener::new(self.args, self.job, &self.pipeline, self.loses_chapters);
        let mut progress = Progress::new(self.args, false);
        let mut all = None;
        let started = Instant::now();
        listener.measure();
        while let Event::StreamsKnown =
            listener.next(&self.pipeline, &mut progress, &interrupts.count)?
        {
            let input = self.connect(destination, left_out, &mut listener, &mut progress)?;
            all = input.frames;
        }
        let done = self.pipeline.counts.done();
        let written = match destination {
            Destination::File { path, .. } => fs::metadata(path).map_or(0, |file| file.len()),
            _ => 0,
        };
        let stats = self.pipeline.stats();
        let memory = stats.and_then(|stats| stats.get::<u64>("memory-estimate").ok()).unwrap_or(0);
        let Some(measured) = listener.measured() else {
            return Err(format!("{}: is too short to measure", self.job.input.display()).into());
        };
        let Some(frames) = all else {
            let input = self.job.input.display();
            return Err(format!(
                "{input}: does not say how long it is; {:.2} frames/s were measured",
                measured.rate
            )
            .into());
        };
        let left = frames.saturating_sub(measured.frames) as f64 / measured.rate;
        let seconds = (measured.at - started).as_secs_f64() + left;
        let disk = written as f64 / done.max(1) as f64 * frames as f64;
        progress.announce(
            &format!(
                "about {} for {} ({:.2} frames/s), {} MB of memory beside the model, {} MB of disk",
                clock(seconds),
                counted(frames, "frame"),
                measured.rate,
                memory.div_ceil(1_000_000),
                (disk / 1e6).ceil()
            ),
            "estimate",
            json!({
                "seconds": seconds,
                "frames": frames,
                "frames_per_second": measured.rate,
                "memory": memory,
                "disk": disk.ceil(),
            }),
        );
        Ok(())
    }

    /// Runs the pipeline into `destination`. Also says what is `left_out` of it.
    fn upscale(
        self,
        destination: &Destination,
        left_out: &[String],
        interrupts: &Interrupts,
    ) -> Result<(Upscaled, Progress), Stop> {
        let mut listener = Listener::new(self.args, self.job, &self.pipeline, self.loses_chapters);
        let mut progress = Progress::new(self.args, matches!(destination, Destination::Pipe(_)));
        let mut duration = None;
        while let Event::StreamsKnown =
            listener.next(&self.pipeline, &mut progress, &interrupts.count)?
        {
            let input = self.connect(destination, left_out, &mut listener, &mut progress)?;
            duration = input.duration.filter(|_| self.args.cut().is_none());
        }
        if interrupts.count.load(Ordering::SeqCst) > 0 {
            return Err(Stop::Interrupted);
        }
        // Down to READY first: closing the file may fail, and NULL would throw that message away.
        self.pipeline.set_state(gst::State::Ready)?;
        if let Some(error) = listener.pop_error(Duration::ZERO) {
            return Err(listener.sentence(&error).into());
        }
        let (taken, done) = (self.pipeline.counts.taken(), self.pipeline.counts.done());
        if let (Some(end), Some(duration)) = (self.pipeline.counts.position(), duration)
            && let furthest = end.max(self.pipeline.counts.furthest())
            && furthest.saturating_add(MISSING) < duration
            && furthest < duration / 50 * 49
        {
            let (end, duration) = (end.nseconds() as f64 / 1e9, duration.nseconds() as f64 / 1e9);
            listener.say(
                &progress,
                &format!("warning: the video ends after {end:.1} of {duration:.1} s; the input may be damaged or cut off"),
            );
        }
        let input = self.job.input.display();
        if let Some(complaint) = self.pipeline.complaint() {
            listener.say(&progress, &format!("warning: {input}: {complaint}"));
        }
        if let Some(count) = self.pictures.filter(|count| *count != taken) {
            Err(format!("{input}: {taken} of {count} pictures could be decoded"))?;
        }
        match self.pipeline.encoded() {
            _ if taken == 0 => Err(format!("{input}: no video frame could be decoded"))?,
            _ if taken != done => {
                Err(format!("{input}: {taken} frames were read but {done} upscaled"))?
            }
            None => Err(format!("{input}: the size of its video is unknown"))?,
            Some(video) => {
                let (size, colors) = ((video.width(), video.height()), video.colorimetry());
                let first = self.pipeline.counts.first();
                Ok((Upscaled { frames: done, size, first, colors }, progress))
            }
        }
    }
}

/// Says what the input is.
pub fn describe_input(job: &Job, input: &Input, progress: &Progress) {
    let mut words = vec![input.codec.clone()];
    if let Some((width, height)) = input.size {
        words.push(format!("{width}x{height}"));
    }
    if let Some(rate) = input.rate {
        let rate = f64::from(rate.numer()) / f64::from(rate.denom());
        words.push(format!("{} frames/s", (rate * 1000.0).round() / 1000.0));
    }
    if let Some(duration) = input.duration {
        words.push(clock(duration.nseconds() as f64 / 1e9));
    }
    if let Some(frames) = input.frames {
        words.push(format!("about {}", counted(frames, "frame")));
    }
    progress.announce(
        &format!("{}: {}", job.input.display(), words.join(", ")),
        "input",
        json!({
            "path": job.input.to_string_lossy(),
            "codec": input.codec,
            "width": input.size.map(|(width, _)| width),
            "height": input.size.map(|(_, height)| height),
            "frame_rate": input.rate.map(|rate| format!("{}/{}", rate.numer(), rate.denom())),
            "seconds": input.duration.map(|duration| duration.nseconds() as f64 / 1e9),
            "frames": input.frames,
        }),
    );
}
