// SPDX-License-Identifier: MPL-2.0

//! Video that FFmpeg decodes, and that comes from it without loss through a pipe.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use gst::prelude::*;
use parking_lot::Mutex;
use serde_json::Value;

use super::cut::Cut;
use super::elements::make;
use super::ffmpeg::{ffmpeg, file};
use super::probe::{Probe, QUICKTIME, index, seconds, word};
use crate::values::{Rate, Raw};

/// Containers that FFmpeg reads, because GStreamer's demuxers fail on them: AVI gets wrong times for
/// B-frames and raw pictures, DV sometimes loses its first frames, GIF never ends, and BMP and TIFF are
/// unknown.
const CONTAINERS: [&str; 6] = ["avi", "dv", "gif", "bmp_pipe", "tiff_pipe", "apng"];
/// Pixel formats that GStreamer 1.22's libav decoders can hand on. With any other they crash.
const PIXEL_FORMATS: &str = "\
    yuv420p|yuv422p|yuv444p|yuv411p|yuv410p|yuv420p10le|yuv422p10le|yuv444p10le|yuv420p12le|yuv422p12le|\
    yuv444p12le|yuva420p|yuva420p10le|yuva422p10le|yuva444p10le|gray|gray16le|bgr0|bgra|gbrp10le|gbrp12le|\
    gbrap10le|gbrap12le";
/// Pixel formats with which they crash, without the byte order, and below, endings of further names.
const UNKNOWN: &str = "yuv440p|yuv440p10|yuv440p12|yuva422p|yuva444p|gray9|gray10|gray12|gray14|ya8|ya16|rgb48|rgba64|xyz12";
const UNKNOWN_DEPTHS: [&str; 3] = ["p9", "p14", "p16"];

/// How long FFmpeg may take to end, in intervals at which that is checked.
const TICK: Duration = Duration::from_millis(10);
const TICKS: u32 = 100;

/// A running FFmpeg that decodes.
pub struct Converter {
    program: Mutex<Child>,
    pipe: File,
}

impl Converter {
    /// Decodes the part `cut` of the video of `input` that `probe` chooses, at its times.
    pub fn of_video(input: &Path, probe: &Probe, cut: Option<Cut>) -> Option<Self> {
        let video = probe.video()?;
        let mut command = ffmpeg();
        if let Some(cut) = cut {
            cut.skip(&mut command);
        }
        command.args(["-copyts", "-i"]).arg(file(input));
        command.args(["-map", &format!("0:{}", index(video)), "-fps_mode", "passthrough"]);
        let scan = probe.scan().and_then(|scan| scan.filters()).map(str::to_owned);
        let filters = scan.into_iter().chain(cut.map(|cut| cut.filter(probe.start()))).collect();
        Self::start(command, filters, word(video, "pix_fmt"))
    }

    /// Decodes the part `cut` of the pictures that `command` lets FFmpeg read; `probe` is of the first.
    pub fn of_pictures(command: Command, probe: Option<&Probe>, cut: Option<Cut>) -> Option<Self> {
        let filters = cut.map(|cut| cut.filter(0.0)).into_iter().collect();
        let video = probe.and_then(Probe::video);
        Self::start(command, filters, video.map_or("", |video| word(video, "pix_fmt")))
    }

    /// Reads the part `cut` of frames without a header.
    pub fn of_raw(input: &Path, raw: &Raw, rate: Rate, cut: Option<Cut>) -> Option<Self> {
        let mut command = ffmpeg();
        command.args(["-f", "rawvideo", "-pixel_format", &raw.format, "-video_size", &raw.size]);
        command.args(["-framerate", &rate.to_string(), "-i"]).arg(file(input));
        let filters = cut.map(|cut| cut.filter(0.0)).into_iter().collect();
        Self::start(command, filters, &raw.format)
    }

    /// Runs `command` with an encoder that keeps all of video of a pixel `format`.
    fn start(mut command: Command, mut filters: Vec<String>, format: &str) -> Option<Self> {
        if format.starts_with("yuvj") {
            // Without this FFmpeg squeezes the levels of such formats.
            filters.push("scale=in_range=full:out_range=full".to_owned());
            command.args(["-color_range", "pc"]);
        }
        // FFV1 has 16 bits, but GStreamer knows none of its formats for them; its PNG decoder does.
        let is_deep = |names: &[&str]| names.iter().any(|name| format.starts_with(name));
        let (formats, codec) = if is_deep(&["rgba64", "gbrap14", "gbrap16", "ya16"]) {
            ("rgba64be".to_owned(), "png")
        } else if is_deep(&["rgb48", "gbrp14", "gbrp16"]) {
            ("rgb48be".to_owned(), "png")
        } else if is_deep(&["gray9", "gray1"]) {
            ("gray16le".to_owned(), "ffv1")
        } else {
            (PIXEL_FORMATS.to_owned(), "ffv1")
        };
        filters.push(format!("format=pix_fmts={formats}"));
        command.args(["-vf", &filters.join(","), "-c:v", codec, "-f", "matroska", "-"]);
        let mut program = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
        let pipe = File::from(OwnedFd::from(program.stdout.take()?));
        Some(Self { program: Mutex::new(program), pipe })
    }

    /// What decoding loses of video of a pixel `format`.
    pub fn losses(format: &str) -> Option<String> {
        let format = format.trim_end_matches("le").trim_end_matches("be");
        let bits = [14, 16].into_iter().find(|bits| format.ends_with(&format!("p{bits}")))?;
        let is_yuv = format.starts_with("yuv");
        is_yuv.then(|| format!("{} of the {bits} bits of {format} (GStreamer knows 12)", bits - 12))
    }

    /// Says whether it came to no good end, once all that it decodes is read.
    pub fn complaint(&self) -> Option<String> {
        // Where not all was read it does not end at all.
        let end = || {
            thread::sleep(TICK);
            self.program.lock().try_wait().ok().flatten()
        };
        let status = (0..TICKS).find_map(|_| end())?;
        (!status.success()).then(|| {
            format!("FFmpeg, which decodes it, failed ({status}); the video may be incomplete")
        })
    }

    /// The element that reads what it decodes.
    pub fn source(&self) -> Result<gst::Element, String> {
        let source = make("fdsrc")?;
        source.set_property("fd", self.pipe.as_raw_fd());
        Ok(source)
    }
}

impl Drop for Converter {
    fn drop(&mut self) {
        // It may have ended already.
        let mut program = self.program.lock();
        let _ = program.kill();
        let _ = program.wait();
    }
}

/// Whether FFmpeg decodes the file: GStreamer reads such files wrongly or not at all, a `cut` has to
/// be exact, another video is wanted than GStreamer's first, or its frames have to be put right.
pub fn is_converted(probe: &Probe, cut: Option<Cut>) -> bool {
    let Some(video) = probe.video() else { return false };
    if cut.is_some() || probe.is_further_video() || is_unknown(video) || probe.scan().is_some() {
        return true;
    }
    match probe.format() {
        // GStreamer's demuxer leaves out tracks that are much shorter than the file.
        QUICKTIME => {
            let (own, all) = (seconds(&video["duration"]), probe.duration());
            own.zip(all).is_some_and(|(own, all)| own < all / 4.0)
        }
        format => CONTAINERS.contains(&format),
    }
}

/// Whether GStreamer's decoder would crash. Its own decoder of PNG does not.
fn is_unknown(video: &Value) -> bool {
    let format = word(video, "pix_fmt");
    let format = format.trim_end_matches("le").trim_end_matches("be");
    let is_deep = UNKNOWN_DEPTHS.iter().any(|depth| format.ends_with(depth));
    (is_deep || UNKNOWN.split('|').any(|unknown| unknown == format))
        && word(video, "codec_name") != "png"
}
