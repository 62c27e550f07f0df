// SPDX-License-Identifier: MPL-2.0

//! Pictures in and out: one, numbered ones, and folders of them.

use super::carrying::{codecs, ffmpeg, main_stream, probe};
use super::parts::{decoded_small, plain};
use super::*;

const VIDEO: &str = "-f lavfi -i testsrc2=size=48x32:rate=25";

#[test]
fn numbered_pictures_come_and_go() {
    let folder = TempDir::new().unwrap();
    ffmpeg(&folder, &format!("{VIDEO},format=rgb48 -frames:v 12 -start_number 7 in_%03d.png"));
    assert_done(&plain(&folder, &[], "in_%03d.png", "out_%04d.png"));
    let expected: Vec<_> = (7..19).map(|number| format!("out_{number:04}.png")).collect();
    let found: Vec<_> =
        names(&folder).into_iter().filter(|name| !name.starts_with("in_")).collect();
    assert_eq!(found, expected);
    let picture = probe(&folder.path().join("out_0007.png"));
    let video = &picture["streams"][0];
    assert_eq!((&video["width"], &video["height"]), (&192.into(), &128.into()));
    assert_eq!(video["pix_fmt"], "rgb48be");
    assert_refused(&plain(&folder, &[], "in_%03d.png", "out_%04d.png"), &["--force"]);

    assert_done(&plain(&folder, &["--framerate", "10"], "in_%03d.png", "out.mkv"));
    let (times, _) = frames(&folder.path().join("out.mkv"));
    let times: Vec<_> = times.iter().map(|time| time.mseconds()).collect();
    assert_eq!(times, (0..12).map(|frame| 100 * frame).collect::<Vec<_>>());
}

#[test]
fn the_stream_of_a_video_of_pictures_has_its_colours() {
    let folder = TempDir::new().unwrap();
    ffmpeg(&folder, &format!("{VIDEO} -frames:v 3 in_%d.png"));
    for codec in ["av1", "vp9"] {
        assert_done(&plain(&folder, &["--force", "--codec", codec], "in_%d.png", "out.mkv"));
        // This container knows no colours.
        ffmpeg(&folder, "-i out.mkv -c copy out.ivf");
        let space = |name| main_stream(&probe(&folder.path().join(name)))["color_space"].clone();
        assert!(space("out.mkv").is_string(), "{codec}");
        assert_eq!(space("out.ivf"), space("out.mkv"), "{codec}");
        let (times, _) = frames(&folder.path().join("out.mkv"));
        let times: Vec<_> = times.iter().map(|time| time.mseconds()).collect();
        assert_eq!(times, [0, 40, 80], "{codec}");
    }
}

#[test]
fn what_a_killed_run_leaves_of_pictures_is_removed_by_the_next() {
    let folder = TempDir::new().unwrap();
    ffmpeg(&folder, &format!("{VIDEO} -frames:v 2 in_%d.png"));
    let dead = folder.path().join(".out_%d.png.part-dead");
    fs::create_dir(&dead).unwrap();
    fs::write(dead.join(".lock"), "").unwrap();
    fs::write(dead.join("out_1.png"), "half a picture").unwrap();
    // Another run that is still at work.
    let busy = folder.path().join(".out_%d.png.part-busy");
    fs::create_dir(&busy).unwrap();
    let lock = fs::File::create(busy.join(".lock")).unwrap();
    lock.lock().unwrap();
    assert_done(&plain(&folder, &[], "in_%d.png", "out_%d.png"));
    let expected = [".out_%d.png.part-busy", "in_1.png", "in_2.png", "out_1.png", "out_2.png"];
    assert_eq!(names(&folder), expected);
}

#[test]
fn one_picture_becomes_one() {
    let folder = TempDir::new().unwrap();
    ffmpeg(&folder, &format!("{VIDEO} -frames:v 1 still.png"));
    for (output, codec) in
        [("out.png", "png"), ("out.jpg", "mjpeg"), ("out.tiff", "tiff"), ("out.webp", "webp")]
    {
        assert_done(&plain(&folder, &[], "still.png", output));
        let picture = probe(&folder.path().join(output));
        assert_eq!((codecs(&picture), &picture["streams"][0]["width"]), (vec![codec], &192.into()));
    }
    assert_refused(&plain(&folder, &["--codec", "h264"], "still.png", "x.png"), &["--codec"]);
    ffmpeg(&folder, &format!("{VIDEO} -frames:v 2 -c:v ffv1 two.mkv"));
    let result = plain(&folder, &[], "two.mkv", "one.png");
    assert_refused(&result, &["more than one frame", "frame_%05d.png"]);
    assert!(names(&folder).iter().all(|name| !name.starts_with('.') && name != "one.png"));
}

#[test]
fn a_folder_of_pictures_is_a_video_and_a_batch() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    // Names that a pattern would mistake, and 16 bits.
    fs::create_dir(path("[1]*")).unwrap();
    ffmpeg(&folder, &format!("{VIDEO},format=rgb48 -frames:v 4 [1]*/p%03d.png"));
    assert_done(&plain(&folder, &["--framerate", "10"], "[1]*", "out.mkv"));
    let (times, size) = frames(&path("out.mkv"));
    let times: Vec<_> = times.iter().map(|time| time.mseconds()).collect();
    assert_eq!((times, size), (vec![0, 100, 200, 300], (192, 128)));

    assert_done(&plain(&folder, &[], "[1]*", "out_%d.png"));
    let first = probe(&path("out_1.png"));
    assert_eq!(main_stream(&first)["pix_fmt"], "rgb48be");

    let mut batch = upscale();
    batch.args(["--strength", "0", "--output-dir", "out", "[1]*"]).current_dir(folder.path());
    assert_done(&batch.output().unwrap());
    assert_eq!(fs::read_dir(path("out")).unwrap().count(), 4);
    let again = decoded_small(&folder, "out/p004.png");
    assert_eq!(again, decoded_small(&folder, "out_4.png"));

    ffmpeg(&folder, &format!("{VIDEO} -frames:v 1 [1]*/q.jpg"));
    let mixed = plain(&folder, &[], "[1]*", "mixed.mkv");
    assert_refused(&mixed, &["several kinds", ".jpg and .png", "--output-dir"]);
    fs::create_dir(path("empty")).unwrap();
    let empty = plain(&folder, &[], "empty", "empty.mkv");
    assert_refused(&empty, &["a folder without pictures", "--output-dir"]);
}

#[test]
fn parts_of_pictures_are_cut_and_broken_ones_are_named() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("scans")).unwrap();
    for (extension, pattern) in [("tiff", "12:30 in%d.tiff"), ("png", "in%d.png")] {
        let names = format!("scans/{pattern}");
        let mut command = Command::new("ffmpeg");
        command.args(["-v", "error", "-f", "lavfi", "-i", "testsrc2=size=48x32:rate=25"]);
        let made = command.args(["-frames:v", "6", &names]).current_dir(folder.path()).output();
        assert_done(&made.unwrap());
        for input in [names.as_str(), "scans"] {
            let part = ["--framerate", "10", "--start", "0.2", "--duration", "0.3", "--force"];
            assert_done(&plain(&folder, &part, input, "out.mkv"));
            assert_eq!(frames(&path("out.mkv")).0.len(), 3, "{input}");
        }
        fs::write(path("scans").join(pattern.replace("%d", "4")), "no picture").unwrap();
        let broken = plain(&folder, &["--force"], "scans", "broken.mkv");
        let error = String::from_utf8_lossy(&broken.stderr);
        assert_eq!(broken.status.code(), Some(1), "{error}");
        assert!(error.contains("scans: 5 of 6 pictures could be decoded"), "{error}");
        for entry in fs::read_dir(path("scans")).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        assert!(!path("broken.mkv").exists(), "{extension}");
    }
}

#[test]
fn animated_pictures_are_videos_or_refused() {
    let folder = TempDir::new().unwrap();
    ffmpeg(&folder, &format!("{VIDEO} -frames:v 5 in.apng"));
    fs::copy(folder.path().join("in.apng"), folder.path().join("named.png")).unwrap();
    for input in ["in.apng", "named.png"] {
        assert_done(&plain(&folder, &["--force"], input, "out.mkv"));
        assert_eq!(frames(&folder.path().join("out.mkv")).0.len(), 5, "{input}");
    }
    ffmpeg(&folder, &format!("{VIDEO} -frames:v 5 in.webp"));
    let refused = plain(&folder, &[], "in.webp", "webp.mkv");
    assert_refused(&refused, &["in.webp: is an animated WebP", "convert it"]);
}

#[test]
fn a_hundred_pictures_are_a_hundred_pictures() {
    let folder = TempDir::new().unwrap();
    ffmpeg(&folder, "-f lavfi -i testsrc2=size=16x16:rate=25 -frames:v 100 in%d.png");
    assert_done(&plain(&folder, &[], "in%d.png", "out%d.png"));
    assert_eq!(names(&folder).len(), 200);
    assert_done(&plain(&folder, &["--codec", "ffv1"], "out%d.png", "out.mkv"));
    assert_eq!(frames(&folder.path().join("out.mkv")).0.len(), 100);
}
