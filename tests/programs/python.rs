// SPDX-License-Identifier: MPL-2.0

//! `examples/python`: from file to file in Python.

use std::path::Path;
use std::process::{Command, Output};

use super::rig::*;
use starsr_testkit::fixtures;

/// A Python that has GStreamer's bindings. That of the distribution has them; another may come
/// first on the path.
fn python() -> Option<&'static str> {
    let has_bindings = |python: &&str| {
        let check = "import gi; gi.require_version('Gst', '1.0'); from gi.repository import Gst";
        Command::new(python)
            .args(["-c", check])
            .output()
            .is_ok_and(|output| output.status.success())
    };
    let found = ["python3", "/usr/bin/python3"].into_iter().find(has_bindings);
    if found.is_none() {
        fixtures::skip("python3-gi and gir1.2-gstreamer-1.0 are missing");
    }
    found
}

fn upscale(python: &str, bundle: &Path, input: &Path, output: &Path, options: &[&str]) -> Output {
    let mut command = with_plugin(python);
    command.arg(source("examples/python/upscale.py")).arg(input).arg(output).args(options);
    for property in properties(bundle) {
        command.args(["--set", &property]);
    }
    command.output().unwrap()
}

/// Mean difference of two pictures in levels.
fn difference(one: &[u8], other: &[u8]) -> f64 {
    one.iter().zip(other).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / one.len() as f64
}

#[test]
fn a_file_is_upscaled_under_prompts_that_change() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    make_clip(&path("in.mp4"), 40, false);
    let fixed = ["--strength", "1", "--prompt", "a panda", "--set", "scene-detection=false"];
    let change = format!("0.8:{}", "lake ".repeat(20));
    let changing = [&fixed[..], &["--prompt-at", &change]].concat();
    let result = upscale(python, &fixtures::text(), &path("in.mp4"), &path("fixed.mp4"), &fixed);
    assert!(result.status.success(), "{}", stderr(&result));
    let result =
        upscale(python, &fixtures::text(), &path("in.mp4"), &path("changing.mp4"), &changing);
    assert!(result.status.success(), "{}", stderr(&result));
    let said = stdout(&result);
    for part in [
        "0.0 of 1.6 s: 2 evaluations",
        "the prompt is now: lake lake",
        "frames-in: 40",
        "frames-out: 40",
        "model: text",
    ] {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
    let ((one, size), (other, _)) = (decoded(&path("fixed.mp4")), decoded(&path("changing.mp4")));
    assert_eq!((one.len(), other.len(), size), (40, 40, (128, 96)));
    for k in 0..20 {
        assert!(difference(&one[k], &other[k]) < 0.2, "frame {k}, before the change");
    }
    for k in 28..40 {
        assert!(difference(&one[k], &other[k]) > 1.0, "frame {k}, after the change");
    }
}

#[test]
fn failures_are_reported_in_a_line() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    make_clip(&path("in.mp4"), 5, false);
    for (input, options, words) in [
        ("in.mp4", ["--prompt", "a panda"], "the bundle tiny has no text condition"),
        ("in.mp4", ["--set", "colour=red"], "starsr has no property colour"),
        ("none.mp4", ["--strength", "1"], "source: "),
    ] {
        let result = upscale(python, &fixtures::tiny(), &path(input), &path("out.mp4"), &options);
        let said = stderr(&result);
        assert_eq!(result.status.code(), Some(1), "{said}");
        assert!(said.starts_with("upscale.py: ") && said.lines().count() == 1, "{said}");
        assert!(said.contains(words), "{words:?} is not in: {said}");
    }
}
