// SPDX-License-Identifier: MPL-2.0

//! What must be as it was when a job goes on.

use std::fs;

use starsr_testkit::fixtures::{copy_of_tiny, edit, repository};

use super::{SHORT, Scene, done, refused, starsr};

#[test]
fn other_settings_are_refused_by_name() {
    let scene = Scene::new(SHORT, &["--segment-length=9"]);
    let job = |options: &[&str]| {
        let mut command = scene.upscale("out.mkv");
        command.arg("--job").arg(scene.path("job")).args(options);
        command
    };
    done(&mut scene.plan("job", &["--steps=2"]));
    refused(&mut job(&[]), &["--steps is not given", "it is 2"]);
    refused(&mut job(&["--steps=3"]), &["--steps is 3", "it is 2"]);
    let words = ["--set is seed=4", "it is not given"];
    refused(&mut job(&["--steps=2", "--set=seed=4"]), &words);
    refused(&mut scene.plan("job", &["--steps=1"]), &["--steps is 1"]);
    // How a machine works is no setting of the job.
    done(&mut job(&["--steps=2", "--threads=1", "--provider=cpu", "--set=device=0"]));
    refused(scene.on("job", "work").arg("--set=seed=4"), &["seed", "starsr plan"]);
}

#[test]
fn another_input_is_refused() {
    let scene = Scene::new(SHORT, &[]);
    done(&mut scene.plan("job", &[]));
    let mut bytes = fs::read(&scene.input).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&scene.input, &bytes).unwrap();
    let content = ["in.mkv", "not the input of the plan", "content"];
    refused(scene.upscale("out.mkv").arg("--job").arg(scene.path("job")), &content);
    bytes.truncate(middle);
    fs::write(&scene.input, &bytes).unwrap();
    refused(scene.on("job", "work").arg("--quiet"), &["not the input of the plan", "bytes"]);
    fs::remove_file(&scene.input).unwrap();
    refused(scene.on("job", "work").arg("--quiet"), &["in.mkv", "No such file"]);
}

#[test]
fn another_bundle_is_refused() {
    let mut scene = Scene::new(SHORT, &[]);
    let bundle = copy_of_tiny();
    scene.options = vec![format!("--model={}", bundle.path().display())];
    done(&mut scene.plan("job", &[]));
    let before = fs::read(bundle.path().join("bundle.toml")).unwrap();
    edit(bundle.path(), |text| text.replace("steps = 1", "steps = 2"));
    refused(scene.on("job", "work").arg("--quiet"), &["tiny", "not the one of the plan"]);
    refused(scene.upscale("out.mkv").arg("--job").arg(scene.path("job")), &["tiny"]);
    // A worker may have the bundle elsewhere.
    let elsewhere = copy_of_tiny();
    fs::write(elsewhere.path().join("bundle.toml"), before).unwrap();
    done(scene.on("job", "work").arg("--quiet").arg("--model").arg(elsewhere.path()));
    scene.options = vec![format!("--model={}", elsewhere.path().display())];
    fs::remove_dir_all(scene.path("job/parts")).unwrap();
    fs::create_dir(scene.path("job/parts")).unwrap();
    let mut job = scene.upscale("out.mkv");
    done(job.arg("--workers=2").arg("--job").arg(scene.path("job")));
    let other = repository("models/nano2");
    let mut work = scene.on("job", "work");
    refused(work.arg("--model").arg(other), &["is nano2", "it is tiny", "--model"]);
}

#[test]
fn another_version_is_refused() {
    let scene = Scene::new(SHORT, &[]);
    done(&mut scene.plan("job", &[]));
    let plan = scene.path("job/plan.json");
    let text = fs::read_to_string(&plan).unwrap();
    fs::write(&plan, text.replace("\"version\": 1", "\"version\": 2")).unwrap();
    for command in ["work", "status"] {
        refused(&mut scene.on("job", command), &["version 2", "version 1"]);
    }
    fs::write(&plan, &text[..text.len() / 2]).unwrap();
    refused(&mut scene.on("job", "work"), &["plan.json", "damaged"]);
    fs::write(&plan, &text).unwrap();
    fs::write(scene.path("job/frames.bin"), "nothing").unwrap();
    refused(&mut scene.on("job", "work"), &["frames.bin", "damaged"]);
}

#[test]
fn folders_that_are_no_jobs_are_refused() {
    let scene = Scene::new(SHORT, &[]);
    fs::create_dir(scene.path("photos")).unwrap();
    fs::write(scene.path("photos/me.jpg"), "me").unwrap();
    refused(&mut scene.plan("photos", &[]), &["photos", "not empty"]);
    refused(&mut scene.on("photos", "work"), &["photos", "no plan"]);
    refused(&mut scene.on("nowhere", "status"), &["nowhere", "no plan"]);
    assert_eq!(fs::read_dir(scene.path("photos")).unwrap().count(), 1);
    refused(
        starsr("plan").arg("--job").arg(scene.path("j")).arg(scene.folder.path()),
        &["regular file"],
    );
}

#[test]
fn options_that_do_not_go_together_are_wrong_usage() {
    let scene = Scene::new(SHORT, &[]);
    let cases: [&[&str]; 4] = [
        &["--workers=2"],
        &["--resume", "--job=x"],
        &["--resume", "--preview"],
        &["--job=x", "--estimate"],
    ];
    for options in cases {
        let output = scene.upscale("out.mkv").args(options).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{options:?}");
    }
    refused(scene.upscale("out.png").arg("--resume"), &["out.png"]);
    assert_eq!(scene.names(), ["in.mkv"]);
}

#[test]
fn help_names_what_a_plan_takes() {
    let help = String::from_utf8(done(starsr("plan").arg("--help")).stdout).unwrap();
    for (word, is_there) in [("--steps", true), ("--job", true), ("--force", false)] {
        assert_eq!(help.contains(word), is_there, "{word}: {help}");
    }
}
