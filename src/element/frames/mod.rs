// SPDX-License-Identifier: MPL-2.0

//! GstVideoFrame to planar f32 RGB and back.
//!
//! GStreamer's converter unpacks, packs, resizes and resamples chroma, between the stream's format
//! and 16-bit AYUV or ARGB of the same colorimetry. So every format is laid out as everywhere in
//! GStreamer. The step between YUV and RGB is done here in f32: the converter's own uses 8-bit
//! coefficients, which shift brightness by up to half a level of 255 each way, and it truncates
//! where it should round.

use gst::glib;
use gst_video::prelude::*;
use ndarray::Array3;

use starsr::Size;

mod cosited;
mod layout;

const BYTES_PER_PIXEL: usize = 8;

type Writable = gst_video::VideoFrame<gst_video::video_frame::Writable>;

/// What the 16-bit components of a working frame mean.
#[derive(Debug, Clone, Copy)]
struct Colors {
    /// Weights of red and blue in luma; `None` for RGB.
    weights: Option<(f32, f32)>,
    /// Bits of each component.
    depth: [u32; 3],
    /// The level that means 0.
    offset: [f32; 3],
    /// Levels between 0 and 1; for chroma, between -1/2 and 1/2.
    scale: [f32; 3],
    /// Bits of alpha; 16 for a format without alpha.
    alpha_depth: u32,
}

/// Weights for a stream without a matrix: BT.601, as GStreamer assumes for small pictures.
const BT601: (f64, f64) = (0.299, 0.114);

impl Colors {
    fn new(info: &gst_video::VideoInfo) -> Self {
        let colorimetry = info.colorimetry();
        let weights = (!info.is_rgb()).then(|| {
            let (kr, kb) = colorimetry.matrix().kr_kb().unwrap_or(BT601);
            (kr as f32, kb as f32)
        });
        let format = info.format_info();
        let range = match colorimetry.range() {
            gst_video::VideoColorRange::Unknown if info.is_yuv() => {
                gst_video::VideoColorRange::Range16_235
            }
            gst_video::VideoColorRange::Unknown => gst_video::VideoColorRange::Range0_255,
            range => range,
        };
        let (offset, scale) = format.range_offsets(range);
        // Grey has one component, and a palette's colours have eight bits.
        let depth = |c: usize| match format.depth().get(c) {
            Some(depth) if !format.has_palette() => *depth,
            _ => 8,
        };
        let known = |c: usize| scale[c] > 0;
        Self {
            weights,
            depth: [0, 1, 2].map(depth),
            offset: [0, 1, 2].map(|c| if known(c) { offset[c] as f32 } else { 0.0 }),
            scale: [0, 1, 2].map(|c| if known(c) { scale[c] as f32 } else { 255.0 }),
            alpha_depth: if has_alpha(info) { depth(3) } else { 16 },
        }
    }

    /// `(a, b)` of `value = a * word + b` for the 16-bit words of each component. GStreamer unpacks a level
    /// by repeating its bits, so that the highest becomes 65535.
    fn of_words(self) -> [(f32, f32); 3] {
        [0, 1, 2].map(|c| {
            let levels = ((1u32 << self.depth[c]) - 1) as f32;
            (levels / 65535.0 / self.scale[c], -self.offset[c] / self.scale[c])
        })
    }

    /// `(a, b)` of `word = a * value + b` for each component. GStreamer packs a word by dropping its low
    /// bits. The word in the middle of those that give the same level turns this into rounding.
    fn to_words(self) -> [(f32, f32); 3] {
        [0, 1, 2].map(|c| {
            let step = (1u32 << (16 - self.depth[c].min(16))) as f32;
            (self.scale[c] * step, (self.offset[c] + 0.5) * step)
        })
    }

    /// `(a, b)` of `word = a * value + b` for alpha, which has the full range.
    fn to_alpha(self) -> (f32, f32) {
        let depth = self.alpha_depth.min(16);
        let step = (1u32 << (16 - depth)) as f32;
        (((1u32 << depth) - 1) as f32 * step, 0.5 * step)
    }
}

/// Whether the format has an alpha component. The alpha of a palette does not count.
fn has_alpha(info: &gst_video::VideoInfo) -> bool {
    info.has_alpha() && !info.format_info().has_palette()
}

/// The 16-bit working format of `width` x `height` for `stream`.
fn working_info(
    stream: &gst_video::VideoInfo,
    width: u32,
    height: u32,
) -> Result<gst_video::VideoInfo, glib::BoolError> {
    use gst_video::VideoFormat::{Argb64, Ayuv64};

    gst_video::VideoInfo::builder(if stream.is_rgb() { Argb64 } else { Ayuv64 }, width, height)
        .fps(stream.fps())
        .interlace_mode(stream.interlace_mode())
        .colorimetry(&stream.colorimetry())
        .chroma_site(stream.chroma_site())
        .build()
}

/// Bytes behind a working frame, see [`detour`].
const ROOM: usize = 256;

fn scratch(info: &gst_video::VideoInfo) -> Result<Writable, glib::BoolError> {
    let buffer = gst::Buffer::with_size(info.size() + ROOM)?;
    gst_video::VideoFrame::from_buffer_writable(buffer, info).map_err(|_| {
        glib::bool_error!("Failed to map a {}x{} working frame", info.width(), info.height())
    })
}

/// A larger frame to copy `frame` into, where GStreamer would read or write beyond the end of
/// `frame` itself; `None` where it would not. Some formats are converted in whole groups of pixels,
/// and a frame whose meta says that it is interlaced, though the caps deny it, in one line of
/// chroma too many.
fn detour<'a, T>(
    room: &'a mut Option<Writable>,
    frame: &gst_video::VideoFrameRef<T>,
    info: &gst_video::VideoInfo,
) -> Result<Option<&'a mut Writable>, glib::BoolError> {
    if !frame.format_info().is_complex()
        && !frame.flags().contains(gst_video::VideoFrameFlags::INTERLACED)
    {
        return Ok(None);
    }
    if room.is_none() {
        *room = Some(scratch(info)?);
    }
    Ok(room.as_mut())
}

/// The format between `info` and the working format, if one is needed. GStreamer resamples the
/// chroma of 8-bit formats in 8 bits and always rounds up, which tints the picture. A deeper format
/// with the same subsampling avoids that: 12 bits lose at most a 16th of a level. With alpha there
/// are only 10 bits, which lose a quarter.
fn between(info: &gst_video::VideoInfo) -> Result<Option<gst_video::VideoInfo>, glib::BoolError> {
    use gst_video::VideoFormat::{A42010le, A42210le, I42212le, P016Le};

    let format = info.format_info();
    let same = |v: &[u32]| v.get(1).copied().unwrap_or(0);
    if !info.is_yuv() || format.bits() != 8 {
        return Ok(None);
    }
    let deep = match (same(format.w_sub()), same(format.h_sub()), has_alpha(info)) {
        (1, 1, false) => P016Le,
        (1, 0, false) => I42212le,
        (1, 1, true) => A42010le,
        (1, 0, true) => A42210le,
        _ => return Ok(None),
    };
    let info = gst_video::VideoInfo::builder(deep, info.width(), info.height())
        .fps(info.fps())
        .interlace_mode(info.interlace_mode())
        .colorimetry(&info.colorimetry())
        .chroma_site(info.chroma_site())
        .build()?;
    Ok(Some(info))
}

/// A conversion in one or two steps.
struct Converter {
    first: gst_video::VideoConverter,
    second: Option<(Writable, gst_video::VideoConverter)>,
}

impl Converter {
    fn new(
        from: &gst_video::VideoInfo,
        between: Option<gst_video::VideoInfo>,
        to: &gst_video::VideoInfo,
        threads: u32,
    ) -> Result<Self, glib::BoolError> {
        let alpha = has_alpha(from);
        let converter = |from, to| {
            let threads = if is_divisible(from, to) { threads } else { 1 };
            gst_video::VideoConverter::new(from, to, Some(config(threads, alpha)))
        };
        Ok(match between {
            Some(between) => Self {
                first: converter(from, &between)?,
                second: Some((scratch(&between)?, converter(&between, to)?)),
            },
            None => Self { first: converter(from, to)?, second: None },
        })
    }

    fn frame(
        &mut self,
        from: &gst_video::VideoFrameRef<&gst::BufferRef>,
        to: &mut gst_video::VideoFrameRef<&mut gst::BufferRef>,
    ) {
        match &mut self.second {
            Some((between, second)) => {
                self.first.frame_ref(from, &mut between.as_mut_video_frame_ref());
                second.frame_ref(&between.as_video_frame_ref(), to);
            }
            None => self.first.frame_ref(from, to),
        }
    }
}

/// Whether several threads convert as one does. Where GStreamer interpolates rows of chroma, a thread
/// takes the rows of its neighbour's part for other ones, and where rows share words, one overwrites
/// what another has written.
fn is_divisible(from: &gst_video::VideoInfo, to: &gst_video::VideoInfo) -> bool {
    let rows_of_chroma = |info: &gst_video::VideoInfo| {
        let description = info.format_info();
        description.h_sub()[..info.n_components() as usize].iter().copied().max().unwrap_or(0)
    };
    let shared = gst_video::VideoFormatFlags::COMPLEX | gst_video::VideoFormatFlags::TILED;
    let shares = |info: &gst_video::VideoInfo| info.format_info().flags().intersects(shared);
    rows_of_chroma(from) == 0 && rows_of_chroma(to) <= 1 && !shares(from) && !shares(to)
}

fn config(threads: u32, alpha: bool) -> gst_video::VideoConverterConfig {
    let mut config = gst_video::VideoConverterConfig::new();
    config.set_threads(threads);
    // The words are prepared so that dropping their low bits rounds.
    config.set_dither_method(gst_video::VideoDitherMethod::None);
    config.set_matrix_mode(gst_video::VideoMatrixMode::None);
    config.set_alpha_mode(if alpha {
        gst_video::VideoAlphaMode::Copy
    } else {
        gst_video::VideoAlphaMode::Set
    });
    config.set_alpha_value(1.0);
    config
}

/// A frame as the upscaler takes it.
#[derive(Debug)]
pub(super) struct RgbFrame {
    /// `[3,h,w]` RGB in `[0,1]`.
    pub(super) pixels: Array3<f32>,
    /// `[1,h,w]` in `[0,1]`; `None` for a format without alpha.
    pub(super) alpha: Option<Array3<f32>>,
}

/// Reads frames of one format.
pub(super) struct Reader {
    info: gst_video::VideoInfo,
    colors: Colors,
    converter: Converter,
    /// See [`detour`].
    room: Option<Writable>,
    scratch: Writable,
}

impl Reader {
    /// A reader for frames that `info` describes, with `threads` threads (0: one per core).
    pub(super) fn new(info: &gst_video::VideoInfo, threads: u32) -> Result<Self, glib::BoolError> {
        let working = working_info(info, info.width(), info.height())?;
        Ok(Self {
            info: info.clone(),
            colors: Colors::new(info),
            converter: Converter::new(info, between(info)?, &working, threads)?,
            room: None,
            scratch: scratch(&working)?,
        })
    }

    /// Reads the frame in `buffer`.
    pub(super) fn read(&mut self, buffer: &gst::BufferRef) -> Result<RgbFrame, glib::BoolError> {
        layout::check(buffer, &self.info)?;
        let frame = gst_video::VideoFrameRef::from_buffer_ref_readable(buffer, &self.info)
            .map_err(|_| {
                glib::bool_error!(
                    "a buffer of {} bytes does not hold a {}x{} {} frame",
                    buffer.size(),
                    self.info.width(),
                    self.info.height(),
                    self.info.format()
                )
            })?;
        match detour(&mut self.room, &frame, &self.info)? {
            Some(room) => {
                copy(&frame, &mut room.as_mut_video_frame_ref())?;
                self.converter
                    .frame(&room.as_video_frame_ref(), &mut self.scratch.as_mut_video_frame_ref());
            }
            None => self.converter.frame(&frame, &mut self.scratch.as_mut_video_frame_ref()),
        }
        drop(frame);

        let (width, height) = (self.info.width() as usize, self.info.height() as usize);
        let mut pixels = Array3::<f32>::zeros((3, height, width));
        let stride = self.scratch.plane_stride()[0] as usize;
        if let Some(step) = cosited::step(&self.info) {
            cosited::interpolate(self.scratch.plane_data_mut(0)?, stride, step);
        }
        let words = self.scratch.plane_data(0)?;
        let rows = words.chunks(stride);
        let Some(planes) = pixels.as_slice_mut() else {
            return Err(glib::bool_error!("Pixels are not contiguous"));
        };
        let (red, rest) = planes.split_at_mut(width * height);
        let (green, blue) = rest.split_at_mut(width * height);
        let targets =
            red.chunks_mut(width).zip(green.chunks_mut(width)).zip(blue.chunks_mut(width));
        let coefficients = self.colors.of_words();
        for (row, ((red, green), blue)) in rows.zip(targets) {
            match (self.colors.weights, self.info.is_gray()) {
                (None, _) => read_row(row, red, green, blue, coefficients, |r, g, b| [r, g, b]),
                (Some(_), true) => {
                    read_row(row, red, green, blue, coefficients, |y, _, _| [y, y, y]);
                }
                (Some((kr, kb)), false) => {
                    let (red_v, blue_u) = (2.0 * (1.0 - kr), 2.0 * (1.0 - kb));
                    let kg = 1.0 - kr - kb;
                    let (green_u, green_v) = (-kb * blue_u / kg, -kr * red_v / kg);
                    read_row(row, red, green, blue, coefficients, |y, u, v| {
                        [y + red_v * v, y + green_u * u + green_v * v, y + blue_u * u]
                    });
                }
            }
        }
        let alpha = has_alpha(&self.info).then(|| {
            // Only the high bits: for alpha, GStreamer does not fill the low ones.
            let depth = self.colors.alpha_depth.min(16);
            let most = ((1u32 << depth) - 1) as f32;
            Array3::from_shape_fn((1, height, width), |(_, y, x)| {
                let word = &words[y * stride + x * BYTES_PER_PIXEL..];
                f32::from(u16::from_ne_bytes([word[0], word[1]]) >> (16 - depth)) / most
            })
        });
        Ok(RgbFrame { pixels, alpha })
    }
}

/// Converts one row of working pixels to RGB; `to_rgb` takes the values of the components.
#[inline(always)]
fn read_row(
    row: &[u8],
    red: &mut [f32],
    green: &mut [f32],
    blue: &mut [f32],
    [c0, c1, c2]: [(f32, f32); 3],
    to_rgb: impl Fn(f32, f32, f32) -> [f32; 3],
) {
    let row = row.chunks_exact(BYTES_PER_PIXEL);
    for (((word, r), g), b) in row.zip(red).zip(green).zip(blue) {
        let value = |low: u8, high: u8, (a, b): (f32, f32)| {
            f32::from(u16::from_ne_bytes([low, high])) * a + b
        };
        let rgb = to_rgb(
            value(word[2], word[3], c0),
            value(word[4], word[5], c1),
            value(word[6], word[7], c2),
        );
        [*r, *g, *b] = rgb.map(|v| v.clamp(0.0, 1.0));
    }
}

/// Writes frames of one format, and resizes pictures of another size.
pub(super) struct Writer {
    info: gst_video::VideoInfo,
    colors: Colors,
    converter: Converter,
    /// See [`detour`].
    room: Option<Writable>,
    scratch: Writable,
    /// A row of alpha for pictures without one.
    opaque: Vec<f32>,
}

impl Writer {
    /// A writer of pictures of `size` as frames that `info` describes, with `threads` threads
    /// (0: one per core).
    pub(super) fn new(
        info: &gst_video::VideoInfo,
        size: Size,
        threads: u32,
    ) -> Result<Self, glib::BoolError> {
        let side = |v: usize| {
            u32::try_from(v).map_err(|_| glib::bool_error!("A side of {v} pixels is too long"))
        };
        let working = working_info(info, side(size.width)?, side(size.height)?)?;
        Ok(Self {
            info: info.clone(),
            colors: Colors::new(info),
            converter: Converter::new(&working, between(info)?, info, threads)?,
            room: None,
            scratch: scratch(&working)?,
            opaque: vec![1.0; size.width],
        })
    }

    /// Writes `picture`, clamped to `[0,1]`, into `buffer`. A picture without alpha becomes opaque.
    pub(super) fn write(
        &mut self,
        picture: &RgbFrame,
        buffer: &mut gst::BufferRef,
    ) -> Result<(), glib::BoolError> {
        let RgbFrame { pixels, alpha } = picture;
        let working = self.scratch.info();
        let (width, height) = (working.width() as usize, working.height() as usize);
        if pixels.dim() != (3, height, width) {
            return Err(glib::bool_error!(
                "Pixels are {:?}, not {:?}",
                pixels.dim(),
                (3, height, width)
            ));
        }
        if alpha.as_ref().is_some_and(|alpha| alpha.dim() != (1, height, width)) {
            return Err(glib::bool_error!(
                "Alpha has another size than pixels of {:?}",
                pixels.dim()
            ));
        }
        let pixels = pixels.as_standard_layout();
        let alpha = alpha
            .as_ref()
            .filter(|_| has_alpha(&self.info))
            .map(|alpha| alpha.as_standard_layout());
        let Some(planes) = pixels.as_slice() else {
            return Err(glib::bool_error!("Pixels are not contiguous"));
        };
        let alpha = alpha.as_ref().and_then(|alpha| alpha.as_slice());
        let (red, rest) = planes.split_at(width * height);
        let (green, blue) = rest.split_at(width * height);
        let sources =
            red.chunks(width).zip(green.chunks(width)).zip(blue.chunks(width)).enumerate();
        let coefficients = self.colors.to_words();
        let stride = self.scratch.plane_stride()[0] as usize;
        for (row, (y, ((red, green), blue))) in
            self.scratch.plane_data_mut(0)?.chunks_mut(stride).zip(sources)
        {
            let alpha = alpha.map_or(&*self.opaque, |alpha| &alpha[y * width..(y + 1) * width]);
            write_alpha(row, alpha, self.colors.to_alpha());
            match self.colors.weights {
                None => write_row(row, red, green, blue, coefficients, |r, g, b| [r, g, b]),
                Some((kr, kb)) => {
                    let (u, v) = (0.5 / (1.0 - kb), 0.5 / (1.0 - kr));
                    write_row(row, red, green, blue, coefficients, |r, g, b| {
                        let y = kr * r + (1.0 - kr - kb) * g + kb * b;
                        [y, u * (b - y), v * (r - y)]
                    });
                }
            }
        }
        layout::check(buffer, &self.info)?;
        let mut frame = gst_video::VideoFrameRef::from_buffer_ref_writable(buffer, &self.info)
            .map_err(|_| glib::bool_error!("Failed to map the output buffer for writing"))?;
        let scratch = &self.scratch.as_video_frame_ref();
        match detour(&mut self.room, &frame, &self.info)? {
            Some(room) => {
                self.converter.frame(scratch, &mut room.as_mut_video_frame_ref());
                copy(&room.as_video_frame_ref(), &mut frame)?;
            }
            None => self.converter.frame(scratch, &mut frame),
        }
        Ok(())
    }
}

fn copy<T>(
    from: &gst_video::VideoFrameRef<T>,
    to: &mut gst_video::VideoFrameRef<&mut gst::BufferRef>,
) -> Result<(), glib::BoolError> {
    from.copy(to).map_err(|_| glib::bool_error!("Failed to copy a {} frame", to.format()))
}

fn write_alpha(row: &mut [u8], alpha: &[f32], (a, b): (f32, f32)) {
    for (word, alpha) in row.chunks_exact_mut(BYTES_PER_PIXEL).zip(alpha) {
        word[0..2].copy_from_slice(&((alpha.clamp(0.0, 1.0) * a + b) as u16).to_ne_bytes());
    }
}

/// Converts one row of RGB to working pixels and leaves alpha as it is; `from_rgb` gives the values
/// of the components.
#[inline(always)]
fn write_row(
    row: &mut [u8],
    red: &[f32],
    green: &[f32],
    blue: &[f32],
    [c0, c1, c2]: [(f32, f32); 3],
    from_rgb: impl Fn(f32, f32, f32) -> [f32; 3],
) {
    let row = row.chunks_exact_mut(BYTES_PER_PIXEL);
    for (((word, r), g), b) in row.zip(red).zip(green).zip(blue) {
        let [x, y, z] = from_rgb(r.clamp(0.0, 1.0), g.clamp(0.0, 1.0), b.clamp(0.0, 1.0));
        // The cast saturates, and turns NaN into 0.
        let bytes = |value: f32, (a, b): (f32, f32)| ((value * a + b) as u16).to_ne_bytes();
        word[2..4].copy_from_slice(&bytes(x, c0));
        word[4..6].copy_from_slice(&bytes(y, c1));
        word[6..8].copy_from_slice(&bytes(z, c2));
    }
}

#[cfg(test)]
mod tests;
