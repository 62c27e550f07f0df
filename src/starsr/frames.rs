// SPDX-License-Identifier: MPL-2.0

//! GstVideoFrame to planar f32 RGB and back.
//!
//! GStreamer's converter unpacks, packs, resizes and resamples chroma, between the stream's format and 16-bit AYUV or
//! ARGB of the same colorimetry, so that every format is laid out as everywhere in GStreamer. The step between YUV and RGB
//! is done here in f32: the converter's own works with coefficients of eight bits, which moves brightness by up to
//! half a level of 255 each way, and cuts where it should round.

use gst::glib;
use gst_video::prelude::*;
use ndarray::Array3;

const BYTES_PER_PIXEL: usize = 8;

type Writable = gst_video::VideoFrame<gst_video::video_frame::Writable>;

/// What the 16-bit components of a working frame mean.
#[derive(Debug, Clone, Copy)]
struct Colors {
    /// Weights of red and blue in luma; `None` where the components are red, green and blue.
    weights: Option<(f32, f32)>,
    /// Levels of the format: bits, level of 0, levels from there to 1 (chroma: from -1/2 to 1/2).
    depth: [u32; 3],
    offset: [f32; 3],
    scale: [f32; 3],
}

/// Weights where a stream does not say its matrix: BT.601, as GStreamer assumes for small pictures.
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
            gst_video::VideoColorRange::Unknown if info.is_yuv() => gst_video::VideoColorRange::Range16_235,
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
        }
    }

    /// `(a, b)` of `value = a * word + b` for a component's 16-bit word: GStreamer unpacks a level by repeating its
    /// bits, so that the highest is 65535.
    fn from_words(&self) -> [(f32, f32); 3] {
        [0, 1, 2].map(|c| {
            let levels = ((1u32 << self.depth[c]) - 1) as f32;
            (levels / 65535.0 / self.scale[c], -self.offset[c] / self.scale[c])
        })
    }

    /// `(a, b)` of `word = a * value + b`: GStreamer packs a word by cutting its low bits, so a word in the middle of
    /// those that give a level makes it round.
    fn to_words(&self) -> [(f32, f32); 3] {
        [0, 1, 2].map(|c| {
            let step = (1u32 << (16 - self.depth[c].min(16))) as f32;
            (self.scale[c] * step, (self.offset[c] + 0.5) * step)
        })
    }
}

/// The working picture of `width` x `height` for a stream like `stream`.
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

fn scratch(info: &gst_video::VideoInfo) -> Result<Writable, glib::BoolError> {
    let buffer = gst::Buffer::with_size(info.size())?;
    gst_video::VideoFrame::from_buffer_writable(buffer, info)
        .map_err(|_| glib::bool_error!("Failed to map a {}x{} working frame", info.width(), info.height()))
}

fn config(threads: u32) -> gst_video::VideoConverterConfig {
    let mut config = gst_video::VideoConverterConfig::new();
    config.set_threads(threads);
    // Words are prepared so that cutting them rounds.
    config.set_dither_method(gst_video::VideoDitherMethod::None);
    config.set_matrix_mode(gst_video::VideoMatrixMode::None);
    config.set_alpha_mode(gst_video::VideoAlphaMode::Set);
    config.set_alpha_value(1.0);
    config
}

/// Reads frames of one format.
pub(super) struct Reader {
    info: gst_video::VideoInfo,
    colors: Colors,
    converter: gst_video::VideoConverter,
    scratch: Writable,
}

impl Reader {
    /// For frames as `info` describes them, converted by `threads` threads (0: one a core).
    pub(super) fn new(info: &gst_video::VideoInfo, threads: u32) -> Result<Self, glib::BoolError> {
        let working = working_info(info, info.width(), info.height())?;
        Ok(Self {
            info: info.clone(),
            colors: Colors::new(info),
            converter: gst_video::VideoConverter::new(info, &working, Some(config(threads)))?,
            scratch: scratch(&working)?,
        })
    }

    /// The picture of `buffer` as `[3,h,w]` RGB in [0,1]; alpha is ignored.
    pub(super) fn read(&mut self, buffer: &gst::BufferRef) -> Result<Array3<f32>, glib::BoolError> {
        let frame = gst_video::VideoFrameRef::from_buffer_ref_readable(buffer, &self.info).map_err(|_| {
            glib::bool_error!(
                "a buffer of {} bytes does not hold a {}x{} {} frame",
                buffer.size(),
                self.info.width(),
                self.info.height(),
                self.info.format()
            )
        })?;
        self.converter.frame_ref(&frame, &mut self.scratch.as_mut_video_frame_ref());
        drop(frame);

        let (width, height) = (self.info.width() as usize, self.info.height() as usize);
        let mut pixels = Array3::<f32>::zeros((3, height, width));
        let stride = self.scratch.plane_stride()[0] as usize;
        let rows = self.scratch.plane_data(0)?.chunks(stride);
        let Some(planes) = pixels.as_slice_mut() else {
            return Err(glib::bool_error!("Pixels are not contiguous"));
        };
        let (red, rest) = planes.split_at_mut(width * height);
        let (green, blue) = rest.split_at_mut(width * height);
        let targets = red.chunks_mut(width).zip(green.chunks_mut(width)).zip(blue.chunks_mut(width));
        let coefficients = self.colors.from_words();
        for (row, ((red, green), blue)) in rows.zip(targets) {
            match (self.colors.weights, self.info.is_gray()) {
                (None, _) => read_row(row, red, green, blue, coefficients, |r, g, b| [r, g, b]),
                (Some(_), true) => read_row(row, red, green, blue, coefficients, |y, _, _| [y, y, y]),
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
        Ok(pixels)
    }
}

/// One row of working pixels to RGB; `to_rgb` takes the components' values.
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
        let value = |low: u8, high: u8, (a, b): (f32, f32)| f32::from(u16::from_ne_bytes([low, high])) * a + b;
        let rgb = to_rgb(value(word[2], word[3], c0), value(word[4], word[5], c1), value(word[6], word[7], c2));
        [*r, *g, *b] = rgb.map(|v| v.clamp(0.0, 1.0));
    }
}

/// Writes frames of one format, resizing where the pictures have another size.
pub(super) struct Writer {
    info: gst_video::VideoInfo,
    colors: Colors,
    converter: gst_video::VideoConverter,
    scratch: Writable,
}

impl Writer {
    /// For pictures of `width` x `height` written as `info` describes, by `threads` threads (0: one a core).
    pub(super) fn new(
        info: &gst_video::VideoInfo,
        (width, height): (usize, usize),
        threads: u32,
    ) -> Result<Self, glib::BoolError> {
        let size = |v: usize| u32::try_from(v).map_err(|_| glib::bool_error!("Picture size {v} is too large"));
        let working = working_info(info, size(width)?, size(height)?)?;
        Ok(Self {
            info: info.clone(),
            colors: Colors::new(info),
            converter: gst_video::VideoConverter::new(&working, info, Some(config(threads)))?,
            scratch: scratch(&working)?,
        })
    }

    /// Writes `pixels`, `[3,h,w]` RGB clamped to [0,1], into `buffer`, opaque.
    pub(super) fn write(
        &mut self,
        pixels: &Array3<f32>,
        buffer: &mut gst::BufferRef,
    ) -> Result<(), glib::BoolError> {
        let working = self.scratch.info();
        let (width, height) = (working.width() as usize, working.height() as usize);
        if pixels.dim() != (3, height, width) {
            return Err(glib::bool_error!("Pixels are {:?}, not {:?}", pixels.dim(), (3, height, width)));
        }
        let pixels = pixels.as_standard_layout();
        let Some(planes) = pixels.as_slice() else {
            return Err(glib::bool_error!("Pixels are not contiguous"));
        };
        let (red, rest) = planes.split_at(width * height);
        let (green, blue) = rest.split_at(width * height);
        let sources = red.chunks(width).zip(green.chunks(width)).zip(blue.chunks(width));
        let coefficients = self.colors.to_words();
        let stride = self.scratch.plane_stride()[0] as usize;
        for (row, ((red, green), blue)) in self.scratch.plane_data_mut(0)?.chunks_mut(stride).zip(sources) {
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
        let mut frame = gst_video::VideoFrameRef::from_buffer_ref_writable(buffer, &self.info)
            .map_err(|_| glib::bool_error!("Failed to map the output buffer for writing"))?;
        self.converter.frame_ref(&self.scratch.as_video_frame_ref(), &mut frame);
        Ok(())
    }
}

/// One row of RGB to working pixels; `from_rgb` gives the components' values.
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
        word[0..2].copy_from_slice(&[0xff; 2]);
        word[2..4].copy_from_slice(&bytes(x, c0));
        word[4..6].copy_from_slice(&bytes(y, c1));
        word[6..8].copy_from_slice(&bytes(z, c2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Smooth colours in the middle of the range, as `[3,h,w]`.
    fn gradient(width: usize, height: usize) -> Array3<f32> {
        Array3::from_shape_fn((3, height, width), |(c, y, x)| {
            let (x, y) = (x as f32 / width as f32, y as f32 / height as f32);
            0.5 + 0.35 * ((c as f32 + 1.0) * 1.7 * x + (3.0 - c as f32) * y).sin()
        })
    }

    fn stream(format: gst_video::VideoFormat, colorimetry: &str, width: u32, height: u32) -> gst_video::VideoInfo {
        let mut builder = gst_video::VideoInfo::builder(format, width, height).fps(gst::Fraction::new(25, 1));
        let colorimetry = colorimetry.parse::<gst_video::VideoColorimetry>();
        if let Ok(colorimetry) = &colorimetry {
            builder = builder.colorimetry(colorimetry);
        }
        builder.build().unwrap()
    }

    /// Values of a component, as integers of its depth.
    fn component(buffer: &gst::BufferRef, info: &gst_video::VideoInfo, component: u8) -> Vec<i32> {
        let frame = gst_video::VideoFrameRef::from_buffer_ref_readable(buffer, info).unwrap();
        let plane = info.comp_plane(component);
        let data = frame.plane_data(plane).unwrap();
        let stride = info.stride()[plane as usize] as usize;
        let (pstride, poffset) = (info.comp_pstride(component) as usize, info.comp_poffset(component) as usize);
        let depth = info.comp_depth(component);
        let shift = info.format_info().shift()[component as usize];
        let mut values = Vec::new();
        for y in 0..info.comp_height(component) as usize {
            for x in 0..info.comp_width(component) as usize {
                let at = y * stride + x * pstride + poffset;
                let value = if depth > 8 {
                    i32::from(u16::from_le_bytes([data[at], data[at + 1]]))
                } else {
                    i32::from(data[at])
                };
                values.push((value >> shift) & ((1 << depth) - 1));
            }
        }
        values
    }

    #[test]
    fn round_trip_error() {
        gst::init().unwrap();
        for (format, colorimetry) in [
            ("I420", "bt601"),
            ("I420", "bt709"),
            ("I420", "1:4:0:0"),
            ("NV12", "bt709"),
            ("Y42B", "bt709"),
            ("Y444", "bt709"),
            ("Y444", "1:4:0:0"),
            ("RGB", ""),
            ("BGRA", ""),
            ("GRAY8", ""),
            ("GRAY8", "1:4:0:0"),
            ("I420_10LE", "bt2100-pq"),
            ("I422_10LE", "bt709"),
            ("Y444_10LE", "bt709"),
            ("P010_10LE", "bt2100-pq"),
        ] {
            let info = stream(gst_video::VideoFormat::from_string(format), colorimetry, 64, 48);
            let mut first = gst::Buffer::with_size(info.size()).unwrap();
            let mut second = gst::Buffer::with_size(info.size()).unwrap();
            let mut writer = Writer::new(&info, (64, 48), 1).unwrap();
            let mut reader = Reader::new(&info, 1).unwrap();
            let mut original = gradient(64, 48);
            if info.is_gray() { let g = original.index_axis(ndarray::Axis(0), 1).to_owned(); for c in [0, 2] { original.index_axis_mut(ndarray::Axis(0), c).assign(&g); } }
            writer.write(&original, first.make_mut()).unwrap();
            let pixels = reader.read(&first).unwrap();
            writer.write(&pixels, second.make_mut()).unwrap();
            for c in 0..info.n_components().min(3) as u8 {
                let (a, b) = (component(&first, &info, c), component(&second, &info, c));
                let max = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).max().unwrap();
                let mean = a.iter().zip(&b).map(|(a, b)| f64::from(b - a)).sum::<f64>() / a.len() as f64;
                println!("{format} {colorimetry} {c}: max {max} mean {mean:+.4}");
            }
            let bias: Vec<f32> = (0..3).map(|c| { let d = &pixels - &original; d.index_axis(ndarray::Axis(0), c).mean().unwrap() * 255.0 }).collect();
            println!("   bias of writing and reading in 8-bit levels {bias:?}");
        }
    }
}
