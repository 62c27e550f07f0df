// SPDX-License-Identifier: MPL-2.0

//! Properties of windows and of the samplers over them, for any number of frames, length and
//! overlap.

use ndarray::{Array2, Array3, Array4, Axis};
use proptest::prelude::*;
use starsr::diffusion::guidance::Guidance;
use starsr::diffusion::noise::FrameNoise;
use starsr::diffusion::sampler::Sampler;
use starsr::diffusion::schedule::{SamplerMode, Schedule, ScheduleConfig};
use starsr::diffusion::wavefront::Wavefront;
use starsr::model::{Condition, Conditioning, Denoiser, Embedding, Query, Samples};
use starsr::parallel::Threads;
use starsr::windows::{Window, WindowMode, Windows, cross_fade};
use starsr::{Cancel, Error, Result};

fn layout() -> impl Strategy<Value = Windows> {
    (any::<bool>(), 1usize..40, any::<u64>()).prop_flat_map(|(blend, length, number)| {
        let (mode, most) = if blend {
            (WindowMode::Blend, length / 2)
        } else {
            (WindowMode::Wavefront, length - 1)
        };
        (0..=most)
            .prop_map(move |overlap| Windows::new(mode, length, overlap).unwrap().anchored(number))
    })
}

fn hint(frame: u64) -> Array3<f32> {
    Array3::from_shape_fn((2, 2, 3), |(c, y, x)| {
        ((frame as usize * 7 + c * 5 + y * 3 + x) % 13) as f32 / 6.0 - 1.0
    })
}

fn sampler(steps: u32) -> Sampler {
    let schedule = Schedule::new(&ScheduleConfig::default()).unwrap();
    let plan = schedule.plan(SamplerMode::Normal, steps, 900).unwrap();
    Sampler::new(&schedule, &plan, Guidance::new(1.5, 0.2).unwrap()).unwrap()
}

/// A prompt and a negative prompt that [`Mixing`] tells apart.
fn prompts() -> Conditioning {
    let embedding = |value| Some(Embedding::new(Array2::from_elem((77, 1), value)));
    Conditioning { positive: embedding(0.02), negative: embedding(-0.03) }
}

/// Mixes all frames of a window, so that nothing shared is lost unnoticed.
struct Mixing {
    calls: usize,
    fail_at: Option<(usize, Cancel)>,
}

impl Mixing {
    fn new() -> Self {
        Self { calls: 0, fail_at: None }
    }
}

impl Denoiser for Mixing {
    fn predict(&mut self, query: &Query) -> Result<Vec<Samples>> {
        let Query { x, t, hint, conditions } = *query;
        let each = |condition: &Condition| {
            self.calls += 1;
            if let Some((at, cancel)) = &self.fail_at
                && self.calls == *at
            {
                cancel.set(true);
                return Err(Error::Cancelled);
            }
            let shift = condition.expect("both halves have an embedding").values()[[0, 0]];
            let mean = &x.mean_axis(Axis(0)).unwrap() * (0.1 + 1e-4 * t as f32);
            Ok((&x * 0.4 - &hint * 0.7 + mean + shift).into())
        };
        conditions.iter().map(each).collect()
    }
}

/// The official order: every step for all windows of the whole clip.
fn official(
    sampler: &mut Sampler,
    windows: &Windows,
    first: u64,
    frames: usize,
    noise: &FrameNoise,
) -> Vec<Array3<f32>> {
    use starsr::diffusion::noise::Noise;
    let solver = sampler.solver().clone();
    let list = windows.list(frames);
    let hints: Vec<_> = (0..frames as u64).map(|f| hint(first + f)).collect();
    let hints =
        ndarray::stack(Axis(0), &hints.iter().map(|h| h.view()).collect::<Vec<_>>()).unwrap();
    let mut x: Vec<_> = hints.axis_iter(Axis(0)).map(|h| h.to_owned()).collect();
    for (f, x) in x.iter_mut().enumerate() {
        let mut n = Array3::zeros(x.dim());
        noise.fill(first + f as u64, 0, 0, n.as_slice_mut().unwrap());
        solver.start(x.as_slice().unwrap(), n.as_slice_mut().unwrap());
        *x = n;
    }
    let mut previous: Option<Vec<Array3<f32>>> = None;
    for i in 0..solver.evaluations() {
        let mut input = Array4::zeros(hints.dim());
        for (x, mut m) in x.iter().zip(input.axis_iter_mut(Axis(0))) {
            m.assign(x);
            solver.scale_model_input(i, m.as_slice_mut().unwrap());
        }
        let mut denoised = Vec::new();
        for (k, &w) in list.iter().enumerate() {
            let part = ndarray::s![w.start..w.end, .., .., ..];
            let mut d = input.slice(part).to_owned();
            let mut model = Mixing::new();
            sampler.denoise(&mut model, i, d.view_mut(), hints.slice(part), &prompts()).unwrap();
            let kept = windows.kept(k, w, k + 1 == list.len());
            assert_eq!(kept.start, denoised.len());
            denoised.extend(
                (kept.start..kept.end).map(|f| d.index_axis(Axis(0), f - w.start).to_owned()),
            );
        }
        if i + 1 == solver.evaluations() {
            return denoised;
        }
        for (f, x) in x.iter_mut().enumerate() {
            let mut n = vec![0.0; x.len()];
            noise.fill(first + f as u64, i as u32 + 1, 0, &mut n);
            let p = previous.as_ref().map(|p| p[f].as_slice().unwrap());
            solver.step(i, x.as_slice_mut().unwrap(), denoised[f].as_slice().unwrap(), p, &n);
        }
        previous = Some(denoised);
    }
    unreachable!()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Every frame comes out exactly once and in order.
    #[test]
    fn every_frame_once(windows in layout(), frames in 0usize..300) {
        let list = windows.list(frames);
        prop_assert_eq!(list.is_empty(), frames == 0);
        let mut shares = vec![0.0f32; frames];
        let mut next = 0;
        for (k, w) in list.iter().enumerate() {
            prop_assert_eq!(w.start, windows.start(k));
            prop_assert!(!w.is_empty() && w.end <= frames);
            let last = k + 1 == list.len();
            // The first one is what the clip has of it.
            let least = if k == 0 { windows.overlap() + 1 } else { windows.length() };
            prop_assert!(last || w.len() >= least);
            match windows.mode() {
                WindowMode::Wavefront => {
                    prop_assert!(4 * w.len() <= 5 * windows.length() && (last || w.len() <= windows.length()));
                    let kept = windows.kept(k, *w, last);
                    prop_assert!(kept.start == next && kept.end > kept.start);
                    prop_assert!(kept.start >= w.start && kept.end <= w.end);
                    next = kept.end;
                }
                WindowMode::Blend => {
                    prop_assert!(w.len() <= windows.length());
                    for (f, share) in shares.iter_mut().enumerate().take(w.end).skip(w.start) {
                        let weight = windows.weight(k, f);
                        let shared = k > 0 && f < list[k - 1].end;
                        prop_assert_eq!(weight == 1.0, !shared);
                        prop_assert!(weight > 0.0 && weight <= 1.0);
                        // As the cross-fade does: the earlier window has what is left.
                        *share = *share * (1.0 - weight) + weight;
                        prop_assert_eq!(*share, 1.0);
                        prop_assert_eq!((1.0 - weight) + weight, 1.0);
                    }
                }
            }
        }
        match windows.mode() {
            WindowMode::Wavefront => prop_assert_eq!(next, frames),
            WindowMode::Blend => {
                prop_assert!(shares.iter().all(|&s| s == 1.0));
                for f in 0..frames {
                    prop_assert!(list.iter().filter(|w| w.start <= f && f < w.end).count() <= 2);
                }
                // Only a window with frames of its own is added.
                if let [.., before, last] = &list[..] {
                    prop_assert!(last.end > before.end);
                }
            }
        }
    }

    #[test]
    fn weights_are_smooth_and_symmetric(length in 2usize..200, part in 0.0f64..=0.5) {
        let overlap = (length as f64 * part) as usize;
        let windows = Windows::new(WindowMode::Blend, length, overlap).unwrap();
        let start = windows.start(1);
        let weights: Vec<f32> = (0..overlap).map(|f| windows.weight(1, start + f)).collect();
        for (j, w) in weights.iter().enumerate() {
            prop_assert!(*w > 0.0 && *w < 1.0);
            prop_assert!((w + weights[overlap - 1 - j] - 1.0).abs() < 1e-6);
            prop_assert!(j == 0 || weights[j - 1] < *w);
        }
    }

    /// The streaming planner gives the same windows as soon as they are certain, clip after clip.
    #[test]
    fn planner_equals_the_list(windows in layout(), number in 0u64..10_000, clips in prop::collection::vec(0usize..200, 1..4)) {
        let mut planner = windows.planner();
        let windows = windows.anchored(number);
        for frames in clips {
            let mut ours = Vec::new();
            for f in 0..frames {
                if let Some(window) = planner.push(number + f as u64) {
                    match windows.mode() {
                        WindowMode::Blend => prop_assert_eq!(window.end, f + 1),
                        WindowMode::Wavefront => prop_assert_eq!(window.end + windows.length() / 4, f),
                    }
                    ours.push(window);
                }
            }
            ours.extend(planner.finish());
            prop_assert_eq!(ours, windows.list(frames));
        }
    }

    /// A clip that starts anywhere has the windows of the whole from the second one on, and so the
    /// same frames in them.
    #[test]
    fn parts_have_the_windows_of_the_whole(windows in layout(), frames in 1u64..300, number in 0u64..10_000, from in 0u64..300) {
        prop_assume!(from < frames);
        let absolute = |first: u64| -> Vec<(u64, u64)> {
            let list = windows.anchored(first).list((number + frames - first) as usize);
            list.iter().map(|w| (first + w.start as u64, first + w.end as u64)).collect()
        };
        let (whole, part) = (absolute(number), absolute(number + from));
        let first = whole.iter().rposition(|w| w.0 <= number + from).unwrap();
        prop_assert_eq!(part[0], (number + from, whole[first].1));
        prop_assert_eq!(&part[1..], &whole[first + 1..]);
        // The grid is that of number 0.
        prop_assert!(whole[1..].iter().all(|w| w.0 % windows.stride() as u64 == 0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// The wavefront gives the official result, bit for bit, for any layout and any way of feeding.
    #[test]
    fn wavefront_is_official(
        length in 1usize..12,
        overlap in 0usize..12,
        frames in 0usize..50,
        steps in 1u32..6,
        first in 0u64..1000,
        feed in prop::collection::vec(1usize..20, 1..5),
        fail_at in 1usize..200,
    ) {
        let overlap = overlap % length;
        let mut sampler = sampler(steps);
        let noise = FrameNoise::new(5);
        let windows = Windows::new(WindowMode::Wavefront, length, overlap).unwrap().anchored(first);
        let expected =
            if frames == 0 { Vec::new() } else { official(&mut sampler, &windows, first, frames, &noise) };
        let mut wavefront = Wavefront::new(sampler, length, overlap).unwrap();
        // Cancelled once somewhere, and continued.
        let cancel = Cancel::default();
        let mut model = Mixing { calls: 0, fail_at: Some((fail_at, cancel.clone())) };
        let mut advance = |wavefront: &mut Wavefront, ours: &mut Vec<Array3<f32>>| {
            if let Ok(more) = wavefront.advance(&mut model, &noise, &prompts(), &cancel) { ours.extend(more) } else {
                assert!(matches!(wavefront.advance(&mut model, &noise, &prompts(), &cancel), Err(Error::Cancelled) | Ok(_)));
                cancel.set(false);
                ours.extend(wavefront.advance(&mut model, &noise, &prompts(), &cancel).unwrap());
            }
        };
        for _ in 0..2 {
            let mut ours = Vec::new();
            let mut turn = feed.iter().cycle();
            let mut left = *turn.next().unwrap();
            for f in 0..frames as u64 {
                wavefront.push(first + f, hint(first + f)).unwrap();
                left -= 1;
                if left == 0 {
                    advance(&mut wavefront, &mut ours);
                    left = *turn.next().unwrap();
                }
            }
            wavefront.finish();
            advance(&mut wavefront, &mut ours);
            prop_assert_eq!(&ours, &expected);
        }
    }
}

/// A window gives the same latents from wherever the clip starts, because its noise goes by
/// absolute numbers.
#[test]
fn windows_share_content() {
    let sampler = sampler(4);
    let noise = FrameNoise::new(9);
    let windows = Windows::new(WindowMode::Blend, 8, 2).unwrap();
    let sample = |first: u64, frames: usize| -> Vec<Array4<f32>> {
        let sample = |w: &Window| {
            let numbers: Vec<u64> = (w.start..w.end).map(|f| first + f as u64).collect();
            let hints: Vec<_> = numbers.iter().map(|&f| hint(f)).collect();
            let hints =
                ndarray::stack(Axis(0), &hints.iter().map(|h| h.view()).collect::<Vec<_>>())
                    .unwrap();
            let mut sampler = sampler.clone();
            sampler
                .sample(
                    &mut Mixing::new(),
                    hints.view(),
                    &numbers,
                    &noise,
                    &prompts(),
                    &Cancel::default(),
                )
                .unwrap()
                .view()
                .to_owned()
        };
        windows.anchored(first).list(frames).iter().map(sample).collect()
    };
    let whole = sample(100, 35);
    for from in 0..30 {
        let part = sample(100 + from as u64, 35 - from);
        assert_eq!(part[1..], whole[whole.len() + 1 - part.len()..]);
    }
    assert_ne!(sample(0, 35)[0], sample(6, 35)[0]);
}

#[test]
fn refusals() {
    use WindowMode::{Blend, Wavefront as Merge};
    for (mode, length, overlap) in
        [(Blend, 0, 0), (Merge, 0, 0), (Blend, 8, 5), (Merge, 8, 8), (Blend, 1 << 20, 0)]
    {
        assert!(
            matches!(Windows::new(mode, length, overlap), Err(Error::Setting { .. })),
            "{mode:?} {length} {overlap}"
        );
    }
    let mut wavefront = Wavefront::new(sampler(2), 4, 2).unwrap();
    assert!(Wavefront::new(sampler(2), 4, 4).is_err());
    wavefront.push(0, hint(0)).unwrap();
    assert!(matches!(wavefront.push(1, Array3::zeros((2, 2, 4))), Err(Error::Input { .. })));
    assert!(matches!(wavefront.push(1, Array3::zeros((0, 2, 4))), Err(Error::Input { .. })));
    wavefront.finish();
    assert!(matches!(wavefront.push(1, hint(1)), Err(Error::Input { .. })));
    wavefront.reset();
    wavefront.push(1, hint(1)).unwrap();

    let mut sampler = sampler(2);
    let noise = FrameNoise::new(0);
    let hints = Array4::zeros((3, 2, 2, 3));
    let cancel = Cancel::default();
    assert!(matches!(
        sampler.sample(&mut Mixing::new(), hints.view(), &[1, 2], &noise, &prompts(), &cancel),
        Err(Error::Input { .. })
    ));
    let none = Array4::zeros((0, 2, 2, 3));
    assert_eq!(
        sampler
            .sample(&mut Mixing::new(), none.view(), &[], &noise, &prompts(), &cancel)
            .unwrap()
            .dim(),
        none.dim()
    );
    cancel.set(true);
    assert!(matches!(
        sampler.sample(&mut Mixing::new(), hints.view(), &[1, 2, 3], &noise, &prompts(), &cancel),
        Err(Error::Cancelled)
    ));
}

/// A model that answers with the wrong shape, or with something that is not a number.
#[test]
fn bad_models() {
    struct Bad(Array4<f32>);
    impl Denoiser for Bad {
        fn predict(&mut self, query: &Query) -> Result<Vec<Samples>> {
            Ok(vec![self.0.clone().into(); query.conditions.len()])
        }
    }
    let hints = Array4::zeros((2, 2, 2, 3));
    for answer in [
        Array4::zeros((2, 2, 2, 2)),
        Array4::from_elem((2, 2, 2, 3), f32::NAN),
        Array4::from_elem((2, 2, 2, 3), f32::INFINITY),
    ] {
        let result = sampler(2).sample(
            &mut Bad(answer),
            hints.view(),
            &[0, 1],
            &FrameNoise::new(0),
            &prompts(),
            &Cancel::default(),
        );
        assert!(matches!(result, Err(Error::Inference { .. })));
    }
    // Any memory layout will do.
    let turned = Array4::from_shape_fn((2, 3, 2, 2), |(a, b, c, d)| (a + b * c + d) as f32)
        .permuted_axes([0, 2, 3, 1]);
    let straight = turned.as_standard_layout().into_owned();
    let sample = |answer| {
        sampler(2)
            .sample(
                &mut Bad(answer),
                hints.view(),
                &[0, 1],
                &FrameNoise::new(0),
                &prompts(),
                &Cancel::default(),
            )
            .unwrap()
    };
    assert_eq!(sample(turned), sample(straight));
}

#[test]
fn cross_fading() {
    let threads = Threads::new(2);
    let mut frame = Array3::from_elem((3, 4, 5), 0.3);
    let same = frame.clone();
    cross_fade(&mut frame, same.view(), 0.7, &threads).unwrap();
    assert_eq!(frame, same);
    cross_fade(&mut frame, Array3::from_elem((3, 4, 5), 0.7).view(), 0.25, &threads).unwrap();
    assert!(frame.iter().all(|v| (v - 0.4).abs() < 1e-6));
    assert!(cross_fade(&mut frame, Array3::zeros((3, 4, 4)).view(), 0.5, &threads).is_err());
}
