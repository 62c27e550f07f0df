// SPDX-License-Identifier: MPL-2.0

//! `examples/embed`: raw frames in and out of a program with the element inside.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use super::rig::*;
use starsr_testkit::fixtures;

/// Rows of 18 bytes, which are padded in GStreamer's memory.
const SIZE: (usize, usize) = (6, 8);

/// The level of grey of frame `k`.
fn level(k: usize) -> u8 {
    (20 + 17 * k % 220) as u8
}

fn frames(count: usize) -> Vec<u8> {
    (0..count).flat_map(|k| vec![level(k); SIZE.0 * SIZE.1 * 3]).collect()
}

/// Runs the program with nothing of starsr in its environment.
fn embed(arguments: &[&str], input: Vec<u8>) -> Output {
    let mut child = Command::new(built("examples/embed"))
        .args(arguments)
        .env_remove("GST_PLUGIN_PATH")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A program that fails does not read all of it.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

#[test]
fn frames_come_back_upscaled_and_in_order() {
    const COUNT: usize = 23;
    let tiny = properties(&fixtures::tiny());
    let [model, library, provider, threads] = tiny.each_ref().map(String::as_str);
    let arguments = ["6x8", "30000/1001", model, library, provider, threads, "strength=0"];
    let output = embed(&arguments, frames(COUNT));
    assert!(output.status.success(), "{}", stderr(&output));
    let size = SIZE.0 * 4 * SIZE.1 * 4 * 3;
    assert_eq!(output.stdout.len(), COUNT * size);
    for (k, frame) in output.stdout.chunks(size).enumerate() {
        assert!(frame.iter().all(|value| value.abs_diff(level(k)) <= 1), "frame {k}");
    }
    let said = stderr(&output);
    for part in [
        "restored from 0:00:00.000000000: 1 evaluations",
        "frames-out=(guint64)23",
        "model=(string)tiny",
    ] {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
}

#[test]
fn failures_are_reported_in_a_line() {
    let tiny = properties(&fixtures::tiny());
    let library = tiny[1].as_str();
    let mut part = frames(1);
    part.extend(&frames(1)[..50]);
    for (arguments, input, status, words) in [
        (vec![], frames(1), 2, "usage: embed"),
        (vec!["6x8", "0"], frames(1), 1, "usage: embed"),
        (
            vec!["6x8", "25", library, tiny[0].as_str()],
            part,
            1,
            "the last frame has 50 of 144 bytes",
        ),
        (vec!["6x8", "25", library, "model-path=/no/bundle"], frames(1), 1, "/no/bundle"),
        (vec!["6x8", "25", "colour=red"], frames(1), 1, "no property \"colour\""),
    ] {
        let output = embed(&arguments, input);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains(words), "{words:?} is not in: {said}");
    }
}
