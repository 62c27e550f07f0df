// SPDX-License-Identifier: MPL-2.0

//! Frames without a header, for a pipe.

use gst::prelude::*;
use gst_video::{VideoFormat, VideoFrame, VideoInfo, VideoMeta};
use parking_lot::Mutex;

use crate::media::elements::{always_pad, make};

/// FFmpeg's pixel formats that GStreamer writes, with its names for them.
const FORMATS: [(&str, VideoFormat); 30] = [
    ("yuv420p", VideoFormat::I420),
    ("yuv422p", VideoFormat::Y42b),
    ("yuv444p", VideoFormat::Y444),
    ("yuv420p10le", VideoFormat::I42010le),
    ("yuv422p10le", VideoFormat::I42210le),
    ("yuv444p10le", VideoFormat::Y44410le),
    ("yuv420p12le", VideoFormat::I42012le),
    ("yuv422p12le", VideoFormat::I42212le),
    ("yuv444p12le", VideoFormat::Y44412le),
    ("yuva420p", VideoFormat::A420),
    ("yuva420p10le", VideoFormat::A42010le),
    ("yuva422p10le", VideoFormat::A42210le),
    ("yuva444p10le", VideoFormat::A44410le),
    ("nv12", VideoFormat::Nv12),
    ("p010le", VideoFormat::P01010le),
    ("yuyv422", VideoFormat::Yuy2),
    ("uyvy422", VideoFormat::Uyvy),
    ("gray", VideoFormat::Gray8),
    ("gray16le", VideoFormat::Gray16Le),
    ("rgb24", VideoFormat::Rgb),
    ("bgr24", VideoFormat::Bgr),
    ("rgba", VideoFormat::Rgba),
    ("bgra", VideoFormat::Bgra),
    ("argb", VideoFormat::Argb),
    ("abgr", VideoFormat::Abgr),
    ("rgb0", VideoFormat::Rgbx),
    ("bgr0", VideoFormat::Bgrx),
    ("rgba64le", VideoFormat::Rgba64Le),
    ("gbrp", VideoFormat::Gbr),
    ("gbrp10le", VideoFormat::Gbr10le),
];

/// The format of a name.
pub fn format(name: &str) -> Result<VideoFormat, String> {
    let found = FORMATS.iter().find(|(known, _)| *known == name);
    found.map(|(_, format)| *format).ok_or_else(|| {
        let names: Vec<_> = FORMATS.iter().map(|(name, _)| *name).collect();
        format!("expected one of {}", names.join(", "))
    })
}

/// An element that takes the bytes out of frames that GStreamer puts between rows and planes. Its
/// `y4menc` (1.22) would write them, too.
pub fn packer() -> Result<gst::Element, String> {
    let element = make("identity")?;
    let infos: Mutex<Option<(VideoInfo, VideoInfo)>> = Mutex::default();
    let pad = always_pad(&element, "sink")?;
    let kinds = gst::PadProbeType::EVENT_DOWNSTREAM | gst::PadProbeType::BUFFER;
    pad.add_probe(kinds, move |_, info| {
        match &mut info.data {
            Some(gst::PadProbeData::Event(event)) => {
                if let gst::EventView::Caps(caps) = event.view() {
                    let video = VideoInfo::from_caps(caps.caps()).ok();
                    *infos.lock() = video.and_then(|video| packed(&video).map(|to| (video, to)));
                }
            }
            Some(gst::PadProbeData::Buffer(buffer)) => {
                if let Some((from, to)) = &*infos.lock()
                    && let Some(packed) = pack(buffer, from, to)
                {
                    *buffer = packed;
                }
            }
            _ => {}
        }
        gst::PadProbeReturn::Ok
    });
    Ok(element)
}

/// The layout of frames of `video` without gaps; `None` where they have none.
fn packed(video: &VideoInfo) -> Option<VideoInfo> {
    let format = video.format_info();
    let (mut strides, mut offsets, mut end) = (Vec::new(), Vec::new(), 0);
    for plane in 0..video.n_planes() {
        // Components in one plane lie beside each other in each of its pixels.
        let component = format.plane().iter().position(|of| *of == plane)?;
        let (component, column) = (u8::try_from(component).ok()?, format.pixel_stride());
        let width = video.comp_width(component);
        let row = width as usize * usize::try_from(column[component as usize]).ok()?;
        // Two pixels share their colours, so that a row has an even number of them.
        let row = if matches!(video.format(), VideoFormat::Yuy2 | VideoFormat::Uyvy) {
            row.next_multiple_of(4)
        } else {
            row
        };
        strides.push(i32::try_from(row).ok()?);
        offsets.push(end);
        end += row * video.comp_height(component) as usize;
    }
    if video.stride() == strides && video.offset() == offsets {
        return None;
    }
    let builder = VideoInfo::builder(video.format(), video.width(), video.height());
    builder.stride(&strides).offset(&offsets).size(end).build().ok()
}

/// `buffer` with the layout `to`; `None` where it cannot be read.
fn pack(buffer: &gst::Buffer, from: &VideoInfo, to: &VideoInfo) -> Option<gst::Buffer> {
    let source = VideoFrame::from_buffer_readable(buffer.clone(), from).ok()?;
    let memory = gst::Buffer::with_size(to.size()).ok()?;
    let mut target = VideoFrame::from_buffer_writable(memory, to).ok()?;
    source.copy(&mut target).ok()?;
    let mut packed = target.into_buffer();
    let flags = gst::BufferCopyFlags::TIMESTAMPS | gst::BufferCopyFlags::FLAGS;
    let frame = packed.make_mut();
    buffer.copy_into(frame, flags, ..).ok()?;
    let (width, height) = (to.width(), to.height());
    let (offsets, strides) = (to.offset(), to.stride());
    let flags = gst_video::VideoFrameFlags::empty();
    VideoMeta::add_full(frame, flags, to.format(), width, height, offsets, strides).ok()?;
    Some(packed)
}
