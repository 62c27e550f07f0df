// SPDX-License-Identifier: MPL-2.0

//! What the tests, benchmarks and fuzz targets share: model bundles, stand-in models, buffers
//! between guard pages, waiting without a time limit, and an element between two pads of the test's
//! own (feature `element`).

// Whatever fails here fails the test that called it.
#![allow(clippy::missing_panics_doc, clippy::missing_errors_doc)]

pub mod documentation;
pub mod fixtures;
#[cfg(feature = "fuzz")]
pub mod fuzz;
pub mod guarded;
pub mod patience;
#[cfg(feature = "element")]
pub mod rig;
pub mod stand_in;
