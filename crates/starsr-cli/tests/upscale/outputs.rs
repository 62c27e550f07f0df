// SPDX-License-Identifier: MPL-2.0

//! What becomes of finished work, and of what killed runs leave.

use std::os::unix::fs::symlink;

use super::*;

fn parts(folder: &TempDir) -> Vec<String> {
    names(folder).into_iter().filter(|name| name.contains(".part-")).collect()
}

/// Starts a run and waits until it has begun its hidden file.
pub fn begin(folder: &TempDir, input: &Path, output: &Path) -> Child {
    let before = parts(folder);
    let mut child = upscale()
        .args(["--preset", "ultrafast"])
        .args([input, output])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    patiently("the hidden file does not appear", || {
        assert!(child.try_wait().unwrap().is_none(), "the program ended early");
        std::thread::sleep(Duration::from_millis(20));
        parts(folder).iter().any(|part| !before.contains(part)).then_some(())
    });
    child
}

#[test]
fn an_output_that_appears_meanwhile_is_kept_and_so_is_the_video() {
    let folder = TempDir::new().unwrap();
    let (input, output) = (folder.path().join("in.mp4"), folder.path().join("out.mp4"));
    clip(&input, 12);
    let child = begin(&folder, &input, &output);
    fs::write(&output, "another program's").unwrap();
    fs::write(folder.path().join("out-2.mp4"), "another program's").unwrap();
    let result = child.wait_with_output().unwrap();
    assert_done(&result);
    let error = String::from_utf8_lossy(&result.stderr);
    for word in ["out.mp4: File exists", "out-3.mp4"] {
        assert!(error.contains(word), "{error}");
    }
    assert_eq!(names(&folder), ["in.mp4", "out-2.mp4", "out-3.mp4", "out.mp4"]);
    assert_eq!(fs::read_to_string(&output).unwrap(), "another program's");
    assert_upscaled(&input, &folder.path().join("out-3.mp4"));
}

#[test]
fn a_link_to_nowhere_is_only_replaced_on_request() {
    let folder = TempDir::new().unwrap();
    let (input, output) = (folder.path().join("in.mp4"), folder.path().join("out.mp4"));
    clip(&input, 3);
    symlink("nowhere", &output).unwrap();
    assert_refused(&convert(&[], &input, &output), &["out.mp4", "symbolic link", "--force"]);
    assert_eq!(names(&folder), ["in.mp4", "out.mp4"]);
    assert_done(&convert(&["--force"], &input, &output));
    assert_upscaled(&input, &output);
}

#[test]
fn what_a_killed_run_leaves_is_removed_by_the_next() {
    let folder = TempDir::new().unwrap();
    let (input, output) = (folder.path().join("in.mp4"), folder.path().join("out.mp4"));
    let long = folder.path().join("long.mp4");
    clip(&input, 3);
    clip(&long, 3000);
    let mut killed = begin(&folder, &long, &output);
    killed.kill().unwrap();
    killed.wait().unwrap();
    let leftovers = parts(&folder);
    assert_eq!(leftovers.len(), 1);
    // A run that is still at work keeps its file.
    let mut working = begin(&folder, &long, &output);
    let left = parts(&folder);
    assert!(left.len() == 1 && left != leftovers, "{left:?}");
    assert_done(&convert(&[], &input, &output));
    assert_eq!(parts(&folder), left);
    working.kill().unwrap();
    working.wait().unwrap();
    assert_done(&convert(&["--force"], &input, &output));
    assert_eq!(names(&folder), ["in.mp4", "long.mp4", "out.mp4"]);
}
