// SPDX-License-Identifier: MPL-2.0

//! Running a bundle's graphs with ONNX Runtime. The only place with ort types.

mod checks;
mod engine;
mod graphs;
mod library;
mod providers;
mod session;
mod step;
mod tensor;
mod text;

pub use engine::Engine;
pub use library::{Level, Logger, set_logger};
pub use providers::{Options, Provider};
pub use session::Stats;

/// The text of an error of ort on one line.
fn one_line<R>(e: &ort::Error<R>) -> String {
    e.message().split_whitespace().collect::<Vec<_>>().join(" ")
}
