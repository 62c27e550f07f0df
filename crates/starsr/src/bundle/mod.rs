// SPDX-License-Identifier: MPL-2.0

//! Model bundles: a folder with the manifest `bundle.toml` and the ONNX graphs it names
//! (`models/README.md`).

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Component, Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::model::Embedding;
use crate::text::{Key, SentencePiece};

mod checks;
mod direct;
mod embeddings;
mod manifest;
mod process;
mod validate;
mod video;

pub use crate::diffusion::family::Family;
pub use crate::diffusion::guidance_scale::GuidanceScale;
pub use crate::diffusion::scaled_linear::ScaledLinearConfig;
pub use crate::diffusion::schedule::ScheduleConfig;
pub use crate::geometry::{Interpolation, LegalSizes, Padding};
pub use crate::names::{Precision, Role};
pub use direct::DetailSpec;
pub use manifest::{
    CanvasSpec, DataFile, FORMAT, GraphFile, GraphForm, GraphsSpec, Latent, Layout, Manifest,
    PromptsSpec, Scale, Vae,
};
pub use process::{
    ConditionKind, ConditionSpec, Kind, Prediction, SamplerSpec, ScheduleSpec, SolverKind,
    Unconditional,
};
pub use video::{PositionsSpec, WindowSpec};

/// The name of the manifest in a bundle's folder.
pub const MANIFEST: &str = "bundle.toml";

/// The key of the tokenizer's file.
const TOKENIZER: &str = "prompts.tokenizer";

/// The name of the bundle to use unless another is named.
pub const DEFAULT: &str = "nano2";

/// A bundle with a valid manifest, whose files exist and are unaltered.
#[derive(Debug, Clone)]
pub struct Bundle {
    root: PathBuf,
    manifest: Manifest,
}

impl Bundle {
    /// Opens the bundle in `dir`: reads the manifest and compares every file with its SHA-256.
    ///
    /// # Errors
    /// [`Error::Bundle`], which names the file and the field.
    pub fn open(dir: &Path) -> Result<Self> {
        Self::open_with(dir, &Cancel::default())
    }

    /// [`Self::open`] that can be cancelled: hashing a bundle of several gigabytes takes seconds.
    ///
    /// # Errors
    /// As [`Self::open`], and [`Error::Cancelled`] when `cancel` is set.
    pub fn open_with(dir: &Path, cancel: &Cancel) -> Result<Self> {
        let root = match fs::metadata(dir) {
            Ok(meta) if meta.is_dir() => dir,
            // The manifest itself may be named in place of its folder.
            Ok(_) if dir.ends_with(MANIFEST) => {
                dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
            }
            Ok(_) => {
                let reason = format!("is not a folder; name the folder that holds {MANIFEST}");
                return Err(Error::bundle(dir, "folder", reason));
            }
            Err(e) => return Err(unreadable(dir, "folder", "does not exist", e)),
        };

        let path = root.join(MANIFEST);
        let text = match fs::read(&path) {
            Ok(bytes) => String::from_utf8(bytes)
                .map_err(|e| Error::bundle(&path, "manifest", "is not UTF-8 text").caused_by(e))?,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let reason = format!("has no {MANIFEST}, so it is not a model bundle");
                return Err(Error::bundle(root, "folder", reason).caused_by(e));
            }
            Err(e) => return Err(unreadable(&path, "manifest", "", e)),
        };
        let manifest = Manifest::parse(&text, &path)?;

        for role in Role::ALL {
            let Some(graph) = manifest.graphs.get(role) else { continue };
            verify(&root.join(&graph.file), &format!("graphs.{role}"), &graph.sha256, cancel)?;
            for (i, data) in graph.data.iter().enumerate() {
                let field = format!("graphs.{role}.data[{i}]");
                verify(&root.join(&data.file), &field, &data.sha256, cancel)?;
            }
            for (precision, form) in graph.forms() {
                let field = format!("graphs.{role}.{precision}");
                verify(&root.join(&form.file), &field, &form.sha256, cancel)?;
            }
        }
        if let Some(prompts) = &manifest.prompts {
            let files =
                [("prompts.embeddings", &prompts.embeddings), (TOKENIZER, &prompts.tokenizer)];
            for (field, data) in files {
                let Some(data) = data else { continue };
                verify(&root.join(&data.file), field, &data.sha256, cancel)?;
            }
        }
        if let Some(data) = manifest.detail.as_ref().map(|detail| &detail.weights) {
            verify(&root.join(&data.file), "detail.weights", &data.sha256, cancel)?;
        }
        Ok(Self { root: root.to_path_buf(), manifest })
    }

    /// Finds the folder of the bundle that a user names. A path is taken as it is. A bare name, or
    /// [`DEFAULT`] for `None`, is looked for as `<name>`, `starsr/<name>` and
    /// `models/<name>` in each folder of `near`, then as `starsr/<name>` in the user's data folder
    /// (`$XDG_DATA_HOME`, else `~/.local/share`).
    ///
    /// # Errors
    /// [`Error::Bundle`] about the field `folder`, which lists the places.
    pub fn locate(user_path: Option<&Path>, near: &[PathBuf]) -> Result<PathBuf> {
        let name = match user_path {
            None => Path::new(DEFAULT),
            Some(path) => {
                let mut components = path.components();
                let bare = matches!(components.next(), Some(Component::Normal(_)))
                    && components.next().is_none();
                if !bare || path.exists() {
                    return Ok(path.to_path_buf());
                }
                path
            }
        };
        let mut places = Vec::new();
        for folder in near {
            places.extend(["", "starsr", "models"].map(|between| folder.join(between).join(name)));
        }
        places.extend(user_data_dir().map(|folder| folder.join("starsr").join(name)));
        if let Some(found) = places.iter().find(|place| place.join(MANIFEST).is_file()) {
            return Ok(found.clone());
        }
        let looked = places.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ");
        Err(Error::bundle(name, "folder", format!("was not found; looked for {looked}")))
    }

    /// The bundle's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The ONNX file of a role; `None` for one that the bundle does not have.
    pub fn graph(&self, role: Role) -> Option<PathBuf> {
        self.manifest.graphs.get(role).map(|graph| self.root.join(&graph.file))
    }

    /// The ONNX file of a role in a precision, or [`Self::graph`] where the bundle has none in it.
    pub fn graph_in(&self, role: Role, precision: Precision) -> Option<PathBuf> {
        let form = self.manifest.graphs.form(role, precision);
        form.map(|form| self.root.join(&form.file)).or_else(|| self.graph(role))
    }

    /// The prompts whose embeddings `[N,D]` come with the bundle, all of one `N` and `D`; empty
    /// without `prompts.embeddings`.
    ///
    /// # Errors
    /// [`Error::Bundle`], which names the tensor.
    pub fn embeddings(&self) -> Result<Vec<(Key, Embedding)>> {
        let Some(prompts) = &self.manifest.prompts else { return Ok(Vec::new()) };
        let Some(data) = &prompts.embeddings else { return Ok(Vec::new()) };
        let texts = match prompts.embedded.as_slice() {
            [] => std::slice::from_ref(&prompts.default),
            texts => texts,
        };
        let path = self.root.join(&data.file);
        let texts = (!self.manifest.has_clip_tokens()).then_some(texts);
        embeddings::read(&path, self.manifest.text_length(), texts)
    }

    /// The tokenizer that comes with the bundle; `None` where it has none.
    ///
    /// # Errors
    /// [`Error::Bundle`] about `prompts.tokenizer`.
    pub fn tokenizer(&self) -> Result<Option<SentencePiece>> {
        let data = self.manifest.prompts.as_ref().and_then(|prompts| prompts.tokenizer.as_ref());
        let Some(data) = data else { return Ok(None) };
        let path = self.root.join(&data.file);
        let bytes = fs::read(&path).map_err(|e| unreadable(&path, TOKENIZER, "is missing", e))?;
        let tokenizer = SentencePiece::read(&bytes, self.manifest.text_length());
        tokenizer.map(Some).map_err(|reason| {
            let reason = format!(
                "is not T5's file spiece.model, because {reason}; export the bundle again with the \
                 tokenizer of T5 v1.1 XXL"
            );
            Error::bundle(&path, TOKENIZER, reason)
        })
    }
}

/// `$XDG_DATA_HOME`, else `~/.local/share` (XDG Base Directory Specification).
pub(crate) fn user_data_dir() -> Option<PathBuf> {
    let absolute =
        |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_DATA_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
}

/// The error of a file that cannot be opened or read; `missing` is the reason where it does not
/// exist.
fn unreadable(path: &Path, field: &str, missing: &str, e: std::io::Error) -> Error {
    let reason = match e.kind() {
        ErrorKind::NotFound => missing.to_string(),
        _ => format!("cannot be read: {e}"),
    };
    Error::bundle(path, field, reason).caused_by(e)
}

fn verify(path: &Path, field: &str, expected: &str, cancel: &Cancel) -> Result<()> {
    let missing = "the manifest names this file, but it does not exist; install the bundle again";
    let fail = |e| unreadable(path, field, missing, e);
    // Checked before it is opened: opening a pipe would wait for its writer.
    if !fs::metadata(path).map_err(fail)?.is_file() {
        return Err(Error::bundle(path, field, "is not a file"));
    }
    let mut file = File::open(path).map_err(fail)?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 1 << 20];
    loop {
        cancel.check()?;
        match file.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => hash.update(&chunk[..n]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(fail(e)),
        }
    }
    let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if found.eq_ignore_ascii_case(expected) {
        return Ok(());
    }
    let reason = format!(
        "the file was altered or is incomplete: its SHA-256 is {found}, the manifest says \
         {expected}; install the bundle again"
    );
    Err(Error::bundle(path, format!("{field}.sha256"), reason))
}
