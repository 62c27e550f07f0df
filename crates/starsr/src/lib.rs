// SPDX-License-Identifier: MPL-2.0

//! Video super-resolution with STAR ([arXiv 2501.02976](https://arxiv.org/abs/2501.02976)), a
//! text-to-video diffusion model adapted to video super-resolution: frames in, larger frames out.
//!
//! An [`Upscaler`] takes frames with [`Upscaler::send_frame`] and gives as many back with
//! [`Upscaler::receive_frame`], some frames later. It runs a [`model::Model`]: a [`Bundle`] on ONNX
//! Runtime, which is a [`runtime::Engine`], or any other.
//!
//! ```
//! use ndarray::Array3;
//! use starsr::runtime::{Engine, Options};
//! use starsr::{Bundle, Cancel, Received, Settings, Size, Upscaler};
//!
//! # let folder = starsr_testkit::fixtures::tiny();
//! # fn show(frame: Array3<f32>) { assert_eq!(frame.dim(), (3, 64, 96)) }
//! let bundle = Bundle::open(&folder)?;
//! let cancel = Cancel::default();
//! # /*
//! let engine = Engine::load(&bundle, &Options::default(), &cancel)?;
//! # */
//! # let engine = starsr_testkit::stand_in::Plain;
//!
//! let size = Size::new(24, 16);
//! let settings = Settings::default();
//! let mut upscaler =
//!     Upscaler::new(Box::new(engine), bundle.manifest(), &settings, size, cancel)?;
//! for number in 0..10 {
//!     let frame = Array3::from_elem((3, size.height, size.width), 0.5); // RGB in [0,1]
//!     upscaler.send_frame(number, frame)?;
//!     while let Received::Frame(frame) = upscaler.receive_frame()? {
//!         show(frame); // 96x64
//!     }
//! }
//! upscaler.flush();
//! while let Received::Frame(frame) = upscaler.receive_frame()? {
//!     show(frame);
//! }
//! # assert_eq!(upscaler.stats().frames_out, 10);
//! # Ok::<(), starsr::Error>(())
//! ```

#![deny(missing_docs)]

mod buffers;
pub mod bundle;
mod cancel;
mod error;
mod machine;
pub mod model;
mod names;
pub mod runtime;
pub mod scene;
pub mod text;
pub mod upscaler;

// The parts of the upscaler, public for this project's tests and benchmarks. What users need of
// them is exported by `bundle`, `upscaler` and the root.
#[doc(hidden)]
pub mod color;
#[doc(hidden)]
pub mod diffusion;
#[doc(hidden)]
pub mod geometry;
#[doc(hidden)]
pub mod parallel;
#[doc(hidden)]
pub mod windows;

pub use bundle::Bundle;
pub use cancel::Cancel;
pub use error::{Cause, Error, Result};
pub use geometry::{Size, upscale};
pub use names::Setting;
pub use upscaler::{ReadAhead, Received, Settings, StageTimes, TruncatedTokens, Upscaler};
