// SPDX-License-Identifier: MPL-2.0

//! Tables that need no model.

use std::path::Path;

use ndarray::{Array1, Array3, Array4, Axis};
use starsr::color::ColorFix;
use starsr::diffusion::schedule::{Schedule, ScheduleConfig};
use starsr::geometry::{Canvas, LegalSizes, Padding, Size};
use starsr::windows::{Window, WindowMode, Windows};

use crate::reference::{Report, Tensors, max_difference, read_json};

pub fn schedule(path: &Path, report: &mut Report) {
    let tensors = Tensors::read(path);
    let ours = Schedule::new(&ScheduleConfig::default()).unwrap();
    for (name, ours) in [("alphas", ours.alphas()), ("sigmas", ours.sigmas())] {
        let ours: Array1<f32> = ours.iter().map(|&v| v as f32).collect();
        report.difference(name, max_difference(ours.view(), tensors.array(name).view()), 1e-4);
    }
    // Relative, and for the levels in use: the reference's single precision cancels towards the
    // last ones.
    let k: Array1<f32> = tensors.array("k_sigmas");
    let worst = (0..900)
        .map(|t| (ours.sigmas()[t] / ours.alphas()[t] / f64::from(k[t]) - 1.0).abs())
        .fold(0.0, f64::max);
    report.difference("k_sigmas, relative", worst, 1e-4);
}

pub fn window_list(value: &serde_json::Value) -> Vec<Window> {
    let pairs: Vec<(usize, usize)> = serde_json::from_value(value.clone()).unwrap();
    pairs.into_iter().map(|(start, end)| Window { start, end }).collect()
}

pub fn make_chunks(path: &Path, report: &mut Report) {
    for case in read_json(path).as_array().unwrap() {
        let number = |key: &str| case[key].as_u64().unwrap() as usize;
        let (frames, length) = (number("frames"), number("max_chunk_len"));
        let windows = Windows::new(WindowMode::Wavefront, length, length / 2).unwrap();
        let ours = windows.list(frames);
        report.check(ours == window_list(&case["chunks"]), || {
            format!("{frames} frames of {length}: {ours:?}")
        });
        let last = ours.len() - 1;
        let kept: Vec<_> =
            ours.iter().enumerate().map(|(k, &w)| windows.kept(k, w, k == last)).collect();
        // The reference has no ranges for the clips that the official program cannot process.
        let expected = match &case["kept_global"] {
            serde_json::Value::Null => vec![Window { start: 0, end: frames }],
            ranges => window_list(ranges),
        };
        report.check(kept == expected, || format!("{frames} frames of {length} keep {kept:?}"));
    }
}

pub fn pad_to_fit(path: &Path, report: &mut Report) {
    let rows = LegalSizes { multiple: 64, offset: 16, minimum: 720 };
    let columns = LegalSizes { multiple: 64, offset: 0, minimum: 1280 };
    for case in read_json(path).as_array().unwrap() {
        let number = |key: &str| case[key].as_u64().unwrap() as usize;
        let picture = Size::new(number("w"), number("h"));
        let c = Canvas::new(picture, rows, columns, Padding::Official).unwrap();
        let right = c.size.width - c.left - c.picture.width;
        let bottom = c.size.height - c.top - c.picture.height;
        let ours = [c.left, right, c.top, bottom, c.size.height, c.size.width];
        let expected = ["w1", "w2", "h1", "h2", "H", "W"].map(number);
        report.check(ours == expected, || {
            format!("{}x{}: {ours:?}, not {expected:?}", number("h"), number("w"))
        });
    }
}

/// Frames `[F,H,W,3]` in 0..255 as planar frames in 0..1.
pub fn planar(frames: &Array4<f32>) -> Vec<Array3<f32>> {
    let planar = |frame: ndarray::ArrayView3<f32>| {
        frame.permuted_axes([2, 0, 1]).mapv(|v| v / 255.0).as_standard_layout().into_owned()
    };
    frames.axis_iter(Axis(0)).map(planar).collect()
}

pub fn color_fix(path: &Path, report: &mut Report) {
    let tensors = Tensors::read(path);
    let content = planar(&tensors.array("target_THWC_0_255"));
    for (name, fix, style) in [
        ("adain_lr", ColorFix::Adain, "source_lr_TCHW_m1_1"),
        ("adain_same", ColorFix::Adain, "source_same_TCHW_m1_1"),
        ("wavelet_same", ColorFix::Wavelet, "source_same_TCHW_m1_1"),
    ] {
        let style: Array4<f32> = tensors.array::<ndarray::Ix4>(style).mapv(|v| 0.5 * v + 0.5);
        let expected = planar(&tensors.array(name));
        let mut worst: f64 = 0.0;
        for ((content, style), expected) in
            content.iter().zip(style.axis_iter(Axis(0))).zip(&expected)
        {
            let mut fixed = content.clone();
            fix.apply(&mut fixed, style).unwrap();
            worst = worst.max(max_difference(fixed.view(), expected.view()));
        }
        report.difference(name, worst, 1e-5);
    }
}
