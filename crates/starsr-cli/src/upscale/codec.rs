// SPDX-License-Identifier: MPL-2.0

//! What the video is encoded as.

use gst_video::{
    VideoColorRange, VideoColorimetry, VideoFormat, VideoFormatInfo, VideoInfo,
    VideoTransferFunction,
};

use crate::media::elements::is_available;

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

    /// Name of the encoder's factory.
    pub fn element(self) -> &'static str {
        match self {
            Self::H264 => "x264enc",
            Self::H265 => "x265enc",
            Self::Av1 => "av1enc",
            Self::Vp9 => "vp9enc",
            Self::Prores => "avenc_prores_ks",
            Self::Ffv1 => "avenc_ffv1",
        }
    }

    /// The default of `--quality` and the worst value.
    pub fn qualities(self) -> Option<(u32, u32)> {
        match self {
            Self::H264 => Some((18, 50)),
            Self::H265 => Some((20, 51)),
            Self::Av1 | Self::Vp9 => Some((24, 63)),
            Self::Prores | Self::Ffv1 => None,
        }
    }

    /// FFmpeg's bitstream filter that writes what `colors` say, for codecs whose encoder in GStreamer does
    /// not.
    pub fn color_filter(self, colors: &VideoColorimetry) -> Option<String> {
        let [primaries, transfer, matrix] =
            [colors.primaries().to_iso(), colors.transfer().to_iso(), colors.matrix().to_iso()];
        match self {
            Self::Av1 => {
                let is_full = colors.range() == VideoColorRange::Range0_255;
                let range = if is_full { "pc" } else { "tv" };
                Some(format!(
                    "av1_metadata=color_primaries={primaries}:transfer_characteristics={transfer}:matrix_coefficients={matrix}:color_range={range}"
                ))
            }
            Self::Prores => {
                // ProRes has no number for the transfers that are the same function as BT.709's, and FFmpeg
                // takes 0 for what ProRes does not know.
                let transfer = if matches!(transfer, 6 | 14 | 15) { 1 } else { transfer };
                let primaries =
                    if matches!(primaries, 1 | 5 | 6 | 9 | 11 | 12) { primaries } else { 0 };
                let matrix = if matches!(matrix, 1 | 6 | 9) { matrix } else { 0 };
                Some(format!(
                    "prores_metadata=color_primaries={primaries}:color_trc={transfer}:colorspace={matrix}"
                ))
            }
            Self::Vp9 => {
                let space = match matrix {
                    1 => "bt709",
                    5 => "bt601",
                    6 => "smpte170",
                    7 => "smpte240",
                    9 => "bt2020",
                    _ => return None,
                };
                Some(format!("vp9_metadata=color_space={space}"))
            }
            Self::H264 | Self::H265 | Self::Ffv1 => None,
        }
    }

    /// Whether [`Self::color_filter`] has something to write.
    pub fn needs_color_filter(self) -> bool {
        matches!(self, Self::Av1 | Self::Prores | Self::Vp9)
    }

    /// The format in which `video` is encoded, where it is not left to GStreamer, which takes the
    /// nearest one that the encoder knows.
    pub fn format(self, video: VideoFormatInfo) -> Option<VideoFormat> {
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
