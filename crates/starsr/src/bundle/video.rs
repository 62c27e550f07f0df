// SPDX-License-Identifier: MPL-2.0

//! The tables of a manifest about what a model takes at once: frames of a window, pixels of a
//! canvas, and their positions.

use serde::Deserialize;

use super::checks::{Fault, above_zero, within};
use crate::windows::WindowMode;

/// Frames in a window: `1 <= minimum <= length <= maximum <= 4096`, `overlap < length`. `length` and
/// all others that may be set are `k * multiple + offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowSpec {
    /// Default length `L`.
    pub length: usize,
    /// Default overlap `O`.
    pub overlap: usize,
    /// Lowest length that may be set.
    pub minimum: usize,
    /// Highest length that may be set.
    pub maximum: usize,
    /// Distance between legal lengths, 1..=4096.
    #[serde(default = "one")]
    pub multiple: usize,
    /// Remainder of every legal length, below `multiple`.
    #[serde(default)]
    pub offset: usize,
    /// Default way of joining windows.
    pub mode: WindowMode,
}

fn one() -> usize {
    1
}

impl WindowSpec {
    /// Whether the graphs take windows of `length` frames.
    pub fn is_legal(&self, length: usize) -> bool {
        (self.minimum..=self.maximum).contains(&length) && length % self.multiple == self.offset
    }

    /// The shortest legal length of at least `frames`; `frames` itself beyond the last one.
    pub fn fit(&self, frames: usize) -> usize {
        (frames.max(self.minimum)..=self.maximum).find(|&n| self.is_legal(n)).unwrap_or(frames)
    }

    /// Legal lengths in words, without "frames".
    pub(crate) fn rule(&self) -> String {
        let Self { minimum, maximum, multiple, offset, .. } = *self;
        if multiple == 1 {
            return format!("{minimum} to {maximum}");
        }
        let first = minimum.saturating_sub(offset).next_multiple_of(multiple) + offset;
        let legal: Vec<String> =
            (first..=maximum).step_by(multiple).map(|length| length.to_string()).collect();
        match &legal[..] {
            [start @ .., last] if (1..12).contains(&start.len()) => {
                format!("{} or {last}", start.join(", "))
            }
            [a, b, .., last] => format!("{a}, {b}, … or {last}"),
            _ => legal.join(" or "),
        }
    }

    /// Checks the values for latents of `factor` frames each but for the first.
    pub(super) fn check(&self, factor: usize) -> Result<(), Fault> {
        let Self { length, overlap, minimum, maximum, multiple, offset, mode } = *self;
        within("window.minimum", minimum, 1, 4096)?;
        within("window.maximum", maximum, minimum, 4096)?;
        within("window.length", length, minimum, maximum)?;
        within("window.overlap", overlap, 0, length - 1)?;
        within("window.multiple", multiple, 1, 4096)?;
        within("window.offset", offset, 0, multiple - 1)?;
        for (field, value) in
            [("window.length", length), ("window.minimum", minimum), ("window.maximum", maximum)]
        {
            if !self.is_legal(value) {
                let reason = format!("is {value}, but must be {} frames", self.rule());
                return Err(Fault::new(field, reason));
            }
        }
        if factor == 1 {
            return Ok(());
        }
        if multiple % factor != 0 || offset % factor != 1 {
            let reason = format!(
                "is {multiple} with offset {offset}, but windows must have one frame more than a \
                 multiple of latent.temporal_factor, {factor}"
            );
            return Err(Fault::new("window.multiple", reason));
        }
        if overlap % factor != 0 {
            let reason =
                format!("is {overlap}, but must be a multiple of latent.temporal_factor, {factor}");
            return Err(Fault::new("window.overlap", reason));
        }
        if mode != WindowMode::Blend {
            let reason = "must be \"blend\" with latent.temporal_factor above 1: the windows' latents \
                          are not those of single frames";
            return Err(Fault::new("window.mode", reason));
        }
        Ok(())
    }
}

/// The tables of positions of image tokens that a denoiser takes. A token is 2 x 2 latents; tokens
/// are ordered by frame, row and column.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum PositionsSpec {
    /// `cos` and `sin` `[N,d]` of the angles that turn pairs of a head's channels (docs/star.md,
    /// B.6).
    Rotary {
        /// Of the wavelengths.
        base: f64,
        /// Channels of a head that frames turn, an even number, 2..=4096.
        frames: usize,
        /// The same of rows.
        rows: usize,
        /// The same of columns.
        columns: usize,
    },
    /// `positions` `[N,width]`, sines and cosines that are added to the tokens.
    Sincos {
        /// Of the wavelengths.
        base: f64,
        /// Features of a token, a multiple of 16 up to 65536.
        width: usize,
        /// Rows and columns that count as one.
        spatial_scale: f64,
    },
}

impl PositionsSpec {
    pub(super) fn check(&self) -> Result<(), Fault> {
        let (Self::Rotary { base, .. } | Self::Sincos { base, .. }) = *self;
        within("positions.base", base, 1.0, 1e9)?;
        match *self {
            Self::Rotary { frames, rows, columns, .. } => {
                for (key, value) in [("frames", frames), ("rows", rows), ("columns", columns)] {
                    let field = format!("positions.{key}");
                    within(&field, value, 2, 4096)?;
                    if value % 2 != 0 {
                        return Err(Fault::new(field, format!("is {value}, but must be even")));
                    }
                }
                Ok(())
            }
            Self::Sincos { width, spatial_scale, .. } => {
                within("positions.width", width, 16, 65536)?;
                if width % 16 != 0 {
                    let reason = format!("is {width}, but must be a multiple of 16");
                    return Err(Fault::new("positions.width", reason));
                }
                above_zero("positions.spatial_scale", spatial_scale)
            }
        }
    }
}
