// SPDX-License-Identifier: MPL-2.0

//! Running bundles on ONNX Runtime: exact results, cancelling, and one sentence for everything that
//! can be wrong.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ndarray::{Array4, ArrayView4, s};
use starsr::Cancel;
use starsr::bundle::{Bundle, Role};
use starsr::diffusion::guidance::Guidance;
use starsr::diffusion::sampler::Sampler;
use starsr::diffusion::schedule::{SamplerMode, Schedule, ScheduleConfig};
use starsr::model::{Conditioning, Model, Samples};
use starsr::runtime::{Engine, Options, Provider};
use starsr::{Error, Result, Setting};
use starsr_testkit::{fixtures, stand_in::velocity};

fn options() -> Options {
    Options {
        library: Some(fixtures::onnx_runtime()),
        provider: Provider::Cpu,
        ..Options::default()
    }
}

fn load(bundle: &Path) -> Result<Engine> {
    Engine::load(&Bundle::open(bundle)?, &options(), &Cancel::default())
}

/// Values which differ everywhere, in about `[-1,1]`.
fn pattern(shape: (usize, usize, usize, usize), seed: usize) -> Array4<f32> {
    let mut n = seed;
    Array4::from_shape_simple_fn(shape, || {
        n = (n * 1103515245 + 12345) % (1 << 31);
        n as f32 / (1 << 30) as f32 - 1.0
    })
}

/// What `make_bundle.py` says the tiny bundle computes.
fn expected_v(x: &Array4<f32>, t: i64, hint: &Array4<f32>) -> Array4<f32> {
    let mut v = Array4::zeros(x.dim());
    let mut sum = Array4::<f32>::zeros((1, x.dim().1, x.dim().2, x.dim().3));
    for f in 0..x.dim().0 {
        let one = s![f..f + 1, .., .., ..];
        sum = sum + x.slice(one);
        let frame = &x.slice(one) / 2.0
            + hint.slice(one)
            + &hint.slice(one) / 4.0
            + &sum / 8.0
            + t as f32 / 1000.0;
        v.slice_mut(one).assign(&frame);
    }
    v
}

#[track_caller]
fn assert_close(found: &Array4<f32>, expected: &Array4<f32>, tolerance: f32) {
    assert_eq!(found.dim(), expected.dim());
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "off by {worst}");
}

#[test]
fn operations_are_counted_as_the_manifest_says() {
    let bundle = fixtures::copy_of(&fixtures::tiny());
    let mut unknown = load(bundle.path()).unwrap();
    let counts = "[canvas]\noperations = [2e6, 1000.0]\n";
    fixtures::edit(bundle.path(), |text| text.replacen("[canvas]\n", counts, 1));
    let mut engine = load(bundle.path()).unwrap();
    let x = pattern((3, 48, 4, 6), 0);
    for engine in [&mut unknown, &mut engine] {
        velocity(engine, x.view(), 0, x.view(), None).unwrap();
        assert!(engine.stats().predicting() > Duration::ZERO);
        assert!(engine.stats().predicting() <= engine.stats().total());
    }
    // Three frames of 16 x 24 pixels.
    let pixels = 384;
    assert_eq!(engine.stats().operations(), 3 * pixels * (2_000_000 + 1000 * pixels) / 1_000_000);
    assert_eq!(unknown.stats().operations(), 0);
}

#[track_caller]
fn bundle_error(graphs: &[(&str, &str)]) -> (String, String) {
    let bundle = fixtures::tiny_with(graphs);
    match load(bundle.path()).map(|_| ()) {
        Err(Error::Bundle { file, field, reason, .. }) => {
            assert!(file.starts_with(bundle.path()) && file.is_file(), "{}", file.display());
            assert!(!reason.contains('\n'), "{reason}");
            (field, reason)
        }
        other => panic!("expected an error of the bundle, got {other:?}"),
    }
}

#[test]
fn encodes_and_decodes_exactly() {
    let mut engine = load(&fixtures::tiny()).unwrap();
    let pixels = pattern((5, 3, 16, 24), 1);
    let latents = engine.encode(pixels.view()).unwrap();
    assert_eq!(latents.dim(), (5, 48, 4, 6));
    for ((f, c, y, x), &latent) in latents.view().indexed_iter() {
        let (block, channel) = (c / 3, c % 3);
        assert_eq!(latent, pixels[(f, channel, 4 * y + block / 4, 4 * x + block % 4)]);
    }
    assert_eq!(engine.decode(latents.view()).unwrap().view(), pixels);
    assert_eq!(
        (engine.stats().runs(Role::VaeEncoder), engine.stats().runs(Role::VaeDecoder)),
        (1, 1)
    );
    assert!(engine.stats().total() > Duration::ZERO);
}

#[test]
fn predicts_exactly_for_any_size_of_window() {
    let mut engine = load(&fixtures::tiny()).unwrap();
    let sizes = [(4, 4, 6), (4, 4, 6), (1, 4, 6), (7, 3, 5), (4, 4, 6), (2, 1, 1)];
    for (i, (frames, height, width)) in sizes.into_iter().enumerate() {
        let x = pattern((frames, 48, height, width), i);
        let hint = pattern((frames, 48, height, width), i + 100);
        let t = 899 - 100 * i as i64;
        let v = velocity(&mut engine, x.view(), t, hint.view(), None).unwrap();
        assert_close(&v, &expected_v(&x, t, &hint), 1e-6);
    }
    assert_eq!(
        (engine.stats().runs(Role::ControlNet), engine.stats().runs(Role::Denoiser)),
        (6, 6)
    );
}

#[test]
fn takes_views_in_any_layout() {
    let mut engine = load(&fixtures::tiny()).unwrap();
    let pixels = pattern((3, 3, 8, 8), 3);
    let mut reversed = pixels.clone();
    reversed.invert_axis(ndarray::Axis(0));
    reversed.swap_axes(2, 3);
    let straight = reversed.as_standard_layout().to_owned();
    assert_eq!(engine.encode(reversed.view()).unwrap(), engine.encode(straight.view()).unwrap());

    let x = pattern((5, 6, 4, 48), 4).permuted_axes([0, 3, 1, 2]);
    let hint = pattern((48, 5, 6, 4), 5).permuted_axes([1, 0, 2, 3]);
    let v = velocity(&mut engine, x.view(), 10, hint.view(), None).unwrap();
    assert_close(&v, &expected_v(&x, 10, &hint), 1e-6);
}

#[test]
fn no_frames_give_no_frames() {
    let mut engine = load(&fixtures::tiny()).unwrap();
    assert_eq!(engine.encode(Array4::zeros((0, 3, 8, 8)).view()).unwrap().dim(), (0, 48, 2, 2));
    assert_eq!(engine.decode(Array4::zeros((0, 48, 2, 2)).view()).unwrap().dim(), (0, 3, 8, 8));
    let none = Array4::zeros((0, 48, 2, 2));
    assert_eq!(velocity(&mut engine, none.view(), 0, none.view(), None).unwrap(), none);
}

#[test]
fn refuses_shapes_that_are_not_legal() {
    let mut engine = load(&fixtures::tiny()).unwrap();
    let x = Array4::<f32>::zeros((1, 48, 2, 2));
    let results = [
        engine.encode(Array4::zeros((1, 3, 9, 8)).view()),
        engine.encode(Array4::zeros((1, 4, 8, 8)).view()),
        engine.decode(Array4::zeros((1, 47, 2, 2)).view()),
        velocity(&mut engine, x.view(), 0, Array4::zeros((2, 48, 2, 2)).view(), None)
            .map(Samples::from),
    ];
    for result in results {
        assert!(matches!(result, Err(Error::Inference { .. })), "{result:?}");
    }
}

#[test]
fn half_precision_graphs() {
    let bundle = fixtures::tiny_with(&[
        ("vae_encoder", "encoder_half.onnx"),
        ("vae_decoder", "decoder_half.onnx"),
        ("controlnet", "controlnet_half.onnx"),
        ("denoiser", "denoiser_half.onnx"),
    ]);
    let mut engine = load(bundle.path()).unwrap();
    let pixels = pattern((3, 3, 8, 8), 6);
    let latents = engine.encode(pixels.view()).unwrap();
    let latents = latents.view().to_owned();
    assert_close(&engine.decode(latents.view()).unwrap().view().to_owned(), &pixels, 5e-4);
    let hint = pattern((3, 48, 2, 2), 7);
    let v = velocity(&mut engine, latents.view(), 500, hint.view(), None).unwrap();
    assert_close(&v, &expected_v(&latents, 500, &hint), 5e-3);
}

#[test]
fn results_do_not_depend_on_threads_or_on_the_run() {
    let bundle = Bundle::open(&fixtures::tiny()).unwrap();
    let x = pattern((4, 48, 16, 16), 8);
    let run = |threads| {
        let options = Options { threads, ..options() };
        let mut engine = Engine::load(&bundle, &options, &Cancel::default()).unwrap();
        velocity(&mut engine, x.view(), 7, x.view(), None).unwrap()
    };
    assert_eq!(run(1), run(2));
    assert_eq!(run(0), run(0));
}

/// The denoiser of this bundle runs for `t` million rounds: for ever, unless it is stopped.
fn endless() -> (tempfile::TempDir, Cancel, Engine) {
    let folder = fixtures::tiny_with(&[("denoiser", "denoiser_endless.onnx")]);
    let cancel = Cancel::default();
    let engine = Engine::load(&Bundle::open(folder.path()).unwrap(), &options(), &cancel).unwrap();
    (folder, cancel, engine)
}

/// Waits for something that another thread does.
fn wait_until(done: impl Fn() -> bool) {
    while !done() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn run_endlessly(engine: &mut Engine, x: ArrayView4<f32>) -> Result<Array4<f32>> {
    velocity(engine, x, 999, x, None)
}

#[test]
fn a_running_graph_is_cancelled_and_the_engine_works_on() {
    let (_folder, cancel, mut engine) = endless();
    let x = pattern((4, 48, 30, 40), 9);
    for round in 0..3 {
        let (cancel, stats) = (cancel.clone(), engine.stats());
        let runs = [Role::ControlNet, Role::Denoiser].map(|role| stats.runs(role));
        let ended = Arc::new(AtomicBool::new(false));
        let canceller = std::thread::spawn({
            let (cancel, ended) = (cancel.clone(), ended.clone());
            move || {
                // After the ControlNet comes the endless part.
                wait_until(|| stats.runs(Role::ControlNet) > runs[0]);
                cancel.set(true);
                // The second time the request is taken back as soon as the run has ended; a request
                // between both graphs keeps the denoiser from running at all.
                if round == 1 {
                    wait_until(|| {
                        stats.runs(Role::Denoiser) > runs[1] || ended.load(Ordering::SeqCst)
                    });
                    cancel.set(false);
                }
            }
        });
        let result = run_endlessly(&mut engine, x.view());
        ended.store(true, Ordering::SeqCst);
        assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
        canceller.join().unwrap();
        // While the request stands nothing runs.
        if round != 1 {
            assert!(matches!(
                engine.encode(Array4::zeros((1, 3, 8, 8)).view()),
                Err(Error::Cancelled)
            ));
        }
        cancel.set(false);
        // After no round of the endless part, v is control_0 + control_1.
        let v = velocity(&mut engine, x.view(), 0, x.view(), None).unwrap();
        assert_close(&v, &(&x * 1.75), 1e-6);
    }
}

#[test]
fn loading_is_cancelled() {
    let cancel = Cancel::default();
    cancel.set(true);
    let result =
        Engine::load(&Bundle::open(&fixtures::tiny()).unwrap(), &options(), &cancel).map(|_| ());
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
}

#[test]
fn cancelling_after_the_engine_is_gone_is_harmless() {
    let (_folder, cancel, engine) = endless();
    drop(engine);
    cancel.set(true);
    cancel.set(false);
}

#[test]
fn values_that_are_not_numbers_are_an_error() {
    let bundle = fixtures::tiny_with(&[("denoiser", "denoiser_nan.onnx")]);
    let mut engine = load(bundle.path()).unwrap();
    let (mut x, hint) = (Array4::zeros((1, 48, 2, 2)), Array4::zeros((1, 48, 2, 2)));
    let schedule = Schedule::new(&ScheduleConfig::default()).unwrap();
    let plan = schedule.plan(SamplerMode::Normal, 1, 900).unwrap();
    let mut sampler = Sampler::new(&schedule, &plan, Guidance::new(1.0, 0.0).unwrap()).unwrap();
    let conditioning = Conditioning::default();
    match sampler.denoise(&mut engine, 0, x.view_mut(), hint.view(), &conditioning) {
        Err(Error::Inference { graph, reason }) => {
            assert_eq!(graph, Role::Denoiser);
            assert!(reason.contains("not finite"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn wrong_tensors_are_refused_before_the_first_frame() {
    // (role, file, tensor in the field, part of the reason)
    let cases = [
        ("vae_encoder", "encoder_channels.onnx", "latents", "[?,12,?,?], but must have [F,48,h,w]"),
        (
            "vae_encoder",
            "encoder_name.onnx",
            "image",
            "is not an input of this role, whose inputs are: pixels",
        ),
        ("vae_encoder", "encoder_rank.onnx", "pixels", "[1,3,?,?,?], but must have [F,3,H,W]"),
        (
            "controlnet",
            "controlnet_one_control.onnx",
            "control_1",
            "the ControlNet gives only control_0",
        ),
        ("controlnet", "controlnet_half.onnx", "control_0", "f16"),
        (
            "controlnet",
            "controlnet_embedding.onnx",
            "embedding",
            "controlnet takes an embedding, but denoiser does not",
        ),
        (
            "denoiser",
            "denoiser_embedding.onnx",
            "embedding",
            "denoiser takes an embedding, but controlnet does not",
        ),
        (
            "denoiser",
            "denoiser_t_float.onnx",
            "tensor t",
            "has element type f32, but must have i64",
        ),
        ("denoiser", "denoiser_extra_control.onnx", "control_2", "gives only control_0, control_1"),
        ("denoiser", "denoiser_extra_input.onnx", "mask", "is not an input of this role"),
        (
            "denoiser",
            "denoiser_fixed_frames.onnx",
            "tensor x",
            "[?,48,8,?,?], but must have [B,48,F,h,w]",
        ),
        (
            "denoiser",
            "denoiser_output_name.onnx",
            "noise",
            "is not an output of this role, whose outputs are: v",
        ),
    ];
    for (role, file, tensor, part) in cases {
        let (field, reason) = bundle_error(&[(role, file)]);
        assert!(field.contains(tensor), "{file}: {field}: {reason}");
        assert!(reason.contains(part), "{file}: {field}: {reason}");
    }
}

#[test]
fn graphs_that_do_not_load_are_refused() {
    let whole = fs::read(fixtures::tiny().join("denoiser.onnx")).unwrap();
    for bytes in [&whole[..whole.len() / 2], b"not a graph", b""] {
        let copy = fixtures::copy_of_tiny();
        fixtures::replace_graph(copy.path(), "denoiser", bytes);
        match load(copy.path()).map(|_| ()) {
            Err(Error::Bundle { file, field, reason, .. }) => {
                assert_eq!(
                    (file, field.as_str()),
                    (copy.path().join("denoiser.onnx"), "graphs.denoiser")
                );
                assert!(
                    reason.starts_with("ONNX Runtime 1.")
                        && reason.contains("cannot load this graph"),
                    "{reason}"
                );
                assert!(!reason.contains('\n'), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_text_encoder_is_checked_too() {
    let with_text = |file: &str| {
        let copy = fixtures::copy_of_tiny();
        let path = copy.path().join("text.onnx");
        fs::copy(fixtures::folder().join("graphs").join(file), &path).unwrap();
        let table = format!(
            "\n[graphs.text_encoder]\nfile = \"text.onnx\"\nsha256 = \"{}\"\n",
            fixtures::sha256(&path)
        );
        fixtures::edit(copy.path(), |text| text + &table);
        load(copy.path()).unwrap().embed(&["a dog"])
    };
    with_text("text_encoder.onnx").unwrap();
    let error = with_text("encoder_name.onnx").unwrap_err().to_string();
    assert!(error.contains("text_encoder") && error.contains("tokens"), "{error}");
}

#[test]
fn a_named_provider_works_or_is_an_error() {
    let bundle = Bundle::open(&fixtures::tiny()).unwrap();
    for provider in [Provider::Cuda, Provider::TensorRt] {
        let options = Options { provider, ..options() };
        match Engine::load(&bundle, &options, &Cancel::default()) {
            Ok(engine) => assert_eq!(engine.provider(), provider),
            Err(Error::Provider { provider: name, reason }) => {
                assert_eq!(name, provider);
                assert!(!reason.is_empty() && !reason.contains('\n'), "{reason}");
            }
            Err(other) => panic!("{other}"),
        }
    }
    let beyond = Options { provider: Provider::Cuda, device: u32::MAX, ..options() };
    let result = Engine::load(&bundle, &beyond, &Cancel::default()).map(|_| ());
    assert!(matches!(result, Err(Error::Setting { setting: Setting::Device, .. })), "{result:?}");
}

#[test]
fn auto_says_what_it_took_and_why() {
    let bundle = Bundle::open(&fixtures::tiny()).unwrap();
    let options = Options { provider: Provider::Auto, ..options() };
    let engine = Engine::load(&bundle, &options, &Cancel::default()).unwrap();
    let passed: Vec<Provider> =
        engine.passed_over().iter().map(|(provider, _)| *provider).collect();
    let better: &[Provider] = match engine.provider() {
        Provider::TensorRt => &[],
        Provider::Cuda => &[Provider::TensorRt],
        _ => &[Provider::TensorRt, Provider::Cuda],
    };
    assert_eq!(passed, better);
    assert!(engine.passed_over().iter().all(|(_, reason)| !reason.is_empty()));
    assert!(engine.runtime_version().starts_with("1."));
}
