// SPDX-License-Identifier: MPL-2.0

//! Cuts between scenes, found frame by frame.

use std::collections::VecDeque;

use ndarray::ArrayView3;

/// Cells of a thumbnail, at most.
const ROWS: usize = 36;
const COLUMNS: usize = 64;
/// Bins of a thumbnail's histogram.
const BINS: usize = 16;
/// Variance of luma below which a thumbnail counts as flat, and of the noise that does not count as
/// structure.
const FLAT: f32 = 4e-4;
/// Frames that a new one is compared with: a flash of up to one frame less is no cut.
const REFERENCES: usize = 3;
/// The least change that is a cut, and how many times the usual one.
const LEAST: f32 = 0.3;
const TIMES_USUAL: f32 = 3.0;
/// Part of a frame's change in the usual one.
const RATE: f32 = 0.25;

/// Says of each frame whether a new scene begins with it, from that frame and those before.
///
/// It compares small versions of the frames: how far their structure correlates, whatever the
/// brightness, and, where it does not, how much of their histogram has moved. A change that is much
/// larger than those of late is a cut, so flashes and fades are not cuts. A flat frame, black for
/// instance, belongs to the scene before it.
#[derive(Debug, Clone, Default)]
pub struct SceneDetector {
    references: VecDeque<Thumbnail>,
    /// Moving average of the changes, each counted up to what would be a cut. It starts with the
    /// first change, or every frame of a restless clip would be a cut until the average has risen.
    usual: Option<f32>,
}

impl SceneDetector {
    /// Takes the next frame, `[3,h,w]` RGB in `[0,1]`; gives whether it is the first of a new scene.
    /// The first two frames are not, as there is nothing to judge them by. Frames may differ in
    /// size. Costs one pass over the pixels.
    pub fn is_cut(&mut self, frame: ArrayView3<f32>) -> bool {
        let Some(thumbnail) = Thumbnail::new(frame) else { return false };
        if thumbnail.variance < FLAT {
            return false;
        }
        let change = self.references.iter().map(|r| thumbnail.change(r)).reduce(f32::min);
        if self.references.len() == REFERENCES {
            self.references.pop_front();
        }
        self.references.push_back(thumbnail);
        let Some(change) = change else { return false };
        let usual = self.usual.unwrap_or(change);
        let least = LEAST.max(TIMES_USUAL * usual);
        self.usual = Some(usual + RATE * (change.min(least) - usual));
        change > least
    }

    /// Forgets all frames: the next one is compared with nothing.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

/// Mean luma of the cells of a frame, less their mean.
#[derive(Debug, Clone)]
struct Thumbnail {
    cells: Vec<f32>,
    variance: f32,
    histogram: [f32; BINS],
}

impl Thumbnail {
    /// `None` for a frame without pixels, or without three channels.
    fn new(frame: ArrayView3<f32>) -> Option<Self> {
        let (channels, height, width) = frame.dim();
        if channels != 3 || height == 0 || width == 0 {
            return None;
        }
        let (rows, columns) = (ROWS.min(height), COLUMNS.min(width));
        let mut cells = vec![0.0; rows * columns];
        for (channel, weight) in frame.outer_iter().zip([0.299, 0.587, 0.114]) {
            for (y, row) in channel.outer_iter().enumerate() {
                let cells = &mut cells[y * rows / height * columns..][..columns];
                for (x, value) in row.iter().enumerate() {
                    cells[x * columns / width] += weight * value;
                }
            }
        }
        // Cell i holds the places p with p * cells / size == i.
        let size = |i: usize, cells: usize, size: usize| {
            ((i + 1) * size).div_ceil(cells) - (i * size).div_ceil(cells)
        };
        for (i, cell) in cells.iter_mut().enumerate() {
            *cell /= (size(i / columns, rows, height) * size(i % columns, columns, width)) as f32;
        }
        let count = cells.len() as f32;
        let mut histogram = [0.0; BINS];
        for cell in &cells {
            histogram[((cell * BINS as f32) as usize).min(BINS - 1)] += 1.0 / count;
        }
        let mean = cells.iter().sum::<f32>() / count;
        for cell in &mut cells {
            *cell -= mean;
        }
        let variance = cells.iter().map(|cell| cell * cell).sum::<f32>() / count;
        Some(Self { cells, variance, histogram })
    }

    /// From 0, the same, to 3.
    fn change(&self, other: &Self) -> f32 {
        if self.cells.len() != other.cells.len() {
            return 3.0;
        }
        let products = self.cells.iter().zip(&other.cells).map(|(a, b)| a * b);
        let covariance = products.sum::<f32>() / self.cells.len() as f32;
        let deviations = (self.variance * other.variance).sqrt();
        let structure = (1.0 - (covariance + FLAT) / (deviations + FLAT)).max(0.0);
        let bins = self.histogram.iter().zip(&other.histogram);
        let moved = bins.map(|(a, b)| (a - b).abs()).sum::<f32>() / 2.0;
        // A histogram moves with the light alone, so it only confirms.
        structure + moved.min(structure)
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array3;

    use super::*;

    const NONE: [usize; 0] = [];

    /// A scene that moves to the right by `speed` pixels a frame, with noise.
    fn frame(scene: usize, k: usize, speed: usize) -> Array3<f32> {
        let mut noise = 12345 + 977 * k as u32;
        Array3::from_shape_fn((3, 72, 128), |(_, y, x)| {
            let (x, y) = ((x + speed * k) as f32 * 0.05, y as f32 * 0.05);
            let s = scene as f32;
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let noise = (noise >> 8) as f32 / (1 << 24) as f32 - 0.5;
            0.5 + 0.2 * (x * (1.0 + 0.3 * s) + s).sin() * (y * (1.5 + s) + 2.0 * s).cos()
                + 0.15 * (2.3 * x - (3.0 - s) * y).sin()
                + 0.1 * noise
        })
    }

    fn cuts(frames: impl IntoIterator<Item = Array3<f32>>) -> Vec<usize> {
        let mut detector = SceneDetector::default();
        let flags = frames.into_iter().map(|f| detector.is_cut(f.view())).collect::<Vec<_>>();
        (0..flags.len()).filter(|&k| flags[k]).collect()
    }

    #[test]
    fn each_new_scene_is_a_cut() {
        for speed in [0, 1, 2] {
            assert_eq!(
                cuts((0..60).map(|k| frame(k / 12, k, speed))),
                [12, 24, 36, 48],
                "speed {speed}"
            );
        }
    }

    #[test]
    fn motion_and_noise_are_none() {
        for speed in [0, 1, 3] {
            assert_eq!(cuts((0..60).map(|k| frame(2, k, speed))), NONE, "speed {speed}");
        }
        // Nothing but noise.
        let snow = |k| (frame(0, k, 0) - frame(0, k + 1000, 0)) * 5.0 + 0.5;
        assert_eq!(cuts((0..60).map(snow)), NONE);
    }

    #[test]
    fn flashes_are_none() {
        for length in [1, 2] {
            let lit = |k: usize| (20..20 + length).contains(&k);
            let bright = |k| frame(1, k, 1).mapv(|v| if lit(k) { (v + 0.4).min(1.0) } else { v });
            let white = |k| frame(1, k, 1).mapv(|v| if lit(k) { 1.0 } else { v });
            let dark = |k| frame(1, k, 1).mapv(|v| if lit(k) { 0.0 } else { v });
            assert_eq!(cuts((0..40).map(bright)), NONE, "{length} bright frames");
            assert_eq!(cuts((0..40).map(white)), NONE, "{length} white frames");
            assert_eq!(cuts((0..40).map(dark)), NONE, "{length} dark frames");
        }
    }

    #[test]
    fn fades_and_dissolves_are_none_but_a_scene_after_black_is() {
        let gain = |k: usize| (k as f32 - 20.0).abs() / 20.0;
        assert_eq!(cuts((0..60).map(|k| frame(1, k, 1).mapv(|v| v * gain(k).min(1.0)))), NONE);
        let dissolve = |k: usize| {
            let weight = (k as f32 - 10.0).clamp(0.0, 25.0) / 25.0;
            frame(0, k, 1) * (1.0 - weight) + frame(3, k, 1) * weight
        };
        assert_eq!(cuts((0..50).map(dissolve)), NONE);
        let black = |k: usize| match k {
            0..20 => frame(0, k, 1),
            20..30 => Array3::zeros((3, 72, 128)),
            _ => frame(3, k, 1),
        };
        assert_eq!(cuts((0..50).map(black)), [30]);
    }

    #[test]
    fn odd_frames_are_taken() {
        let mut detector = SceneDetector::default();
        for size in [(3, 1, 1), (3, 0, 5), (1, 4, 4), (3, 37, 65), (3, 1, 200)] {
            assert!(!detector.is_cut(Array3::zeros(size).view()), "{size:?}");
        }
        let nan = Array3::from_elem((3, 8, 8), f32::NAN);
        assert!(!detector.is_cut(nan.view()));
        let thumbnail = Thumbnail::new(Array3::from_elem((3, 37, 65), 0.5).view()).unwrap();
        assert!(thumbnail.variance < 1e-9, "cells have different sizes");
    }

    #[test]
    fn a_reset_forgets_the_scene_before() {
        let mut detector = SceneDetector::default();
        assert!((0..5).all(|k| !detector.is_cut(frame(0, k, 1).view())));
        detector.reset();
        assert!(!detector.is_cut(frame(3, 5, 1).view()));
    }
}
