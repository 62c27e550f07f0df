// SPDX-License-Identifier: MPL-2.0

//! The one error type of the crate, free of ONNX Runtime types.

use std::path::PathBuf;

use crate::names::{Provider, Role, Setting};

/// What caused an error, where something outside of this crate did.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// What went wrong, and with what. `Display` gives one sentence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No ONNX Runtime library was found, or it could not be opened.
    #[error("ONNX Runtime could not be loaded: {reason}")]
    LibraryMissing {
        /// What was tried and why each attempt failed.
        reason: String,
    },
    /// The library is ONNX Runtime, but too old.
    #[error("{} is ONNX Runtime {found}, but starsr needs {needed} or newer", path.display())]
    LibraryVersion {
        /// The library that was opened.
        path: PathBuf,
        /// The version it reports.
        found: String,
        /// The lowest version accepted.
        needed: String,
    },
    /// Another library is in use already, and a process can have only one.
    #[error(
        "this process already uses the ONNX Runtime in {}, so {} cannot be loaded",
        loaded.display(), asked.display()
    )]
    LibraryInUse {
        /// The library in use.
        loaded: PathBuf,
        /// The library that cannot be loaded.
        asked: PathBuf,
    },
    /// A named execution provider does not work here.
    #[error("execution provider {provider} is not available: {reason}")]
    Provider {
        /// The provider.
        provider: Provider,
        /// The cause as ONNX Runtime reports it.
        reason: String,
    },
    /// The model bundle is missing, incomplete, altered or not understood.
    #[error("model bundle: {}: {field}: {reason}", file.display())]
    Bundle {
        /// The file or folder concerned.
        file: PathBuf,
        /// The manifest key, tensor or graph concerned, or `folder`.
        field: String,
        /// What is wrong and what to do.
        reason: String,
        /// The error of the file system, of a parser or of ONNX Runtime behind it.
        #[source]
        source: Option<Cause>,
    },
    /// A setting has a value that the bundle or the input does not allow.
    #[error("{setting}: {reason}")]
    Setting {
        /// The setting.
        setting: Setting,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// A frame or an argument that does not fit what came before it.
    #[error("{what}: {reason}")]
    Input {
        /// The frame or the argument.
        what: String,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// A graph failed while it ran.
    #[error("{graph} failed: {reason}")]
    Inference {
        /// The graph's role in the bundle.
        graph: Role,
        /// The cause as ONNX Runtime reports it.
        reason: String,
    },
    /// A graph needs more memory than there is.
    #[error("{graph} failed: {reason}. There is not enough memory")]
    Memory {
        /// The graph's role in the bundle.
        graph: Role,
        /// The cause as ONNX Runtime reports it.
        reason: String,
    },
    /// The running work was cancelled on request.
    #[error("cancelled")]
    Cancelled,
}

/// Result with the crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A [`Self::Setting`].
    pub fn setting(setting: Setting, reason: impl Into<String>) -> Self {
        Self::Setting { setting, reason: reason.into() }
    }

    /// A [`Self::Input`].
    pub fn input(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Input { what: what.into(), reason: reason.into() }
    }

    /// A [`Self::Inference`].
    pub fn inference(graph: Role, reason: impl Into<String>) -> Self {
        Self::Inference { graph, reason: reason.into() }
    }

    /// A [`Self::Bundle`] without a cause from outside of this crate.
    pub fn bundle(
        file: impl Into<PathBuf>,
        field: impl Into<String>,
        reason: impl Into<String>,
    ) -> Self {
        Self::Bundle { file: file.into(), field: field.into(), reason: reason.into(), source: None }
    }

    /// The same error with its cause, for a [`Self::Bundle`].
    pub(crate) fn caused_by(mut self, cause: impl Into<Cause>) -> Self {
        if let Self::Bundle { source, .. } = &mut self {
            *source = Some(cause.into());
        }
        self
    }
}
