// SPDX-License-Identifier: MPL-2.0

//! Frames in, upscaled frames out later: windows, autoencoder, sampler, colour fix and cross-fade put together.

use ndarray::Array3;

use crate::bundle::Manifest;
use crate::cancel::Cancel;
use crate::color::ColorFix;
use crate::diffusion::schedule::SamplerMode;
use crate::error::Result;
use crate::model::Model;
use crate::window::WindowMode;

/// What a user may set; `None` means the bundle's own default.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {
    /// Upscaling factor asked for; where the bundle does not work at it the nearest it allows is used.
    pub scale: Option<u32>,
    /// Frames in a window, `L`.
    pub window_length: Option<usize>,
    /// Frames shared by neighbouring windows, `O < L`.
    pub window_overlap: Option<usize>,
    /// How windows are joined.
    pub window_mode: Option<WindowMode>,
    /// Model evaluations (`normal` mode).
    pub steps: Option<u32>,
    /// Spacing of the timesteps.
    pub sampler_mode: Option<SamplerMode>,
    /// Guidance scale `g`; 1 skips the negative half.
    pub guidance_scale: Option<f32>,
    /// Guidance rescale, 0..=1.
    pub guidance_rescale: Option<f32>,
    /// Noise levels used, 1..=1000; sampling starts at timestep `noise_level - 1`.
    pub noise_level: Option<u32>,
    /// Seed of the noise.
    pub seed: u64,
    /// Colour correction against the input.
    pub color_fix: Option<ColorFix>,
    /// Blend with the plain upscale: 0 is the plain upscale, 1 the model's picture.
    pub strength: Option<f32>,
    /// Largest side of a spatial tile in output pixels; 0 processes whole frames.
    pub tile_size: usize,
    /// Pixels shared by neighbouring tiles.
    pub tile_overlap: usize,
}

/// What [`Upscaler::receive_frame`] has to offer.
#[derive(Debug)]
pub enum Received {
    /// The next upscaled frame in order, `[3,H,W]` RGB in [0,1].
    Frame(Array3<f32>),
    /// Send more frames, or flush.
    NeedMoreFrames,
    /// Everything sent before the flush has been received; a new clip may begin.
    Drained,
}

/// N frames in, N frames out later.
pub struct Upscaler {
    model: Box<dyn Model>,
}

impl Upscaler {
    /// Prepares for a clip of frames of `width` x `height` pixels. Fails when a setting contradicts the bundle.
    /// `cancel` stops a running [`Self::receive_frame`] with [`crate::error::Error::Cancelled`].
    pub fn new(
        model: Box<dyn Model>,
        manifest: &Manifest,
        settings: &Settings,
        width: usize,
        height: usize,
        cancel: Cancel,
    ) -> Result<Self> {
        let _ = (manifest, settings, width, height, cancel);
        Ok(Self { model })
    }

    /// Size `(width, height)` of the frames given out.
    pub fn output_size(&self) -> (usize, usize) {
        todo!()
    }

    /// Frames that must follow a frame before it can come out, at most.
    pub fn latency(&self) -> usize {
        todo!()
    }

    /// Takes the next frame, `[3,h,w]` RGB in [0,1]. `number` is its absolute number, which selects its noise.
    /// Cheap: the work is done by [`Self::receive_frame`].
    pub fn send_frame(&mut self, number: u64, pixels: Array3<f32>) -> Result<()> {
        let _ = (number, pixels);
        todo!()
    }

    /// Gives the next finished frame, running the model when a window is complete. Blocks for as long as that takes.
    /// After an error the clip is lost; call [`Self::reset`].
    pub fn receive_frame(&mut self) -> Result<Received> {
        todo!()
    }

    /// Ends the clip: what was sent comes out without waiting for further frames.
    pub fn flush(&mut self) {
        todo!()
    }

    /// Forgets all frames.
    pub fn reset(&mut self) {
        todo!()
    }

    /// Gives the model back, so that the next clip need not load it again.
    pub fn into_model(self) -> Box<dyn Model> {
        self.model
    }
}
