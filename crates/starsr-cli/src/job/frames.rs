// SPDX-License-Identifier: MPL-2.0

//! The frames of a plan, one record of a fixed size each, in a file of their own: a film has hundreds
//! of thousands.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use gst_video::prelude::*;
use gst_video::{VideoFormatFlags, VideoFrameRef, VideoInfo};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use super::store::{self, failed, hex};

/// Bytes of a record, and records that are read at once.
const RECORD: usize = 40;
const BLOCK: usize = 4096;
/// A time that is not known.
const NONE: u64 = u64::MAX;

/// A decoded frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// When the input shows it, in ns.
    pub stream: u64,
    /// When the output shows it, in ns.
    pub running: u64,
    /// How long, in ns.
    pub duration: Option<u64>,
    /// Its absolute number.
    pub number: u64,
    /// A hash of its pixels.
    pub pixels: u64,
}

impl Record {
    fn bytes(&self) -> [u8; RECORD] {
        let mut bytes = [0; RECORD];
        let fields =
            [self.stream, self.running, self.duration.unwrap_or(NONE), self.number, self.pixels];
        for (to, field) in bytes.chunks_exact_mut(8).zip(fields) {
            to.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let field = |number: usize| {
            let bytes = bytes.get(8 * number..8 * number + 8).and_then(|b| b.try_into().ok());
            bytes.map_or(0, u64::from_le_bytes)
        };
        Self {
            stream: field(0),
            running: field(1),
            duration: Some(field(2)).filter(|duration| *duration != NONE),
            number: field(3),
            pixels: field(4),
        }
    }
}

/// Writes records.
pub struct Writer {
    file: BufWriter<NamedTempFile>,
    hash: Sha256,
    count: u64,
}

impl Writer {
    /// Begins the file at `target`.
    pub fn new(target: &Path) -> io::Result<Self> {
        let file = BufWriter::new(store::unfinished(target)?);
        Ok(Self { file, hash: Sha256::new(), count: 0 })
    }

    /// The number of records so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn push(&mut self, record: &Record) -> io::Result<()> {
        let bytes = record.bytes();
        self.hash.update(bytes);
        self.count += 1;
        self.file.write_all(&bytes)
    }

    /// Completes the file at `target`; gives its SHA-256.
    pub fn finish(self, target: &Path) -> io::Result<String> {
        let file = self.file.into_inner().map_err(|error| error.into_error())?;
        store::place(file, target)?;
        Ok(hex(self.hash))
    }
}

/// Reads records.
pub struct Frames {
    file: File,
    count: u64,
    /// The place of the first record that was read last, and those from there on.
    block: Mutex<(u64, Vec<Record>)>,
}

impl Frames {
    /// Opens the file of `count` records at `path`, whose hash is known.
    pub fn open(path: &Path, count: u64, sha256: &str) -> Result<Self, String> {
        let open = || File::open(path);
        let found = open().and_then(store::sha256).map_err(|error| failed(path, &error))?;
        let file = open().map_err(|error| failed(path, &error))?;
        if found != sha256 {
            return Err(format!(
                "{}: is damaged or of another plan; remove the folder and plan again",
                path.display()
            ));
        }
        Ok(Self { file, count, block: Mutex::default() })
    }

    /// The frame at a place.
    pub fn get(&self, place: u64) -> Option<Record> {
        if place >= self.count {
            return None;
        }
        let mut block = self.block.lock();
        let inside = |(first, records): &(u64, Vec<Record>)| {
            let at = place.checked_sub(*first)?;
            records.get(usize::try_from(at).ok()?).copied()
        };
        if let Some(record) = inside(&block) {
            return Some(record);
        }
        let first = place / BLOCK as u64 * BLOCK as u64;
        let mut bytes = vec![0; RECORD * BLOCK.min((self.count - first) as usize)];
        self.file.read_exact_at(&mut bytes, first * RECORD as u64).ok()?;
        *block = (first, bytes.chunks_exact(RECORD).map(Record::from_bytes).collect());
        inside(&block)
    }
}

/// A hash of the visible pixels of the frame in `buffer`; `None` where it does not hold one.
pub fn pixels(buffer: &gst::BufferRef, info: &VideoInfo) -> Option<u64> {
    let format = info.format_info();
    if format.flags().contains(VideoFormatFlags::COMPLEX) {
        // What is in its bytes beside pixels is not known.
        return Some(0);
    }
    let frame = VideoFrameRef::from_buffer_ref_readable(buffer, info).ok()?;
    let mut hash = Sha256::new();
    for plane in 0..frame.n_planes() {
        let component = (0..frame.n_components()).find(|c| format.plane()[*c as usize] == plane)?;
        let width = frame.comp_width(component) as usize;
        let row = width * usize::try_from(frame.comp_pstride(component)).ok()?;
        let stride = *frame.plane_stride().get(plane as usize)? as usize;
        let rows = frame.comp_height(component) as usize;
        let data = frame.plane_data(plane).ok()?;
        for line in data.chunks(stride.max(1)).take(rows) {
            hash.update(line.get(..row.min(line.len()))?);
        }
    }
    let digest = hash.finalize();
    digest.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}
