// SPDX-License-Identifier: MPL-2.0

//! Prompts, guidance and the encoder's posterior in the upscaler, over a stand-in that notes what
//! it is asked.

use std::sync::{Arc, Mutex};

use ndarray::{Array2, Array3, Array4, ArrayView4, Axis, Zip};
use starsr::bundle::{PromptsSpec, Role};
use starsr::color::ColorFix;
use starsr::diffusion::guidance::Batching;
use starsr::diffusion::noise::{Noise, POSTERIOR_STEP};
use starsr::diffusion::schedule::{Schedule, ScheduleConfig};
use starsr::geometry::{Interpolation, upscale};
use starsr::model::{
    Condition, Conditioning, Denoiser, Embedded, Embedding, Model, Query, Samples,
};
use starsr::text::{Prompts, tokenize};
use starsr::upscaler::Posterior;
use starsr::windows::WindowMode;
use starsr::{Cancel, Error, Result, Setting, Settings, Size, TruncatedTokens, Upscaler};
use starsr_testkit::stand_in;

/// A question for predictions: the first frame of the window, the timestep, and the texts asked
/// for.
#[derive(Debug, Clone, PartialEq)]
struct Asked {
    frame: usize,
    t: i64,
    texts: Vec<f32>,
}

#[derive(Default)]
struct Notes {
    asked: Vec<Asked>,
    embedded: Vec<String>,
}

/// Predicts `x0 = (1 + contrast embedding) hint + embedding`, where an embedding is the text's
/// first token over 65536 in every place.
struct StandIn {
    schedule: Schedule,
    contrast: f32,
    notes: Arc<Mutex<Notes>>,
    prefers_batches: bool,
    batches_fit: bool,
    std: bool,
}

impl StandIn {
    fn velocity(
        &self,
        x: ArrayView4<f32>,
        t: i64,
        hint: ArrayView4<f32>,
        text: f32,
    ) -> Array4<f32> {
        let (a, s) =
            (self.schedule.alphas()[t as usize] as f32, self.schedule.sigmas()[t as usize] as f32);
        let gain = 1.0 + self.contrast * text;
        Zip::from(x).and(hint).map_collect(|&x, &hint| (a * x - gain * hint - text) / s)
    }

    fn note(&self, t: i64, hint: ArrayView4<f32>, texts: &[f32]) {
        // The first pixel tells a frame's number, see `frame`.
        let frame = ((hint[[0, 0, 0, 0]] + 0.8) * 40.0).round() as usize;
        self.notes.lock().unwrap().asked.push(Asked { frame, t, texts: texts.to_vec() });
    }
}

fn text(condition: Condition) -> f32 {
    condition.map_or(0.0, |embedding| embedding.values()[[0, 0]])
}

impl Denoiser for StandIn {
    fn predict(&mut self, query: &Query) -> Result<Vec<Samples>> {
        let Query { x, t, hint, conditions } = *query;
        let texts: Vec<f32> = conditions.iter().map(|&condition| text(condition)).collect();
        self.note(t, hint, &texts);
        if conditions.len() > 1 && !self.batches_fit {
            let reason = "a batch is too much".into();
            return Err(Error::Memory { graph: Role::Denoiser, reason });
        }
        Ok(texts.iter().map(|&text| self.velocity(x, t, hint, text).into()).collect())
    }

    fn prefers_batches(&self) -> bool {
        self.prefers_batches
    }
}

impl Model for StandIn {
    fn encode(&mut self, pixels: ArrayView4<f32>) -> Result<Samples> {
        Ok(stand_in::to_latents(pixels).into())
    }

    fn encode_posterior(&mut self, pixels: ArrayView4<f32>) -> Result<[Samples; 2]> {
        let mean = stand_in::to_latents(pixels);
        let std = mean.mapv(|_| 0.25);
        Ok([mean.into(), std.into()])
    }

    fn has_std(&self) -> bool {
        self.std
    }

    fn decode(&mut self, latents: ArrayView4<f32>) -> Result<Samples> {
        Ok(stand_in::to_pixels(latents).into())
    }

    fn embed(&mut self, texts: &[&str]) -> Result<Vec<Embedded>> {
        self.notes.lock().unwrap().embedded.extend(texts.iter().map(ToString::to_string));
        let embed =
            |text| Embedded { embedding: embedding(text), truncated: tokenize(text).truncated };
        Ok(texts.iter().copied().map(embed).collect())
    }
}

fn embedding(text: &str) -> Embedding {
    Embedding::new(Array2::from_elem((77, 4), value(text)))
}

/// What the stand-in makes of a text.
fn value(text: &str) -> f32 {
    tokenize(text).ids[1] as f32 / 65536.0
}

/// An even frame whose brightness, 0.1 to 0.9, tells its number, up to 31.
fn frame(number: u64) -> Array3<f32> {
    Array3::from_elem((3, 8, 8), 0.1 + number as f32 / 80.0)
}

struct Rig {
    upscaler: Upscaler,
    notes: Arc<Mutex<Notes>>,
}

impl Rig {
    fn try_new(settings: &Settings, change: impl FnOnce(&mut StandIn)) -> Result<Self> {
        Self::try_sized(settings, Size::new(8, 8), change)
    }

    fn try_sized(
        settings: &Settings,
        size: Size,
        change: impl FnOnce(&mut StandIn),
    ) -> Result<Self> {
        let mut manifest = stand_in::manifest();
        manifest.prompts = Some(PromptsSpec {
            default: "panda".into(),
            suffix: "lake".into(),
            negative: "rock".into(),
            ..PromptsSpec::default()
        });
        let notes = Arc::<Mutex<Notes>>::default();
        let mut model = StandIn {
            schedule: Schedule::new(&ScheduleConfig::default())?,
            contrast: 0.0,
            notes: notes.clone(),
            prefers_batches: true,
            batches_fit: true,
            std: false,
        };
        change(&mut model);
        let upscaler =
            Upscaler::new(Box::new(model), &manifest, settings, size, Cancel::default())?;
        Ok(Self { upscaler, notes })
    }

    fn new(settings: &Settings, change: impl FnOnce(&mut StandIn)) -> Self {
        Self::sized(settings, Size::new(8, 8), change)
    }

    fn sized(settings: &Settings, size: Size, change: impl FnOnce(&mut StandIn)) -> Self {
        let mut rig = Self::try_sized(settings, size, change).expect("valid settings");
        rig.upscaler.set_prompts(&Prompts::default()).expect("the bundle's prompts");
        rig
    }

    fn run(&mut self, frames: u64) -> Vec<Array3<f32>> {
        stand_in::run(&mut self.upscaler, 0..frames, frame, 1)
    }

    fn texts(&self) -> Vec<Vec<f32>> {
        self.notes.lock().unwrap().asked.iter().map(|asked| asked.texts.clone()).collect()
    }
}

fn settings(scale: f32, steps: u32) -> Settings {
    Settings {
        window_mode: Some(WindowMode::Blend),
        window_length: Some(4),
        window_overlap: Some(0),
        steps: Some(steps),
        strength: Some(1.0),
        color_fix: Some(ColorFix::None),
        guidance_scale: Some(scale),
        guidance_rescale: Some(0.0),
        ..Settings::default()
    }
}

fn prompt(text: &str) -> Prompts {
    Prompts { prompt: Some(text.into()), ..Prompts::default() }
}

#[test]
fn guidance_moves_away_from_the_negative_prompt() {
    let (panda, rock) = (value("panda"), value("rock"));
    assert!((panda - rock).abs() > 0.1);
    for (scale, expected) in [(0.0, rock), (1.0, panda), (1.5, rock + 1.5 * (panda - rock))] {
        let out = Rig::new(&settings(scale, 1), |_| {}).run(4);
        let moved = 2.0 * (out[2][[0, 0, 0]] - frame(2)[[0, 0, 0]]);
        assert!((moved - expected).abs() < 1e-3, "{scale}: {moved}, not {expected}");
    }
}

#[test]
fn without_guidance_the_negative_half_is_never_asked_for() {
    for (scale, interval) in [(1.0, None), (3.0, Some((0.5, 0.5)))] {
        let mut rig =
            Rig::new(&Settings { guidance_interval: interval, ..settings(scale, 3) }, |_| {});
        rig.run(8);
        assert_eq!(rig.texts(), vec![vec![value("panda")]; 6]);
        assert_eq!(rig.notes.lock().unwrap().embedded, ["panda lake"]);
    }
}

#[test]
fn the_interval_chooses_the_guided_evaluations() {
    let guided = |interval| {
        let mut rig =
            Rig::new(&Settings { guidance_interval: Some(interval), ..settings(2.0, 5) }, |_| {});
        rig.run(4);
        rig.texts().iter().map(Vec::len).collect::<Vec<_>>()
    };
    assert_eq!(guided((0.0, 1.0)), [2, 2, 2, 2, 2]);
    assert_eq!(guided((0.2, 0.8)), [1, 2, 2, 2, 1]);
    assert_eq!(guided((0.7, 1.0)), [1, 1, 1, 1, 2]);
    let wrong = Settings { guidance_interval: Some((0.8, 0.2)), ..settings(2.0, 5) };
    let result = Rig::try_new(&wrong, |_| {}).map(|_| ());
    assert!(
        matches!(result, Err(Error::Setting { setting: Setting::GuidanceInterval, .. })),
        "{result:?}"
    );
}

#[test]
fn both_halves_together_or_one_after_the_other() {
    let (both, one, other) =
        (vec![value("panda"), value("rock")], vec![value("panda")], vec![value("rock")]);
    let mut reference = Rig::new(&settings(2.0, 2), |_| {});
    let expected = reference.run(4);
    assert_eq!(reference.texts(), vec![both.clone(); 2]);
    for (batching, prefers, together) in [
        (Batching::Auto, false, false),
        (Batching::Separate, true, false),
        (Batching::Together, false, true),
    ] {
        let settings = Settings { guidance_batching: batching, ..settings(2.0, 2) };
        let mut rig = Rig::new(&settings, |model| model.prefers_batches = prefers);
        assert_eq!(rig.run(4), expected, "{batching:?}");
        let wanted = if together {
            vec![both.clone(); 2]
        } else {
            vec![one.clone(), other.clone(), one.clone(), other.clone()]
        };
        assert_eq!(rig.texts(), wanted, "{batching:?}");
        assert!(!rig.upscaler.is_guidance_separated());
    }
}

#[test]
fn a_batch_that_does_not_fit_is_asked_for_separately_from_then_on() {
    for mode in [WindowMode::Blend, WindowMode::Wavefront] {
        let settings = Settings { window_mode: Some(mode), ..settings(2.0, 2) };
        let expected = Rig::new(&settings, |_| {}).run(9);
        let mut rig = Rig::new(&settings, |model| model.batches_fit = false);
        assert_eq!(rig.run(9), expected);
        assert!(rig.upscaler.is_guidance_separated());
        let sizes: Vec<usize> = rig.texts().iter().map(Vec::len).collect();
        assert_eq!(sizes[0], 2);
        assert!(sizes.len() > 5 && sizes[1..].iter().all(|&size| size == 1), "{sizes:?}");
    }
    let together = Settings { guidance_batching: Batching::Together, ..settings(2.0, 2) };
    let mut rig = Rig::new(&together, |model| model.batches_fit = false);
    (0..4).for_each(|number| rig.upscaler.send_frame(number, frame(number)).unwrap());
    assert!(matches!(rig.upscaler.receive_frame(), Err(Error::Memory { .. })));
}

#[test]
fn tiles_are_rescaled_by_the_standard_deviation_of_the_whole_canvas() {
    // Flat on the left, busy on the right: tiles on their own would be rescaled by factors of their
    // own.
    let half = |number: u64| {
        Array3::from_shape_fn((3, 8, 16), |(c, y, x)| {
            let busy = if x < 8 { 0.0 } else { ((7 * c + 5 * y + 3 * x) as f32).sin() };
            0.4 + 0.01 * number as f32 + 0.2 * busy
        })
    };
    for mode in [WindowMode::Blend, WindowMode::Wavefront] {
        for batches_fit in [true, false] {
            let run = |tile_size, rescale| {
                let settings = Settings {
                    tile_size: Some(tile_size),
                    tile_overlap: Some(16),
                    guidance_rescale: Some(rescale),
                    window_mode: Some(mode),
                    ..settings(2.0, 3)
                };
                let change =
                    |model: &mut StandIn| (model.contrast, model.batches_fit) = (3.0, batches_fit);
                let mut rig = Rig::sized(&settings, Size::new(16, 8), change);
                let out = stand_in::run(&mut rig.upscaler, 0..6, half, 1);
                (out, rig.texts().len())
            };
            let difference = |a: &[Array3<f32>], b: &[Array3<f32>]| {
                a.iter().zip(b).flat_map(|(a, b)| a - b).fold(0.0f32, |most, d| most.max(d.abs()))
            };
            let ((whole, asked), (tiled, asked_in_tiles)) = (run(0, 0.7), run(32, 0.7));
            assert!(
                asked_in_tiles > 2 * asked,
                "{asked_in_tiles} questions in tiles, {asked} without"
            );
            let difference_in_tiles = difference(&whole, &tiled);
            assert!(difference_in_tiles < 1e-5, "{mode:?} {batches_fit}: {difference_in_tiles}");
            assert!(difference(&whole, &run(0, 0.0).0) > 0.01, "the rescale does nothing");
        }
    }
}

#[test]
fn a_new_prompt_holds_from_the_next_window() {
    let changed = |at: u64| {
        let mut rig = Rig::new(&settings(2.0, 2), |_| {});
        let mut out = Vec::new();
        for number in 0..16 {
            if number == at {
                rig.upscaler.set_prompts(&prompt("lake")).unwrap();
            }
            rig.upscaler.send_frame(number, frame(number)).unwrap();
            stand_in::receive(&mut rig.upscaler, &mut out);
        }
        (out, rig)
    };
    let (never, _) = changed(99);
    let (always, _) = changed(0);
    for at in [5, 7] {
        let (out, rig) = changed(at);
        assert_eq!(out[..4], never[..4], "{at}");
        assert_eq!(out[4..], always[4..], "{at}");
        assert_ne!(always[4..], never[4..]);
        // Each text once, but for the negative one, which the model is to remember.
        let embedded = rig.notes.lock().unwrap().embedded.clone();
        assert_eq!(embedded, ["panda lake", "rock", "lake lake", "rock"]);
    }
}

#[test]
fn in_a_wavefront_a_window_keeps_its_prompt_through_all_evaluations() {
    let settings = Settings {
        window_mode: Some(WindowMode::Wavefront),
        window_overlap: Some(2),
        ..settings(1.0, 4)
    };
    let mut rig = Rig::new(&settings, |_| {});
    let mut out = Vec::new();
    for number in 0..30 {
        if number == 14 {
            rig.upscaler.set_prompts(&prompt("lake")).unwrap();
        }
        rig.upscaler.send_frame(number, frame(number)).unwrap();
        stand_in::receive(&mut rig.upscaler, &mut out);
    }
    rig.upscaler.flush();
    stand_in::receive(&mut rig.upscaler, &mut out);
    let asked = rig.notes.lock().unwrap().asked.clone();
    let mut of_windows = Vec::new();
    for start in (0..).step_by(2).take_while(|start| start + 2 < 30) {
        let of_window: Vec<_> = asked.iter().filter(|asked| asked.frame == start).collect();
        assert!(of_window.len() <= 4);
        if let Some(first) = of_window.first() {
            assert!(of_window.iter().all(|asked| asked.texts == first.texts), "window {start}");
            of_windows.push(first.texts[0]);
        }
    }
    let before = of_windows.iter().take_while(|&&text| text == value("panda")).count();
    assert!(before > 2 && before + 2 < of_windows.len(), "{of_windows:?}");
    assert!(of_windows[before..].iter().all(|&text| text == value("lake")), "{of_windows:?}");
    // Evaluations of old windows were made after the first of a new one.
    let change = asked.iter().position(|asked| asked.texts[0] == value("lake")).unwrap();
    assert!(asked[change..].iter().any(|asked| asked.texts[0] == value("panda")));
}

#[test]
fn what_is_missing_is_an_error() {
    let mut rig = Rig::try_new(&settings(2.0, 1), |_| {}).unwrap();
    let half = Conditioning { positive: Some(embedding("panda")), negative: None };
    let result = rig.upscaler.set_conditioning(half.clone());
    assert!(
        matches!(result, Err(Error::Setting { setting: Setting::NegativePrompt, .. })),
        "{result:?}"
    );
    assert!(Rig::new(&settings(1.0, 1), |_| {}).upscaler.set_conditioning(half.clone()).is_ok());

    let manifest = stand_in::manifest();
    let model = StandIn {
        schedule: Schedule::new(&ScheduleConfig::default()).unwrap(),
        contrast: 0.0,
        notes: Arc::default(),
        prefers_batches: false,
        batches_fit: true,
        std: false,
    };
    let settings = Settings { guidance_scale: None, ..settings(1.0, 1) };
    let mut upscaler =
        Upscaler::new(Box::new(model), &manifest, &settings, Size::new(8, 8), Cancel::default())
            .unwrap();
    assert!(matches!(
        upscaler.set_conditioning(half),
        Err(Error::Setting { setting: Setting::Prompt, .. })
    ));
    assert_eq!(upscaler.set_prompts(&Prompts::default()).unwrap(), TruncatedTokens::default());
    let result = upscaler.set_prompts(&prompt("panda"));
    assert!(
        matches!(&result, Err(Error::Setting { setting: Setting::Prompt, reason }) if reason.contains("nano")),
        "{result:?}"
    );
    let negative = Prompts { negative: Some("rock".into()), ..Prompts::default() };
    let result = upscaler.set_prompts(&negative);
    assert!(
        matches!(result, Err(Error::Setting { setting: Setting::NegativePrompt, .. })),
        "{result:?}"
    );
}

#[test]
fn tokens_that_do_not_fit_are_counted() {
    let mut rig = Rig::new(&settings(2.0, 1), |_| {});
    let long = |words: usize| "panda ".repeat(words);
    let prompts = Prompts { negative: Some(long(80)), ..prompt(&long(100)) };
    // One more for the suffix.
    assert_eq!(
        rig.upscaler.set_prompts(&prompts).unwrap(),
        TruncatedTokens { prompt: 26, negative: 5 }
    );
}

/// Noise that is 1 for the encoder's posterior of each third frame and 0 elsewhere.
struct Sparse;

impl Noise for Sparse {
    fn fill(&self, frame: u64, step: u32, _first: usize, out: &mut [f32]) {
        out.fill(if step == POSTERIOR_STEP && frame.is_multiple_of(3) { 1.0 } else { 0.0 });
    }
}

#[test]
fn the_posterior_is_sampled_with_its_own_noise() {
    let text = value("panda");
    for mode in [WindowMode::Blend, WindowMode::Wavefront] {
        let run = |posterior| {
            let settings = Settings { posterior, window_mode: Some(mode), ..settings(1.0, 2) };
            let mut rig = Rig::new(&settings, |model| model.std = true);
            rig.upscaler = rig.upscaler.with_noise(Box::new(Sparse));
            rig.run(7)
        };
        let (mean, sample) = (run(Posterior::Mean), run(Posterior::Sample));
        for number in 0..7u64 {
            let plain = upscale(frame(number).view(), 4, Interpolation::Bicubic).unwrap();
            let moved = |out: &Array3<f32>| (out - &plain).mean().unwrap();
            let drawn = if number % 3 == 0 { 0.25 } else { 0.0 };
            assert!((moved(&mean[number as usize]) - text / 2.0).abs() < 1e-4, "{mode:?}");
            assert!(
                (moved(&sample[number as usize]) - f32::midpoint(text, drawn)).abs() < 1e-4,
                "{mode:?} {number}"
            );
        }
    }
    // Drawn from the seed it is the same however a picture is cut into tiles and frames are fed.
    let settings = Settings { posterior: Posterior::Sample, seed: 3, ..settings(1.0, 1) };
    let with = |settings: &Settings, step| {
        let mut rig = Rig::new(settings, |model| model.std = true);
        stand_in::run(&mut rig.upscaler, 0..6, frame, step)
    };
    let whole = with(&settings, 1);
    assert_eq!(with(&settings, 5), whole);
    let tiled =
        with(&Settings { tile_size: Some(16), tile_overlap: Some(0), ..settings.clone() }, 1);
    assert!(whole.iter().zip(&tiled).all(|(a, b)| (a - b).iter().all(|d| d.abs() < 1e-5)));
    assert_ne!(with(&Settings { seed: 4, ..settings.clone() }, 1), whole);
    assert!(
        whole[0]
            .axis_iter(Axis(1))
            .any(|row| (&row - &whole[0].index_axis(Axis(1), 0)).iter().any(|d| d.abs() > 0.01))
    );

    let result = Rig::try_new(&settings, |_| {}).map(|_| ());
    assert!(
        matches!(result, Err(Error::Setting { setting: Setting::Posterior, .. })),
        "{result:?}"
    );
}
