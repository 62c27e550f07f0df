// SPDX-License-Identifier: MPL-2.0

//! The encoder of the upscaled video.

use gst::prelude::*;
use gst_video::{VideoFormat, VideoFormatInfo, VideoInfo, VideoTransferFunction};

use super::args::{Args, set_property};
use super::elements::{is_available, make};
use super::streams::Container;

/// Threads that an encoder which has no choice of its own gets.
const THREADS: usize = 4;

/// What the video is encoded as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Codec {
    /// AVC, which every player knows; 8 or 10 bits
    H264,
    /// HEVC; 8 to 12 bits, and HDR with its metadata
    H265,
    /// 8 bits; smaller files, slow
    Av1,
    /// 8 to 12 bits, royalty-free
    Vp9,
    /// 10 bits, 4:2:2 or 4:4:4 with alpha, for editing: .mov or .mkv
    Prores,
    /// Lossless, with alpha, for archives: .mkv
    Ffv1,
}

impl Codec {
    /// The codec for a `video`, decoded: HEVC where H.264 would lose HDR, or depth on many devices.
    pub fn for_video(video: &VideoInfo) -> Self {
        let is_hdr = matches!(
            video.colorimetry().transfer(),
            VideoTransferFunction::Smpte2084 | VideoTransferFunction::AribStdB67
        );
        let is_deep = video.format_info().depth().iter().any(|depth| *depth > 8);
        // x265 needs an edge of 16 pixels and more.
        if (is_hdr || is_deep) && is_available("x265enc") { Self::H265 } else { Self::H264 }
    }

    /// The name users know it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::H264 => "H.264",
            Self::H265 => "HEVC",
            Self::Av1 => "AV1",
            Self::Vp9 => "VP9",
            Self::Prores => "ProRes",
            Self::Ffv1 => "FFV1",
        }
    }

    fn element(self) -> &'static str {
        match self {
            Self::H264 => "x264enc",
            Self::H265 => "x265enc",
            Self::Av1 => "av1enc",
            Self::Vp9 => "vp9enc",
            Self::Prores => "avenc_prores_ks",
            Self::Ffv1 => "avenc_ffv1",
        }
    }

    /// Fails where `container` cannot hold this codec, or where the options do not go with it.
    pub fn check(self, args: &Args, container: Container) -> Result<(), String> {
        let holds = match self {
            Self::H264 | Self::H265 | Self::Av1 | Self::Vp9 => true,
            Self::Prores => container != Container::Mp4,
            Self::Ffv1 => container == Container::Matroska,
        };
        if !holds {
            let (container, codec) = (container.name(), self.name());
            let others = if self == Self::Prores { ".mov or .mkv" } else { ".mkv" };
            return Err(format!("{container} cannot hold {codec}; name the output {others}"));
        }
        let name = self.name();
        match (self.qualities(), args.quality) {
            (None, Some(_)) => return Err(format!("--quality does not go with {name}")),
            (Some((_, worst)), Some(quality)) if quality > worst => {
                return Err(format!("--quality: the worst that {name} takes is {worst}"));
            }
            _ => {}
        }
        if args.preset.is_some() && !matches!(self, Self::H264 | Self::H265) {
            return Err(format!("--preset does not go with {name}"));
        }
        make(self.element()).map(drop)
    }

    /// The default of `--quality` and the worst value.
    fn qualities(self) -> Option<(u32, u32)> {
        match self {
            Self::H264 => Some((18, 50)),
            Self::H265 => Some((20, 51)),
            Self::Av1 | Self::Vp9 => Some((24, 63)),
            Self::Prores | Self::Ffv1 => None,
        }
    }

    /// The encoder, and what packs its stream for the muxer.
    fn build(self, args: &Args) -> Result<Vec<gst::Element>, String> {
        let encoder = make(self.element())?;
        let quality = args.quality.or(self.qualities().map(|(default, _)| default)).unwrap_or(0);
        let set = |name: &str, value: &str| set_property(&encoder, name, value);
        match self {
            Self::H264 => {
                set("pass", "qual")?;
                set("quantizer", &quality.to_string())?;
                // Without this x264enc caps the bit rate at its default of 2 Mbit/s even at
                // constant quality.
                set("vbv-buf-capacity", "0")?;
            }
            Self::H265 => set("option-string", &format!("crf={quality}:repeat-headers=1"))?,
            Self::Av1 => {
                set("end-usage", "q")?;
                // av1enc has no property for the level of constant quality.
                set("min-quantizer", &quality.to_string())?;
                set("max-quantizer", &quality.to_string())?;
                set("cpu-used", "6")?;
                set("row-mt", "true")?;
                set("threads", &THREADS.to_string())?;
            }
            Self::Vp9 => {
                set("end-usage", "cq")?;
                set("cq-level", &quality.to_string())?;
                set("target-bitrate", "2000000000")?;
                set("deadline", "1000000")?;
                set("cpu-used", "4")?;
                set("row-mt", "true")?;
                set("threads", &THREADS.to_string())?;
            }
            Self::Prores => {}
            Self::Ffv1 => {
                set("slices", "4")?;
                set("slicecrc", "1")?;
            }
        }
        if let Some(preset) = &args.preset {
            set("speed-preset", preset)
                .map_err(|error| error.replace("speed-preset", "--preset"))?;
        }
        let parser = match self {
            Self::H265 => Some("h265parse"),
            Self::Av1 => Some("av1parse"),
            Self::Vp9 => Some("vp9parse"),
            _ => None,
        };
        [Ok(encoder)].into_iter().chain(parser.map(make)).collect()
    }

    /// The format in which `video` is encoded, where it is not left to GStreamer, which takes the
    /// nearest one that the encoder knows.
    fn format(self, video: VideoFormatInfo) -> Option<VideoFormat> {
        let deep = video.depth().iter().any(|depth| *depth > 8);
        match self {
            // Players do not know the others that these encoders take.
            Self::H264 | Self::H265 | Self::Av1 | Self::Vp9
                if video.is_rgb() || video.is_gray() =>
            {
                Some(if deep && self != Self::Av1 {
                    VideoFormat::I42010le
                } else {
                    VideoFormat::I420
                })
            }
            Self::Prores if video.has_alpha() => Some(VideoFormat::A44410le),
            Self::Prores if video.is_rgb() => Some(VideoFormat::Y44410le),
            _ => None,
        }
    }
}

/// The elements from raw frames to the muxer's pad: those of `--encoder`, or of `codec`.
pub fn build(args: &Args, codec: Codec) -> Result<Vec<gst::Element>, String> {
    match &args.encoder {
        Some(description) => gst::parse::bin_from_description(description, true)
            .map(|bin| vec![bin.upcast()])
            .map_err(|error| format!("--encoder: {}", error.message())),
        None => codec.build(args),
    }
}

/// Caps for frames of a decoded `video` in front of an encoder of `codec`.
pub fn format_caps(codec: Codec, video: &VideoInfo) -> Option<gst::Caps> {
    let format = codec.format(video.format_info())?;
    Some(gst_video::VideoCapsBuilder::new().format(format).build())
}

/// What is lost where frames of a `decoded` video are encoded in the format of `encoded`.
pub fn losses(decoded: &VideoInfo, encoded: &VideoInfo) -> Option<String> {
    let (old, new) = (decoded.format_info(), encoded.format_info());
    let depth = |format: &VideoFormatInfo| format.depth().iter().copied().max().unwrap_or(0);
    // Shifts of the second component, the first of colour; grey has none.
    let shifts = |format: &VideoFormatInfo| {
        let (w, h) = (format.w_sub(), format.h_sub());
        (w.get(1).copied().unwrap_or(0), h.get(1).copied().unwrap_or(0))
    };
    let mut lost = Vec::new();
    if old.has_alpha() && !new.has_alpha() {
        lost.push("its transparency".to_owned());
    }
    let ((w, h), (new_w, new_h)) = (shifts(&old), shifts(&new));
    if !old.is_gray() && (new_w > w || new_h > h) {
        lost.push("half the resolution of its colours".to_owned());
    }
    if depth(&new) < depth(&old) {
        lost.push(format!("{} of its {} bits", depth(&old) - depth(&new), depth(&old)));
    }
    let (last, rest) = lost.split_last()?;
    let lost =
        if rest.is_empty() { last.clone() } else { format!("{} and {last}", rest.join(", ")) };
    Some(format!(
        "the video is {} and is encoded as {}, without {lost} (--codec ffv1 and an .mkv output may keep it)",
        old.name(),
        new.name()
    ))
}
