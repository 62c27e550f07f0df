// SPDX-License-Identifier: MPL-2.0

//! One format from the first frame to the last: a muxer cannot change it midway, and a job must not
//! end because a broadcast does.

use std::sync::Arc;

use gst::prelude::*;
use gst_video::VideoBufferFlags;
use gst_video::prelude::*;
use parking_lot::Mutex;

use super::args::Deinterlace;
use crate::media::elements::{make, rewrite_caps};
use crate::media::hdr::Hdr;
use crate::media::mending::{ContainerColors, complete_colors, forget_bare_range};

/// What stays as it is in the first frame.
const FIELDS: [&str; 6] =
    ["format", "width", "height", "pixel-aspect-ratio", "colorimetry", "chroma-site"];

/// How long a still picture is shown in a video.
const STILL: gst::ClockTime = gst::ClockTime::from_mseconds(40);

/// Elements that convert what follows to the format of the first frame; they let everything through
/// until it changes.
#[derive(Clone)]
pub struct Steady {
    deinterlace: gst::Element,
    /// What is made of interlaced video, where it is wanted.
    deinterlaces: Option<Deinterlace>,
    hdr: Option<Hdr>,
    scale: [gst::Element; 3],
    seen: Arc<Mutex<Seen>>,
}

/// What has come from the decoder.
#[derive(Default)]
struct Seen {
    /// The caps of the first frame.
    first: Option<gst::Structure>,
    /// Whether there was a frame.
    frame: bool,
    /// Whether frames are interlaced where the caps do not say so.
    becomes_interlaced: bool,
}

impl Steady {
    /// With `deinterlaces`, interlaced video is deinterlaced from the first frame on. The caps get what
    /// they lack of `hdr`.
    pub fn new(deinterlaces: Option<Deinterlace>, hdr: Option<&Hdr>) -> Result<Self, String> {
        let deinterlace = make("deinterlace")?;
        let scale = [make("videoconvert")?, make("videoscale")?, make("capsfilter")?];
        let hdr = hdr.cloned();
        Ok(Self { deinterlace, deinterlaces, hdr, scale, seen: Arc::default() })
    }

    /// The elements, in their order.
    pub fn elements(&self) -> Result<Vec<gst::Element>, String> {
        Ok([vec![make("videoconvert")?, self.deinterlace.clone()], self.scale.to_vec()].concat())
    }

    /// Completes the colours of the frames that leave `decoder`, holds the format of the first, and
    /// warns when it changes.
    pub fn watch(&self, decoder: &gst::Pad, container: ContainerColors) {
        let this = self.clone();
        rewrite_caps(decoder, move |caps| Some(this.hold(caps.to_owned(), *container.lock())));
        let this = self.clone();
        decoder.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
            if let Some(buffer) = info.buffer_mut() {
                this.look(pad, buffer);
                // A still picture; MP4 does not hold what is shown for no time.
                if buffer.duration().is_none() && is_still(pad) {
                    buffer.make_mut().set_duration(STILL);
                }
            }
            gst::PadProbeReturn::Ok
        });
    }

    /// The caps that replace `caps`.
    fn hold(&self, mut caps: gst::Caps, colors: Option<gst_video::VideoColorimetry>) -> gst::Caps {
        if let Some(completed) = colors.and_then(|colors| complete_colors(&caps, &colors)) {
            caps = completed;
        }
        let mut seen = self.seen.lock();
        if let Some(structure) = caps.make_mut().structure_mut(0) {
            forget_bare_range(structure);
            if let Some(hdr) = &self.hdr {
                hdr.complete(structure);
            }
            if seen.becomes_interlaced {
                structure.set("interlace-mode", "mixed");
            }
            // Frames have their times; muxers take no new rate.
            if let Some(rate) = seen.first.as_ref().and_then(|first| first.value("framerate").ok())
            {
                structure.set_value("framerate", rate.clone());
            }
        }
        let Some(new) = caps.structure(0) else { return caps };
        let filter = &self.scale[2];
        if let Some(first) = &seen.first {
            warn_of_change(filter, first, new);
        } else {
            // Set before the element has caps, as it takes no change in time later. One frame from
            // each where the video becomes interlaced midway; starsr refuses what is so at first.
            let is_progressive = !is_interlaced(new);
            if !is_progressive && self.deinterlaces.is_none() {
                self.deinterlace.set_property_from_str("mode", "disabled");
            } else if is_progressive || self.deinterlaces == Some(Deinterlace::Single) {
                self.deinterlace.set_property_from_str("fields", "top");
            }
            let mut held = gst::Structure::new_empty(new.name());
            for (field, value) in new.iter().filter(|(name, _)| FIELDS.contains(&name.as_str())) {
                held.set_value(field, value.clone());
            }
            let mut wanted = gst::Caps::new_empty();
            wanted.make_mut().append_structure(held);
            filter.set_property("caps", wanted);
            seen.first = Some(new.to_owned());
        }
        caps
    }

    /// Notices that `buffer`, about to leave `decoder`, is interlaced where the caps do not say so:
    /// decoders of MPEG-2 keep what the caps said first.
    fn look(&self, decoder: &gst::Pad, buffer: &gst::BufferRef) {
        let mut seen = self.seen.lock();
        let is_first = !std::mem::replace(&mut seen.frame, true);
        if seen.becomes_interlaced || !buffer.video_flags().contains(VideoBufferFlags::INTERLACED) {
            return;
        }
        let Some(caps) = decoder.current_caps() else { return };
        if caps.structure(0).is_none_or(is_interlaced) {
            return;
        }
        seen.becomes_interlaced = true;
        drop(seen);
        if !is_first {
            gst::element_warning!(
                self.deinterlace,
                gst::StreamError::Format,
                ("the video becomes interlaced midway: it is deinterlaced from there on")
            );
        } else if self.deinterlaces.is_none() {
            gst::element_error!(
                self.deinterlace,
                gst::StreamError::Format,
                ("the video is interlaced, and has to be deinterlaced first")
            );
        }
        // The probe above changes the mode in it.
        decoder.push_event(gst::event::Caps::new(&caps));
    }
}

fn is_interlaced(caps: &gst::StructureRef) -> bool {
    caps.get::<&str>("interlace-mode").is_ok_and(|mode| mode != "progressive")
}

/// Whether the frames that leave `decoder` have no rate.
fn is_still(decoder: &gst::Pad) -> bool {
    let rate = decoder.current_caps().and_then(|caps| {
        caps.structure(0).and_then(|caps| caps.get::<gst::Fraction>("framerate").ok())
    });
    rate.is_none_or(|rate| rate.numer() == 0)
}

fn warn_of_change(filter: &gst::Element, first: &gst::Structure, new: &gst::StructureRef) {
    let shape = |structure: &gst::StructureRef| {
        let size = |name| structure.get::<i32>(name).unwrap_or_default();
        let par = structure.get::<gst::Fraction>("pixel-aspect-ratio");
        let par = par.map_or((1, 1), |par| (par.numer(), par.denom()));
        (size("width"), size("height"), par)
    };
    let (old, new) = (shape(first), shape(new));
    if old != new {
        let words = |(width, height, (x, y)): (i32, i32, (i32, i32))| {
            format!("{width}x{height}, pixels {x}:{y}")
        };
        gst::element_warning!(
            filter,
            gst::StreamError::Format,
            (
                "the video changes midway from {} to {}: what follows is scaled to the former",
                words(old),
                words(new)
            )
        );
    }
}
