// SPDX-License-Identifier: MPL-2.0

//! The file read: a regular one, a pipe, or standard input.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use gst::prelude::*;
use rustix::fs::OFlags;
use serde_json::Value;

use super::args::Rate;
use super::cut::Cut;
use super::elements::make;
use super::output::reason;
use super::pattern::Pattern;
use super::probe::{Probe, ffmpeg, file, index, seconds, word};

/// QuickTime, MP4 and their kin, and Matroska and WebM, in ffprobe's words.
pub const QUICKTIME: &str = "mov,mp4,m4a,3gp,3g2,mj2";
pub const MATROSKA: &str = "matroska,webm";
/// Formats that FFmpeg decodes. GStreamer's demuxers: AVI gets the times of B-frames and raw pictures
/// wrong, DV loses its first frames by chance, GIF never ends; BMP and TIFF are not known to it.
const CONVERTED: [&str; 6] = ["avi", "dv", "gif", "bmp_pipe", "tiff_pipe", "apng"];

/// Fails, in the operating system's words, where `input` cannot be read.
pub fn check(input: &Path) -> Result<(), String> {
    if numbered(input).is_some() {
        return Ok(());
    }
    let shown = input.display();
    let failed = |error: io::Error| format!("{shown}: {}", reason(&error));
    let metadata = fs::metadata(input).map_err(failed)?;
    if metadata.is_dir() {
        return Err(format!("{shown}: is a folder"));
    }
    // Opening a pipe would wait for its other end.
    if metadata.is_file() {
        File::open(input).map_err(failed)?;
        if metadata.len() == 0 {
            return Err(format!("{shown}: is empty"));
        }
    }
    Ok(())
}

/// What has to stay while a source reads from it.
#[derive(Default)]
pub struct Kept {
    pipe: Option<File>,
    converter: Option<Child>,
}

impl Kept {
    /// What `command` writes to its standard output; `None` where it cannot be run.
    fn converter(mut command: Command) -> Option<Self> {
        let mut converter = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
        let pipe = File::from(OwnedFd::from(converter.stdout.take()?));
        Some(Self { pipe: Some(pipe), converter: Some(converter) })
    }

    /// The element that reads the pipe.
    fn source(&self) -> Result<gst::Element, String> {
        let pipe = self.pipe.as_ref().ok_or("there is no pipe to read from")?;
        let source = make("fdsrc")?;
        source.set_property("fd", pipe.as_raw_fd());
        Ok(source)
    }

    /// Whether FFmpeg decodes the input.
    pub fn is_converted(&self) -> bool {
        self.converter.is_some()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(converter) = &mut self.converter {
            // It may have ended already.
            let _ = converter.kill();
            let _ = converter.wait();
        }
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
        return pictures(rate, input, &pattern, number);
    }
    let failed = |error: io::Error| format!("{}: {}", input.display(), reason(&error));
    let metadata = fs::metadata(input).map_err(failed)?;
    let kept = if metadata.file_type().is_fifo() {
        // Without waiting for a program that writes to the pipe: the element waits, and can be
        // stopped.
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let pipe = OpenOptions::new().read(true).custom_flags(flags).open(input).map_err(failed)?;
        Kept { pipe: Some(pipe), converter: None }
    } else {
        let video = probe.filter(|probe| is_converted(probe, cut)).and_then(Probe::video);
        let origin = probe.map_or(0.0, Probe::start);
        video.and_then(|video| converted(input, video, cut, origin)).unwrap_or_default()
    };
    let source = if kept.pipe.is_some() {
        kept.source()?
    } else {
        let source = make("filesrc")?;
        source.set_property("location", input);
        source
    };
    Ok((source, kept))
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
) -> Result<(gst::Element, Kept), String> {
    let extension = input.extension().unwrap_or_default().to_ascii_lowercase();
    let media = match extension.to_str() {
        Some("png") => "image/png",
        Some("jpg" | "jpeg") => "image/jpeg",
        _ => {
            let mut command = ffmpeg();
            command.args(["-framerate", &rate.to_string()]);
            command.args(["-start_number", &number.to_string(), "-f", "image2", "-i"]);
            command.arg(input).args(["-c:v", "ffv1", "-f", "matroska", "-"]);
            let kept = Kept::converter(command).ok_or_else(|| {
                format!("{}: is read by FFmpeg, which is not installed", input.display())
            })?;
            return Ok((kept.source()?, kept));
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
    Ok((source, Kept::default()))
}

/// Whether FFmpeg decodes the file: GStreamer reads such files wrongly or not at all, or a `cut` has
/// to be exact.
pub fn is_converted(probe: &Probe, cut: Option<Cut>) -> bool {
    let Some(video) = probe.video() else { return false };
    if cut.is_some() {
        return true;
    }
    match probe.format() {
        // GStreamer's demuxer leaves out tracks that are much shorter than the file.
        QUICKTIME => {
            let (own, all) = (seconds(&video["duration"]), probe.duration());
            own.zip(all).is_some_and(|(own, all)| own < all / 4.0)
        }
        format => CONVERTED.contains(&format),
    }
}

/// The video of `input` as FFmpeg decodes it, without loss and at its times.
fn converted(input: &Path, video: &Value, cut: Option<Cut>, origin: f64) -> Option<Kept> {
    let mut command = ffmpeg();
    if let Some(cut) = cut {
        cut.skip(&mut command);
    }
    command.args(["-copyts", "-i"]).arg(file(input));
    command.args(["-map", &format!("0:{}", index(video)), "-fps_mode", "passthrough"]);
    let mut filters: Vec<_> = cut.map(|cut| cut.filter(origin)).into_iter().collect();
    if word(video, "pix_fmt").starts_with("yuvj") {
        // Without this FFmpeg squeezes the levels of such formats.
        filters.push("scale=in_range=full:out_range=full".to_owned());
        command.args(["-color_range", "pc"]);
    }
    if !filters.is_empty() {
        command.args(["-vf", &filters.join(",")]);
    }
    command.args(["-c:v", "ffv1", "-f", "matroska", "-"]);
    Kept::converter(command)
}
