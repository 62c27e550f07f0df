// SPDX-License-Identifier: MPL-2.0

//! The CogVideoX variant's small networks on ONNX Runtime, as exported bundles.

use std::path::Path;

use ndarray::{Array2, Array3, Array4, Axis, Ix1, Ix2, s};
use starsr::Cancel;
use starsr::bundle::{Bundle, PositionsSpec};
use starsr::model::{Condition, Denoiser, Embedding, Model, Query};
use starsr::runtime::{Engine, Options, Provider};
use starsr_testkit::fixtures;

use crate::cogvideox::{LIMIT, config, sample, video};
use crate::reference::{Report, Tensors, max_difference};

/// The bar of the small network inside the whole sampler.
const RUN_LIMIT: f64 = 1e-3;

/// Cosines and sines are made in double precision here, and in single precision there.
const TABLE_LIMIT: f64 = 1e-5;

fn engine(name: &str) -> Engine {
    let folder = fixtures::small_cogvideox(name).expect("asked before");
    let bundle = Bundle::open(&folder).unwrap();
    let options = Options {
        library: Some(fixtures::onnx_runtime()),
        provider: Provider::Cpu,
        ..Options::default()
    };
    Engine::load(&bundle, &options, &Cancel::default()).unwrap()
}

/// Every table of `pos_tables.safetensors`.
pub fn positions(path: &Path, report: &mut Report) {
    let tensors = Tensors::read(path);
    let rotary = |frames, rows, columns| PositionsSpec::Rotary { base: 1e4, frames, rows, columns };
    // The reference has each angle twice, once for each channel of a pair.
    let each = |table: &Array2<f32>| table.slice(s![.., ..;2]).to_owned();
    for (name, ours) in rotary(4, 6, 6).tables([3, 4, 6]) {
        let theirs = each(&tensors.array::<Ix2>(&format!("rope_small.{name}")));
        report.difference(
            &format!("rope_small.{name}"),
            max_difference(ours.view(), theirs.view()),
            TABLE_LIMIT,
        );
    }
    let grid = [13, 30, 45];
    let rows: Vec<usize> =
        tensors.array::<Ix1>("rope5b.rows").iter().map(|&row| row as usize).collect();
    for (name, ours) in rotary(16, 24, 24).tables(grid) {
        let of_axis = [
            ("t", (0..13).map(|t| t * 30 * 45).collect()),
            ("h", (0..30).map(|y| y * 45).collect()),
            ("w", (0..45).collect()),
            ("rows", rows.clone()),
        ];
        for (part, rows) in of_axis {
            let name = format!("rope5b.{name}_{part}");
            let theirs = each(&tensors.array::<Ix2>(&name));
            let ours = ours.select(Axis(0), &rows);
            report.difference(&name, max_difference(ours.view(), theirs.view()), TABLE_LIMIT);
        }
    }
    let sincos = |width| PositionsSpec::Sincos { base: 1e4, width, spatial_scale: 1.875 };
    let (_, ours) = &sincos(64).tables([3, 4, 6])[0];
    // Text has rows, too.
    let theirs = tensors.array::<Ix2>("sincos_small");
    let theirs = theirs.slice(s![12.., ..]);
    report.difference("sincos_small", max_difference(ours.view(), theirs), TABLE_LIMIT);
    let (_, ours) = &sincos(1920).tables(grid)[0];
    let theirs = tensors.array::<Ix2>("sincos2b.rows_val");
    let rows = tensors.array::<Ix1>("sincos2b.rows");
    for (&row, theirs) in rows.iter().zip(theirs.outer_iter()) {
        let name = format!("sincos2b row {row}");
        match (row as usize).checked_sub(226) {
            Some(row) => {
                report.difference(&name, max_difference(ours.row(row), theirs), TABLE_LIMIT);
            }
            None => report.check(theirs.iter().all(|&v| v == 0.0), || name),
        }
    }
}

/// Every case of `net_cases`.
pub fn networks(folder: &Path, report: &mut Report) {
    for (name, case) in config(folder)["net_cases"].as_object().unwrap() {
        let mut engine = engine(case["kind"].as_str().unwrap());
        let tensors = Tensors::read(&folder.join(format!("{name}.safetensors")));
        let batch = case["b"].as_u64().unwrap() as usize;
        let timesteps: Vec<i64> = serde_json::from_value(case["timestep"].clone()).unwrap();
        let context: Array3<f32> = tensors.array("context");
        let texts: Vec<Embedding> =
            context.outer_iter().map(|text| Embedding::new(text.to_owned())).collect();
        let each = |name: &str| {
            let all: ndarray::Array5<f32> = tensors.array(name);
            (0..batch).map(|k| all.index_axis(Axis(0), k).to_owned()).collect::<Vec<Array4<f32>>>()
        };
        // One input for the whole batch is one query; else there are as many queries.
        let queries = if tensors.get("x").is_some() {
            let query = |(k, x): (usize, Array4<f32>)| (k..k + 1, x);
            each("x").into_iter().enumerate().map(query).collect::<Vec<_>>()
        } else {
            let parts = [video(&tensors, "noisy"), video(&tensors, "lr_latent")];
            let views = parts.each_ref().map(|part| part.view());
            vec![(0..batch, ndarray::concatenate(Axis(1), &views).unwrap())]
        };
        let expected = each("v");
        let mut worst: f64 = 0.0;
        for (range, x) in queries {
            let conditions: Vec<Condition> = texts[range.clone()].iter().map(Some).collect();
            let query = Query {
                x: x.slice(s![.., ..16, .., ..]),
                hint: x.slice(s![.., 16.., .., ..]),
                t: timesteps[range.start],
                conditions: &conditions,
            };
            let ours = engine.predict(&query).unwrap();
            report.check(ours.len() == range.len(), || format!("{name}: {} results", ours.len()));
            for (ours, theirs) in ours.iter().zip(&expected[range]) {
                worst = worst.max(max_difference(ours.view(), theirs.view()));
            }
        }
        report.difference(name, worst, LIMIT);
    }
}

/// Every run of `config.json` with the small network.
pub fn runs(folder: &Path, report: &mut Report) {
    for (name, case) in config(folder)["sampler_runs"].as_object().unwrap() {
        if case.get("net").is_none() {
            continue;
        }
        let mut engine = engine("tame");
        let tensors = Tensors::read(&folder.join(name));
        let ours = sample(&mut engine, case, &tensors);
        let theirs = video(&tensors, "out");
        report.difference(name, max_difference(ours.view(), theirs.view()), RUN_LIMIT);
    }
}

/// `vae_small.safetensors`: the clip in one piece to latents, and latents to pixels in runs.
pub fn autoencoder(folder: &Path, report: &mut Report) {
    let mut engine = engine("rope");
    let tensors = Tensors::read(&folder.join("vae_small.safetensors"));
    // `[1,C,F,h,w]` as `[F,C,h,w]`.
    let frames_first = |name: &str| -> Array4<f32> { tensors.latents(name) };
    let moments = frames_first("moments");
    let (mean, log_variance) =
        (moments.slice(s![.., ..16, .., ..]), moments.slice(s![.., 16.., .., ..]));
    let scale = 0.7;
    let std = log_variance.mapv(|v: f32| scale * (0.5 * v.clamp(-30.0, 20.0)).exp());
    let [our_mean, our_std] = engine.encode_posterior(frames_first("x").view()).unwrap();
    let mut compare = |name: &str, ours: ndarray::ArrayView4<f32>, theirs: Array4<f32>| {
        report.difference(&format!("vae_small {name}"), max_difference(ours, theirs.view()), LIMIT);
    };
    compare("mean", our_mean.view(), mean.mapv(|v| v * scale));
    compare("std", our_std.view(), std);
    let drawn = &our_mean.view() + &our_std.view() * &frames_first("eps");
    compare("sample", drawn.view(), frames_first("z_lr"));
    let pixels = engine.decode(frames_first("latents").view()).unwrap();
    compare("pixels", pixels.view(), frames_first("decoded"));
}
