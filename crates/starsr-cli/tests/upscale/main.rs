// SPDX-License-Identifier: MPL-2.0

//! `starsr upscale`, run as users run it.
//! Needs ONNX Runtime and nano2 beside the program: `make build`.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use gst::prelude::*;
use starsr_testkit::fixtures::repository;
use starsr_testkit::patience::patiently;
use tempfile::TempDir;

mod batch;
mod carrying;
mod choosing;
mod codecs;
mod foreign;
mod formats;
mod inputs;
mod media;
mod midway;
mod moments;
mod outputs;
mod parts;
mod pictures;

use media::{Packet, SIZE, clip, decoded, frames, packets, play, rotate, video, write};

/// `starsr upscale`, quiet.
fn upscale() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_starsr"));
    command.args(["upscale", "--quiet"]);
    command
}

fn run(arguments: &[&OsStr]) -> Output {
    upscale().args(["--preset", "ultrafast"]).args(arguments).output().unwrap()
}

fn convert(options: &[&str], input: &Path, output: &Path) -> Output {
    let mut arguments: Vec<&OsStr> = options.iter().map(OsStr::new).collect();
    arguments.extend([OsStr::new("--"), input.as_os_str(), output.as_os_str()]);
    run(&arguments)
}

#[track_caller]
fn assert_done(result: &Output) {
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
}

/// The run failed with one line on standard error, which holds all of `words`.
#[track_caller]
fn assert_refused(result: &Output, words: &[&str]) {
    let error = String::from_utf8_lossy(&result.stderr);
    assert_eq!(result.status.code(), Some(1), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.starts_with("starsr: "), "{error}");
    for word in words {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
}

/// Presses Ctrl-C.
fn interrupt(child: &Child) {
    let kill = format!("kill -INT {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
}

/// Names in a folder, hidden ones included.
fn names(folder: &TempDir) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[track_caller]
fn assert_upscaled(input: &Path, output: &Path) {
    let ((times, _), (new_times, new_size)) = (frames(input), frames(output));
    assert!(!times.is_empty());
    assert_eq!(new_times, times);
    assert_eq!(new_size, (SIZE.0 * 4, SIZE.1 * 4));
}

#[test]
fn help_lists_options_and_examples() {
    let result = run(&[OsStr::new("--help")]);
    assert_done(&result);
    let help = String::from_utf8(result.stdout).unwrap();
    for word in
        ["--force", "--window-overlap", "--set", "--deinterlace", "Examples:", "Exit status"]
    {
        assert!(help.contains(word), "{word}");
    }
}

#[test]
fn man_pages_and_completions_are_written() {
    let folder = TempDir::new().unwrap();
    let program = env!("CARGO_BIN_EXE_starsr");
    assert_done(&Command::new(program).arg("documentation").arg(folder.path()).output().unwrap());
    for (file, word) in [
        ("man/starsr.1", "STAR"),
        ("man/starsr-upscale.1", "window\\-overlap"),
        ("completions/starsr.bash", "--window-overlap"),
        ("completions/_starsr", "--window-overlap"),
        ("completions/starsr.fish", "window-overlap"),
    ] {
        let text = fs::read_to_string(folder.path().join(file)).unwrap();
        assert!(text.contains(word), "{word} is not in {file}");
    }
}

#[test]
fn audio_and_subtitles_come_through_bit_exact() {
    let folder = TempDir::new().unwrap();
    let (input, output) = (folder.path().join("in.mkv"), folder.path().join("out.mkv"));
    let subtitles = folder.path().join("in.srt");
    fs::write(
        &subtitles,
        "1\n00:00:00,120 --> 00:00:00,400\nBits & bytes\n\n2\n00:00:00,500 --> 00:00:00,800\n<i>slanted</i> & <b>bold</b>\n\n",
    )
    .unwrap();
    write(
        &input,
        &format!(
            "matroskamux name=mux ! filesink name=file {} \
             audiotestsrc num-buffers=44 wave=pink-noise ! audio/x-raw,rate=44100 ! avenc_aac ! aacparse ! queue ! mux. \
             audiotestsrc num-buffers=44 wave=ticks ! audio/x-raw,rate=44100 ! flacenc ! flacparse ! queue ! mux. \
             filesrc location=\"{}\" ! subparse ! queue ! mux.",
            video(25),
            subtitles.display()
        ),
    );
    assert_done(&convert(&["--no-ffmpeg"], &input, &output));
    assert_upscaled(&input, &output);
    let (before, after) = (packets(&input), packets(&output));
    assert_eq!(before.len(), 3, "{:?}", before.iter().map(|(media, _)| media).collect::<Vec<_>>());
    assert_eq!(after, before);
}

#[test]
fn audio_and_plain_subtitles_fit_into_mp4() {
    let folder = TempDir::new().unwrap();
    let (input, output) = (folder.path().join("in.mkv"), folder.path().join("out.mp4"));
    let subtitles = folder.path().join("in.srt");
    fs::write(&subtitles, "1\n00:00:00,120 --> 00:00:00,400\nBits & bytes\n\n").unwrap();
    write(
        &input,
        &format!(
            "matroskamux name=mux ! filesink name=file {} \
             audiotestsrc num-buffers=44 wave=pink-noise ! audio/x-raw,rate=44100 ! avenc_aac ! aacparse ! queue ! mux. \
             filesrc location=\"{}\" ! subparse ! queue ! mux.",
            video(25),
            subtitles.display()
        ),
    );
    assert_done(&convert(&[], &input, &output));
    let bytes = |streams: Vec<(String, Vec<Packet>)>, prefix: &str| -> Vec<Vec<u8>> {
        let stream =
            streams.into_iter().find(|(media, _)| media.starts_with(prefix)).expect(prefix);
        stream.1.into_iter().map(|packet| packet.bytes).collect()
    };
    assert_eq!(bytes(packets(&output), "audio/"), bytes(packets(&input), "audio/"));
    let text = bytes(packets(&output), "text/").concat();
    assert!(
        String::from_utf8_lossy(&text).contains("Bits & bytes")
            || String::from_utf8_lossy(&text).contains("Bits &amp; bytes")
    );
    assert!(!String::from_utf8_lossy(&text).contains("amp;amp;"));
}

#[test]
fn frames_without_a_constant_rate_keep_their_times() {
    let folder = TempDir::new().unwrap();
    let (input, output) = (folder.path().join("in.mkv"), folder.path().join("out.mp4"));
    gst::init().unwrap();
    let description = format!(
        "appsrc name=source format=time caps=\"video/x-raw,format=I420,width={},height={},framerate=0/1\" \
         ! matroskamux ! filesink name=file",
        SIZE.0, SIZE.1
    );
    let pipeline = gst::parse::launch(&description).unwrap().downcast::<gst::Pipeline>().unwrap();
    pipeline.by_name("file").unwrap().set_property("location", &input);
    let source = pipeline.by_name("source").unwrap().downcast::<gst_app::AppSrc>().unwrap();
    let times =
        [0, 40, 70, 170, 171, 400, 1000, 1033, 1066, 3000].map(gst::ClockTime::from_mseconds);
    for (shade, time) in times.iter().enumerate() {
        let mut buffer = gst::Buffer::from_slice(vec![
            40 + 10 * shade as u8;
            (SIZE.0 * SIZE.1 * 3 / 2) as usize
        ]);
        buffer.get_mut().unwrap().set_pts(*time);
        buffer.get_mut().unwrap().set_duration(gst::ClockTime::from_mseconds(1));
        source.push_buffer(buffer).unwrap();
    }
    source.end_of_stream().unwrap();
    play(&pipeline);
    assert_eq!(frames(&input).0, times);

    assert_done(&convert(&[], &input, &output));
    assert_eq!(frames(&output).0, times);
}

#[test]
fn a_long_window_beside_audio_does_not_block() {
    let folder = TempDir::new().unwrap();
    let (input, output) = (folder.path().join("in.mp4"), folder.path().join("out.mp4"));
    write(
        &input,
        &format!(
            "mp4mux name=mux ! filesink name=file {} \
             audiotestsrc num-buffers=215 ! audio/x-raw,rate=44100 ! avenc_aac ! aacparse ! queue ! mux.",
            video(125)
        ),
    );
    assert_done(&convert(&["--window-length", "64", "--window-overlap", "4"], &input, &output));
    assert_upscaled(&input, &output);
    assert_eq!(packets(&output), packets(&input));
}

#[test]
fn an_existing_output_is_only_replaced_on_request() {
    let folder = TempDir::new().unwrap();
    let (input, output) = (folder.path().join("in.mp4"), folder.path().join("out.mp4"));
    clip(&input, 3);
    fs::write(&output, "precious").unwrap();
    assert_refused(&convert(&[], &input, &output), &["out.mp4", "--force"]);
    assert_eq!(fs::read(&output).unwrap(), b"precious");
    assert_done(&convert(&["--force"], &input, &output));
    assert_upscaled(&input, &output);
    assert_eq!(names(&folder), ["in.mp4", "out.mp4"]);
}

#[test]
fn one_frame_is_a_video() {
    let folder = TempDir::new().unwrap();
    let (input, output) = (folder.path().join("in.mp4"), folder.path().join("out.mp4"));
    clip(&input, 1);
    assert_done(&convert(&[], &input, &output));
    assert_upscaled(&input, &output);
}

#[test]
fn a_cut_off_input_is_upscaled_as_far_as_it_goes_with_a_warning() {
    let folder = TempDir::new().unwrap();
    let (input, output) = (folder.path().join("in.mkv"), folder.path().join("out.mkv"));
    clip(&input, 100);
    let whole = fs::read(&input).unwrap();
    fs::write(&input, &whole[..whole.len() / 2]).unwrap();
    let result = convert(&[], &input, &output);
    assert_done(&result);
    let error = String::from_utf8_lossy(&result.stderr);
    assert!(error.contains("of 4.0 s") && error.contains("cut off"), "{error}");
    assert_upscaled(&input, &output);
}

#[test]
fn the_input_is_never_the_output() {
    let folder = TempDir::new().unwrap();
    let (input, link) = (folder.path().join("in.mp4"), folder.path().join("link.mp4"));
    clip(&input, 3);
    fs::hard_link(&input, &link).unwrap();
    let before = fs::read(&input).unwrap();
    for output in [&input, &link, &folder.path().join(".").join("in.mp4")] {
        assert_refused(&convert(&["--force"], &input, output), &["same file"]);
    }
    assert_eq!(fs::read(&input).unwrap(), before);
}

#[test]
fn bad_inputs_are_refused_in_one_line() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("empty.mp4"), "").unwrap();
    fs::write(path("noise.mp4"), (0..20_000u32).map(|i| ((i * i) >> 7) as u8).collect::<Vec<_>>())
        .unwrap();
    clip(&path("whole.mp4"), 10);
    let whole = fs::read(path("whole.mp4")).unwrap();
    fs::write(path("cut.mp4"), &whole[..whole.len() / 2]).unwrap();
    let start = whole.windows(4).position(|name| name == b"mdat").unwrap() + 8;
    let end = whole.windows(4).position(|name| name == b"moov").unwrap() - 4;
    let mut junk = whole.clone();
    junk[start..end].fill(0x55);
    fs::write(path("junk.mp4"), junk).unwrap();
    fs::create_dir(path("folder.mp4")).unwrap();
    write(
        &path("sound.mkv"),
        "audiotestsrc num-buffers=20 ! vorbisenc ! matroskamux ! filesink name=file",
    );
    let before = names(&folder);
    let cases = [
        ("missing.mp4", "No such file"),
        ("empty.mp4", "empty"),
        ("noise.mp4", "not a media file"),
        ("cut.mp4", "cut.mp4"),
        ("folder.mp4", "folder"),
        ("sound.mkv", "no video stream"),
        ("junk.mp4", "No valid frames"),
    ];
    for (name, words) in cases {
        assert_refused(&convert(&[], &path(name), &path("out.mkv")), &[name, words]);
        assert_eq!(names(&folder), before, "after {name}");
    }
}

#[test]
fn bad_settings_are_refused_in_one_line() {
    let folder = TempDir::new().unwrap();
    let (input, output) = (folder.path().join("in.mp4"), folder.path().join("out.mp4"));
    clip(&input, 3);
    let cases: [(&[&str], &[&str]); 7] = [
        (&["--set", "colour=red"], &["no property colour"]),
        (&["--set", "stats=1"], &["stats"]),
        (&["--steps", "many"], &["steps", "many", "whole number from 0 to 1000"]),
        (&["--strength", "2"], &["strength", "number from -1 to 1"]),
        (&["--color-fix", "sepia"], &["color-fix", "adain", "wavelet"]),
        (&["--provider", "abacus"], &["execution-provider", "cuda"]),
        (&["--model", "/nonexistent"], &["/nonexistent"]),
    ];
    for (options, words) in cases {
        assert_refused(&convert(options, &input, &output), words);
    }
    assert_refused(&convert(&[], &input, &folder.path().join("out.avi")), &["out.avi", ".mkv"]);
    let encoder =
        upscale().args(["--encoder", "nosuchenc"]).args([&input, &output]).output().unwrap();
    assert_refused(&encoder, &["--encoder", "nosuchenc"]);
    assert_eq!(convert(&["--set", "seed"], &input, &output).status.code(), Some(2));
    assert_eq!(names(&folder), ["in.mp4"]);
}

#[test]
fn streams_that_the_container_cannot_hold_are_named() {
    let folder = TempDir::new().unwrap();
    let (input, output) = (folder.path().join("in.mkv"), folder.path().join("out.mp4"));
    write(
        &input,
        &format!(
            "matroskamux name=mux ! filesink name=file {} audiotestsrc num-buffers=20 ! vorbisenc ! queue ! mux.",
            video(5)
        ),
    );
    assert_refused(
        &convert(&["--no-ffmpeg"], &input, &output),
        &["MP4", "audio/x-vorbis", ".mkv", "--drop-unsupported"],
    );
    assert_eq!(names(&folder), ["in.mkv"]);
    let result = convert(&["--no-ffmpeg", "--drop-unsupported"], &input, &output);
    assert_done(&result);
    assert!(String::from_utf8_lossy(&result.stderr).contains("audio/x-vorbis"));
    assert_upscaled(&input, &output);
}

#[test]
fn any_path_will_do() {
    let folder = TempDir::new().unwrap();
    let first = folder.path().join("in.mp4");
    clip(&first, 3);
    let odd: [&[u8]; 4] = [
        "übergroß 動画 \u{1f3ac}".as_bytes(),
        b"it's \"quoted\" $HOME %05d \\ #?&",
        b"-dash",
        b"not utf-8 \xff\xfe",
    ];
    for name in odd {
        let inside = folder.path().join(OsStr::from_bytes(name));
        fs::create_dir(&inside).unwrap();
        let in_name = [name, b".mp4"].concat();
        let input = inside.join(OsStr::from_bytes(&in_name));
        let output = inside.join(OsStr::from_bytes(&[name, b" out.mkv"].concat()));
        fs::copy(&first, &input).unwrap();
        assert_done(&convert(&[], &input, &output));
        assert_eq!(frames(&output).0.len(), 3);
        assert_eq!(fs::read_dir(&inside).unwrap().count(), 2);
    }
    let result = upscale()
        .args(["--preset", "ultrafast", "--", "in.mp4", "plain name.mp4"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert_done(&result);
    assert_eq!(frames(&folder.path().join("plain name.mp4")).0.len(), 3);
    let long = folder.path().join(format!("{}.mp4", "n".repeat(251)));
    assert_done(&convert(&[], &first, &long));
    assert_eq!(frames(&long).0.len(), 3);
}

#[test]
fn interrupting_leaves_nothing() {
    let folder = TempDir::new().unwrap();
    let (input, output) = (folder.path().join("in.mp4"), folder.path().join("out.mp4"));
    clip(&input, 3000);
    let child = outputs::begin(&folder, &input, &output);
    // Into the inference, most likely; wherever it is met, the result must be the same.
    std::thread::sleep(Duration::from_secs(2));
    interrupt(&child);
    let result = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&result.stderr);
    assert_eq!(result.status.code(), Some(130), "{error}");
    assert!(error.contains("interrupted"), "{error}");
    assert_eq!(names(&folder), ["in.mp4"]);
}

#[test]
fn a_full_disk_leaves_nothing() {
    let folder = TempDir::new().unwrap();
    let (input, output) = (folder.path().join("in.mp4"), folder.path().join("out.mkv"));
    clip(&input, 40);
    // A limit on the size of files stands for the disk: writing fails half way, as it would there.
    let program = upscale().get_program().to_owned();
    let result = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 16; exec \"$@\"", "sh"])
        .arg(program)
        .args(["upscale", "--quiet", "--quality", "0"])
        .args([&input, &output])
        .output()
        .unwrap();
    assert_refused(&result, &["out.mkv", "cannot be written", "File too large"]);
    assert_eq!(names(&folder), ["in.mp4"]);
}

#[test]
fn a_failing_encoder_leaves_nothing() {
    let folder = TempDir::new().unwrap();
    let (input, output) = (folder.path().join("in.mp4"), folder.path().join("out.mp4"));
    clip(&input, 40);
    let result = upscale()
        .args(["--encoder", "identity error-after=12 ! x264enc speed-preset=ultrafast"])
        .args([&input, &output])
        .output()
        .unwrap();
    assert_refused(&result, &["Failed after iterations"]);
    assert_eq!(names(&folder), ["in.mp4"]);
}

#[test]
fn interlaced_video_is_refused_or_deinterlaced() {
    let folder = TempDir::new().unwrap();
    let (input, output) = (folder.path().join("in.mkv"), folder.path().join("out.mkv"));
    let (width, height) = SIZE;
    write(
        &input,
        &format!(
            "videotestsrc num-buffers=10 pattern=ball ! video/x-raw,format=I420,width={width},height={height},framerate=50/1 \
             ! interlace field-pattern=1:1 ! x264enc speed-preset=ultrafast interlaced=true ! h264parse ! matroskamux ! filesink name=file"
        ),
    );
    assert_refused(&convert(&[], &input, &output), &["interlace", "--deinterlace"]);
    assert_eq!(names(&folder), ["in.mkv"]);
    assert_done(&convert(&["--deinterlace"], &input, &output));
    // Each field becomes a frame.
    assert_eq!(frames(&output).0.len(), 2 * frames(&input).0.len());
}

#[test]
fn same_seed_same_file_content() {
    let folder = TempDir::new().unwrap();
    let input = folder.path().join("in.mp4");
    clip(&input, 6);
    let outputs = ["a.mkv", "b.mkv", "c.mkv"].map(|name| folder.path().join(name));
    // A model with a sampler, which draws noise.
    let nano = repository("models/nano");
    for (output, seed) in outputs.iter().zip(["1", "1", "2"]) {
        let options = ["--seed", seed, "--model", nano.to_str().unwrap()];
        assert_done(&convert(&options, &input, output));
    }
    let [a, b, c] = outputs.map(|path| decoded(&path));
    assert!(a == b && a != c);
}
