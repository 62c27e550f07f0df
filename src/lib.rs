// SPDX-License-Identifier: MPL-2.0

//! GStreamer element `starsr`: upscales low-quality video with STAR (arXiv 2501.02976), a text-to-video diffusion
//! model adapted to video super-resolution.
//!
//! [`upscaler`] is the whole of it without GStreamer: frames in, upscaled frames out later. The element, which
//! applications make by its name `starsr`, drives it; [`runtime`] gives it a [`bundle`]'s model through ONNX Runtime.

use gst::glib;

pub mod bundle;
pub mod cancel;
pub mod canvas;
pub mod color;
pub mod diffusion;
pub mod error;
pub mod model;
pub mod parallel;
pub mod runtime;
pub mod scene;
pub mod text;
pub mod upscaler;
pub mod window;

mod starsr;

fn plugin_init(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    starsr::register(plugin)
}

gst::plugin_define!(
    starsr,
    env!("CARGO_PKG_DESCRIPTION"),
    plugin_init,
    concat!(env!("CARGO_PKG_VERSION"), "-", env!("COMMIT_ID")),
    "MPL",
    env!("CARGO_PKG_NAME"),
    env!("CARGO_PKG_NAME"),
    env!("CARGO_PKG_REPOSITORY"),
    env!("BUILD_REL_DATE")
);
