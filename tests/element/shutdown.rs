// SPDX-License-Identifier: MPL-2.0

//! Stopping, wherever the element is at work: with models that never end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use gst::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use starsr_testkit::fixtures;
use starsr_testkit::rig::*;

/// How long each stop took, for the eye: the machine may be busy. That it came back at all is what
/// the tests check, as the work that it stops has no end.
struct Returns {
    what: &'static str,
    times: Vec<Duration>,
}

impl Returns {
    fn new(what: &'static str) -> Self {
        Self { what, times: Vec::new() }
    }

    fn time<T>(&mut self, stop: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let result = stop();
        self.times.push(started.elapsed());
        result
    }
}

impl Drop for Returns {
    fn drop(&mut self) {
        self.times.sort();
        let at = |percent: usize| self.times.get((self.times.len().max(1) - 1) * percent / 100);
        println!(
            "{}: {} stops, median {:.1?}, 90 % {:.1?}, longest {:.1?}",
            self.what,
            self.times.len(),
            at(50),
            at(90),
            at(100)
        );
    }
}

/// Numbers that look random and are the same each time.
struct Random(ChaCha8Rng);

impl Random {
    fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0.next_u64() % end
    }

    fn milliseconds(&mut self, end: u64) -> Duration {
        Duration::from_millis(self.below(end))
    }
}

const CAPS: &str = "video/x-raw,format=GRAY8,width=32,height=24,framerate=25/1";

fn grey_frame(k: u64) -> gst::Buffer {
    let mut buffer = gst::Buffer::from_mut_slice(vec![100; 32 * 24]);
    let b = buffer.make_mut();
    b.set_pts(FRAME * k);
    b.set_duration(FRAME);
    b.set_offset(k);
    buffer
}

type Flow = Result<gst::FlowSuccess, gst::FlowError>;

/// Pushes frames and then the end, until a push fails.
fn pushing(rig: &Rig, frames: u64) -> JoinHandle<Flow> {
    let pad = rig.src.clone();
    thread::spawn(move || {
        for k in 0..frames {
            pad.push(grey_frame(k))?;
        }
        pad.push_event(gst::event::Eos::new());
        Ok(gst::FlowSuccess::Ok)
    })
}

/// Waits until the rig's element has been inside ONNX Runtime, or waiting for it, for a while.
fn wait_for_work(rig: &Rig, thread: &JoinHandle<Flow>) {
    let counts = || (rig.stat("frames-in"), rig.stat("time-convert-in"));
    let mut before = counts();
    loop {
        thread::sleep(Duration::from_millis(20));
        assert!(!thread.is_finished(), "the model is not at work");
        let now = counts();
        if now == before && now.0 > 0 {
            return;
        }
        before = now;
    }
}

fn stop(rig: &Rig, state: Option<gst::State>) {
    match state {
        Some(state) => drop(rig.element.set_state(state).unwrap()),
        None => drop(rig.event(gst::event::FlushStart::new())),
    }
}

/// Every stage, windows on their own and together, whole and in tiles, and the drain of a short
/// clip at its end.
#[test]
fn every_stage_stops_at_once() {
    for role in ["vae_encoder", "denoiser", "vae_decoder"] {
        let mut returns = Returns::new(role);
        for (mode, tile, frames) in [
            ("blend", 0, 20),
            ("blend", 64, 20),
            ("wavefront", 0, 20),
            ("wavefront", 64, 20),
            ("blend", 0, 2),
            ("wavefront", 64, 2),
        ] {
            for state in [None, Some(gst::State::Ready), Some(gst::State::Null)] {
                let (_bundle, element) = endless_starsr(role);
                element.set_property_from_str("window-mode", mode);
                element.set_property("tile-size", tile as u32);
                let rig = Rig::new(element, None);
                rig.start(CAPS);
                let thread = pushing(&rig, frames);
                wait_for_work(&rig, &thread);
                let flow = returns.time(|| {
                    stop(&rig, state);
                    thread.join().unwrap()
                });
                // A drain at the end has no flow to return.
                assert!(
                    frames == 2 || flow == Err(gst::FlowError::Flushing),
                    "{role} {mode}: {flow:?}"
                );
                assert!(rig.buffers().is_empty(), "{role} {mode}");
                assert!(rig.errors().is_empty(), "{role} {mode}");
            }
        }
    }
}

/// Both elements use one session. The one that waits for its turn stops alone, and so does the one
/// that has it.
#[test]
fn an_element_that_waits_for_another_stops_at_once() {
    let mut returns = Returns::new("shared session");
    let bundle = fixtures::tiny_endless("denoiser");
    for state in [None, Some(gst::State::Ready), Some(gst::State::Null)] {
        for first in [0, 1] {
            let rigs = [0, 1].map(|_| {
                let element = starsr(4, 1);
                element.set_property("model-path", bundle.path().to_str().unwrap());
                let rig = Rig::new(element, None);
                rig.start(CAPS);
                rig
            });
            let [one, two] = rigs.each_ref().map(|rig| {
                let thread = pushing(rig, 8);
                wait_for_work(rig, &thread);
                thread
            });
            let mut threads = [Some(one), Some(two)];
            for i in [first, 1 - first] {
                let other = 1 - i;
                let flow = returns.time(|| {
                    stop(&rigs[i], state);
                    threads[i].take().unwrap().join().unwrap()
                });
                assert_eq!(flow, Err(gst::FlowError::Flushing));
                assert!(
                    threads[other].as_ref().is_none_or(|t| !t.is_finished()),
                    "the other stopped too"
                );
            }
        }
    }
}

/// The time that frames take outside ONNX Runtime: large ones, many of them.
#[test]
fn large_frames_stop_at_once() {
    const SIZE: usize = 480;
    let caps = CAPS.replace("width=32,height=24", "width=480,height=480");
    let frame = |k: u64| {
        let mut buffer = gst::Buffer::from_mut_slice(vec![90; SIZE * SIZE]);
        buffer.make_mut().set_pts(FRAME * k);
        buffer
    };
    let mut returns = Returns::new("large frames");
    let mut random = Random::new(3);
    let mut broken_off = 0;
    for round in 0..6 {
        let element = starsr(16, 0);
        element.set_property("strength", 0.5f32);
        element.set_property_from_str("color-fix", "wavelet");
        let rig = Rig::new(element, None);
        rig.start(&caps);
        for k in 0..15 {
            rig.push(frame(k)).unwrap();
        }
        let pad = rig.src.clone();
        let thread = thread::spawn(move || pad.push(frame(15)));
        // Prepared after half a second or so, finished after several.
        thread::sleep(Duration::from_millis(50 + 300 * round) + random.milliseconds(100));
        let flow = returns.time(|| {
            stop(&rig, Some(gst::State::Null));
            thread.join().unwrap()
        });
        // A fast machine may have come to the end before.
        let is_complete = flow.is_ok() && rig.buffers().len() == 16;
        assert!(is_complete || flow == Err(gst::FlowError::Flushing), "{flow:?}");
        broken_off += usize::from(!is_complete);
    }
    assert!(broken_off > 0, "every stop came too late for this test");
}

/// A pipeline without end, and the starsr in it.
fn endless_pipeline(role: &str, steps: u32) -> (tempfile::TempDir, gst::Pipeline, gst::Element) {
    let (bundle, element) = endless_starsr(role);
    element.set_property_from_str("sampler-mode", "normal");
    element.set_property("steps", steps);
    let pipeline = gst::parse::launch(&format!("videotestsrc name=v ! {CAPS} ! fakesink name=f"));
    let pipeline = pipeline.unwrap().downcast::<gst::Pipeline>().unwrap();
    let sink = pipeline.by_name("f").unwrap();
    let filter = sink.static_pad("sink").unwrap().peer().unwrap().parent_element().unwrap();
    filter.unlink(&sink);
    pipeline.add(&element).unwrap();
    gst::Element::link_many([&filter, &element, &sink]).unwrap();
    (bundle, pipeline, element)
}

/// After all that the pipeline plays a clip to its end.
fn check_plays(pipeline: &gst::Pipeline, element: &gst::Element) {
    pipeline.set_state(gst::State::Null).unwrap();
    element.set_property("model-path", fixtures::tiny().to_str().unwrap());
    element.set_property("steps", 1u32);
    pipeline.by_name("v").unwrap().set_property("num-buffers", 21i32);
    let bus = pipeline.bus().unwrap();
    bus.set_flushing(true);
    bus.set_flushing(false);
    super::pipelines::run_with(pipeline, || {
        let stats = element.property::<gst::Structure>("stats");
        let count = |field| stats.get::<u64>(field).unwrap();
        assert_eq!((count("frames-in"), count("frames-out")), (21, 21));
    });
}

fn errors(pipeline: &gst::Pipeline) -> Vec<gst::Message> {
    let bus = pipeline.bus().unwrap();
    std::iter::from_fn(|| bus.pop_filtered(&[gst::MessageType::Error])).collect()
}

#[test]
fn a_storm_of_seeks_is_weathered() {
    for (what, role, steps) in [
        ("seeks in an endless evaluation", "denoiser", 1),
        ("seeks in an endless decoder", "vae_decoder", 1),
    ] {
        let mut returns = Returns::new(what);
        let (_bundle, pipeline, element) = endless_pipeline(role, steps);
        pipeline.set_state(gst::State::Playing).unwrap();
        let mut random = Random::new(1);
        for k in 0..300 {
            thread::sleep(random.milliseconds(if k % 30 == 0 { 60 } else { 8 }));
            let to = gst::ClockTime::from_mseconds(random.below(100_000));
            let seek = returns.time(|| pipeline.seek_simple(gst::SeekFlags::FLUSH, to));
            assert!(seek.is_ok(), "seek {k} to {to}");
        }
        let null = returns.time(|| pipeline.set_state(gst::State::Null));
        null.unwrap();
        assert!(errors(&pipeline).is_empty());
        check_plays(&pipeline, &element);
    }
}

#[test]
fn a_storm_of_state_changes_is_weathered() {
    let mut returns = Returns::new("state changes");
    let (_bundle, pipeline, element) = endless_pipeline("denoiser", 1);
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        // What an application asks meanwhile in other threads.
        scope.spawn(|| {
            let mut random = Random::new(8);
            while !ended.load(Ordering::SeqCst) {
                let to = gst::ClockTime::from_mseconds(random.below(100_000));
                let _ = pipeline.seek_simple(gst::SeekFlags::FLUSH, to);
                let _ = pipeline.query_position::<gst::ClockTime>();
                let _ = pipeline.query(&mut gst::query::Latency::new());
                let _ = element.property::<gst::Structure>("stats");
                thread::sleep(random.milliseconds(10));
            }
        });
        let mut random = Random::new(2);
        for _ in 0..150 {
            let states =
                [gst::State::Playing, gst::State::Paused, gst::State::Ready, gst::State::Null];
            let state = states[random.below(4) as usize];
            returns.time(|| pipeline.set_state(state)).unwrap();
            thread::sleep(random.milliseconds(40));
        }
        returns.time(|| pipeline.set_state(gst::State::Null)).unwrap();
        ended.store(true, Ordering::SeqCst);
    });
    assert!(errors(&pipeline).is_empty(), "{:?}", errors(&pipeline));
    check_plays(&pipeline, &element);
}

/// A model that is merely slow lets frames through now and then.
#[test]
fn a_storm_on_a_slow_model_is_weathered() {
    let mut returns = Returns::new("seeks and state changes with a slow model");
    let (_bundle, pipeline, element) = endless_pipeline("denoiser", 20);
    element.set_property("model-path", fixtures::tiny().to_str().unwrap());
    pipeline.set_state(gst::State::Playing).unwrap();
    let mut random = Random::new(5);
    for k in 0..300u64 {
        thread::sleep(random.milliseconds(12));
        if k % 10 == 9 {
            let state =
                [gst::State::Ready, gst::State::Null, gst::State::Paused][random.below(3) as usize];
            returns.time(|| pipeline.set_state(state)).unwrap();
            pipeline.set_state(gst::State::Playing).unwrap();
        } else {
            let to = gst::ClockTime::from_mseconds(random.below(100_000));
            let flags = gst::SeekFlags::FLUSH | gst::SeekFlags::ACCURATE;
            // Refused while the pipeline is on its way up.
            let _ = returns.time(|| pipeline.seek_simple(flags, to));
        }
    }
    returns.time(|| pipeline.set_state(gst::State::Null)).unwrap();
    assert!(errors(&pipeline).is_empty());
    check_plays(&pipeline, &element);
}

/// An element that waits for its prompts, as another has the text encoder's session.
#[test]
fn setting_up_stops_at_once_and_goes_on() {
    let mut returns = Returns::new("setting up");
    let bundle =
        fixtures::with_graphs(&fixtures::text(), &[("vae_encoder", "encoder_endless.onnx")]);
    let new = || {
        let element = starsr(4, 1);
        element.set_property("model-path", bundle.path().to_str().unwrap());
        Rig::new(element, None)
    };
    let busy = new();
    busy.start(CAPS);
    let working = pushing(&busy, 8);
    wait_for_work(&busy, &working);
    let mut last = None;
    for state in [Some(gst::State::Ready), Some(gst::State::Null), None] {
        let rig = new();
        let pad = rig.src.clone();
        let starting = thread::spawn(move || {
            pad.push_event(gst::event::StreamStart::new("test"));
            pad.push_event(gst::event::Caps::new(&CAPS.parse().unwrap()));
            pad.push_event(gst::event::Segment::new(
                &gst::FormattedSegment::<gst::ClockTime>::new(),
            ));
            pad.push(grey_frame(0))
        });
        thread::sleep(Duration::from_millis(50));
        assert!(!starting.is_finished());
        let flow = returns.time(|| {
            stop(&rig, state);
            starting.join().unwrap()
        });
        assert_eq!(flow, Err(gst::FlowError::Flushing));
        assert!(rig.errors().is_empty());
        last = Some(rig);
    }
    // When its turn comes the flushed one works on frames as if nothing had been.
    busy.event(gst::event::FlushStart::new());
    assert_eq!(working.join().unwrap(), Err(gst::FlowError::Flushing));
    let rig = last.unwrap();
    rig.event(gst::event::FlushStop::new(true));
    rig.segment(gst::ClockTime::ZERO);
    let thread = pushing(&rig, 8);
    wait_for_work(&rig, &thread);
    rig.event(gst::event::FlushStart::new());
    assert_eq!(thread.join().unwrap(), Err(gst::FlowError::Flushing));
    assert!(rig.errors().is_empty());
}
