// SPDX-License-Identifier: MPL-2.0

//! `starsr bench`, run as users run it.

use std::process::{Command, Output};

use serde_json::Value;
use starsr_testkit::fixtures;

fn bench(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_starsr"));
    command.arg("bench").args(arguments).output().unwrap()
}

/// Measures the small bundle of tests, whose windows of 4 frames share 1.
fn measured(arguments: &[&str]) -> Output {
    let bundle = fixtures::tiny();
    let result = bench(&[&["--model", bundle.to_str().unwrap()], arguments].concat());
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
    result
}

#[test]
fn json_holds_a_line_for_each_size_whose_parts_fit_together() {
    let result = measured(&["--json", "--size", "64x48", "--size", "50x70", "--windows", "2"]);
    let text = String::from_utf8(result.stdout).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2, "{text}");
    for (line, size) in lines.iter().zip([[64, 48], [50, 70]]) {
        assert_eq!(line["input"], serde_json::json!(size), "{line}");
        assert_eq!(line["output"], serde_json::json!([4 * size[0], 4 * size[1]]), "{line}");
        let number = |key: &str| line[key].as_f64().unwrap();
        assert_eq!(number("frames_per_window"), 3.0, "{line}");
        let seconds = line["seconds"].as_object().unwrap();
        assert_eq!(seconds.len(), 7, "{line}");
        for stage in ["encode", "sample", "decode"] {
            assert!(seconds[stage].as_f64().unwrap() > 0.0, "{line}");
        }
        let window = number("seconds_per_window");
        let rate = number("frames_per_second");
        assert!((rate * window - 3.0).abs() < 1e-6, "{line}");
        assert!(number("seconds_in_onnxruntime") > 0.0, "{line}");
        assert!(number("outside_ms_per_megapixel") >= 0.0, "{line}");
        assert!(number("memory_peak") > 1e7 && number("memory_estimate") > 1e5, "{line}");
        // A bundle without `canvas.operations`.
        for unknown in ["device_memory_used", "teraflops"] {
            assert_eq!(line[unknown], Value::Null, "{line}");
        }
    }
}

#[test]
fn words_name_the_model_and_each_stage() {
    // The built-in bundle.
    let result = bench(&["--size", "32x32", "--windows", "1"]);
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
    let text = String::from_utf8(result.stdout).unwrap();
    let words = [
        "CPU, ONNX Runtime",
        "32x32 to 128x128",
        "frames/s",
        "prepare",
        "decode",
        "peak",
        "TFLOP/s in predictions",
    ];
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

#[test]
fn what_cannot_be_measured_is_said() {
    for (arguments, status, words) in [
        (&["--size", "0x9"][..], 2, "expected WIDTHxHEIGHT"),
        (&["--set", "strength=2"], 1, "strength"),
        (&["--model", "/nonexistent"], 1, "/nonexistent"),
        (&["--model", "nano", "--set", "window-mode=wavefront"], 1, "window-mode=blend"),
    ] {
        let result = bench(arguments);
        let error = String::from_utf8_lossy(&result.stderr);
        assert_eq!(result.status.code(), Some(status), "{arguments:?}: {error}");
        assert!(error.contains(words), "{words:?} is not in: {error}");
    }
}
