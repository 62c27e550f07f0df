// SPDX-License-Identifier: MPL-2.0

//! Bundles that restore in one evaluation of one graph: their manifest, and what they make of
//! frames, with a stand-in for the graph.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ndarray::{Array3, ArrayView4};
use starsr::bundle::{Manifest, Precision, Role};
use starsr::model::{Denoiser, Memory, Model, Query, Samples};
use starsr::upscaler::Received;
use starsr::windows::WindowMode;
use starsr::{Cancel, Error, Result, Setting, Settings, Size, Upscaler};
use starsr_testkit::fixtures;

/// A manifest of such a bundle.
fn manifest() -> String {
    let hash = "0".repeat(64);
    format!(
        r#"
format = 2
name = "direct"
version = "1"
licence = "other"
provenance = "none"
training_data = "none"
scale = {{ default = 4, minimum = 4, maximum = 4 }}
window = {{ length = 4, overlap = 1, minimum = 1, maximum = 9, mode = "blend" }}

[canvas]
upscale = "bicubic"
padding = "edge"
tile_memory = 8
height = {{ multiple = 16, minimum = 16 }}
width = {{ multiple = 16, minimum = 16 }}

[detail]
default = 0.5
weights = {{ file = "detail.safetensors", sha256 = "{hash}" }}

[graphs.upscaler]
file = "upscaler.onnx"
sha256 = "{hash}"
data = [{{ file = "fidelity.safetensors", sha256 = "{hash}" }}]
int8 = {{ file = "integers.onnx", sha256 = "{hash}", tile_memory = 4 }}
"#
    )
}

fn parse(text: &str) -> Result<Manifest> {
    Manifest::parse(text, Path::new("bundle.toml"))
}

/// Repeats each pixel, and adds the number of the frame in its window, in thousandths.
#[derive(Default)]
struct Repeat {
    /// Whether it pretends to compute in memory of its own.
    on_device: bool,
    /// Windows that it was given.
    windows: Arc<AtomicUsize>,
    /// Number of the window that fails, once.
    fails: Option<usize>,
}

impl Denoiser for Repeat {
    fn predict(&mut self, _query: &Query) -> Result<Vec<Samples>> {
        panic!("there is no sampler")
    }
}

impl Model for Repeat {
    fn encode(&mut self, _pixels: ArrayView4<f32>) -> Result<Samples> {
        panic!("there is no encoder")
    }

    fn decode(&mut self, _latents: ArrayView4<f32>) -> Result<Samples> {
        panic!("there is no decoder")
    }

    fn upscale(&mut self, low: ArrayView4<f32>) -> Result<Samples> {
        if Some(self.windows.fetch_add(1, Ordering::SeqCst)) == self.fails {
            return Err(Error::inference(Role::Upscaler, "out of order"));
        }
        let (frames, channels, height, width) = low.dim();
        assert!(height % 4 == 0 && width % 4 == 0, "{:?}", low.shape());
        let shape = (frames, channels, 4 * height, 4 * width);
        let high = ndarray::Array4::from_shape_fn(shape, |(f, c, y, x)| {
            low[(f, c, y / 4, x / 4)] + f as f32 / 1000.0
        });
        Ok(high.into())
    }

    fn memory(&self) -> Memory {
        if self.on_device { Memory::Device(None) } else { Memory::Main }
    }
}

fn upscaler(settings: &Settings, size: Size) -> Result<Upscaler> {
    over(Repeat::default(), settings, size)
}

fn over(model: Repeat, settings: &Settings, size: Size) -> Result<Upscaler> {
    let manifest = parse(&manifest()).unwrap();
    Upscaler::new(Box::new(model), &manifest, settings, size, Cancel::default())
}

/// All frames that come out before others must be sent.
fn receive(upscaler: &mut Upscaler) -> Result<Vec<Array3<f32>>> {
    let mut frames = Vec::new();
    while let Received::Frame(frame) = upscaler.receive_frame()? {
        frames.push(frame);
    }
    Ok(frames)
}

fn frame(number: u64, size: Size) -> Array3<f32> {
    Array3::from_shape_fn((3, size.height, size.width), |(c, y, x)| {
        (7 * number as usize + 5 * c + 3 * y + x) as f32 % 19.0 / 20.0
    })
}

fn restored(settings: &Settings, size: Size, numbers: std::ops::Range<u64>) -> Vec<Array3<f32>> {
    let mut upscaler = upscaler(settings, size).unwrap();
    let mut frames = Vec::new();
    for number in numbers {
        upscaler.send_frame(number, frame(number, size)).unwrap();
        frames.extend(receive(&mut upscaler).unwrap());
    }
    upscaler.flush();
    frames.extend(receive(&mut upscaler).unwrap());
    frames
}

/// An upscaler over `model` that has ten frames: three windows.
fn with_three_windows(model: Repeat, size: Size) -> Upscaler {
    let mut upscaler = over(model, &Settings::default(), size).unwrap();
    (0..10).for_each(|number| upscaler.send_frame(number, frame(number, size)).unwrap());
    upscaler.flush();
    upscaler
}

#[test]
fn a_device_restores_the_next_window_while_one_is_finished() {
    let size = Size::new(9, 6);
    let expected = restored(&Settings::default(), size, 0..10);
    for on_device in [false, true] {
        let model = Repeat { on_device, ..Repeat::default() };
        let windows = model.windows.clone();
        let mut upscaler = with_three_windows(model, size);
        let mut counts = Vec::new();
        for expected in &expected {
            let Received::Frame(frame) = upscaler.receive_frame().unwrap() else {
                panic!("a frame is missing")
            };
            assert_eq!(frame, expected);
            counts.push(windows.load(Ordering::SeqCst));
        }
        let [first, later] = if on_device { [2, 3] } else { [1, 2] };
        let counted = [first, first, first, later, later, later, 3, 3, 3, 3];
        assert_eq!(counts, counted, "{on_device}");
    }
}

#[test]
fn a_window_that_failed_ahead_is_tried_again_and_takes_none_along() {
    let size = Size::new(9, 6);
    let expected = restored(&Settings::default(), size, 0..10);
    let model = |fails| Repeat { on_device: true, fails: Some(fails), ..Repeat::default() };
    // The second run is ahead of the first window's end.
    let frames = receive(&mut with_three_windows(model(1), size)).unwrap();
    assert_eq!(frames, expected);
    let mut upscaler = with_three_windows(model(0), size);
    assert!(upscaler.receive_frame().is_err());
    assert_eq!(receive(&mut upscaler).unwrap(), expected);
}

#[test]
fn what_was_restored_ahead_of_a_window_that_is_bypassed_is_left() {
    let size = Size::new(8, 8);
    let frames = |on_device| {
        let mut upscaler = with_three_windows(Repeat { on_device, ..Repeat::default() }, size);
        let mut first = || match upscaler.receive_frame().unwrap() {
            Received::Frame(frame) => frame,
            other => panic!("{other:?}"),
        };
        let mut frames: Vec<_> = (0..3).map(|_| first()).collect();
        assert_eq!(upscaler.bypass().unwrap(), 3);
        frames.extend(receive(&mut upscaler).unwrap());
        frames
    };
    let expected = frames(false);
    assert_eq!(expected.len(), 10);
    assert_eq!(frames(true), expected);
}

#[test]
fn everything_is_read() {
    let manifest = parse(&manifest()).unwrap();
    assert!(manifest.is_direct());
    assert_eq!(manifest.detail.as_ref().unwrap().default, 0.5);
    assert_eq!((manifest.latent.channels, manifest.latent.spatial_factor), (3, 4));
    assert!(manifest.graphs.denoiser.is_none());
    assert!(manifest.graphs.have(Precision::Int8) && !manifest.graphs.have(Precision::Fp16));
}

#[test]
fn format_1_has_graphs_in_one_precision() {
    let text = fs::read_to_string(fixtures::repository("models/nano/bundle.toml")).unwrap();
    assert!(!parse(&text).unwrap().graphs.have(Precision::Int8));
    let int8 = format!("int8 = {{ file = \"a\", sha256 = \"{}\" }}", "0".repeat(64));
    let text = text.replace("[graphs.denoiser]", &format!("[graphs.denoiser]\n{int8}"));
    let error = parse(&text).unwrap_err().to_string();
    assert!(error.contains("graphs.denoiser.int8"), "{error}");
}

#[test]
fn mistakes() {
    let hash = "0".repeat(64);
    let graph = format!("[graphs.denoiser]\nfile = \"a\"\nsha256 = \"{hash}\"\n[graphs.upscaler]");
    let cases = [
        ("format = 2", "format = 1", "detail", "format = 2"),
        ("minimum = 4,", "minimum = 2,", "scale.minimum", "is 2"),
        ("\"edge\"", "\"official\"", "canvas.padding", "edge"),
        ("\"blend\"", "\"wavefront\"", "window.mode", "blend"),
        ("default = 0.5", "default = 1.5", "detail.default", "is 1.5"),
        ("\"integers", "\"../integers", "graphs.upscaler.int8.file", "plain path"),
        (
            "tile_memory = 4 ",
            "tile_memory = 8000000000 ",
            "graphs.upscaler.int8.tile_memory",
            "is 8000000000",
        ),
        ("\"detail.safe", "\"/detail.safe", "detail.weights.file", "plain path"),
        ("[graphs.upscaler]", &graph, "graphs.denoiser", "no use"),
        (
            "[canvas]",
            "[vae]\nframes_per_encode = 1\nframes_per_decode = 1\n[canvas]",
            "vae",
            "no use",
        ),
        ("data = [", "#", "graphs.upscaler.data", "weights for fidelity"),
        ("multiple = 16, m", "multiple = 18, m", "canvas.height.multiple", "spatial_factor"),
        ("name =", "kind = \"i2vgen\"\nname =", "kind", "no use"),
    ];
    for (from, to, field, part) in cases {
        let text = manifest().replacen(from, to, 1);
        assert_ne!(text, manifest(), "{from}");
        match parse(&text) {
            Err(Error::Bundle { field: found, reason, .. }) => {
                assert_eq!(found, field, "{reason}");
                assert!(reason.contains(part), "{field}: {reason}");
            }
            other => panic!("{to}: {other:?}"),
        }
    }
}

#[test]
fn windows_are_cross_faded_and_cropped() {
    // Neither side is legal, so that the canvas is larger.
    let size = Size::new(9, 6);
    let frames = restored(&Settings::default(), size, 0..6);
    assert_eq!(frames.len(), 6);
    for (number, high) in frames.iter().enumerate() {
        assert_eq!(high.dim(), (3, 24, 36));
        let low = frame(number as u64, size);
        // Frame 3 is the last of the first window and the first of the second.
        let place = if number == 3 { 1.5 } else { (number % 3) as f32 };
        for ((c, y, x), &value) in high.indexed_iter() {
            let expected = low[(c, y / 4, x / 4)] + place / 1000.0;
            assert!((value - expected).abs() < 1e-5, "{number} {c} {y} {x}: {value}, {expected}");
        }
    }
}

#[test]
fn tiles_and_starts_in_the_middle_give_the_same() {
    let size = Size::new(40, 24);
    let whole = restored(&Settings::default(), size, 0..9);
    let tiles = Settings { tile_size: Some(64), tile_overlap: Some(16), ..Settings::default() };
    for (a, b) in whole.iter().zip(restored(&tiles, size, 0..9)) {
        let difference = (a - &b).mapv(f32::abs).fold(0.0f32, |m, &v| m.max(v));
        assert!(difference < 1e-6, "{difference}");
    }
    // Windows begin at multiples of 3.
    let later = restored(&Settings::default(), size, 3..9);
    assert_eq!(whole[4..], later[1..]);
}

#[test]
fn settings_of_samplers_are_refused() {
    let set = Settings::default;
    let cases = [
        (Setting::Steps, Settings { steps: Some(4), ..set() }),
        (Setting::NoiseLevel, Settings { noise_level: Some(500), ..set() }),
        (Setting::GuidanceScale, Settings { guidance_scale: Some(2.0), ..set() }),
        (Setting::WindowMode, Settings { window_mode: Some(WindowMode::Wavefront), ..set() }),
        (Setting::DecodeOverlap, Settings { decode_overlap: Some(1), ..set() }),
    ];
    for (expected, settings) in cases {
        match upscaler(&settings, Size::new(8, 8)).map(drop) {
            Err(Error::Setting { setting, reason }) => {
                assert_eq!(setting, expected);
                assert!(reason.contains("bundle direct"), "{reason}");
            }
            other => panic!("{expected}: {other:?}"),
        }
    }
    upscaler(&Settings { steps: Some(1), ..set() }, Size::new(8, 8)).unwrap();
}

#[test]
fn memory_is_estimated() {
    let estimate = |length| {
        let settings = Settings { window_length: Some(length), ..Settings::default() };
        upscaler(&settings, Size::new(160, 120)).unwrap().memory_estimate()
    };
    // A frame is 12 bytes a pixel, four times: from the model, finished, and in a tile.
    let pixels = 640 * 480;
    assert!(estimate(1) > 3 * 12 * pixels && estimate(1) < 6 * 12 * pixels, "{}", estimate(1));
    assert!(estimate(8) > 6 * estimate(1));
    // A device holds what it has made of the next window of 4, and its frames.
    let size = Size::new(160, 120);
    let on_device = Repeat { on_device: true, ..Repeat::default() };
    let [main, device] = [Repeat::default(), on_device].map(|model| {
        let upscaler = over(model, &Settings::default(), size).unwrap();
        [
            upscaler.memory_estimate() + upscaler.device_memory_estimate(),
            upscaler.read_ahead_memory(),
        ]
    });
    let window = 4 * 12 * (pixels + 160 * 120);
    assert_eq!(device, [main[0] + window, 2 * main[1]]);
}
