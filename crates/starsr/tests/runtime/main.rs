// SPDX-License-Identifier: MPL-2.0

//! The engine on ONNX Runtime, with tiny bundles and with nano.
//! Needs ONNX Runtime: `ORT_DYLIB_PATH`, or beside the test's executable.

mod cogvideox;
mod conditioning;
mod direct;
mod engine;
mod seams;
mod sharing;
