// SPDX-License-Identifier: MPL-2.0

//! Programs and pipelines to test.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Once;

use gst::prelude::*;

use starsr_testkit::fixtures;
use starsr_testkit::patience::patiently;

pub fn init() {
    static INIT: Once = Once::new();
    INIT.call_once(|| {
        gst::init().unwrap();
        gststarsr::plugin_register_static().unwrap();
    });
}

/// The folder of plugin and examples.
pub fn release() -> PathBuf {
    std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_path_buf()
}

/// A file that has to have been built.
pub fn built(file: &str) -> PathBuf {
    let path = release().join(file);
    assert!(
        path.is_file(),
        "{} is missing: run `make test-rust`, or `cargo test` without --test",
        path.display()
    );
    path
}

/// A file of the project.
pub fn source(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file)
}

/// A program that finds the plugin in a file, as where it is installed.
pub fn with_plugin(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let plugin = built("libgststarsr.so");
    let mut command = Command::new(program);
    command
        .env("GST_PLUGIN_PATH", plugin.parent().unwrap())
        .env("GST_REGISTRY", Path::new(env!("CARGO_TARGET_TMPDIR")).join("registry.bin"));
    command
}

/// Properties for a small bundle, as `NAME=VALUE`.
pub fn properties(bundle: &Path) -> [String; 4] {
    [
        format!("model-path={}", bundle.display()),
        format!("ort-library={}", fixtures::onnx_runtime().display()),
        "execution-provider=cpu".into(),
        "threads=1".into(),
    ]
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// An MP4 of `frames` frames of 32x24 pixels, 25 a second, with sound if asked for.
pub fn make_clip(path: &Path, frames: u32, sound: bool) {
    init();
    let sound = if sound {
        // 1024 samples at 48 kHz are a packet.
        let packets = frames * 48000 / 25 / 1024;
        format!(
            "audiotestsrc num-buffers={packets} samplesperbuffer=1024 ! audio/x-raw,rate=48000 ! avenc_aac ! aacparse ! queue ! m."
        )
    } else {
        String::new()
    };
    let pipeline = parse(&format!(
        "videotestsrc pattern=ball num-buffers={frames} ! video/x-raw,format=I420,width=32,height=24,framerate=25/1 ! \
         x264enc speed-preset=ultrafast tune=zerolatency ! h264parse ! queue ! mp4mux name=m ! filesink location=\"{}\" {sound}",
        path.display()
    ));
    run(&pipeline);
}

pub fn parse(description: &str) -> gst::Pipeline {
    init();
    gst::parse::launch(description)
        .unwrap_or_else(|e| panic!("{description}: {e}"))
        .downcast()
        .unwrap()
}

/// Plays to the end and returns to NULL; gives the element messages of starsr.
#[track_caller]
pub fn run(pipeline: &gst::Pipeline) -> Vec<gst::Structure> {
    pipeline.set_state(gst::State::Playing).unwrap();
    let posted = wait(pipeline, || false);
    pipeline.set_state(gst::State::Null).unwrap();
    posted
}

/// Listens as an application does until the end of the stream, or until `done`.
#[track_caller]
pub fn wait(pipeline: &gst::Pipeline, done: impl Fn() -> bool) -> Vec<gst::Structure> {
    let bus = pipeline.bus().unwrap();
    let mut posted = Vec::new();
    patiently("the pipeline hangs", || {
        if done() {
            return Some(());
        }
        match bus.timed_pop(gst::ClockTime::from_mseconds(50))?.view() {
            gst::MessageView::Eos(_) => return Some(()),
            gst::MessageView::Error(error) => panic!("{}: {:?}", error.error(), error.debug()),
            gst::MessageView::Latency(_) => {
                let _ = pipeline.recalculate_latency();
            }
            gst::MessageView::Element(element) => {
                posted.extend(
                    element
                        .structure()
                        .filter(|s| s.name().starts_with("starsr-"))
                        .map(|s| s.to_owned()),
                );
            }
            _ => (),
        }
        None
    });
    posted
}

/// A counter in an element's `stats`.
pub fn stat(element: &gst::Element, field: &str) -> u64 {
    element.property::<gst::Structure>("stats").get(field).unwrap()
}

/// The frames of a file as grey pixels, with their size.
pub fn decoded(path: &Path) -> (Vec<Vec<u8>>, (i32, i32)) {
    let pipeline = parse(&format!(
        "filesrc location=\"{}\" ! decodebin ! videoconvert ! video/x-raw,format=GRAY8 ! appsink name=f sync=false",
        path.display()
    ));
    let sink = pipeline.by_name("f").unwrap().downcast::<gst_app::AppSink>().unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let (mut frames, mut size) = (Vec::new(), (0, 0));
    while let Ok(sample) = sink.pull_sample() {
        let s = sample.caps().unwrap().structure(0).unwrap();
        size = (s.get("width").unwrap(), s.get("height").unwrap());
        frames.push(sample.buffer().unwrap().map_readable().unwrap().to_vec());
    }
    pipeline.set_state(gst::State::Null).unwrap();
    (frames, size)
}
