// SPDX-License-Identifier: MPL-2.0

//! What a user may set of how graphs are run.

use std::path::PathBuf;

use crate::names::{Precision, Provider};

/// How the graphs are run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Options {
    /// The ONNX Runtime library; `None` looks for it.
    pub library: Option<PathBuf>,
    /// Folders in which the library may lie, in this order.
    pub near: Vec<PathBuf>,
    /// What computes. A named provider must work; only [`Provider::Auto`] falls back.
    pub provider: Provider,
    /// Name of the provider, for [`Provider::Plugin`] only: `OpenVINOExecutionProvider`, or
    /// `openvino` in any case. `None` takes the only one of the library.
    pub provider_name: Option<String>,
    /// The library that holds the provider, for those that have one of their own; `None` looks for
    /// it.
    pub provider_library: Option<PathBuf>,
    /// Options that are passed to the provider, with their values; they replace this crate's.
    pub provider_options: Vec<(String, String)>,
    /// Number of the GPU, or of the device among those of a library's provider, GPUs first.
    pub device: u32,
    /// Folder in which TensorRT keeps its engines between runs; created where it is missing.
    pub cache_dir: Option<PathBuf>,
    /// Bytes of the GPU's memory that the graphs may take with their weights; `None` is what is
    /// free.
    pub device_memory: Option<u64>,
    /// Share of the weights that were trained for detail, 0..=1, in a bundle that has them; `None`
    /// is the bundle's default.
    pub detail: Option<f32>,
    /// What the graphs compute in. A named precision must be possible; only [`Precision::Auto`]
    /// chooses.
    pub precision: Precision,
    /// Threads on the CPU; 0 is one for each core.
    pub threads: usize,
}
