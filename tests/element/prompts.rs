// SPDX-License-Identifier: MPL-2.0

//! Prompts: when a new one holds, and what is said of one that does not fit.

use gst::prelude::*;

use super::errors::start_error;
use starsr_testkit::fixtures;
use starsr_testkit::rig::*;

const LONG: &str = "lake lake lake lake lake lake lake lake lake lake lake lake lake lake lake lake lake lake lake lake";

/// starsr with the bundle with text condition.
fn with_text(bundle: &std::path::Path) -> gst::Element {
    let element = starsr(4, 0);
    element.set_property("model-path", bundle.to_str().unwrap());
    element.set_property("strength", 1.0f32);
    element
}

fn pictures(set: impl Fn(&gst::Element, u64)) -> Vec<Vec<u8>> {
    play(with_text(&fixtures::text()), set)
}

/// The pictures of 16 frames, with `set` called on the element before each.
fn play(element: gst::Element, set: impl Fn(&gst::Element, u64)) -> Vec<Vec<u8>> {
    let rig = Rig::new(element, None);
    rig.start(CAPS);
    for k in 0..16 {
        set(&rig.element, k);
        rig.push(textured_frame(k)).unwrap();
    }
    rig.eos();
    assert_eq!(rig.errors(), [""; 0]);
    rig.buffers().iter().map(|buffer| bytes(buffer)).collect()
}

#[test]
fn a_prompt_set_while_playing_holds_from_the_next_window() {
    for read_ahead in [false, true] {
        check_prompts(read_ahead);
    }
}

fn check_prompts(read_ahead: bool) {
    let pictures = |set: &dyn Fn(&gst::Element, u64)| {
        let element = with_text(&fixtures::text());
        element.set_property("read-ahead", read_ahead);
        play(element, set)
    };
    let change = |property: &'static str, value: &'static str, at: u64| {
        pictures(&move |element, k| {
            if k == at {
                element.set_property_from_str(property, value);
            }
        })
    };
    let never = pictures(&|_, _| {});
    for (property, value) in
        [("prompt", LONG), ("negative-prompt", LONG), ("prompt-suffix", "none")]
    {
        let always = change(property, value, 0);
        let later = change(property, value, 6);
        assert_eq!(later.len(), 16);
        assert_eq!(later[..4], never[..4], "{property}");
        assert_eq!(later[4..], always[4..], "{property}");
        assert!((4..16).any(|k| always[k] != never[k]), "{property} changes nothing");
    }
    // Taken back in the same window it leaves no trace.
    let back = pictures(&|element, k| match k {
        5 => element.set_property("prompt", LONG),
        7 => element.set_property("prompt", None::<String>),
        _ => {}
    });
    assert_eq!(back, never);
}

#[test]
fn a_flush_while_caps_change_is_no_error() {
    let rig = Rig::new(with_text(&fixtures::text()), None);
    rig.start(CAPS);
    rig.push_all(0..2);
    // The first frame that the change of caps drains meets the flush, which so comes before the
    // prompts are set.
    let feed = rig.src.clone();
    let source = rig.element.static_pad("src").unwrap();
    source.add_probe(gst::PadProbeType::BUFFER, move |_, _| {
        feed.push_event(gst::event::FlushStart::new());
        gst::PadProbeReturn::Remove
    });
    rig.caps(&CAPS.replace("25/1", "30/1"));
    assert_eq!(rig.errors(), [""; 0]);
    rig.event(gst::event::FlushStop::new(true));
    rig.segment(FRAME * 100);
    rig.push_all(100..108);
    rig.eos();
    assert_eq!(rig.offsets(), (100..108).collect::<Vec<_>>());
    assert_eq!(rig.errors(), [""; 0]);
}

fn warnings(rig: &Rig) -> Vec<String> {
    let mut warnings = Vec::new();
    while let Some(message) = rig.bus.pop_filtered(&[gst::MessageType::Warning]) {
        if let gst::MessageView::Warning(warning) = message.view() {
            warnings.push(warning.error().message().to_string());
        }
    }
    warnings
}

#[test]
fn a_prompt_that_is_too_long_is_cut_with_a_warning() {
    let element = with_text(&fixtures::text());
    element.set_property("prompt", "lake ".repeat(100));
    let rig = Rig::new(element, None);
    rig.start(CAPS);
    rig.push_all(0..4);
    // 100 words and the suffix's one, of which 75 fit.
    let said = warnings(&rig);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("prompt") && said[0].contains("26 tokens"), "{said:?}");
    assert_eq!(rig.stat("prompt-tokens-cut"), 26);
    rig.element.set_property("negative-prompt", "lake ".repeat(80));
    rig.element.set_property("prompt", LONG);
    rig.push_all(4..12);
    let said = warnings(&rig);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("negative-prompt") && said[0].contains("5 tokens"), "{said:?}");
    assert_eq!(rig.stat("prompt-tokens-cut"), 5);
    rig.element.set_property("negative-prompt", None::<String>);
    rig.push_all(12..16);
    assert_eq!((warnings(&rig), rig.stat("prompt-tokens-cut")), (Vec::new(), 0));
    assert_eq!(rig.buffers().len(), 16);
}

#[test]
fn a_prompt_is_refused_without_text_condition() {
    for property in ["prompt", "negative-prompt"] {
        let element = starsr(4, 1);
        element.set_property(property, "a dog");
        let error = start_error(&element);
        assert!(
            error.contains(property) && error.contains("tiny has no text condition"),
            "{error}"
        );
    }
    // While it plays it is an error with the next frame.
    let rig = Rig::started(4, 1);
    rig.push_all(0..2);
    rig.element.set_property("prompt", "a dog");
    assert_eq!(rig.push(frame(2)), Err(gst::FlowError::Error));
    let errors = rig.errors();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].contains("no text condition"), "{errors:?}");
}

#[test]
fn only_the_bundles_own_prompts_work_without_text_encoder() {
    let bundle = fixtures::without_text_encoder();
    let rig = Rig::new(with_text(bundle.path()), None);
    rig.start(CAPS);
    rig.push_all(0..5);
    assert_eq!(rig.buffers().len(), 4);
    rig.element.set_property("prompt", "a dog");
    assert_eq!(rig.push(frame(5)), Err(gst::FlowError::Error));
    let errors = rig.errors();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].contains("prompt") && errors[0].contains("no text encoder"), "{errors:?}");
    // Taken back the stream may go on after a flush.
    rig.element.set_property("prompt", None::<String>);
    rig.event(gst::event::FlushStart::new());
    rig.event(gst::event::FlushStop::new(true));
    rig.segment(gst::ClockTime::ZERO);
    rig.forget();
    rig.push_all(0..4);
    assert_eq!(rig.buffers().len(), 4);
}

#[test]
fn posterior_and_batching_can_be_chosen() {
    let with = |property: &str, value: &str| {
        let element = with_text(&fixtures::text());
        element.set_property_from_str(property, value);
        play(element, |_, _| {})
    };
    let plain = pictures(|_, _| {});
    assert_ne!(with("posterior", "sample"), plain);
    assert_ne!(with("guidance-interval", "<0,0>"), plain);
    assert_eq!(with("guidance-batching", "separate"), plain);
    assert_eq!(with("guidance-batching", "together"), plain);
}
