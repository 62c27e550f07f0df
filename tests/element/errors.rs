// SPDX-License-Identifier: MPL-2.0

//! Errors are posted once, in a sentence that helps.

use gst::prelude::*;

use starsr_testkit::fixtures;
use starsr_testkit::rig::*;

/// The error that `element` posts when it fails to start.
pub fn start_error(element: &gst::Element) -> String {
    let bus = gst::Bus::new();
    element.set_bus(Some(&bus));
    assert!(element.set_state(gst::State::Paused).is_err());
    let mut errors = Vec::new();
    while let Some(message) = bus.pop_filtered(&[gst::MessageType::Error]) {
        if let gst::MessageView::Error(error) = message.view() {
            errors.push(error.error().message().to_string());
        }
    }
    element.set_state(gst::State::Null).unwrap();
    element.set_bus(None);
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors.remove(0)
}

#[test]
fn a_missing_bundle_is_named() {
    let element = starsr(4, 1);
    element.set_property("model-path", "/nowhere/bundle");
    let error = start_error(&element);
    assert!(error.contains("/nowhere/bundle") && error.contains("model-path"), "{error}");
}

#[test]
fn an_altered_bundle_is_named_and_the_element_can_be_used_after() {
    let bundle = fixtures::copy_of_tiny();
    std::fs::write(bundle.path().join("denoiser.onnx"), b"no graph").unwrap();
    let element = starsr(4, 1);
    element.set_property("model-path", bundle.path().to_str().unwrap());
    let error = start_error(&element);
    assert!(error.contains("denoiser.onnx") && error.contains("SHA-256"), "{error}");

    element.set_property("model-path", fixtures::tiny().to_str().unwrap());
    let rig = Rig::new(element, None);
    rig.start(CAPS);
    rig.push_all(0..5);
    rig.eos();
    assert_eq!(rig.buffers().len(), 5);
}

#[test]
fn a_provider_that_cannot_be_had_is_named() {
    let element = starsr(4, 1);
    element.set_property_from_str("execution-provider", "tensorrt");
    element.set_property("device", 4711u32);
    let error = start_error(&element);
    assert!(error.contains("tensorrt") && error.contains("execution-provider"), "{error}");
}

#[test]
fn a_provider_from_a_library_is_refused_with_its_reason() {
    for (provider, properties, parts) in [
        (
            "openvino",
            &[("provider-library", "/no/such.so")][..],
            &["/no/such.so", "provider-library"],
        ),
        ("webgpu", &[("provider-library", "/no/such.so")], &["webgpu", "name another"]),
        (
            "tensorrt-rtx",
            &[("provider-library", "/no/such.so")],
            &["tensorrt-rtx", "cannot be opened"],
        ),
        ("plugin", &[("provider-name", "abacus")], &["abacus is not known", "registered are"]),
        ("plugin", &[], &["neither its name nor its library", "give one of them"]),
        ("cpu", &[("provider-name", "abacus")], &["provider-name: only provider plugin", "cpu"]),
        ("cpu", &[("provider-library", "/no/such.so")], &["provider-library: ", "plugin"]),
        ("cpu", &[("provider-options", "options,a=b")], &["provider-options: ", "takes none"]),
        ("auto", &[("provider-options", "options,a=b")], &["provider-options: ", "takes none"]),
    ] {
        let element = starsr(4, 1);
        element.set_property_from_str("execution-provider", provider);
        for (name, value) in properties {
            element.set_property_from_str(name, value);
        }
        let error = start_error(&element);
        for part in parts {
            assert!(error.contains(part), "{part:?} is not in: {error}");
        }
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn a_provider_from_a_library_works_in_two_elements_and_gets_its_options() {
    let Some(library) = fixtures::openvino() else { return };
    let rigs = [1, 2].map(|_| {
        let element = starsr(4, 1);
        element.set_property_from_str("execution-provider", "openvino");
        element.set_property("provider-library", library.to_str().unwrap());
        element.set_property_from_str("provider-options", "options,num_of_threads=1");
        Rig::new(element, None)
    });
    for rig in rigs {
        rig.start(CAPS);
        rig.push_all(0..5);
        rig.eos();
        assert_eq!(rig.buffers().len(), 5);
        let stats = rig.element.property::<gst::Structure>("stats");
        assert_eq!(stats.get::<&str>("provider").unwrap(), "openvino");
        assert!(stats.get::<&str>("device").unwrap().contains('('), "{stats}");
    }
}

#[test]
fn a_setting_the_bundle_does_not_allow_is_named_once() {
    for (property, value) in [
        ("window-overlap", "4"),
        ("window-length", "1000"),
        ("guidance-scale", "7.5"),
        ("guidance-interval", "<0.5,0.2>"),
        ("guidance-interval", "<0.5>"),
        ("decode-overlap", "2"),
        ("posterior", "sample"),
    ] {
        let element = starsr(4, 1);
        element.set_property_from_str(property, value);
        let rig = Rig::new(element, None);
        rig.start(CAPS);
        for k in 0..3 {
            assert_eq!(rig.push(frame(k)), Err(gst::FlowError::NotNegotiated));
        }
        let errors = rig.errors();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].contains(property), "{errors:?}");
    }
}

#[test]
fn a_short_buffer_is_an_error() {
    let rig = Rig::started(4, 1);
    rig.push_all(0..2);
    assert_eq!(rig.push(gst::Buffer::from_mut_slice(vec![0; 10])), Err(gst::FlowError::Error));
    let errors = rig.errors();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].contains("10 bytes"), "{errors:?}");
}

#[test]
fn no_caps_is_an_error() {
    let rig = Rig::new(starsr(4, 1), None);
    rig.event(gst::event::StreamStart::new("test"));
    rig.segment(gst::ClockTime::ZERO);
    assert_eq!(rig.push(frame(0)), Err(gst::FlowError::NotNegotiated));
}

#[test]
fn loading_is_announced() {
    let rig = Rig::new(starsr(4, 1), None);
    let mut progress = Vec::new();
    while let Some(message) = rig.bus.pop_filtered(&[gst::MessageType::Progress]) {
        if let gst::MessageView::Progress(message) = message.view() {
            progress.push(message.get().0);
        }
    }
    assert_eq!(progress, [gst::ProgressType::Start, gst::ProgressType::Complete]);
    let stats = rig.element.property::<gst::Structure>("stats");
    assert_eq!(stats.get::<&str>("provider").unwrap(), "cpu");
    assert_eq!(stats.get::<&str>("model").unwrap(), "tiny");
    assert!(stats.get::<&str>("onnxruntime-version").unwrap().starts_with("1."));
}

#[test]
fn times_are_counted() {
    let rig = Rig::started(4, 1);
    rig.push_all(0..8);
    rig.eos();
    for field in
        ["time-convert-in", "time-encode", "time-sample", "time-decode", "time-convert-out"]
    {
        assert!(rig.stat(field) > 0, "{field}");
    }
    assert!(rig.stat("time-onnxruntime") > 0);
    assert!(rig.stat("time-onnxruntime") < rig.stat("time-upscale"));
    // Other caps count on.
    let before = (rig.stat("windows"), rig.stat("time-sample"));
    rig.start(&CAPS.replace("25/1", "30/1"));
    assert_eq!((rig.stat("windows"), rig.stat("time-sample")), before);
}

#[test]
fn every_property_reads_back_and_is_unset_by_default() {
    init();
    let element = gst::ElementFactory::make("starsr").build().unwrap();
    for (property, default, other) in [
        ("model-path", "", "/a"),
        ("execution-provider", "auto", "cuda"),
        ("device", "0", "1"),
        ("model-cache-dir", "", "/b"),
        ("ort-library", "", "/c"),
        ("scale", "0", "2"),
        ("window-length", "0", "16"),
        ("window-overlap", "-1", "4"),
        ("window-mode", "default", "wavefront"),
        ("steps", "0", "15"),
        ("sampler-mode", "default", "fast"),
        ("guidance-scale", "-1", "7.5"),
        ("guidance-rescale", "-1", "0.5"),
        ("guidance-batching", "auto", "separate"),
        ("prompt", "", "a dog"),
        ("negative-prompt", "", "blur"),
        ("prompt-suffix", "spaced", "glued"),
        ("noise-level", "0", "500"),
        ("seed", "0", "18446744073709551615"),
        ("posterior", "mean", "sample"),
        ("decode-overlap", "-1", "1"),
        ("color-fix", "default", "wavelet"),
        ("strength", "-1", "0.5"),
        ("tile-size", "0", "512"),
        ("tile-overlap", "-1", "32"),
        ("scene-detection", "true", "false"),
        ("overload", "block", "bypass"),
        ("processing-latency", "0", "40000000"),
        ("on-error", "fail", "bypass"),
        ("threads", "0", "3"),
    ] {
        let text = || {
            let value = element.property_value(property);
            match value.get::<Option<String>>() {
                Ok(text) => text.unwrap_or_default(),
                Err(_) => value.serialize().unwrap().to_string(),
            }
        };
        assert_eq!(text(), default, "{property}");
        element.set_property_from_str(property, other);
        assert_eq!(text(), other, "{property}");
        let blurb = element.find_property(property).unwrap().blurb().unwrap().to_string();
        assert!(blurb.len() > 15, "{property}");
    }
}

#[test]
fn the_guidance_interval_reads_back() {
    init();
    let element = gst::ElementFactory::make("starsr").build().unwrap();
    let interval = || {
        let array = element.property::<gst::Array>("guidance-interval");
        array.iter().map(|value| value.get::<f32>().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(interval(), [0.0, 1.0]);
    element.set_property_from_str("guidance-interval", "<0.2,0.8>");
    assert_eq!(interval(), [0.2, 0.8]);
    element.set_property("guidance-interval", gst::Array::new([0.25f32, 0.5]));
    assert_eq!(interval(), [0.25, 0.5]);
}
