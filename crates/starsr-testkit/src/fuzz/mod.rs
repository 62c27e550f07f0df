// SPDX-License-Identifier: MPL-2.0

//! What the fuzz targets do with their input. They are run by cargo-fuzz (`make fuzz`), and by
//! `tests/element/fuzz.rs` on the corpus.

pub mod caps;
pub mod events;
pub mod frames;
pub mod manifest;

use std::sync::OnceLock;

use gst::prelude::*;

use crate::rig;

/// Keeps an element with the tiny bundle playing, whose sessions the others share, so that starting
/// one takes no time.
fn keep_sessions() {
    static KEPT: OnceLock<gst::Element> = OnceLock::new();
    KEPT.get_or_init(|| {
        let element = rig::starsr(1, 0);
        element.set_state(gst::State::Paused).unwrap();
        element
    });
}

/// A format by its number.
fn format(number: u8) -> gst_video::VideoFormat {
    static FORMATS: OnceLock<Vec<gst_video::VideoFormat>> = OnceLock::new();
    let formats = FORMATS.get_or_init(|| gst_video::VideoFormat::iter_raw().collect());
    formats[usize::from(number) % formats.len()]
}

/// The errors on the bus. GStreamer's bindings turn a panic in the element into an error, which
/// fails the test.
fn errors(rig: &rig::Rig) -> Vec<String> {
    let errors = rig.errors();
    assert!(!errors.iter().any(|e| e.to_lowercase().contains("panic")), "{errors:?}");
    errors
}
