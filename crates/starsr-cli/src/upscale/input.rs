// SPDX-License-Identifier: MPL-2.0

//! The file read: a regular one, a pipe, or standard input.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use gst::prelude::*;
use rustix::fs::OFlags;

use super::elements::make;
use super::output::reason;

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

/// The element that reads `input`, and the file that has to stay open for it.
pub fn source(input: &Path) -> Result<(gst::Element, Option<File>), String> {
    let failed = |error: io::Error| format!("{}: {}", input.display(), reason(&error));
    if !fs::metadata(input).map_err(failed)?.file_type().is_fifo() {
        let source = make("filesrc")?;
        source.set_property("location", input);
        return Ok((source, None));
    }
    // Without waiting for a program that writes to the pipe: the element waits, and can be stopped.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let pipe = OpenOptions::new().read(true).custom_flags(flags).open(input).map_err(failed)?;
    let source = make("fdsrc")?;
    source.set_property("fd", pipe.as_raw_fd());
    Ok((source, Some(pipe)))
}
