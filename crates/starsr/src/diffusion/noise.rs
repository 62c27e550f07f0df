// SPDX-License-Identifier: MPL-2.0

//! Noise as a function of the place where it is used, so that a frame gets the same noise however a
//! video is cut, seeked or spread over machines.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// The step at which [`Noise`] gives the noise of the encoder's posterior.
pub const POSTERIOR_STEP: u32 = u32::MAX;

/// A source of N(0,1) noise.
pub trait Noise: Send + Sync {
    /// Fills `out` with the values from place `first` on of a frame's latents `[C,h,w]`, for the
    /// absolute frame number `frame`. Step 0 is the start noise, step i+1 the solver's noise after
    /// evaluation i, and [`POSTERIOR_STEP`] the noise with which latents are drawn from the
    /// encoder's posterior. A value depends on frame, step and place alone.
    fn fill(&self, frame: u64, step: u32, first: usize, out: &mut [f32]);
}

/// Seeded noise: element `e` is a pure function of (seed, frame, step, e).
///
/// ChaCha8 in counter mode, keyed by seed, frame and step, feeds a Box-Muller transform in single
/// precision, whose extreme values are +-6.66. It uses integer operations and the IEEE 754
/// operations +, -, * and square root alone, never the platform's mathematical library, so that the
/// bits are the same on every machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameNoise {
    seed: u64,
}

impl FrameNoise {
    /// Noise for `seed`.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }
}

/// Values made together: the first half of a block's words gives radii, the second half angles.
const BLOCK: usize = 128;
const PAIRS: usize = BLOCK / 2;

impl Noise for FrameNoise {
    fn fill(&self, frame: u64, step: u32, first: usize, out: &mut [f32]) {
        let mut key = *b"--------starsr noise------------";
        key[..8].copy_from_slice(&self.seed.to_le_bytes());
        key[20..28].copy_from_slice(&frame.to_le_bytes());
        key[28..].copy_from_slice(&step.to_le_bytes());
        let mut words = ChaCha8Rng::from_seed(key);
        words.set_word_pos((first / BLOCK * BLOCK) as u128);
        let mut bytes = [0; 4 * BLOCK];
        let within = first % BLOCK;
        let (begun, out) = out.split_at_mut(out.len().min((BLOCK - within) % BLOCK));
        if !begun.is_empty() {
            let mut block = [0.0; BLOCK];
            words.fill_bytes(&mut bytes);
            normals(&bytes, &mut block);
            begun.copy_from_slice(&block[within..within + begun.len()]);
        }
        let mut blocks = out.chunks_exact_mut(BLOCK);
        for block in &mut blocks {
            words.fill_bytes(&mut bytes);
            normals(&bytes, block.try_into().expect("a whole block"));
        }
        let rest = blocks.into_remainder();
        if !rest.is_empty() {
            let mut block = [0.0; BLOCK];
            words.fill_bytes(&mut bytes);
            normals(&bytes, &mut block);
            rest.copy_from_slice(&block[..rest.len()]);
        }
    }
}

/// Box-Muller on a block of little-endian words.
#[inline]
fn normals(bytes: &[u8; 4 * BLOCK], out: &mut [f32; BLOCK]) {
    let word = |i: usize| {
        u32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])
    };
    let (cosines, sines) = out.split_at_mut(PAIRS);
    for i in 0..PAIRS {
        let (first, second) = (word(i), word(PAIRS + i));
        let radius = (-2.0 * ln((first >> 1) as i32)).sqrt();
        // The angle is a quarter turn either side of 0; the bit that the radius leaves over gives
        // the other half circle.
        let turned = f32::from_bits(radius.to_bits() | (first << 31));
        let (sine, cosine) = sin_cos(second as i32);
        cosines[i] = turned * cosine;
        sines[i] = turned * sine;
    }
}

/// `ln((w + 0.5) / 2³¹)` for `w` in 0..2³¹, relative error below 3e-7. Never above 0.
#[inline]
fn ln(w: i32) -> f32 {
    let u = (w as f32 + 0.5) * (1.0 / 2_147_483_648.0);
    // u = m 2^e with m in [sqrt(1/2), sqrt(2)), split at the bits of sqrt(1/2).
    let bits = u.to_bits() as i32 - 0x3f35_04f3;
    let exponent = (bits >> 23) as f32;
    let f = f32::from_bits(((bits & 0x007f_ffff) + 0x3f35_04f3) as u32) - 1.0;
    let mut p = 0.090_487_845f32;
    for c in [-0.140_308_92, 0.147_039, -0.166_027_19, 0.199_842_23, -0.250_007_03, 0.333_334_15] {
        p = p * f + c;
    }
    let f2 = f * f;
    // ln 2 in two parts, the first of which is exact when multiplied by an exponent.
    let tail = p * f2 * f - 0.5 * f2 + exponent * -2.121_944_4e-4;
    (tail + f) + exponent * 0.693_359_4
}

/// Sine and cosine of `w / 2³¹` quarter turns, absolute error below 3e-7.
#[inline]
fn sin_cos(w: i32) -> (f32, f32) {
    let a = w as f32 * (1.0 / 2_147_483_648.0);
    let z = a * a;
    let mut s = 1.516_716_7e-4_f32;
    for c in [-4.674_143_6e-3, 7.968_992e-2, -6.459_638e-1, 1.570_796_4] {
        s = s * z + c;
    }
    let mut c = 8.581_345e-4_f32;
    for k in [-2.081_051_5e-2, 2.536_506_7e-1, -1.233_698_3, 9.999_999_4e-1] {
        c = c * z + k;
    }
    (s * a, c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(seed: u64, frame: u64, step: u32, n: usize) -> Vec<f32> {
        let mut out = vec![0.0; n];
        FrameNoise::new(seed).fill(frame, step, 0, &mut out);
        out
    }

    fn correlation(a: &[f32], b: &[f32]) -> f64 {
        let n = a.len().min(b.len());
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>() / n as f64
    }

    #[test]
    fn element_depends_on_nothing_but_its_place() {
        let long = draw(7, 11, 3, 1000);
        for n in [0, 1, 63, 64, 127, 128, 129, 999] {
            assert_eq!(draw(7, 11, 3, n), long[..n]);
        }
        for first in [0, 1, 64, 127, 128, 129, 500, 999, 1000] {
            for end in [first, first + 1, first + 127, first + 300, 1000] {
                let mut part = vec![0.0; end.clamp(first, 1000) - first];
                FrameNoise::new(7).fill(11, 3, first, &mut part);
                assert_eq!(part, long[first..first + part.len()], "{first} {end}");
            }
        }
    }

    /// The same bits on every machine: changing them changes everybody's output.
    #[test]
    fn bits() {
        let bits = |v: Vec<f32>| v.iter().fold(0u32, |hash, v| hash.rotate_left(5) ^ v.to_bits());
        assert_eq!(
            [
                bits(draw(0, 0, 0, 1000)),
                bits(draw(1, 0, 0, 1000)),
                bits(draw(u64::MAX, u64::MAX, u32::MAX, 1000))
            ],
            [711_303_652, 136_640_174, 4_260_427_942]
        );
    }

    /// As in `python/tests/test_upscalers.py`.
    #[test]
    fn values() {
        let noise = draw(7, 11, 3, 300);
        let expected = [
            -0.212_602_66,
            -0.046_228_893,
            0.074_726_09,
            -0.951_367_14,
            -0.543_072_34,
            0.492_991_86,
        ];
        for (at, value) in [0, 63, 64, 127, 128, 299].into_iter().zip(expected) {
            assert!((noise[at] - value).abs() < 3e-6, "{at}: {}", noise[at]);
        }
    }

    #[test]
    fn functions_are_accurate() {
        for w in
            (0..=i32::MAX).step_by(100_003).chain(0..1000).chain((0..1000).map(|w| i32::MAX - w))
        {
            let exact = f64::from((w as f32 + 0.5) / 2f32.powi(31)).ln();
            let ours = f64::from(ln(w));
            assert!(
                ours <= 0.0 && (ours - exact).abs() <= 3e-7 * exact.abs(),
                "{w}: {ours} {exact}"
            );
        }
        for w in (i32::MIN..=i32::MAX).step_by(100_003).chain([i32::MAX, 0, 1]) {
            let angle = f64::from(w) / 2f64.powi(31) * std::f64::consts::FRAC_PI_2;
            let (s, c) = sin_cos(w);
            assert!(
                (f64::from(s) - angle.sin()).abs() < 3e-7
                    && (f64::from(c) - angle.cos()).abs() < 3e-7,
                "{w}"
            );
        }
    }

    #[test]
    fn is_normal() {
        let n = 1 << 20;
        let x = draw(666, 0, 0, n);
        let moment = |k: i32| x.iter().map(|&v| f64::from(v).powi(k)).sum::<f64>() / n as f64;
        let error = |k: f64| 4.5 * (k / n as f64).sqrt();
        assert!(moment(1).abs() < error(1.0), "mean {}", moment(1));
        assert!((moment(2) - 1.0).abs() < error(2.0), "variance {}", moment(2));
        assert!(moment(3).abs() < error(15.0), "skewness {}", moment(3));
        assert!((moment(4) - 3.0).abs() < error(96.0), "kurtosis {}", moment(4));
        for (limit, probability) in [
            (0.1, 0.920_344),
            (0.5, 0.617_075),
            (1.0, 0.317_311),
            (2.0, 0.045_500),
            (3.0, 0.002_699_8),
            (4.0, 6.334e-5),
        ] {
            for sign in [-1.0, 1.0] {
                let beyond = x.iter().filter(|&&v| v * sign > limit).count() as f64;
                let expected = probability / 2.0 * n as f64;
                assert!(
                    (beyond - expected).abs() < 4.5 * expected.sqrt(),
                    "{limit}: {beyond} of {expected}"
                );
            }
        }
        assert!(x.iter().all(|v| v.abs() < 6.7));
    }

    #[test]
    fn is_independent() {
        let n = 1 << 18;
        let x = draw(1, 5, 2, n);
        let limit = 4.5 / (n as f64).sqrt();
        let others = [
            draw(1, 6, 2, n),
            draw(1, 5, 3, n),
            draw(2, 5, 2, n),
            draw(1 << 32, 5, 2, n),
            draw(5, 1, 2, n),
        ];
        let squares = |v: &[f32]| v.iter().map(|v| (v * v - 1.0) / 2f32.sqrt()).collect::<Vec<_>>();
        for other in &others {
            assert!(correlation(&x, other).abs() < limit);
            assert!(correlation(&squares(&x), &squares(other)).abs() < limit);
        }
        for lag in [1, 2, 32, 63, 64, 65, 127, 128, 256] {
            assert!(correlation(&x, &x[lag..]).abs() < limit, "lag {lag}");
            assert!(correlation(&squares(&x), &squares(&x[lag..])).abs() < limit, "lag {lag}");
        }
    }
}
