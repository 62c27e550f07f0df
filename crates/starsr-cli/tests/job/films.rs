// SPDX-License-Identifier: MPL-2.0

//! The film of a job is the film of one run: frames, times, and all that is beside them.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{FILM, Film, SHORT, Scene, VARIABLE, done, frames, parts, probe};

/// The frames of jobs with segments of these lengths and as many workers are those of one run.
fn compare(film: Film, options: &[&str], jobs: &[(u32, u32)]) {
    let scene = Scene::new(film, &[&["--codec=ffv1"], options].concat());
    done(&mut scene.upscale("whole.mkv"));
    let whole = frames(&scene.path("whole.mkv"));
    assert_eq!(whole.len() as u32, film.scenes.iter().sum::<u32>());
    for (length, workers) in jobs {
        let mut job = scene.upscale("out.mkv");
        job.args(["--force", "--resume", &format!("--segment-length={length}")]);
        done(job.arg(format!("--workers={workers}")));
        let out = frames(&scene.path("out.mkv"));
        let differing: Vec<_> = (0..whole.len()).filter(|at| out[*at] != whole[*at]).collect();
        assert_eq!(out.len(), whole.len());
        assert!(differing.is_empty(), "{length} frames, {workers} workers: {differing:?}");
        assert_eq!(scene.names(), ["in.mkv", "out.mkv", "whole.mkv"]);
    }
}

const BLEND: [&str; 2] = ["--set=tile-size=128", "--steps=2"];
const WAVEFRONT: [&str; 3] = ["--set=window-mode=wavefront", "--set=tile-size=128", "--steps=3"];

#[test]
fn windows_that_are_blended() {
    compare(VARIABLE, &BLEND, &[(24, 3), (60, 1), (200, 7)]);
}

#[test]
fn windows_that_are_merged() {
    compare(VARIABLE, &WAVEFRONT, &[(24, 7), (60, 3), (200, 1)]);
}

#[test]
#[ignore = "takes minutes: make films"]
fn all_lengths_and_workers() {
    let jobs = [24, 60, 200].map(|length| [1, 3, 7].map(|workers| (length, workers)));
    compare(VARIABLE, &BLEND, jobs.as_flattened());
    compare(VARIABLE, &WAVEFRONT, jobs.as_flattened());
}

#[test]
fn without_scene_detection() {
    compare(SHORT, &["--set=scene-detection=false", "--window-length=6"], &[(5, 1)]);
}

#[test]
fn the_built_in_model() {
    let scene = Scene::new(SHORT, &["--codec=ffv1"]);
    let built_in = |output: &str| {
        let mut command = super::starsr("upscale");
        command.args(["--quiet", "--codec=ffv1"]).arg(&scene.input).arg(scene.path(output));
        command
    };
    done(&mut built_in("whole.mkv"));
    done(built_in("out.mkv").args(["--resume", "--segment-length=7"]));
    assert_eq!(frames(&scene.path("out.mkv")), frames(&scene.path("whole.mkv")));
}

#[test]
fn the_number_of_workers_changes_no_byte() {
    let scene = Scene::new(FILM, &["--segment-length=30", "--preset=ultrafast"]);
    let run = |workers: u32| {
        let (job, out) = (format!("job{workers}"), format!("{workers}.mp4"));
        let mut command = scene.upscale(&out);
        done(command.arg("--job").arg(scene.path(&job)).arg(format!("--workers={workers}")));
        (scene.bytes(&out), parts(&scene.path(&job)).len())
    };
    let one = run(1);
    for workers in [3, 7] {
        assert!(run(workers) == one, "{workers} workers");
    }
}

/// What players see of a file beside its pixels.
fn outside(file: &Path) -> [String; 3] {
    let streams = "stream=index,codec_name,codec_tag_string,start_time,duration,nb_frames,avg_frame_rate,time_base:\
                   stream_tags:stream_disposition:format=duration,start_time,nb_streams:format_tags";
    let mut packets: Vec<_> = probe(file, &["-show_entries", "packet=stream_index,pts,duration"])
        .lines()
        .map(str::to_owned)
        .collect();
    packets.sort();
    [probe(file, &["-show_entries", streams]), probe(file, &["-show_chapters"]), packets.join("\n")]
}

/// The film of a job is as that of one run from outside, for an input that FFmpeg makes of a short film
/// with `words`.
fn alike(input: &str, words: &str, output: &str, options: &[&str]) {
    let mut scene = Scene::new(SHORT, options);
    scene.options.push("--preset=ultrafast".to_owned());
    if options.iter().any(|option| option.contains("codec") || option.contains("encoder")) {
        scene.options.retain(|option| !option.contains("preset"));
    }
    fs::write(scene.path("notes.txt"), "attached").unwrap();
    fs::write(scene.path("in.srt"), "1\n00:00:00,120 --> 00:00:00,900\nBits\n\n").unwrap();
    let chapters = ";FFMETADATA1\ntitle=A film\nartist=Somebody\n\
                    [CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=500\ntitle=One\n\
                    [CHAPTER]\nTIMEBASE=1/1000\nSTART=500\nEND=1400\ntitle=Two\n";
    fs::write(scene.path("meta.txt"), chapters).unwrap();
    let mut command = Command::new("ffmpeg");
    command.current_dir(scene.folder.path()).args(["-v", "error"]);
    done(command.args(words.split_whitespace()).arg(input));
    scene.input = scene.path(input);
    let (whole, out) = (format!("whole.{output}"), format!("out.{output}"));
    done(&mut scene.upscale(&whole));
    done(scene.upscale(&out).args(["--resume", "--segment-length=9"]));
    let (whole, out) = (outside(&scene.path(&whole)), outside(&scene.path(&out)));
    for (whole, out) in whole.iter().zip(&out) {
        assert_eq!(out, whole, "{input} to .{output} {options:?}");
    }
}

#[test]
fn kinds_of_files() {
    let rich = "-i in.mkv -i meta.txt -i in.srt -map 0 -map 2 -map_metadata 1 -map_chapters 1 -c copy -c:s srt \
                -attach notes.txt -metadata:s:t mimetype=text/plain";
    alike("rich.mkv", rich, "mkv", &[]);
    let film = "-i in.mkv -i meta.txt -map 0 -map_metadata 1 -map_chapters 1 -c copy";
    alike("film.mp4", film, "mp4", &[]);
    alike("late.mp4", "-itsoffset 0.7 -i in.mkv -i in.mkv -map 0:v -map 1:a -c copy", "mp4", &[]);
    alike("disc.ts", "-i in.mkv -c:v mpeg2video -b:v 2M -bf 2 -c:a mp2", "mkv", &[]);
    alike("old.avi", "-i in.mkv -c:v mpeg4 -bf 2 -c:a mp3", "mp4", &[]);
}

#[test]
fn kinds_of_encoders() {
    let deep = "-i in.mkv -c:v libx265 -preset ultrafast -x265-params log-level=none -pix_fmt yuv420p10le -c:a copy";
    alike("deep.mkv", deep, "mp4", &[]);
    alike("film.mkv", "-i in.mkv -c copy", "mov", &["--codec=prores"]);
    alike("film.mkv", "-i in.mkv -c copy", "mkv", &["--encoder=vp8enc deadline=1"]);
    let uneven =
        "-i in.mkv -vf setpts=PTS+0.011/TB*mod(N\\,2) -fps_mode passthrough -c:v libx264 -c:a copy";
    alike("uneven.mkv", uneven, "mp4", &[]);
    let fields = "-i in.mkv -vf tinterlace=mode=interleave_top,setfield=tff -flags +ildct+ilme -c:v mpeg2video -c:a copy";
    alike("fields.mkv", fields, "mkv", &["--deinterlace"]);
    alike("part.mkv", "-i in.mkv -c copy", "mp4", &["--start=0.3", "--duration=0.8"]);
}

#[test]
fn without_ffmpeg_gstreamer_carries_the_sound() {
    let scene = Scene::new(SHORT, &["--no-ffmpeg", "--codec=ffv1"]);
    done(&mut scene.upscale("whole.mkv"));
    done(scene.upscale("out.mkv").args(["--resume", "--segment-length=9"]));
    // What the encoder makes of a frame depends on the frames in front of it.
    let packets = |name: &str| {
        let path = scene.path(name);
        let times = probe(&path, &["-show_entries", "packet=stream_index,pts"]);
        let sound = probe(&path, &["-select_streams", "a", "-show_entries", "packet=pts,size"]);
        let mut lines: Vec<_> = times.lines().chain(sound.lines()).map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert!(packets("whole.mkv").iter().any(|line| line.contains("stream_index=1")));
    assert_eq!(packets("out.mkv"), packets("whole.mkv"));
}
