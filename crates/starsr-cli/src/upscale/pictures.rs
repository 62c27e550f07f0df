// SPDX-License-Identifier: MPL-2.0

//! Pictures as output: one, or one for each frame. FFmpeg encodes them, as GStreamer's encoders know
//! 8 bits only.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};

use gst_video::{VideoFormat, VideoInfo};
use parking_lot::Mutex;

use crate::media::ffmpeg::{Words, ffmpeg, file, is_installed, last_line, unwritten};
use crate::media::pattern::Pattern;
use crate::output::{folder, hidden_prefix, reason};

/// Name of the file in a hidden folder that is locked while a process writes there.
const LOCK: &str = ".lock";

/// Pictures that are being written, in a hidden folder beside their place. Dropped before
/// [`Pictures::finish`] they are gone.
pub struct Pictures {
    target: PathBuf,
    /// Where the number is in the name, for more than one.
    pattern: Option<Pattern>,
    force: bool,
    hidden: PathBuf,
    /// Holds the lock that tells other runs, until this process ends in any way, to let the folder be.
    _lock: File,
    is_kept: Mutex<bool>,
    encoder: Mutex<Encoder>,
}

/// The program that encodes, once it runs.
#[derive(Default)]
struct Encoder {
    program: Option<Child>,
    input: Option<ChildStdin>,
    /// Reads what it says.
    words: Option<Words>,
}

impl Pictures {
    /// Checks that pictures may be written to `target`.
    pub fn create(target: &Path, force: bool) -> Result<Self, String> {
        let shown = target.display();
        if !is_installed("ffmpeg") {
            return Err(format!("{shown}: pictures are written by FFmpeg, which is not installed"));
        }
        let pattern = Pattern::of(target);
        let is_taken = match &pattern {
            Some(pattern) => pattern.first().is_some(),
            None => fs::symlink_metadata(target).is_ok(),
        };
        if is_taken && !force {
            return Err(format!("{shown}: exists already; use --force to replace it"));
        }
        let failed = |error: io::Error| format!("{shown}: cannot be created: {}", reason(&error));
        let prefix = hidden_prefix(target)?;
        remove_leftovers(folder(target), &prefix);
        let hidden = tempfile::Builder::new()
            .prefix(&prefix)
            .tempdir_in(folder(target))
            .map_err(failed)?
            .keep();
        let lock = File::create(hidden.join(LOCK)).map_err(failed)?;
        // Where a file system knows no locks, no run finds anything to remove.
        let _ = lock.try_lock();
        let (target, encoder, is_kept) = (target.to_owned(), Mutex::default(), Mutex::default());
        Ok(Self { target, pattern, force, hidden, _lock: lock, is_kept, encoder })
    }

    pub fn is_one(&self) -> bool {
        self.pattern.is_none()
    }

    /// The format of the frames to write for a decoded `video`.
    pub fn format(video: &VideoInfo) -> VideoFormat {
        let format = video.format_info();
        if format.depth().iter().any(|depth| *depth > 8) {
            VideoFormat::Rgba64Le
        } else if format.has_alpha() {
            VideoFormat::Rgba
        } else {
            VideoFormat::Rgbx
        }
    }

    /// Starts the encoder for frames of `video`, which has alpha or not; gives the file descriptor to
    /// write them to. The numbers of the pictures begin with `number`.
    pub fn start(&self, video: &VideoInfo, has_alpha: bool, number: u64) -> Result<i32, String> {
        let deep = video.format() == VideoFormat::Rgba64Le;
        let frames = match video.format() {
            VideoFormat::Rgba64Le => "rgba64le",
            VideoFormat::Rgba => "rgba",
            _ => "rgb0",
        };
        let extension = self.target.extension().unwrap_or_default().to_ascii_lowercase();
        let mut command = ffmpeg();
        command.current_dir(self.hidden.as_path()).stdin(Stdio::piped()).stderr(Stdio::piped());
        command.args(["-f", "rawvideo", "-pix_fmt", frames]);
        command.args(["-s", &format!("{}x{}", video.width(), video.height()), "-i", "-"]);
        command.args(["-fps_mode", "passthrough", "-start_number", &number.to_string()]);
        match extension.to_str() {
            Some("jpg" | "jpeg") => command.args(["-pix_fmt", "yuvj444p", "-q:v", "2"]),
            Some("webp") => command.args(["-c:v", "libwebp", "-quality", "95"]),
            Some("bmp") => command.args(["-pix_fmt", "bgr24"]),
            // Those that hold depth and alpha.
            _ => command.args([
                "-pix_fmt",
                match (deep, has_alpha) {
                    (true, true) => "rgba64",
                    (true, false) => "rgb48",
                    (false, true) => "rgba",
                    (false, false) => "rgb24",
                },
            ]),
        };
        command.args(["-f", "image2"]);
        if self.pattern.is_none() {
            command.args(["-update", "1"]);
        }
        let name = match &self.pattern {
            Some(pattern) => pattern.name().to_owned(),
            None => format!("picture.{}", extension.to_string_lossy()).into(),
        };
        let failed = |error: io::Error| format!("ffmpeg: {}", reason(&error));
        let mut program = command.arg(file(Path::new(&name))).spawn().map_err(failed)?;
        let input = program.stdin.take();
        let descriptor = input.as_ref().map(AsRawFd::as_raw_fd);
        let words = Words::of(&mut program);
        *self.encoder.lock() = Encoder { program: Some(program), input, words };
        descriptor.ok_or_else(|| "ffmpeg takes no frames".to_owned())
    }

    /// Why the encoder fails, where it does. It takes no more frames.
    pub fn failure(&self) -> Option<String> {
        let mut encoder = self.encoder.lock();
        drop(encoder.input.take());
        let status = encoder.program.take()?.wait().ok()?;
        let words = encoder.words.take()?.join();
        (!status.success()).then(|| self.sentence(&words))
    }

    fn sentence(&self, words: &str) -> String {
        let reason = unwritten(words).unwrap_or_else(|| last_line(words));
        format!("{}: FFmpeg cannot write the pictures: {reason}", self.target.display())
    }

    /// Waits for the encoder and gives the pictures their names.
    pub fn finish(&self) -> Result<(), String> {
        let shown = self.target.display();
        let mut encoder = self.encoder.lock();
        drop(encoder.input.take());
        if let Some(mut program) = encoder.program.take() {
            let status = program.wait().map_err(|error| format!("ffmpeg: {}", reason(&error)))?;
            let words = encoder.words.take().map(Words::join).unwrap_or_default();
            if !status.success() || unwritten(&words).is_some() {
                return Err(self.sentence(&words));
            }
        }
        // What is finished is not thrown away.
        let mut is_kept = self.is_kept.lock();
        *is_kept = true;
        let failed = |error: io::Error| format!("{shown}: {}", reason(&error));
        let mut pictures: Vec<_> =
            fs::read_dir(self.hidden.as_path()).map_err(failed)?.flatten().collect();
        pictures.retain(|picture| picture.file_name() != LOCK);
        pictures.sort_by_key(|picture| picture.file_name());
        for picture in pictures {
            let target = match &self.pattern {
                Some(_) => folder(&self.target).join(picture.file_name()),
                None => self.target.clone(),
            };
            if !self.force && fs::symlink_metadata(&target).is_ok() {
                return Err(format!(
                    "{}: has appeared meanwhile; the pictures from here on are in {}",
                    target.display(),
                    self.hidden.as_path().display()
                ));
            }
            fs::rename(picture.path(), &target).map_err(failed)?;
        }
        *is_kept = false;
        Ok(())
    }
}

/// Removes the folders in `folder` that begin with `prefix` and that no process is writing.
fn remove_leftovers(folder: &Path, prefix: &OsStr) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_hidden = entry.file_name().as_bytes().starts_with(prefix.as_bytes());
        if is_hidden
            && let Ok(lock) = File::open(entry.path().join(LOCK))
            && lock.try_lock().is_ok()
        {
            // One that cannot be removed does no harm.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

impl Drop for Pictures {
    fn drop(&mut self) {
        if let Some(mut program) = self.encoder.lock().program.take() {
            // It may have ended already.
            let _ = program.kill();
            let _ = program.wait();
        }
        if !*self.is_kept.lock() {
            // A folder that stays does no harm.
            let _ = fs::remove_dir_all(&self.hidden);
        }
    }
}
