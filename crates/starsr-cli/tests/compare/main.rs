// SPDX-License-Identifier: MPL-2.0

//! `starsr compare`, run as users run it, and its page in a browser.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use gst::prelude::*;
use serde_json::Value;
use tempfile::TempDir;

mod browser;
#[path = "../upscale/media.rs"]
#[allow(dead_code, reason = "the other test needs more of it")]
mod media;
mod page;

type Color = [u8; 3];
const RED: Color = [255, 0, 0];
const GREEN: Color = [0, 255, 0];
const BLUE: Color = [0, 0, 255];
const GREY: Color = [120, 120, 120];

/// Runs `starsr compare` in `folder`.
fn compare(folder: &TempDir, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_starsr"));
    command.arg("compare").args(arguments).current_dir(folder.path()).output().unwrap()
}

/// Runs `starsr compare`; gives what it prints and the data of the page `compare.html`.
#[track_caller]
fn compared(folder: &TempDir, arguments: &[&str]) -> (String, Value) {
    let result = compare(folder, arguments);
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
    let page = fs::read_to_string(folder.path().join("compare.html")).unwrap();
    let data = page.split_once("id=\"data\">").unwrap().1.split_once("</script>").unwrap().0;
    (String::from_utf8(result.stdout).unwrap(), serde_json::from_str(data).unwrap())
}

/// The run failed with one line on standard error, which holds all of `words`.
#[track_caller]
fn assert_refused(result: &Output, words: &[&str]) {
    let error = String::from_utf8_lossy(&result.stderr);
    assert_eq!(result.status.code(), Some(1), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    for word in words {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
}

/// Pixels of one colour.
fn plain((width, height): (usize, usize), color: Color) -> Vec<u8> {
    color.repeat(width * height)
}

/// Writes uncompressed `frames` at the given milliseconds.
fn film(path: &Path, (width, height): (usize, usize), frames: &[(u64, Vec<u8>)]) {
    gst::init().unwrap();
    let description = format!(
        "appsrc name=source format=time caps=video/x-raw,format=RGB,width={width},height={height},framerate=0/1 \
         ! matroskamux ! filesink name=file"
    );
    let pipeline = gst::parse::launch(&description).unwrap().downcast::<gst::Pipeline>().unwrap();
    pipeline.by_name("file").unwrap().set_property("location", path);
    let source = pipeline.by_name("source").unwrap().downcast::<gst_app::AppSrc>().unwrap();
    for (time, pixels) in frames {
        let mut buffer = gst::Buffer::from_slice(pixels.clone());
        buffer.get_mut().unwrap().set_pts(gst::ClockTime::from_mseconds(*time));
        buffer.get_mut().unwrap().set_duration(gst::ClockTime::from_mseconds(1));
        source.push_buffer(buffer).unwrap();
    }
    source.end_of_stream().unwrap();
    media::play(&pipeline);
}

/// Writes frames of one colour each, every 40 ms from `start` on.
fn colors(
    folder: &TempDir,
    name: &str,
    size: (usize, usize),
    start: u64,
    colors: &[Color],
) -> PathBuf {
    let frames: Vec<_> =
        (0..).zip(colors).map(|(k, c)| (start + 40 * k, plain(size, *c))).collect();
    let path = folder.path().join(name);
    film(&path, size, &frames);
    path
}

/// Runs FFmpeg in `folder` to make a file there.
fn ffmpeg(folder: &TempDir, arguments: &str) {
    let mut command = Command::new("ffmpeg");
    command.args(["-nostdin", "-v", "error", "-y"]).args(arguments.split_whitespace());
    assert!(command.current_dir(folder.path()).status().expect("FFmpeg is installed").success());
}

fn times(data: &Value) -> Vec<(f64, Option<f64>)> {
    let frames = data["frames"].as_array().unwrap();
    frames.iter().map(|frame| (frame["time"].as_f64().unwrap(), frame["bTime"].as_f64())).collect()
}

#[test]
fn a_terminal_shows_how_much_is_read() {
    let folder = TempDir::new().unwrap();
    colors(&folder, "a.mkv", (16, 16), 0, &[RED, BLUE]);
    let line = format!("'{}' compare a.mkv a.mkv", env!("CARGO_BIN_EXE_starsr"));
    let mut terminal = Command::new("script");
    terminal.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm").stdin(Stdio::null());
    let shown = terminal.current_dir(folder.path()).output().unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("a.mkv: 1 frame read") && shown.contains("compare.html: "), "{shown}");
    let piped = compare(&folder, &["--force", "a.mkv", "a.mkv"]);
    assert!(piped.status.success() && piped.stderr.is_empty(), "{piped:?}");
}

#[test]
fn what_cannot_be_compared_is_named() {
    let folder = TempDir::new().unwrap();
    colors(&folder, "a.mkv", (16, 16), 0, &[RED, BLUE]);
    fs::write(folder.path().join("text.mp4"), "This is no video.").unwrap();
    fs::write(folder.path().join("empty.mp4"), "").unwrap();
    let sound = folder.path().join("sound.mka");
    media::write(&sound, "audiotestsrc num-buffers=5 ! flacenc ! matroskamux ! filesink name=file");
    let whole = fs::read(folder.path().join("a.mkv")).unwrap();
    fs::write(folder.path().join("cut.mkv"), &whole[..200]).unwrap();
    for (arguments, words) in [
        (["missing.mp4", "a.mkv"], &["missing.mp4", "No such file", "name a video"][..]),
        (["a.mkv", "."], &[".: is a folder", "name a video"]),
        (["a.mkv", "empty.mp4"], &["empty.mp4: is empty"]),
        (["text.mp4", "a.mkv"], &["text.mp4: not a media file"]),
        (["a.mkv", "sound.mka"], &["sound.mka: has no video"]),
        (["cut.mkv", "a.mkv"], &["cut.mkv: "]),
    ] {
        assert_refused(&compare(&folder, &arguments), words);
    }
    let late = compare(&folder, &["a.mkv", "a.mkv", "--start", "1:00"]);
    assert_refused(&late, &["a.mkv: is 0.0", "choose an earlier --start"]);
    let nothing = compare(&folder, &["a.mkv", "a.mkv", "--duration", "0"]);
    assert_refused(&nothing, &["a.mkv: has no frame in the part from 0 s on", "--duration"]);
    assert_refused(
        &compare(&folder, &["a.mkv", "a.mkv", "-o", "no/x.html"]),
        &["no/x.html", "cannot be created"],
    );
    let mut command = Command::new(env!("CARGO_BIN_EXE_starsr"));
    let open = command.args(["compare", "--open", "a", "b"]).env("PATH", "").output().unwrap();
    assert_refused(&open, &["xdg-open is not installed", "leave out --open"]);
    assert!(
        fs::read_dir(folder.path())
            .unwrap()
            .all(|file| { !file.unwrap().file_name().to_string_lossy().ends_with("html") })
    );
}

#[test]
fn nothing_is_overwritten_by_accident() {
    let folder = TempDir::new().unwrap();
    let path = colors(&folder, "a.mkv", (16, 16), 0, &[RED]);
    colors(&folder, "b.mkv", (16, 16), 0, &[RED]);
    fs::write(folder.path().join("compare.html"), "kept").unwrap();
    assert_refused(
        &compare(&folder, &["a.mkv", "b.mkv"]),
        &["compare.html: exists already", "--force"],
    );
    assert_eq!(fs::read(folder.path().join("compare.html")).unwrap(), b"kept");
    let before = fs::read(&path).unwrap();
    let same = compare(&folder, &["b.mkv", "a.mkv", "--force", "--output", "a.mkv"]);
    assert_refused(&same, &["a.mkv: output and input are the same file"]);
    assert_eq!(fs::read(&path).unwrap(), before);
    let (said, data) = compared(&folder, &["--force", "a.mkv", "b.mkv"]);
    assert!(said.contains("compare.html: 1 of 1 frames, 0.0 MB, "), "{said}");
    assert_eq!(data["frames"][0]["psnr"], 100.0);
    assert_eq!(data["frames"][0]["difference"], 0.0);
    let mut names: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["a.mkv", "b.mkv", "compare.html"]);
}

#[test]
fn frames_are_matched_by_their_times() {
    let folder = TempDir::new().unwrap();
    let size = (16, 16);
    colors(&folder, "a.mkv", size, 0, &[RED; 6]);
    // It begins later, lacks the frames at 80 and 200 ms, and has one in between that A lacks.
    let frames = [500, 540, 558, 622, 660].map(|time| (time, plain(size, RED)));
    film(&folder.path().join("b.mkv"), size, &frames);
    let (said, data) = compared(&folder, &["a.mkv", "b.mkv"]);
    let expected = [
        (0.0, Some(0.0)),
        (0.04, Some(0.04)),
        (0.08, None),
        (0.12, Some(0.122)),
        (0.16, Some(0.16)),
    ];
    assert_eq!(times(&data), expected);
    assert!(said.contains("no frame at the time of 1 of the 5 frames of A"), "{said}");
    assert!(said.contains("B has 1 more frame"), "{said}");
    assert!(said.contains("A goes on for 0.04 s after the end of B"), "{said}");
    assert!(said.contains("5 of 5 frames"), "{said}");
    assert_eq!(data["about"]["notes"].as_array().unwrap().len(), 3);
}

#[test]
fn few_frames_are_spread_over_the_part() {
    let folder = TempDir::new().unwrap();
    colors(&folder, "a.mkv", (16, 16), 0, &[RED; 41]);
    colors(&folder, "b.mkv", (32, 32), 0, &[BLUE; 41]);
    let (said, data) = compared(&folder, &["a.mkv", "b.mkv", "--frames", "5"]);
    assert!(said.contains("5 of 41 frames"), "{said}");
    assert_eq!(times(&data), [0.0, 0.4, 0.8, 1.2, 1.6].map(|time| (time, Some(time))));
    let part = ["a.mkv", "b.mkv", "--force", "--start", "0:00.4", "--duration", "0.2"];
    let (said, data) = compared(&folder, &part);
    assert!(said.contains("5 of 5 frames"), "{said}");
    assert_eq!(times(&data).len(), 5);
    // A part of A is all of B.
    colors(&folder, "part.mkv", (16, 16), 0, &[RED; 3]);
    let (said, data) =
        compared(&folder, &["a.mkv", "part.mkv", "--force", "--start", "0.4", "--start-b", "0"]);
    assert!(said.contains("A goes on for 1.12 s after the end of B"), "{said}");
    assert_eq!(times(&data), [0.0, 0.04, 0.08].map(|time| (time, Some(time))));
}

#[test]
fn pictures_and_files_that_ffmpeg_decodes_are_compared() {
    let folder = TempDir::new().unwrap();
    ffmpeg(&folder, "-f lavfi -i color=red:size=24x16 -frames:v 1 a.png");
    ffmpeg(&folder, "-f lavfi -i color=red:size=96x64 -frames:v 1 b.bmp");
    let (_, data) = compared(&folder, &["a.png", "b.bmp"]);
    assert_eq!(times(&data), [(0.0, Some(0.0))]);
    assert_eq!(data["about"]["b"]["width"], 96);
    assert!(
        data["frames"][0]["difference"].as_f64().unwrap() < 2.0,
        "{}",
        data["frames"][0]["difference"]
    );
    ffmpeg(&folder, "-f lavfi -i testsrc2=size=48x32:rate=10 -t 0.5 a.gif");
    ffmpeg(&folder, "-i a.gif -c:v ffv1 b.avi");
    let (_, data) = compared(&folder, &["--force", "a.gif", "b.avi"]);
    assert_eq!(times(&data), [0.0, 0.1, 0.2, 0.3, 0.4].map(|time| (time, Some(time))));
    assert!(data["frames"][4]["psnr"].as_f64().unwrap() > 40.0, "{}", data["frames"][4]["psnr"]);
}

#[test]
fn figures_are_those_of_the_pixels() {
    let folder = TempDir::new().unwrap();
    colors(&folder, "a.mkv", (16, 16), 0, &[RED, GREY]);
    colors(&folder, "b.mkv", (64, 32), 0, &[BLUE, [124, 120, 120]]);
    let (_, data) = compared(&folder, &["a.mkv", "b.mkv"]);
    let figure = |frame: usize, name: &str| data["frames"][frame][name].as_f64().unwrap();
    // Luma 81.5 and 41.0; 4 levels of red are 1.027 of luma.
    let psnr = |error: f64| 20.0 * (255.0 / error).log10();
    assert!((figure(0, "psnr") - psnr(65.481 - 24.966)).abs() < 0.01);
    assert!((figure(1, "psnr") - psnr(4.0 * 65.481 / 255.0)).abs() < 0.01);
    assert_eq!((figure(0, "difference"), figure(1, "difference")), (170.0, 1.3333));
}

#[test]
fn colors_of_video_are_those_of_pictures() {
    let folder = TempDir::new().unwrap();
    for color in ["white", "black", "0x808080"] {
        ffmpeg(&folder, &format!("-f lavfi -i color={color}:size=48x32 -frames:v 1 a.png"));
        for (matrix, range) in [("bt709", "tv"), ("smpte170m", "pc")] {
            ffmpeg(
                &folder,
                &format!(
                    "-i a.png -vf scale=out_color_matrix={matrix}:out_range={range},format=yuv420p -colorspace {matrix} -color_range {range} -c:v libx264 -qp 1 b.mp4"
                ),
            );
            let (_, data) = compared(&folder, &["--force", "a.png", "b.mp4"]);
            let difference = data["frames"][0]["difference"].as_f64().unwrap();
            assert!(difference < 1.0, "{color}, {matrix}, {range}: {difference}");
        }
    }
}

#[test]
fn rotation_and_the_shape_of_pixels_are_respected() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.mp4");
    media::clip(&path, 3);
    ffmpeg(&folder, "-i a.mp4 -vf setsar=2/1 -c:v libx264 b.mp4");
    media::rotate(&path);
    let (_, data) = compared(&folder, &["a.mp4", "b.mp4"]);
    let (a, b) = (&data["about"]["a"], &data["about"]["b"]);
    assert_eq!((&a["width"], &a["height"]), (&32.into(), &48.into()));
    assert_eq!((&b["width"], &b["height"], &b["shape"]), (&48.into(), &32.into(), &2.0.into()));
}

#[test]
fn many_large_frames_become_jpeg_unless_asked() {
    let folder = TempDir::new().unwrap();
    colors(&folder, "a.mkv", (2560, 1440), 0, &[RED; 6]);
    let (said, data) = compared(&folder, &["a.mkv", "a.mkv"]);
    assert!(said.contains("JPEG"), "{said}");
    assert!(data["frames"][0]["a"].as_str().unwrap().starts_with("data:image/jpeg;base64,"));
    let (said, data) = compared(&folder, &["a.mkv", "a.mkv", "--lossless", "--force"]);
    assert!(!said.contains("JPEG"), "{said}");
    assert_eq!(data["about"]["isLossless"], true);
}
