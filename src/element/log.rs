// SPDX-License-Identifier: MPL-2.0

//! The debug categories: `starsr` for the element, `starsr-onnxruntime` for ONNX Runtime's own
//! messages.

use std::sync::LazyLock;

use starsr::runtime::Level;

/// What the element does.
pub(super) static CAT: LazyLock<gst::DebugCategory> =
    LazyLock::new(|| category("starsr", "Video upscaling with STAR"));

static RUNTIME_CAT: LazyLock<gst::DebugCategory> =
    LazyLock::new(|| category("starsr-onnxruntime", "ONNX Runtime in starsr"));

fn category(name: &str, description: &str) -> gst::DebugCategory {
    gst::DebugCategory::new(name, gst::DebugColorFlags::empty(), Some(description))
}

/// How much ONNX Runtime should log.
pub(super) fn runtime_level() -> Level {
    match RUNTIME_CAT.threshold() {
        gst::DebugLevel::None | gst::DebugLevel::Error => Level::Error,
        gst::DebugLevel::Warning | gst::DebugLevel::Fixme => Level::Warning,
        gst::DebugLevel::Info => Level::Info,
        _ => Level::Debug,
    }
}

/// Logs a message of ONNX Runtime.
pub(super) fn runtime(level: Level, message: &str) {
    match level {
        Level::Error => gst::error!(RUNTIME_CAT, "{message}"),
        Level::Warning => gst::warning!(RUNTIME_CAT, "{message}"),
        Level::Info => gst::info!(RUNTIME_CAT, "{message}"),
        Level::Debug => gst::debug!(RUNTIME_CAT, "{message}"),
    }
}
