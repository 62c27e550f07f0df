// SPDX-License-Identifier: MPL-2.0

//! Formats: those that change midway, those that are asked for, and colours.

use super::*;

#[test]
fn a_shape_that_changes_midway_is_scaled_to_the_first() {
    let folder = TempDir::new().unwrap();
    let (input, output) = (folder.path().join("in.ts"), folder.path().join("out.mp4"));
    let part = |width: u32, height: u32| {
        format!(
            "videotestsrc num-buffers=6 ! video/x-raw,format=I420,width={width},height={height},framerate=25/1 ! join. "
        )
    };
    write(
        &input,
        &format!(
            "concat name=join ! x264enc speed-preset=ultrafast tune=zerolatency ! h264parse ! mpegtsmux ! filesink name=file {}{}",
            part(SIZE.0, SIZE.1),
            part(64, 64)
        ),
    );
    let result = convert(&["--strength", "0"], &input, &output);
    assert_done(&result);
    let error = String::from_utf8_lossy(&result.stderr);
    assert!(error.contains("changes midway from 48x32") && error.contains("to 64x64"), "{error}");
    let (times, size) = frames(&output);
    assert_eq!((times.len(), size), (12, (SIZE.0 * 4, SIZE.1 * 4)));
}

#[test]
fn the_size_asked_for_is_the_size_written() {
    let folder = TempDir::new().unwrap();
    let input = folder.path().join("in.mp4");
    clip(&input, 2);
    for (options, size) in
        [(&["--width", "96"][..], (96, 64)), (&["--width", "100", "--height", "60"], (100, 60))]
    {
        let output = folder.path().join(format!("{}.mp4", size.0));
        assert_done(&convert(options, &input, &output));
        assert_eq!(frames(&output).1, size);
    }
}

#[test]
fn full_range_in_mp4_stays_full() {
    let folder = TempDir::new().unwrap();
    let (input, output) = (folder.path().join("in.mp4"), folder.path().join("out.mkv"));
    carrying::ffmpeg(
        &folder,
        "-f lavfi -i color=black:size=48x32:rate=25,format=gray,geq=lum=255 -frames:v 2 \
         -vf scale=in_range=full:out_range=full,format=yuvj420p -c:v libx264 -crf 1 \
         -color_range pc -colorspace bt709 -color_primaries bt709 -color_trc bt709 in.mp4",
    );
    assert_done(&convert(&["--strength", "0", "--quality", "1"], &input, &output));
    let luma = decoded(&output)[0];
    // White is 255 in the full range and 235 in the other.
    assert!(luma >= 253, "white became {luma}");
}
