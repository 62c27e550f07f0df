// SPDX-License-Identifier: MPL-2.0

//! What serialized events mean for the frames inside.

use gst::prelude::*;

/// Name of the serialized custom event with which upstream says that a scene begins with the next
/// frame.
const SCENE_CUT: &str = "starsr-scene-cut";

/// Name of the serialized custom event with which upstream states the number of the next frame.
const FRAME_NUMBER: &str = "starsr-frame-number";

/// The number that `event` states for the next frame.
pub(super) fn frame_number(event: &gst::EventRef) -> Option<u64> {
    event.structure().filter(|structure| structure.name() == FRAME_NUMBER)?.get("number").ok()
}

/// Whether a scene begins behind `event`.
pub(in super::super) fn is_scene_cut(event: &gst::EventRef) -> bool {
    event.has_name(SCENE_CUT)
}

/// Whether all frames of `segment`, the present one, have to leave before `event`.
pub(in super::super) fn ends_clip(event: &gst::EventRef, segment: Option<&gst::Segment>) -> bool {
    use gst::EventView;

    match event.view() {
        EventView::Segment(next) => {
            segment.map(without_position) != Some(without_position(next.segment()))
        }
        EventView::StreamStart(_)
        | EventView::Eos(_)
        | EventView::SegmentDone(_)
        | EventView::StreamGroupDone(_)
        | EventView::Gap(_) => true,
        _ => is_scene_cut(event) || is_still(event),
    }
}

/// Whether `event` announces a still picture, after which nothing comes for a while.
fn is_still(event: &gst::EventRef) -> bool {
    gst_video::StillFrameEvent::parse(event).is_ok_and(|still| still.in_still)
}

/// `segment` without its position, which moves while it is played.
fn without_position(segment: &gst::Segment) -> gst::Segment {
    let mut segment = segment.clone();
    segment.set_position(gst::GenericFormattedValue::none_for_format(segment.format()));
    segment
}
