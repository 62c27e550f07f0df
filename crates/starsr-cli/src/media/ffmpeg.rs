// SPDX-License-Identifier: MPL-2.0

//! FFmpeg's programs.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::Value;

use crate::interrupts::Stop;

/// Interval at which a running program is looked at.
const TICK: Duration = Duration::from_millis(50);
/// What FFmpeg's messages say when it cannot write.
const UNWRITTEN: [&str; 3] =
    ["Error writing trailer", "Error closing file", "av_interleaved_write_frame()"];

/// Whether the search path has `program`.
pub fn is_installed(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// FFmpeg, with the options of every call.
pub fn ffmpeg() -> Command {
    let mut command = Command::new("ffmpeg");
    // Ctrl-C is for this program, which then ends FFmpeg.
    command.process_group(0);
    command.args(["-nostdin", "-v", "error", "-y"]).stdin(Stdio::null());
    command
}

/// Whether FFmpeg is installed and knows a pixel format.
pub fn knows_pixel_format(name: &str) -> bool {
    let output = Command::new("ffmpeg").args(["-v", "error", "-pix_fmts"]).output();
    output.is_ok_and(|output| {
        let list = String::from_utf8_lossy(&output.stdout);
        list.lines().any(|line| line.split_whitespace().nth(1) == Some(name))
    })
}

/// A path that FFmpeg takes for nothing else.
pub fn file(path: &Path) -> OsString {
    let mut name = OsStr::new("file:").to_owned();
    name.push(path);
    name
}

/// What a running program says on its standard error, read so that it never waits for a reader.
pub struct Words(JoinHandle<String>);

impl Words {
    /// Reads from `program`, which was started with a pipe there.
    pub fn of(program: &mut Child) -> Option<Self> {
        let mut errors = program.stderr.take()?;
        Some(Self(thread::spawn(move || {
            let mut words = Vec::new();
            // Without them a message is shorter.
            let _ = errors.read_to_end(&mut words);
            String::from_utf8_lossy(&words).into_owned()
        })))
    }

    /// All words, once the program has ended.
    pub fn join(self) -> String {
        self.0.join().unwrap_or_default()
    }
}

/// Waits for the end of `program`, which an interrupt ends.
pub fn wait(program: &mut Child, interrupts: &AtomicU32) -> Result<ExitStatus, Stop> {
    loop {
        if interrupts.load(Ordering::SeqCst) > 0 {
            // It may have ended already.
            let _ = program.kill();
            let _ = program.wait();
            return Err(Stop::Interrupted);
        }
        match program.try_wait().map_err(|error| format!("ffmpeg: {error}"))? {
            Some(status) => return Ok(status),
            None => thread::sleep(TICK),
        }
    }
}

/// Why FFmpeg could not write, where its `words` say so: version 5 ends with success all the same.
pub fn unwritten(words: &str) -> Option<&str> {
    let line = words.lines().find(|line| UNWRITTEN.iter().any(|start| line.contains(start)))?;
    Some(line.rsplit_once(": ").map_or(line, |(_, reason)| reason))
}

/// The last line of `words`.
pub fn last_line(words: &str) -> &str {
    words.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it gives no reason").trim()
}

/// What ffprobe answers about `input`.
pub fn ffprobe(input: &Path, arguments: &[&str]) -> Option<Value> {
    let mut command = Command::new("ffprobe");
    command.args(["-v", "error", "-of", "json"]).args(arguments).arg(file(input));
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    serde_json::from_slice(&output.stdout).ok()
}
