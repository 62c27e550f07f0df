// SPDX-License-Identifier: MPL-2.0

//! Several workers, living and dead.

use std::fs::{self, File};
use std::time::{Duration, SystemTime};

use super::{SHORT, Scene, done, frames, starsr};

/// A claim of a worker on another machine.
const FOREIGN: &str =
    r#"{"worker":"elsewhere:1","system":"another","is_locked":true,"beat":3,"frames":0}"#;

#[test]
fn two_workers_on_a_segment_make_it_once() {
    let scene = Scene::new(SHORT, &[]);
    done(&mut scene.plan("job", &["--segment-length=9"]));
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let mut work = scene.on("job", "work");
            work.args(["--segment", "0", "--json"]).stdout(std::process::Stdio::piped());
            work.spawn().unwrap()
        })
        .collect();
    let said = workers.into_iter().map(|worker| {
        let output = worker.wait_with_output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    });
    let said: String = said.collect();
    assert_eq!(said.matches("\"segment\"").count(), 2, "an event and its field: {said}");
    assert_eq!(fs::read_dir(scene.path("job/claims")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(scene.path("job/parts")).unwrap().count(), 1);
}

#[test]
fn workers_share_the_segments() {
    let scene = Scene::new(SHORT, &["--codec=ffv1"]);
    done(&mut scene.upscale("whole.mkv"));
    done(&mut scene.plan("job", &["--segment-length=4"]));
    let workers: Vec<_> = (0..3)
        .map(|_| {
            let mut work = scene.on("job", "work");
            work.args(["--json", "--threads=1"]).stdout(std::process::Stdio::piped());
            work.spawn().unwrap()
        })
        .collect();
    let mut segments = Vec::new();
    for worker in workers {
        let output = worker.wait_with_output().unwrap();
        assert!(output.status.success());
        for line in String::from_utf8(output.stdout).unwrap().lines() {
            let event: serde_json::Value = serde_json::from_str(line).unwrap();
            segments.push(event["segment"].as_u64().unwrap());
        }
    }
    segments.sort_unstable();
    let all = scene.status("job")["segments"].as_u64().unwrap();
    assert_eq!(segments, (0..all).collect::<Vec<_>>(), "each is made once");
    done(scene.on("job", "join").arg("--quiet").arg(scene.path("out.mkv")));
    assert_eq!(frames(&scene.path("out.mkv")), frames(&scene.path("whole.mkv")));
}

#[test]
fn a_clock_that_is_wrong_by_an_hour_does_not_matter() {
    let scene = Scene::new(SHORT, &[]);
    for (job, later) in [("early", false), ("late", true)] {
        done(&mut scene.plan(job, &["--segment-length=18"]));
        let claim = scene.path(job).join("claims/000000-2");
        fs::write(&claim, FOREIGN).unwrap();
        let (now, hour) = (SystemTime::now(), Duration::from_hours(1));
        let time = if later { now + hour } else { now - hour };
        File::open(&claim).unwrap().set_modified(time).unwrap();
        let status = scene.status(job);
        assert_eq!(status["running"][0]["worker"], "elsewhere:1");
        // Another segment first, as nobody knows yet whether the owner lives.
        done(scene.on(job, "work").args(["--quiet", "--next", "--lease=1"]));
        assert_eq!(scene.status(job)["done"], serde_json::json!([1]));
        done(scene.on(job, "work").args(["--quiet", "--lease=1"]));
        assert_eq!(scene.status(job)["state"], "done");
        assert_eq!(fs::read_dir(scene.path(job).join("claims")).unwrap().count(), 0);
    }
}

#[test]
fn a_worker_that_was_killed_here_is_replaced_at_once() {
    let scene = Scene::new(SHORT, &[]);
    done(&mut scene.plan("job", &["--segment-length=18"]));
    let mut work = scene.on("job", "work").arg("--quiet").spawn().unwrap();
    let claim = scene.path("job/claims/000000-1");
    starsr_testkit::patience::patiently("nothing is claimed", || {
        std::thread::sleep(Duration::from_millis(1));
        (claim.exists() || work.try_wait().unwrap().is_some()).then_some(())
    });
    work.kill().unwrap();
    work.wait().unwrap();
    let status = scene.status("job");
    assert_ne!(status["running"][0]["worker"], "", "whose claim is it? {status}");
    // With this lease, waiting for it would count as hanging.
    done(scene.on("job", "work").args(["--quiet", "--lease=86400"]));
    assert_eq!(scene.status("job")["state"], "done");
}

#[test]
fn a_worker_ends_with_its_parent() {
    let scene = Scene::new(SHORT, &[]);
    done(&mut scene.plan("job", &[]));
    let mut work = starsr("work");
    work.arg("--attached").arg("--job").arg(scene.path("job"));
    let output = work.stdin(std::process::Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(130));
}
