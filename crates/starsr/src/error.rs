// SPDX-License-Identifier: MPL-2.0

//! The one error type of the crate, free of GStreamer and ONNX Runtime types.

use std::path::PathBuf;

/// What went wrong, to what, and what to do about it. `Display` is a sentence for the user.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No ONNX Runtime library was found or it could not be opened.
    #[error(
        "ONNX Runtime could not be loaded: {reason}. Set the property ort-library or the variable ORT_DYLIB_PATH \
         to libonnxruntime.so, or run `make build`, which puts it beside the plugin"
    )]
    LibraryMissing {
        /// What was tried and why each attempt failed.
        reason: String,
    },
    /// The library is there but is not one this plugin can use.
    #[error(
        "{} is ONNX Runtime {found}, but starsr needs {needed} or newer. Install a newer onnxruntime and point ort-library at it",
        path.display()
    )]
    LibraryVersion {
        /// The library that was opened.
        path: PathBuf,
        /// The version it reports.
        found: String,
        /// The lowest version accepted.
        needed: String,
    },
    /// Another library than the one asked for is already in use, and a process can have only one.
    #[error(
        "this process already uses the ONNX Runtime in {}, so {} cannot be loaded. \
         Give every starsr element the same ort-library, or restart the application",
        loaded.display(), asked.display()
    )]
    LibraryInUse {
        /// The library in use.
        loaded: PathBuf,
        /// The library asked for.
        asked: PathBuf,
    },
    /// An execution provider that was asked for by name cannot be had.
    #[error(
        "execution provider {provider} is not available: {reason}. Use execution-provider=auto to fall back to the CPU"
    )]
    Provider {
        /// The provider's nick, for instance `cuda`.
        provider: String,
        /// The cause as reported by ONNX Runtime.
        reason: String,
    },
    /// The model bundle is missing, incomplete, altered or not understood.
    #[error("model bundle: {}: {field}: {reason}", file.display())]
    Bundle {
        /// The file or folder concerned.
        file: PathBuf,
        /// The manifest key, tensor or graph concerned.
        field: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A setting has a value that the bundle or the input does not allow.
    #[error("{setting}: {reason}")]
    Setting {
        /// The property's name.
        setting: &'static str,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// A frame or a call that does not fit what came before it.
    #[error("{what}: {reason}")]
    Input {
        /// The frame or the call.
        what: String,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// A graph failed while it ran.
    #[error("{graph} failed: {reason}")]
    Inference {
        /// The graph's role in the bundle.
        graph: String,
        /// The cause as reported by ONNX Runtime.
        reason: String,
    },
    /// A graph needs more memory than there is.
    #[error(
        "{graph} failed: {reason}. There is not enough memory: lower window-length, or give it smaller frames"
    )]
    Memory {
        /// The graph's role in the bundle.
        graph: String,
        /// The cause as reported by ONNX Runtime.
        reason: String,
    },
    /// The running work was cancelled on request.
    #[error("cancelled")]
    Cancelled,
}

/// Result with the crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
