// SPDX-License-Identifier: MPL-2.0

//! Elements of GStreamer by name.

/// Creates an element, naming the package of a missing one.
pub fn make(factory: &str) -> Result<gst::Element, String> {
    gst::ElementFactory::make(factory).build().map_err(|_| {
        let set = match factory {
            "x264enc" => "ugly",
            "parsebin" | "decodebin" | "videoconvert" => "base",
            _ => "good",
        };
        format!("GStreamer's element {factory} is missing; install gstreamer1.0-plugins-{set}")
    })
}
