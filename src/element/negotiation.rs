// SPDX-License-Identifier: MPL-2.0

//! Setting up for the caps of both pads, and the latency that follows from them.

use gst::prelude::*;

use starsr::text::Prompts;
use starsr::upscaler::memory_of_this_machine;
use starsr::windows::WindowMode;
use starsr::{Size, TruncatedTokens, Upscaler};

use super::frames::{Reader, Writer};
use super::messages::Failure;
use super::settings::{Overload, Settings};

/// Assumed where the framerate is variable or unknown (0/1), to turn frames of latency into time.
const ASSUMED_FRAMERATE: (i32, i32) = (25, 1);

/// The formats of frames at the sink pad and at the source pad.
#[derive(Debug, Clone)]
pub(super) struct Formats {
    pub(super) input: gst_video::VideoInfo,
    pub(super) output: gst_video::VideoInfo,
}

impl Formats {
    /// # Errors
    ///
    /// [`Failure::Interlaced`] for video that is not progressive.
    pub(super) fn check_progressive(&self) -> Result<(), Failure> {
        if self.input.is_interlaced() {
            return Err(Failure::Interlaced(self.input.interlace_mode()));
        }
        Ok(())
    }

    /// Size of the frames that come in.
    pub(super) fn input_size(&self) -> Size {
        Size::new(self.input.width() as usize, self.input.height() as usize)
    }

    /// How long a frame waits for `frames` others.
    pub(super) fn latency(&self, frames: usize) -> gst::ClockTime {
        let fps = self.input.fps();
        let fps = if fps.numer() > 0 { fps } else { gst::Fraction::from(ASSUMED_FRAMERATE) };
        let (num, den) = (fps.numer().max(1) as u64, fps.denom().max(1) as u64);
        let time = (frames as u64)
            .checked_mul(den)
            .and_then(|n| gst::ClockTime::SECOND.mul_div_ceil(n, num));
        time.unwrap_or(gst::ClockTime::ZERO)
    }
}

/// The caps of the sink and source pad whose refusal was reported last. The base class tries
/// refused caps again with each buffer, but the application gets one message.
#[derive(Debug, Default)]
pub(super) struct Refused(Option<(gst::Caps, gst::Caps)>);

impl Refused {
    pub(super) fn contains(&self, incaps: &gst::Caps, outcaps: &gst::Caps) -> bool {
        self.0.as_ref().is_some_and(|(i, o)| i == incaps && o == outcaps)
    }

    /// Remembers these caps. Returns whether they are new.
    pub(super) fn insert(&mut self, incaps: &gst::Caps, outcaps: &gst::Caps) -> bool {
        let is_new = !self.contains(incaps, outcaps);
        self.0 = Some((incaps.clone(), outcaps.clone()));
        is_new
    }
}

/// What converts the frames of one format to pixels and back.
pub(super) struct Converters {
    pub(super) reader: Reader,
    pub(super) writer: Writer,
}

/// Fits `upscaler` to this machine's memory, gives it `prompts` and makes the converters for its
/// frames. Also returns the tokens that the prompts lost.
///
/// # Errors
///
/// Settings that contradict each other, prompts or sizes that the bundle does not take, and formats
/// between which GStreamer does not convert.
pub(super) fn prepare(
    upscaler: &mut Upscaler,
    settings: &Settings,
    formats: &Formats,
    prompts: &Prompts,
) -> Result<(Converters, TruncatedTokens), Failure> {
    check_overload(settings.overload, upscaler.window_mode())?;
    if let Some(available) = memory_of_this_machine() {
        upscaler.fit_memory(available)?;
    }
    let truncated = upscaler.set_prompts(prompts)?;
    let Formats { input, output } = formats;
    let reader = Reader::new(input, settings.threads);
    let writer = Writer::new(output, upscaler.output_size(), settings.threads);
    match (reader, writer) {
        (Ok(reader), Ok(writer)) => Ok((Converters { reader, writer }, truncated)),
        (Err(reason), _) | (_, Err(reason)) => {
            Err(Failure::NoConverter { from: input.format(), to: output.format(), reason })
        }
    }
}

/// Whether frames of the next window are taken while `upscaler` works. Windows that may be bypassed
/// wait for the last moment instead.
pub(super) fn reads_ahead(settings: &Settings, upscaler: &Upscaler) -> bool {
    let needed = upscaler.memory_estimate().saturating_add(upscaler.read_ahead_memory());
    settings.read_ahead
        && settings.overload != Overload::Bypass
        && memory_of_this_machine().is_none_or(|available| needed <= available)
}

fn check_overload(overload: Overload, mode: WindowMode) -> Result<(), Failure> {
    if overload == Overload::Bypass && mode == WindowMode::Wavefront {
        let reason = "bypass leaves out single windows, but window-mode wavefront restores them together; use blend";
        return Err(Failure::Property { property: "overload", reason });
    }
    Ok(())
}
