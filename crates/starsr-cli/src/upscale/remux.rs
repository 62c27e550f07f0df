// SPDX-License-Identifier: MPL-2.0

//! The input's other streams, tags, chapters and attachments, added to the finished video with the
//! programs of FFmpeg: GStreamer's demuxers and muxers lose some of them.

use std::iter;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicU32;

use gst_video::VideoColorimetry;
use serde_json::Value;

use super::args::Args;
use super::codec::Codec;
use crate::interrupts::Stop;
use crate::media::converter::is_converted;
use crate::media::counts::Beginning;
use crate::media::cut::{Cut, NOT_BEFORE};
use crate::media::ffmpeg::{Words, ffmpeg, file, is_installed, last_line, unwritten, wait};
use crate::media::input;
use crate::media::probe::{MATROSKA, QUICKTIME};
use crate::media::probe::{
    Probe, first_frame, flags, has_flag, index, is_foreign, kind, start_of, tags_of_stream, word,
};
use crate::media::streams::{Container, Kind};
use crate::values::counted;

/// Formats, in the words of ffprobe, whose streams FFmpeg reads as well as GStreamer does.
const FORMATS: [&str; 9] =
    [QUICKTIME, MATROSKA, "mpegts", "mpeg", "avi", "flv", "ogg", "asf", "dv"];
/// Seconds that are no difference; Matroska counts in thousandths.
const EXACT: f64 = 0.0015;

/// How the rest of an input gets into the output.
pub struct Remux {
    input: PathBuf,
    container: Container,
    /// Whether GStreamer counts the input's time from the beginning of its first stream.
    is_rebased: bool,
    /// Whether picture and sound begin together: FFmpeg lets the pictures of AVI, which has no times,
    /// be late by those that the decoder holds back.
    is_timeless: bool,
    /// Index of the video in the input, its tags, and its flags as FFmpeg's option takes them.
    video: u64,
    tags: Vec<(String, String)>,
    flags: String,
    carried: Vec<Carried>,
    /// How the video is encoded, where its stream still lacks its colours.
    codec: Option<Codec>,
    cut: Option<Cut>,
    keeps_own_tags: bool,
    /// What will be missing from the output, a sentence each.
    pub left_out: Vec<String>,
}

/// A stream that is carried.
struct Carried {
    index: u64,
    /// `copy`, or the encoder of text.
    codec: &'static str,
    /// When it begins in the input, in seconds.
    start: Option<f64>,
    is_opus: bool,
    /// Whether it is no cover and no attachment.
    is_timed: bool,
}

impl Carried {
    fn new(stream: &Value, codec: &'static str) -> Self {
        let is_opus = word(stream, "codec_name") == "opus";
        let is_timed = !matches!(kind(stream), None | Some(Kind::Video));
        Self { index: index(stream), codec, start: start_of(stream), is_opus, is_timed }
    }
}

impl Remux {
    /// Plans what to carry of `input` under the options, as ffprobe describes it. `None` where FFmpeg
    /// does not read such a file as GStreamer does, and where there is nothing beside the video.
    ///
    /// # Errors
    ///
    /// A stream that `container` cannot hold, unless the options allow leaving it out, and a choice
    /// that names no stream.
    pub fn plan(
        args: &Args,
        input: &Path,
        probe: &Probe,
        container: Container,
    ) -> Result<Option<Self>, String> {
        let (format, Some(main)) = (probe.format(), probe.video()) else { return Ok(None) };
        if !is_carried(probe, args.cut()) {
            return Ok(None);
        }
        let (tags, own) = (probe.tags(), tags_of_stream(main));
        let has_more = tags.iter().any(|(name, _)| is_foreign(name)) || !own.is_empty();
        let chooses = args.choices.audio.is_some() || args.choices.subtitles.is_some();
        let codec = args.codec.filter(|codec| codec.needs_color_filter());
        let is_alone = probe.streams().len() == 1 && probe.chapters() == 0 && !has_more;
        if is_alone && !chooses && codec.is_none() {
            return Ok(None);
        }
        let mut this = Self {
            input: input.to_owned(),
            container,
            is_rebased: format == MATROSKA || is_converted(probe, args.cut()),
            codec,
            cut: args.cut(),
            is_timeless: format == "avi" && args.cut().is_none(),
            video: index(main),
            tags: own,
            flags: flags(main),
            carried: Vec::new(),
            keeps_own_tags: tags.iter().any(|(name, _)| name.contains('.')),
            left_out: Vec::new(),
        };
        let others: Vec<_> =
            probe.streams().iter().filter(|stream| index(stream) != this.video).collect();
        let language = |stream: &Value| match word(&stream["tags"], "language") {
            "unknown" => String::new(),
            language => language.to_owned(),
        };
        let described: Vec<_> =
            others.iter().map(|stream| (kind(stream), language(stream))).collect();
        let wanted = args.choices.select(&described)?.into_iter();
        let others = others.into_iter().zip(wanted).filter(|(_, wanted)| *wanted);
        let (here, elsewhere): (Vec<_>, Vec<_>) =
            others.map(|(stream, _)| stream).partition(|stream| !probe.is_elsewhere(stream, main));
        if !elsewhere.is_empty() {
            let count = counted(elsewhere.len() as u64, "stream");
            this.left_out.push(format!("{count} of other programmes"));
        }
        this.choose(&here, args.drop_unsupported)?;
        Ok(Some(this))
    }

    /// What an output in `container` would lack by default, a phrase each; `None` where GStreamer alone
    /// finds that out.
    pub fn losses(
        input: &Path,
        probe: &Probe,
        container: Container,
    ) -> Result<Option<Vec<String>>, String> {
        let args = Args::of(["--drop-unsupported"])?;
        let plan = Self::plan(&args, input, probe, container)?;
        Ok(is_carried(probe, None).then(|| plan.map_or_else(Vec::new, |plan| plan.left_out)))
    }

    /// Decides what becomes of each of the `others`.
    fn choose(&mut self, others: &[&Value], drops: bool) -> Result<(), String> {
        let mut wanted = Vec::new();
        for stream in others {
            let codec = word(stream, "codec_name");
            let name = word(&stream["tags"], "filename");
            match kind(stream) {
                // Written anew from the video's tag.
                _ if word(stream, "codec_tag_string") == "tmcd" => {}
                Some(Kind::Video) if !has_flag(stream, "attached_pic") => {
                    self.left_out.push(format!("a further video stream ({codec})"));
                }
                Some(Kind::Data) if self.container == Container::Matroska => {
                    self.left_out.push(format!("a data stream ({codec})"));
                }
                None if self.container != Container::Matroska => {
                    self.left_out.push(format!("the attachment {name} (.mkv keeps it)"));
                }
                _ => wanted.push(*stream),
            }
        }
        let copies: Vec<_> = wanted.iter().map(|stream| (index(stream), "copy")).collect();
        if self.is_possible(&copies) {
            self.carried = wanted.iter().map(|stream| Carried::new(stream, "copy")).collect();
            return Ok(());
        }
        // FFmpeg also fails where the input has gone.
        input::check(&self.input)?;
        for stream in wanted {
            let (index, kind) = (index(stream), kind(stream));
            let text = if self.container == Container::Matroska { "subrip" } else { "mov_text" };
            let codecs: &[_] =
                if kind == Some(Kind::Subtitle) { &["copy", text] } else { &["copy"] };
            if let Some(codec) = codecs.iter().find(|codec| self.is_possible(&[(index, codec)])) {
                if *codec != "copy" && matches!(word(stream, "codec_name"), "ass" | "ssa") {
                    self.left_out.push("the styles of ass subtitles (.mkv keeps them)".to_owned());
                }
                self.carried.push(Carried::new(stream, codec));
                continue;
            }
            let lacks = format!(
                "{} cannot hold the {} stream {}",
                self.container.name(),
                kind.unwrap_or(Kind::Data).word(),
                word(stream, "codec_name")
            );
            if !drops && matches!(kind, Some(Kind::Audio | Kind::Subtitle)) {
                return Err(format!("{lacks}; {}", self.container.remedy()));
            }
            self.left_out.push(format!("{lacks}: left out"));
        }
        Ok(())
    }

    /// Whether FFmpeg starts a file of the output's format with these streams and codecs.
    fn is_possible(&self, streams: &[(u64, &str)]) -> bool {
        if streams.is_empty() {
            return true;
        }
        let mut command = ffmpeg();
        command.arg("-i").arg(file(&self.input));
        for (place, (index, codec)) in streams.iter().enumerate() {
            command.args(["-map", &format!("0:{index}"), &format!("-c:{place}"), codec]);
        }
        // The header is what may fail, and it is written first.
        command.args(["-t", "0", "-fs", "1", "-f", format(self.container), "/dev/null"]);
        command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    }

    /// Writes `target` from the video in `part`, which begins with the frame at `first` and has
    /// `colors`, and the rest of the input.
    ///
    /// # Errors
    ///
    /// FFmpeg's last words, or [`Stop::Interrupted`].
    pub fn run(
        &self,
        part: &Path,
        target: &Path,
        first: Beginning,
        colors: &VideoColorimetry,
        interrupts: &AtomicU32,
    ) -> Result<(), Stop> {
        let start = if self.is_timeless {
            0.0
        } else if self.is_rebased {
            let seconds = |time: gst::ClockTime| time.nseconds() as f64 / 1e9;
            let running = seconds(first.running);
            // GStreamer's muxer of MP4 leaves out the time in front of the first frame.
            let muxed = first_frame(part, 0).filter(|muxed| (muxed - running).abs() > EXACT);
            seconds(first.in_input) - muxed.unwrap_or(running)
        } else {
            self.shift(part).filter(|shift| shift.abs() > EXACT).unwrap_or(0.0)
        };
        let mut delays = vec![0.0; self.carried.len()];
        finish(self.command(part, target, start, &delays, colors), interrupts)?;
        // FFmpeg 5 takes the delay of Opus away each time it copies such a stream to Matroska.
        let has_opus = self.carried.iter().any(|stream| stream.is_opus);
        if self.container == Container::Matroska && has_opus && self.cut.is_none() {
            self.measure(part, target, start, &mut delays);
            if delays.iter().any(|delay| *delay != 0.0) {
                finish(self.command(part, target, start, &delays, colors), interrupts)?;
            }
        }
        Ok(())
    }

    /// How much later the input shows its first frame than `part` does, in seconds.
    fn shift(&self, part: &Path) -> Option<f64> {
        Some(first_frame(&self.input, self.video)? - first_frame(part, 0)?)
    }

    /// The command that writes `target`, with each carried stream later by its delay in seconds.
    fn command(
        &self,
        part: &Path,
        target: &Path,
        start: f64,
        delays: &[f64],
        colors: &VideoColorimetry,
    ) -> Command {
        let mut command = ffmpeg();
        command.arg("-copyts").arg("-i").arg(file(part));
        let shifted = delays.iter().filter(|delay| **delay != 0.0);
        for delay in iter::once(&0.0).chain(shifted) {
            let offset = format!("{:.9}", delay - start);
            if let Some(cut) = self.cut {
                cut.skip(&mut command);
            }
            command.args(["-itsoffset", &offset, "-i"]).arg(file(&self.input));
        }
        command.args(["-map", "0:v:0", "-c", "copy"]);
        if let Some(filter) = self.codec.and_then(|codec| codec.color_filter(colors)) {
            command.args(["-bsf:0", &filter]);
        }
        if let Some(cut) = self.cut {
            cut.limit(&mut command);
        }
        let mut next = 2;
        for (place, (Carried { index, codec, is_timed, .. }, delay)) in
            (1..).zip(self.carried.iter().zip(delays))
        {
            let source = if *delay == 0.0 { 1 } else { next };
            next += u32::from(*delay != 0.0);
            command.args(["-map", &format!("{source}:{index}"), &format!("-c:{place}"), codec]);
            if self.cut.is_some() && *is_timed {
                command.args([&format!("-bsf:{place}"), NOT_BEFORE]);
            }
            // With tags for one stream, FFmpeg leaves the tags of all to the caller.
            command.args([&format!("-map_metadata:s:{place}"), &format!("1:s:{index}")]);
        }
        command.args(["-map_metadata", "1", "-map_chapters", "1", "-map_metadata:s:0", "-1"]);
        for (name, value) in &self.tags {
            command.args(["-metadata:s:0", &format!("{name}={value}")]);
        }
        command.args(["-disposition:0", &self.flags]);
        // Nothing in the file may depend on the moment or the version.
        command.args(["-fflags", "+bitexact", "-flags", "+bitexact"]);
        if self.container == Container::Matroska {
            command.args(["-default_mode", "passthrough"]);
        } else if self.keeps_own_tags {
            command.args(["-movflags", "+use_metadata_tags"]);
        }
        command.args(["-f", format(self.container)]).arg(file(target));
        command
    }

    /// Sets the `delays` of streams that are early or late in `target`, against its video.
    fn measure(&self, part: &Path, target: &Path, start: f64, delays: &mut [f64]) {
        let (Some(part), Some(target)) = (Probe::new(part), Probe::new(target)) else { return };
        let start_at = |probe: &Probe, place| probe.streams().get(place).and_then(start_of);
        let Some(shift) = start_at(&target, 0).zip(start_at(&part, 0)).map(|(new, old)| new - old)
        else {
            return;
        };
        for (place, (stream, delay)) in (1..).zip(self.carried.iter().zip(delays)) {
            if let (Some(old), Some(new)) = (stream.start, start_at(&target, place)) {
                let late = old - start + shift - new;
                *delay = if late.abs() > EXACT { late } else { 0.0 };
            }
        }
    }
}

/// Writes `target` from the upscaled video in `part`, with its `colors` in the stream of `codec`,
/// where nothing else is carried and FFmpeg can; whether it has.
///
/// # Errors
///
/// As [`Remux::run`].
pub fn write_colors(
    codec: Codec,
    part: &Path,
    target: &Path,
    container: Container,
    colors: &VideoColorimetry,
    interrupts: &AtomicU32,
) -> Result<bool, Stop> {
    let Some(filter) = codec.color_filter(colors).filter(|_| is_installed("ffmpeg")) else {
        return Ok(false);
    };
    let mut command = ffmpeg();
    command.arg("-copyts").arg("-i").arg(file(part));
    command.args(["-map", "0", "-c", "copy", "-bsf:v", &filter]);
    command.args(["-fflags", "+bitexact", "-flags", "+bitexact"]);
    command.args(["-f", format(container)]).arg(file(target));
    finish(command, interrupts).map(|()| true)
}

/// FFmpeg's name of a container.
fn format(container: Container) -> &'static str {
    match container {
        Container::Mp4 => "mp4",
        Container::Mov => "mov",
        Container::Matroska => "matroska",
    }
}

/// Whether FFmpeg carries the streams of such a file: it has the times of those that it decodes.
fn is_carried(probe: &Probe, cut: Option<Cut>) -> bool {
    FORMATS.contains(&probe.format()) || is_converted(probe, cut)
}

/// Runs `command` to its end.
fn finish(mut command: Command, interrupts: &AtomicU32) -> Result<(), Stop> {
    let failed = |reason: String| Stop::Failed(format!("ffmpeg: {reason}"));
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let words = Words::of(&mut child);
    let status = wait(&mut child, interrupts)?;
    let words = words.map(Words::join).unwrap_or_default();
    if let Some(reason) = unwritten(&words) {
        return Err(failed(format!("its output cannot be written: {reason}")));
    }
    if status.success() { Ok(()) } else { Err(failed(last_line(&words).to_owned())) }
}
