// SPDX-License-Identifier: MPL-2.0

//! Loading the model: the bundle that the settings name, and its graphs.

use std::path::{Path, PathBuf};

use gst::prelude::*;

use starsr::bundle::Manifest;
use starsr::model::Model;
use starsr::runtime::{self, Engine, GraphTimes};
use starsr::{Bundle, Cancel, Error, Result};

use super::log::{self, CAT};
use super::settings::Settings;

/// A model ready to run.
pub(super) struct Loaded {
    pub(super) model: Box<dyn Model>,
    pub(super) manifest: Manifest,
    /// Where the model counts its runs while it is at work, if it does.
    pub(super) times: Option<GraphTimes>,
    /// Nick of the execution provider in use.
    pub(super) provider: String,
    /// The device that the provider computes on.
    pub(super) device: String,
    /// Nick of the precision of the graphs.
    pub(super) precision: String,
    /// Version of ONNX Runtime.
    pub(super) runtime: String,
}

/// Loads the model that `settings` name, and posts progress messages from `element`.
///
/// # Errors
///
/// Whatever keeps the bundle or ONNX Runtime from loading, and [`Error::Cancelled`] once `cancel`
/// is set.
pub(super) fn load(settings: &Settings, element: &gst::Element, cancel: &Cancel) -> Result<Loaded> {
    let post = |type_, text| {
        let message = gst::message::Progress::builder(type_, "load", text).src(element).build();
        let _ = element.post_message(message);
    };
    let plugin = element.factory().and_then(|f| f.plugin()).and_then(|p| p.filename());
    post(gst::ProgressType::Start, "Loading the model");
    let loaded = load_from(settings, search_folders(plugin.as_deref()), cancel);
    match &loaded {
        Ok(loaded) => {
            gst::info!(
                CAT,
                obj = element,
                "Loaded {} on {}",
                loaded.manifest.name,
                loaded.provider
            );
            post(gst::ProgressType::Complete, "Model loaded");
        }
        Err(Error::Cancelled) => post(gst::ProgressType::Canceled, "Loading cancelled"),
        Err(_) => post(gst::ProgressType::Error, "Loading the model failed"),
    }
    loaded
}

/// The folder of the bundle that `settings` name.
pub(super) fn locate(settings: &Settings, element: &gst::Element) -> Result<PathBuf> {
    let plugin = element.factory().and_then(|f| f.plugin()).and_then(|p| p.filename());
    Bundle::locate(settings.model_path.as_deref(), &search_folders(plugin.as_deref()))
}

fn load_from(settings: &Settings, folders: Vec<PathBuf>, cancel: &Cancel) -> Result<Loaded> {
    let bundle = Bundle::locate(settings.model_path.as_deref(), &folders)?;
    let bundle = Bundle::open_with(&bundle, cancel)?;
    runtime::set_logger(log::runtime_level(), log::runtime);
    let engine = Engine::load(&bundle, &settings.runtime(folders), cancel)?;
    for (provider, reason) in engine.passed_over() {
        gst::info!(CAT, "{provider} is not available: {reason}");
    }
    Ok(Loaded {
        provider: engine.provider().to_string(),
        device: engine.device(),
        precision: engine.precision().to_string(),
        runtime: engine.runtime_version().to_string(),
        times: Some(engine.stats()),
        manifest: engine.manifest().clone(),
        model: Box::new(engine),
    })
}

/// The folders searched for the library and the bundle: those of the plugin and of the program,
/// their subfolders `starsr`, their parents, as cargo keeps copies and tests in `deps`, and the
/// folder where
/// `make install` puts both, for a program that has the element built in.
fn search_folders(plugin: Option<&Path>) -> Vec<PathBuf> {
    let program = std::env::current_exe().ok();
    let beside = [plugin, program.as_deref()].into_iter().flatten().flat_map(|file| {
        let folders =
            file.ancestors().skip(1).take(2).filter(|folder| !folder.as_os_str().is_empty());
        folders.flat_map(|folder| [folder.to_path_buf(), folder.join("starsr")])
    });
    let core =
        gst::Registry::get().find_plugin("coreelements").and_then(|plugin| plugin.filename());
    let installed = core.as_deref().and_then(Path::parent).map(|folder| folder.join("starsr"));
    let mut folders: Vec<PathBuf> = Vec::new();
    for folder in beside.chain(installed) {
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    folders
}
