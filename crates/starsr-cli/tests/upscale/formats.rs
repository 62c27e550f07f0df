// SPDX-License-Identifier: MPL-2.0

//! The table of formats in docs/files.md: each is made, upscaled and compared. `make tables` writes it.

use std::collections::BTreeSet;
use std::fmt::Write;

use serde_json::Value;
use starsr_testkit::{documentation, fixtures};

use super::carrying::{ffmpeg, main_stream, probe, run_ffmpeg};
use super::*;

const FRAMES: usize = 10;

/// An input, as FFmpeg makes it from a video, a sound and the other files below.
struct Case {
    name: &'static str,
    file: &'static str,
    /// FFmpeg's options behind the inputs.
    options: &'static str,
}

const fn case(name: &'static str, file: &'static str, options: &'static str) -> Case {
    Case { name, file, options }
}

const VIDEO_ONLY: &str = "-map 0";
const CASES: [Case; 22] = [
    case(
        "Matroska",
        "in.mkv",
        "-map 0 -map 1 -map 2 -map 2 -map_chapters 3 -metadata title=film -attach font.ttf -metadata:s:t mimetype=font/ttf -c:v libx264 -c:a flac -c:s:0 ass -c:s:1 subrip",
    ),
    case("WebM", "in.webm", "-map 0 -map 1 -map 2 -c:v libvpx-vp9 -c:a libopus -c:s webvtt"),
    case(
        "MP4",
        "in.mp4",
        "-map 0 -map 1 -map 2 -map 4 -map_chapters 3 -metadata title=film -c:v:0 libx264 -c:a aac -c:s mov_text -c:v:1 copy -disposition:v:1 attached_pic",
    ),
    case(
        "MP4, HEVC",
        "hevc.mp4",
        "-map 0 -map 1 -c:v libx265 -x265-params log-level=none -c:a ac3",
    ),
    case(
        "QuickTime, ProRes",
        "in.mov",
        "-map 0 -map 1 -timecode 01:00:00:00 -c:v prores_ks -c:a pcm_s16le",
    ),
    case("3GP", "in.3gp", "-map 0 -map 1 -s 128x96 -c:v h263 -c:a aac"),
    case("MPEG transport stream", "in.ts", "-map 0 -map 1 -c:v libx264 -bf 2 -c:a ac3"),
    case("MPEG program stream", "in.mpg", "-map 0 -map 1 -c:v mpeg2video -c:a mp2"),
    case("AVI, MPEG-4", "in.avi", "-map 0 -map 1 -c:v mpeg4 -bf 2 -c:a libmp3lame"),
    case("AVI, Motion JPEG", "mjpeg.avi", "-map 0 -map 1 -c:v mjpeg -c:a pcm_s16le"),
    case("FLV", "in.flv", "-map 0 -map 1 -c:v libx264 -c:a aac"),
    case("Ogg", "in.ogv", "-map 0 -map 1 -c:v libtheora -c:a libvorbis"),
    case("WMV", "in.wmv", "-map 0 -map 1 -c:v wmv2 -c:a wmav2"),
    case(
        "MXF, DNxHR",
        "in.mxf",
        "-map 0 -map 1 -s 256x128 -c:v dnxhd -profile:v dnxhr_sq -pix_fmt yuv422p -c:a pcm_s16le",
    ),
    case("FFV1, 16 bits", "ffv1.mkv", "-map 0 -map 1 -c:v ffv1 -pix_fmt gbrp16 -c:a flac"),
    case("Y4M", "in.y4m", VIDEO_ONLY),
    case("GIF", "in.gif", VIDEO_ONLY),
    case("APNG", "in.apng", VIDEO_ONLY),
    case("PNG, numbered", "in%02d.png", VIDEO_ONLY),
    case("JPEG, numbered", "in%02d.jpg", VIDEO_ONLY),
    case("TIFF, numbered", "in%02d.tiff", VIDEO_ONLY),
    case("WebP, numbered", "in%02d.webp", "-map 0 -c:v libwebp -f image2"),
];

/// Makes the input of a case in `folder`; false where a newer FFmpeg than the table's cannot.
fn make(folder: &TempDir, case: &Case) -> bool {
    let path = |name: &str| folder.path().join(name);
    fs::write(path("s.srt"), "1\n00:00:00,040 --> 00:00:00,300\nHello\n").unwrap();
    fs::write(path("font.ttf"), "no font").unwrap();
    let chapter = "[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=200\ntitle=first\n";
    fs::write(path("c.txt"), format!(";FFMETADATA1\n{chapter}")).unwrap();
    ffmpeg(folder, "-f lavfi -i color=red:size=16x16 -frames:v 1 cover.png");
    let inputs = "-f lavfi -i testsrc2=size=48x32:rate=25 -f lavfi -i sine=sample_rate=48000 -i s.srt -i c.txt -i cover.png";
    let Case { file, options, .. } = case;
    let chapters = if options.contains("-map_chapters") { "" } else { "-map_chapters -1" };
    let words = format!("{inputs} -t 0.4 {options} {chapters} -strict experimental {file}");
    let made = run_ffmpeg(folder, &words);
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success() || !is_tables_ffmpeg(), "{}: {said}", case.name);
    made.status.success()
}

/// The streams beside the video by codec, each with the hashes of its packets, and what is no stream.
fn contents(probe: &Value) -> Vec<(String, Vec<String>)> {
    let main = main_stream(probe);
    let packets = probe["packets"].as_array().unwrap();
    let mut contents = Vec::new();
    for stream in probe["streams"].as_array().unwrap() {
        // MP4 has chapters and timecodes as streams, too.
        let is_data = stream["codec_type"] == "data";
        if stream["index"] == main["index"] || is_data {
            continue;
        }
        let name = if stream["disposition"]["attached_pic"] == 1 {
            "cover"
        } else if stream["codec_type"] == "attachment" {
            "attachment"
        } else {
            stream["codec_name"].as_str().unwrap()
        };
        let own = packets.iter().filter(|packet| packet["stream_index"] == stream["index"]);
        let hash = |packet: &Value| packet["data_hash"].as_str().unwrap_or_default().to_owned();
        contents.push((name.to_owned(), own.map(hash).collect()));
    }
    let has = |tags: &Value, name: &str| {
        [name.to_owned(), name.to_uppercase()].iter().any(|name| tags[name].is_string())
    };
    let rest = [
        ("chapters", probe["chapters"].as_array().is_some_and(|chapters| !chapters.is_empty())),
        ("title", has(&probe["format"]["tags"], "title")),
        ("timecode", has(&main["tags"], "timecode")),
    ];
    contents
        .extend(rest.iter().filter(|(_, is)| *is).map(|(name, _)| ((*name).to_owned(), vec![])));
    contents
}

/// What of the input is in the output as it was, what has become of the rest, and the frames.
fn kept(folder: &TempDir, input: Option<&Value>, file: &str, output: &str) -> (String, usize) {
    let mut command = upscale();
    command.args(["--drop-unsupported", "--force", "--preset", "ultrafast", "--model"]);
    command.arg(fixtures::tiny()).args([file, output]).current_dir(folder.path());
    assert_done(&command.output().unwrap());
    let after = probe(&folder.path().join(output));
    let main = &main_stream(&after)["index"];
    let packets = after["packets"].as_array().unwrap().iter();
    let frames = packets.filter(|packet| packet["stream_index"] == *main).count();
    let Some(before) = input else { return ("–".to_owned(), frames) };
    let (old, mut new) = (contents(before), contents(&after));
    let mut words = Vec::new();
    for (name, hashes) in &old {
        let same = new.iter().position(|(other, found)| {
            // Covers are timed anew, and a text may be packed anew.
            found == hashes && (other == name || !hashes.is_empty())
        });
        if let Some(place) = same {
            new.remove(place);
            words.push(name.clone());
        } else if new.iter().any(|(other, _)| other == name) {
            words.push(format!("{name} packed anew"));
        } else if let Some((other, _)) =
            new.iter().find(|(other, _)| is_text(other) && is_text(name))
        {
            words.push(format!("{name} as {other}"));
        } else {
            words.push(format!("no {name}"));
        }
    }
    (if words.is_empty() { "–".to_owned() } else { words.join(", ") }, frames)
}

fn is_text(codec: &str) -> bool {
    ["ass", "subrip", "mov_text", "webvtt"].contains(&codec)
}

/// Which of FFmpeg and GStreamer decodes the video, as `starsr info` says.
fn reader(folder: &TempDir, file: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_starsr"));
    let result =
        command.args(["info", "--json", file]).current_dir(folder.path()).output().unwrap();
    let info: Value = serde_json::from_slice(&result.stdout).unwrap();
    info["reader"].as_str().unwrap().to_owned()
}

/// Whether FFmpeg is the version that docs/files.md is about.
fn is_tables_ffmpeg() -> bool {
    let said = Command::new("ffmpeg").arg("-version").output().unwrap().stdout;
    let said = String::from_utf8(said).unwrap();
    said.split_whitespace().nth(2).unwrap().starts_with("5.")
}

#[test]
fn the_table_is_what_the_program_does() {
    let mut table =
        "| input | decoded by | frames | in .mkv | in .mp4 |\n| --- | --- | --- | --- | --- |\n"
            .to_owned();
    let mut names = BTreeSet::new();
    for case in &CASES {
        assert!(names.insert(case.name), "{} is there twice", case.name);
        let folder = TempDir::new().unwrap();
        if !make(&folder, case) {
            println!("{} is left out: this FFmpeg cannot make it", case.name);
            continue;
        }
        let is_one_file = !case.file.contains('%');
        let first = case.file.replace("%02d", "01");
        let before = is_one_file.then(|| probe(&folder.path().join(case.file)));
        let (mkv, frames) = kept(&folder, before.as_ref(), case.file, "out.mkv");
        let (mp4, frames_too) = kept(&folder, before.as_ref(), case.file, "out.mp4");
        // FFmpeg 7 encodes fewer frames of Theora.
        let expected = if case.name == "Ogg" && !is_tables_ffmpeg() {
            super::frames(&folder.path().join(case.file)).0.len()
        } else {
            FRAMES
        };
        assert_eq!((frames, frames_too), (expected, expected), "{}", case.name);
        let (name, reader) = (case.name, reader(&folder, &first));
        writeln!(table, "| {name} | {reader} | all | {mkv} | {mp4} |").unwrap();
    }
    // Newer versions put more kinds of sound into MP4.
    if is_tables_ffmpeg() {
        documentation::check("docs/files.md", &[("formats", table)]);
    } else {
        println!("not compared with docs/files.md, which is about FFmpeg 5:\n{table}");
    }
}
