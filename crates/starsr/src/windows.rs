// SPDX-License-Identifier: MPL-2.0

//! Which frames share a window, what of each window is kept, and cross-fade weights.

use ndarray::{Array3, ArrayView3, Zip};

use crate::error::{Error, Result};
use crate::names::Setting;
use crate::parallel::{PART, Threads};

/// How neighbouring windows are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WindowMode {
    /// Every window is sampled on its own; the pixels of the overlap are cross-faded.
    Blend,
    /// The windows' predictions are merged at every step, as the official program does.
    Wavefront,
}

/// Frames `start..end`, counted from the clip's first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// First frame.
    pub start: usize,
    /// One past the last frame.
    pub end: usize,
}

impl Window {
    /// Number of frames.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether it has no frames. Windows of a clip have at least one.
    pub fn is_empty(&self) -> bool {
        self.end == self.start
    }
}

/// The layout of a clip's windows of `length` frames. Neighbours share `overlap` frames, so windows
/// start every `length - overlap` frames. They lie on a grid of absolute frame numbers, see
/// [`Windows::anchored`]: part of a video has the windows that it has in the whole, except for its
/// first and last window, which end with it.
///
/// `Blend`: there is a further window while some frame lies in no window; the last one may be
/// shorter. `Wavefront` (docs/star.md, A.5, `make_chunks`): the last window holds all that is left,
/// up to 1.25 lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    mode: WindowMode,
    length: usize,
    overlap: usize,
    /// Frames of window 0 that are before the clip; less than the stride.
    missing: usize,
}

impl Windows {
    /// The layout of a clip that begins on the grid. `Blend` cross-fades two windows at a time.
    ///
    /// # Errors
    /// [`Error::Setting`] unless `length` is 1 to 65536 and `overlap < length`, for `Blend`
    /// `overlap <= length / 2`.
    pub fn new(mode: WindowMode, length: usize, overlap: usize) -> Result<Self> {
        if !(1..=65536).contains(&length) {
            let reason = format!("{length} is outside 1 to 65536");
            return Err(Error::setting(Setting::WindowLength, reason));
        }
        let most = match mode {
            WindowMode::Blend => length / 2,
            WindowMode::Wavefront => length - 1,
        };
        if overlap > most {
            let reason = format!(
                "{overlap} is more than {most}, the most that windows of {length} frames allow"
            );
            return Err(Error::setting(Setting::WindowOverlap, reason));
        }
        Ok(Self { mode, length, overlap, missing: 0 })
    }

    /// The same layout for a clip whose first frame has the absolute number `number`. Of all
    /// windows on the grid that start no later than that frame, window 0 is the last, without the
    /// frames before the clip; more than `overlap` frames of it remain.
    pub fn anchored(self, number: u64) -> Self {
        Self { missing: (number % self.stride() as u64) as usize, ..self }
    }

    /// How windows are joined.
    pub fn mode(&self) -> WindowMode {
        self.mode
    }

    /// Frames of a full window, `L`.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Frames shared by neighbours, `O`.
    pub fn overlap(&self) -> usize {
        self.overlap
    }

    /// Frames of the longest window.
    pub fn longest(&self) -> usize {
        match self.mode {
            WindowMode::Blend => self.length,
            WindowMode::Wavefront => self.length + self.length / 4,
        }
    }

    /// Frames between the starts of neighbours, `L - O`.
    pub fn stride(&self) -> usize {
        self.length - self.overlap
    }

    /// First frame of window `k`, counted from the clip's first.
    pub fn start(&self, k: usize) -> usize {
        (k * self.stride()).saturating_sub(self.missing)
    }

    /// Frames of window 0 that are before the clip.
    pub(crate) fn missing(&self) -> usize {
        self.missing
    }

    /// The last window of a clip of `frames` frames.
    pub(crate) fn last(&self, frames: usize) -> usize {
        let near = frames.saturating_sub(2 * self.length) / self.stride();
        (near..=frames).find(|&k| self.is_last(k, frames)).unwrap_or(near)
    }

    /// The window whose prediction of the frame at `place` is used in `Wavefront` mode, unless the
    /// clip ends before it.
    pub(crate) fn keeper(&self, place: usize) -> usize {
        let middle = self.overlap / 2;
        ((place + self.missing).saturating_sub(middle)) / self.stride()
    }

    /// One past the last frame of window `k`, unless it is the clip's last.
    pub(crate) fn end(&self, k: usize) -> usize {
        k * self.stride() + self.length - self.missing
    }

    /// Whether a clip of `frames` frames has no window after window `k`.
    fn is_last(&self, k: usize, frames: usize) -> bool {
        match self.mode {
            WindowMode::Blend => self.end(k) >= frames,
            WindowMode::Wavefront => 4 * self.end(k) + self.length >= 4 * frames,
        }
    }

    /// All windows of a clip of `frames` frames. They cover each frame.
    pub fn list(&self, frames: usize) -> Vec<Window> {
        if frames == 0 {
            return Vec::new();
        }
        let mut windows = Vec::new();
        for k in 0.. {
            let last = self.is_last(k, frames);
            windows.push(Window {
                start: self.start(k),
                end: if last { frames } else { self.end(k) },
            });
            if last {
                break;
            }
        }
        windows
    }

    /// The frames of window `k` whose prediction is used in `Wavefront` mode: neighbours are cut in
    /// the middle of what they share, an odd frame going to the later one. The kept ranges of a
    /// clip follow each other without a gap.
    pub fn kept(&self, k: usize, window: Window, last: bool) -> Window {
        let middle = self.overlap / 2;
        Window {
            start: if k == 0 { window.start } else { window.start + middle },
            end: if last { window.end } else { self.start(k + 1) + middle },
        }
    }

    /// Weight of window `k` in frame `frame` of the clip, in `Blend` mode; window `k-1` has the
    /// rest. The weight is 1 outside what they share, and a smooth step strictly within (0,1)
    /// inside it.
    pub fn weight(&self, k: usize, frame: usize) -> f32 {
        let position = frame.saturating_sub(self.start(k));
        if k == 0 || position >= self.overlap {
            return 1.0;
        }
        let u = (position + 1) as f64 / (self.overlap + 1) as f64;
        (u * u * (3.0 - 2.0 * u)) as f32
    }

    /// The most frames that must follow a frame before it can come out, when each window takes
    /// `evaluations`.
    pub fn latency(&self, evaluations: usize) -> usize {
        match self.mode {
            WindowMode::Blend => self.length - 1,
            WindowMode::Wavefront => {
                // A window is closed by the first frame that no last window could hold, and each
                // evaluation waits for the windows ahead whose kept frames it needs.
                let ahead = (self.overlap - self.overlap / 2).div_ceil(self.stride());
                5 * self.length / 4 + evaluations.saturating_sub(1) * ahead * self.stride()
            }
        }
    }

    /// A planner for a clip whose length is not known yet.
    pub fn planner(&self) -> Planner {
        Planner { windows: *self, frames: 0, closed: 0 }
    }
}

/// Gives the windows of [`Windows::list`] one by one, each as soon as it is certain.
#[derive(Debug, Clone)]
pub struct Planner {
    windows: Windows,
    frames: usize,
    closed: usize,
}

impl Planner {
    /// The windows of the clip that was begun last.
    pub fn windows(&self) -> Windows {
        self.windows
    }

    /// Counts one more frame; gives the window that it completes (`Blend`) or settles
    /// (`Wavefront`), if there is one. `number` is its absolute number; that of a clip's first
    /// frame anchors the windows.
    pub fn push(&mut self, number: u64) -> Option<Window> {
        if self.frames == 0 {
            self.windows = self.windows.anchored(number);
        }
        self.frames += 1;
        let k = self.closed;
        let end = self.windows.end(k);
        let closes = match self.windows.mode {
            WindowMode::Blend => end == self.frames,
            WindowMode::Wavefront => !self.windows.is_last(k, self.frames),
        };
        closes.then(|| {
            self.closed += 1;
            Window { start: self.windows.start(k), end }
        })
    }

    /// Ends the clip; gives the last window unless all frames have been covered. Another clip may
    /// then begin.
    pub fn finish(&mut self) -> Option<Window> {
        let k = self.closed;
        let covered = match self.windows.mode {
            WindowMode::Blend if k > 0 => self.windows.end(k - 1),
            _ => 0,
        };
        let rest = (self.frames > covered)
            .then_some(Window { start: self.windows.start(k), end: self.frames });
        *self = self.windows.planner();
        rest
    }
}

/// Mixes `next` into `frame` with `weight`: `frame + weight (next - frame)`, exact where both are
/// equal. For planar pixels `[3,H,W]`.
///
/// # Errors
/// [`Error::Input`] where the shapes differ.
pub fn cross_fade(
    frame: &mut Array3<f32>,
    next: ArrayView3<f32>,
    weight: f32,
    threads: &Threads,
) -> Result<()> {
    if frame.dim() != next.dim() {
        let reason = format!("{:?} and {:?} are not the same shape", frame.shape(), next.shape());
        return Err(Error::input("cross-fade", reason));
    }
    let mix = |a: &mut f32, b: &f32| *a += weight * (b - *a);
    match (frame.as_slice_mut(), next.to_slice()) {
        (Some(frame), Some(next)) => {
            let parts = frame.chunks_mut(PART).zip(next.chunks(PART));
            threads.for_each(parts, |(frame, next)| {
                frame.iter_mut().zip(next).for_each(|(a, b)| mix(a, b));
            });
        }
        _ => Zip::from(frame).and(next).for_each(mix),
    }
    Ok(())
}
