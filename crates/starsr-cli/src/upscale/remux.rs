// SPDX-License-Identifier: MPL-2.0

//! The input's other streams, tags, chapters and attachments, added to the finished video with the
//! programs of FFmpeg: GStreamer's demuxers and muxers lose some of them.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::iter;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::Stop;
use super::streams::{Container, Kind};

/// Formats, in the words of ffprobe, whose time both GStreamer and FFmpeg count from the same
/// moment, or whose beginning GStreamer calls 0.
const FORMATS: [&str; 2] = ["mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"];
/// Tags that describe the file or the compressed stream which the input was.
const OWN_TAGS: [&str; 7] = [
    "major_brand",
    "minor_version",
    "compatible_brands",
    "encoder",
    "handler_name",
    "vendor_id",
    "duration",
];
/// Seconds that are no difference; Matroska counts in thousandths.
const EXACT: f64 = 0.0015;
/// Interval at which a running program is looked at.
const TICK: Duration = Duration::from_millis(50);

/// How the rest of an input gets into the output.
pub struct Remux {
    input: PathBuf,
    container: Container,
    /// Whether GStreamer counts the input's time from the beginning of its first stream.
    is_rebased: bool,
    /// Index of the video in the input, its tags, and its flags as FFmpeg's option takes them.
    video: u64,
    tags: Vec<(String, String)>,
    flags: String,
    carried: Vec<Carried>,
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
}

impl Carried {
    fn new(stream: &Value, codec: &'static str) -> Self {
        let is_opus = word(stream, "codec_name") == "opus";
        Self { index: index(stream), codec, start: start_of(stream), is_opus }
    }
}

impl Remux {
    /// Looks at `input` and plans what to carry. `None` where FFmpeg is not installed or does not
    /// read such a file as GStreamer does, and where there is nothing beside the video.
    ///
    /// # Errors
    ///
    /// A stream that `container` cannot hold, unless `drops` allows leaving it out.
    pub fn plan(
        input: &Path,
        container: Container,
        drops: bool,
        remedy: &str,
    ) -> Result<Option<Self>, String> {
        // What is read from a pipe is gone.
        if !input.is_file() || !is_installed("ffmpeg") {
            return Ok(None);
        }
        let Some(probe) = probe(input) else { return Ok(None) };
        let Some(format) = FORMATS.iter().find(|format| probe["format"]["format_name"] == **format)
        else {
            return Ok(None);
        };
        let streams = probe["streams"].as_array().map_or(&[][..], Vec::as_slice);
        let is_main = |stream: &&Value| {
            kind(stream) == Some(Kind::Video) && !has_flag(stream, "attached_pic")
        };
        let Some(main) = streams.iter().find(is_main) else { return Ok(None) };
        let (tags, own) = (tags(&probe["format"]), tags_of_stream(main));
        let has_more = tags.iter().any(|(name, _)| is_foreign(name)) || !own.is_empty();
        let has_chapters = probe["chapters"].as_array().is_some_and(|list| !list.is_empty());
        if streams.len() == 1 && !has_chapters && !has_more {
            return Ok(None);
        }
        let mut this = Self {
            input: input.to_owned(),
            container,
            is_rebased: *format == FORMATS[1],
            video: index(main),
            tags: own,
            flags: flags(main),
            carried: Vec::new(),
            keeps_own_tags: tags.iter().any(|(name, _)| name.contains('.')),
            left_out: Vec::new(),
        };
        let others: Vec<_> = streams.iter().filter(|stream| index(stream) != this.video).collect();
        this.choose(&others, drops, remedy)?;
        Ok(Some(this))
    }

    /// Decides what becomes of each of the `others`.
    fn choose(&mut self, others: &[&Value], drops: bool, remedy: &str) -> Result<(), String> {
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
                return Err(format!("{lacks}; {remedy}"));
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
        command.args(["-t", "0", "-fs", "1", "-f", self.format(), "/dev/null"]);
        command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    }

    fn format(&self) -> &'static str {
        match self.container {
            Container::Mp4 => "mp4",
            Container::Mov => "mov",
            Container::Matroska => "matroska",
        }
    }

    /// Writes `target` from the video in `part` and the rest of the input. `start` is what the
    /// input calls the moment 0 of `part`.
    ///
    /// # Errors
    ///
    /// FFmpeg's last words, or [`Stop::Interrupted`].
    pub fn run(
        &self,
        part: &Path,
        target: &Path,
        start: gst::ClockTime,
        interrupts: &AtomicU32,
    ) -> Result<(), Stop> {
        let start = if self.is_rebased { start.nseconds() as f64 / 1e9 } else { 0.0 };
        let mut delays = vec![0.0; self.carried.len()];
        finish(self.command(part, target, start, &delays), interrupts)?;
        // FFmpeg 5 takes the delay of Opus away each time it copies such a stream to Matroska.
        let has_opus = self.carried.iter().any(|stream| stream.is_opus);
        if self.container == Container::Matroska && has_opus {
            self.measure(part, target, start, &mut delays);
            if delays.iter().any(|delay| *delay != 0.0) {
                finish(self.command(part, target, start, &delays), interrupts)?;
            }
        }
        Ok(())
    }

    /// The command that writes `target`, with each carried stream later by its delay in seconds.
    fn command(&self, part: &Path, target: &Path, start: f64, delays: &[f64]) -> Command {
        let mut command = ffmpeg();
        command.arg("-copyts").arg("-i").arg(file(part));
        let shifted = delays.iter().filter(|delay| **delay != 0.0);
        for delay in iter::once(&0.0).chain(shifted) {
            let offset = format!("{:.9}", delay - start);
            command.args(["-itsoffset", &offset, "-i"]).arg(file(&self.input));
        }
        command.args(["-map", "0:v:0", "-c", "copy"]);
        let mut next = 2;
        for (place, (Carried { index, codec, .. }, delay)) in
            (1..).zip(self.carried.iter().zip(delays))
        {
            let source = if *delay == 0.0 { 1 } else { next };
            next += u32::from(*delay != 0.0);
            command.args(["-map", &format!("{source}:{index}"), &format!("-c:{place}"), codec]);
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
        command.args(["-f", self.format()]).arg(file(target));
        command
    }

    /// Sets the `delays` of streams that are early or late in `target`, against its video.
    fn measure(&self, part: &Path, target: &Path, start: f64, delays: &mut [f64]) {
        let (Some(part), Some(target)) = (probe(part), probe(target)) else { return };
        let Some(shift) = start_of(&target["streams"][0])
            .zip(start_of(&part["streams"][0]))
            .map(|(new, old)| new - old)
        else {
            return;
        };
        for (place, (stream, delay)) in (1..).zip(self.carried.iter().zip(delays)) {
            if let (Some(old), Some(new)) = (stream.start, start_of(&target["streams"][place])) {
                let late = old - start + shift - new;
                *delay = if late.abs() > EXACT { late } else { 0.0 };
            }
        }
    }
}

/// When a stream begins, in seconds.
fn start_of(stream: &Value) -> Option<f64> {
    stream["start_time"].as_str()?.parse().ok()
}

/// Runs `command` to its end.
fn finish(mut command: Command, interrupts: &AtomicU32) -> Result<(), Stop> {
    let failed = |reason: String| Stop::Failed(format!("ffmpeg: {reason}"));
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let errors = child.stderr.take();
    let words = thread::spawn(move || {
        let mut words = Vec::new();
        // Without them the message is shorter.
        let _ = errors.map(|mut errors| errors.read_to_end(&mut words));
        String::from_utf8_lossy(&words).into_owned()
    });
    let status = loop {
        if interrupts.load(Ordering::SeqCst) > 0 {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
            return Err(Stop::Interrupted);
        }
        match child.try_wait().map_err(|error| failed(error.to_string()))? {
            Some(status) => break status,
            None => thread::sleep(TICK),
        }
    };
    let words = words.join().unwrap_or_default();
    if status.success() {
        return Ok(());
    }
    Err(failed(words.lines().next_back().unwrap_or("failed").trim().to_owned()))
}

/// Whether the search path has `program`.
fn is_installed(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// FFmpeg, with the options of every call.
pub fn ffmpeg() -> Command {
    let mut command = Command::new("ffmpeg");
    command.args(["-nostdin", "-v", "error", "-y"]).stdin(Stdio::null());
    command
}

/// What ffprobe says about `input`; `None` where it says nothing.
fn probe(input: &Path) -> Option<Value> {
    let mut command = Command::new("ffprobe");
    command.args(["-v", "error", "-of", "json"]);
    command.args(["-show_streams", "-show_chapters", "-show_format"]).arg(file(input));
    let output = command.stdin(Stdio::null()).output().ok()?;
    serde_json::from_slice(&output.stdout).ok()
}

/// A path that FFmpeg takes for nothing else.
pub fn file(path: &Path) -> OsString {
    let mut name = OsStr::new("file:").to_owned();
    name.push(path);
    name
}

fn index(stream: &Value) -> u64 {
    stream["index"].as_u64().unwrap_or(u64::MAX)
}

fn word<'a>(object: &'a Value, name: &str) -> &'a str {
    object[name].as_str().unwrap_or("unknown")
}

/// The kind of a stream; `None` for an attachment.
fn kind(stream: &Value) -> Option<Kind> {
    match word(stream, "codec_type") {
        "video" => Some(Kind::Video),
        "audio" => Some(Kind::Audio),
        "subtitle" => Some(Kind::Subtitle),
        "attachment" => None,
        _ => Some(Kind::Data),
    }
}

fn has_flag(stream: &Value, flag: &str) -> bool {
    stream["disposition"][flag] == 1
}

/// The flags that are set, as FFmpeg's option takes them.
fn flags(stream: &Value) -> String {
    let flags = stream["disposition"].as_object().into_iter().flatten();
    let set: Vec<_> =
        flags.filter(|(_, value)| **value == 1).map(|(flag, _)| flag.as_str()).collect();
    if set.is_empty() { "0".to_owned() } else { set.join("+") }
}

fn tags(object: &Value) -> Vec<(String, String)> {
    let tags = object["tags"].as_object().into_iter().flatten();
    tags.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
}

/// The tags of the video that hold for the upscaled one, too.
fn tags_of_stream(stream: &Value) -> Vec<(String, String)> {
    let mut tags = tags(stream);
    tags.retain(|(name, value)| is_foreign(name) && !(name == "language" && value == "und"));
    tags
}

/// Whether a tag says something about the content.
fn is_foreign(name: &str) -> bool {
    // mkvmerge's statistics count the packets of the stream that was.
    let statistics = ["BPS", "DURATION", "NUMBER_OF_", "_STATISTICS_", "ENCODER"];
    !OWN_TAGS.contains(&name) && !statistics.iter().any(|start| name.starts_with(start))
}
