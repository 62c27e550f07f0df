// SPDX-License-Identifier: MPL-2.0

//! Running a bundle's graphs with ONNX Runtime. No other module uses types of ort.

mod autoencoder;
mod carried;
mod concat;
mod device_memory;
mod direct;
mod engine;
mod ep_library;
mod from_library;
mod graph;
mod library;
mod modulation;
mod options;
mod precision;
mod predictor;
mod provider;
mod runner;
mod tensor;
mod text_encoder;

pub use crate::names::{Precision, Provider};
pub use engine::Engine;
pub use library::{Level, Logger, set_logger};
pub use options::Options;
pub use precision::has_fast_integers;
pub use runner::GraphTimes;
