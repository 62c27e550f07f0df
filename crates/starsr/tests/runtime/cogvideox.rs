// SPDX-License-Identifier: MPL-2.0

//! Small bundles of STAR on CogVideoX: latents of four frames, a decoder that carries its caches,
//! modulations computed beforehand.

use ndarray::{Array2, Array4, s};
use starsr::bundle::{Bundle, Manifest, Role};
use starsr::model::{Condition, Conditioning, Denoiser, Embedding, Model, Query, Samples};
use starsr::runtime::{Engine, Options, Provider};
use starsr::text::Prompts;
use starsr::upscaler::Posterior;
use starsr::{Cancel, Error, Result, Settings, Size, Upscaler};
use starsr_testkit::fixtures;
use starsr_testkit::stand_in::run;

const CHANNELS: usize = 16;
const TOKENS: usize = 12;
const WIDTH: usize = 48;

fn load(folder: &std::path::Path) -> Result<(Engine, Manifest)> {
    let bundle = Bundle::open(folder)?;
    let options = Options {
        library: Some(fixtures::onnx_runtime()),
        provider: Provider::Cpu,
        threads: 1,
        ..Options::default()
    };
    let engine = Engine::load(&bundle, &options, &Cancel::default())?;
    Ok((engine, bundle.manifest().clone()))
}

/// The bundle of that name; `None` where it is missing.
fn engine(name: &str) -> Option<(Engine, Manifest)> {
    Some(load(&fixtures::small_cogvideox(name)?).unwrap())
}

/// Values that look random, of a standard deviation of about 1.
fn values(seed: usize, shape: (usize, usize, usize, usize)) -> Array4<f32> {
    let mut state = seed as u64 + 1;
    Array4::from_shape_simple_fn(shape, || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * 1.7
    })
}

fn difference(a: &Samples, b: &Samples) -> f32 {
    assert_eq!(a.dim(), b.dim());
    a.view().iter().zip(&b.view()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn predict(engine: &mut Engine, t: i64, conditions: &[Condition]) -> Result<Vec<Samples>> {
    let (x, hint) = (values(0, (3, CHANNELS, 4, 6)), values(1, (3, CHANNELS, 4, 6)));
    engine.predict(&Query { x: x.view(), t, hint: hint.view(), conditions })
}

fn embedding(tokens: usize, width: usize) -> Embedding {
    Embedding::new(Array2::from_shape_fn((tokens, width), |(i, j)| (i * 7 + j) as f32 % 5.0 - 2.0))
}

#[test]
fn windows_become_a_quarter_as_many_latents_and_come_back() {
    let Some((mut engine, _)) = engine("random") else { return };
    for frames in [1, 9, 25] {
        let pixels = values(2, (frames, 3, 32, 48)).mapv(|v| v / 1.7);
        let latents = engine.encode(pixels.view()).unwrap();
        assert_eq!(latents.dim(), ((frames - 1) / 4 + 1, CHANNELS, 4, 6));
        let before = engine.stats().runs(Role::VaeDecoder);
        let decoded = engine.decode(latents.view()).unwrap();
        assert_eq!(decoded.dim(), (frames, 3, 32, 48));
        // Three latents at first, then two at a time.
        let runs = engine.stats().runs(Role::VaeDecoder) - before;
        assert_eq!(runs, (latents.dim().0 as u64).saturating_sub(3) / 2 + 1);
        // A part of a tile, whose rows do not follow each other.
        let wide = ndarray::concatenate![ndarray::Axis(3), latents.view(), latents.view()];
        let again = engine.decode(wide.slice(s![.., .., .., ..6])).unwrap();
        assert_eq!(difference(&again, &decoded), 0.0);
    }
    // The first nine frames know nothing of those after them.
    let latents = values(3, (7, CHANNELS, 4, 6));
    let whole = engine.decode(latents.view()).unwrap();
    let first = engine.decode(latents.slice(s![..3, .., .., ..])).unwrap();
    assert_eq!(first.view(), whole.frames(0..9));
    assert!(engine.decode(Array4::zeros((0, CHANNELS, 4, 6)).view()).unwrap().dim().0 == 0);
    let odd = engine.encode(Array4::zeros((8, 3, 32, 48)).view());
    assert!(matches!(odd, Err(Error::Inference { graph: Role::VaeEncoder, .. })));
}

#[test]
fn sixteen_bits_are_near_to_thirty_two() {
    let (Some((mut single, _)), Some((mut half, _))) = (engine("random"), engine("half")) else {
        return;
    };
    let latents = values(4, (5, CHANNELS, 4, 6));
    let [a, b] = [&mut single, &mut half].map(|engine| engine.decode(latents.view()).unwrap());
    assert!(difference(&a, &b) < 0.05, "{}", difference(&a, &b));
    let [a, b] = [&mut single, &mut half].map(|engine| {
        let prompt = embedding(TOKENS, WIDTH);
        predict(engine, 400, &[Some(&prompt)]).unwrap().remove(0)
    });
    assert!(difference(&a, &b) < 0.05, "{}", difference(&a, &b));
}

#[test]
fn modulations_are_computed_once_and_their_graph_is_read_again() {
    let Some(folder) = fixtures::small_cogvideox("random") else { return };
    // Other tests' engines share no modulations with a bundle of its own.
    let folder = fixtures::copy_of(&folder);
    let (mut engine, _) = load(folder.path()).unwrap();
    let runs = |engine: &Engine| engine.stats().runs(Role::Modulation);
    let expected = predict(&mut engine, 250, &[None]).unwrap().remove(0);
    assert_eq!(runs(&engine), 1);
    engine.prepare(&[999, 500]).unwrap();
    engine.prepare(&[500, 999]).unwrap();
    predict(&mut engine, 999, &[None]).unwrap();
    assert_eq!(runs(&engine), 3);
    // Freed by now.
    let other = predict(&mut engine, 251, &[None]).unwrap().remove(0);
    assert_eq!(runs(&engine), 4);
    assert!(difference(&other, &expected) > 0.0);
    // More than are kept: each is computed when it is needed.
    engine.prepare(&(0..1000).collect::<Vec<_>>()).unwrap();
    for t in 300..440 {
        predict(&mut engine, t, &[None]).unwrap();
    }
    assert_eq!(runs(&engine), 144);
    let again = predict(&mut engine, 250, &[None]).unwrap().remove(0);
    assert_eq!(difference(&again, &expected), 0.0);
}

#[test]
fn no_prompt_is_an_embedding_of_zeros() {
    let Some((mut engine, _)) = engine("random") else { return };
    let (prompt, other) = (embedding(TOKENS, WIDTH), embedding(TOKENS, WIDTH));
    let zeros = prompt.zeros_like();
    let both = predict(&mut engine, 700, &[Some(&prompt), Some(&zeros)]).unwrap();
    let none = predict(&mut engine, 700, &[None]).unwrap().remove(0);
    let alone = predict(&mut engine, 700, &[Some(&other)]).unwrap().remove(0);
    assert!(difference(&both[1], &none) < 1e-4 && difference(&both[0], &alone) < 1e-4);
    assert!(difference(&alone, &none) > 1e-3);
    for (tokens, width) in [(77, WIDTH), (TOKENS, 8)] {
        let error = predict(&mut engine, 700, &[Some(&embedding(tokens, width))]).unwrap_err();
        assert!(error.to_string().contains("the denoiser takes (12, 48)"), "{error}");
    }
    let (x, hint) = (values(0, (3, CHANNELS, 4, 5)), values(1, (3, CHANNELS, 4, 5)));
    let query = Query { x: x.view(), t: 9, hint: hint.view(), conditions: &[None] };
    assert!(engine.predict(&query).unwrap_err().to_string().contains("even h and w"));
}

/// Guidance goes from zeros to the prompt, whatever negative half is set.
#[test]
fn guidance_moves_away_from_zeros() {
    let restored = |negative: Option<Embedding>, scale: f32| {
        let (engine, mut manifest) = engine("random")?;
        manifest.prompts = Some(starsr::bundle::PromptsSpec::default());
        let settings = Settings {
            scale: Some(1),
            steps: Some(2),
            guidance_scale: Some(scale),
            posterior: Posterior::Sample,
            threads: 1,
            ..Settings::default()
        };
        let size = Size::new(48, 32);
        let model = Box::new(engine);
        let mut upscaler =
            Upscaler::new(model, &manifest, &settings, size, Cancel::default()).unwrap();
        let positive = Some(embedding(TOKENS, WIDTH));
        upscaler.set_conditioning(Conditioning { positive, negative }).unwrap();
        let frame = |k: u64| {
            let part = values(k as usize, (1, 3, 32, 48)).mapv(|v| 0.5 + 0.2 * v);
            part.index_axis_move(ndarray::Axis(0), 0)
        };
        Some(run(&mut upscaler, 0..10, frame, 3))
    };
    let Some(guided) = restored(None, 6.0) else { return };
    assert_eq!(guided.len(), 10);
    assert_eq!(restored(Some(embedding(TOKENS, WIDTH)), 6.0).unwrap(), guided);
    assert_ne!(restored(None, 1.0).unwrap(), guided);
}

/// Nine frames of a bundle under prompts; `None` where it is missing.
fn with_prompts(
    name: &str,
    prompts: &Prompts,
    scale: Option<f32>,
) -> Option<Result<Vec<ndarray::Array3<f32>>>> {
    let (engine, manifest) = engine(name)?;
    let settings = Settings {
        scale: Some(1),
        steps: Some(3),
        guidance_scale: scale,
        threads: 1,
        ..Settings::default()
    };
    let (size, cancel) = (Size::new(48, 32), Cancel::default());
    let mut upscaler = Upscaler::new(Box::new(engine), &manifest, &settings, size, cancel).unwrap();
    Some(upscaler.set_prompts(prompts).map(|_| {
        let frame = |k: u64| {
            let part = values(k as usize, (1, 3, 32, 48)).mapv(|v| 0.5 + 0.2 * v);
            part.index_axis_move(ndarray::Axis(0), 0)
        };
        run(&mut upscaler, 0..9, frame, 9)
    }))
}

/// The prompt that comes with a bundle, and no other.
#[test]
fn the_prompt_of_the_bundle_guides() {
    let restored = |prompts: &Prompts, scale| with_prompts("guided", prompts, scale);
    let none = Prompts::default();
    let Some(wave) = restored(&none, None) else { return };
    let wave = wave.unwrap();
    let text = |text: &str| Prompts { prompt: Some(text.into()), ..Prompts::default() };
    assert_eq!(restored(&text("a lake"), None).unwrap().unwrap(), wave);
    assert_ne!(restored(&none, Some(1.0)).unwrap().unwrap(), wave);
    assert_ne!(restored(&none, Some(6.0)).unwrap().unwrap(), wave);
    let error = restored(&text("a wood"), None).unwrap().unwrap_err();
    assert!(error.to_string().contains("a lake"), "{error}");
    let negative = Prompts { negative: Some("fog".into()), ..Prompts::default() };
    assert!(restored(&negative, None).unwrap().is_err());
}

/// What the manifest says that runs of the graphs take; the decoder never has a whole window.
#[test]
fn memory_of_the_graphs_is_estimated() {
    let estimate = |change: &dyn Fn(&mut Manifest)| {
        let (engine, mut manifest) = engine("random")?;
        assert!(manifest.canvas.tile_memory > 0 && manifest.vae.decode_memory > 0);
        manifest.canvas.tile_memory = 0;
        (manifest.vae.encode_memory, manifest.vae.decode_memory) = (0, 0);
        change(&mut manifest);
        let settings = Settings { scale: Some(1), ..Settings::default() };
        let (size, cancel) = (Size::new(48, 32), Cancel::default());
        let upscaler = Upscaler::new(Box::new(engine), &manifest, &settings, size, cancel).unwrap();
        Some(upscaler.memory_estimate())
    };
    let Some(arrays) = estimate(&|_| ()) else { return };
    let pixels = 48 * 32;
    for (change, frames) in [
        ((|m| m.canvas.tile_memory = 1000) as fn(&mut Manifest), 25),
        (|m| m.vae.encode_memory = 1000, 25),
        (|m| m.vae.decode_memory = 1000, 9),
    ] {
        assert_eq!(estimate(&change).unwrap(), arrays + 1000 * pixels * frames);
    }
}

/// Any prompt, by the text encoder in the bundle.
#[test]
fn a_prompt_is_the_same_embedded_here_and_by_the_exporter() {
    let Some(folder) = fixtures::small_cogvideox("embedded") else { return };
    let Some((mut engine, _)) = engine("text") else { return };
    let bundle = Bundle::open(&folder).unwrap();
    let text = &bundle.manifest().prompts.as_ref().unwrap().default;
    assert!(!text.trim().is_empty());
    let expected = &bundle.embeddings().unwrap()[0].1;
    let embedded = engine.embed(&["", text]).unwrap();
    assert_eq!(engine.stats().runs(Role::TextEncoder), 1);
    let worst = |a: &Embedding, b: &Embedding| {
        a.values().iter().zip(b.values()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    let difference = worst(&embedded[1].embedding, expected);
    assert!(difference <= 1e-4, "{difference}");
    assert!(worst(&embedded[0].embedding, expected) > 0.1);

    let restored = |name: &str, prompt: Option<&String>| {
        let prompts = Prompts { prompt: prompt.cloned(), ..Prompts::default() };
        with_prompts(name, &prompts, Some(6.0)).unwrap().unwrap()
    };
    let (inside, outside) = (restored("text", Some(text)), restored("embedded", None));
    let pairs = inside.iter().flatten().zip(outside.iter().flatten());
    let difference = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(difference <= 1e-4, "{difference}");
    assert_ne!(restored("text", None), inside);
}

/// The text encoder is neither loaded nor checked for a prompt that comes with the bundle.
#[test]
fn a_prompt_of_the_bundle_needs_no_text_encoder() {
    let Some(folder) = fixtures::small_cogvideox("text") else { return };
    let copy = fixtures::copy_of(&folder);
    fixtures::replace_graph(copy.path(), "text_encoder", b"no graph");
    let (mut engine, _) = load(copy.path()).unwrap();
    let embedded = engine.embed(&[""]).unwrap().remove(0).embedding;
    predict(&mut engine, 700, &[Some(&embedded)]).unwrap();
    let error = engine.embed(&["a lake"]).unwrap_err();
    assert!(error.to_string().contains("cannot load this graph"), "{error}");
}

#[test]
fn wrong_graphs_are_refused_before_the_first_frame() {
    let Some(folder) = fixtures::small_cogvideox("random") else { return };
    let refused = |change: &dyn Fn(String) -> String, part: &str| {
        let copy = fixtures::copy_of(&folder);
        fixtures::edit(copy.path(), change);
        match load(copy.path()).err() {
            Some(Error::Bundle { field, reason, .. }) => {
                assert!(format!("{field}: {reason}").contains(part), "{field}: {reason}");
            }
            other => panic!("expected an error with {part:?}, got {other:?}"),
        }
    };
    refused(&|text| text.replace("columns = 6", "columns = 8"), "tensor cos: has shape [?,8], but");
    let sincos = "kind = \"sincos\"\nwidth = 64\nspatial_scale = 1.875\nbase";
    refused(
        &|text| {
            let rotary = "kind = \"rotary\"\nbase";
            text.replace(rotary, sincos).replace("frames = 4\nrows = 6\ncolumns = 6\n", "")
        },
        "is not an input of this role",
    );
    refused(&|text| text.replace("channels = 16", "channels = 8"), "must have [T,8,h,w]");
    refused(&|text| text.replace("temporal_factor = 4", "temporal_factor = 3"), "window.multiple");
    // A decoder and a modulation of another role.
    let swap = |from: &'static str, to: &'static str| {
        move |text: String| {
            let part = |role: &str| {
                let start = text.find(&format!("[graphs.{role}]")).unwrap();
                let rest = &text[start..];
                let end = rest[1..].find("\n[graphs.").map_or(rest.len(), |end| end + 1);
                rest[..end].to_owned()
            };
            let wrong = part(to).replace(&format!("graphs.{to}"), &format!("graphs.{from}"));
            text.replace(&part(from), &wrong)
        }
    };
    refused(&swap("modulation", "vae_encoder"), "graphs.modulation, tensor pixels");
    refused(&swap("denoiser", "modulation"), "graphs.denoiser, tensor t");
    refused(&swap("vae_decoder", "denoiser"), "graphs.vae_decoder, tensor");
}
