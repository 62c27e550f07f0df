// SPDX-License-Identifier: MPL-2.0

//! GstVideoFrame to planar f32 RGB and back.
//!
//! Both ways go through 16-bit ARGB with GStreamer's own converter, so that each format, colour matrix, range
//! and chroma site is read as everywhere in GStreamer and YUV survives the way to RGB and back:
//! with 8-bit RGB in between it would be off by up to three levels.

use gst_video::prelude::*;
use ndarray::Array3;

/// 16 bits for each of A, R, G, B, in the machine's byte order.
const WORKING: gst_video::VideoFormat = gst_video::VideoFormat::Argb64;
const BYTES_PER_PIXEL: usize = 8;

type Writable = gst_video::VideoFrame<gst_video::video_frame::Writable>;

/// The working picture of `width` x `height` for a stream like `stream`: full-range RGB with the stream's
/// transfer function and primaries, so that only matrix and range are converted.
fn working_info(
    stream: &gst_video::VideoInfo,
    width: u32,
    height: u32,
) -> Result<gst_video::VideoInfo, glib::BoolError> {
    let colorimetry = stream.colorimetry();
    let colorimetry = gst_video::VideoColorimetry::new(
        gst_video::VideoColorRange::Range0_255,
        gst_video::VideoColorMatrix::Rgb,
        colorimetry.transfer(),
        colorimetry.primaries(),
    );
    gst_video::VideoInfo::builder(WORKING, width, height)
        .fps(stream.fps())
        .interlace_mode(stream.interlace_mode())
        .colorimetry(&colorimetry)
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
    config.set_dither_method(gst_video::VideoDitherMethod::None);
    config.set_alpha_mode(gst_video::VideoAlphaMode::Set);
    config.set_alpha_value(1.0);
    config
}

/// Reads frames of one format.
pub(super) struct Reader {
    info: gst_video::VideoInfo,
    converter: gst_video::VideoConverter,
    scratch: Writable,
}

impl Reader {
    /// For frames as `info` describes them, converted by `threads` threads (0: one a core).
    pub(super) fn new(info: &gst_video::VideoInfo, threads: u32) -> Result<Self, glib::BoolError> {
        let working = working_info(info, info.width(), info.height())?;
        Ok(Self {
            info: info.clone(),
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
        for (row, ((red, green), blue)) in rows.zip(targets) {
            let row = row.chunks_exact(BYTES_PER_PIXEL);
            for (((argb, r), g), b) in row.zip(red).zip(green).zip(blue) {
                *r = f32::from(u16::from_ne_bytes([argb[2], argb[3]])) / 65535.0;
                *g = f32::from(u16::from_ne_bytes([argb[4], argb[5]])) / 65535.0;
                *b = f32::from(u16::from_ne_bytes([argb[6], argb[7]])) / 65535.0;
            }
        }
        Ok(pixels)
    }
}

/// Writes frames of one format, resizing where the pictures have another size.
pub(super) struct Writer {
    info: gst_video::VideoInfo,
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
        let stride = self.scratch.plane_stride()[0] as usize;
        for (row, ((red, green), blue)) in self.scratch.plane_data_mut(0)?.chunks_mut(stride).zip(sources) {
            let row = row.chunks_exact_mut(BYTES_PER_PIXEL);
            for (((argb, r), g), b) in row.zip(red).zip(green).zip(blue) {
                // Adding a half before the cut rounds; the cast saturates, and turns NaN into 0.
                let level = |v: f32| ((v * 65535.0 + 0.5) as u16).to_ne_bytes();
                argb[0..2].copy_from_slice(&[0xff; 2]);
                argb[2..4].copy_from_slice(&level(*r));
                argb[4..6].copy_from_slice(&level(*g));
                argb[6..8].copy_from_slice(&level(*b));
            }
        }
        let mut frame = gst_video::VideoFrameRef::from_buffer_ref_writable(buffer, &self.info)
            .map_err(|_| glib::bool_error!("Failed to map the output buffer for writing"))?;
        self.converter.frame_ref(&self.scratch.as_video_frame_ref(), &mut frame);
        Ok(())
    }
}
