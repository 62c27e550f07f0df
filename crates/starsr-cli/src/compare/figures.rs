// SPDX-License-Identifier: MPL-2.0

//! Frames as RGB, and how much two of them differ.

use gst_video::prelude::*;
use gst_video::{
    VideoConverter, VideoConverterConfig, VideoFormat, VideoFrameRef, VideoInfo,
    VideoResamplerMethod,
};

use super::color::to_rgb;
use crate::media::elements::text;

/// PSNR of equal pictures, as the evaluation has it.
const EQUAL: f64 = 100.0;
/// R, G and B in BT.601 luma of 16 to 235.
const LUMA: [f32; 3] = [65.481 / 255.0, 128.553 / 255.0, 24.966 / 255.0];

/// How much two pictures differ.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    /// PSNR of BT.601 luma, in dB.
    pub psnr: f64,
    /// Mean difference of R, G and B, in levels of 255.
    pub difference: f64,
}

/// A decoded frame.
pub struct Frame {
    pub sample: gst::Sample,
    buffer: gst::Buffer,
    info: VideoInfo,
    /// Width of a pixel over its height.
    pub shape: f64,
}

impl Frame {
    pub fn new(sample: gst::Sample) -> Result<Self, String> {
        let caps = sample.caps().ok_or("a frame has no format")?;
        let size = VideoInfo::from_caps(caps).map_err(text)?;
        let info = rgb((size.width(), size.height()))?;
        let shape = size.par();
        let shape = f64::from(shape.numer()) / f64::from(shape.denom());
        let mut buffer = sample.buffer_owned().ok_or("a frame has no pixels")?;
        if size.format() == VideoFormat::Y444 {
            buffer = to_rgb(&buffer, &size, &info)?;
        }
        let caps = info.to_caps().map_err(text)?;
        let sample = gst::Sample::builder().buffer(&buffer).caps(&caps).build();
        Ok(Self { sample, buffer, info, shape })
    }

    pub fn size(&self) -> (u32, u32) {
        (self.info.width(), self.info.height())
    }

    /// The pixels at another size, by bicubic interpolation.
    fn scaled(&self, size: (u32, u32)) -> Result<gst::Buffer, String> {
        if size == self.size() {
            return Ok(self.buffer.clone());
        }
        let info = rgb(size)?;
        let mut buffer = gst::Buffer::with_size(info.size()).map_err(text)?;
        let mut config = VideoConverterConfig::new();
        config.set_resampler_method(VideoResamplerMethod::Cubic);
        let converter = VideoConverter::new(&self.info, &info, Some(config)).map_err(text)?;
        let from =
            VideoFrameRef::from_buffer_ref_readable(&self.buffer, &self.info).map_err(text)?;
        let target = buffer.get_mut().ok_or("a new buffer is shared")?;
        let mut to = VideoFrameRef::from_buffer_ref_writable(target, &info).map_err(text)?;
        converter.frame_ref(&from, &mut to);
        drop(to);
        Ok(buffer)
    }

    /// How much `other` differs from this, after the smaller one is enlarged.
    pub fn figures(&self, other: &Self) -> Result<Figures, String> {
        let (a, b) = (self.size(), other.size());
        let size = (a.0.max(b.0), a.1.max(b.1));
        let (a, b, info) = (self.scaled(size)?, other.scaled(size)?, rgb(size)?);
        let a = VideoFrameRef::from_buffer_ref_readable(&a, &info).map_err(text)?;
        let b = VideoFrameRef::from_buffer_ref_readable(&b, &info).map_err(text)?;
        let (mut squares, mut levels) = (0.0, 0);
        for (a, b) in rows(&a)?.zip(rows(&b)?) {
            for (a, b) in a.as_chunks::<3>().0.iter().zip(b.as_chunks::<3>().0) {
                let mut luma = 0.0;
                for channel in 0..3 {
                    luma += (f32::from(a[channel]) - f32::from(b[channel])) * LUMA[channel];
                    levels += u64::from(a[channel].abs_diff(b[channel]));
                }
                squares += f64::from(luma * luma);
            }
        }
        let pixels = f64::from(size.0) * f64::from(size.1);
        let error = squares / pixels / (255.0 * 255.0);
        Ok(Figures {
            psnr: if error > 0.0 { (-10.0 * error.log10()).min(EQUAL) } else { EQUAL },
            difference: levels as f64 / 3.0 / pixels,
        })
    }
}

fn rgb((width, height): (u32, u32)) -> Result<VideoInfo, String> {
    VideoInfo::builder(VideoFormat::Rgb, width, height).build().map_err(text)
}

/// The rows of an RGB frame.
fn rows<'a>(
    frame: &'a VideoFrameRef<&'a gst::BufferRef>,
) -> Result<impl Iterator<Item = &'a [u8]>, String> {
    let (width, height) = (3 * frame.width() as usize, frame.height() as usize);
    let stride = usize::try_from(frame.plane_stride()[0]).map_err(text)?;
    let data = frame.plane_data(0).map_err(text)?;
    Ok(data.chunks(stride).take(height).filter_map(move |row| row.get(..width)))
}
