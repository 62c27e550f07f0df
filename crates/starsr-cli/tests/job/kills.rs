// SPDX-License-Identifier: MPL-2.0

//! Commands that are killed at any moment, and then given again.

use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::{FILM, Film, Scene, done, parts};

/// The command for `output`, with its job in a folder of its own.
fn command(scene: &Scene, output: &str, workers: &str) -> Command {
    let mut command = scene.upscale(output);
    command.args(["--resume", workers]).stderr(Stdio::null());
    command
}

/// Kills the command at `moments`, given as parts of the time that it takes undisturbed, and gives it
/// again: the film is the same, and nothing else is left.
fn kill(film: Film, workers: &str, moments: impl IntoIterator<Item = f64>) {
    let options = ["--segment-length=20", "--preset=ultrafast"];
    let scene = Scene::new(film, &options);
    let started = Instant::now();
    done(&mut command(&scene, "whole.mp4", workers));
    let time = started.elapsed();
    let whole = scene.bytes("whole.mp4");
    for moment in moments {
        let mut run = command(&scene, "out.mp4", workers).spawn().unwrap();
        sleep(time.mul_f64(moment));
        let ended = run.try_wait().unwrap();
        run.kill().unwrap();
        run.wait().unwrap();
        let job = scene.path("out.mp4.job");
        let before = if job.join("parts").exists() { parts(&job) } else { Vec::new() };
        // A command that was killed after its last act has left the film and no job.
        let finished = ended.is_some() || scene.path("out.mp4").exists();
        if job.exists() || !finished {
            done(&mut command(&scene, "out.mp4", workers));
        }
        assert!(scene.bytes("out.mp4") == whole, "killed at {moment} with {} parts", before.len());
        let hidden: Vec<_> =
            scene.names().into_iter().filter(|name| !name.starts_with(".out.mp4.part")).collect();
        assert_eq!(hidden, ["in.mkv", "out.mp4", "whole.mp4"], "killed at {moment}");
        std::fs::remove_file(scene.path("out.mp4")).unwrap();
    }
}

#[test]
fn three_moments() {
    kill(FILM, "--workers=1", [0.25, 0.6, 0.85]);
}

#[test]
#[ignore = "takes minutes: make films"]
fn twenty_moments() {
    let long = Film { scenes: [90, 200, 60], is_variable: false };
    // Spread evenly, and in no order that the segments have.
    let moment = |number: u32| (f64::from(number) * 0.618_034).fract();
    kill(long, "--workers=1", (1..=10).map(moment));
    kill(long, "--workers=2", (11..=20).map(moment));
}

#[test]
fn finished_parts_are_not_made_again() {
    let scene = Scene::new(FILM, &["--segment-length=20"]);
    done(&mut scene.plan("job", &[]));
    let mut work = scene.on("job", "work").arg("--quiet").spawn().unwrap();
    starsr_testkit::patience::patiently("no part is finished", || {
        sleep(Duration::from_millis(5));
        (parts(&scene.path("job")).len() >= 2).then_some(())
    });
    work.kill().unwrap();
    work.wait().unwrap();
    let times = |names: &[(String, Vec<u8>)]| {
        let parts = scene.path("job/parts");
        let time = |(name, _): &(String, Vec<u8>)| {
            (name.clone(), std::fs::metadata(parts.join(name)).unwrap().modified().unwrap())
        };
        names.iter().map(time).collect::<Vec<_>>()
    };
    let before = parts(&scene.path("job"));
    let made = times(&before);
    let said = done(scene.upscale("out.mkv").arg("--job").arg(scene.path("job"))).stderr;
    assert!(said.is_empty(), "{}", String::from_utf8_lossy(&said));
    assert_eq!(times(&before), made);
}

/// Peak memory of `command` in bytes, which succeeds.
fn memory(command: &mut Command) -> u64 {
    let mut timed = Command::new("/usr/bin/env");
    // The shell's only child is the command, so that its peak is the shell's children's.
    timed.args([
        "python3",
        "-c",
        "import resource, subprocess, sys\n\
        subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n\
        print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)",
    ]);
    timed.arg(command.get_program()).args(command.get_args());
    String::from_utf8(done(&mut timed).stdout).unwrap().trim().parse().unwrap()
}

#[test]
#[ignore = "takes half an hour: make films"]
fn memory_does_not_grow_with_the_film() {
    let mut scene = Scene::new(FILM, &["--codec=ffv1", "--set=strength=0"]);
    let short = scene.input.clone();
    scene.input = scene.path("film.mkv");
    let mut film = Command::new("ffmpeg");
    film.args(["-v", "error", "-stream_loop", "-1", "-i"]).arg(&short);
    // Two hours of 25 frames a second.
    done(film.args(["-map", "0:v", "-c", "copy", "-t", "7200"]).arg(&scene.input));
    let plan = memory(&mut scene.plan("job", &["--segment-length=2000"]));
    let frames = scene.status("job")["frames"].as_u64().unwrap();
    assert!(frames > 170_000, "{frames} frames");
    done(scene.on("job", "work").arg("--quiet"));
    let join = memory(scene.on("job", "join").arg("--quiet").arg(scene.path("out.mkv")));
    println!("{frames} frames: plan {plan} bytes, join {join} bytes");
    assert!(plan < 500_000_000 && join < 500_000_000, "{plan}, {join}");
}
