// SPDX-License-Identifier: MPL-2.0

//! MP4 and QuickTime from a pipe, which are read whole before the work begins: what applies to their
//! first frame may be written behind the last.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, tee};

use crate::interrupts::Stop;
use crate::output::reason;

/// Interval at which Ctrl-C is checked.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// Bytes at the beginning that tell what a stream is, and how long they may take to come once there
/// are any.
const HEAD: usize = 64;
const HEAD_TIME: Duration = Duration::from_secs(1);
/// Bytes that are looked at where more have come: those of a fragmented file's header.
const LOOK: usize = 1 << 16;

/// A pipe that stays open for whoever reads it next, and its content where that is copied.
pub struct Spool {
    _pipe: File,
    copy: Option<File>,
}

impl Spool {
    /// Waits for the beginning of a pipe, but not longer than `stall_timeout` seconds, where that is not
    /// 0. Copies the whole where that is needed; `None` for what is no pipe.
    pub fn new(
        input: &Path,
        stall_timeout: u64,
        interrupts: &AtomicU32,
    ) -> Result<Option<Self>, Stop> {
        let failed = |error: io::Error| format!("{}: {}", input.display(), reason(&error));
        if !fs::metadata(input).is_ok_and(|metadata| metadata.file_type().is_fifo()) {
            return Ok(None);
        }
        // Without waiting for a program that writes to it.
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let pipe = OpenOptions::new().read(true).custom_flags(flags).open(input).map_err(failed)?;
        let reader = Reader { stall_timeout, input, pipe: &pipe, interrupts };
        let copy = if is_spooled(&reader.peek()?) { Some(reader.copy()?) } else { None };
        Ok(Some(Self { _pipe: pipe, copy }))
    }

    /// A path to the copy, for this program and for those that it starts.
    pub fn path(&self) -> Option<PathBuf> {
        let descriptor = self.copy.as_ref()?.as_raw_fd();
        Some(format!("/proc/{}/fd/{descriptor}", std::process::id()).into())
    }
}

/// Whether a stream that begins so is MP4 or QuickTime; fragmented ones are made for pipes.
fn is_spooled(head: &[u8]) -> bool {
    let is_quicktime =
        matches!(head.get(4..8), Some(b"ftyp" | b"moov" | b"mdat" | b"wide" | b"free"));
    is_quicktime && !head.windows(4).any(|bytes| bytes == b"mvex")
}

struct Reader<'a> {
    stall_timeout: u64,
    input: &'a Path,
    pipe: &'a File,
    interrupts: &'a AtomicU32,
}

impl Reader<'_> {
    /// The first bytes, which stay in the pipe.
    fn peek(&self) -> Result<Vec<u8>, Stop> {
        let failed = |error: rustix::io::Errno| self.failed(&error.into());
        self.wait()?;
        let since = Instant::now();
        loop {
            let (back, front) = pipe_with(PipeFlags::CLOEXEC).map_err(failed)?;
            // What is no pipe of the usual kind is not looked at.
            let Ok(count) = tee(self.pipe, &front, LOOK, SpliceFlags::NONBLOCK) else {
                return Ok(Vec::new());
            };
            if count >= HEAD || since.elapsed() > HEAD_TIME {
                drop(front);
                let mut head = Vec::new();
                File::from(back).read_to_end(&mut head).map_err(|error| self.failed(&error))?;
                return Ok(head);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// All that comes, in a file that has no name.
    fn copy(&self) -> Result<File, Stop> {
        let failed = |error: io::Error| {
            Stop::Failed(format!(
                "{}: MP4 from a pipe is copied to {} first: {}",
                self.input.display(),
                std::env::temp_dir().display(),
                reason(&error)
            ))
        };
        let mut copy = tempfile::tempfile().map_err(failed)?;
        let (mut pipe, mut block) = (self.pipe, vec![0; 1 << 20]);
        loop {
            self.wait()?;
            match pipe.read(&mut block) {
                Ok(0) => return Ok(copy),
                Ok(count) => copy.write_all(&block[..count]).map_err(failed)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(self.failed(&error)),
            }
        }
    }

    /// Waits for bytes or the end.
    fn wait(&self) -> Result<(), Stop> {
        let since = Instant::now();
        let limit = self.stall_timeout;
        loop {
            let mut pipes = [PollFd::new(self.pipe, PollFlags::IN)];
            match poll(&mut pipes, Some(&TICK)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(self.failed(&error.into())),
            }
            if self.interrupts.load(Ordering::SeqCst) > 0 {
                return Err(Stop::Interrupted);
            }
            if limit > 0 && since.elapsed() > Duration::from_secs(limit) {
                let input = self.input.display();
                return Err(Stop::Failed(format!(
                    "{input}: nothing has come from it for {limit} s (see --stall-timeout)"
                )));
            }
        }
    }

    fn failed(&self, error: &io::Error) -> Stop {
        Stop::Failed(format!("{}: {}", self.input.display(), reason(error)))
    }
}
