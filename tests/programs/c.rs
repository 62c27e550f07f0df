// SPDX-License-Identifier: MPL-2.0

//! `examples/c`: a live pipeline in C.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

use super::rig::*;
use starsr_testkit::fixtures;

const SINK: &str = "fakesink sync=true";

/// The program, compiled as the Makefile does.
static LIVE: LazyLock<PathBuf> = LazyLock::new(|| {
    let flags =
        Command::new("pkg-config").args(["--cflags", "--libs", "gstreamer-1.0"]).output().unwrap();
    assert!(flags.status.success(), "{}", stderr(&flags));
    let program = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("live");
    let done = Command::new("cc")
        .args(["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-o"])
        .arg(&program)
        .arg(source("examples/c/live.c"))
        .args(stdout(&flags).split_whitespace())
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", stderr(&done));
    program
});

fn live(properties: &[&str], rest: &[&str]) -> Command {
    let mut command = with_plugin(&*LIVE);
    for property in properties {
        command.args(["-p", property]);
    }
    command.args(rest);
    command
}

fn tiny(properties: &[&str], rest: &[&str]) -> Command {
    let bundle = super::rig::properties(&fixtures::tiny());
    let all: Vec<_> = bundle.iter().map(String::as_str).chain(properties.iter().copied()).collect();
    live(&all, rest)
}

fn test_video(frames: i32) -> String {
    format!(
        "videotestsrc is-live=true num-buffers={frames} ! video/x-raw,width=32,height=24,framerate=25/1"
    )
}

#[track_caller]
fn assert_said(output: &Output, parts: &[&str]) {
    assert!(output.status.success(), "{}", stderr(output));
    for part in parts {
        assert!(stdout(output).contains(part), "{part:?} is not in: {}", stdout(output));
    }
}

#[test]
fn a_live_source_is_upscaled() {
    let output = tiny(&["scene-detection=false"], &[&test_video(25), SINK]).output().unwrap();
    assert_said(
        &output,
        &[
            "restored from",
            "frames-in=(guint64)25",
            "frames-out=(guint64)25",
            "latency-frames=(guint64)3",
        ],
    );
}

#[test]
fn windows_without_time_are_left_out() {
    // A second of work for 120 ms of video.
    let slow = ["processing-latency=0", "sampler-mode=normal", "steps=300"];
    let output = tiny(&slow, &[&test_video(25), SINK]).output().unwrap();
    assert_said(&output, &["left out from", "reason overload", "frames-out=(guint64)25"]);
}

#[test]
fn an_interrupt_lets_all_frames_out() {
    let mut child = tiny(&[], &[&test_video(-1), SINK])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(
        lines.by_ref().any(|line| line.starts_with("restored") || line.starts_with("left out"))
    );
    assert!(
        Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success()
    );
    let rest: Vec<_> = lines.collect();
    assert!(child.wait().unwrap().success());
    let stats = rest.last().unwrap();
    let count = |field: &str| {
        let (_, after) = stats.split_once(&format!("{field}=(guint64)")).unwrap();
        after.split(',').next().unwrap().parse::<u64>().unwrap()
    };
    // On a busy machine the source leaves frames out, and then a window is short.
    assert!(count("frames-in") > 0);
    assert_eq!(count("frames-in"), count("frames-out"));
}

#[test]
fn failures_are_reported_in_a_line() {
    let source = test_video(5);
    for (properties, rest, status, words) in [
        (["model-path=/no/bundle"], [source.as_str(), SINK], 1, "/no/bundle"),
        (["colour=red"], [source.as_str(), SINK], 2, "colour=red is no property"),
        (["strength=1"], ["nosuchsrc", SINK], 2, "nosuchsrc"),
        (["strength=1"], ["audiotestsrc num-buffers=1", SINK], 1, "live: "),
    ] {
        let output = live(&properties, &rest).output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(status), "{rest:?}: {said}");
        assert!(said.contains(words), "{words:?} is not in: {said}");
        assert_eq!(said.lines().filter(|line| line.starts_with("live: ")).count(), 1, "{said}");
    }
}
