// SPDX-License-Identifier: MPL-2.0

//! What goes wrong while the program works, at five moments of its work each.

use super::carrying::ffmpeg;
use super::*;

/// A clip with sound and a title, which FFmpeg carries into the output at the end.
fn film(folder: &TempDir) {
    let streams = "-f lavfi -i testsrc2=size=48x32:rate=25 -f lavfi -i sine=sample_rate=48000";
    let encoding = "-t 1.2 -c:v libx264 -preset ultrafast -c:a ac3 -metadata title=film";
    ffmpeg(folder, &format!("{streams} {encoding} in.mkv"));
}

fn begin(folder: &TempDir) -> Child {
    let mut command = upscale();
    command.args(["--preset", "ultrafast", "in.mkv", "out.mkv"]).current_dir(folder.path());
    command.stderr(Stdio::piped()).spawn().unwrap()
}

/// Five moments, spread over the time that a whole run takes here and now.
fn moments(folder: &TempDir) -> Vec<Duration> {
    let started = std::time::Instant::now();
    assert_done(&begin(folder).wait_with_output().unwrap());
    fs::remove_file(folder.path().join("out.mkv")).unwrap();
    let whole = started.elapsed();
    (1..=5).map(|part| whole * part / 6).collect()
}

/// The output, where there is one, is whole.
fn assert_whole(folder: &TempDir, name: &str) {
    let path = folder.path().join(name);
    if path.exists() {
        assert_upscaled(&folder.path().join("in.mkv"), &path);
    }
}

#[test]
fn a_kill_leaves_nothing_after_the_next_run() {
    let folder = TempDir::new().unwrap();
    film(&folder);
    for moment in moments(&folder) {
        let mut child = begin(&folder);
        std::thread::sleep(moment);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_whole(&folder, "out.mkv");
        let _ = fs::remove_file(folder.path().join("out.mkv"));
    }
    assert_done(&begin(&folder).wait_with_output().unwrap());
    assert_whole(&folder, "out.mkv");
    assert_eq!(names(&folder), ["in.mkv", "out.mkv"]);
}

#[test]
fn an_output_that_appears_is_not_touched() {
    let folder = TempDir::new().unwrap();
    film(&folder);
    for moment in moments(&folder) {
        let child = begin(&folder);
        std::thread::sleep(moment);
        // The run may have ended already, or not have begun.
        let appeared = fs::File::create_new(folder.path().join("out.mkv")).is_ok();
        let result = child.wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&result.stderr);
        if appeared {
            assert_eq!(fs::read(folder.path().join("out.mkv")).unwrap(), b"", "{error}");
            let refused = error.contains("exists already") && result.status.code() == Some(1);
            assert!(refused || error.contains("out-2.mkv"), "{error}");
            assert_eq!(folder.path().join("out-2.mkv").exists(), !refused, "{error}");
            assert_whole(&folder, "out-2.mkv");
            let _ = fs::remove_file(folder.path().join("out-2.mkv"));
        }
        fs::remove_file(folder.path().join("out.mkv")).unwrap();
        assert_eq!(names(&folder), ["in.mkv"], "{error}");
    }
}

#[test]
fn an_input_that_vanishes_is_upscaled_or_named() {
    let folder = TempDir::new().unwrap();
    film(&folder);
    let (input, hidden) = (folder.path().join("in.mkv"), folder.path().join("kept"));
    for moment in moments(&folder) {
        let child = begin(&folder);
        std::thread::sleep(moment);
        fs::rename(&input, &hidden).unwrap();
        let result = child.wait_with_output().unwrap();
        fs::rename(&hidden, &input).unwrap();
        let error = String::from_utf8_lossy(&result.stderr);
        if result.status.success() {
            assert!(folder.path().join("out.mkv").exists());
        } else {
            let known = ["in.mkv: No such file", "out.mkv holds the upscaled video alone"];
            assert!(known.iter().any(|words| error.contains(words)), "{error}");
        }
        // What is finished is kept in any case.
        assert_whole(&folder, "out.mkv");
        let _ = fs::remove_file(folder.path().join("out.mkv"));
        assert_eq!(names(&folder), ["in.mkv"], "{error}");
    }
}

#[test]
fn a_disk_that_fills_is_named() {
    let folder = TempDir::new().unwrap();
    film(&folder);
    assert_done(&begin(&folder).wait_with_output().unwrap());
    let size = fs::metadata(folder.path().join("out.mkv")).unwrap().len();
    fs::remove_file(folder.path().join("out.mkv")).unwrap();
    for part in 1..=5 {
        // A limit on the size of files stands for the disk; sh counts in 512 bytes.
        let limit = (size * part / 6 / 512).to_string();
        let result = Command::new("sh")
            .args(["-c", "trap '' XFSZ; ulimit -f $0; exec \"$@\"", &limit])
            .arg(upscale().get_program())
            .args(["upscale", "--quiet", "--preset", "ultrafast", "in.mkv", "out.mkv"])
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert_refused(&result, &["out.mkv", "cannot be written", "File too large"]);
        // The video alone may have fitted.
        assert_whole(&folder, "out.mkv");
        let kept = fs::remove_file(folder.path().join("out.mkv")).is_ok();
        let said =
            String::from_utf8_lossy(&result.stderr).contains("holds the upscaled video alone");
        assert_eq!((names(&folder), kept), (vec!["in.mkv".to_owned()], said));
    }
}
