// SPDX-License-Identifier: MPL-2.0

//! What FFmpeg's program ffprobe says about a file, in its own JSON.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::streams::Kind;

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
/// Codecs of still pictures, which cameras and editors put beside the video.
const PICTURES: [&str; 5] = ["mjpeg", "png", "bmp", "gif", "webp"];
/// Packets in which the first frame is looked for.
const FIRST: &str = "%+#60";

/// A file's container and streams.
pub struct Probe(Value);

impl Probe {
    /// What `input` holds; `None` where FFmpeg is not installed, cannot read it, or could read it
    /// only once.
    pub fn new(input: &Path) -> Option<Self> {
        if !input.is_file() || !is_installed("ffmpeg") {
            return None;
        }
        let sections = ["-show_streams", "-show_chapters", "-show_format", "-show_programs"];
        ffprobe(input, &sections).filter(|value| value["format"].is_object()).map(Self)
    }

    /// The container, in ffprobe's words.
    pub fn format(&self) -> &str {
        word(&self.0["format"], "format_name")
    }

    /// Length in seconds.
    pub fn duration(&self) -> Option<f64> {
        seconds(&self.0["format"]["duration"])
    }

    /// What it calls its beginning, in seconds.
    pub fn start(&self) -> f64 {
        seconds(&self.0["format"]["start_time"]).unwrap_or(0.0)
    }

    pub fn streams(&self) -> &[Value] {
        self.0["streams"].as_array().map_or(&[], Vec::as_slice)
    }

    /// The video: the first that is no picture, or else the first.
    pub fn video(&self) -> Option<&Value> {
        let mut videos = self.streams().iter().filter(|stream| {
            kind(stream) == Some(Kind::Video) && !has_flag(stream, "attached_pic")
        });
        let is_moving = |stream: &&Value| !PICTURES.contains(&word(stream, "codec_name"));
        videos.clone().find(is_moving).or_else(|| videos.next())
    }

    /// Whether `stream` belongs to another programme than `video`.
    pub fn is_elsewhere(&self, stream: &Value, video: &Value) -> bool {
        let programs = self.0["programs"].as_array().map_or(&[][..], Vec::as_slice);
        let holds = |program: &&Value, stream: &Value| {
            let streams = program["streams"].as_array().map_or(&[][..], Vec::as_slice);
            streams.iter().any(|other| index(other) == index(stream))
        };
        let mut of_stream = programs.iter().filter(|program| holds(program, stream)).peekable();
        of_stream.peek().is_some() && !of_stream.any(|program| holds(&program, video))
    }

    pub fn has_chapters(&self) -> bool {
        self.0["chapters"].as_array().is_some_and(|chapters| !chapters.is_empty())
    }

    /// The tags of the whole.
    pub fn tags(&self) -> Vec<(String, String)> {
        tags(&self.0["format"])
    }
}

/// When the first frame of a stream of `input` is shown, in seconds.
pub fn first_frame(input: &Path, stream: u64) -> Option<f64> {
    let (stream, entry) = (stream.to_string(), "frame=best_effort_timestamp_time");
    let arguments = ["-select_streams", &stream, "-read_intervals", FIRST, "-show_entries", entry];
    let frames = ffprobe(input, &arguments)?;
    let mut frames = frames["frames"].as_array()?.iter();
    frames.find_map(|frame| seconds(&frame["best_effort_timestamp_time"]))
}

fn ffprobe(input: &Path, arguments: &[&str]) -> Option<Value> {
    let mut command = Command::new("ffprobe");
    command.args(["-v", "error", "-of", "json"]).args(arguments).arg(file(input));
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    serde_json::from_slice(&output.stdout).ok()
}

/// A number of seconds, which ffprobe gives as text.
pub fn seconds(value: &Value) -> Option<f64> {
    value.as_str()?.parse().ok()
}

/// When a stream begins, in seconds.
pub fn start_of(stream: &Value) -> Option<f64> {
    seconds(&stream["start_time"])
}

/// Whether the search path has `program`.
pub fn is_installed(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// FFmpeg, with the options of every call.
pub fn ffmpeg() -> Command {
    let mut command = Command::new("ffmpeg");
    // Ctrl-C is for this program, which then ends FFmpeg.
    command.process_group(0);
    command.args(["-nostdin", "-v", "error", "-y"]).stdin(Stdio::null());
    command
}

/// A path that FFmpeg takes for nothing else.
pub fn file(path: &Path) -> OsString {
    let mut name = OsStr::new("file:").to_owned();
    name.push(path);
    name
}

pub fn index(stream: &Value) -> u64 {
    stream["index"].as_u64().unwrap_or(u64::MAX)
}

pub fn word<'a>(object: &'a Value, name: &str) -> &'a str {
    object[name].as_str().unwrap_or("unknown")
}

/// The kind of a stream; `None` for an attachment.
pub fn kind(stream: &Value) -> Option<Kind> {
    match word(stream, "codec_type") {
        "video" => Some(Kind::Video),
        "audio" => Some(Kind::Audio),
        "subtitle" => Some(Kind::Subtitle),
        "attachment" => None,
        _ => Some(Kind::Data),
    }
}

pub fn has_flag(stream: &Value, flag: &str) -> bool {
    stream["disposition"][flag] == 1
}

/// The flags that are set, as FFmpeg's option takes them.
pub fn flags(stream: &Value) -> String {
    let flags = stream["disposition"].as_object().into_iter().flatten();
    let set: Vec<_> =
        flags.filter(|(_, value)| **value == 1).map(|(flag, _)| flag.as_str()).collect();
    if set.is_empty() { "0".to_owned() } else { set.join("+") }
}

pub fn tags(object: &Value) -> Vec<(String, String)> {
    let tags = object["tags"].as_object().into_iter().flatten();
    tags.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
}

/// The tags of the video that hold for the upscaled one, too.
pub fn tags_of_stream(stream: &Value) -> Vec<(String, String)> {
    let mut tags = tags(stream);
    tags.retain(|(name, value)| is_foreign(name) && !(name == "language" && value == "und"));
    tags
}

/// Whether a tag says something about the content.
pub fn is_foreign(name: &str) -> bool {
    // mkvmerge's statistics count the packets of the stream that was.
    let statistics = ["BPS", "DURATION", "NUMBER_OF_", "_STATISTICS_", "ENCODER"];
    !OWN_TAGS.contains(&name) && !statistics.iter().any(|start| name.starts_with(start))
}
