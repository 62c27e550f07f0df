// SPDX-License-Identifier: MPL-2.0

//! GStreamer element `starsr`: upscales low-quality video with STAR (arXiv 2501.02976), a
//! text-to-video diffusion model adapted to video super-resolution.
//!
//! Applications create the element by its name. The crate [`starsr`] does the work and knows
//! nothing of GStreamer.

use gst::glib;

mod element;
mod official;

pub use element::planning;

#[cfg_attr(test, allow(dead_code))]
fn plugin_init(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    element::register(plugin)?;
    official::register(plugin)
}

// The test kit brings the plugin into the unit tests, and its symbols may exist only once.
#[cfg(not(test))]
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
