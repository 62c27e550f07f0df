// SPDX-License-Identifier: MPL-2.0

//! The page, written as its frames come.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde_json::Value;

use crate::output::reason;

const PAGE: &str = include_str!("page.html");
/// Where the data are in it.
const MARK: &str = "@DATA@";

pub struct Page {
    file: BufWriter<File>,
    rest: &'static str,
    is_first: bool,
}

impl Page {
    /// Begins a page in `file`.
    pub fn create(file: &Path) -> io::Result<Self> {
        let (begin, rest) = PAGE.split_once(MARK).unwrap_or((PAGE, ""));
        let mut file = BufWriter::new(File::create(file)?);
        write!(file, "{begin}{{\"frames\":[")?;
        Ok(Self { file, rest, is_first: true })
    }

    pub fn frame(&mut self, frame: &Value) -> io::Result<()> {
        let comma = if std::mem::take(&mut self.is_first) { "\n" } else { ",\n" };
        write!(self.file, "{comma}{}", inert(frame))
    }

    /// Ends the page with what is known of all frames.
    pub fn finish(mut self, about: &Value) -> io::Result<()> {
        write!(self.file, "],\n\"about\":{}}}{}", inert(about), self.rest)?;
        self.file.flush()
    }
}

/// JSON in which nothing ends a script element.
fn inert(value: &Value) -> String {
    value.to_string().replace('<', "\\u003c")
}

/// The sentence for an error in writing `target`.
pub fn failed(target: &Path) -> impl Fn(io::Error) -> String {
    move |error| format!("{}: cannot be written: {}", target.display(), reason(&error))
}
