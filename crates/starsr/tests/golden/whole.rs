// SPDX-License-Identifier: MPL-2.0

//! The whole upscaler over ONNX Runtime against the reference program, on bundles of small
//! networks.

use std::path::{Path, PathBuf};

use ndarray::{Array3, Array4, Array5, Axis, s};
use starsr::bundle::Bundle;
use starsr::color::ColorFix;
use starsr::diffusion::guidance::Batching;
use starsr::diffusion::noise::{Noise, POSTERIOR_STEP};
use starsr::diffusion::schedule::SamplerMode;
use starsr::model::{Conditioning, Embedding};
use starsr::runtime::{Engine, Options, Provider};
use starsr::upscaler::Posterior;
use starsr::windows::WindowMode;
use starsr::{Cancel, Settings, Size, Upscaler};
use starsr_testkit::{fixtures, stand_in};

use crate::reference::{Report, Tensors, max_difference, read_json};
use crate::tables::planar;

/// The noise of a reference.
struct Given {
    posterior: Array4<f32>,
    start: Array4<f32>,
    steps: Array5<f32>,
}

impl Noise for Given {
    fn fill(&self, frame: u64, step: u32, first: usize, out: &mut [f32]) {
        let frame = frame as usize;
        let values = match step {
            POSTERIOR_STEP => self.posterior.index_axis(Axis(0), frame),
            0 => self.start.index_axis(Axis(0), frame),
            _ => self.steps.slice(s![step as usize - 1, frame, .., .., ..]),
        };
        assert!(values.len() >= first + out.len());
        for (out, v) in out.iter_mut().zip(values.iter().skip(first)) {
            *out = *v;
        }
    }
}

/// The folder that `STARSR_SMALL` names, else `.cache/small`.
pub fn folder() -> PathBuf {
    std::env::var_os("STARSR_SMALL")
        .map_or_else(|| fixtures::repository(".cache/small"), PathBuf::from)
}

/// Every case of a folder's `index.json`.
pub fn cases(folder: &Path, report: &mut Report) {
    for (name, case) in read_json(&folder.join("index.json"))["cases"].as_object().unwrap() {
        let tensors = Tensors::read(&folder.join(format!("{name}.safetensors")));
        let frames = planar(&tensors.array("lr_u8"));
        let bundle = folder.join(case["bundle"].as_str().unwrap());
        let ours = upscaled(&bundle, Batching::Auto, case, &tensors, &frames);
        let expected: Array4<f32> = tensors.array("result");
        report.check(ours.len() == expected.dim().0, || {
            format!("{name}: {} frames came out", ours.len())
        });
        let difference = ours
            .iter()
            .zip(expected.axis_iter(Axis(0)))
            .map(|(ours, theirs)| max_difference(ours.view(), theirs.permuted_axes([2, 0, 1])))
            .fold(0.0, f64::max);
        report.difference(name, difference, case["limit"].as_f64().unwrap());
    }
}

/// A clip whose halves of guidance share the latents, have latents of their own, or run one after
/// the other.
pub fn sharing(folder: &Path, report: &mut Report) {
    let name = "one_window";
    let case = &read_json(&folder.join("index.json"))["cases"][name];
    let tensors = Tensors::read(&folder.join(format!("{name}.safetensors")));
    let frames = planar(&tensors.array("lr_u8"));
    let shared = folder.join(case["bundle"].as_str().unwrap());
    let own = fixtures::copy_of(&shared);
    fixtures::edit(own.path(), |text| text.replacen("shared_prefix = true\n", "", 1));
    let run = |bundle: &Path, batching| upscaled(bundle, batching, case, &tensors, &frames);
    let together = run(&shared, Batching::Together);
    for (what, other) in [
        ("latents of their own", run(own.path(), Batching::Together)),
        ("one after the other", run(&shared, Batching::Separate)),
    ] {
        report.check(together.len() == other.len(), || format!("{what}: {} frames", other.len()));
        let pairs = together.iter().zip(&other);
        let difference = pairs.map(|(a, b)| max_difference(a.view(), b.view())).fold(0.0, f64::max);
        report.difference(what, difference, 1e-6);
    }
}

fn upscaled(
    bundle: &Path,
    guidance_batching: Batching,
    case: &serde_json::Value,
    tensors: &Tensors,
    frames: &[Array3<f32>],
) -> Vec<Array3<f32>> {
    let whole =
        |key: &str| case[key].as_u64().unwrap_or_else(|| panic!("{key} is {}", case[key])) as usize;
    let number =
        |key: &str| case[key].as_f64().unwrap_or_else(|| panic!("{key} is {}", case[key])) as f32;
    let word = |key: &str| case[key].as_str().unwrap_or_else(|| panic!("{key} is {}", case[key]));
    let steps = whole("steps");
    let settings = Settings {
        scale: Some(4),
        window_length: Some(whole("length")),
        window_overlap: Some(whole("overlap")),
        window_mode: Some(WindowMode::Wavefront),
        steps: Some(steps as u32),
        sampler_mode: Some(match word("mode") {
            "fast" => SamplerMode::Fast,
            "normal" => SamplerMode::Normal,
            other => panic!("mode {other}"),
        }),
        guidance_scale: Some(number("guidance_scale")),
        guidance_rescale: Some(number("guidance_rescale")),
        noise_level: Some(whole("noise_level") as u32),
        posterior: match word("posterior") {
            "mean" => Posterior::Mean,
            "sample" => Posterior::Sample,
            other => panic!("posterior {other}"),
        },
        decode_overlap: Some(whole("decode_overlap")),
        color_fix: Some(match word("color_fix") {
            "none" => ColorFix::None,
            "adain" => ColorFix::Adain,
            "wavelet" => ColorFix::Wavelet,
            other => panic!("color_fix {other}"),
        }),
        strength: Some(1.0),
        tile_size: Some(0),
        guidance_batching,
        ..Settings::default()
    };

    let bundle = Bundle::open(bundle).unwrap();
    let options = Options {
        library: Some(fixtures::onnx_runtime()),
        provider: Provider::Cpu,
        ..Options::default()
    };
    let engine = Engine::load(&bundle, &options, &Cancel::default()).unwrap();
    let mut manifest = bundle.manifest().clone();
    let window = &mut manifest.window;
    window.minimum = window.minimum.min(whole("length"));
    window.maximum = window.maximum.max(whole("length"));

    let noise = Given {
        posterior: tensors.array("vae_noise"),
        start: tensors.latents("init_noise"),
        // A single step has no noise.
        steps: if steps > 1 {
            tensors.latents("solver_noise")
        } else {
            Array5::zeros((0, 0, 0, 0, 0))
        },
    };
    let embedding = |name: &str| {
        let y: Array3<f32> = tensors.array(name);
        Some(Embedding::new(y.index_axis_move(Axis(0), 0)))
    };
    let (_, height, width) = frames[0].dim();
    let mut upscaler = Upscaler::new(
        Box::new(engine),
        &manifest,
        &settings,
        Size { width, height },
        Cancel::default(),
    )
    .unwrap()
    .with_noise(Box::new(noise));
    let conditioning = Conditioning { positive: embedding("y"), negative: embedding("y_neg") };
    upscaler.set_conditioning(conditioning).unwrap();

    stand_in::run(&mut upscaler, 0..frames.len() as u64, |k| frames[k as usize].clone(), 1)
}
