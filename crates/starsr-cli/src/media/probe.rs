// SPDX-License-Identifier: MPL-2.0

//! What FFmpeg's program ffprobe says about a file, in its own JSON.

use std::path::Path;
use std::sync::atomic::AtomicU32;

use serde_json::Value;

use super::ffmpeg::{ffprobe, is_installed};
use super::scan::Scan;
use super::streams::Kind;
use crate::interrupts::Stop;
use crate::values::counted;

/// QuickTime, MP4 and their kin, and Matroska and WebM, in ffprobe's words.
pub const QUICKTIME: &str = "mov,mp4,m4a,3gp,3g2,mj2";
pub const MATROSKA: &str = "matroska,webm";
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
pub struct Probe {
    facts: Value,
    /// Index of the video.
    video: Option<u64>,
    /// How its frames were made, where that was asked.
    scan: Option<Scan>,
}

impl Probe {
    /// What `input` holds; `None` where FFmpeg is not installed, cannot read it, or could read it
    /// only once.
    pub fn new(input: &Path) -> Option<Self> {
        if !input.is_file() || !is_installed("ffmpeg") {
            return None;
        }
        let sections = ["-show_streams", "-show_chapters", "-show_format", "-show_programs"];
        let facts = ffprobe(input, &sections).filter(|facts| facts["format"].is_object())?;
        let mut this = Self { facts, video: None, scan: None };
        let moving = this.videos().filter(|stream| is_moving(stream));
        let default = moving.into_iter().find(|stream| has_flag(stream, "default"));
        this.video = default.or(this.first_video()).map(index);
        Some(this)
    }

    /// Looks at the frames of the video in `input`, which takes a moment.
    pub fn examine(&mut self, input: &Path, interrupts: &AtomicU32) -> Result<(), Stop> {
        let Some(video) = self.video() else { return Ok(()) };
        let is_interlaced = !matches!(word(video, "field_order"), "unknown" | "progressive");
        let rate = fraction(word(video, "avg_frame_rate")).unwrap_or(0.0);
        let scan = Scan::of(input, index(video), is_interlaced, interrupts)?;
        self.scan = scan.filter(|scan| match scan {
            Scan::Progressive => is_interlaced,
            Scan::Interlaced => true,
            // Of 30 frames a second, and 24 are made of them.
            Scan::Telecined => (29.0..=30.1).contains(&rate),
        });
        Ok(())
    }

    /// How frames were made that FFmpeg has to put right, as far as [`Self::examine`] has looked.
    pub fn scan(&self) -> Option<Scan> {
        self.scan.filter(|scan| *scan != Scan::Interlaced)
    }

    /// Takes the video of `number`, from 1, instead of the default one.
    pub fn choose_video(&mut self, number: usize) -> Result<(), String> {
        let chosen = number.checked_sub(1).and_then(|place| self.videos().nth(place));
        let Some(chosen) = chosen.map(index) else {
            let count = counted(self.videos().count() as u64, "video stream");
            return Err(format!("has {count}, and --video is {number}"));
        };
        self.video = Some(chosen);
        Ok(())
    }

    /// The container, in ffprobe's words.
    pub fn format(&self) -> &str {
        word(&self.facts["format"], "format_name")
    }

    /// The container in words for people.
    pub fn format_name(&self) -> &str {
        word(&self.facts["format"], "format_long_name")
    }

    /// Length in seconds.
    pub fn duration(&self) -> Option<f64> {
        seconds(&self.facts["format"]["duration"])
    }

    /// What it calls its beginning, in seconds.
    pub fn start(&self) -> f64 {
        seconds(&self.facts["format"]["start_time"]).unwrap_or(0.0)
    }

    pub fn streams(&self) -> &[Value] {
        self.facts["streams"].as_array().map_or(&[], Vec::as_slice)
    }

    /// The video that is chosen, by default the one that the container marks so, or else the first
    /// that is no picture.
    pub fn video(&self) -> Option<&Value> {
        self.streams().iter().find(|stream| Some(index(stream)) == self.video)
    }

    /// Whether another video is chosen than the one that GStreamer's demuxers give first.
    pub fn is_further_video(&self) -> bool {
        self.video != self.first_video().map(index)
    }

    fn first_video(&self) -> Option<&Value> {
        self.videos().find(|stream| is_moving(stream)).or_else(|| self.videos().next())
    }

    /// The videos that are no cover.
    pub fn videos(&self) -> impl Iterator<Item = &Value> {
        let is_video = |stream: &&Value| {
            kind(stream) == Some(Kind::Video) && !has_flag(stream, "attached_pic")
        };
        self.streams().iter().filter(is_video)
    }

    /// Whether `stream` belongs to another programme than `video`.
    pub fn is_elsewhere(&self, stream: &Value, video: &Value) -> bool {
        let programs = self.facts["programs"].as_array().map_or(&[][..], Vec::as_slice);
        let holds = |program: &&Value, stream: &Value| {
            let streams = program["streams"].as_array().map_or(&[][..], Vec::as_slice);
            streams.iter().any(|other| index(other) == index(stream))
        };
        let mut of_stream = programs.iter().filter(|program| holds(program, stream)).peekable();
        of_stream.peek().is_some() && !of_stream.any(|program| holds(&program, video))
    }

    pub fn chapters(&self) -> usize {
        self.facts["chapters"].as_array().map_or(0, Vec::len)
    }

    /// The tags of the whole.
    pub fn tags(&self) -> Vec<(String, String)> {
        tags(&self.facts["format"])
    }
}

fn is_moving(video: &Value) -> bool {
    !PICTURES.contains(&word(video, "codec_name"))
}

/// When the first frame of a stream of `input` is shown, in seconds.
pub fn first_frame(input: &Path, stream: u64) -> Option<f64> {
    let (stream, entry) = (stream.to_string(), "frame=best_effort_timestamp_time");
    let arguments = ["-select_streams", &stream, "-read_intervals", FIRST, "-show_entries", entry];
    let frames = ffprobe(input, &arguments)?;
    let mut frames = frames["frames"].as_array()?.iter();
    frames.find_map(|frame| seconds(&frame["best_effort_timestamp_time"]))
}

/// A number of seconds, which ffprobe gives as text.
pub fn seconds(value: &Value) -> Option<f64> {
    value.as_str()?.parse().ok()
}

/// When a stream begins, in seconds.
pub fn start_of(stream: &Value) -> Option<f64> {
    seconds(&stream["start_time"])
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

/// The value of a fraction such as `30000/1001`.
pub fn fraction(text: &str) -> Option<f64> {
    let (numerator, denominator) = text.split_once('/')?;
    let value = numerator.parse::<f64>().ok()? / denominator.parse::<f64>().ok()?;
    value.is_finite().then_some(value)
}
