// SPDX-License-Identifier: MPL-2.0

//! Which streams of an input are taken, and what `starsr info` says of them.

use serde_json::{Value, json};

use super::carrying::{ffmpeg, main_stream, probe};
use super::parts::plain;
use super::*;

/// A film with two videos, of which the second is the default, two sounds and subtitles.
fn film(folder: &TempDir) {
    fs::write(folder.path().join("in.srt"), "1\n00:00:00,000 --> 00:00:00,300\nHello\n").unwrap();
    let videos =
        "-f lavfi -i color=blue:size=48x32:rate=25 -f lavfi -i color=red:size=64x48:rate=25";
    let sounds = "-f lavfi -i sine=300 -f lavfi -i sine=500 -i in.srt";
    let maps = "-map 0 -map 1 -map 2 -map 3 -map 4 -t 0.4 -c:v libx264 -preset ultrafast -c:a ac3 -c:s copy";
    let tags =
        "-metadata:s:a:0 language=eng -metadata:s:a:1 language=deu -metadata:s:s:0 language=fra";
    let flags = "-disposition:v:0 0 -disposition:v:1 default";
    ffmpeg(folder, &format!("{videos} {sounds} {maps} {tags} {flags} in.mkv"));
}

/// Width, and kind and language of each stream beside the video, of a file in `folder`.
fn kept(folder: &TempDir, name: &str) -> (Value, Vec<String>) {
    let found = probe(&folder.path().join(name));
    let streams = found["streams"].as_array().unwrap().iter().skip(1);
    let describe = |stream: &Value| {
        let language = stream["tags"]["language"].as_str().unwrap_or("und");
        format!("{} {language}", stream["codec_type"].as_str().unwrap())
    };
    (main_stream(&found)["width"].clone(), streams.map(describe).collect())
}

#[test]
fn streams_are_chosen_by_number_and_language() {
    let folder = TempDir::new().unwrap();
    film(&folder);
    let all = vec!["audio eng", "audio deu", "subtitle fra"];
    let cases: [(&[&str], u64, Vec<&str>); 7] = [
        (&[], 256, all.clone()),
        (&["--video", "1"], 192, all.clone()),
        (&["--video", "2"], 256, all),
        (&["--audio", "2"], 256, vec!["audio deu", "subtitle fra"]),
        (&["--audio", "eng", "--no-subtitles"], 256, vec!["audio eng"]),
        (&["--no-audio", "--subtitles", "1"], 256, vec!["subtitle fra"]),
        (&["--no-audio", "--no-subtitles"], 256, vec![]),
    ];
    for (options, width, streams) in cases {
        let options = [&["--force"], options].concat();
        assert_done(&plain(&folder, &options, "in.mkv", "out.mkv"));
        let (found, kept) = kept(&folder, "out.mkv");
        assert_eq!(
            (found, kept),
            (width.into(), streams.iter().map(ToString::to_string).collect())
        );
    }
}

#[test]
fn gstreamer_alone_chooses_too() {
    let folder = TempDir::new().unwrap();
    film(&folder);
    let options = ["--no-ffmpeg", "--video", "1", "--audio", "2", "--no-subtitles"];
    assert_done(&plain(&folder, &options, "in.mkv", "out.mkv"));
    let (width, streams) = kept(&folder, "out.mkv");
    assert_eq!((width, streams.len()), (192.into(), 1));
    assert!(["audio ger", "audio deu"].contains(&streams[0].as_str()), "{streams:?}");
}

#[test]
fn a_choice_of_nothing_is_refused() {
    let folder = TempDir::new().unwrap();
    film(&folder);
    for without in [&[][..], &["--no-ffmpeg"]] {
        for (options, words) in [
            (&["--audio", "1,3"], "--audio 3 is none of the input's 2 audio streams"),
            (&["--subtitles", "en"], "--subtitles en is none of the input's 1 subtitle stream"),
            (&["--video", "3"], "has 2 video streams, and --video is 3"),
        ] {
            let options = [without, &options[..]].concat();
            assert_refused(&plain(&folder, &options, "in.mkv", "out.mkv"), &[words]);
        }
    }
    for list in ["0", "english", ""] {
        let result = plain(&folder, &["--audio", list], "in.mkv", "out.mkv");
        assert_eq!(result.status.code(), Some(2), "{list:?}");
    }
}

fn info(folder: &TempDir, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_starsr"));
    command.arg("info").args(arguments).current_dir(folder.path()).output().unwrap()
}

#[test]
fn info_lists_the_streams_and_what_would_be_lost() {
    let folder = TempDir::new().unwrap();
    film(&folder);
    let result = info(&folder, &["in.mkv"]);
    assert_done(&result);
    let text = String::from_utf8(result.stdout).unwrap();
    for line in [
        "video 1: h264, 48x32, 25 frames/s",
        "video 2: h264, 64x48, 25 frames/s",
        "default, is upscaled",
        "audio 2: ac3, 44100 Hz, mono, deu",
        "subtitle 1: subrip, fra",
        "an .mp4 output would lack:",
        "a further video stream (h264)",
    ] {
        assert!(text.contains(line), "{line:?} is not in:\n{text}");
    }
    let result = info(&folder, &["--json", "in.mkv"]);
    let object: Value = serde_json::from_slice(&result.stdout).unwrap();
    let kinds = object["streams"].as_array().unwrap().iter().map(|stream| &stream["kind"]);
    assert_eq!(kinds.collect::<Vec<_>>(), ["video", "video", "audio", "audio", "subtitle"]);
    assert_eq!(object["not_kept"]["mkv"], json!(["a further video stream (h264)"]));

    fs::write(folder.path().join("text.txt"), "no video").unwrap();
    for (file, words) in [("text.txt", "cannot read"), ("none.mkv", "No such file")] {
        assert_refused(&info(&folder, &[file]), &[file, words]);
    }
}
