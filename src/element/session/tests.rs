// SPDX-License-Identifier: MPL-2.0

//! The session with a stand-in model: no pipeline, no pads, no bus.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use gst::prelude::*;
use ndarray::{Array4, ArrayView4};
use starsr::bundle::Role;
use starsr::model::{Denoiser, Query, Samples};
use starsr::{Error, Result};
use starsr_testkit::stand_in;

use super::*;
use crate::element::settings::{OnError, Overload};

const FRAME: gst::ClockTime = gst::ClockTime::from_mseconds(40);
const SIZE: (u32, u32) = (16, 16);
const SCALE: u32 = 4;

/// A model that predicts nothing but zeros, and does what the test asks for meanwhile.
#[derive(Clone, Default)]
struct StandIn {
    evaluations: Arc<AtomicU64>,
    fails: Arc<AtomicBool>,
    /// A clock that each evaluation moves on by a second.
    clock: Option<gst_check::TestClock>,
}

impl Denoiser for StandIn {
    fn predict(&mut self, query: &Query) -> Result<Vec<Samples>> {
        self.evaluations.fetch_add(1, Ordering::SeqCst);
        if let Some(clock) = &self.clock {
            clock.set_time(clock.time() + gst::ClockTime::SECOND);
        }
        if self.fails.load(Ordering::SeqCst) {
            return Err(Error::inference(Role::Denoiser, "it was asked to"));
        }
        Ok(vec![Array4::zeros(query.x.dim()).into(); query.conditions.len()])
    }
}

impl Model for StandIn {
    fn encode(&mut self, pixels: ArrayView4<f32>) -> Result<Samples> {
        Ok(stand_in::to_latents(pixels).into())
    }

    fn decode(&mut self, latents: ArrayView4<f32>) -> Result<Samples> {
        Ok(stand_in::to_pixels(latents).into())
    }

    fn evaluations(&self) -> u64 {
        self.evaluations.load(Ordering::SeqCst)
    }
}

/// A session, and what its stand-in and its statistics share with the test.
struct Bench {
    session: Session,
    model: StandIn,
    cancel: Cancel,
    stats: Arc<Mutex<ElementStats>>,
    facts: Facts,
}

/// Grey frames of which each has a level of its own.
fn formats() -> Formats {
    let info = |scale| {
        gst_video::VideoInfo::builder(gst_video::VideoFormat::Gray8, SIZE.0 * scale, SIZE.1 * scale)
            .fps(gst::Fraction::new(25, 1))
            .build()
            .unwrap()
    };
    Formats { input: info(1), output: info(SCALE) }
}

fn frame(k: u64) -> gst::Buffer {
    let mut buffer = gst::Buffer::from_mut_slice(vec![20 + k as u8; (SIZE.0 * SIZE.1) as usize]);
    let b = buffer.make_mut();
    b.set_pts(FRAME * k);
    b.set_offset(k);
    buffer
}

fn segment(start: gst::ClockTime) -> gst::Event {
    let mut segment = gst::FormattedSegment::<gst::ClockTime>::new();
    segment.set_start(start);
    segment.set_time(start);
    gst::event::Segment::new(&segment)
}

fn custom(name: &str) -> gst::Event {
    gst::event::CustomDownstream::new(gst::Structure::new_empty(name))
}

fn tag() -> gst::Event {
    let mut tags = gst::TagList::new();
    tags.make_mut().add::<gst::tags::Title>(&"title", gst::TagMergeMode::Replace);
    gst::event::Tag::new(tags)
}

impl Bench {
    /// Windows of four frames that share one, and a result that is the plain upscale.
    fn new(change: impl FnOnce(&mut Settings, &mut StandIn)) -> Self {
        gst::init().unwrap();
        let (mut settings, mut model) = (Settings::default(), StandIn::default());
        settings.window_length = 4;
        settings.window_overlap = 1;
        settings.strength = 0.0;
        settings.threads = 1;
        settings.scene_detection = false;
        settings.read_ahead = false;
        change(&mut settings, &mut model);
        let loaded = Loaded {
            model: Box::new(model.clone()),
            times: None,
            manifest: stand_in::manifest(),
            provider: "cpu".into(),
            device: "CPU".into(),
            precision: "float".into(),
            runtime: String::new(),
        };
        let (cancel, stats) = (Cancel::default(), Arc::new(Mutex::new(ElementStats::new(&loaded))));
        let session =
            Session::new(settings, loaded, cancel.clone(), Arc::new(|| {}), stats.clone());
        Self { session, model, cancel, stats, facts: Facts::default() }
    }

    /// A bench that has got caps and a segment.
    fn started(change: impl FnOnce(&mut Settings, &mut StandIn)) -> Self {
        let mut bench = Self::new(change);
        bench.session.configure(&formats(), Prompts::default(), None).unwrap();
        assert!(bench.session.event(segment(gst::ClockTime::ZERO)).is_some());
        bench.session.take_notices();
        bench
    }

    fn push(&mut self, frames: impl IntoIterator<Item = u64>) {
        for k in frames {
            let incoming = self.session.read(frame(k)).unwrap();
            self.session.push(incoming).unwrap();
        }
    }

    /// What leaves: the names of events and the offsets of frames, whose levels are checked.
    fn pull(&mut self) -> std::result::Result<Vec<String>, Failure> {
        let mut left = Vec::new();
        while let Some(outgoing) = self.session.pull(&self.facts)? {
            left.extend(outgoing.events.iter().map(name));
            let mut buffer = gst::Buffer::with_size(formats().output.size()).unwrap();
            self.session.write(outgoing.picture, buffer.make_mut())?;
            let (level, k) = (buffer.map_readable().unwrap()[0], outgoing.skeleton.offset());
            assert!(level.abs_diff(20 + k as u8) <= 1, "frame {k} has the level {level}");
            left.push(k.to_string());
        }
        Ok(left)
    }

    fn drain(&mut self) -> Vec<String> {
        self.session.flush();
        let mut left = self.pull().unwrap();
        left.extend(self.session.drained().iter().map(name));
        left
    }

    /// Waits for no window, in a live pipeline of which frames are due `due` after their running
    /// time.
    fn be_live(&mut self, clock: &gst_check::TestClock, due: gst::ClockTime) {
        self.facts.timing = Some(Timing { clock: clock.clone().upcast(), due: Some(due) });
    }

    fn bypassed(&mut self) -> Vec<(Option<gst::ClockTime>, usize, &'static str)> {
        let notices = self.session.take_notices().into_iter();
        let bypassed = notices.filter_map(|notice| match notice {
            Notice::Bypassed { running_time, frames, reason } => {
                Some((running_time, frames, reason))
            }
            _ => None,
        });
        bypassed.collect()
    }
}

fn name(event: &gst::Event) -> String {
    match event.structure() {
        Some(s) if event.type_() == gst::EventType::CustomDownstream => s.name().to_string(),
        _ => event.type_().name().to_string(),
    }
}

fn names(events: &[gst::Event]) -> Vec<String> {
    events.iter().map(name).collect()
}

#[test]
fn frames_leave_in_order_with_the_events_before_them() {
    let mut bench = Bench::started(|_, _| {});
    assert!(bench.session.event(custom("first")).is_none());
    bench.push(0..2);
    assert!(bench.session.event(tag()).is_none());
    assert!(bench.session.event(custom("second")).is_none());
    bench.push(2..3);
    assert!(bench.pull().unwrap().is_empty());
    bench.push(3..4);
    assert_eq!(bench.pull().unwrap(), ["first", "0", "1", "tag", "second", "2"]);
    assert!(bench.session.event(custom("last")).is_none());
    assert!(bench.session.has_frames());
    assert_eq!(bench.drain(), ["3", "last"]);
    assert!(!bench.session.has_frames());
    let stats = bench.stats.lock();
    assert_eq!((stats.frames_in, stats.frames_out), (4, 4));
}

#[test]
fn only_events_that_may_be_about_a_frame_wait() {
    let mut bench = Bench::started(|_, _| {});
    assert!(bench.session.event(tag()).is_some());
    bench.push(0..1);
    assert!(bench.session.event(tag()).is_none());
    bench.drain();
    assert!(bench.session.event(custom("alone")).is_none());
    // It must not overtake the one that waits.
    assert!(bench.session.event(tag()).is_none());
    assert_eq!(names(&bench.session.drained()), ["alone", "tag"]);
}

#[test]
fn ends_of_all_kinds_end_the_clip() {
    let bench = Bench::started(|_, _| {});
    for event in [
        gst::event::Eos::new(),
        gst::event::Gap::builder(FRAME).build(),
        gst::event::SegmentDone::new(FRAME),
        gst::event::StreamStart::new("other"),
        gst::event::StreamGroupDone::new(gst::GroupId::next()),
        gst_video::StillFrameEvent::builder(true).build(),
        custom("starsr-scene-cut"),
        segment(FRAME),
    ] {
        assert!(bench.session.ends_clip(&event), "{event:?}");
    }
    let mut moved = gst::FormattedSegment::<gst::ClockTime>::new();
    moved.set_time(gst::ClockTime::ZERO);
    moved.set_position(FRAME * 3);
    for event in [
        tag(),
        custom("other"),
        gst_video::StillFrameEvent::builder(false).build(),
        gst::event::Segment::new(&moved),
    ] {
        assert!(!bench.session.ends_clip(&event), "{event:?}");
    }
}

#[test]
fn discontinuities_and_jumps_begin_a_clip() {
    let mut bench = Bench::started(|_, _| {});
    bench.push(0..2);
    let mut discont = frame(2);
    discont.make_mut().set_flags(gst::BufferFlags::DISCONT);
    assert!(bench.session.begins_clip(&discont).unwrap());
    assert!(!bench.session.begins_clip(&frame(4)).unwrap());
    assert!(bench.session.begins_clip(&frame(100)).unwrap());
    assert_eq!(bench.drain(), ["0", "1"]);
    assert!(!bench.session.begins_clip(&frame(100)).unwrap());
}

#[test]
fn the_failure_of_a_drain_is_for_the_next_buffer() {
    let mut bench = Bench::started(|_, _| {});
    for (event, survives) in [
        (segment(FRAME), gst::FlowError::Error),
        (gst::event::StreamStart::new("other"), gst::FlowError::Flushing),
    ] {
        bench.session.keep_failure(survives);
        bench.session.event(event);
        let failure = bench.session.begins_clip(&frame(0)).unwrap_err();
        assert_eq!((failure.flow(), failure.is_silent()), (survives, true));
        assert!(bench.session.begins_clip(&frame(0)).is_ok());
    }
    // What comes after the end plays on.
    bench.session.keep_failure(gst::FlowError::Eos);
    bench.session.event(segment(FRAME));
    assert!(bench.session.begins_clip(&frame(0)).is_ok());
}

#[test]
fn a_scene_waits_for_the_one_before() {
    let mut bench = Bench::started(|settings, _| settings.scene_detection = true);
    // Halves that change places.
    let scene = |k: u64, swapped: bool| {
        let mut buffer = frame(k);
        let mut map = buffer.make_mut().map_writable().unwrap();
        for (i, value) in map.iter_mut().enumerate() {
            *value = if (i as u32 % SIZE.0 < SIZE.0 / 2) == swapped { 220 } else { 30 };
        }
        drop(map);
        buffer
    };
    for k in 0..3 {
        let incoming = bench.session.read(scene(k, false)).unwrap();
        assert!(!incoming.begins_scene, "frame {k}");
        bench.session.push(incoming).unwrap();
    }
    let incoming = bench.session.read(scene(3, true)).unwrap();
    assert!(incoming.begins_scene);
    bench.session.flush();
    for k in 0..3 {
        let outgoing = bench.session.pull(&bench.facts).unwrap().unwrap();
        assert_eq!(outgoing.skeleton.offset(), k);
    }
    assert!(bench.session.pull(&bench.facts).unwrap().is_none());
    bench.session.drained();
    bench.session.push(incoming).unwrap();
    // The scene goes on.
    assert!(!bench.session.read(scene(4, true)).unwrap().begins_scene);
    // After the end of a clip nothing is compared.
    bench.session.forget_scene();
    assert!(!bench.session.read(scene(5, false)).unwrap().begins_scene);
    let cuts = bench.session.take_notices();
    let is_cut =
        |notice: &&Notice| matches!(notice, Notice::SceneCut { pts } if *pts == Some(FRAME * 3));
    assert_eq!((cuts.iter().filter(is_cut).count(), bench.stats.lock().scene_cuts), (1, 1));
}

#[test]
fn a_flush_forgets_everything_but_sticky_events() {
    let mut bench = Bench::started(|_, _| {});
    bench.push(0..2);
    for event in [tag(), custom("inside")] {
        bench.session.event(event);
    }
    bench.push(2..3);
    bench.session.event(custom("parked"));
    bench.session.keep_failure(gst::FlowError::Error);
    assert_eq!(names(&bench.session.flushed()), ["tag"]);
    assert!(!bench.session.has_frames());
    assert!(!bench.session.begins_clip(&frame(72)).unwrap());
    assert!(bench.session.ends_clip(&segment(gst::ClockTime::ZERO)));
    bench.session.event(segment(FRAME * 72));
    bench.push(72..76);
    assert_eq!(bench.pull().unwrap(), ["72", "73", "74"]);
    assert_eq!(bench.drain(), ["75"]);
}

#[test]
fn the_flow_of_before_a_segment_says_nothing() {
    let mut bench = Bench::started(|_, _| {});
    let [eos, not_linked] = [gst::FlowError::Eos, gst::FlowError::NotLinked].map(Err);
    assert!(bench.session.check_downstream(eos).is_ok());
    bench.push(0..4);
    bench.pull().unwrap();
    assert_eq!(bench.session.check_downstream(eos).unwrap_err().flow(), gst::FlowError::Eos);
    assert!(bench.session.check_downstream(not_linked).is_ok());
    bench.session.event(segment(FRAME));
    assert!(bench.session.check_downstream(eos).is_ok());
}

#[test]
fn what_is_missing_is_an_error() {
    let mut bench = Bench::new(|_, _| {});
    let failures = [bench.session.read(frame(0)).err(), bench.session.pull(&bench.facts).err()];
    for failure in failures {
        assert!(matches!(failure, Some(Failure::NotNegotiated)), "{failure:?}");
    }
    assert!(bench.session.formats().is_none());
    let mut bench = Bench::started(|_, _| {});
    let short = bench.session.read(gst::Buffer::from_mut_slice([0; 10])).err();
    assert!(matches!(short, Some(Failure::Conversion(_))), "{short:?}");
    // The bundle has no text condition.
    bench.facts.prompts.prompt = Some("a dog".into());
    assert!(matches!(bench.pull(), Err(Failure::Engine(Error::Setting { .. }))));
}

#[test]
fn caps_are_set_up_again_and_refused_once() {
    let mut bench = Bench::new(|_, _| {});
    let mut mixed = formats();
    mixed.input = gst_video::VideoInfo::builder(gst_video::VideoFormat::I420, SIZE.0, SIZE.1)
        .interlace_mode(gst_video::VideoInterlaceMode::Mixed)
        .build()
        .unwrap();
    assert!(matches!(mixed.check_progressive(), Err(Failure::Interlaced(_))));
    let caps =
        ["video/x-raw,width=1", "video/x-raw,width=2"].map(|c| c.parse::<gst::Caps>().unwrap());
    assert!(bench.session.refused.insert(&caps[0], &caps[1]));
    assert!(!bench.session.refused.insert(&caps[0], &caps[1]));
    assert!(bench.session.refused.contains(&caps[0], &caps[1]));

    let frames = bench.stats.lock().latency_frames;
    let latency = bench.session.configure(&formats(), Prompts::default(), None).unwrap();
    assert!(!bench.session.refused.contains(&caps[0], &caps[1]));
    assert_eq!((frames, bench.stats.lock().latency_frames, latency), (0, 3, FRAME * 3));
    bench.session.event(segment(gst::ClockTime::ZERO));
    bench.push(0..4);
    bench.pull().unwrap();
    // The times of the upscaler before are kept.
    let windows = |bench: &Bench| bench.stats.lock().structure().get::<u64>("windows").unwrap();
    bench.drain();
    let before = windows(&bench);
    let mut variable = formats();
    variable.input = gst_video::VideoInfo::builder(gst_video::VideoFormat::Gray8, SIZE.0, SIZE.1)
        .fps(gst::Fraction::new(0, 1))
        .build()
        .unwrap();
    let latency = bench.session.configure(&variable, Prompts::default(), None).unwrap();
    assert_eq!((latency, windows(&bench)), (FRAME * 3, before));
    assert!(before > 0 && bench.session.lost_model().is_none());
}

#[test]
fn a_model_that_refused_settings_have_cost_can_be_replaced() {
    // The bundle takes windows of up to 64 frames.
    let mut bench = Bench::new(|settings, _| settings.window_length = 100);
    assert!(bench.session.lost_model().is_none());
    let refused = bench.session.configure(&formats(), Prompts::default(), None);
    assert!(matches!(refused, Err(Failure::Engine(Error::Setting { .. }))), "{refused:?}");
    assert_eq!(bench.session.lost_model().map(|settings| settings.window_length), Some(100));
    let missing = bench.session.configure(&formats(), Prompts::default(), None);
    assert!(matches!(missing, Err(Failure::NotStarted)), "{missing:?}");
    bench.session.settings.window_length = 4;
    let model = Box::new(bench.model.clone());
    bench.session.configure(&formats(), Prompts::default(), Some(model)).unwrap();
    assert!(bench.session.lost_model().is_none());
}

#[test]
fn settings_that_contradict_each_other_are_refused_with_the_property() {
    let mut bench = Bench::new(|settings, _| {
        settings.overload = Overload::Bypass;
        settings.window_mode = super::super::WindowMode::Wavefront;
    });
    let refused = bench.session.configure(&formats(), Prompts::default(), None).unwrap_err();
    assert!(matches!(refused, Failure::Property { property: "overload", .. }), "{refused:?}");
    assert!(bench.session.lost_model().is_none(), "the model is lost");
}

#[test]
fn cancelled_work_is_flushing() {
    let mut bench = Bench::started(|_, _| {});
    bench.push(0..4);
    bench.cancel.set(true);
    let failure = bench.pull().unwrap_err();
    assert_eq!((failure.flow(), failure.is_silent()), (gst::FlowError::Flushing, true));
    assert_eq!(bench.model.evaluations(), 0);
    bench.session.abandon();
    bench.cancel.set(false);
    bench.push(12..16);
    assert_eq!(bench.pull().unwrap(), ["12", "13", "14"]);
}

#[test]
fn windows_that_would_be_late_are_bypassed() {
    gst::init().unwrap();
    let clock = gst_check::TestClock::new();
    let mut bench = Bench::started(|settings, model| {
        settings.overload = Overload::Bypass;
        model.clock = Some(clock.clone());
    });
    assert!(!bench.session.may_bypass());
    bench.push(0..4);
    assert!(bench.session.may_bypass());
    bench.be_live(&clock, gst::ClockTime::SECOND);
    // How long a window takes is not known yet, and then it is a second.
    bench.pull().unwrap();
    assert_eq!((bench.model.evaluations(), bench.bypassed().len()), (1, 0));
    bench.push(4..7);
    assert_eq!(bench.pull().unwrap(), ["3", "4", "5"]);
    assert_eq!(
        (bench.model.evaluations(), bench.bypassed()),
        (1, vec![(Some(FRAME * 3), 3, "overload")])
    );
    // With more time the model is tried again.
    bench.be_live(&clock, gst::ClockTime::from_seconds(10));
    bench.push(7..10);
    bench.pull().unwrap();
    assert_eq!((bench.model.evaluations(), bench.bypassed().len()), (2, 0));
    // Nothing is late in a pipeline that is not live.
    bench.facts.timing = Some(Timing { clock: clock.clone().upcast(), due: None });
    clock.set_time(gst::ClockTime::from_seconds(1000));
    bench.push(10..13);
    bench.pull().unwrap();
    assert_eq!((bench.model.evaluations(), bench.bypassed().len()), (3, 0));
}

#[test]
fn a_failing_model_ends_the_stream_or_is_bypassed() {
    let mut bench = Bench::started(|_, _| {});
    bench.model.fails.store(true, Ordering::SeqCst);
    bench.push(0..4);
    let failure = bench.pull().unwrap_err();
    assert_eq!((failure.flow(), failure.is_silent()), (gst::FlowError::Error, false));

    let mut bench = Bench::started(|settings, _| settings.on_error = OnError::Bypass);
    bench.model.fails.store(true, Ordering::SeqCst);
    for (frames, warnings) in [(0..4, 1), (4..7, 0)] {
        bench.push(frames);
        assert_eq!(bench.pull().unwrap().len(), 3);
        let notices = bench.session.take_notices();
        let count = |of: fn(&Notice) -> bool| notices.iter().filter(|notice| of(notice)).count();
        assert_eq!(count(|notice| matches!(notice, Notice::ModelFailed(_))), warnings);
        assert_eq!(count(|notice| matches!(notice, Notice::Bypassed { reason: "error", .. })), 1);
    }
    // Another stream has a warning of its own.
    bench.drain();
    bench.session.event(gst::event::StreamStart::new("other"));
    bench.session.event(segment(gst::ClockTime::ZERO));
    bench.push(0..4);
    bench.pull().unwrap();
    assert!(
        bench.session.take_notices().iter().any(|notice| matches!(notice, Notice::ModelFailed(_)))
    );
}

#[test]
fn restored_windows_are_announced() {
    let mut bench = Bench::started(|_, _| {});
    bench.push(0..7);
    bench.pull().unwrap();
    let restored = bench.session.take_notices().into_iter().filter_map(|notice| match notice {
        Notice::Restored { running_time, evaluations, frames_in, frames_out, .. } => {
            Some((running_time, evaluations, frames_in, frames_out))
        }
        _ => None,
    });
    let expected = [(Some(gst::ClockTime::ZERO), 1, 7, 0), (Some(FRAME * 3), 1, 7, 3)];
    assert_eq!(restored.collect::<Vec<_>>(), expected);
}
