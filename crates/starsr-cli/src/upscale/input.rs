// SPDX-License-Identifier: MPL-2.0

//! The file read: a regular one, a pipe, or standard input.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Child, Stdio};

use gst::prelude::*;
use rustix::fs::OFlags;

use super::elements::make;
use super::output::reason;
use super::remux::{ffmpeg, file};

/// Fails, in the operating system's words, where `input` cannot be read.
pub fn check(input: &Path) -> Result<(), String> {
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

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(converter) = &mut self.converter {
            // It may have ended already.
            let _ = converter.kill();
            let _ = converter.wait();
        }
    }
}

/// The element that reads `input`, and what has to stay for it.
pub fn source(input: &Path) -> Result<(gst::Element, Kept), String> {
    let failed = |error: io::Error| format!("{}: {}", input.display(), reason(&error));
    let metadata = fs::metadata(input).map_err(failed)?;
    let kept = if metadata.file_type().is_fifo() {
        // Without waiting for a program that writes to the pipe: the element waits, and can be
        // stopped.
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let pipe = OpenOptions::new().read(true).custom_flags(flags).open(input).map_err(failed)?;
        Kept { pipe: Some(pipe), converter: None }
    } else if metadata.is_file() && is_gif(input) {
        // GStreamer's demuxer of GIF never ends.
        converted(input).unwrap_or_default()
    } else {
        Kept::default()
    };
    let source = if let Some(pipe) = &kept.pipe {
        let source = make("fdsrc")?;
        source.set_property("fd", pipe.as_raw_fd());
        source
    } else {
        let source = make("filesrc")?;
        source.set_property("location", input);
        source
    };
    Ok((source, kept))
}

fn is_gif(input: &Path) -> bool {
    let mut magic = [0; 4];
    File::open(input).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && &magic == b"GIF8"
}

/// `input` as FFmpeg decodes it, without loss; `None` where FFmpeg is not installed.
fn converted(input: &Path) -> Option<Kept> {
    let mut command = ffmpeg();
    command.arg("-i").arg(file(input)).args(["-c:v", "ffv1", "-f", "matroska", "-"]);
    let mut converter = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
    let pipe = File::from(OwnedFd::from(converter.stdout.take()?));
    Some(Kept { pipe: Some(pipe), converter: Some(converter) })
}
