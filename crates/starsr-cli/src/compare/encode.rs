// SPDX-License-Identifier: MPL-2.0

//! Frames as pictures for a page.

use gst::glib;
use gst::prelude::*;
use gst_app::{AppSink, AppSrc};

use super::figures::Frame;
use crate::media::elements::{is_available, make, text};

/// Up to this many pixels in all, frames are stored without loss (about 30 MB), and above it as JPEG.
const LOSSLESS_PIXELS: u64 = 40_000_000;
/// WebP holds no larger sides.
const WEBP_SIDE: u32 = 16383;

/// How frames are stored in a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Half as large as PNG at its fastest, and GStreamer's plugin for it is not always there.
    WebP,
    Png,
    /// At quality 98 without subsampling of colours: most levels are off by one at most.
    Jpeg,
}

impl Format {
    /// For `count` pictures of each of these sizes.
    pub fn choose(lossless: bool, sizes: [(u32, u32); 2], count: usize) -> Self {
        let pixels: u64 = sizes.iter().map(|size| u64::from(size.0) * u64::from(size.1)).sum();
        let fits_webp = sizes.iter().all(|size| size.0.max(size.1) <= WEBP_SIDE);
        if !lossless && pixels.saturating_mul(count as u64) > LOSSLESS_PIXELS {
            Self::Jpeg
        } else if fits_webp && is_available("webpenc") {
            Self::WebP
        } else {
            Self::Png
        }
    }

    /// What a reader is to know of it.
    pub fn words(self) -> &'static str {
        match self {
            Self::WebP => "lossless WebP",
            Self::Png => "PNG",
            Self::Jpeg => "JPEG, quality 98, 4:4:4",
        }
    }

    fn media(self) -> &'static str {
        match self {
            Self::WebP => "image/webp",
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
        }
    }

    fn encoder(self) -> Result<gst::Element, String> {
        match self {
            Self::WebP => {
                let encoder = make("webpenc")?;
                encoder.set_property("lossless", true);
                // Slower ones save 15% and take three times as long.
                encoder.set_property("speed", 0u32);
                Ok(encoder)
            }
            Self::Png => make("pngenc"),
            Self::Jpeg => {
                let encoder = make("jpegenc")?;
                encoder.set_property("quality", 98);
                encoder.set_property_from_str("idct-method", "islow");
                Ok(encoder)
            }
        }
    }
}

/// Encodes frames one by one.
pub struct Encoder {
    format: Format,
    pipeline: gst::Pipeline,
    frames: AppSrc,
    pictures: AppSink,
}

impl Drop for Encoder {
    fn drop(&mut self) {
        // Nothing can fail here that matters.
        let _ = self.pipeline.set_state(gst::State::Null);
    }
}

impl Encoder {
    pub fn new(format: Format) -> Result<Self, String> {
        let pipeline = gst::Pipeline::new();
        let frames = AppSrc::builder().format(gst::Format::Time).build();
        let pictures = AppSink::builder().sync(false).build();
        let filter = make("capsfilter")?;
        if format == Format::Jpeg {
            // What JPEG files hold: the matrix of BT.601 and all levels.
            let caps = gst::Caps::builder("video/x-raw").field("format", "Y444");
            filter.set_property("caps", caps.field("colorimetry", "1:4:0:0").build());
        }
        let convert = make("videoconvert")?;
        convert.set_property_from_str("dither", "none");
        let encoder = format.encoder()?;
        let elements = [frames.upcast_ref(), &convert, &filter, &encoder, pictures.upcast_ref()];
        pipeline.add_many(elements).map_err(text)?;
        gst::Element::link_many(elements).map_err(text)?;
        pipeline.set_state(gst::State::Playing).map_err(text)?;
        Ok(Self { format, pipeline, frames, pictures })
    }

    /// The frame as a data URI.
    pub fn encode(&self, frame: &Frame) -> Result<String, String> {
        self.frames.push_sample(&frame.sample).map_err(text)?;
        let picture = self.pictures.pull_sample().map_err(|_| {
            let bus = self.pipeline.bus();
            let message = bus.and_then(|bus| bus.pop_filtered(&[gst::MessageType::Error]));
            match message.as_ref().map(|message| message.view()) {
                Some(gst::MessageView::Error(error)) => error.error().message().to_owned(),
                _ => format!("a frame could not be stored as {}", self.format.words()),
            }
        })?;
        let buffer = picture.buffer().ok_or("the encoder gave no data")?;
        let bytes = buffer.map_readable().map_err(text)?;
        Ok(format!("data:{};base64,{}", self.format.media(), glib::base64_encode(&bytes)))
    }
}
