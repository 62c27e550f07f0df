// SPDX-License-Identifier: MPL-2.0

//! The encoder of the upscaled video.

use gst::prelude::*;
use gst_video::{VideoFormatInfo, VideoInfo};

use super::args::{Args, set_property};
use super::codec::Codec;
use crate::media::elements::{always_pad, make, rewrite_caps};
use crate::media::streams::Container;

/// Threads that an encoder which has no choice of its own gets.
const THREADS: usize = 4;

/// Fails where `container` cannot hold `codec`, or where the options do not go with it.
pub fn check(codec: Codec, args: &Args, container: Container) -> Result<(), String> {
    let holds = match codec {
        Codec::H264 | Codec::H265 => true,
        Codec::Av1 | Codec::Vp9 => container != Container::Mov,
        Codec::Prores => container != Container::Mp4,
        Codec::Ffv1 => container == Container::Matroska,
    };
    let name = codec.name();
    if !holds {
        let others = match codec {
            Codec::Prores => ".mov or .mkv",
            Codec::Av1 | Codec::Vp9 => ".mp4 or .mkv",
            _ => ".mkv",
        };
        return Err(format!("{} cannot hold {name}; name the output {others}", container.name()));
    }
    match (codec.qualities(), args.quality) {
        (None, Some(_)) => return Err(format!("--quality does not go with {name}")),
        (Some((_, worst)), Some(quality)) if quality > worst => {
            return Err(format!("--quality: the worst that {name} takes is {worst}"));
        }
        _ => {}
    }
    if args.preset.is_some() && !matches!(codec, Codec::H264 | Codec::H265) {
        return Err(format!("--preset does not go with {name}"));
    }
    make(codec.element()).map(drop)
}

/// The encoder of `codec`, and what packs its stream for the muxer.
fn encoder(codec: Codec, args: &Args) -> Result<Vec<gst::Element>, String> {
    let encoder = make(codec.element())?;
    let quality = args.quality.or(codec.qualities().map(|(default, _)| default)).unwrap_or(0);
    let set = |name: &str, value: &str| set_property(&encoder, name, value);
    match codec {
        Codec::H264 => {
            set("pass", "qual")?;
            set("quantizer", &quality.to_string())?;
            // Without this x264enc caps the bit rate at its default of 2 Mbit/s even at
            // constant quality.
            set("vbv-buf-capacity", "0")?;
        }
        Codec::H265 => {
            set("option-string", &format!("crf={quality}:repeat-headers=1:info=0"))?;
            name_a_rate(&encoder)?;
            drop_extra_headers(&always_pad(&encoder, "src")?);
        }
        Codec::Av1 => {
            set("end-usage", "q")?;
            // av1enc has no property for the level of constant quality.
            set("min-quantizer", &quality.to_string())?;
            set("max-quantizer", &quality.to_string())?;
            set("cpu-used", "6")?;
            set("row-mt", "true")?;
            set("threads", &THREADS.to_string())?;
        }
        Codec::Vp9 => {
            set("end-usage", "cq")?;
            set("cq-level", &quality.to_string())?;
            set("target-bitrate", "2000000000")?;
            set("deadline", "1000000")?;
            set("cpu-used", "4")?;
            set("row-mt", "true")?;
            set("threads", &THREADS.to_string())?;
        }
        Codec::Prores => {}
        Codec::Ffv1 => {
            set("slices", "4")?;
            set("slicecrc", "1")?;
        }
    }
    if let Some(preset) = &args.preset {
        set("speed-preset", preset).map_err(|error| error.replace("speed-preset", "--preset"))?;
    }
    let parser = match codec {
        Codec::H265 => Some("h265parse"),
        Codec::Av1 => Some("av1parse"),
        Codec::Vp9 => Some("vp9parse"),
        _ => None,
    };
    [Ok(encoder)].into_iter().chain(parser.map(make)).collect()
}

/// Takes the headers out that `x265enc` puts in front of those which x265 repeats: theirs end in bytes
/// that nothing has set, so that no two files would be the same.
fn drop_extra_headers(outlet: &gst::Pad) {
    outlet.add_probe(gst::PadProbeType::BUFFER, |_, info| {
        if let Some(gst::PadProbeData::Buffer(buffer)) = &mut info.data
            && !buffer.flags().contains(gst::BufferFlags::DELTA_UNIT)
        {
            let extra = buffer.map_readable().ok().and_then(|bytes| extra_headers(&bytes));
            let whole = gst::BufferCopyFlags::all() - gst::BufferCopyFlags::DEEP;
            if let Some(mut rest) = extra.and_then(|at| buffer.copy_region(whole, at..).ok()) {
                // A part that begins later gets no times.
                let frame = rest.make_mut();
                frame.set_pts(buffer.pts());
                frame.set_dts(buffer.dts());
                frame.set_duration(buffer.duration());
                *buffer = rest;
            }
        }
        gst::PadProbeReturn::Ok
    });
}

/// Where the last headers of a key frame begin, if it has more than one copy.
fn extra_headers(bytes: &[u8]) -> Option<usize> {
    // A start code and a video parameter set, of layer 0.
    const BEGIN: [u8; 6] = [0, 0, 0, 1, 0x40, 1];
    let places = bytes.windows(BEGIN.len()).enumerate().filter(|(_, at)| *at == BEGIN);
    places.map(|(place, _)| place).skip(1).last()
}

/// Lets `encoder`, which takes no variable frame rate, have one for its rate control. What leaves it
/// still says that the rate varies, and frames keep their times.
fn name_a_rate(encoder: &gst::Element) -> Result<(), String> {
    let rename = |pad: &gst::Pad, from: gst::Fraction, to: gst::Fraction| {
        rewrite_caps(pad, move |caps| {
            let mut caps = caps.to_owned();
            let structure = caps.make_mut().structure_mut(0)?;
            if structure.get("framerate") != Ok(from) {
                return None;
            }
            structure.set("framerate", to);
            Some(caps)
        });
    };
    // No video has this rate by itself.
    let (variable, stand_in) = (gst::Fraction::new(0, 1), gst::Fraction::new(25_000, 1_001));
    rename(&always_pad(encoder, "sink")?, variable, stand_in);
    rename(&always_pad(encoder, "src")?, stand_in, variable);
    Ok(())
}

/// The elements from raw frames to the muxer's pad: those of `--encoder`, or of `codec`.
pub fn build(args: &Args, codec: Codec) -> Result<Vec<gst::Element>, String> {
    match &args.encoder {
        Some(description) => gst::parse::bin_from_description(description, true)
            .map(|bin| vec![bin.upcast()])
            .map_err(|error| format!("--encoder: {}", error.message())),
        None => encoder(codec, args),
    }
}

/// Caps for frames of a decoded `video` in front of an encoder of `codec`.
pub fn format_caps(codec: Codec, video: &VideoInfo) -> Option<gst::Caps> {
    let format = codec.format(video.format_info())?;
    let caps = gst_video::VideoCapsBuilder::new().format(format);
    if VideoFormatInfo::from_format(format).w_sub().iter().all(|sub| *sub == 0) {
        return Some(caps.build());
    }
    // Where players look for chroma: GStreamer leaves it open, or from 1.26 on takes another site.
    Some(caps.field("chroma-site", "mpeg2").build())
}

/// What is lost where frames of a `decoded` video, which has transparency or not, are encoded in the
/// format of `encoded`.
pub fn losses(decoded: &VideoInfo, has_alpha: bool, encoded: &VideoInfo) -> Option<String> {
    let (old, new) = (decoded.format_info(), encoded.format_info());
    let depth = |format: &VideoFormatInfo| format.depth().iter().copied().max().unwrap_or(0);
    // Shifts of the second component, the first of colour; grey has none.
    let shifts = |format: &VideoFormatInfo| {
        let (w, h) = (format.w_sub(), format.h_sub());
        (w.get(1).copied().unwrap_or(0), h.get(1).copied().unwrap_or(0))
    };
    let mut lost = Vec::new();
    if has_alpha && !new.has_alpha() {
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
        "the video is {} and is encoded as {}, without {lost} (numbered .png pictures, or --codec ffv1 with an .mkv output, may keep it)",
        old.name(),
        new.name()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_headers_stay() {
        let headers = [0, 0, 0, 1, 0x40, 1, 12, 0, 0, 0, 1, 0x42, 1, 1];
        let slice = [0, 0, 0, 1, 40, 1, 172];
        let once = [&headers[..], &slice].concat();
        assert_eq!(extra_headers(&once), None);
        let junk = [0x44, 1, 99, 99];
        let twice = [&headers[..], &junk, &headers, &slice].concat();
        assert_eq!(extra_headers(&twice), Some(headers.len() + junk.len()));
        for bytes in [&[][..], &[0, 0, 0, 1], &slice] {
            assert_eq!(extra_headers(bytes), None);
        }
    }
}
