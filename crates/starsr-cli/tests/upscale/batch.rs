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
fn seven_of_ten_are_right_and_three_are_named() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut inputs: Vec<_> = (1..=7).map(|number| format!("good{number}.mp4")).collect();
    for (number, name) in (1..).zip(&inputs) {
        clip(&path(name), number);
    }
    let whole = fs::read(path("good7.mp4")).unwrap();
    fs::write(path("cut.mp4"), &whole[..whole.len() / 2]).unwrap();
    fs::write(path("empty.mp4"), "").unwrap();
    // Broken ones first, in the middle and last.
    inputs.insert(0, "cut.mp4".to_owned());
    inputs.insert(4, "missing.mp4".to_owned());
    inputs.push("empty.mp4".to_owned());
    let mut command = upscale();
    command.args(["--preset", "ultrafast", "--output-dir", "out"]).args(&inputs);
    let result = command.current_dir(folder.path()).output().unwrap();
    let error = String::from_utf8_lossy(&result.stderr);
    assert_eq!(result.status.code(), Some(1), "{error}");
    for words in ["cut.mp4: ", "missing.mp4: No such file", "empty.mp4: is empty", "3 of 10 files"]
    {
        assert!(error.contains(words), "{words} is not in: {error}");
    }
    for number in 1..=7 {
        let output = path("out").join(format!("good{number}.mp4"));
        assert_eq!(frames(&output).0.len(), number);
    }
    assert_eq!(fs::read_dir(path("out")).unwrap().count(), 7);
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
