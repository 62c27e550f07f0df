// SPDX-License-Identifier: MPL-2.0

//! The file read: a regular one, a pipe, or standard input.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use gst::prelude::*;
use rustix::fs::OFlags;

use super::converter::{Converter, is_converted};
use super::cut::Cut;
use super::elements::make;
use super::ffmpeg::{ffmpeg, file, knows_pixel_format};
use super::folder::pictures_in;
use super::hdr::Hdr;
use super::pattern::Pattern;
use super::probe::{Probe, word};
use crate::output::reason;
use crate::values::{Rate, Raw};

/// Bytes at the beginning of a WebP that say whether it is animated.
const WEBP: u64 = 21;

/// Fails, in the operating system's words, where `input` cannot be read.
pub fn check(input: &Path) -> Result<(), String> {
    if numbered(input).is_some() {
        return Ok(());
    }
    let shown = input.display();
    let failed = |error: io::Error| format!("{shown}: {}", reason(&error));
    let metadata = fs::metadata(input).map_err(failed)?;
    if metadata.is_dir() {
        return pictures_of_one_kind(input).map(|_| ());
    }
    // Opening a pipe would wait for its other end.
    if metadata.is_file() {
        let mut start = Vec::new();
        File::open(input).map_err(failed)?.take(WEBP).read_to_end(&mut start).map_err(failed)?;
        if start.is_empty() {
            return Err(format!("{shown}: is empty"));
        }
        if is_animated_webp(&start) {
            return Err(format!(
                "{shown}: is an animated WebP, which neither GStreamer nor FFmpeg decodes; convert it to GIF or APNG"
            ));
        }
    }
    Ok(())
}

/// Whether a file that begins with `start` is an animated WebP (its container's flag of animation).
fn is_animated_webp(start: &[u8]) -> bool {
    start.starts_with(b"RIFF")
        && start.get(8..16) == Some(b"WEBPVP8X")
        && start.get(20).is_some_and(|flags| flags & 2 != 0)
}

/// The visible pictures in `folder`, which are all of one kind, and their extension.
fn pictures_of_one_kind(folder: &Path) -> Result<(OsString, Vec<PathBuf>), String> {
    let shown = folder.display();
    let pictures = pictures_in(folder).map_err(|error| format!("{shown}: {}", reason(&error)))?;
    let mut extensions: Vec<_> =
        pictures.iter().filter_map(|path| path.extension().map(OsStr::to_owned)).collect();
    extensions.sort();
    extensions.dedup();
    match extensions.as_slice() {
        [] => Err(format!(
            "{shown}: is a folder without pictures; --output-dir upscales the videos in a folder"
        )),
        [extension] => Ok((extension.clone(), pictures)),
        [first, second, ..] => Err(format!(
            "{shown}: has pictures of several kinds, .{} and .{}; --output-dir upscales them one by one",
            first.display(),
            second.display()
        )),
    }
}

/// What has to stay while a source reads from it.
#[derive(Default)]
pub struct Kept {
    _pipe: Option<File>,
    converter: Option<Converter>,
    is_opaque: bool,
    hdr: Option<Hdr>,
    losses: Option<String>,
}

impl Kept {
    /// What may be wrong with video that FFmpeg has decoded to its end.
    pub fn complaint(&self) -> Option<String> {
        self.converter.as_ref()?.complaint()
    }

    /// Whether FFmpeg decodes the input.
    pub fn is_converted(&self) -> bool {
        self.converter.is_some()
    }

    /// Whether the video has no transparency; GStreamer's decoder of PNG adds one to 16 bits.
    pub fn is_opaque(&self) -> bool {
        self.is_opaque
    }

    /// The metadata of HDR10 that the frames lack.
    pub fn hdr(&self) -> Option<&Hdr> {
        self.hdr.as_ref()
    }

    /// What decoding by FFmpeg loses.
    pub fn losses(&self) -> Option<&str> {
        self.losses.as_deref()
    }

    /// The element that reads from `converter`, which stays.
    fn source(converter: Converter) -> Result<(gst::Element, Self), String> {
        let source = converter.source()?;
        Ok((source, Self { converter: Some(converter), ..Self::default() }))
    }

    fn describe(mut self, probe: Option<&Probe>) -> Self {
        let video = probe.and_then(Probe::video);
        self.is_opaque = video.is_some_and(|video| {
            let format = word(video, "pix_fmt");
            ["rgb48", "gbrp", "gray"].iter().any(|start| format.starts_with(start))
        });
        self.losses = video
            .filter(|_| self.is_converted())
            .and_then(|video| Converter::losses(word(video, "pix_fmt")));
        self
    }
}

/// The element that reads the part `cut` of `input`, which ffprobe describes so, and what has to stay
/// for it. Numbered pictures come at `rate`.
pub fn source(
    input: &Path,
    probe: Option<&Probe>,
    cut: Option<Cut>,
    rate: Rate,
) -> Result<(gst::Element, Kept), String> {
    if let Some((pattern, number)) = numbered(input) {
        return pictures(rate, input, &pattern, number, cut);
    }
    if input.is_dir() {
        return folder_of_pictures(rate, input, cut);
    }
    let failed = |error: io::Error| format!("{}: {}", input.display(), reason(&error));
    let metadata = fs::metadata(input).map_err(failed)?;
    if metadata.file_type().is_fifo() {
        // Without waiting for a program that writes to the pipe: the element waits, and can be
        // stopped.
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let pipe = OpenOptions::new().read(true).custom_flags(flags).open(input).map_err(failed)?;
        let source = make("fdsrc")?;
        source.set_property("fd", pipe.as_raw_fd());
        return Ok((source, Kept { _pipe: Some(pipe), ..Kept::default() }));
    }
    let converted = probe.filter(|probe| is_converted(probe, cut));
    if let Some(converter) = converted.and_then(|probe| Converter::of_video(input, probe, cut)) {
        let (source, mut kept) = Kept::source(converter)?;
        kept.hdr = probe.and_then(|probe| Hdr::of(input, probe));
        return Ok((source, kept.describe(probe)));
    }
    let source = make("filesrc")?;
    source.set_property("location", input);
    Ok((source, Kept::default().describe(probe)))
}

/// The element that reads the part `cut` of frames without a header, and what has to stay for it.
pub fn raw_source(
    input: &Path,
    raw: &Raw,
    rate: Rate,
    cut: Option<Cut>,
) -> Result<(gst::Element, Kept), String> {
    if !knows_pixel_format(&raw.format) {
        return Err(format!(
            "--raw-input: FFmpeg is not installed, or knows no pixel format {} (see ffmpeg -pix_fmts)",
            raw.format
        ));
    }
    let converter = Converter::of_raw(input, raw, rate, cut)
        .ok_or_else(|| format!("{}: FFmpeg cannot be run", input.display()))?;
    Kept::source(converter)
}

/// The pattern that `input` is, where it is no file itself, and the lowest number there is.
fn numbered(input: &Path) -> Option<(Pattern, u64)> {
    let pattern = Pattern::of(input).filter(|_| !input.exists())?;
    pattern.first().map(|number| (pattern, number))
}

/// The element that reads pictures from `number` on as far as there are any.
fn pictures(
    rate: Rate,
    input: &Path,
    pattern: &Pattern,
    number: u64,
    cut: Option<Cut>,
) -> Result<(gst::Element, Kept), String> {
    let extension = input.extension().unwrap_or_default().to_ascii_lowercase();
    let media = match extension.to_str() {
        Some("png") => "image/png",
        Some("jpg" | "jpeg") => "image/jpeg",
        _ => {
            let mut command = ffmpeg();
            command.args(["-framerate", &rate.to_string()]);
            command.args(["-start_number", &number.to_string(), "-f", "image2", "-i"]);
            command.arg(file(&pattern.printf()));
            return converted_pictures(command, input, &pattern.file(number), cut);
        }
    };
    let index = i32::try_from(number)
        .map_err(|_| format!("{}: {number} is too large a number", input.display()))?;
    let source = make("multifilesrc")?;
    source.set_property("location", pattern.printf());
    source.set_property("start-index", index);
    source.set_property(
        "caps",
        gst::Caps::builder(media).field("framerate", rate.fraction()).build(),
    );
    let probe = Probe::new(&pattern.file(number));
    Ok((source, Kept::default().describe(probe.as_ref())))
}

/// The element that reads the pictures in `folder` by name.
fn folder_of_pictures(
    rate: Rate,
    folder: &Path,
    cut: Option<Cut>,
) -> Result<(gst::Element, Kept), String> {
    let (extension, pictures) = pictures_of_one_kind(folder)?;
    let first = pictures.first().ok_or("there are no pictures")?;
    // In front of a colon, FFmpeg would look for a protocol.
    let mut names = OsString::from("./*.");
    names.push(extension);
    let mut command = ffmpeg();
    // A pattern in the folder itself has no other special characters.
    command.current_dir(folder).args(["-framerate", &rate.to_string()]);
    command.args(["-f", "image2", "-pattern_type", "glob", "-i"]).arg(names);
    converted_pictures(command, folder, first, cut)
}

/// The element that reads the part `cut` of the pictures of `input` from FFmpeg, which `command` lets
/// read them; they are like `first`.
fn converted_pictures(
    command: Command,
    input: &Path,
    first: &Path,
    cut: Option<Cut>,
) -> Result<(gst::Element, Kept), String> {
    let probe = Probe::new(first);
    let converter = Converter::of_pictures(command, probe.as_ref(), cut)
        .ok_or_else(|| format!("{}: is read by FFmpeg, which is not installed", input.display()))?;
    let (source, kept) = Kept::source(converter)?;
    Ok((source, kept.describe(probe.as_ref())))
}

/// What pictures are called, and how many there are of them, where `input` stands for several.
pub fn count_of_pictures(input: &Path) -> Option<(String, u64)> {
    let (extension, count) = if input.is_dir() {
        let (extension, pictures) = pictures_of_one_kind(input).ok()?;
        (extension, pictures.len() as u64)
    } else {
        let (pattern, first) = numbered(input)?;
        (input.extension()?.to_owned(), pattern.count_from(first))
    };
    Some((extension.to_string_lossy().to_uppercase(), count))
}
