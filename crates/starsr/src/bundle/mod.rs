// SPDX-License-Identifier: MPL-2.0

//! Model bundles: a folder with the manifest `bundle.toml` and the ONNX graphs it names (`models/README.md`).

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Component, Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::cancel::Cancel;
use crate::error::Result;
use crate::model::Embedding;
use crate::text::Ids;

mod embeddings;
mod manifest;

use manifest::error;
pub use manifest::{
    Canvas, DataFile, FORMAT, GraphFile, Graphs, Latent, Manifest, Prediction, Prompts, Role, Sampler, Scale,
    Schedule, ScheduleKind, Vae, Window,
};

/// The name of the manifest in a bundle's folder.
pub const MANIFEST: &str = "bundle.toml";

/// The name of the bundle that is used when none is asked for.
pub const DEFAULT: &str = "nano";

/// A bundle whose manifest was understood and whose files are there and unaltered.
#[derive(Debug, Clone)]
pub struct Bundle {
    root: PathBuf,
    manifest: Manifest,
}

impl Bundle {
    /// Opens the bundle in `dir`: reads the manifest and compares every file with its SHA-256.
    ///
    /// Fails with [`Error::Bundle`](crate::error::Error::Bundle), which names the file and the field.
    pub fn open(dir: &Path) -> Result<Self> {
        Self::open_with(dir, &Cancel::default())
    }

    /// [`Self::open`] which stops with [`Error::Cancelled`](crate::error::Error::Cancelled) when `cancel` is set:
    /// hashing a bundle of several gigabytes takes seconds.
    pub fn open_with(dir: &Path, cancel: &Cancel) -> Result<Self> {
        let root = match fs::metadata(dir) {
            Ok(meta) if meta.is_dir() => dir,
            // The manifest itself may be named in place of its folder.
            Ok(_) if dir.ends_with(MANIFEST) => {
                dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
            }
            Ok(_) => {
                let reason = format!("is not a folder; name the folder that holds {MANIFEST}");
                return Err(error(dir, "folder", reason));
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let reason =
                    "does not exist; set model-path to the folder of a bundle, or leave it unset for nano";
                return Err(error(dir, "folder", reason));
            }
            Err(e) => return Err(error(dir, "folder", format!("cannot be opened: {e}"))),
        };

        let path = root.join(MANIFEST);
        let text = match fs::read(&path) {
            Ok(bytes) => {
                String::from_utf8(bytes).map_err(|_| error(&path, "manifest", "is not UTF-8 text"))?
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let reason = format!("has no {MANIFEST}, so it is not a model bundle; check model-path");
                return Err(error(root, "folder", reason));
            }
            Err(e) => return Err(error(&path, "manifest", format!("cannot be read: {e}"))),
        };
        let manifest = Manifest::parse(&text, &path)?;

        for role in Role::ALL {
            let Some(graph) = manifest.graphs.get(role) else { continue };
            verify(&root.join(&graph.file), &format!("graphs.{role}"), &graph.sha256, cancel)?;
            for (i, data) in graph.data.iter().enumerate() {
                let field = format!("graphs.{role}.data[{i}]");
                verify(&root.join(&data.file), &field, &data.sha256, cancel)?;
            }
        }
        if let Some(data) = manifest.prompts.as_ref().and_then(|prompts| prompts.embeddings.as_ref()) {
            verify(&root.join(&data.file), "prompts.embeddings", &data.sha256, cancel)?;
        }
        Ok(Self { root: root.to_path_buf(), manifest })
    }

    /// Finds the folder of the bundle a user asked for. A path is taken as it is. A bare name, or [`DEFAULT`] when
    /// nothing was asked for, is looked for as `<name>`, `starsr/<name>` and `models/<name>` in each folder of `near`,
    /// then as `starsr/<name>` in the user's data folder (`$XDG_DATA_HOME`, else `~/.local/share`).
    pub fn locate(user_path: Option<&Path>, near: &[PathBuf]) -> Result<PathBuf> {
        let name = match user_path {
            None => Path::new(DEFAULT),
            Some(path) => {
                let mut components = path.components();
                let bare =
                    matches!(components.next(), Some(Component::Normal(_))) && components.next().is_none();
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
        let reason = format!("was not found; looked for {looked}. Set model-path to a bundle's folder");
        Err(error(name, "folder", reason))
    }

    /// The bundle's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What the bundle says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The ONNX file of a role; `None` for a text encoder that is not there.
    pub fn graph(&self, role: Role) -> Option<PathBuf> {
        self.manifest.graphs.get(role).map(|graph| self.root.join(&graph.file))
    }

    /// The prompts, as tokens, whose embeddings `[77,D]` the bundle brings along; of one `D`. None without
    /// `prompts.embeddings`. Fails with [`Error::Bundle`](crate::error::Error::Bundle), which names the tensor.
    pub fn embeddings(&self) -> Result<Vec<(Ids, Embedding)>> {
        match self.manifest.prompts.as_ref().and_then(|prompts| prompts.embeddings.as_ref()) {
            Some(data) => embeddings::read(&self.root.join(&data.file)),
            None => Ok(Vec::new()),
        }
    }
}

/// `$XDG_DATA_HOME`, else `~/.local/share` (XDG Base Directory Specification).
pub(crate) fn user_data_dir() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_DATA_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
}

fn verify(path: &Path, field: &str, expected: &str, cancel: &Cancel) -> Result<()> {
    let fail = |e: std::io::Error| {
        if e.kind() == ErrorKind::NotFound {
            error(
                path,
                field,
                "the manifest names this file, but it does not exist; install the bundle again",
            )
        } else {
            error(path, field, format!("cannot be read: {e}"))
        }
    };
    // Asked before it is opened: opening a pipe would wait for its writer.
    if !fs::metadata(path).map_err(fail)?.is_file() {
        return Err(error(path, field, "is not a file"));
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
        "the file was altered or is incomplete: its SHA-256 is {found}, the manifest says {expected}; install the bundle again"
    );
    Err(error(path, &format!("{field}.sha256"), reason))
}
