// SPDX-License-Identifier: MPL-2.0

//! The tables of docs/element.md are what the element and the code say. `make tables` writes them.

use std::fmt::Write;
use std::path::Path;

use gst::glib;
use gst::prelude::*;
use ndarray::ArrayView4;
use starsr::bundle::Manifest;
use starsr::diffusion::schedule::SamplerMode;
use starsr::model::{Denoiser, Model, Query, Samples};
use starsr::windows::WindowMode;
use starsr::{Cancel, Result, Settings, Size, Upscaler};
use starsr_testkit::{documentation, rig};

/// A model of which only the sizes are asked.
struct Unused;

impl Denoiser for Unused {
    fn predict(&mut self, query: &Query) -> Result<Vec<Samples>> {
        Ok(vec![query.x.to_owned().into(); query.conditions.len()])
    }
}

impl Model for Unused {
    fn encode(&mut self, pixels: ArrayView4<f32>) -> Result<Samples> {
        Ok(pixels.to_owned().into())
    }

    fn decode(&mut self, latents: ArrayView4<f32>) -> Result<Samples> {
        Ok(latents.to_owned().into())
    }
}

fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn manifest(bundle: &str) -> Manifest {
    let name = format!("models/{bundle}/bundle.toml");
    Manifest::parse(&file(&name), Path::new(&name)).unwrap()
}

fn upscaler(bundle: &str, settings: &Settings, size: Size) -> Upscaler {
    let manifest = manifest(bundle);
    Upscaler::new(Box::new(Unused), &manifest, settings, size, Cancel::default()).unwrap()
}

fn element() -> gst::Element {
    rig::init();
    gst::ElementFactory::make("starsr").build().unwrap()
}

/// The properties that are the element's own.
fn own_properties(element: &gst::Element) -> Vec<glib::ParamSpec> {
    element
        .list_properties()
        .iter()
        .filter(|p| p.owner_type() == element.type_())
        .cloned()
        .collect()
}

/// Default and allowed values of a property.
fn values(spec: &glib::ParamSpec) -> (String, String) {
    let code = |value: String| format!("`{value}`");
    if let Some(spec) = spec.downcast_ref::<glib::ParamSpecEnum>() {
        let class = spec.enum_class();
        let nicks = class.values().iter().map(|v| code(v.nick().into())).collect::<Vec<_>>();
        let default = class.value(spec.default_value_as_i32()).unwrap().nick();
        return (code(default.into()), nicks.join(", "));
    }
    macro_rules! range {
        ($($kind:ty),*) => {$(
            if let Some(spec) = spec.downcast_ref::<$kind>() {
                return (code(spec.default_value().to_string()), format!("{} to {}", spec.minimum(), spec.maximum()));
            }
        )*};
    }
    range!(
        glib::ParamSpecInt,
        glib::ParamSpecUInt,
        glib::ParamSpecInt64,
        glib::ParamSpecUInt64,
        glib::ParamSpecFloat
    );
    if let Some(spec) = spec.downcast_ref::<glib::ParamSpecBoolean>() {
        return (code(spec.default_value().to_string()), "`true`, `false`".into());
    }
    match spec.value_type().name() {
        "gchararray" => ("unset".into(), "text".into()),
        "GstStructure" => (String::new(), "structure".into()),
        "GstValueArray" => ("`<0.0, 1.0>`".into(), "two numbers from 0 to 1".into()),
        other => panic!("{} is a {other}, which this table does not know", spec.name()),
    }
}

fn properties() -> String {
    let mut table = String::from(
        "| property | values | unset | can be set up to | meaning |\n| --- | --- | --- | --- | --- |\n",
    );
    for spec in own_properties(&element()) {
        let (default, values) = values(&spec);
        let flags = spec.flags();
        let when = if !flags.contains(glib::ParamFlags::WRITABLE) {
            "read only"
        } else if flags.contains(gst::PARAM_FLAG_MUTABLE_PLAYING) {
            "PLAYING"
        } else {
            "READY"
        };
        let blurb = spec.blurb().unwrap();
        writeln!(table, "| `{}` | {values} | {default} | {when} | {blurb} |", spec.name()).unwrap();
    }
    table
}

fn latencies() -> String {
    const RATES: [(u64, u64); 5] = [(24, 1), (25, 1), (30000, 1001), (50, 1), (60, 1)];
    let mut table = String::from(
        "| `window-mode` | `window-length` | `window-overlap` | evaluations | frames | 24 fps | 25 fps | 29.97 fps | 50 fps | 60 fps |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    let blend = [(2, 1), (4, 1), (6, 1), (8, 3), (16, 4), (32, 8)]
        .map(|(length, overlap)| (WindowMode::Blend, length, overlap, 1));
    let wavefront = [(8, 4, 4), (16, 8, 14), (32, 16, 4), (32, 16, 14)]
        .map(|(length, overlap, steps)| (WindowMode::Wavefront, length, overlap, steps));
    for (mode, length, overlap, steps) in blend.into_iter().chain(wavefront) {
        let settings = Settings {
            window_mode: Some(mode),
            window_length: Some(length),
            window_overlap: Some(overlap),
            sampler_mode: Some(SamplerMode::Normal),
            steps: Some(steps),
            ..Settings::default()
        };
        let frames = upscaler("nano", &settings, Size::new(160, 120)).latency() as u64;
        let (name, steps) = match mode {
            WindowMode::Blend => ("blend", "any".to_string()),
            WindowMode::Wavefront => ("wavefront", steps.to_string()),
        };
        let times = RATES.map(|(rate, of)| format!("{:.2} s", (frames * of) as f64 / rate as f64));
        writeln!(
            table,
            "| `{name}` | {length} | {overlap} | {steps} | {frames} | {} |",
            times.join(" | ")
        )
        .unwrap();
    }
    table
}

fn memory() -> String {
    let mut table = String::from(
        "| frames in | frames out | `tile-size` unset | `tile-size=512` | `tile-size=256` | unset, `window-length=2` |\n\
         | --- | --- | --- | --- | --- | --- |\n",
    );
    for (width, height) in
        [(160, 120), (320, 240), (640, 480), (960, 540), (1280, 720), (1920, 1080)]
    {
        let gigabytes = |tile_size: Option<usize>, window_length: Option<usize>| {
            let settings = Settings { tile_size, window_length, ..Settings::default() };
            format!(
                "{:.1} GB",
                upscaler("nano2", &settings, Size::new(width, height)).memory_estimate() as f64
                    / 1e9
            )
        };
        writeln!(
            table,
            "| {width}x{height} | {}x{} | {} | {} | {} | {} |",
            4 * width,
            4 * height,
            gigabytes(None, None),
            gigabytes(Some(512), None),
            gigabytes(Some(256), None),
            gigabytes(None, Some(2))
        )
        .unwrap();
    }
    table
}

#[test]
fn tables_are_what_the_code_says() {
    documentation::check(
        "docs/element.md",
        &[("properties", properties()), ("latency", latencies()), ("memory", memory())],
    );
}
