// SPDX-License-Identifier: MPL-2.0

//! YUV to RGB, rounded to the nearest level: GStreamer's fast conversion makes 253 of white.

use gst_video::prelude::*;
use gst_video::{VideoColorMatrix, VideoColorRange, VideoFrameRef, VideoInfo};

use crate::media::elements::text;

/// The pixels of a frame in Y444 as `rgb`.
pub fn to_rgb(yuv: &gst::Buffer, info: &VideoInfo, rgb: &VideoInfo) -> Result<gst::Buffer, String> {
    let (kr, kb) = match info.colorimetry().matrix() {
        VideoColorMatrix::Bt709 => (0.2126, 0.0722),
        VideoColorMatrix::Bt2020 => (0.2627, 0.0593),
        VideoColorMatrix::Smpte240m => (0.212, 0.087),
        VideoColorMatrix::Fcc => (0.30, 0.11),
        _ => (0.299, 0.114),
    };
    let (black, gain, color_gain) = match info.colorimetry().range() {
        VideoColorRange::Range0_255 => (0.0, 1.0, 1.0),
        _ => (16.0, 255.0 / 219.0, 255.0 / 224.0),
    };
    let (to_red, to_blue) = (2.0 * (1.0 - kr) * color_gain, 2.0 * (1.0 - kb) * color_gain);
    let kg = 1.0 - kr - kb;

    let from = VideoFrameRef::from_buffer_ref_readable(yuv, info).map_err(text)?;
    let mut buffer = gst::Buffer::with_size(rgb.size()).map_err(text)?;
    let target = buffer.get_mut().ok_or("a new buffer is shared")?;
    target.set_pts(yuv.pts());
    let mut to = VideoFrameRef::from_buffer_ref_writable(target, rgb).map_err(text)?;
    let stride = |plane: usize| usize::try_from(from.plane_stride()[plane]).map_err(text);
    let (strides, target_stride) = ([stride(0)?, stride(1)?, stride(2)?], rgb.stride()[0]);
    let target_stride = usize::try_from(target_stride).map_err(text)?;
    let planes = [0, 1, 2].map(|plane| from.plane_data(plane));
    let [y, u, v] = planes;
    let (y, u, v) = (y.map_err(text)?, u.map_err(text)?, v.map_err(text)?);
    let rows = y.chunks(strides[0]).zip(u.chunks(strides[1])).zip(v.chunks(strides[2]));
    let pixels = to.plane_data_mut(0).map_err(text)?;
    for (row, ((y, u), v)) in pixels.chunks_mut(target_stride).zip(rows) {
        let row = row.as_chunks_mut::<3>().0.iter_mut().take(info.width() as usize);
        for (pixel, ((y, u), v)) in row.zip(y.iter().zip(u).zip(v)) {
            let luma = gain * (f32::from(*y) - black) + 0.5;
            let (blue, red) = (to_blue * (f32::from(*u) - 128.0), to_red * (f32::from(*v) - 128.0));
            // Conversions to whole numbers clamp.
            *pixel = [luma + red, luma - (kr * red + kb * blue) / kg, luma + blue].map(|x| x as u8);
        }
    }
    drop(to);
    Ok(buffer)
}
