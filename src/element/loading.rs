// SPDX-License-Identifier: MPL-2.0

//! Opening the bundle that the settings name and loading its graphs.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use starsr::bundle::{Bundle, Manifest};
use starsr::cancel::Cancel;
use starsr::error::{Error, Result};
use starsr::model::Model;
use starsr::runtime::{self, Engine, Level};

use super::imp::CAT;
use super::settings::Settings;

/// Messages of ONNX Runtime itself.
static RUNTIME_CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new(
        "starsr-onnxruntime",
        gst::DebugColorFlags::empty(),
        Some("ONNX Runtime in starsr"),
    )
});

fn log_level() -> Level {
    match RUNTIME_CAT.threshold() {
        gst::DebugLevel::None | gst::DebugLevel::Error => Level::Error,
        gst::DebugLevel::Warning | gst::DebugLevel::Fixme => Level::Warning,
        gst::DebugLevel::Info => Level::Info,
        _ => Level::Debug,
    }
}

fn log(level: Level, message: &str) {
    match level {
        Level::Error => gst::error!(RUNTIME_CAT, "{message}"),
        Level::Warning => gst::warning!(RUNTIME_CAT, "{message}"),
        Level::Info => gst::info!(RUNTIME_CAT, "{message}"),
        Level::Debug => gst::debug!(RUNTIME_CAT, "{message}"),
    }
}

/// A model ready to run.
pub(super) struct Loaded {
    pub(super) model: Box<dyn Model>,
    pub(super) manifest: Manifest,
    /// Nick of the execution provider in use.
    pub(super) provider: String,
    /// What the provider computes on.
    pub(super) device: String,
    /// Version of ONNX Runtime.
    pub(super) runtime: String,
}

/// Loads the model that `settings` name. `cancel` stops it with [`Error::Cancelled`].
pub(super) fn load(settings: &Settings, plugin: Option<&Path>, cancel: &Cancel) -> Result<Loaded> {
    let near = near(plugin);
    let bundle = Bundle::open_with(&Bundle::locate(settings.model_path.as_deref(), &near)?, cancel)?;
    runtime::set_logger(log_level(), log);
    let engine = Engine::load(&bundle, &settings.runtime(near), cancel)?;
    for (provider, reason) in engine.passed_over() {
        gst::info!(CAT, "{provider} is not available: {reason}");
    }
    Ok(Loaded {
        provider: engine.provider().to_string(),
        device: match engine.provider() {
            runtime::Provider::Cuda | runtime::Provider::TensorRt => format!("GPU {}", settings.device()),
            runtime::Provider::Auto | runtime::Provider::Cpu => "CPU".into(),
        },
        runtime: engine.runtime_version().to_string(),
        model: Box::new(engine),
        manifest: bundle.manifest().clone(),
    })
}

/// Folders in which library and bundle are looked for: those of the plugin and of the program, their subfolders
/// `starsr`, where they are installed, and their parents, as cargo puts copies and tests into `deps`.
fn near(plugin: Option<&Path>) -> Vec<PathBuf> {
    let program = std::env::current_exe().ok();
    let mut near: Vec<PathBuf> = Vec::new();
    for file in [plugin, program.as_deref()].into_iter().flatten() {
        for folder in file.ancestors().skip(1).take(2).filter(|folder| !folder.as_os_str().is_empty()) {
            for folder in [folder.to_path_buf(), folder.join("starsr")] {
                if !near.contains(&folder) {
                    near.push(folder);
                }
            }
        }
    }
    near
}

/// The message that tells the application of `error`, under the code that fits best.
pub(super) fn message(error: &Error) -> gst::ErrorMessage {
    match error {
        Error::LibraryMissing { .. }
        | Error::LibraryVersion { .. }
        | Error::LibraryInUse { .. }
        | Error::Provider { .. } => gst::error_msg!(gst::LibraryError::Init, ("{error}")),
        Error::Bundle { .. } => gst::error_msg!(gst::ResourceError::OpenRead, ("{error}")),
        Error::Setting { .. } => gst::error_msg!(gst::LibraryError::Settings, ("{error}")),
        Error::Cancelled => gst::error_msg!(gst::ResourceError::Busy, ("Loading the model was cancelled")),
        _ => gst::error_msg!(gst::LibraryError::Failed, ("{error}")),
    }
}
