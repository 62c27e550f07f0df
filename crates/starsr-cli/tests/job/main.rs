// SPDX-License-Identifier: MPL-2.0

//! Jobs: `starsr plan`, `work`, `join` and `status`, and `starsr upscale` with a job, run as users run
//! them. Needs ONNX Runtime beside the program, and FFmpeg.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use starsr_testkit::fixtures::tiny;
use tempfile::TempDir;

mod claims;
mod faults;
mod films;
mod kills;
mod settings;

/// A folder with an input, and what is made of it.
struct Scene {
    folder: TempDir,
    /// Options that change frames.
    options: Vec<String>,
    input: PathBuf,
}

impl Scene {
    /// With the `film` as the input.
    fn new(film: Film, options: &[&str]) -> Self {
        let folder = TempDir::new().unwrap();
        let input = folder.path().join("in.mkv");
        film.write(&input);
        let model = format!("--model={}", tiny().display());
        let options = options.iter().map(ToString::to_string).chain([model]).collect();
        Self { folder, options, input }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `starsr upscale` of the input to `output`, quiet.
    fn upscale(&self, output: &str) -> Command {
        let mut command = starsr("upscale");
        command.arg("--quiet").args(&self.options).arg(&self.input).arg(self.path(output));
        command
    }

    /// `starsr plan` into the folder `job`.
    fn plan(&self, job: &str, options: &[&str]) -> Command {
        let mut command = starsr("plan");
        command.arg("--quiet").args(&self.options).args(options);
        command.arg("--job").arg(self.path(job)).arg(&self.input);
        command
    }

    /// Another command for the folder `job`.
    fn on(&self, job: &str, command: &str) -> Command {
        let mut command = starsr(command);
        command.arg("--job").arg(self.path(job));
        command
    }

    fn status(&self, job: &str) -> Value {
        let status = done(self.on(job, "status").arg("--json"));
        serde_json::from_slice(&status.stdout).unwrap()
    }

    /// The plan of `job`.
    fn planned(&self, job: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(job).join("plan.json")).unwrap()).unwrap()
    }

    fn bytes(&self, output: &str) -> Vec<u8> {
        fs::read(self.path(output)).unwrap()
    }

    /// Names in the folder, hidden ones included.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// A film of 64x48 pixels with three scenes.
#[derive(Clone, Copy)]
struct Film {
    /// Frames of each scene.
    scenes: [u32; 3],
    is_variable: bool,
}

/// One of 25 frames a second, and one whose frames come at uneven times.
const FILM: Film = Film { scenes: [37, 90, 23], is_variable: false };
const VARIABLE: Film = Film { scenes: [90, 75, 85], is_variable: true };
const SHORT: Film = Film { scenes: [13, 14, 9], is_variable: false };

impl Film {
    /// With B-frames and few key frames.
    fn write(self, path: &Path) {
        let [a, b, c] = self.scenes;
        let times = if self.is_variable { "N/25/TB+0.011/TB*mod(N\\,3)" } else { "N/25/TB" };
        let filter = format!(
            "[0]trim=end_frame={a}[a];[1]trim=end_frame={b},format=yuv420p[b];[2]trim=end_frame={c},format=yuv420p[c];\
             [a][b][c]concat=n=3,setpts={times},format=yuv420p[v]"
        );
        let mut command = Command::new("ffmpeg");
        command.args(["-v", "error", "-f", "lavfi", "-i", "testsrc2=s=64x48:r=25"]);
        command.args(["-f", "lavfi", "-i", "mandelbrot=s=64x48:r=25"]);
        command.args(["-f", "lavfi", "-i", "cellauto=s=64x48:r=25:rule=18"]);
        command.args(["-f", "lavfi", "-i", "sine=d=10", "-filter_complex", &filter]);
        command.args(["-map", "[v]", "-map", "3", "-shortest", "-fps_mode", "passthrough"]);
        command.args(["-c:v", "libx264", "-bf", "3", "-g", "40", "-c:a", "aac"]);
        done(command.arg(path));
    }
}

fn starsr(command: &str) -> Command {
    let mut starsr = Command::new(env!("CARGO_BIN_EXE_starsr"));
    starsr.arg(command).stdin(Stdio::null());
    starsr
}

/// Runs `command`, which succeeds.
#[track_caller]
fn done(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Runs `command`, which fails with one sentence that holds all of `words`.
#[track_caller]
fn refused(command: &mut Command, words: &[&str]) {
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.starts_with("starsr: "), "{error}");
    for word in words {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
}

/// A hash of each frame of `file`, with its time.
fn frames(file: &Path) -> Vec<String> {
    let mut command = Command::new("ffmpeg");
    command.args(["-v", "error", "-i"]).arg(file);
    let hashes = done(command.args(["-map", "0:v", "-f", "framemd5", "-"])).stdout;
    let hashes = String::from_utf8(hashes).unwrap();
    hashes.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
}

/// What ffprobe says of `file` with these words.
fn probe(file: &Path, words: &[&str]) -> String {
    let mut command = Command::new("ffprobe");
    command.args(["-v", "error"]).args(words).args(["-of", "compact"]).arg(file);
    String::from_utf8(done(&mut command).stdout).unwrap()
}

/// Bytes of a job's parts, by name.
fn parts(job: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(job.join("parts")).unwrap().map(|entry| entry.unwrap().path());
    let is_part = |path: &PathBuf| path.extension() == Some(OsStr::new("part"));
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    let mut parts: Vec<_> =
        entries.filter(is_part).map(|path| (name(&path), fs::read(&path).unwrap())).collect();
    parts.sort();
    parts
}

#[test]
fn plan_work_and_join_make_the_film() {
    let scene = Scene::new(FILM, &["--codec=ffv1"]);
    done(&mut scene.upscale("whole.mkv"));
    done(&mut scene.plan("job", &["--segment-length=40"]));
    let status = scene.status("job");
    assert_eq!((&status["state"], &status["frames"]), (&"waiting".into(), &150.into()));
    let segments = status["segments"].as_u64().unwrap();
    assert_eq!(status["waiting"].as_array().unwrap().len() as u64, segments);
    // A second plan finds the first.
    done(&mut scene.plan("job", &["--segment-length=40"]));
    refused(scene.on("job", "join").arg(scene.path("out.mkv")), &["to restore", "starsr work"]);
    done(scene.on("job", "work").args(["--quiet", "--segment", "1"]));
    assert_eq!(scene.status("job")["done"], serde_json::json!([1]));
    done(scene.on("job", "work").args(["--quiet", "--next"]));
    assert_eq!(scene.status("job")["done"], serde_json::json!([0, 1]));
    let last = segments.to_string();
    refused(scene.on("job", "work").args(["--segment", &last]), &["no segment"]);
    done(scene.on("job", "work").arg("--quiet"));
    let status = scene.status("job");
    assert_eq!((&status["state"], &status["frames_done"]), (&"done".into(), &150.into()));
    done(scene.on("job", "join").arg("--quiet").arg(scene.path("out.mkv")));
    assert_eq!(frames(&scene.path("out.mkv")), frames(&scene.path("whole.mkv")));
    let join = || {
        let mut join = scene.on("job", "join");
        join.arg("--quiet").arg(scene.path("out.mkv"));
        join
    };
    refused(&mut join(), &["exists already"]);
    done(join().arg("--force"));
    assert_eq!(scene.names(), ["in.mkv", "job", "out.mkv", "whole.mkv"]);
}

#[test]
fn segments_begin_with_scenes_where_they_can() {
    let scene = Scene::new(FILM, &[]);
    done(&mut scene.plan("job", &["--segment-length=45"]));
    let plan = scene.planned("job");
    let cuts: Vec<_> = plan["clips"].as_array().unwrap().iter().map(Value::as_u64).collect();
    assert!(cuts.contains(&Some(37)) && cuts.contains(&Some(127)), "{cuts:?}");
    let segments = plan["segments"].as_array().unwrap();
    let first = |segment: &Value| segment["frames"]["start"].as_u64().unwrap();
    assert_eq!(segments.iter().map(first).filter(|f| [0, 37, 127].contains(f)).count(), 3);
    let mut end = 0;
    for segment in segments {
        let (frames, context) = (&segment["frames"], &segment["context"]);
        let number = |range: &Value, side: &str| range[side].as_u64().unwrap();
        assert_eq!(number(frames, "start"), end, "segments follow each other");
        end = number(frames, "end");
        assert!(number(context, "start") <= number(frames, "start"));
        assert!(number(context, "end") >= end);
        // tiny has windows of 4 frames, so that no segment depends on many others.
        assert!(number(context, "end") - number(context, "start") <= end - first(segment) + 8);
    }
    assert_eq!(end, 150);
}
