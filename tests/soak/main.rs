// SPDX-License-Identifier: MPL-2.0

//! What only shows after a long time: growing memory, lost frames, drifting times, leaked objects.
//! `make soak` runs the long versions. Needs ONNX Runtime: `ORT_DYLIB_PATH`, or beside the test's executable.
#![cfg(target_os = "linux")]

use std::process::{Command, Output};

mod leaks;
mod seeks;
mod times;

/// Runs one of the ignored tests in a process of its own.
fn child(test: &str, variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--ignored", "--nocapture"]).envs(variables.iter().copied());
    command.output().unwrap()
}
