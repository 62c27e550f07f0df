// SPDX-License-Identifier: MPL-2.0

//! Schedules, sampler runs and pictures of the CogVideoX variant.

use std::path::Path;

use ndarray::{Array1, Array2, Array3, Array4, Array5, Axis, Ix2, Ix4, Ix5, s};
use serde_json::Value;
use starsr::bundle::{GuidanceScale, ScaledLinearConfig};
use starsr::color::ColorFix;
use starsr::diffusion::guidance::Guidance;
use starsr::diffusion::noise::Noise;
use starsr::diffusion::sampler::Sampler;
use starsr::diffusion::scaled_linear::ScaledLinear;
use starsr::diffusion::solver::Solver;
use starsr::geometry::Size;
use starsr::geometry::bytes::{Rescale, centred, signed};
use starsr::model::{Condition, Conditioning, Denoiser, Embedding, Query, Samples};
use starsr::{Cancel, Result};

use crate::reference::{Report, Tensors, max_difference, read_json};

pub const LIMIT: f64 = 1e-4;

/// One step of single precision.
const EQUAL: f64 = 1.2e-7;

fn schedule(shift_scale: f64) -> ScaledLinear {
    ScaledLinear::new(&ScaledLinearConfig { shift_scale, ..Default::default() }).unwrap()
}

pub fn config(folder: &Path) -> Value {
    read_json(&folder.join("config.json"))
}

/// Every list of `sampler_schedules.json`.
pub fn schedules(folder: &Path, report: &mut Report) {
    let tensors = Tensors::read(&folder.join("sampler_schedules.safetensors"));
    let of = |values: &[f32]| Array1::from(values.to_vec());
    for (name, case) in read_json(&folder.join("sampler_schedules.json")).as_object().unwrap() {
        let (steps, shift) = name.split_once(".shift").unwrap();
        let steps: u32 = steps.trim_start_matches('N').parse().unwrap();
        let schedule = schedule(shift.parse().unwrap());
        let table = tensors.array(&format!("table{:04}.shift{shift}", schedule.alphas().len()));
        let difference = max_difference(of(schedule.alphas()).view(), table.view());
        report.difference(&format!("{name} table"), difference, EQUAL);

        let plan = schedule.plan(steps).unwrap();
        let timesteps: Vec<i64> = serde_json::from_value(case["timesteps"].clone()).unwrap();
        report.check(plan.t == timesteps, || format!("{name}: {:?}", plan.t));
        let indices: Vec<usize> = serde_json::from_value(case["quantised_idx"].clone()).unwrap();
        report.check(plan.indices == indices, || format!("{name}: {:?}", plan.indices));
        for (key, ours) in [("alpha_sqrt", &plan.alphas), ("alpha_sqrt_quantised", &plan.snapped)] {
            let theirs = tensors.array(&format!("{name}.{key}"));
            let difference = max_difference(of(ours).view(), theirs.view());
            report.difference(&format!("{name} {key}"), difference, EQUAL);
        }
        let scales: Vec<f64> = serde_json::from_value(case["cfg_scale"].clone()).unwrap();
        let ours = GuidanceScale::Wave.at(&plan.t);
        report.check(ours.len() == scales.len(), || format!("{name}: {} scales", ours.len()));
        // The list has nine decimals.
        let worst = ours.iter().zip(&scales).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        report.difference(&format!("{name} guidance"), worst, 1e-9);

        let theirs = tensors.array::<Ix2>(&format!("{name}.coef"));
        let updates = plan.updates();
        report.check(updates.len() == theirs.nrows(), || {
            format!("{name}: {} updates", updates.len())
        });
        let ours = Array2::from_shape_fn((updates.len(), 5), |(i, j)| {
            let u = updates[i];
            // The reference subtracts the denoised part.
            [u.state, -u.denoised, 1.0 + u.midpoint, u.midpoint, u.noise][j] as f32
        });
        report.difference(
            &format!("{name} weights"),
            max_difference(ours.view(), theirs.view()),
            LIMIT,
        );
    }
}

/// The noise of a reference.
struct Given {
    start: Array4<f32>,
    steps: Array5<f32>,
}

impl Noise for Given {
    fn fill(&self, frame: u64, step: u32, first: usize, out: &mut [f32]) {
        let values = match step {
            0 => self.start.index_axis(Axis(0), frame as usize),
            _ => self.steps.slice(s![step as usize - 1, frame as usize, .., .., ..]),
        };
        assert!(first + out.len() <= values.len());
        for (out, v) in out.iter_mut().zip(values.iter().skip(first)) {
            *out = *v;
        }
    }
}

/// The model of the references, described in `config.json`, which notes its inputs.
struct StandIn {
    noisy: Array2<f32>,
    hint: Array2<f32>,
    context: Array1<f32>,
    inputs: Vec<Array4<f32>>,
}

/// Mixes the channels of `x` `[F,C,h,w]` by `weights` `[C,C]`.
fn mixed(weights: &Array2<f32>, x: ndarray::ArrayView4<f32>) -> Array4<f32> {
    let mut out = Array4::zeros(x.dim());
    for ((to, from), &weight) in weights.indexed_iter() {
        out.index_axis_mut(Axis(1), to).scaled_add(weight, &x.index_axis(Axis(1), from));
    }
    out
}

impl Denoiser for StandIn {
    fn predict(&mut self, query: &Query) -> Result<Vec<Samples>> {
        let Query { x, t, hint, conditions } = *query;
        // Each evaluation asks for the prompt first.
        if conditions.len() == 2 || self.inputs.last().is_none_or(|last| last != x) {
            self.inputs.push(x.to_owned());
        }
        let each = |condition: &Condition| {
            let mean = condition.unwrap().values().mean().unwrap();
            let mut v = mixed(&self.noisy, x) + mixed(&self.hint, hint);
            for (mut channel, &w) in v.axis_iter_mut(Axis(1)).zip(&self.context) {
                channel += mean * w * (1.0 + t as f32 / 1000.0);
            }
            v.into()
        };
        Ok(conditions.iter().map(each).collect())
    }
}

/// Every run of `config.json` with the stand-in network.
pub fn runs(folder: &Path, report: &mut Report) {
    for (name, case) in config(folder)["sampler_runs"].as_object().unwrap() {
        if case.get("net").is_some() {
            println!("  {name} is run by the test cogvideox_sampler");
            continue;
        }
        let tensors = Tensors::read(&folder.join(name));
        let mut model = StandIn {
            noisy: tensors.array("W_noisy"),
            hint: tensors.array("W_lq"),
            context: tensors.array("w_ctx"),
            inputs: Vec::new(),
        };
        let ours = sample(&mut model, case, &tensors);
        report.difference(name, max_difference(ours.view(), video(&tensors, "out").view()), LIMIT);

        let states = steps(&tensors, "x_steps");
        report.check(model.inputs.len() == states.dim().0, || {
            format!("{name}: {} evaluations", model.inputs.len())
        });
        let worst = model.inputs[1..]
            .iter()
            .zip(states.axis_iter(Axis(0)))
            .map(|(ours, theirs)| max_difference(ours.view(), theirs))
            .fold(0.0, f64::max);
        report.difference(&format!("{name} states"), worst, LIMIT);
    }
}

/// A tensor `[1,F,C,h,w]` without its first axis.
pub fn video(tensors: &Tensors, name: &str) -> Array4<f32> {
    tensors.array::<Ix5>(name).index_axis_move(Axis(0), 0)
}

/// The same for all steps, `[N,1,F,C,h,w]`.
fn steps(tensors: &Tensors, name: &str) -> Array5<f32> {
    let all = tensors.get(name).unwrap().index_axis_move(Axis(1), 0);
    all.into_dimensionality().unwrap()
}

/// What the sampler makes of a run of `config.json` with `model`.
pub fn sample(model: &mut dyn Denoiser, case: &Value, tensors: &Tensors) -> Samples {
    let plan = schedule(case["shift_scale"].as_f64().unwrap())
        .plan(case["num_steps"].as_u64().unwrap() as u32)
        .unwrap();
    let scales = GuidanceScale::Wave.at(&plan.t).into_iter().map(|s| s as f32).collect();
    let solver = Solver::vp_sde(&plan).unwrap();
    let mut sampler = Sampler::of(solver, Guidance::scheduled(scales, 0.0).unwrap());
    let context: Array3<f32> = tensors.array("context");
    let prompt = Embedding::new(context.index_axis_move(Axis(0), 0));
    let negative = Some(prompt.zeros_like());
    let conditioning = Conditioning { positive: Some(prompt), negative };
    let hint = video(tensors, "lq");
    let frames: Vec<u64> = (0..hint.dim().0 as u64).collect();
    let noise = Given { start: video(tensors, "x_init"), steps: steps(tensors, "noise") };
    sampler.sample(model, hint.view(), &frames, &noise, &conditioning, &Cancel::default()).unwrap()
}

/// The generated frame of `config.json`.
fn generated() -> Array3<u8> {
    Array3::from_shape_fn((3, 720, 1280), |(c, y, x)| match c {
        0 => ((7 * y + 13 * x + x * y / 64) % 256) as u8,
        1 => ((3 * y + 5 * x) % 256) as u8,
        _ => (((y / 2) * (x / 3)) % 256) as u8,
    })
}

/// The 8-bit values, and those in `[-1,1]`, are all equal.
fn same(name: &str, ours: Array3<u8>, theirs: ndarray::ArrayView3<f32>, report: &mut Report) {
    let bytes = theirs.mapv(|v| ((v + 1.0) * 127.5).round() as u8);
    let wrong = ours.iter().zip(&bytes).filter(|(a, b)| a != b).count();
    report.check(ours.dim() == bytes.dim() && wrong == 0, || {
        format!("{name}: {wrong} of {} values differ in 8 bits", bytes.len())
    });
    report.difference(name, max_difference(signed(ours.view()).view(), theirs), EQUAL);
}

/// Every tensor of `preprocess.safetensors`.
pub fn pictures(path: &Path, report: &mut Report) {
    let tensors = Tensors::read(path);
    let size = Size::new(720, 480);

    let frames: Array4<f32> = tensors.array("up4.in");
    let expected: Array4<f32> = tensors.array("up4.out");
    for (k, (frame, theirs)) in
        frames.axis_iter(Axis(0)).zip(expected.axis_iter(Axis(0))).enumerate()
    {
        let how = Rescale::of(frame.dim().2, size.width);
        let ours = how.apply(frame.mapv(|v| v as u8).view()).unwrap();
        same(&format!("up4 frame {k}"), ours, theirs, report);
    }

    let small: Array3<f32> = tensors.array("gt_small_untouched");
    let untouched = Rescale::Keep.apply(frames.index_axis(Axis(0), 0).mapv(|v| v as u8).view());
    same("gt_small_untouched", untouched.unwrap(), small.view(), report);

    let how = Rescale::of(1280, size.width);
    let shrunk = centred(how.apply(generated().view()).unwrap().view(), size).unwrap();
    let rows: Vec<usize> =
        tensors.array::<ndarray::Ix1>("down.rows").iter().map(|&r| r as usize).collect();
    let ours = shrunk.select(Axis(1), &rows);
    same("down", ours, tensors.array::<ndarray::Ix3>("down.out").view(), report);

    let video = |name: &str| -> Array4<f32> {
        tensors.array::<Ix5>(name).index_axis_move(Axis(0), 0).into_dimensionality::<Ix4>().unwrap()
    };
    let style = video("adain.style_pm1").mapv(|v| 0.5 * (v + 1.0));
    let (content, expected) = (video("adain.content"), video("adain.out"));
    let mut worst: f64 = 0.0;
    for (k, frame) in content.axis_iter(Axis(0)).enumerate() {
        let mut ours = frame.to_owned();
        ColorFix::Adain.apply(&mut ours, style.index_axis(Axis(0), k)).unwrap();
        worst = worst.max(max_difference(ours.view(), expected.index_axis(Axis(0), k)));
    }
    report.difference("adain", worst, 1e-5);
}
