// SPDX-License-Identifier: MPL-2.0

//! Engines that run the same graphs in the same way share their sessions.

use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use ndarray::Array4;
use starsr::Cancel;
use starsr::bundle::{Bundle, Role};
use starsr::model::Model;
use starsr::runtime::{Engine, GraphTimes, Options, Provider};
use starsr::{Error, Result};
use starsr_testkit::{fixtures, stand_in::velocity};

fn load(bundle: &Path, threads: usize, cancel: &Cancel) -> Engine {
    let options = Options {
        library: Some(fixtures::onnx_runtime()),
        provider: Provider::Cpu,
        threads,
        ..Options::default()
    };
    Engine::load(&Bundle::open(bundle).unwrap(), &options, cancel).unwrap()
}

fn pattern(frames: usize, shift: usize) -> Array4<f32> {
    Array4::from_shape_fn((frames, 48, 6, 8), |(f, c, y, x)| {
        ((f * 31 + c * 7 + y * 5 + x * 3 + shift) % 17) as f32 / 17.0 - 0.5
    })
}

/// A prediction in a thread of its own: of `t` million rounds of the endless bundle.
struct Prediction {
    outcome: mpsc::Receiver<Result<Array4<f32>>>,
    stats: GraphTimes,
}

impl Prediction {
    fn start(mut engine: Engine, t: i64) -> Self {
        let stats = engine.stats();
        let (done, outcome) = mpsc::channel();
        thread::spawn(move || {
            let x = pattern(2, 0);
            done.send(velocity(&mut engine, x.view(), t, x.view(), None))
        });
        Self { outcome, stats }
    }

    /// Whether its ControlNet has run, after which comes the endless part.
    fn has_begun(&self) -> bool {
        self.stats.runs(Role::ControlNet) > 0
    }

    fn is_running(&self) -> bool {
        matches!(self.outcome.try_recv(), Err(mpsc::TryRecvError::Empty))
    }

    fn wait(&self) -> Result<Array4<f32>> {
        self.outcome.recv().expect("a prediction has an outcome")
    }
}

fn wait_until(done: impl Fn() -> bool) {
    while !done() {
        thread::sleep(Duration::from_millis(1));
    }
}

const FOR_EVER: i64 = 999;

#[test]
fn engines_take_turns_and_each_is_cancelled_alone() {
    let bundle = fixtures::tiny_with(&[("denoiser", "denoiser_endless.onnx")]);
    // One of the two runs and the other waits for it, whichever is cancelled first.
    for order in [[0, 1], [1, 0]] {
        let cancels = [Cancel::default(), Cancel::default()];
        let predictions =
            [0, 1].map(|i| Prediction::start(load(bundle.path(), 1, &cancels[i]), FOR_EVER));
        wait_until(|| predictions.iter().any(Prediction::has_begun));
        assert!(!predictions.iter().all(Prediction::has_begun), "both run at once");
        for (i, k) in order.into_iter().enumerate() {
            cancels[k].set(true);
            assert!(matches!(predictions[k].wait(), Err(Error::Cancelled)));
            assert!(i == 1 || predictions[1 - k].is_running());
        }
    }
}

#[test]
fn only_what_runs_alike_is_shared() {
    let bundle = fixtures::tiny_with(&[("denoiser", "denoiser_endless.onnx")]);
    let other_file = fixtures::tiny_with(&[("denoiser", "denoiser_endless.onnx")]);
    let cancel = Cancel::default();
    let engine = load(bundle.path(), 1, &cancel);
    let alike = load(bundle.path(), 1, &Cancel::default());
    let others = [
        load(bundle.path(), 2, &Cancel::default()),
        load(other_file.path(), 1, &Cancel::default()),
    ];
    assert!(engine.shares_graphs_with(&alike));
    assert!(others.iter().all(|other| !engine.shares_graphs_with(other)));

    let running = Prediction::start(engine, FOR_EVER);
    wait_until(|| running.has_begun());
    for other in others {
        Prediction::start(other, 0).wait().unwrap();
    }
    let alike = Prediction::start(alike, 0);
    assert!(alike.is_running() && running.is_running());
    cancel.set(true);
    alike.wait().unwrap();
}

#[test]
fn results_do_not_depend_on_who_else_runs() {
    let load = || load(&fixtures::tiny(), 1, &Cancel::default());
    let run = |engine: &mut Engine, k: usize| {
        let x = pattern(1 + k % 3, k);
        let pixels = engine.decode(x.view()).unwrap();
        (
            velocity(engine, x.view(), 500, x.view(), None).unwrap(),
            engine.encode(pixels.view()).unwrap(),
        )
    };
    let mut alone = load();
    let expected: Vec<_> = (0..30).map(|k| run(&mut alone, k)).collect();
    thread::scope(|scope| {
        for worker in 0..3 {
            let expected = &expected;
            scope.spawn(move || {
                let mut engine = load();
                for k in (0..30).map(|k| (k * 7 + worker * 11) % 30) {
                    assert!(run(&mut engine, k) == expected[k], "{k}");
                }
            });
        }
    });
}
