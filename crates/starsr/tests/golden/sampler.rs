// SPDX-License-Identifier: MPL-2.0

//! Whole sampler runs with the noise given.

use std::path::Path;

use ndarray::{Array1, Array2, Array3, Array4, Array5, Axis, s, stack};
use starsr::color::ColorFix;
use starsr::diffusion::guidance::Guidance;
use starsr::diffusion::noise::{FrameNoise, Noise};
use starsr::diffusion::sampler::Sampler;
use starsr::diffusion::schedule::{Plan, SamplerMode, Schedule, ScheduleConfig};
use starsr::diffusion::solver::diffuse;
use starsr::diffusion::wavefront::Wavefront;
use starsr::geometry::{Canvas, Interpolation, LegalSizes, Padding, upscale};
use starsr::model::{Condition, Conditioning, Denoiser, Embedding, Query, Samples};
use starsr::windows::{Window, WindowMode, Windows};
use starsr::{Cancel, Result, Size};

use crate::reference::{Report, Tensors, max_difference, read_json};
use crate::tables::{planar, window_list};

const LIMIT: f64 = 1e-4;

/// Number of the first frame: noise must be asked for by absolute numbers. A window starts with it,
/// as in the official program.
const FIRST: u64 = 960;

/// The noise of a reference.
struct Given {
    start: Array4<f32>,
    steps: Array5<f32>,
}

impl Noise for Given {
    fn fill(&self, frame: u64, step: u32, first: usize, out: &mut [f32]) {
        let frame = (frame - FIRST) as usize;
        let values = match step {
            0 => self.start.index_axis(Axis(0), frame),
            _ => self.steps.slice(s![step as usize - 1, frame, .., .., ..]),
        };
        assert!(values.len() >= first + out.len());
        for (out, v) in out.iter_mut().zip(values.iter().skip(first)) {
            *out = *v;
        }
    }
}

/// The model of the references, described in their `index.json`, which notes its inputs under the
/// prompt.
struct StandIn {
    positive: f32,
    inputs: Vec<(i64, Array4<f32>)>,
    asked: usize,
}

impl StandIn {
    fn new(conditioning: &Conditioning) -> Self {
        Self { positive: mean(conditioning.positive.as_ref()), inputs: Vec::new(), asked: 0 }
    }
}

fn mean(condition: Condition) -> f32 {
    let y = condition.expect("the references have a prompt").values();
    (y.iter().map(|&v| f64::from(v)).sum::<f64>() / y.len() as f64) as f32
}

impl Denoiser for StandIn {
    fn predict(&mut self, query: &Query) -> Result<Vec<Samples>> {
        let Query { x, t, hint, conditions } = *query;
        let each = |&condition: &Condition| {
            self.asked += 1;
            let y = mean(condition);
            if y == self.positive {
                self.inputs.push((t, x.to_owned()));
            }
            let tau = t as f32 / 1000.0;
            let mean = x.mean_axis(Axis(0)).unwrap();
            let mut v =
                &x * (0.6 - 0.3 * tau + 0.05 * y) - &hint * (0.9 - 0.2 * tau + 0.02 * y) + 0.03 * y;
            for mut frame in v.axis_iter_mut(Axis(0)) {
                frame.scaled_add(0.1, &mean);
            }
            v.into()
        };
        Ok(conditions.iter().map(each).collect())
    }
}

/// Hints in, latents out, frame by frame: after each `feed[n % len]` frames everything ready is
/// taken.
fn stream(
    wavefront: &mut Wavefront,
    model: &mut dyn Denoiser,
    noise: &dyn Noise,
    hint: &Array4<f32>,
    conditioning: &Conditioning,
    feed: &[usize],
) -> Array4<f32> {
    let cancel = Cancel::default();
    let mut out = Vec::new();
    let mut left = feed[0];
    let mut turn = 0;
    for (f, frame) in hint.axis_iter(Axis(0)).enumerate() {
        wavefront.push(FIRST + f as u64, frame.to_owned()).unwrap();
        left -= 1;
        if left == 0 {
            out.extend(wavefront.advance(model, noise, conditioning, &cancel).unwrap());
            turn += 1;
            left = feed[turn % feed.len()];
        }
    }
    wavefront.finish();
    out.extend(wavefront.advance(model, noise, conditioning, &cancel).unwrap());
    stack(Axis(0), &out.iter().map(|o| o.view()).collect::<Vec<_>>()).unwrap()
}

/// Every run of a folder's `index.json`.
pub fn runs(folder: &Path, report: &mut Report) {
    let index = read_json(&folder.join("index.json"));
    let runs = index["runs"].as_object().unwrap();
    for (name, run) in runs {
        println!(" {name}");
        if run.get("error").is_some() {
            crash(name, run, report);
            continue;
        }
        let file = folder.join(format!("{name}.safetensors"));
        if !file.is_file() {
            report.check(false, || format!("{} is listed but missing", file.display()));
            continue;
        }
        golden(name, run, &Tensors::read(&file), report);
    }
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        if path.extension().is_some_and(|e| e == "safetensors") && !runs.contains_key(&stem) {
            let unlisted = Tensors::read(&path).get("init_noise").is_some();
            report.check(!unlisted, || {
                format!("{} is a run that index.json does not list", path.display())
            });
        }
    }
}

fn plan(run: &serde_json::Value) -> (Schedule, Plan) {
    let schedule = Schedule::new(&ScheduleConfig::default()).unwrap();
    let mode = match run["mode"].as_str().unwrap() {
        "fast" => SamplerMode::Fast,
        "normal" => SamplerMode::Normal,
        other => panic!("mode {other}"),
    };
    let steps = run["steps_arg"].as_u64().unwrap_or(15) as u32;
    let levels = run["total_noise_levels"].as_u64().unwrap_or(900) as u32;
    let plan = schedule.plan(mode, steps, levels).unwrap();
    (schedule, plan)
}

fn guidance(run: &serde_json::Value) -> Guidance {
    let number = |key: &str, default: f64| run[key].as_f64().unwrap_or(default) as f32;
    Guidance::new(number("guide_scale", 7.5), number("guide_rescale", 0.2)).unwrap()
}

fn golden(name: &str, run: &serde_json::Value, tensors: &Tensors, report: &mut Report) {
    let (schedule, plan) = plan(run);
    let expected_t: Vec<i64> = serde_json::from_value(run["t_model"].clone()).unwrap();
    report.check(plan.t == expected_t, || format!("{name}: timesteps {:?}", plan.t));
    let k: Array1<f32> = tensors.array("k_sigmas");
    // Relative above 1: the reference's single precision has lost that much at the noisiest level.
    let k_difference = plan
        .k
        .iter()
        .zip(&k)
        .map(|(&ours, &theirs)| (ours - f64::from(theirs)).abs() / ours.max(1.0))
        .fold(if plan.k.len() == k.len() { 0.0 } else { f64::INFINITY }, f64::max);
    report.difference(&format!("{name} k_sigmas"), k_difference, LIMIT);

    let guidance = guidance(run);
    let mut sampler = Sampler::new(&schedule, &plan, guidance.clone()).unwrap();
    let hint: Array4<f32> = tensors.latents("hint");
    let steps =
        if plan.t.len() > 1 { tensors.latents("noise") } else { Array5::zeros((0, 0, 0, 0, 0)) };
    let noise = Given { start: tensors.latents("init_noise"), steps };
    let mut noised = noise.start.clone();
    let top = plan.t[0] as usize;
    diffuse(
        schedule.alphas()[top] as f32,
        schedule.sigmas()[top] as f32,
        hint.as_slice().unwrap(),
        noised.as_slice_mut().unwrap(),
    );
    let difference = max_difference(noised.view(), tensors.latents("noised").view());
    report.difference(&format!("{name} noised"), difference, LIMIT);

    let embedding = |name: &str| {
        let y: Array3<f32> = tensors.array(name);
        Some(Embedding::new(y.index_axis_move(Axis(0), 0)))
    };
    let conditioning = Conditioning { positive: embedding("y"), negative: embedding("y_neg") };
    let model = || StandIn::new(&conditioning);
    let frames = hint.dim().0;
    let length = run["max_chunk_len"].as_u64().unwrap() as usize;
    let windows = Windows::new(WindowMode::Wavefront, length, length / 2).unwrap();
    let list = windows.list(frames);
    if !run["chunks"].is_null() {
        report.check(list == window_list(&run["chunks"]), || format!("{name}: windows {list:?}"));
    }
    let out: Array4<f32> = tensors.latents("out");

    let mut wavefront = Wavefront::new(sampler.clone(), length, length / 2).unwrap();
    let mut first = model();
    let ours = stream(&mut wavefront, &mut first, &noise, &hint, &conditioning, &[1]);
    report.difference(
        &format!("{name} out, frame by frame"),
        max_difference(ours.view(), out.view()),
        LIMIT,
    );
    let both = if run["guide_scale"].as_f64() == Some(1.0) { 1 } else { 2 };
    report.check(first.asked == both * list.len() * plan.t.len(), || {
        format!("{name}: asked {} times", first.asked)
    });
    for feed in [&[frames][..], &[3, 1, 11, 2], &[7], &[5, 64]] {
        let again = stream(&mut wavefront, &mut model(), &noise, &hint, &conditioning, feed);
        report.check(again == ours, || format!("{name}: fed by {feed:?} it differs"));
    }
    if list.len() == 1 {
        let numbers: Vec<u64> = (0..frames as u64).map(|f| FIRST + f).collect();
        let whole = sampler
            .sample(&mut model(), hint.view(), &numbers, &noise, &conditioning, &Cancel::default())
            .unwrap();
        report.check(whole.view() == ours, || format!("{name}: the window on its own differs"));
    }

    if tensors.get("model_in").is_some() {
        let model_in: Array5<f32> = tensors.latents("model_in");
        let denoised: Array5<f32> = tensors.latents("denoised");
        // With the reference's own k, whose single precision alone moves the states by up to 1e-4
        // on the way to the same result.
        let theirs = Plan { k: k.iter().map(|&k| f64::from(k)).collect(), t: plan.t.clone() };
        let mut sampler = Sampler::new(&schedule, &theirs, guidance).unwrap();
        let mut first = model();
        stream(
            &mut Wavefront::new(sampler.clone(), length, length / 2).unwrap(),
            &mut first,
            &noise,
            &hint,
            &conditioning,
            &[1],
        );
        let (mut worst_in, mut worst_out) = (0.0f64, 0.0f64);
        let mut model = model();
        for (i, &t) in plan.t.iter().enumerate() {
            let seen: Vec<_> = first.inputs.iter().filter(|(asked, _)| *asked == t).collect();
            report.check(seen.len() == list.len(), || {
                format!("{name}: {} windows at {t}", seen.len())
            });
            for (k, &window) in list.iter().enumerate() {
                let range = window.start..window.end;
                let mut d = model_in.slice(s![i, range.clone(), .., .., ..]).to_owned();
                worst_in = worst_in.max(max_difference(seen[k].1.view(), d.view()));
                let hint = hint.slice(s![range, .., .., ..]);
                sampler.denoise(&mut model, i, d.view_mut(), hint, &conditioning).unwrap();
                let kept = windows.kept(k, window, k + 1 == list.len());
                let d = d.slice(s![kept.start - window.start..kept.end - window.start, .., .., ..]);
                worst_out = worst_out.max(max_difference(
                    d,
                    denoised.slice(s![i, kept.start..kept.end, .., .., ..]),
                ));
            }
        }
        report.difference(&format!("{name} model_in, each step"), worst_in, LIMIT);
        report.difference(&format!("{name} denoised, each step"), worst_out, LIMIT);
    }
}

/// A clip that the official program cannot process: one window here.
fn crash(name: &str, run: &serde_json::Value, report: &mut Report) {
    let from_name = |mark: &str| -> Option<usize> {
        name.split('_').find_map(|part| part.strip_prefix(mark)?.parse().ok())
    };
    let frames = run["frames"].as_u64().map(|v| v as usize).or_else(|| from_name("f"));
    let length = run["max_chunk_len"].as_u64().map(|v| v as usize).or_else(|| from_name("chunk"));
    let (Some(frames), Some(length)) = (frames, length) else {
        report.check(false, || {
            format!("{name}: neither its entry nor its name tells frames and max_chunk_len")
        });
        return;
    };
    let windows = Windows::new(WindowMode::Wavefront, length, length / 2).unwrap().list(frames);
    report.check(windows == [Window { start: 0, end: frames }], || format!("{name}: {windows:?}"));
    let schedule = Schedule::new(&ScheduleConfig::default()).unwrap();
    let mode = if name.starts_with("normal") { SamplerMode::Normal } else { SamplerMode::Fast };
    let plan = schedule.plan(mode, 15, 900).unwrap();
    let sampler = Sampler::new(&schedule, &plan, guidance(run)).unwrap();
    let mut hint = Array4::zeros((frames, 4, 6, 5));
    for (f, mut frame) in hint.axis_iter_mut(Axis(0)).enumerate() {
        FrameNoise::new(1).fill(f as u64, 0, 0, frame.as_slice_mut().unwrap());
    }
    let noise = FrameNoise::new(2);
    let mut wavefront = Wavefront::new(sampler, length, length / 2).unwrap();
    let embedding = |value| Some(Embedding::new(Array2::from_elem((77, 8), value)));
    let conditioning = Conditioning { positive: embedding(0.1), negative: embedding(-0.1) };
    let mut model = StandIn::new(&conditioning);
    let out = stream(&mut wavefront, &mut model, &noise, &hint, &conditioning, &[1]);
    let finite = out.dim() == hint.dim() && out.iter().all(|v| v.is_finite());
    println!("  {name}: one window of {frames} frames, finite output: {finite}");
    report.check(finite, || format!("{name}: output is not finite"));
}

/// Plays back the predictions of a reference.
struct Replay {
    schedule: Schedule,
    plan: Plan,
    denoised: Array5<f32>,
    expected: Array5<f32>,
    windows: Vec<Window>,
    /// Windows evaluated so far at each step.
    asked: Vec<usize>,
    worst: f64,
}

impl Denoiser for Replay {
    fn predict(&mut self, query: &Query) -> Result<Vec<Samples>> {
        let Query { x, t, .. } = *query;
        let i = self.plan.t.iter().position(|&step| step == t).unwrap();
        let window = self.windows[self.asked[i]];
        self.asked[i] += 1;
        let part = s![i, window.start..window.end, .., .., ..];
        self.worst = self.worst.max(max_difference(x, self.expected.slice(part)));
        let (a, s) = (self.schedule.alphas()[t as usize], self.schedule.sigmas()[t as usize]);
        let v = ndarray::Zip::from(x)
            .and(self.denoised.slice(part))
            .map_collect(|&x, &d| ((a * f64::from(x) - f64::from(d)) / s) as f32);
        Ok(vec![v.into(); query.conditions.len()])
    }
}

/// The parts of the official pipeline around its networks: upscale and padding, solver, cropping
/// and colour fix.
pub fn end_to_end(folder: &Path, report: &mut Report) {
    let index = read_json(&folder.join("index.json"));
    for (name, run) in index["runs"].as_object().unwrap() {
        println!(" {name}");
        let tensors = Tensors::read(&folder.join(format!("{name}.safetensors")));
        let number = |key: &str| run[key].as_u64().unwrap() as usize;

        let source = planar(&tensors.array("lr_u8"));
        let rows = LegalSizes { multiple: 64, offset: 16, minimum: number("best_h") };
        let columns = LegalSizes { multiple: 64, offset: 0, minimum: number("best_w") };
        let canvas = Canvas::new(
            Size::new(4 * number("w"), 4 * number("h")),
            rows,
            columns,
            Padding::Official,
        )
        .unwrap();
        let padded: Array4<f32> = tensors.array("padded");
        let mut worst: f64 = 0.0;
        for (frame, expected) in source.iter().zip(padded.axis_iter(Axis(0))) {
            let picture =
                upscale(frame.mapv(|v| 2.0 * v - 1.0).view(), 4, Interpolation::Bilinear).unwrap();
            let mut ours = Array3::zeros((picture.dim().0, canvas.size.height, canvas.size.width));
            canvas.pad(picture.view(), &mut ours.view_mut()).unwrap();
            worst = worst.max(max_difference(ours.view(), expected));
            assert_eq!(canvas.crop(ours.view()).unwrap(), picture);
        }
        report.difference(&format!("{name} upscaled and padded"), worst, 1e-5);

        let mode = serde_json::json!({"mode": run["mode"], "steps_arg": run["steps"]});
        let (schedule, plan) = plan(&mode);
        let sampler = Sampler::new(&schedule, &plan, Guidance::new(1.0, 0.0).unwrap()).unwrap();
        let hint: Array4<f32> = tensors.latents("z_lr");
        let noise =
            Given { start: tensors.latents("init_noise"), steps: tensors.latents("solver_noise") };
        let (frames, length) = (hint.dim().0, number("max_chunk_len"));
        let mut replay = Replay {
            windows: Windows::new(WindowMode::Wavefront, length, length / 2).unwrap().list(frames),
            asked: vec![0; plan.t.len()],
            schedule,
            plan,
            denoised: tensors.latents("denoised"),
            expected: tensors.latents("model_in"),
            worst: 0.0,
        };
        let frames = hint.dim().0;
        let mut wavefront =
            Wavefront::new(sampler, number("max_chunk_len"), number("max_chunk_len") / 2).unwrap();
        let conditioning = Conditioning::default();
        let ours = stream(&mut wavefront, &mut replay, &noise, &hint, &conditioning, &[frames]);
        // The reference does not tell its k; see `golden` on their precision.
        report.difference(&format!("{name} model_in, each step"), replay.worst, 5.0 * LIMIT);
        report.difference(
            &format!("{name} latents"),
            max_difference(ours.view(), tensors.latents("latent_out").view()),
            LIMIT,
        );

        let expected: Vec<Array3<f32>> = planar(&tensors.array("fixed_THWC"));
        let mut worst: f64 = 0.0;
        for ((frame, style), expected) in
            planar(&tensors.array("frames_THWC")).iter().zip(&source).zip(&expected)
        {
            let mut fixed = frame.clone();
            ColorFix::Adain.apply(&mut fixed, style.view()).unwrap();
            worst = worst.max(max_difference(fixed.view(), expected.view()));
        }
        report.difference(&format!("{name} colour fix"), worst, 1e-5);
    }
}
