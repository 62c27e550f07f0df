// SPDX-License-Identifier: MPL-2.0

//! Windows that come out as the plain upscale: in a live pipeline that is late, and when the model
//! fails.

use gst::prelude::*;

use super::pipelines;
use starsr_testkit::fixtures;
use starsr_testkit::rig::*;

/// Frames of a window, and those of them that the next window shares.
const LENGTH: u64 = 4;
const OVERLAP: u64 = 1;
const UPSTREAM: gst::ClockTime = gst::ClockTime::from_mseconds(20);
const PROCESSING: gst::ClockTime = gst::ClockTime::from_mseconds(80);

fn element(overload: &str) -> gst::Element {
    let element = starsr(LENGTH as u32, OVERLAP as i32);
    element.set_property("strength", 1.0f32);
    element.set_property_from_str("overload", overload);
    element.set_property("processing-latency", PROCESSING.nseconds());
    element
}

/// A rig with a clock that only the test moves.
struct Live {
    rig: Rig,
    clock: gst_check::TestClock,
}

fn live(element: gst::Element) -> Live {
    let clock = gst_check::TestClock::new();
    element.set_clock(Some(&clock)).unwrap();
    let rig = Rig::new(element, None);
    rig.element.set_base_time(gst::ClockTime::ZERO);
    rig.set_upstream_latency(Some(UPSTREAM));
    rig.start(CAPS);
    Live { rig, clock }
}

impl Live {
    /// Pushes the frames, each of them `late` by that much.
    fn push(&self, frames: std::ops::Range<u64>, late: gst::ClockTime) {
        for k in frames {
            let now = FRAME * k + UPSTREAM + late;
            if now > self.clock.time() {
                self.clock.set_time(now);
            }
            self.rig.push(textured_frame(k)).unwrap();
        }
    }
}

/// Running time, frames and reason of each message so far.
fn messages(rig: &Rig) -> Vec<(gst::ClockTime, u64, String)> {
    let messages = rig.messages(gst::MessageType::Element);
    let bypassed =
        messages.iter().filter_map(|m| m.structure()).filter(|s| s.name() == "starsr-bypass");
    bypassed
        .map(|s| {
            (s.get("running-time").unwrap(), s.get("frames").unwrap(), s.get("reason").unwrap())
        })
        .collect()
}

/// The frames as they come out without a clock, at this `strength`.
fn undisturbed(frames: std::ops::Range<u64>, strength: f32) -> Vec<Vec<u8>> {
    let element = element("block");
    element.set_property("strength", strength);
    let rig = Rig::new(element, None);
    rig.start(CAPS);
    for k in frames {
        rig.push(textured_frame(k)).unwrap();
    }
    rig.eos();
    rig.buffers().iter().map(|b| bytes(b)).collect()
}

const LATE: gst::ClockTime = gst::ClockTime::from_seconds(1);

#[test]
fn a_pipeline_in_time_is_not_touched() {
    let live = live(element("bypass"));
    live.push(0..12, PROCESSING);
    live.rig.eos();
    assert_eq!(live.rig.stat("bypassed"), 0);
    assert!(messages(&live.rig).is_empty());
    let out: Vec<_> = live.rig.buffers().iter().map(|b| bytes(b)).collect();
    assert!(out == undisturbed(0..12, 1.0));
}

#[test]
fn windows_that_would_be_late_come_out_plain_until_the_pipeline_is_in_time_again() {
    let live = live(element("bypass"));
    // Windows of frames 0, 3, 6, 9, 12, 15 and 18 on, of which the third to the fifth are late.
    live.push(0..7, gst::ClockTime::ZERO);
    assert_eq!(live.rig.stat("bypassed"), 0);
    live.push(7..16, LATE);
    assert_eq!(live.rig.stat("bypassed"), 9);
    live.push(16..48, gst::ClockTime::ZERO);
    live.rig.eos();

    // While the clock stands the frames catch up.
    let bypassed = live.rig.stat("bypassed");
    assert!((9..=33).contains(&bypassed), "{bypassed}");
    assert_eq!(live.rig.offsets(), (0..48).collect::<Vec<_>>());
    let messages = messages(&live.rig);
    assert_eq!(messages[0], (FRAME * 6, 3, "overload".to_string()));
    assert_eq!(messages[1], (FRAME * 9, 3, "overload".to_string()));
    assert_eq!(messages.iter().map(|m| m.1).sum::<u64>(), bypassed);

    let (plain, restored) = (undisturbed(0..48, 0.0), undisturbed(0..48, 1.0));
    let out: Vec<_> = live.rig.buffers().iter().map(|b| bytes(b)).collect();
    for k in 0..48 {
        // The frames that two windows share are cross-faded.
        match k as u64 {
            0..=5 | 46.. => assert!(out[k] == restored[k], "frame {k}"),
            7..=15 => assert!(out[k] == plain[k] && plain[k] != restored[k], "frame {k}"),
            _ => {}
        }
    }
}

#[test]
fn without_overload_bypass_or_live_upstream_frames_are_late() {
    let blocking = live(element("block"));
    let not_live = live(element("bypass"));
    not_live.rig.set_upstream_latency(None);
    for live in [blocking, not_live] {
        live.push(0..12, LATE);
        live.rig.eos();
        assert_eq!((live.rig.stat("bypassed"), live.rig.stat("frames-out")), (0, 12));
    }
}

#[test]
fn only_windows_that_are_restored_on_their_own_can_be_left_out() {
    let element = element("bypass");
    element.set_property_from_str("window-mode", "wavefront");
    let rig = Rig::new(element, None);
    rig.start(CAPS);
    assert_eq!(rig.push(frame(0)), Err(gst::FlowError::NotNegotiated));
    let errors = rig.errors();
    assert!(
        errors.len() == 1 && errors[0].contains("overload") && errors[0].contains("wavefront"),
        "{errors:?}"
    );
}

/// A live source, a model that is far too slow, and a sink that shows every frame, however late.
#[test]
fn a_live_pipeline_with_a_slow_model_keeps_all_frames() {
    let p = pipelines::pipeline(
        "videotestsrc is-live=true num-buffers=40 ! video/x-raw,format=GRAY8,width=64,height=48,framerate=25/1 ! queue ! \
         starsr overload=bypass strength=1 sampler-mode=normal steps=30 ! queue ! fakesink name=f sync=true max-lateness=-1",
    );
    let seen = pipelines::watch(&p, "f", "sink");
    pipelines::run_with(&p, || {
        let stats = p.by_name("s").unwrap().property::<gst::Structure>("stats");
        assert_eq!(stats.get::<u64>("frames-in"), stats.get::<u64>("frames-out"));
        // Without processing-latency every window is late.
        assert!(stats.get::<u64>("bypassed").unwrap() > 20);
    });
    assert_eq!(pipelines::times(&seen).len(), 40);
}

/// starsr whose denoiser gives NaN.
fn failing(on_error: &str, mode: &str) -> (tempfile::TempDir, gst::Element) {
    let bundle = fixtures::tiny_with(&[("denoiser", "denoiser_nan.onnx")]);
    let element = element("block");
    element.set_property("model-path", bundle.path().to_str().unwrap());
    element.set_property_from_str("on-error", on_error);
    element.set_property_from_str("window-mode", mode);
    (bundle, element)
}

#[test]
fn a_failing_model_ends_the_stream() {
    for (mode, read_ahead) in [("blend", false), ("wavefront", false), ("blend", true)] {
        let (_bundle, element) = failing("fail", mode);
        element.set_property("read-ahead", read_ahead);
        let rig = Rig::new(element, None);
        rig.start(CAPS);
        let result = (0..40).map(|k| rig.push(textured_frame(k))).find(Result::is_err);
        assert_eq!(result, Some(Err(gst::FlowError::Error)));
        let errors = rig.errors();
        assert!(errors.len() == 1 && errors[0].contains("denoiser"), "{errors:?}");
        assert!(rig.buffers().is_empty());
    }
}

#[test]
fn a_failing_model_can_be_bypassed() {
    for (mode, read_ahead) in [("blend", false), ("wavefront", false), ("blend", true)] {
        let (_bundle, element) = failing("bypass", mode);
        element.set_property("read-ahead", read_ahead);
        let rig = Rig::new(element, None);
        rig.start(CAPS);
        for k in 0..30 {
            rig.push(textured_frame(k)).unwrap();
        }
        rig.eos();
        let out: Vec<_> = rig.buffers().iter().map(|b| bytes(b)).collect();
        assert!(out == undisturbed(0..30, 0.0), "{mode}");
        assert_eq!((rig.stat("bypassed"), rig.stat("frames-out")), (30, 30));
        let warnings = |rig: &Rig| -> Vec<String> {
            let messages = rig.bus.iter().collect::<Vec<_>>();
            let text = |m: &gst::Message| match m.view() {
                gst::MessageView::Warning(w) => Some(w.error().message().to_string()),
                gst::MessageView::Error(e) => panic!("{e:?}"),
                _ => None,
            };
            messages.iter().filter_map(text).collect()
        };
        let first = warnings(&rig);
        assert!(first.len() == 1 && first[0].contains("denoiser"), "{first:?}");
        // Another stream has a warning of its own.
        rig.start(CAPS);
        for k in 0..30 {
            rig.push(textured_frame(k)).unwrap();
        }
        rig.eos();
        assert_eq!(rig.stat("bypassed"), 60);
        assert_eq!(warnings(&rig).len(), 1);
    }
}

#[test]
fn bypassed_windows_are_announced_with_their_times() {
    let (_bundle, element) = failing("bypass", "blend");
    let rig = Rig::new(element, None);
    rig.start(CAPS);
    for k in 0..7 {
        rig.push(textured_frame(k)).unwrap();
    }
    assert_eq!(
        messages(&rig),
        [(gst::ClockTime::ZERO, 3, "error".to_string()), (FRAME * 3, 3, "error".to_string())]
    );
    // The last frame waits for a further window to be cross-faded with.
    rig.eos();
    assert_eq!(messages(&rig), [(FRAME * 6, 1, "error".to_string())]);
    assert_eq!(rig.stat("bypassed"), 7);
}

#[test]
fn the_processing_latency_is_added_and_a_change_is_announced() {
    let rig = Rig::new(element("block"), None);
    rig.set_upstream_latency(Some(UPSTREAM));
    let latency = || {
        let mut query = gst::query::Latency::new();
        assert!(rig.sink.peer_query(&mut query));
        query.result().1
    };
    let announced = || rig.messages(gst::MessageType::Latency).len();
    assert_eq!(latency(), UPSTREAM + PROCESSING);
    rig.start(CAPS);
    let windows = FRAME * rig.stat("latency-frames");
    assert_eq!(latency(), UPSTREAM + windows + PROCESSING);
    announced();
    rig.element.set_property("processing-latency", 5_000_000u64);
    assert_eq!(
        (latency(), announced()),
        (UPSTREAM + windows + gst::ClockTime::from_mseconds(5), 1)
    );
    rig.element.set_property("processing-latency", 5_000_000u64);
    assert_eq!(announced(), 0);
}
