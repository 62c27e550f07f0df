// SPDX-License-Identifier: MPL-2.0

//! What GStreamer says about an input that cannot be read.

use std::path::Path;

use gst::glib;

/// The sentence for an error in reading `input`, for which a plugin may be `missing`.
pub fn about_input(input: &Path, error: &glib::Error, missing: Option<&str>) -> String {
    let input = input.display();
    if error.matches(gst::StreamError::TypeNotFound) || error.matches(gst::StreamError::WrongType) {
        return format!("{input}: not a media file that GStreamer knows");
    }
    match missing {
        Some(plugin) => format!("{input}: GStreamer has no {plugin}; install the plugin for it"),
        None => format!("{input}: {}", error.message().trim_end_matches('.')),
    }
}

/// The description of the plugin that `message` says is missing.
pub fn missing_plugin(message: &gst::Message) -> Option<String> {
    let structure = message.structure().filter(|lacking| lacking.name() == "missing-plugin")?;
    structure.get("name").ok()
}

/// Whether the error only says that data stopped flowing, as sources and demuxers do after another
/// element's error.
pub fn is_aftermath(message: &gst::Message) -> bool {
    let gst::MessageView::Error(error) = message.view() else { return false };
    error.error().matches(gst::StreamError::Failed)
        && error.debug().is_some_and(|debug| debug.contains("streaming stopped, reason"))
}
