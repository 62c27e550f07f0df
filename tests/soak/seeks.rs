// SPDX-License-Identifier: MPL-2.0

//! Flushing seeks, flushes from upstream and changes of caps at any time, in a real pipeline.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use gst::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use starsr_testkit::patience::patiently;
use starsr_testkit::rig;

use super::child;

const FRAMES: &str = "STARSR_SOAK_FRAMES";

const SECOND: Duration = Duration::from_secs(1);

/// Frames on their way through the element.
#[derive(Debug, Default)]
struct Account {
    inside: VecDeque<Option<gst::ClockTime>>,
    taken: u64,
    given: u64,
    flushed: u64,
    wrong: Vec<String>,
}

type Shared = Arc<(Mutex<Account>, Condvar)>;

/// Keeps account of what passes the pads of `element`.
fn watch(element: &gst::Element, account: &Shared) {
    let kinds = gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_FLUSH;
    let shared = account.clone();
    element.static_pad("sink").unwrap().add_probe(kinds, move |_, info| {
        let mut account = shared.0.lock().unwrap();
        match &info.data {
            Some(gst::PadProbeData::Buffer(buffer)) => {
                account.taken += 1;
                account.inside.push_back(buffer.pts());
            }
            Some(gst::PadProbeData::Event(event)) if event.type_() == gst::EventType::FlushStop => {
                account.flushed += account.inside.len() as u64;
                account.inside.clear();
            }
            _ => {}
        }
        gst::PadProbeReturn::Ok
    });
    let shared = account.clone();
    element.static_pad("src").unwrap().add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        let mut account = shared.0.lock().unwrap();
        let pts = info.buffer().and_then(|buffer| buffer.pts());
        let expected = account.inside.pop_front();
        if expected != Some(pts) {
            account.wrong.push(format!("{} came out in place of {expected:?}", pts.display()));
        }
        account.given += 1;
        shared.1.notify_all();
        gst::PadProbeReturn::Ok
    });
}

/// Whether an event is on its way from in front of an element into it.
type Passing = Arc<(Mutex<bool>, Condvar)>;

/// Watches for serialized events on the pad in front of `element`. A flush from there must not meet
/// one: base classes turn a refused event into an error, but only flush after a refused buffer.
fn watch_events(element: &gst::Element) -> Passing {
    let passing = Passing::default();
    let shared = passing.clone();
    let kinds = gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_DOWNSTREAM;
    let front = element.static_pad("sink").unwrap().peer().unwrap();
    front.add_probe(kinds, move |_, info| {
        // What follows an event comes when it has passed.
        *shared.0.lock().unwrap() = info.event().is_some();
        shared.1.notify_all();
        gst::PadProbeReturn::Ok
    });
    passing
}

/// Flushes what is behind `element`, as an element may of its own accord: FLUSH_START, FLUSH_STOP
/// and the segment again.
fn flush(element: &gst::Element, passing: &Passing) {
    let [sink, src] = ["sink", "src"].map(|name| element.static_pad(name).unwrap());
    let _held = patiently("no frame follows an event", || {
        let held = passing.0.lock().unwrap();
        let waiting = passing.1.wait_timeout_while(held, SECOND, |passing| *passing);
        let (held, waited) = waiting.unwrap();
        (!waited.timed_out()).then_some(held)
    });
    src.push_event(gst::event::FlushStart::new());
    // Nothing passes until the segment is back.
    let _streaming = sink.stream_lock();
    let segment = src.sticky_event::<gst::event::Segment>(0);
    src.push_event(gst::event::FlushStop::new(true));
    if let Some(segment) = segment {
        src.push_event(segment);
    }
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Keeps the kernel from giving this process huge pages, which come and go and are counted whole.
fn without_huge_pages() {
    let (yes, unused) = (1 as libc::c_ulong, 0 as libc::c_ulong);
    // SAFETY: the call takes no pointers.
    let result = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, yes, unused, unused, unused) };
    assert_eq!(result, 0);
}

/// Plays until `frames` have come out, with something happening every few frames.
fn play(frames: u64, seed: u64) {
    without_huge_pages();
    rig::init();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // With async=true the sink sometimes stays in preroll after flushes that follow each other
    // closely, whatever is in front.
    let front = "videotestsrc name=v pattern=snow ! capsfilter name=c caps-change-mode=delayed caps=video/x-raw,format=I420,width=16,height=16,framerate=25/1";
    let pipeline = gst::parse::launch(&format!(
        "{front} ! identity name=i ! fakesink name=f sync=false async=false"
    ))
    .unwrap()
    .downcast::<gst::Pipeline>()
    .unwrap();
    let starsr = rig::starsr(4, 1);
    starsr.set_property("strength", 1.0f32);
    pipeline.add(&starsr).unwrap();
    let [source, filter, before, sink] =
        ["v", "c", "i", "f"].map(|name| pipeline.by_name(name).unwrap());
    before.unlink(&sink);
    gst::Element::link_many([&before, &starsr, &sink]).unwrap();
    let account = Shared::default();
    watch(&starsr, &account);
    let passing = watch_events(&before);
    pipeline.set_state(gst::State::Playing).unwrap();
    let bus = pipeline.bus().unwrap();

    let check_bus = || {
        let error = bus.pop_filtered(&[gst::MessageType::Error]);
        assert!(error.is_none(), "{error:?}");
    };
    let wait_for = |given: u64| {
        patiently("nothing comes out any more", || {
            check_bus();
            let guard = account.0.lock().unwrap();
            let waiting = account.1.wait_timeout_while(guard, SECOND, |a| a.given < given);
            let (guard, waited) = waiting.unwrap();
            (!waited.timed_out()).then_some(guard.given)
        })
    };
    let flags = gst::SeekFlags::FLUSH | gst::SeekFlags::ACCURATE;
    let (mut given, mut seeks, mut flushes, mut changes, mut memory) = (0, 0, 0, 0, Vec::new());
    while given < frames {
        given = wait_for(given + u64::from(rng.next_u32() % 40));
        let to = rig::FRAME * u64::from(rng.next_u32() % 100_000);
        match rng.next_u32() % 4 {
            0 => {
                let size = [(16, 16), (24, 16), (8, 32), (10, 6)][rng.next_u32() as usize % 4];
                let format = ["I420", "GRAY8", "RGBA"][rng.next_u32() as usize % 3];
                let rate = ["25/1", "30000/1001"][rng.next_u32() as usize % 2];
                let (width, height) = size;
                let caps = format!(
                    "video/x-raw,format={format},width={width},height={height},framerate={rate}"
                );
                filter.set_property("caps", caps.parse::<gst::Caps>().unwrap());
                changes += 1;
            }
            1 => {
                flush(&before, &passing);
                flushes += 1;
                // The source has stopped if it met the flush.
                source.seek_simple(flags, to).unwrap();
                seeks += 1;
            }
            _ => {
                source.seek_simple(flags, to).unwrap();
                seeks += 1;
            }
        }
        check_bus();
        memory.push(resident());
    }

    let end = gst::SeekType::Set;
    source.seek(1.0, flags, end, gst::ClockTime::ZERO, end, rig::FRAME * 50).unwrap();
    let message = rig::message(&pipeline, &[gst::MessageType::Eos, gst::MessageType::Error]);
    assert_eq!(message.type_(), gst::MessageType::Eos, "{message:?}");
    pipeline.set_state(gst::State::Null).unwrap();

    let account = account.0.lock().unwrap();
    assert!(account.wrong.is_empty(), "{:?}", account.wrong);
    assert!(account.inside.is_empty(), "{:?} are missing", account.inside);
    assert_eq!(account.taken, account.given + account.flushed);
    assert!(seeks > 0 && flushes > 0 && changes > 0 && account.flushed > 0);
    println!(
        "{} frames in, {} out, {} flushed; {seeks} seeks, {flushes} flushes, {changes} changes of caps",
        account.taken, account.given, account.flushed
    );
    check_memory(&memory);
}

/// The most in the last quarter against the most in the second one: the first warms up.
fn check_memory(samples: &[u64]) {
    let quarter = samples.len() / 4;
    let most = |range: &[u64]| range.iter().copied().max().unwrap_or(0);
    let (early, late) = (most(&samples[quarter..2 * quarter]), most(&samples[3 * quarter..]));
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!(
        "memory {:.2} MiB in the second quarter, {:.2} MiB in the last",
        mib(early),
        mib(late)
    );
    assert!(late <= early + (4 << 20), "memory has grown by {:.2} MiB", mib(late - early));
}

#[test]
#[ignore = "long: run by make soak, and in short by the next one"]
fn long() {
    let frames = std::env::var(FRAMES).map_or(20_000, |frames| frames.parse().unwrap());
    play(frames, 1);
}

#[test]
fn frames_are_accounted_for_and_memory_is_flat() {
    let output = child("seeks::long", &[(FRAMES, "1500")]);
    let (told, log) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && told.contains("1 passed"), "{told}{log}");
}
