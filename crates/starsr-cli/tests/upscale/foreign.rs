// SPDX-License-Identifier: MPL-2.0

//! Files that GStreamer's demuxers read wrongly or in part.

use super::carrying::{assert_same_packets, codecs, ffmpeg, main_stream, probe};
use super::parts::plain;
use super::*;

const VIDEO: &str = "-f lavfi -i testsrc2=size=48x32:rate=25";
const SOUND: &str = "-f lavfi -i sine=sample_rate=48000";
const H264: &str = "-c:v libx264 -preset ultrafast -pix_fmt yuv420p";

/// Upscales `input` in `folder` to `output` there, plainly; gives the messages.
#[track_caller]
fn upscaled(folder: &TempDir, options: &[&str], input: &str, output: &str) -> String {
    let options = [&["--strength", "0"], options].concat();
    let paths = [input, output].map(|name| folder.path().join(name));
    let result = convert(&options, &paths[0], &paths[1]);
    assert_done(&result);
    String::from_utf8_lossy(&result.stderr).into_owned()
}

/// The times of the frames of a file in `folder`, in ms after the first.
fn times(folder: &TempDir, name: &str) -> Vec<u64> {
    let (times, _) = frames(&folder.path().join(name));
    times.iter().map(|time| (*time - times[0]).mseconds()).collect()
}

fn every_40_ms(frames: u64) -> Vec<u64> {
    (0..frames).map(|frame| 40 * frame).collect()
}

#[test]
fn avi_keeps_its_frames_at_their_times() {
    let folder = TempDir::new().unwrap();
    ffmpeg(&folder, &format!("{VIDEO} -frames:v 30 -c:v mpeg4 -q:v 3 -bf 2 -vtag XVID in.avi"));
    upscaled(&folder, &[], "in.avi", "out.mkv");
    assert_eq!(times(&folder, "out.mkv"), every_40_ms(30));

    ffmpeg(&folder, &format!("{VIDEO} -frames:v 3 -c:v rawvideo -pix_fmt bgr24 raw.avi"));
    upscaled(&folder, &[], "raw.avi", "raw.mkv");
    let (times, size) = frames(&folder.path().join("raw.mkv"));
    assert_eq!((times.len(), size), (3, (SIZE.0 * 4, SIZE.1 * 4)));
}

#[test]
fn full_range_in_avi_stays_full() {
    let folder = TempDir::new().unwrap();
    ffmpeg(
        &folder,
        "-f lavfi -i color=white:size=48x32:rate=25 -frames:v 2 -c:v mjpeg -pix_fmt yuvj420p -q:v 2 in.avi",
    );
    upscaled(&folder, &["--quality", "1"], "in.avi", "out.mkv");
    let luma = decoded(&folder.path().join("out.mkv"))[0];
    assert!(luma >= 253, "white became {luma}");
}

#[test]
fn sound_that_is_found_after_the_video_is_kept() {
    let folder = TempDir::new().unwrap();
    ffmpeg(&folder, &format!("{VIDEO} {SOUND} -t 0.4 {H264} -c:a aac in.flv"));
    upscaled(&folder, &[], "in.flv", "out.mp4");
    let [before, after] = ["in.flv", "out.mp4"].map(|name| probe(&folder.path().join(name)));
    assert_same_packets(&before, &after);
    upscaled(&folder, &["--no-ffmpeg"], "in.flv", "without.mkv");
    let packets = packets(&folder.path().join("without.mkv"));
    assert_eq!(packets.len(), 1);
    assert_eq!(times(&folder, "without.mkv"), every_40_ms(10));
}

/// Frames that wait for others are shown late, so that the sound begins before them but comes after
/// the first.
#[test]
fn sound_that_begins_before_the_video_does_not_shift_it() {
    let folder = TempDir::new().unwrap();
    ffmpeg(
        &folder,
        &format!("{VIDEO} {SOUND} -t 0.4 -c:v libx264 -bf 2 -pix_fmt yuv420p -c:a aac in.flv"),
    );
    for options in [&[][..], &["--no-ffmpeg"]] {
        upscaled(&folder, &[options, &["--force"]].concat(), "in.flv", "out.mkv");
        assert_eq!(times(&folder, "out.mkv"), every_40_ms(10), "{options:?}");
    }
}

#[test]
fn one_programme_of_a_broadcast_is_kept_whole() {
    let folder = TempDir::new().unwrap();
    ffmpeg(
        &folder,
        &format!(
            "{VIDEO} {VIDEO} {SOUND} {SOUND} -map 0 -map 1 -map 2 -map 3 -t 0.4 {H264} -c:a mp2 \
             -output_ts_offset 3600 -program title=one:st=0:st=2 -program title=two:st=1:st=3 in.ts"
        ),
    );
    let said = upscaled(&folder, &[], "in.ts", "out.mkv");
    assert!(said.contains("not in the output: 2 streams of other programmes"), "{said}");
    let [mut before, after] = ["in.ts", "out.mkv"].map(|name| probe(&folder.path().join(name)));
    // The first of each kind is the first programme's.
    let streams = before["streams"].as_array_mut().unwrap();
    streams.sort_by_key(|stream| stream["codec_name"].to_string());
    streams.dedup_by_key(|stream| stream["codec_name"].clone());
    assert_eq!(codecs(&before), ["h264", "mp2"]);
    assert_eq!(codecs(&after), ["h264", "mp2"]);
    assert_same_packets(&before, &after);
}

#[test]
fn a_rate_that_changes_midway_ends_nothing() {
    let folder = TempDir::new().unwrap();
    for rate in [25, 50] {
        let source = format!("-f lavfi -i testsrc2=size=48x32:rate={rate}");
        ffmpeg(&folder, &format!("{source} -t 0.2 {H264} -g 5 {rate}.ts"));
    }
    ffmpeg(&folder, "-i concat:25.ts|50.ts -c copy in.ts");
    upscaled(&folder, &[], "in.ts", "out.mkv");
    assert_eq!(times(&folder, "out.mkv"), times(&folder, "in.ts"));
}

#[test]
fn video_that_becomes_interlaced_midway_is_deinterlaced_from_there() {
    let folder = TempDir::new().unwrap();
    ffmpeg(&folder, &format!("{VIDEO} -frames:v 8 -c:v mpeg2video -q:v 2 a.mpg"));
    ffmpeg(
        &folder,
        "-f lavfi -i testsrc2=size=48x32:rate=50 -t 0.32 -vf tinterlace=interleave_top,fieldorder=tff \
         -c:v mpeg2video -q:v 2 -flags +ilme+ildct -top 1 -r 25 b.mpg",
    );
    ffmpeg(&folder, "-i concat:a.mpg|b.mpg -c copy -f mpegts in.ts");
    let said = upscaled(&folder, &[], "in.ts", "out.mkv");
    assert!(said.contains("becomes interlaced midway"), "{said}");
    assert_eq!(times(&folder, "out.mkv"), every_40_ms(16));
}

#[test]
fn a_short_video_beside_long_sound_is_found() {
    let folder = TempDir::new().unwrap();
    ffmpeg(&folder, &format!("{VIDEO} -frames:v 1 {H264} one.mp4"));
    ffmpeg(
        &folder,
        &format!("-i one.mp4 {SOUND} -map 0:v -map 1:a -t 2 -c:v copy -c:a aac in.mp4"),
    );
    let said = upscaled(&folder, &[], "in.mp4", "out.mp4");
    assert!(!said.contains("cut off"), "{said}");
    let [before, after] = ["in.mp4", "out.mp4"].map(|name| probe(&folder.path().join(name)));
    assert_same_packets(&before, &after);
    assert_eq!(codecs(&after), ["h264", "aac"]);
}

#[test]
fn the_video_is_not_the_picture_beside_it() {
    let folder = TempDir::new().unwrap();
    ffmpeg(&folder, &format!("{VIDEO} {SOUND} -t 0.2 {H264} -c:a aac film.mp4"));
    ffmpeg(&folder, "-f lavfi -i testsrc=size=80x60 -frames:v 1 cover.jpg");
    for name in ["in.mov", "in.mkv"] {
        ffmpeg(&folder, &format!("-i cover.jpg -i film.mp4 -map 0 -map 1 -c copy {name}"));
        let output = format!("out.{name}");
        let said = upscaled(&folder, &[], name, &output);
        assert!(said.contains("a further video stream (mjpeg)"), "{said}");
        let (times, size) = frames(&folder.path().join(&output));
        assert_eq!((times.len(), size), (5, (SIZE.0 * 4, SIZE.1 * 4)));
    }
}

#[test]
fn a_still_becomes_a_video_that_plays() {
    let folder = TempDir::new().unwrap();
    for name in ["still.png", "still.tiff", "still.bmp"] {
        ffmpeg(&folder, &format!("{VIDEO} -frames:v 1 {name}"));
        upscaled(&folder, &["--force"], name, "out.mp4");
        let after = probe(&folder.path().join("out.mp4"));
        assert_eq!(after["packets"].as_array().unwrap().len(), 1, "{name}");
        assert_eq!(after["streams"][0]["duration"], "0.040000", "{name}");
    }
}

#[test]
fn formats_that_gstreamer_does_not_know_are_read() {
    let folder = TempDir::new().unwrap();
    for (format, new) in [
        ("yuv444p16", "yuv444p12le"),
        ("yuva444p", "yuva444p10le"),
        ("gray10", "gray16le"),
        ("gbrp16", "gbrap12le"),
        ("rgba64", "gbrap12le"),
        ("ya8", "bgra"),
    ] {
        ffmpeg(&folder, &format!("{VIDEO} -frames:v 2 -c:v ffv1 -pix_fmt {format} in.mkv"));
        let result = plain(&folder, &["--force", "--codec", "ffv1"], "in.mkv", "out.mkv");
        assert_done(&result);
        let words = String::from_utf8(result.stderr).unwrap();
        let notice = "not in the output: 4 of the 16 bits of yuv444p16";
        assert_eq!(words.contains(notice), format == "yuv444p16", "{words}");
        let found = probe(&folder.path().join("out.mkv"));
        assert_eq!(main_stream(&found)["pix_fmt"], new, "{format}");
        assert_eq!(times(&folder, "out.mkv"), every_40_ms(2), "{format}");
    }
}

#[test]
fn deep_video_of_a_variable_rate_is_encoded() {
    let folder = TempDir::new().unwrap();
    let times_in = "setpts=if(mod(N\\,3)\\,N*0.04+0.02\\,N*0.04)/TB,settb=1/1000,format=yuv420p10";
    let encoding = "-fps_mode passthrough -frames:v 9 -c:v ffv1 in.mkv";
    ffmpeg(&folder, &format!("{VIDEO},{times_in} {encoding}"));
    for output in ["out.mkv", "out.mp4"] {
        upscaled(&folder, &[], "in.mkv", output);
        assert_eq!(times(&folder, output), times(&folder, "in.mkv"), "{output}");
        let found = probe(&folder.path().join(output));
        assert_eq!(codecs(&found), ["hevc"]);
    }
}

#[test]
fn sound_of_what_ffmpeg_decodes_is_kept() {
    let folder = TempDir::new().unwrap();
    let encoding = "-t 0.8 -c:v mpeg2video -c:a pcm_s16le";
    ffmpeg(&folder, &format!("{VIDEO} {SOUND} {encoding} in.mxf"));
    for options in [&["--start", "0.4"][..], &["--video", "1", "--start", "0"]] {
        upscaled(&folder, &[options, &["--force"]].concat(), "in.mxf", "out.mkv");
        assert_eq!(codecs(&probe(&folder.path().join("out.mkv"))), ["h264", "pcm_s16le"]);
    }
    // Standard input may be a file, too.
    ffmpeg(&folder, &format!("{VIDEO} {SOUND} -t 0.4 -c:v mpeg4 -bf 2 -c:a mp3 in.avi"));
    let input = fs::File::open(folder.path().join("in.avi")).unwrap();
    let mut command = upscale();
    command.args(["--preset", "ultrafast", "-", "avi.mkv"]).current_dir(folder.path()).stdin(input);
    assert_done(&command.output().unwrap());
    assert_eq!(times(&folder, "avi.mkv"), every_40_ms(10));
    assert_eq!(codecs(&probe(&folder.path().join("avi.mkv"))), ["h264", "mp3"]);
}

#[test]
fn telecined_film_gets_its_frames_back() {
    let folder = TempDir::new().unwrap();
    // Smaller pictures say too little about their fields.
    let film = "-f lavfi -i testsrc2=size=144x96:rate=24000/1001 -t 1";
    let encoding = "-c:v mpeg2video -q:v 2 -flags +ildct+ilme";
    ffmpeg(&folder, &format!("{film} -vf telecine=pattern=23 {encoding} in.mpg"));
    let said = upscaled(&folder, &["--deinterlace=auto"], "in.mpg", "out.mkv");
    assert!(said.contains("is telecined"), "{said}");
    let found = probe(&folder.path().join("out.mkv"));
    assert_eq!(main_stream(&found)["avg_frame_rate"], "24000/1001");
    let count = times(&folder, "out.mkv").len();
    assert!((23..=24).contains(&count), "{count}");

    // What is interlaced has its fields doubled, and what is whole is left alone.
    let fields = "-f lavfi -i testsrc2=size=64x48:rate=50 -t 1 -vf tinterlace=interleave_top";
    ffmpeg(&folder, &format!("{fields} {encoding} fields.mpg"));
    upscaled(&folder, &["--deinterlace=auto"], "fields.mpg", "fields.mkv");
    assert_eq!(times(&folder, "fields.mkv").len(), 50);
    ffmpeg(&folder, &format!("{VIDEO} -t 1 {H264} whole.mp4"));
    upscaled(&folder, &["--deinterlace=auto"], "whole.mp4", "whole.mkv");
    assert_eq!(times(&folder, "whole.mkv"), every_40_ms(25));
}

#[test]
fn mp4_comes_through_a_pipe_as_from_a_file() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    ffmpeg(&folder, &format!("{VIDEO} {SOUND} -t 2 {H264} -g 5 -bf 2 -c:a aac whole.mp4"));
    // Its first second is left out by an edit list, and its index is at the end.
    ffmpeg(&folder, "-ss 1.1 -i whole.mp4 -c copy in.mp4");
    // A fragmented one needs no copy.
    ffmpeg(&folder, "-i whole.mp4 -c copy -movflags frag_keyframe+empty_moov frag.mp4");
    for input in ["in.mp4", "frag.mp4"] {
        upscaled(&folder, &["--force"], input, "file.mkv");
        let shell = "cat \"$0\" | \"$1\" upscale --quiet --force --preset ultrafast --strength 0 - pipe.mkv";
        let mut command = Command::new("sh");
        command.args(["-c", shell, input]).arg(env!("CARGO_BIN_EXE_starsr"));
        assert_done(&command.current_dir(folder.path()).output().unwrap());
        assert_eq!(times(&folder, "pipe.mkv"), times(&folder, "file.mkv"), "{input}");
        if input == "in.mp4" {
            assert_same_packets(&probe(&path("file.mkv")), &probe(&path("pipe.mkv")));
        }
    }
}
