// SPDX-License-Identifier: MPL-2.0

//! What FFmpeg carries from the input to the output. FFmpeg also makes the inputs: GStreamer's
//! muxers cannot.

use serde_json::{Value, json};

use super::*;

/// Runs FFmpeg in `folder` to make a file there.
pub fn ffmpeg(folder: &TempDir, arguments: &str) {
    assert_done(&run_ffmpeg(folder, arguments));
}

/// Runs FFmpeg in `folder`.
pub fn run_ffmpeg(folder: &TempDir, arguments: &str) -> Output {
    let mut command = Command::new("ffmpeg");
    command.args(["-nostdin", "-v", "error", "-y"]).args(arguments.split_whitespace());
    command.current_dir(folder.path()).output().expect("FFmpeg is installed")
}

/// What ffprobe says about a file.
pub fn probe(path: &Path) -> Value {
    let shown = ["-show_streams", "-show_chapters", "-show_format", "-show_packets"];
    let mut command = Command::new("ffprobe");
    command.args(["-v", "error", "-of", "json", "-show_data_hash", "md5"]).args(shown).arg(path);
    serde_json::from_slice(&command.output().expect("FFmpeg is installed").stdout).unwrap()
}

fn is_video(stream: &Value) -> bool {
    stream["codec_type"] == "video" && stream["disposition"]["attached_pic"] == 0
}

/// Codec, flags and tags of each stream beside the video, in the order of the file.
fn streams(probe: &Value) -> Vec<Value> {
    let tags = |stream: &Value| {
        let mut tags = stream["tags"].clone();
        if let Some(tags) = tags.as_object_mut() {
            tags.retain(|name, _| !["DURATION", "ENCODER"].contains(&name.as_str()));
        }
        tags
    };
    let streams = probe["streams"].as_array().unwrap().iter().filter(|stream| !is_video(stream));
    streams
        .map(|stream| json!([stream["codec_name"], stream["disposition"], tags(stream)]))
        .collect()
}

/// The codecs of all streams.
pub fn codecs(probe: &Value) -> Vec<&str> {
    let streams = probe["streams"].as_array().unwrap().iter();
    streams.map(|stream| stream["codec_name"].as_str().unwrap()).collect()
}

/// The video, its flags and its tags.
pub fn main_stream(probe: &Value) -> &Value {
    probe["streams"].as_array().unwrap().iter().find(|stream| is_video(stream)).unwrap()
}

/// The hashes of the packets of `stream`, and their times against the first frame of the video.
fn hashes(probe: &Value, stream: &Value) -> (Vec<String>, Vec<f64>) {
    let time = |packet: &Value| packet["pts_time"].as_str().unwrap().parse::<f64>().unwrap();
    let packets_of = |stream: &Value| {
        let index = stream["index"].clone();
        let packets = probe["packets"].as_array().unwrap().iter();
        packets.filter(move |packet| packet["stream_index"] == index)
    };
    // What an edit list hides has a negative time.
    let shown = packets_of(main_stream(probe)).map(time).filter(|time| *time >= 0.0);
    let first = shown.fold(f64::INFINITY, f64::min);
    packets_of(stream)
        .map(|packet| (packet["data_hash"].as_str().unwrap().to_owned(), time(packet) - first))
        .unzip()
}

/// The streams beside the video have the same packets at the same times.
#[track_caller]
pub fn assert_same_packets(before: &Value, after: &Value) {
    let others = |probe: &Value| -> Vec<Value> {
        let streams = probe["streams"].as_array().unwrap().iter();
        let timed = |stream: &&Value| {
            ["audio", "subtitle"].contains(&stream["codec_type"].as_str().unwrap_or_default())
        };
        streams.filter(timed).cloned().collect()
    };
    let (old, new) = (others(before), others(after));
    assert_eq!(old.len(), new.len());
    for (old, new) in old.iter().zip(&new) {
        let ((hashes_before, times_before), (hashes_after, times_after)) =
            (hashes(before, old), hashes(after, new));
        assert_eq!(hashes_after, hashes_before, "{}", old["codec_name"]);
        for (old, new) in times_before.iter().zip(&times_after) {
            assert!((old - new).abs() < 0.0021, "{old} s became {new} s");
        }
    }
}

const CHAPTERS: &str = ";FFMETADATA1
title=The title: \"A & B\" < C
[CHAPTER]
TIMEBASE=1/1000
START=0
END=200
title=One
[CHAPTER]
TIMEBASE=1/1000
START=200
END=400
title=Two \u{fc}
";

const STYLED: &str = "[Script Info]
ScriptType: v4.00+
[V4+ Styles]
Format: Name, Fontname, Fontsize
Style: Default,Arial,12
[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
Dialogue: 0,0:00:00.10,0:00:00.30,Default,,0,0,0,,{\\pos(64,20)}Hello
";

/// Writes the parts that FFmpeg puts together.
fn parts(folder: &TempDir, frames: u32) {
    clip(&folder.path().join("video.mkv"), frames);
    fs::write(folder.path().join("chapters.txt"), CHAPTERS).unwrap();
    fs::write(folder.path().join("styled.ass"), STYLED).unwrap();
    fs::write(folder.path().join("font.ttf"), [0; 300]).unwrap();
}

#[test]
fn matroska_keeps_styles_flags_fonts_chapters_and_tags() {
    let folder = TempDir::new().unwrap();
    let (input, output) = (folder.path().join("in.mkv"), folder.path().join("out.mkv"));
    parts(&folder, 10);
    ffmpeg(
        &folder,
        "-i video.mkv -f lavfi -t 0.4 -i sine=sample_rate=48000 -i styled.ass -i chapters.txt \
         -map 0 -map 1 -map 1 -map 2 -map_metadata 3 -c:v copy -c:a:0 ac3 -c:a:1 libopus -c:s copy \
         -metadata:s:v language=jpn -metadata:s:a:0 language=eng -metadata:s:a:1 title=Kommentar \
         -metadata:s:s language=fra -disposition:s forced -disposition:a:1 comment -attach font.ttf \
         -metadata:s:t mimetype=application/x-truetype-font in.mkv",
    );
    assert_done(&convert(&["--strength", "0"], &input, &output));
    let (before, after) = (probe(&input), probe(&output));
    assert_eq!(streams(&after), streams(&before));
    assert_eq!(after["chapters"], before["chapters"]);
    assert_eq!(after["format"]["tags"]["title"], "The title: \"A & B\" < C");
    assert_eq!(main_stream(&after)["tags"]["language"], "jpn");
    assert_same_packets(&before, &after);
    assert_eq!(frames(&output).0.len(), 10);
    assert_eq!(names(&folder).iter().filter(|name| name.contains(".part-")).count(), 0);
}

#[test]
fn mp4_keeps_trimmed_sound_cover_place_and_date() {
    let folder = TempDir::new().unwrap();
    let (input, output) = (folder.path().join("in.mp4"), folder.path().join("out.mp4"));
    // One key frame, so that an edit list hides the part in front of the cut.
    ffmpeg(
        &folder,
        "-f lavfi -i testsrc2=size=48x32:rate=5 -f lavfi -i sine=sample_rate=48000 -t 3 \
         -c:v libx264 -g 100 -c:a aac whole.mp4",
    );
    ffmpeg(&folder, "-f lavfi -i testsrc=size=48x32 -frames:v 1 cover.png");
    ffmpeg(
        &folder,
        "-ss 1.1 -i whole.mp4 -i cover.png -map 0 -map 1 -c copy -disposition:v:1 attached_pic \
         -metadata creation_time=2025-05-04T03:02:01Z -metadata location=+48.1374+011.5755/ \
         -metadata:s:a language=deu in.mp4",
    );
    assert_done(&convert(&["--strength", "0"], &input, &output));
    let (before, after) = (probe(&input), probe(&output));
    assert_eq!(streams(&after), streams(&before));
    for tag in ["creation_time", "location"] {
        assert_eq!(after["format"]["tags"][tag], before["format"]["tags"][tag], "{tag}");
    }
    assert_same_packets(&before, &after);
    assert_eq!(frames(&output).0.len(), frames(&input).0.len());
}

#[test]
fn what_mp4_cannot_hold_is_named_before_the_work() {
    let folder = TempDir::new().unwrap();
    let (input, output) = (folder.path().join("in.mkv"), folder.path().join("out.mp4"));
    parts(&folder, 3);
    ffmpeg(
        &folder,
        "-i video.mkv -i video.mkv -i styled.ass -map 0 -map 1 -map 2 -c copy -attach font.ttf \
         -metadata:s:t mimetype=application/x-truetype-font in.mkv",
    );
    let result = convert(&["--strength", "0"], &input, &output);
    assert_done(&result);
    let error = String::from_utf8_lossy(&result.stderr);
    for words in ["a further video stream (h264)", "the attachment font.ttf", "the styles of ass"] {
        assert!(error.contains(&format!("not in the output: {words}")), "{error}");
    }
    assert_eq!(streams(&probe(&output)).len(), 1);
    assert_eq!(frames(&output).0.len(), 3);
}

#[test]
fn without_ffmpeg_the_video_and_the_sound_are_kept() {
    let folder = TempDir::new().unwrap();
    let (input, output) = (folder.path().join("in.mkv"), folder.path().join("out.mkv"));
    parts(&folder, 3);
    ffmpeg(
        &folder,
        "-i video.mkv -f lavfi -t 0.2 -i sine -map 0 -map 1 -c:v copy -c:a flac in.mkv",
    );
    // The program's own folders are all that the search path needs.
    let mut command = upscale();
    command.args(["--preset", "ultrafast"]).args([&input, &output]).env("PATH", folder.path());
    assert_done(&command.output().unwrap());
    assert_upscaled(&input, &output);
    let sound = |path: &Path| {
        let probe = probe(path);
        let streams = probe["streams"].as_array().unwrap();
        hashes(&probe, streams.iter().find(|stream| stream["codec_type"] == "audio").unwrap()).0
    };
    assert_eq!(sound(&output), sound(&input));
}

/// GStreamer's demuxer of Matroska lets the time begin a little before the first frame, which MP4 leaves
/// out.
#[test]
fn sound_stays_with_video_that_begins_late() {
    let folder = TempDir::new().unwrap();
    let streams = "-f lavfi -i testsrc2=size=48x32:rate=25 -f lavfi -i sine=sample_rate=48000";
    let encoding = "-t 0.8 -c:v libx264 -preset ultrafast -c:a aac -output_ts_offset 100 in.mkv";
    ffmpeg(&folder, &format!("{streams} {encoding}"));
    let input = probe(&folder.path().join("in.mkv"));
    for output in ["out.mkv", "out.mp4", "out.mov"] {
        assert_done(&convert(&[], &folder.path().join("in.mkv"), &folder.path().join(output)));
        assert_same_packets(&input, &probe(&folder.path().join(output)));
    }
    for output in ["part.mkv", "part.mp4"] {
        let cut = ["--start", "0.4"];
        assert_done(&convert(&cut, &folder.path().join("in.mkv"), &folder.path().join(output)));
        let part = probe(&folder.path().join(output));
        let starts: Vec<f64> = part["streams"].as_array().unwrap().iter().map(start).collect();
        // An AAC packet is 21 ms long.
        assert!((starts[0] - starts[1]).abs() < 0.022, "{output}: {starts:?}");
    }
}

/// When a stream begins, in seconds.
fn start(stream: &Value) -> f64 {
    stream["start_time"].as_str().unwrap().parse().unwrap()
}
