// SPDX-License-Identifier: MPL-2.0

//! Elements of GStreamer by name.

use gst::prelude::*;

/// Whether GStreamer has the element.
pub fn is_available(factory: &str) -> bool {
    gst::ElementFactory::find(factory).is_some()
}

/// Creates an element, naming the package of a missing one.
pub fn make(factory: &str) -> Result<gst::Element, String> {
    gst::ElementFactory::make(factory).build().map_err(|_| {
        let set = match factory {
            "x264enc" => "ugly",
            "x265enc" | "av1enc" | "av1parse" | "h265parse" | "vp9parse" | "y4mdec" => "bad",
            "parsebin" | "decodebin" | "videoconvert" => "base",
            _ => "good",
        };
        let package = if factory.starts_with("avenc_") {
            "gstreamer1.0-libav".to_owned()
        } else {
            format!("gstreamer1.0-plugins-{set}")
        };
        format!("GStreamer's element {factory} is missing; install {package}")
    })
}

/// Brings elements to the state of the pipeline that they are in.
pub fn sync<'a>(elements: impl IntoIterator<Item = &'a gst::Element>) -> Result<(), String> {
    elements.into_iter().try_for_each(|element| element.sync_state_with_parent().map_err(text))
}

/// The words of an error.
pub fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// A pad in `bin` that swallows a stream.
pub fn nowhere(bin: &gst::Bin) -> Result<gst::Pad, String> {
    let sink = make("fakesink")?;
    sink.set_property("sync", false);
    sink.set_property("async", false);
    bin.add(&sink).map_err(text)?;
    sync([&sink])?;
    always_pad(&sink, "sink")
}

/// An element's pad that is always there.
pub fn always_pad(element: &gst::Element, name: &str) -> Result<gst::Pad, String> {
    element.static_pad(name).ok_or_else(|| format!("{} has no pad {name}", element.name()))
}

/// Replaces caps that pass `pad` by what `change` makes of them, where it makes something.
pub fn rewrite_caps(
    pad: &gst::Pad,
    change: impl Fn(&gst::CapsRef) -> Option<gst::Caps> + Send + Sync + 'static,
) {
    pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
        if let Some(gst::EventView::Caps(event)) = info.event().map(|event| event.view())
            && let Some(caps) = change(event.caps())
        {
            info.data = Some(gst::PadProbeData::Event(gst::event::Caps::new(&caps)));
        }
        gst::PadProbeReturn::Ok
    });
}
