// SPDX-License-Identifier: MPL-2.0

//! Checks that a buffer holds the planes of its video meta. GStreamer maps a plane by its first
//! byte and does not check where the plane ends.

use gst::glib;

/// The lines of one plane.
struct Plane {
    lines: u64,
    /// Bytes of a line that are read or written.
    bytes: u64,
    /// Bytes from one line to the next.
    stride: i64,
    /// The lowest `stride` that is allowed.
    least: i64,
}

impl Plane {
    /// Plane number `plane` of a frame of `info`, with the `stride` of its video meta.
    fn new(info: &gst_video::VideoInfo, plane: usize, stride: i32) -> Self {
        let format = info.format_info();
        let usual = info.stride()[plane];
        let size =
            info.offset().get(plane + 1).copied().unwrap_or(info.size()) - info.offset()[plane];
        if format.is_tiled() {
            // Counts of tiles, across in the low half.
            let tiles =
                |stride: i32| u64::from(stride as u32 & 0xffff) * u64::from(stride as u32 >> 16);
            let bytes = (size as u64).div_ceil(tiles(usual).max(1));
            return Self {
                lines: tiles(stride).max(tiles(usual)),
                bytes,
                stride: bytes as i64,
                least: 0,
            };
        }
        let components =
            || (0..format.n_components() as usize).filter(|c| format.plane()[*c] as usize == plane);
        let covered = |size: u32, sub: u32| u64::from(size).div_ceil(1 << sub);
        if format.has_palette() && plane > 0 {
            return Self { lines: 1, bytes: size as u64, stride: 0, least: 0 };
        }
        let lines =
            components().map(|c| covered(info.height(), format.h_sub()[c])).max().unwrap_or(0);
        let widths = components()
            .map(|c| format.pixel_stride()[c] as u64 * covered(info.width(), format.w_sub()[c]));
        // Where pixels share bytes, the format gives no distance between them, and GStreamer copies
        // whole strides.
        let bytes = widths.max().filter(|bytes| !format.is_complex() && *bytes > 0);
        let least = if bytes.is_some() { i64::MIN } else { usual.into() };
        let bytes = bytes.unwrap_or(usual as u64).min(usual as u64);
        Self { lines, bytes, stride: stride.into(), least }
    }

    /// Whether a plane that begins at `start` lies within `size` bytes.
    fn is_within(&self, start: usize, size: usize) -> bool {
        let first = start as i128;
        let last = first + i128::from(self.stride) * i128::from(self.lines.saturating_sub(1));
        self.stride >= self.least
            && first.min(last) >= 0
            && first.max(last) + i128::from(self.bytes) <= size as i128
    }
}

/// Fails where `buffer` has a video meta of a smaller or different frame than `info`, or with
/// planes that lie outside the buffer.
pub(super) fn check(
    buffer: &gst::BufferRef,
    info: &gst_video::VideoInfo,
) -> Result<(), glib::BoolError> {
    let Some(meta) = buffer.meta::<gst_video::VideoMeta>() else { return Ok(()) };
    let (width, height, format) = (meta.width(), meta.height(), meta.format());
    // The frame may be larger where the caps show a part of it.
    if width < info.width() || height < info.height() || format != info.format() {
        return Err(glib::bool_error!(
            "its video meta is of {width}x{height} {format}, the caps are of {}x{} {}",
            info.width(),
            info.height(),
            info.format()
        ));
    }
    let planes = meta.offset().iter().zip(meta.stride());
    if planes.len() != info.n_planes() as usize {
        return Err(glib::bool_error!(
            "its video meta has {} planes, not the {} of {format}",
            planes.len(),
            info.n_planes()
        ));
    }
    for (plane, (&offset, &stride)) in planes.enumerate() {
        let memory = offset.checked_add(1).and_then(|end| buffer.find_memory(offset..end));
        // A plane is mapped together with the memory in which it begins.
        let size =
            |(range, _): &(std::ops::Range<usize>, usize)| buffer.peek_memory(range.start).size();
        let layout = Plane::new(info, plane, stride);
        if !memory.is_some_and(|memory| layout.is_within(memory.1, size(&memory))) {
            return Err(glib::bool_error!(
                "plane {plane}, at {offset} with a stride of {stride}, is not within the {} bytes of a {width}x{height} {format} buffer",
                buffer.size()
            ));
        }
    }
    Ok(())
}
