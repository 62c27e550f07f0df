// SPDX-License-Identifier: MPL-2.0

//! Stores that are full, gone or damaged.

use std::fs;
use std::process::Command;
use std::time::Duration;

use starsr_testkit::fixtures::skip;

use super::{FILM, SHORT, Scene, done, frames, parts, refused};

#[test]
fn a_damaged_part_is_made_again() {
    let scene = Scene::new(SHORT, &["--segment-length=9"]);
    let job = |output: &str| {
        let mut command = scene.upscale(output);
        command.arg("--job").arg(scene.path("job"));
        command
    };
    done(&mut job("whole.mkv"));
    let whole = parts(&scene.path("job"));
    let (name, bytes) = &whole[1];
    let path = scene.path("job/parts").join(name);
    let mut altered = bytes.clone();
    altered[bytes.len() / 3] ^= 4;
    let truncated = bytes[..bytes.len() / 2].to_vec();
    for bad in [altered, truncated, whole[0].1.clone()] {
        fs::write(&path, &bad).unwrap();
        let out = scene.path("out.mkv");
        refused(scene.on("job", "join").arg("--quiet").arg(&out), &[name, "starsr work"]);
        assert!(!path.exists() && !out.exists());
        // And without join.
        fs::write(&path, &bad).unwrap();
        let said = done(job("out.mkv").arg("--force"));
        let said = String::from_utf8(said.stderr).unwrap();
        assert!(said.contains(name.as_str()) && said.contains("again"), "{said}");
        assert!(scene.bytes("out.mkv") == scene.bytes("whole.mkv"));
        fs::remove_file(&out).unwrap();
    }
}

/// Runs `script` where `DIR` is a small store of its own; `None` where that is not permitted here.
fn in_small_store(scene: &Scene, script: &str) -> Option<std::process::Output> {
    let store = scene.path("store");
    fs::create_dir_all(&store).unwrap();
    let mount = "mount -t tmpfs -o size=400k none \"$DIR\" 2>/dev/null || exit 77\n";
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &format!("{mount}{script}")]).env("DIR", &store);
    command.env("STARSR", env!("CARGO_BIN_EXE_starsr")).env("IN", &scene.input);
    command.env("OPTIONS", scene.options.join(" "));
    let output = command.output().ok();
    // unshare itself fails with 1, as in a chroot; the scripts have codes of their own.
    let permitted = output.filter(|output| ![Some(1), Some(77)].contains(&output.status.code()));
    let Some(output) = permitted else {
        skip("mounting a small store is not permitted here");
        return None;
    };
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {error}", output.status);
    Some(output)
}

#[test]
fn a_full_disk_ends_the_work_with_one_sentence_and_it_goes_on() {
    let scene = Scene::new(FILM, &["--codec=ffv1"]);
    done(&mut scene.upscale("whole.mkv"));
    let script = "\
        \"$STARSR\" plan -q $OPTIONS --segment-length 30 --job \"$DIR/job\" \"$IN\" || exit 78\n\
        \"$STARSR\" work -q --job \"$DIR/job\" 2> \"$DIR/../said\" && exit 79\n\
        ls -A \"$DIR/job/parts\" \"$DIR/job/claims\" >> \"$DIR/../left\"\n\
        mount -o remount,size=100m \"$DIR\" || exit 80\n\
        \"$STARSR\" work -q --job \"$DIR/job\" || exit 81\n\
        \"$STARSR\" join -q --job \"$DIR/job\" \"$DIR/../out.mkv\" || exit 82\n";
    if in_small_store(&scene, script).is_none() {
        return;
    }
    let said = fs::read_to_string(scene.path("said")).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("no space is left"), "{said}");
    let left = fs::read_to_string(scene.path("left")).unwrap();
    assert!(!left.contains("unfinished") && !left.contains("-1"), "{left}");
    assert_eq!(frames(&scene.path("out.mkv")), frames(&scene.path("whole.mkv")));
}

#[test]
fn a_store_that_cannot_be_written_is_refused_in_one_sentence() {
    let scene = Scene::new(SHORT, &[]);
    let script = "\
        \"$STARSR\" plan -q $OPTIONS --job \"$DIR/job\" \"$IN\" || exit 78\n\
        mount -o remount,ro \"$DIR\" || exit 80\n\
        \"$STARSR\" work -q --job \"$DIR/job\" 2> \"$DIR/../said\" && exit 79\n\
        \"$STARSR\" plan -q $OPTIONS --job \"$DIR/other\" \"$IN\" 2>> \"$DIR/../said\" && exit 79\n\
        \"$STARSR\" status --job \"$DIR/job\" || exit 81\n";
    if in_small_store(&scene, script).is_none() {
        return;
    }
    let said = fs::read_to_string(scene.path("said")).unwrap();
    assert_eq!(said.lines().count(), 2, "{said}");
    assert!(said.lines().all(|line| line.contains("Read-only")), "{said}");
}

#[test]
fn a_store_that_vanishes_ends_the_work_and_it_goes_on() {
    let scene = Scene::new(FILM, &["--codec=ffv1"]);
    done(&mut scene.upscale("whole.mkv"));
    done(&mut scene.plan("job", &["--segment-length=20"]));
    let mut work = scene.on("job", "work");
    let work = work.arg("--quiet").stderr(std::process::Stdio::piped()).spawn().unwrap();
    starsr_testkit::patience::patiently("no part is finished", || {
        std::thread::sleep(Duration::from_millis(5));
        (!parts(&scene.path("job")).is_empty()).then_some(())
    });
    fs::rename(scene.path("job"), scene.path("away")).unwrap();
    let output = work.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("job"), "{said}");
    fs::rename(scene.path("away"), scene.path("job")).unwrap();
    done(scene.on("job", "work").arg("--quiet"));
    done(scene.on("job", "join").arg("--quiet").arg(scene.path("out.mkv")));
    assert_eq!(frames(&scene.path("out.mkv")), frames(&scene.path("whole.mkv")));
}

#[test]
fn failed_segments_are_tried_again_and_reported_while_others_go_on() {
    let scene = Scene::new(SHORT, &["--encoder=identity error-after=20 ! avenc_ffv1"]);
    done(&mut scene.plan("job", &["--segment-length=9"]));
    let plan = scene.planned("job");
    let long = |segment: &&serde_json::Value| {
        let frames = &segment["frames"];
        frames["end"].as_u64().unwrap() - frames["start"].as_u64().unwrap() > 19
    };
    assert!(plan["segments"].as_array().unwrap().iter().all(|segment| !long(&segment)));
    done(scene.on("job", "work").arg("--quiet"));

    let scene = Scene::new(SHORT, &["--encoder=identity error-after=12 ! avenc_ffv1"]);
    done(&mut scene.plan("job", &["--segment-length=13"]));
    refused(scene.on("job", "work").arg("--quiet"), &["failed", "segment"]);
    let status = scene.status("job");
    assert_eq!(status["state"], "failed");
    assert!(!status["done"].as_array().unwrap().is_empty(), "{status}");
    for failed in status["failed"].as_array().unwrap() {
        assert_eq!((&failed["attempts"], &failed["is_final"]), (&3.into(), &true.into()));
    }
    refused(scene.on("job", "join").arg(scene.path("out.mkv")), &["to restore", "failed"]);
}
