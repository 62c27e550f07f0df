// SPDX-License-Identifier: MPL-2.0

//! Inputs that are no ordinary files, or do not behave like them.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;

use super::*;

fn pipe(folder: &TempDir) -> PathBuf {
    let path = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    path
}

#[test]
fn a_pipe_is_read_to_its_end() {
    let folder = TempDir::new().unwrap();
    let (input, output) = (folder.path().join("in.mkv"), folder.path().join("out.mkv"));
    clip(&input, 6);
    let pipe = pipe(&folder);
    let content = fs::read(&input).unwrap();
    let writer = thread::spawn({
        let pipe = pipe.clone();
        move || fs::write(pipe, content).unwrap()
    });
    assert_done(&convert(&[], &pipe, &output));
    writer.join().unwrap();
    assert_upscaled(&input, &output);
}

#[test]
fn an_input_that_cannot_be_opened_is_named() {
    let folder = TempDir::new().unwrap();
    let (input, output) = (folder.path().join("in.mkv"), folder.path().join("out.mkv"));
    // As root opens all files, a socket stands for one that may not be read.
    let _socket = UnixListener::bind(&input).unwrap();
    assert_refused(&convert(&[], &input, &output), &["in.mkv: Could not open file"]);
    assert!(!output.exists());
}

#[test]
fn a_pipe_that_stops_without_an_end_makes_a_complete_file() {
    let folder = TempDir::new().unwrap();
    let (input, output) = (folder.path().join("in.mkv"), folder.path().join("out.mkv"));
    clip(&input, 6);
    let pipe = pipe(&folder);
    let content = fs::read(&input).unwrap();
    let (done, finished) = mpsc::channel();
    let writer = thread::spawn({
        let pipe = pipe.clone();
        move || {
            let mut pipe = OpenOptions::new().write(true).open(pipe).unwrap();
            pipe.write_all(&content).unwrap();
            // The pipe stays open until the program has ended.
            let () = finished.recv().unwrap();
        }
    });
    let result = convert(&["--stall-timeout", "2"], &pipe, &output);
    done.send(()).unwrap();
    writer.join().unwrap();
    assert_done(&result);
    let error = String::from_utf8_lossy(&result.stderr);
    assert!(error.contains("nothing has come from it for 2 s, and it did not end"), "{error}");
    assert_upscaled(&input, &output);
}

#[test]
fn a_pipe_that_nobody_writes_to_is_given_up() {
    let folder = TempDir::new().unwrap();
    let (pipe, output) = (pipe(&folder), folder.path().join("out.mkv"));
    let result = convert(&["--stall-timeout", "1"], &pipe, &output);
    assert_refused(&result, &["pipe: nothing has come from it for 1 s", "--stall-timeout"]);
    let child = outputs::begin(&folder, &pipe, &output);
    interrupt(&child);
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
    assert_eq!(names(&folder), ["pipe"]);
}

#[test]
fn rotated_video_is_upright_every_time() {
    let folder = TempDir::new().unwrap();
    let (input, output) = (folder.path().join("in.mp4"), folder.path().join("out.mkv"));
    clip(&input, 3);
    rotate(&input);
    let (times, _) = frames(&input);
    for _ in 0..4 {
        assert_done(&convert(&["--force", "--strength", "0"], &input, &output));
        assert_eq!(frames(&output), (times.clone(), (SIZE.1 * 4, SIZE.0 * 4)));
    }
}

#[test]
fn an_animated_gif_is_a_video() {
    let folder = TempDir::new().unwrap();
    let (input, output) = (folder.path().join("in.gif"), folder.path().join("out.mkv"));
    carrying::ffmpeg(&folder, "-f lavfi -i testsrc2=size=48x32:rate=10 -t 0.5 in.gif");
    assert_done(&convert(&["--strength", "0"], &input, &output));
    let times = [0, 100, 200, 300, 400].map(gst::ClockTime::from_mseconds);
    assert_eq!(frames(&output), (times.to_vec(), (SIZE.0 * 4, SIZE.1 * 4)));
    // Made of RGB, its chroma lies where players expect it.
    assert_eq!(carrying::probe(&output)["streams"][0]["chroma_location"], "left");
}
