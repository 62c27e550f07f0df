// SPDX-License-Identifier: MPL-2.0

//! One format from the first frame to the last: a muxer cannot change it midway, and a job must not
//! end because a broadcast does.

use gst::prelude::*;
use parking_lot::Mutex;

use super::elements::make;
use super::mending::{ContainerColors, complete_colors};

/// What stays as it is in the first frame.
const FIELDS: [&str; 6] =
    ["format", "width", "height", "pixel-aspect-ratio", "colorimetry", "chroma-site"];

/// Elements that convert what follows to the format of the first frame; they let everything through
/// until it changes.
pub struct Steady {
    pub elements: [gst::Element; 3],
}

impl Steady {
    pub fn new() -> Result<Self, String> {
        Ok(Self { elements: [make("videoconvert")?, make("videoscale")?, make("capsfilter")?] })
    }

    /// Completes the colours of the frames that leave `decoder`, holds the format of the first, and
    /// warns when it changes.
    pub fn watch(&self, decoder: &gst::Pad, container: ContainerColors) {
        let filter = self.elements[2].clone();
        let first: Mutex<Option<gst::Structure>> = Mutex::default();
        decoder.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
            let Some(gst::EventView::Caps(event)) = info.event().map(|event| event.view()) else {
                return gst::PadProbeReturn::Ok;
            };
            let stated = event.caps_owned();
            let colors = *container.lock();
            let completed = colors.and_then(|colors| complete_colors(&stated, &colors));
            let caps = completed.as_ref().unwrap_or(&stated);
            let Some(new) = caps.structure(0) else { return gst::PadProbeReturn::Ok };
            let mut first = first.lock();
            match first.as_ref() {
                None => {
                    let mut wanted = gst::Structure::new_empty(new.name());
                    for (field, value) in
                        new.iter().filter(|(name, _)| FIELDS.contains(&name.as_str()))
                    {
                        wanted.set_value(field, value.clone());
                    }
                    let mut caps = gst::Caps::new_empty();
                    caps.make_mut().append_structure(wanted);
                    filter.set_property("caps", caps);
                    *first = Some(new.to_owned());
                }
                Some(first) => warn_of_change(&filter, first, new),
            }
            if let Some(caps) = completed {
                info.data = Some(gst::PadProbeData::Event(gst::event::Caps::new(&caps)));
            }
            gst::PadProbeReturn::Ok
        });
    }
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
