// SPDX-License-Identifier: MPL-2.0

//! Several files in one run.

use super::*;

#[test]
fn broken_files_do_not_stop_the_others() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("tapes")).unwrap();
    clip(&path("first.mp4"), 2);
    fs::write(path("broken.mp4"), "no video").unwrap();
    clip(&path("tapes/first.mkv"), 3);
    fs::copy(path("tapes/first.mkv"), path("tapes/second.webm")).unwrap();
    fs::write(path("tapes/notes.txt"), "not a video").unwrap();
    let result = upscale()
        .args(["--preset", "ultrafast", "--output-dir", "out"])
        .args(["first.mp4", "broken.mp4", "tapes"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&result.stderr);
    assert_eq!(result.status.code(), Some(1), "{error}");
    assert!(error.contains("broken.mp4: not a media file"), "{error}");
    assert!(error.contains("1 of 4 files failed"), "{error}");
    for (name, count) in [("first.mp4", 2), ("first.mkv", 3), ("second.mkv", 3)] {
        assert_eq!(frames(&path("out").join(name)).0.len(), count, "{name}");
    }
    assert_eq!(fs::read_dir(path("out")).unwrap().count(), 3);
}

#[test]
fn an_output_must_be_named() {
    let folder = TempDir::new().unwrap();
    let input = folder.path().join("in.mp4");
    clip(&input, 2);
    for (files, words) in [(vec![&input], "OUTPUT is missing"), (vec![&input; 3], "--output-dir")] {
        let result = upscale().args(files).output().unwrap();
        assert_eq!(result.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&result.stderr).contains(words));
    }
}
