// SPDX-License-Identifier: MPL-2.0

//! Frames of every format and size, laid out in every way, rightly and wrongly.

use arbitrary::Arbitrary;
use gst::prelude::*;
use gst_video::VideoFrameFlags;

use crate::guarded::Guarded;
use crate::rig::{self, FRAME, Rig};

/// Frames of one format, and what downstream wants.
#[derive(Debug, Arbitrary)]
pub struct Input {
    format: u8,
    width: u8,
    height: u8,
    full_range: Option<bool>,
    wanted: Option<(u8, u8, u8)>,
    frames: Vec<Frame>,
}

#[derive(Debug, Arbitrary)]
struct Frame {
    layout: Layout,
    /// Bytes that are missing at the end, or too many.
    missing: i16,
    /// Where the buffer is split into two memories.
    split: Option<u16>,
    flags: u8,
    fill: u8,
}

#[derive(Debug, Arbitrary)]
enum Layout {
    /// As the caps say.
    Plain,
    /// Planes with padding behind each line and in front.
    Padded([u8; 4], [u8; 4]),
    /// With a meta that says anything.
    Meta { format: u8, size: (u8, u8), planes: u8, offsets: [i16; 4], strides: [i16; 4] },
}

/// A frame, and whether it is right.
fn buffer(frame: &Frame, info: &gst_video::VideoInfo) -> (gst::Buffer, bool) {
    let (offsets, strides) = (info.offset(), info.stride());
    let planes = offsets.len();
    // Tiles have no lines to be padded.
    let padded = !info.format_info().is_tiled();
    let mut meta = None;
    let size = match &frame.layout {
        Layout::Plain => info.size(),
        Layout::Padded(lines, gaps) => {
            let (mut size, mut moved, mut longer) = (0, Vec::new(), Vec::new());
            for plane in 0..planes {
                let end = offsets.get(plane + 1).copied().unwrap_or(info.size());
                let stride = strides[plane] as usize;
                let more = if padded { usize::from(lines[plane]) } else { 0 };
                size += usize::from(gaps[plane]);
                moved.push(size);
                longer.push((stride + more) as i32);
                // A palette has no lines either.
                let lines = (end - offsets[plane]).div_ceil(stride.max(1));
                size += (stride + more) * lines;
            }
            meta = Some((info.format(), (info.width(), info.height()), moved, longer));
            size
        }
        Layout::Meta { format, size, planes: count, offsets: places, strides: lengths } => {
            let count = usize::from(count % 4) + 1;
            let format =
                if format.is_multiple_of(8) { super::format(*format) } else { info.format() };
            let size = match *size {
                (0, _) => (u32::from(size.0) + 1, u32::from(size.1) + 1),
                (_, 0) => (info.width() + 1, info.height() + 1),
                _ => (info.width(), info.height()),
            };
            let count = if frame.fill.is_multiple_of(8) { count } else { planes };
            let places = (0..count).map(|p| {
                let place = offsets.get(p).copied().unwrap_or(0);
                place.saturating_add_signed(places[p].into())
            });
            let lengths = (0..count)
                .map(|p| strides.get(p).copied().unwrap_or(0).wrapping_add(lengths[p].into()));
            meta = Some((format, size, places.collect(), lengths.collect()));
            info.size()
        }
    };
    let whole = size.saturating_add_signed(-isize::from(frame.missing));
    let split =
        frame.split.map(|at| usize::from(at) % (whole + 1)).filter(|at| *at > 0 && *at < whole);
    let mut buffer = gst::Buffer::new();
    let b = buffer.make_mut();
    for part in [split, Some(whole - split.unwrap_or(0))].into_iter().flatten() {
        b.append_memory(gst::Memory::from_mut_slice(Guarded::new(part, frame.fill)));
    }
    let right = match &frame.layout {
        Layout::Meta { .. } => false,
        Layout::Plain => whole >= size,
        // Each plane must be within one memory.
        Layout::Padded(..) => whole >= size && split.is_none(),
    };
    if let Some((format, (width, height), offsets, strides)) = meta {
        let flags = VideoFrameFlags::from_bits_truncate(frame.flags.into());
        let added =
            gst_video::VideoMeta::add_full(b, flags, format, width, height, &offsets, &strides)
                .is_ok();
        return (buffer, right && added);
    }
    (buffer, right)
}

/// Sends them: what is right comes out in the right size, and what is wrong is an error.
pub fn run(input: &Input) {
    super::keep_sessions();
    let side = |v: u8| u32::from(v % 40) + 1;
    let format = super::format(input.format);
    let mut builder = gst_video::VideoInfo::builder(format, side(input.width), side(input.height))
        .fps(gst::Fraction::new(25, 1));
    let colorimetry = input.full_range.map(|full| {
        gst_video::VideoColorimetry::new(
            if full {
                gst_video::VideoColorRange::Range0_255
            } else {
                gst_video::VideoColorRange::Range16_235
            },
            gst_video::VideoColorMatrix::Bt709,
            gst_video::VideoTransferFunction::Bt709,
            gst_video::VideoColorPrimaries::Bt709,
        )
    });
    if let Some(colorimetry) = &colorimetry {
        builder = builder.colorimetry(colorimetry);
    }
    let Ok(info) = builder.build() else { return };
    let accepted = input.wanted.map(|(format, width, height)| {
        let format = super::format(format);
        format!("video/x-raw,format={format},width={},height={}", side(width), side(height))
    });
    let rig = Rig::new(rig::starsr(1, 0), accepted.as_deref());
    rig.start(&info.to_caps().unwrap().to_string());
    for (k, frame) in (0..).zip(input.frames.iter().take(6)) {
        let (mut buffer, right) = buffer(frame, &info);
        let b = buffer.make_mut();
        b.set_pts(FRAME * k);
        b.set_offset(k);
        rig.forget();
        let flow = rig.push(buffer);
        let errors = super::errors(&rig);
        let what =
            || format!("{frame:?} of {}x{} {format}: {errors:?}", info.width(), info.height());
        if flow.is_ok() {
            let caps = rig
                .element
                .static_pad("src")
                .unwrap()
                .current_caps()
                .expect("caps precede buffers");
            let out = gst_video::VideoInfo::from_caps(&caps).unwrap();
            if accepted.is_none() {
                let size = (info.width() * 4, info.height() * 4, info.format());
                assert_eq!((out.width(), out.height(), out.format()), size);
            }
            let sizes: Vec<_> = rig.buffers().iter().map(|b| b.size()).collect();
            assert_eq!(sizes, [out.size()], "{}", what());
        } else {
            assert!(!right, "{}", what());
            assert!(!errors.is_empty() && rig.buffers().is_empty(), "{}", what());
        }
    }
}
