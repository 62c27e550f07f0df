// SPDX-License-Identifier: MPL-2.0

//! Text conditions on ONNX Runtime: embeddings, both halves in one batch, the posterior, and what
//! can be missing.

use std::fs;
use std::path::Path;

use ndarray::{Array2, Array3, Array4, s};
use starsr::bundle::{Bundle, Role};
use starsr::diffusion::guidance::Batching;
use starsr::model::{Condition, Denoiser, Embedded, Embedding, Model, Query};
use starsr::runtime::{Engine, GraphTimes, Options, Provider};
use starsr::text::{Key, Prompts, SentencePiece};
use starsr::windows::WindowMode;
use starsr::{Cancel, Error, Result, Setting, Settings, Size, Upscaler};
use starsr_testkit::fixtures;
use starsr_testkit::stand_in::{self, velocity};

fn load(bundle: &Path) -> Result<Engine> {
    let options = Options {
        library: Some(fixtures::onnx_runtime()),
        provider: Provider::Cpu,
        ..Options::default()
    };
    Engine::load(&Bundle::open(bundle)?, &options, &Cancel::default())
}

/// The embedding of one text.
fn embed(engine: &mut Engine, text: &str) -> Result<Embedded> {
    engine.embed(&[text]).map(|mut embedded| embedded.remove(0))
}

#[track_caller]
fn bundle_error(bundle: &Path) -> (String, String) {
    match load(bundle).map(|_| ()) {
        Err(Error::Bundle { file, field, reason, .. }) => {
            assert!(file.starts_with(bundle) && file.is_file(), "{}", file.display());
            (field, reason)
        }
        other => panic!("expected an error of the bundle, got {other:?}"),
    }
}

fn pattern(shape: (usize, usize, usize, usize), seed: usize) -> Array4<f32> {
    let mut n = seed;
    Array4::from_shape_simple_fn(shape, || {
        n = (n * 1103515245 + 12345) % (1 << 31);
        n as f32 / (1 << 30) as f32 - 1.0
    })
}

/// What `make_bundle.py` says the text bundle computes.
fn expected_v(x: &Array4<f32>, t: i64, hint: &Array4<f32>, embedding: &Embedding) -> Array4<f32> {
    let mut v = x / 2.0 + hint + hint / 4.0 + t as f32 / 1000.0;
    v += 2.0 * embedding.values().mean().unwrap();
    let mut sum = Array3::<f32>::zeros((x.dim().1, x.dim().2, x.dim().3));
    for f in 0..x.dim().0 {
        sum += &x.slice(s![f, .., .., ..]);
        v.slice_mut(s![f, .., .., ..]).scaled_add(0.125, &sum);
    }
    v
}

fn worst(found: &Array4<f32>, expected: &Array4<f32>) -> f32 {
    assert_eq!(found.dim(), expected.dim());
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// The velocities under two conditions, as one batch.
fn both(
    engine: &mut Engine,
    x: &Array4<f32>,
    t: i64,
    hint: &Array4<f32>,
    conditions: [Condition; 2],
) -> Result<Vec<Array4<f32>>> {
    let query = Query { x: x.view(), t, hint: hint.view(), conditions: &conditions };
    let velocities = engine.predict(&query)?;
    Ok(velocities.iter().map(|v| v.view().to_owned()).collect())
}

fn text_with(graphs: &[(&str, &str)]) -> tempfile::TempDir {
    fixtures::with_graphs(&fixtures::text(), graphs)
}

#[test]
fn together_is_the_same_as_separately() {
    for_both_ways(&fixtures::text(), together_equals_separate);
}

/// Runs `check` on a bundle whose graphs broadcast, without and with shared latents.
fn for_both_ways(bundle: &Path, check: fn(&Path)) {
    check(bundle);
    check(fixtures::shared_prefix(bundle).path());
}

fn together_equals_separate(bundle: &Path) {
    let mut engine = load(bundle).unwrap();
    let texts = ["a panda test", "rock", "something else"];
    let embeddings = texts.map(|text| embed(&mut engine, text).unwrap().embedding);
    // Sizes, texts and the size of the batch change in between.
    for (i, (frames, a, b)) in
        [(4, 0, 1), (4, 1, 0), (3, 0, 2), (4, 0, 2), (1, 2, 2)].into_iter().enumerate()
    {
        let (x, hint) = (pattern((frames, 48, 4, 6), i), pattern((frames, 48, 4, 6), i + 100));
        let t = 899 - 100 * i as i64;
        let [a, b] = [&embeddings[a], &embeddings[b]];
        let pair = both(&mut engine, &x, t, &hint, [Some(a), Some(b)]).unwrap();
        for (together, embedding) in pair.iter().zip([a, b]) {
            let alone = velocity(&mut engine, x.view(), t, hint.view(), Some(embedding)).unwrap();
            assert!(worst(together, &alone) <= 1e-6);
            assert!(worst(&alone, &expected_v(&x, t, &hint, embedding)) <= 3e-6);
        }
    }
    assert!(
        worst(&expected(&embeddings[0]), &expected(&embeddings[1])) > 0.01,
        "the texts are too alike"
    );
}

/// A batch of two has latents of its own for each condition unless the manifest says otherwise.
#[test]
fn latents_are_bound_once_where_they_are_shared() {
    let repeated = text_with(&[("denoiser", "denoiser_text_counting.onnx")]);
    let shared = fixtures::shared_prefix(repeated.path());
    let x = pattern((3, 48, 4, 6), 1);
    for (bundle, batch_of_two) in [(&repeated, 2.0), (&shared, 1.0)] {
        let mut engine = load(bundle.path()).unwrap();
        let embeddings = ["rock", "a panda test"].map(|t| embed(&mut engine, t).unwrap().embedding);
        let [a, b] = &embeddings;
        let pair = both(&mut engine, &x, 7, &x, [Some(a), Some(b)]).unwrap();
        for (found, embedding) in pair.iter().zip(&embeddings) {
            let expected = expected_v(&x, 7, &x, embedding);
            assert!(worst(found, &(expected.clone() + batch_of_two)) <= 3e-6);
            let alone = velocity(&mut engine, x.view(), 7, x.view(), Some(embedding)).unwrap();
            assert!(worst(&alone, &(expected + 1.0)) <= 3e-6);
        }
    }
}

#[test]
fn without_a_text_condition_nothing_can_be_shared() {
    let bundle = fixtures::shared_prefix(&fixtures::tiny());
    let error = Bundle::open(bundle.path()).unwrap_err().to_string();
    assert!(error.contains("shared_prefix") && error.contains("has no use"), "{error}");
}

fn expected(embedding: &Embedding) -> Array4<f32> {
    let x = pattern((1, 48, 2, 2), 0);
    expected_v(&x, 0, &x, embedding)
}

#[test]
fn a_bundle_without_text_condition_can_be_asked_for_both() {
    let mut engine = load(&fixtures::tiny()).unwrap();
    let x = pattern((2, 48, 4, 4), 1);
    let pair = both(&mut engine, &x, 5, &x, [None, None]).unwrap();
    let alone = velocity(&mut engine, x.view(), 5, x.view(), None).unwrap();
    assert_eq!(pair, [alone.clone(), alone]);
}

#[test]
fn half_precision_embeddings_and_bfloat16_controls() {
    let halves = text_with(&[
        ("controlnet", "controlnet_text_half.onnx"),
        ("denoiser", "denoiser_text_half.onnx"),
    ]);
    let mut engine = load(halves.path()).unwrap();
    let embedding = embed(&mut engine, "rock").unwrap().embedding;
    let x = pattern((2, 48, 4, 4), 1);
    let v = velocity(&mut engine, x.view(), 5, x.view(), Some(&embedding)).unwrap();
    assert!(worst(&v, &expected_v(&x, 5, &x, &embedding)) < 5e-3);

    let brief = fixtures::tiny_with(&[
        ("controlnet", "controlnet_brief.onnx"),
        ("denoiser", "denoiser_brief.onnx"),
    ]);
    let x = pattern((2, 48, 4, 4), 2);
    let exact =
        velocity(&mut load(&fixtures::tiny()).unwrap(), x.view(), 5, x.view(), None).unwrap();
    let rounded = velocity(&mut load(brief.path()).unwrap(), x.view(), 5, x.view(), None).unwrap();
    let difference = worst(&rounded, &exact);
    assert!(difference > 0.0 && difference < 0.02, "{difference}");
}

#[test]
fn known_prompts_need_no_encoder() {
    let mut with = load(&fixtures::text()).unwrap();
    let bundle = fixtures::without_text_encoder();
    let mut without = load(bundle.path()).unwrap();
    let copy = fixtures::copy_of(&fixtures::text());
    fixtures::edit(copy.path(), |text| {
        text.lines()
            .filter(|line| !line.starts_with("embeddings"))
            .map(|line| format!("{line}\n"))
            .collect()
    });
    let mut only_encoder = load(copy.path()).unwrap();
    for text in ["a panda test", "rock"] {
        let known = embed(&mut with, text).unwrap();
        assert_eq!(embed(&mut without, text).unwrap(), known);
        assert_eq!(embed(&mut only_encoder, text).unwrap(), known, "{text}");
    }
    assert_eq!(with.stats().runs(Role::TextEncoder), 0);
    assert_eq!(only_encoder.stats().runs(Role::TextEncoder), 2);
    let error = embed(&mut without, "a dog").unwrap_err();
    assert!(matches!(error, Error::Setting { setting: Setting::Prompt, .. }), "{error}");
    assert!(error.to_string().contains("no text encoder"), "{error}");
}

/// A text encoder may be the largest graph of all.
#[test]
fn a_text_encoder_is_loaded_when_a_text_needs_it_and_freed() {
    let good = fs::read(fixtures::text().join("text_encoder.onnx")).unwrap();
    let bundle = fixtures::copy_of(&fixtures::text());
    fixtures::replace_graph(bundle.path(), "text_encoder", b"no graph");
    let mut engine = load(bundle.path()).unwrap();
    embed(&mut engine, "a panda test").unwrap();
    let x = Array4::zeros((1, 48, 2, 2));
    let known = embed(&mut engine, "rock").unwrap().embedding;
    velocity(&mut engine, x.view(), 5, x.view(), Some(&known)).unwrap();
    let refused = |engine: &mut Engine, text| {
        let error = engine.embed(&["rock", text]).unwrap_err();
        assert!(error.to_string().contains("cannot load this graph"), "{error}");
        assert!(matches!(error, Error::Bundle { .. }));
    };
    refused(&mut engine, "a dog");
    // Once the file is mended, a text works that failed before.
    let path = bundle.path().join("text_encoder.onnx");
    fs::write(&path, good).unwrap();
    let dog = embed(&mut engine, "a dog").unwrap();
    assert_eq!(engine.stats().runs(Role::TextEncoder), 1);
    // Freed, so that another text needs the file again, and one that is remembered does not.
    fs::write(&path, b"no graph").unwrap();
    refused(&mut engine, "a cat");
    assert_eq!(embed(&mut engine, "a dog").unwrap(), dog);
    velocity(&mut engine, x.view(), 5, x.view(), Some(&dog.embedding)).unwrap();
}

#[test]
fn memory_of_the_text_encoder_is_estimated_once_it_is_needed() {
    let with = |bytes: u64| {
        let bundle = fixtures::copy_of(&fixtures::text());
        let line = format!("[prompts]\nmemory = {bytes}\n");
        fixtures::edit(bundle.path(), |text| {
            text.replace("[prompts]\n", &line).replace("format = 1", "format = 2")
        });
        bundle
    };
    let bundle = with(1 << 30);
    let (mut upscaler, _) = upscaler(bundle.path(), &Settings::default());
    upscaler.set_prompts(&Prompts::default()).unwrap();
    let before = upscaler.memory_estimate();
    upscaler.set_prompts(&prompt("a dog")).unwrap();
    let after = upscaler.memory_estimate();
    assert!(before < 1 << 30 && after >= 1 << 30, "{before} {after}");

    let bundle = with(1 << 47);
    let error = embed(&mut load(bundle.path()).unwrap(), "a dog").unwrap_err();
    let said = "the text encoder takes 131072.0 GiB of memory, but there are";
    assert!(error.to_string().contains(said), "{error}");
    assert!(matches!(error, Error::Memory { graph: Role::TextEncoder, .. }));
    embed(&mut load(bundle.path()).unwrap(), "rock").unwrap();
}

#[test]
fn the_standard_deviation_of_the_posterior() {
    let mut engine = load(&fixtures::text()).unwrap();
    let pixels = pattern((5, 3, 16, 24), 1);
    let [mean, std] = engine.encode_posterior(pixels.view()).unwrap();
    assert_eq!(mean, engine.encode(pixels.view()).unwrap());
    assert_eq!(std.view(), mean.view().mapv(|v| v.abs() / 4.0));
    let mut tiny = load(&fixtures::tiny()).unwrap();
    assert!(engine.has_std() && !tiny.has_std());
    let error = tiny.encode_posterior(pixels.view()).unwrap_err();
    assert!(matches!(error, Error::Setting { setting: Setting::Posterior, .. }), "{error}");
}

#[test]
fn what_is_missing_is_said() {
    let no_prompts = fixtures::copy_of(&fixtures::text());
    fixtures::edit(no_prompts.path(), |text| {
        let (before, rest) = text.split_once("[prompts]").unwrap();
        let rest = &rest[rest.find("[graphs").unwrap()..];
        before.replace("guidance_scale = 2.0", "guidance_scale = 1.0") + rest
    });
    let (field, reason) = bundle_error(no_prompts.path());
    assert!(
        field.contains("controlnet, tensor embedding") && reason.contains("no table prompts"),
        "{field}: {reason}"
    );

    let tiny = |role: &str| fs::read(fixtures::tiny().join(format!("{role}.onnx"))).unwrap();
    let no_inputs = fixtures::copy_of(&fixtures::text());
    fixtures::replace_graph(no_inputs.path(), "denoiser", &tiny("denoiser"));
    let (field, reason) = bundle_error(no_inputs.path());
    assert!(
        field.contains("embedding") && reason.contains("denoiser does not"),
        "{field}: {reason}"
    );
    fixtures::replace_graph(no_inputs.path(), "controlnet", &tiny("controlnet"));
    let (field, reason) = bundle_error(no_inputs.path());
    assert!(
        field == "prompts" && reason.contains("neither controlnet nor denoiser"),
        "{field}: {reason}"
    );

    let wide = text_with(&[("denoiser", "denoiser_text_wide.onnx")]);
    let (field, reason) = bundle_error(wide.path());
    assert!(field.contains("denoiser, tensor embedding"), "{field}: {reason}");
    assert!(reason.contains("9 values a token here and 8 in prompts.embeddings"), "{reason}");

    let mut engine = load(&fixtures::text()).unwrap();
    let x = Array4::zeros((1, 48, 2, 2));
    let error = velocity(&mut engine, x.view(), 0, x.view(), None).unwrap_err();
    assert!(
        matches!(error, Error::Input { .. }) && error.to_string().contains("no embedding"),
        "{error}"
    );
    for shape in [(76, 8), (77, 0)] {
        let odd = Embedding::new(Array2::zeros(shape));
        assert!(velocity(&mut engine, x.view(), 0, x.view(), Some(&odd)).is_err(), "{shape:?}");
    }
    let (a, b) = (Embedding::new(Array2::zeros((77, 8))), Embedding::new(Array2::zeros((77, 9))));
    assert!(both(&mut engine, &x, 0, &x, [Some(&a), Some(&b)]).is_err());
    // And the engine works on.
    assert!(both(&mut engine, &x, 0, &x, [Some(&a), Some(&a)]).is_ok());
}

fn frame(number: u64) -> Array3<f32> {
    Array3::from_shape_fn((3, 8, 8), |(c, y, x)| {
        0.5 + 0.2 * (number as f32 * 1.3 + c as f32 + (8 * y + x) as f32 * 0.3).sin()
    })
}

fn upscaler(bundle: &Path, settings: &Settings) -> (Upscaler, GraphTimes) {
    let engine = load(bundle).unwrap();
    let stats = engine.stats();
    let manifest = Bundle::open(bundle).unwrap().manifest().clone();
    let (model, size) = (Box::new(engine), Size::new(8, 8));
    let upscaler = Upscaler::new(model, &manifest, settings, size, Cancel::default()).unwrap();
    (upscaler, stats)
}

fn prompt(text: &str) -> Prompts {
    Prompts { prompt: Some(text.into()), ..Prompts::default() }
}

#[test]
fn each_prompt_is_encoded_once() {
    // Of its own, since engines of one bundle share what the text encoder remembers.
    let copy = fixtures::copy_of(&fixtures::text());
    let (mut upscaler, stats) = upscaler(copy.path(), &Settings::default());
    for (text, runs) in
        [(None, 0), (Some("a dog"), 1), (Some("a dog"), 1), (Some("a cat"), 2), (None, 2)]
    {
        let prompts = Prompts { prompt: text.map(String::from), ..Prompts::default() };
        upscaler.set_prompts(&prompts).unwrap();
        assert_eq!(stand_in::run(&mut upscaler, 0..9, frame, 1).len(), 9);
        assert_eq!(stats.runs(Role::TextEncoder), runs, "{text:?}");
    }
    // A prompt that is changed and changed back besides a negative one of the user's.
    let pair = |text| Prompts { negative: Some("a stone".into()), ..prompt(text) };
    let before = stats.runs(Role::TextEncoder);
    for text in ["one", "two", "three"] {
        upscaler.set_prompts(&pair(text)).unwrap();
        upscaler.set_prompts(&pair(text)).unwrap();
    }
    assert_eq!(stats.runs(Role::TextEncoder), before + 4);
}

#[test]
fn whole_clips_together_and_separately() {
    for_both_ways(&fixtures::text(), whole_clips);
}

fn whole_clips(bundle: &Path) {
    for mode in [WindowMode::Blend, WindowMode::Wavefront] {
        let run = |guidance_batching, text: &str| {
            let settings = Settings {
                guidance_batching,
                window_mode: Some(mode),
                steps: Some(3),
                guidance_interval: Some((0.3, 1.0)),
                ..Settings::default()
            };
            let (mut upscaler, _) = upscaler(bundle, &settings);
            upscaler.set_prompts(&prompt(text)).unwrap();
            stand_in::run(&mut upscaler, 0..11, frame, 1)
        };
        let together = run(Batching::Together, "a dog");
        let separate = run(Batching::Separate, "a dog");
        for (a, b) in together.iter().zip(&separate) {
            assert!((a - b).iter().all(|d| d.abs() <= 1e-6), "{mode:?}");
        }
        assert_eq!(run(Batching::Auto, "a dog"), separate);
        assert_ne!(run(Batching::Separate, "a cat"), separate);
    }
}

#[test]
fn without_prompts_the_first_window_is_an_error() {
    let (mut upscaler, _) = upscaler(&fixtures::text(), &Settings::default());
    (0..4).for_each(|number| upscaler.send_frame(number, frame(number)).unwrap());
    let error = upscaler.receive_frame().unwrap_err();
    assert!(error.to_string().contains("set the prompts first"), "{error}");
}

/// The text bundle with T5's tokens in place of CLIP's.
fn with_t5(encoder: bool, tokenizer: bool, texts: &[&str]) -> tempfile::TempDir {
    let copy = if encoder {
        fixtures::copy_of(&fixtures::text())
    } else {
        fixtures::without_text_encoder()
    };
    let folder = fixtures::folder();
    let model = fs::read(folder.join("t5/spiece.model")).unwrap();
    fs::write(copy.path().join("spiece.model"), &model).unwrap();
    let hash = fixtures::sha256(&copy.path().join("spiece.model"));
    fixtures::edit(copy.path(), |text| {
        let kind = if tokenizer { "i2vgen" } else { "cogvideox" };
        let file = format!("tokenizer = {{ file = \"spiece.model\", sha256 = \"{hash}\" }}\n");
        let more =
            format!("embedded = {texts:?}\nlength = 77\n{}", if tokenizer { &file } else { "" });
        text.replace("format = 1", &format!("format = 2\nkind = \"{kind}\""))
            .replace("[prompts]\n", &format!("[prompts]\n{more}"))
    });
    copy
}

#[test]
fn tokens_of_t5_reach_the_text_encoder() {
    let bundle = with_t5(true, true, &["a panda test", "rock"]);
    let mut engine = load(bundle.path()).unwrap();
    let model = fs::read(bundle.path().join("spiece.model")).unwrap();
    let tokenizer = SentencePiece::read(&model, 77).unwrap();
    for text in ["a dog", "", "Crème  brûlée"] {
        let tokens = tokenizer.tokenize(text).unwrap().ids;
        let found = embed(&mut engine, text).unwrap();
        let first = found.embedding.values().column(0).to_owned();
        assert!(tokens.iter().zip(first).all(|(&t, e)| t as f32 / 65536.0 == e), "{text}");
        assert_eq!(found.truncated, 0);
    }
    assert_eq!(engine.stats().runs(Role::TextEncoder), 3);
    // The same tokens as those of an embedding that comes with the bundle.
    let (a, b) = (embed(&mut engine, "rock").unwrap(), embed(&mut engine, " rock\n").unwrap());
    assert_eq!((a.clone(), engine.stats().runs(Role::TextEncoder)), (b, 3));
    let long = embed(&mut engine, &"rock ".repeat(200)).unwrap();
    assert!(long.truncated >= 124 && long.embedding != a.embedding);
}

#[test]
fn without_an_encoder_the_error_names_the_prompts() {
    for tokenizer in [true, false] {
        let bundle = with_t5(false, tokenizer, &["a panda test", ""]);
        let opened = Bundle::open(bundle.path()).unwrap();
        assert_eq!(opened.tokenizer().unwrap().is_some(), tokenizer);
        if !tokenizer {
            let keys: Vec<_> =
                opened.embeddings().unwrap().into_iter().map(|(key, _)| key).collect();
            assert_eq!(keys, [Key::text(" a panda\ttest"), Key::text("")]);
            continue;
        }
        let mut engine = load(bundle.path()).unwrap();
        assert_eq!(
            embed(&mut engine, "a  panda test ").unwrap(),
            embed(&mut engine, "a panda test").unwrap()
        );
        assert_ne!(embed(&mut engine, "").unwrap(), embed(&mut engine, "a panda test").unwrap());
        let error = embed(&mut engine, "a dog").unwrap_err();
        let said = "only the prompts that come with it work (\"a panda test\", the empty prompt);";
        assert!(error.to_string().contains(said), "{error}");
        assert!(matches!(error, Error::Setting { setting: Setting::Prompt, .. }));
    }
}

#[test]
fn a_wrong_tokenizer_is_refused() {
    let bundle = with_t5(true, true, &["a panda test", "rock"]);
    fixtures::replace_file(bundle.path(), "spiece.model", b"{\"version\": \"1.0\"}");
    let (field, reason) = bundle_error(bundle.path());
    assert_eq!(field, "prompts.tokenizer");
    assert!(reason.contains("is not T5's file spiece.model") && !reason.contains('\n'), "{reason}");
    let bundle = with_t5(true, true, &["one text", "two", "three"]);
    let (field, reason) = bundle_error(bundle.path());
    assert!(field.contains("tensor embeddings") && reason.contains("[3, 77, D]"), "{reason}");
}
