// SPDX-License-Identifier: MPL-2.0

//! Values as people write and read them: rates, times and counts.

use gst::prelude::*;

/// Frames a second, as a fraction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(i32, i32);

impl Rate {
    pub fn fraction(self) -> gst::Fraction {
        gst::Fraction::new(self.0, self.1)
    }

    /// How long so many frames last.
    pub fn duration_of(self, frames: u64) -> Option<gst::ClockTime> {
        let (rate, seconds) = (u64::try_from(self.0).ok()?, u64::try_from(self.1).ok()?);
        let time = frames.checked_mul(1_000_000_000)?.mul_div_round(seconds, rate)?;
        Some(gst::ClockTime::from_nseconds(time))
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.0, self.1)
    }
}

/// A rate such as 25, 23.976 or 30000/1001.
pub fn rate(text: &str) -> Result<Rate, String> {
    let rate = match text.split_once('/') {
        Some((frames, seconds)) => frames.parse().ok().zip(seconds.parse().ok()),
        None => text
            .parse::<f64>()
            .ok()
            .filter(|rate| (0.001..=10_000.0).contains(rate))
            .and_then(gst::Fraction::approximate_f64)
            .map(|rate| (rate.numer(), rate.denom())),
    };
    match rate {
        Some((frames, seconds)) if frames > 0 && seconds > 0 => Ok(Rate(frames, seconds)),
        _ => Err("expected frames a second, such as 25 or 30000/1001".to_owned()),
    }
}

/// Uncompressed frames without a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raw {
    /// Width and height in pixels, as FFmpeg takes them.
    pub size: String,
    /// FFmpeg's name of the pixel format.
    pub format: String,
}

/// Width and height, such as `640x480`, from 1 to 32768 each.
pub fn size(text: &str) -> Option<(u32, u32)> {
    let (width, height) = text.split_once('x')?;
    let side = |side: &str| side.parse().ok().filter(|side| (1..=32768).contains(side));
    side(width).zip(side(height))
}

/// Frames such as `640x480,yuv420p`.
pub fn raw(text: &str) -> Result<Raw, String> {
    let expected =
        || "expected a size and FFmpeg's pixel format, such as 640x480,yuv420p".to_owned();
    let (sides, format) = text.split_once(',').ok_or_else(expected)?;
    let is_name = !format.is_empty() && format.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if size(sides).is_some() && is_name {
        Ok(Raw { size: sides.to_owned(), format: format.to_owned() })
    } else {
        Err(expected())
    }
}

/// Seconds from `[[hours:]minutes:]seconds`.
pub fn time(text: &str) -> Result<f64, String> {
    let parts: Vec<_> = text.split(':').map(str::parse::<f64>).collect();
    let valid = |part: &Result<f64, _>| part.as_ref().is_ok_and(|part| *part >= 0.0);
    let is_valid = parts.len() <= 3 && parts.iter().all(valid);
    let time = parts.into_iter().flatten().fold(0.0, |time, part| 60.0 * time + part);
    // More would not fit into GStreamer's nanoseconds.
    if is_valid && time < 1e9 { Ok(time) } else { Err("expected seconds or [H:]MM:SS".to_owned()) }
}

/// Seconds as `m:ss` or `h:mm:ss`.
pub fn clock(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}")
    } else {
        format!("{minutes}:{seconds:02}")
    }
}

/// A number of things in words.
pub fn counted(count: u64, thing: &str) -> String {
    if count == 1 { format!("1 {thing}") } else { format!("{count} {thing}s") }
}
