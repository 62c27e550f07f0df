// SPDX-License-Identifier: MPL-2.0

//! Where GStreamer's demuxers state half of the truth: times and colours.

use std::sync::Arc;

use gst::prelude::*;
use gst_video::{VideoColorMatrix, VideoColorPrimaries, VideoColorRange, VideoTransferFunction};
use parking_lot::Mutex;

use super::elements::rewrite_caps;

/// How much earlier than the first block of a Matroska file a later one may be, such as the
/// beginning of the sound.
const EARLIER: gst::ClockTime = gst::ClockTime::SECOND;

/// What the containers say about the colours of the video.
pub type ContainerColors = Arc<Mutex<Option<gst_video::VideoColorimetry>>>;

/// Sees to the demuxers that `parser` will plug.
pub fn mend_demuxers(parser: &gst::Element) -> ContainerColors {
    let colors = ContainerColors::default();
    let start: Arc<Mutex<Option<gst::ClockTime>>> = Arc::default();
    let Some(parser) = parser.downcast_ref::<gst::Bin>() else { return colors };
    let (found, first) = (colors.clone(), start);
    parser.connect_deep_element_added(move |_, _, element| {
        let factory = element.factory().map(|factory| factory.name());
        match factory.as_deref() {
            Some("qtdemux") => {
                let found = found.clone();
                element.connect_pad_added(move |_, pad| prefer_bitstream(pad, found.clone()));
            }
            Some("matroskademux") => {
                let first = first.clone();
                element.connect_pad_added(move |_, pad| hold_start(pad, first.clone(), EARLIER));
            }
            Some("flvdemux") => {
                let first = first.clone();
                let same = gst::ClockTime::ZERO;
                element.connect_pad_added(move |_, pad| hold_start(pad, first.clone(), same));
            }
            _ => {}
        }
    });
    colors
}

/// Takes the colours of H.264 and H.265 out of the caps on `pad` and keeps them in `found`: qtdemux
/// drops the range, and parsers believe the caps rather than the bitstream.
fn prefer_bitstream(pad: &gst::Pad, found: ContainerColors) {
    rewrite_caps(pad, move |caps| {
        let structure = caps.structure(0)?;
        if !matches!(structure.name().as_str(), "video/x-h264" | "video/x-h265") {
            return None;
        }
        *found.lock() = structure.get::<&str>("colorimetry").ok()?.parse().ok();
        let mut caps = caps.to_owned();
        for structure in caps.make_mut().iter_mut() {
            structure.remove_field("colorimetry");
        }
        Some(caps)
    });
}

/// Lets all segments begin `earlier` than the first one of all streams: matroskademux begins anew
/// when a block turns out to be earlier, as flvdemux does from GStreamer 1.26 on, and then the first
/// frame lies too early against all others.
fn hold_start(pad: &gst::Pad, first: Arc<Mutex<Option<gst::ClockTime>>>, earlier: gst::ClockTime) {
    pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
        if let Some(gst::EventView::Segment(event)) = info.event().map(|event| event.view())
            && let Some(segment) = event.segment().downcast_ref::<gst::ClockTime>()
            && let Some((start, time)) = segment.start().zip(segment.time())
            && (time == gst::ClockTime::ZERO || time == start)
        {
            let first = *first.lock().get_or_insert(start.saturating_sub(earlier));
            let mut segment = segment.clone();
            segment.set_start(first);
            segment.set_position(first);
            // Matroska's begins at zero, FLV's where its time stamps do.
            if time > gst::ClockTime::ZERO {
                segment.set_time(first);
            }
            info.data = Some(gst::PadProbeData::Event(gst::event::Segment::new(&segment)));
        }
        gst::PadProbeReturn::Ok
    });
}

/// Leaves all of the colours open where `video` states the usual range alone, as that of FFmpeg 7 does:
/// what is right for its size applies then.
pub fn forget_bare_range(video: &mut gst::StructureRef) {
    if video.get::<&str>("colorimetry") == Ok("2:0:0:0") {
        video.remove_field("colorimetry");
    }
}

/// `caps` of decoded video with what they leave open about colours taken from the container.
pub fn complete_colors(
    caps: &gst::CapsRef,
    container: &gst_video::VideoColorimetry,
) -> Option<gst::Caps> {
    let structure = caps.structure(0)?;
    let stated = structure.get::<&str>("colorimetry").ok().and_then(|colors| colors.parse().ok());
    let stated: gst_video::VideoColorimetry = stated.unwrap_or_else(|| {
        gst_video::VideoColorimetry::new(
            VideoColorRange::Unknown,
            VideoColorMatrix::Unknown,
            VideoTransferFunction::Unknown,
            VideoColorPrimaries::Unknown,
        )
    });
    fn known<T: PartialEq>(stated: T, unknown: T, other: T) -> T {
        if stated == unknown { other } else { stated }
    }
    let complete = gst_video::VideoColorimetry::new(
        known(stated.range(), VideoColorRange::Unknown, container.range()),
        known(stated.matrix(), VideoColorMatrix::Unknown, container.matrix()),
        known(stated.transfer(), VideoTransferFunction::Unknown, container.transfer()),
        known(stated.primaries(), VideoColorPrimaries::Unknown, container.primaries()),
    );
    let mut caps = caps.to_owned();
    caps.make_mut().structure_mut(0)?.set("colorimetry", complete.to_string());
    Some(caps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_alone_says_nothing() {
        gst::init().unwrap();
        for (colors, stays) in [("2:0:0:0", false), ("1:0:0:0", true), ("bt601", true)] {
            let mut video =
                gst::Structure::builder("video/x-raw").field("colorimetry", colors).build();
            forget_bare_range(&mut video);
            assert_eq!(video.has_field("colorimetry"), stays, "{colors}");
        }
    }
}
