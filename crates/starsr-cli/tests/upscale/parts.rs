// SPDX-License-Identifier: MPL-2.0

//! Parts of inputs, standard output, and what is printed.

use serde_json::Value;

use super::carrying::{codecs, ffmpeg, probe};
use super::*;

const VIDEO: &str = "-f lavfi -i testsrc2=size=48x32:rate=25";

/// Upscales `input` in `folder` to `output` there, plainly.
pub fn plain(folder: &TempDir, options: &[&str], input: &str, output: &str) -> Output {
    let options = [&["--strength", "0"], options].concat();
    let mut command = upscale();
    command.current_dir(folder.path()).args(options).args(["--", input, output]);
    command.output().unwrap()
}

#[test]
fn a_part_is_cut_to_the_frame_with_its_sound() {
    let folder = TempDir::new().unwrap();
    let encoding = "-t 1 -c:v libx264 -preset veryfast -crf 5 -g 100 -bf 2 -c:a ac3";
    for (input, output) in [("in.mp4", "out.mp4"), ("in.mkv", "out.mkv"), ("in.ts", "ts.mkv")] {
        // Each frame is a grey of its own.
        let video = "-f lavfi -i color=size=48x32:rate=25,geq=lum=20+N*8:cb=128:cr=128";
        ffmpeg(&folder, &format!("{video} -f lavfi -i sine=sample_rate=48000 {encoding} {input}"));
        for without in [&[][..], &["--no-ffmpeg"]] {
            let part =
                [&["--force", "--quality", "5", "--start", "0:0.4", "--duration", "0.4"], without]
                    .concat();
            assert_done(&plain(&folder, &part, input, output));
            let [whole, part] = [input, output].map(|name| decoded_small(&folder, name));
            assert_eq!(part.len(), 10, "{output} {without:?}");
            // The frames are those from the eleventh on: each is nearest to its own.
            for (number, frame) in part.iter().enumerate() {
                let distance = |other: &Vec<u8>| {
                    let pairs = frame.iter().zip(other);
                    pairs.map(|(a, b)| u64::from(a.abs_diff(*b))).sum::<u64>()
                };
                let nearest = (0..whole.len()).min_by_key(|index| distance(&whole[*index]));
                assert_eq!(nearest, Some(number + 10), "{output} {without:?}");
            }
            let sound = probe(&folder.path().join(output));
            assert_eq!(codecs(&sound), ["h264", "ac3"]);
            let packets = sound["packets"].as_array().unwrap().iter();
            let sound = packets.filter(|packet| packet["codec_type"] == "audio").count();
            // 0.4 s in packets of 32 ms, with those at the ends in or out.
            assert!((11..=14).contains(&sound), "{output} {without:?}: {sound} packets");
        }
    }
}

#[test]
fn a_preview_shows_both_with_a_line_between() {
    let folder = TempDir::new().unwrap();
    // A size that is no multiple of anything, and formats of two kinds.
    for (format, codec) in [("yuv420p", "libx264"), ("gbrp", "ffv1")] {
        let video = format!("-f lavfi -i color=gray:size=50x34:rate=25,format={format}");
        ffmpeg(&folder, &format!("{video} -t 0.4 -c:v {codec} in.mkv"));
        let preview = ["--force", "--preview=0.2", "--quality", "1"];
        assert_done(&plain(&folder, &preview, "in.mkv", "out.mkv"));
        let frames = decoded_small(&folder, "out.mkv");
        assert_eq!(frames.len(), 5, "{format}");
        // The line is white, in the middle at first.
        let row = &frames[0][48 * 16..48 * 17];
        let brightest = (0..48).max_by_key(|x| row[*x]).unwrap();
        assert!((22..=25).contains(&brightest), "{format}: {row:?}");
        assert!(row[2].abs_diff(row[46]) < 4, "{format}: {row:?}");
    }
}

#[test]
fn an_estimate_writes_nothing() {
    let folder = TempDir::new().unwrap();
    clip(&folder.path().join("in.mp4"), 30);
    let mut command = Command::new(env!("CARGO_BIN_EXE_starsr"));
    command.args(["upscale", "--estimate", "--json", "in.mp4", "out.mp4"]);
    let result = command.current_dir(folder.path()).output().unwrap();
    assert_done(&result);
    let lines = String::from_utf8(result.stdout).unwrap();
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!((&last["event"], &last["frames"]), (&"estimate".into(), &30.into()));
    assert!(last["seconds"].as_f64().unwrap() > 0.0 && last["memory"].as_u64().unwrap() > 0);
    assert_eq!(names(&folder), ["in.mp4"]);
}

/// The frames of a file in `folder`, as grey pictures of 48x32.
pub fn decoded_small(folder: &TempDir, name: &str) -> Vec<Vec<u8>> {
    let mut command = Command::new("ffmpeg");
    command.args(["-v", "error", "-i", name, "-vf", "scale=48:32:flags=area", "-pix_fmt", "gray"]);
    command.args(["-fps_mode", "passthrough", "-f", "rawvideo", "-"]).current_dir(folder.path());
    let pixels = command.output().unwrap().stdout;
    pixels.chunks(48 * 32).map(<[u8]>::to_vec).collect()
}

#[test]
fn a_part_behind_the_end_is_refused() {
    let folder = TempDir::new().unwrap();
    clip(&folder.path().join("in.mp4"), 5);
    assert_refused(&plain(&folder, &["--start", "7"], "in.mp4", "out.mp4"), &["0.2 s long"]);
    for time in ["1:x", "-1", "nan", "inf", "1:2:3:4", "999999999:0:0"] {
        let start = format!("--start={time}");
        let result = plain(&folder, &[&start], "in.mp4", "out.mp4");
        assert_eq!(result.status.code(), Some(2), "{time}");
    }
}

#[test]
fn standard_output_gets_the_video_alone() {
    let folder = TempDir::new().unwrap();
    clip(&folder.path().join("in.mp4"), 3);
    let mut command = Command::new(env!("CARGO_BIN_EXE_starsr"));
    command.args(["upscale", "--strength", "0", "in.mp4", "-"]).current_dir(folder.path());
    let result = command.output().unwrap();
    assert_done(&result);
    assert!(result.stdout.starts_with(b"YUV4MPEG2 C420 W192 H128 "));
    let frame = 192 * 128 * 3 / 2 + "FRAME\n".len();
    let header = result.stdout.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    assert_eq!(result.stdout.len(), header + 3 * frame);

    let mut second = Command::new(env!("CARGO_BIN_EXE_starsr"));
    second.args(["upscale", "--quiet", "--strength", "0", "--scale", "2", "-", "out.mkv"]);
    fs::write(folder.path().join("in.y4m"), &result.stdout).unwrap();
    second.stdin(fs::File::open(folder.path().join("in.y4m")).unwrap());
    assert_done(&second.current_dir(folder.path()).output().unwrap());
    let (times, size) = frames(&folder.path().join("out.mkv"));
    assert_eq!((times.len(), size), (3, (384, 256)));
}

#[test]
fn standard_output_gets_frames_without_a_header() {
    let folder = TempDir::new().unwrap();
    // 100x60 and 97x61 pixels: GStreamer has gaps behind rows of both.
    ffmpeg(
        &folder,
        "-f lavfi -i testsrc2=size=26x16:rate=25 -frames:v 3 -c:v ffv1 -pix_fmt yuv420p in.mkv",
    );
    let run = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_starsr"));
        command.args(["upscale", "--strength", "0", "in.mkv", "-"]).args(more);
        command.current_dir(folder.path()).output().unwrap()
    };
    for size in [&["--width", "100", "--height", "60"][..], &["--width", "97", "--height", "61"]] {
        let y4m = run(size);
        assert_done(&y4m);
        fs::write(folder.path().join("out.y4m"), &y4m.stdout).unwrap();
        ffmpeg(&folder, "-i out.y4m -f rawvideo expected.raw");
        // The same frames without a header.
        let raw = run(&[size, &["--raw-output", "yuv420p"]].concat());
        assert_done(&raw);
        let expected = fs::read(folder.path().join("expected.raw")).unwrap();
        assert!(raw.stdout == expected, "{size:?}: {} bytes", raw.stdout.len());
    }
    for (format, bytes) in [
        ("gray", 97 * 61),
        ("rgb24", 97 * 61 * 3),
        ("yuyv422", 98 * 61 * 2),
        ("nv12", 97 * 61 + 98 * 31),
        ("yuv444p10le", 97 * 61 * 6),
        ("rgba64le", 97 * 61 * 8),
    ] {
        let raw = run(&["--width", "97", "--height", "61", "--raw-output", format]);
        assert_done(&raw);
        assert_eq!(raw.stdout.len(), 3 * bytes, "{format}");
    }
    assert_eq!(run(&["--raw-output", "pal8"]).status.code(), Some(2));
    let result = plain(&folder, &["--raw-output", "gray"], "in.mkv", "out.mkv");
    assert_refused(&result, &["--raw-output", "name - instead of out.mkv"]);
}

#[test]
fn json_says_what_people_read() {
    let folder = TempDir::new().unwrap();
    clip(&folder.path().join("in.mp4"), 3);
    let mut command = Command::new(env!("CARGO_BIN_EXE_starsr"));
    command.args(["upscale", "--json", "--strength", "0", "in.mp4", "out.mp4"]);
    let result = command.current_dir(folder.path()).output().unwrap();
    assert_done(&result);
    let lines = String::from_utf8(result.stdout).unwrap();
    let events: Vec<Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let event = |kind: &str| events.iter().find(|event| event["event"] == kind).unwrap();
    assert_eq!((&event("input")["codec"], &event("input")["width"]), (&"H.264".into(), &48.into()));
    assert_eq!(
        (&event("output")["model"], &event("output")["width"]),
        (&"nano2".into(), &192.into())
    );
    assert_eq!((&event("done")["frames"], &event("done")["path"]), (&3.into(), &"out.mp4".into()));

    // What FFmpeg decodes is called by its own name, and its length is known.
    ffmpeg(&folder, &format!("{VIDEO} -t 0.2 -c:v mpeg4 in.avi"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_starsr"));
    command.args(["upscale", "--json", "--strength", "0", "in.avi", "out.mkv"]);
    let lines = command.current_dir(folder.path()).output().unwrap().stdout;
    let first = String::from_utf8(lines).unwrap().lines().next().unwrap().to_owned();
    let input: Value = serde_json::from_str(&first).unwrap();
    assert_eq!((&input["codec"], &input["frames"]), (&"MPEG4".into(), &5.into()));
}

#[test]
fn frames_without_a_header_are_read() {
    let folder = TempDir::new().unwrap();
    for format in ["yuv420p", "rgb24", "yuv422p10le"] {
        ffmpeg(&folder, &format!("{VIDEO},format={format} -frames:v 6 -f rawvideo in.raw"));
        let raw = format!("48x32,{format}");
        let options = ["--raw-input", &raw, "--framerate", "10", "--force"];
        assert_done(&plain(&folder, &options, "in.raw", "file.mkv"));
        let shell = "cat in.raw | \"$0\" upscale --quiet --strength 0 \"$@\" - pipe.mkv";
        let mut command = Command::new("sh");
        command.args(["-c", shell, env!("CARGO_BIN_EXE_starsr")]).args(options);
        assert_done(&command.current_dir(folder.path()).output().unwrap());
        for output in ["file.mkv", "pipe.mkv"] {
            let (times, size) = frames(&folder.path().join(output));
            let times: Vec<_> = times.iter().map(|time| time.mseconds()).collect();
            assert_eq!((times, size), (vec![0, 100, 200, 300, 400, 500], (192, 128)), "{format}");
        }
    }
    for (raw, status) in [("48x32", 2), ("0x32,rgb24", 2), ("48x32,rgb 24", 2), ("48x32,rgb25", 1)]
    {
        let result = plain(&folder, &["--raw-input", raw], "in.raw", "out.mkv");
        assert_eq!(result.status.code(), Some(status), "{raw}");
    }
}
