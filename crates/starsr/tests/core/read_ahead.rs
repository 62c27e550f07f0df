// SPDX-License-Identifier: MPL-2.0

//! Frames on their way while the model works in a thread of its own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use ndarray::{Array3, ArrayView4};
use starsr::bundle::Role;
use starsr::model::{Denoiser, Model, Query, Samples};
use starsr::windows::WindowMode;
use starsr::{Cancel, Error, ReadAhead, Received, Result, Settings, Size, Upscaler};
use starsr_testkit::patience::patiently;
use starsr_testkit::stand_in;

const WIDTH: usize = 16;
const HEIGHT: usize = 16;
const MODES: [WindowMode; 2] = [WindowMode::Blend, WindowMode::Wavefront];

/// What a model does when it is asked for a prediction.
enum Deed {
    Predict,
    Fail,
    Panic,
    /// Waits until it is cancelled.
    Wait,
}

/// Does what the test sends, one deed for each prediction; predicts when the test has hung up.
struct StandIn {
    deeds: Receiver<Deed>,
    begun: Sender<()>,
    cancel: Cancel,
}

impl Denoiser for StandIn {
    fn predict(&mut self, query: &Query) -> Result<Vec<Samples>> {
        // The test may not listen any more.
        let _ = self.begun.send(());
        match self.deeds.recv().unwrap_or(Deed::Predict) {
            Deed::Predict => Ok(vec![(&query.x * 0.5 - query.hint).into(); query.conditions.len()]),
            Deed::Fail => {
                Err(Error::Inference { graph: Role::Denoiser, reason: "out of order".into() })
            }
            Deed::Panic => panic!("out of mind"),
            Deed::Wait => loop {
                self.cancel.check()?;
                std::thread::sleep(Duration::from_millis(1));
            },
        }
    }
}

impl Model for StandIn {
    fn encode(&mut self, pixels: ArrayView4<f32>) -> Result<Samples> {
        Ok(stand_in::to_latents(pixels).into())
    }

    fn decode(&mut self, latents: ArrayView4<f32>) -> Result<Samples> {
        Ok(stand_in::to_pixels(latents).into())
    }

    fn cancel_with(&mut self, cancel: &Cancel) -> Result<()> {
        self.cancel = cancel.clone();
        Ok(())
    }
}

/// An upscaler, what its model shall do, and word of each prediction that it begins.
struct Rig {
    upscaler: Upscaler,
    deeds: Sender<Deed>,
    begun: Receiver<()>,
    cancel: Cancel,
}

fn rig(mode: WindowMode) -> Rig {
    let settings = Settings {
        window_mode: Some(mode),
        window_length: Some(6),
        window_overlap: Some(2),
        steps: Some(2),
        strength: Some(1.0),
        threads: 1,
        ..Settings::default()
    };
    let ((deeds, taken), (begin, begun)) = (channel(), channel());
    let model = Box::new(StandIn { deeds: taken, begun: begin, cancel: Cancel::default() });
    let (manifest, cancel) = (stand_in::manifest(), Cancel::default());
    let size = Size::new(WIDTH, HEIGHT);
    let upscaler = Upscaler::new(model, &manifest, &settings, size, cancel.clone()).unwrap();
    Rig { upscaler, deeds, begun, cancel }
}

/// `upscaler`, working in a thread of its own where `is_enabled`.
fn reads_ahead(upscaler: Upscaler, is_enabled: bool) -> ReadAhead {
    ReadAhead::new(upscaler, is_enabled.then_some(Box::new(|| {}))).unwrap()
}

/// A blend that reads ahead, with the rest of its rig.
fn ahead() -> (ReadAhead, Sender<Deed>, Receiver<()>, Cancel) {
    let Rig { upscaler, deeds, begun, cancel } = rig(WindowMode::Blend);
    (reads_ahead(upscaler, true), deeds, begun, cancel)
}

fn frame(number: u64) -> Array3<f32> {
    Array3::from_shape_fn((3, HEIGHT, WIDTH), |(c, y, x)| {
        0.5 + 0.4 * (number as f32 * 0.7 + c as f32 + (y * WIDTH + x) as f32 * 0.37).sin()
    })
}

fn send(upscaler: &mut ReadAhead, numbers: std::ops::Range<u64>) {
    for number in numbers {
        upscaler.send_frame(number, frame(number)).unwrap();
    }
}

/// Receives all frames that there are; whether the clip is drained.
fn receive(upscaler: &mut ReadAhead, out: &mut Vec<Array3<f32>>) -> bool {
    loop {
        match upscaler.receive_frame().unwrap() {
            Received::Frame(frame) => out.push(frame),
            Received::NeedMoreFrames => return false,
            Received::Drained => return true,
        }
    }
}

/// The next frame, which must be there.
fn one(upscaler: &mut ReadAhead) -> Array3<f32> {
    match upscaler.receive_frame() {
        Ok(Received::Frame(frame)) => frame,
        other => panic!("{other:?}"),
    }
}

fn run(upscaler: &mut ReadAhead, frames: u64, step: u64) -> Vec<Array3<f32>> {
    let mut out = Vec::new();
    for number in 0..frames {
        send(upscaler, number..number + 1);
        if (number + 1) % step == 0 {
            assert!(!receive(upscaler, &mut out));
        }
    }
    upscaler.flush();
    assert!(receive(upscaler, &mut out));
    out
}

/// The upscaler's own frames.
fn expected(mode: WindowMode, frames: u64) -> Vec<Array3<f32>> {
    let Rig { mut upscaler, .. } = rig(mode);
    stand_in::run(&mut upscaler, 0..frames, frame, 1)
}

#[test]
fn frames_are_those_of_the_upscaler() {
    for mode in MODES {
        for frames in [1, 6, 7, 40] {
            let expected = expected(mode, frames);
            for (step, is_enabled) in [(1, true), (3, true), (100, true), (1, false), (100, false)]
            {
                let mut upscaler = reads_ahead(rig(mode).upscaler, is_enabled);
                for clip in ["first", "second"] {
                    let out = run(&mut upscaler, frames, step);
                    assert!(out == expected, "{mode:?}, {frames}, {step}, {is_enabled}, {clip}");
                }
                assert_eq!(upscaler.report().stages.frames_out, 2 * frames);
            }
        }
    }
}

#[test]
fn frames_are_announced_within_the_latency() {
    for mode in MODES {
        let (notify, notified) = channel();
        let announce = move || _ = notify.send(());
        let mut upscaler = ReadAhead::new(rig(mode).upscaler, Some(Box::new(announce))).unwrap();
        let (mut out, latency) = (Vec::new(), upscaler.latency());
        for number in 0..100 {
            send(&mut upscaler, number..number + 1);
            receive(&mut upscaler, &mut out);
            while out.len() + latency <= number as usize {
                notified.recv().unwrap();
                receive(&mut upscaler, &mut out);
            }
        }
    }
}

#[test]
fn windows_are_restored_while_frames_come_and_go() {
    let (mut upscaler, deeds, begun, _) = ahead();
    let mut out = Vec::new();
    send(&mut upscaler, 0..6);
    assert!(!receive(&mut upscaler, &mut out));
    // The model is at work, and has not been given leave to finish.
    begun.recv().unwrap();
    send(&mut upscaler, 6..9);
    assert!(!receive(&mut upscaler, &mut out) && out.is_empty());
    send(&mut upscaler, 9..10);
    (0..2).for_each(|_| deeds.send(Deed::Predict).unwrap());
    // With the next window's last frame the present one's frames are there.
    out.push(one(&mut upscaler));
    // The second evaluation of the first window, and the first of the next.
    (0..2).for_each(|_| begun.recv().unwrap());
    for _ in 0..3 {
        out.push(one(&mut upscaler));
    }
    drop(deeds);
    send(&mut upscaler, 10..40);
    upscaler.flush();
    assert!(receive(&mut upscaler, &mut out));
    assert!(out == expected(WindowMode::Blend, 40));
}

#[test]
fn work_is_stopped_by_a_reset_the_end_and_the_callers_flag() {
    let (mut upscaler, deeds, begun, cancel) = ahead();
    for _ in 0..3 {
        deeds.send(Deed::Wait).unwrap();
        send(&mut upscaler, 0..6);
        assert!(!receive(&mut upscaler, &mut Vec::new()));
        begun.recv().unwrap();
        upscaler.reset();
    }
    deeds.send(Deed::Wait).unwrap();
    send(&mut upscaler, 0..6);
    assert!(!receive(&mut upscaler, &mut Vec::new()));
    begun.recv().unwrap();
    cancel.set(true);
    let failed = patiently("the model works on", || upscaler.receive_frame().err());
    assert!(matches!(failed, Error::Cancelled));
    cancel.set(false);
    upscaler.reset();

    // What was begun leaves no trace.
    for deed in [Deed::Predict, Deed::Wait] {
        deeds.send(deed).unwrap();
    }
    send(&mut upscaler, 3..9);
    assert!(!receive(&mut upscaler, &mut Vec::new()));
    (0..2).for_each(|_| begun.recv().unwrap());
    upscaler.reset();
    drop(deeds);
    assert!(run(&mut upscaler, 40, 1) == expected(WindowMode::Blend, 40));

    let (mut upscaler, deeds, begun, _) = ahead();
    deeds.send(Deed::Wait).unwrap();
    send(&mut upscaler, 0..6);
    assert!(!receive(&mut upscaler, &mut Vec::new()));
    begun.recv().unwrap();
    drop(upscaler);

    let (mut upscaler, deeds, begun, _) = ahead();
    deeds.send(Deed::Wait).unwrap();
    send(&mut upscaler, 0..6);
    assert!(!receive(&mut upscaler, &mut Vec::new()));
    begun.recv().unwrap();
    assert!(upscaler.into_model().is_some());
}

#[test]
fn a_window_that_fails_can_be_bypassed() {
    for is_enabled in [false, true] {
        let Rig { upscaler, deeds, .. } = rig(WindowMode::Blend);
        let mut upscaler = reads_ahead(upscaler, is_enabled);
        let fails_at = 2;
        for _ in 0..2 * fails_at {
            deeds.send(Deed::Predict).unwrap();
        }
        deeds.send(Deed::Fail).unwrap();
        drop(deeds);
        let (mut out, mut failures) = (0, 0);
        for number in 0..60 {
            if number < 59 {
                send(&mut upscaler, number..number + 1);
            } else {
                upscaler.flush();
            }
            loop {
                match upscaler.receive_frame() {
                    Ok(Received::Frame(_)) => out += 1,
                    Ok(_) => break,
                    Err(Error::Inference { .. }) => {
                        failures += 1;
                        assert!(upscaler.bypass().unwrap() > 0);
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
        assert_eq!((out, failures, upscaler.report().stages.bypassed), (59, 1, 4));
    }
}

#[test]
fn a_panic_goes_on_in_the_calling_thread() {
    let (mut upscaler, deeds, ..) = ahead();
    deeds.send(Deed::Panic).unwrap();
    send(&mut upscaler, 0..6);
    upscaler.flush();
    let caught = catch_unwind(AssertUnwindSafe(|| drop(upscaler.receive_frame())));
    assert_eq!(caught.unwrap_err().downcast_ref::<&str>(), Some(&"out of mind"));
}

#[test]
fn frames_of_another_size_or_behind_the_end_are_refused() {
    for is_enabled in [false, true] {
        let Rig { upscaler, .. } = rig(WindowMode::Blend);
        let mut upscaler = reads_ahead(upscaler, is_enabled);
        let refused = |upscaler: &mut ReadAhead, pixels| {
            matches!(upscaler.send_frame(0, pixels), Err(Error::Input { .. }))
        };
        assert!(refused(&mut upscaler, Array3::zeros((3, HEIGHT, WIDTH + 1))));
        send(&mut upscaler, 0..1);
        upscaler.flush();
        assert!(refused(&mut upscaler, frame(1)));
        let mut out = Vec::new();
        assert!(receive(&mut upscaler, &mut out) && out.len() == 1);
    }
}
