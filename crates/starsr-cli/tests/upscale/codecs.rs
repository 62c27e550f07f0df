// SPDX-License-Identifier: MPL-2.0

//! What the video is encoded as.

use starsr_testkit::fixtures;

use super::carrying::{ffmpeg, main_stream, probe};
use super::*;

#[test]
fn each_codec_goes_where_it_fits() {
    let folder = TempDir::new().unwrap();
    let input = folder.path().join("in.mkv");
    ffmpeg(
        &folder,
        "-f lavfi -i testsrc2=size=48x32:rate=25,format=yuva444p10le -frames:v 3 -c:v ffv1 in.mkv",
    );
    let cases = [
        ("h264", "out.mp4", "h264", "yuv444p10le"),
        ("h265", "out.mp4", "hevc", "yuv444p10le"),
        ("av1", "out.mkv", "av1", "yuv444p"),
        ("vp9", "out.mkv", "vp9", "yuv444p10le"),
        ("prores", "out.mov", "prores", "yuva444p12le"),
        ("ffv1", "out.mkv", "ffv1", "yuva444p10le"),
    ];
    for (codec, name, codec_name, format) in cases {
        let output = folder.path().join(name);
        let options = ["--strength", "0", "--force", "--codec", codec];
        let mut command = upscale();
        let result = command.args(options).arg("--").arg(&input).arg(&output).output().unwrap();
        assert_done(&result);
        let after = probe(&output);
        let video = main_stream(&after);
        assert_eq!(
            (&video["codec_name"], &video["pix_fmt"]),
            (&codec_name.into(), &format.into()),
            "{codec}"
        );
        let said = String::from_utf8_lossy(&result.stderr);
        let keeps_alpha = format.starts_with("yuva");
        assert_eq!(said.contains("without its transparency"), !keeps_alpha, "{codec}: {said}");
        assert_eq!(after["packets"].as_array().unwrap().len(), 3, "{codec}");
    }
}

#[test]
fn a_codec_that_does_not_fit_is_refused_before_the_work() {
    let folder = TempDir::new().unwrap();
    let input = folder.path().join("in.mp4");
    clip(&input, 1);
    for (options, name, words) in [
        (&["--codec", "ffv1"][..], "out.mp4", ["MP4 cannot hold FFV1", ".mkv"]),
        (&["--codec", "prores"], "out.mp4", ["MP4 cannot hold ProRes", ".mov"]),
        (&["--codec", "av1"], "out.mov", ["QuickTime cannot hold AV1", ".mp4 or .mkv"]),
        (&["--codec", "prores", "--quality", "3"], "out.mov", ["--quality", "ProRes"]),
        (&["--codec", "h264", "--quality", "60"], "out.mkv", ["--quality", "50"]),
        (&["--codec", "av1", "--preset", "fast"], "out.mkv", ["--preset", "AV1"]),
    ] {
        let output = folder.path().join(name);
        let mut command = upscale();
        let result = command.args(options).arg("--").arg(&input).arg(&output).output().unwrap();
        assert_refused(&result, &words);
    }
}

#[test]
fn hdr_is_hevc_with_its_metadata() {
    let folder = TempDir::new().unwrap();
    let input = folder.path().join("in.mp4");
    ffmpeg(
        &folder,
        "-f lavfi -i testsrc2=size=128x96:rate=25 -frames:v 3 -vf scale=out_color_matrix=bt2020,format=yuv420p10le \
         -c:v libx265 -preset ultrafast -x265-params \
         log-level=error:hdr10=1:repeat-headers=1:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc:master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1):max-cll=1000,400 \
         -color_primaries bt2020 -color_trc smpte2084 -colorspace bt2020nc -tag:v hvc1 in.mp4",
    );
    let side_data = |path: &Path| {
        let mut command = Command::new("ffprobe");
        command.args(["-v", "error", "-of", "json", "-show_frames", "-read_intervals", "%+#1"]);
        let shown = command.arg(path).output().unwrap().stdout;
        let shown: serde_json::Value = serde_json::from_slice(&shown).unwrap();
        let mut data = shown["frames"][0]["side_data_list"].as_array().unwrap().clone();
        data.retain(|data| {
            let kind = data["side_data_type"].as_str().unwrap();
            kind.contains("Mastering") || kind.contains("light level")
        });
        data.sort_by_key(|data| data["side_data_type"].to_string());
        // GStreamer 1.26 makes a unit less of this one.
        if let Some(white) = data.get_mut(1).filter(|_| gst::version() >= (1, 26, 0, 0))
            && white["white_point_x"] == "15634/50000"
        {
            white["white_point_x"] = "15635/50000".into();
        }
        data
    };
    assert_eq!(side_data(&input).len(), 2);
    let part = ["--strength", "0", "--start", "0.04", "--force"];
    for (name, options) in
        [("out.mp4", &part[..2]), ("out.mkv", &part[..2]), ("out.mp4", &part), ("out.mkv", &part)]
    {
        let output = folder.path().join(name);
        assert_done(&convert(options, &input, &output));
        let after = probe(&output);
        let video = main_stream(&after);
        assert_eq!(
            [&video["codec_name"], &video["pix_fmt"], &video["color_transfer"]],
            ["hevc", "yuv420p10le", "smpte2084"]
        );
        assert_eq!(side_data(&output), side_data(&input), "{name}");
    }
}

#[test]
fn hevc_has_its_headers_once() {
    let folder = TempDir::new().unwrap();
    ffmpeg(&folder, "-f lavfi -i testsrc2=size=64x48:rate=25 -frames:v 3 -c:v ffv1 in.mkv");
    let (input, output) = (folder.path().join("in.mkv"), folder.path().join("out.mp4"));
    assert_done(&convert(&["--strength", "0", "--codec", "h265"], &input, &output));
    ffmpeg(&folder, "-i out.mp4 -map 0:v -c copy -f data out.data");
    let data = fs::read(folder.path().join("out.data")).unwrap();
    // Units behind their lengths; types are in bits 1 to 6 of the first byte.
    let (mut types, mut rest) = (Vec::new(), &data[..]);
    while let Some((length, after)) = rest.split_first_chunk() {
        let (unit, next) = after.split_at(u32::from_be_bytes(*length) as usize);
        types.push(unit[0] >> 1 & 63);
        rest = next;
    }
    let count = |wanted: &[u8]| types.iter().filter(|kind| wanted.contains(kind)).count();
    // Sets of parameters for the video, the sequence and the picture, and three frames.
    assert_eq!([count(&[32]), count(&[33]), count(&[34])], [1, 1, 1], "{types:?}");
    assert_eq!(count(&[0, 1, 19, 20]), 3, "{types:?}");
    assert_eq!(frames(&output).0.len(), 3);
}

#[test]
fn each_codec_has_the_colours_in_its_stream_and_in_the_container() {
    let folder = TempDir::new().unwrap();
    for (transfer, mastering) in [("smpte2084", true), ("arib-std-b67", false)] {
        let hdr10 = "hdr10=1:repeat-headers=1:master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1):max-cll=1000,400:";
        let parameters = format!(
            "{}log-level=error:colorprim=bt2020:transfer={transfer}:colormatrix=bt2020nc",
            if mastering { hdr10 } else { "" }
        );
        ffmpeg(
            &folder,
            &format!(
                "-f lavfi -i testsrc2=size=128x96:rate=25 -frames:v 2 -vf scale=out_color_matrix=bt2020,format=yuv420p10le \
                 -c:v libx265 -x265-params {parameters} in.mkv"
            ),
        );
        for codec in ["h264", "h265", "av1", "vp9", "prores", "ffv1"] {
            let (input, output) = (folder.path().join("in.mkv"), folder.path().join("out.mkv"));
            let mut command = upscale();
            command.args(["--force", "--codec", codec, "--model"]).arg(fixtures::tiny());
            assert_done(&command.args([&input, &output]).output().unwrap());
            let after = probe(&output);
            let video = main_stream(&after);
            assert_eq!(
                [&video["color_space"], &video["color_transfer"], &video["color_primaries"]],
                ["bt2020nc", transfer, "bt2020"],
                "{codec}"
            );
            // What the container says of the display.
            let sides = video["side_data_list"].as_array().into_iter().flatten();
            let brightest: Vec<_> =
                sides.filter_map(|side| side["max_luminance"].as_str()).collect();
            assert_eq!(brightest, if mastering { vec!["1000/1"] } else { vec![] }, "{codec}");
        }
    }
}
