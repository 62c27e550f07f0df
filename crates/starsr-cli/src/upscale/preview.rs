// SPDX-License-Identifier: MPL-2.0

//! A picture in two parts, to compare: the plain enlargement left of a line that moves, the upscaled
//! frame right of it.

use std::collections::VecDeque;
use std::f64::consts::TAU;
use std::sync::Arc;

use crate::media::elements::always_pad;
use gst::prelude::*;
use gst_video::prelude::*;
use gst_video::{
    VideoConverter, VideoConverterConfig, VideoFormatFlags, VideoFrameRef, VideoInfo,
    VideoResamplerMethod,
};
use parking_lot::Mutex;

/// Seconds in which the line moves from left to right and back.
const PERIOD: f64 = 6.0;
/// Share of the width by which it leaves the middle.
const SWING: f64 = 0.4;
/// Pixels to which the line is rounded, so that it lies between samples of colour.
const GRID: usize = 8;
/// Width of the line in pixels.
const LINE: usize = 2;

/// Frames that have entered starsr and not left it, with their format.
type Waiting = Arc<Mutex<VecDeque<(gst::Buffer, VideoInfo)>>>;

/// Puts the plain enlargement into a part of each frame that leaves `starsr`.
pub fn split(starsr: &gst::Element) -> Result<(), String> {
    let waiting = Waiting::default();
    let entered = waiting.clone();
    always_pad(starsr, "sink")?.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
        let format = pad.current_caps().and_then(|caps| VideoInfo::from_caps(&caps).ok());
        if let (Some(buffer), Some(format)) = (info.buffer(), format) {
            entered.lock().push_back((buffer.to_owned(), format));
        }
        gst::PadProbeReturn::Ok
    });
    let converter: Mutex<Option<(VideoInfo, VideoConverter)>> = Mutex::default();
    always_pad(starsr, "src")?.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
        let entered = waiting.lock().pop_front();
        let format = pad.current_caps().and_then(|caps| VideoInfo::from_caps(&caps).ok());
        let (Some((input, old)), Some(new), Some(output)) = (entered, format, info.buffer_mut())
        else {
            return gst::PadProbeReturn::Ok;
        };
        if compose(&mut converter.lock(), (&input, &old), output.make_mut(), &new).is_none()
            && let Some(starsr) = pad.parent_element()
        {
            gst::element_error!(
                starsr,
                gst::StreamError::Format,
                ("a preview of {} video cannot be made", new.format().to_str())
            );
        }
        gst::PadProbeReturn::Ok
    });
    Ok(())
}

/// Replaces what is left of the line in `output`; `None` where its format allows no such thing.
fn compose(
    converter: &mut Option<(VideoInfo, VideoConverter)>,
    (input, old): (&gst::Buffer, &VideoInfo),
    output: &mut gst::BufferRef,
    new: &VideoInfo,
) -> Option<()> {
    if new.format_info().flags().contains(VideoFormatFlags::COMPLEX) {
        return None;
    }
    if converter.as_ref().is_none_or(|(format, _)| format != old) {
        let mut config = VideoConverterConfig::new();
        config.set_resampler_method(VideoResamplerMethod::Cubic);
        *converter = Some((old.clone(), VideoConverter::new(old, new, Some(config)).ok()?));
    }
    let (_, converter) = converter.as_ref()?;
    let seconds = output.pts().unwrap_or_default().nseconds() as f64 / 1e9;
    let mut plain = gst::Buffer::with_size(new.size()).ok()?;
    {
        let from = VideoFrameRef::from_buffer_ref_readable(input, old).ok()?;
        let mut to = VideoFrameRef::from_buffer_ref_writable(plain.get_mut()?, new).ok()?;
        converter.frame_ref(&from, &mut to);
    }
    let plain = VideoFrameRef::from_buffer_ref_readable(&plain, new).ok()?;
    let mut output = VideoFrameRef::from_buffer_ref_writable(output, new).ok()?;
    let middle = 0.5 + SWING * (TAU * seconds / PERIOD).sin();
    let line = (middle * f64::from(new.width())) as usize / GRID * GRID;
    copy_left(&plain, &mut output, line)
}

/// Copies the first `width` columns of `from`, and draws the line behind them.
fn copy_left(
    from: &VideoFrameRef<&gst::BufferRef>,
    to: &mut VideoFrameRef<&mut gst::BufferRef>,
    width: usize,
) -> Option<()> {
    let info = from.info().clone();
    let format = info.format_info();
    for plane in 0..info.n_planes() {
        let of_plane = |component: &usize| format.plane()[*component] == plane;
        let component = (0..format.n_components() as usize).find(of_plane)?;
        let pixel = format.pixel_stride()[component] as usize;
        let bytes = (width >> format.w_sub()[component]) * pixel;
        let stride = info.stride()[plane as usize] as usize;
        let source = from.plane_data(plane).ok()?;
        let target = to.plane_data_mut(plane).ok()?;
        // The first component is brightness, or one of three that are; others stay.
        let line = if component == 0 { LINE * pixel } else { 0 };
        for (source, target) in source.chunks(stride).zip(target.chunks_mut(stride)) {
            let bytes = bytes.min(source.len()).min(target.len());
            target[..bytes].copy_from_slice(&source[..bytes]);
            let end = (bytes + line).min(target.len());
            target[bytes..end].fill(u8::MAX);
        }
    }
    Some(())
}
