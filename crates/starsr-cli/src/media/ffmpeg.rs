// SPDX-License-Identifier: MPL-2.0

//! FFmpeg's programs.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

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

/// A path that FFmpeg takes for nothing else.
pub fn file(path: &Path) -> OsString {
    let mut name = OsStr::new("file:").to_owned();
    name.push(path);
    name
}

/// What ffprobe answers about `input`.
pub fn ffprobe(input: &Path, arguments: &[&str]) -> Option<Value> {
    let mut command = Command::new("ffprobe");
    command.args(["-v", "error", "-of", "json"]).args(arguments).arg(file(input));
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    serde_json::from_slice(&output.stdout).ok()
}
