// SPDX-License-Identifier: MPL-2.0

//! The plan of a job: what becomes of which frames, and in which segments.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::frames::Frames;
use super::given::Given;
use super::identity::Identity;
use super::segments::Segment;
use super::store::{self, failed, hex};
use crate::upscale::Args;

/// The version of the folder that this program writes and reads.
pub const VERSION: u64 = 1;
const PLAN: &str = "plan.json";
const FRAMES: &str = "frames.bin";
const FOLDERS: [&str; 3] = ["parts", "claims", "failures"];

/// A model bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    pub name: String,
    /// SHA-256 of the manifest, which has the hashes of all other files.
    pub sha256: String,
}

/// The decoded video.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Video {
    pub frames: u64,
    /// SHA-256 of the file with the frames' records.
    pub records_sha256: String,
    /// Caps of the frames as they leave the decoder, and as they are restored.
    pub decoded: String,
    pub caps: String,
    /// When the input and the pipeline show the first frame, in ns.
    pub first: u64,
    pub first_running: u64,
    /// Whether the video has no transparency, whatever its format.
    pub is_opaque: bool,
    /// How players have to rotate the frames, in the words of GStreamer's tag.
    pub orientation: Option<String>,
}

/// What is done with a film. All workers do the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub version: u64,
    pub input: Identity,
    pub options: Given,
    pub model: Model,
    pub video: Video,
    /// The first frame of each clip: no frame depends on those of another.
    pub clips: Vec<u64>,
    pub segments: Vec<Segment>,
}

/// A folder with a plan.
pub struct Job {
    pub folder: PathBuf,
    pub plan: Plan,
    /// SHA-256 of the plan, which its parts name.
    pub id: String,
    pub frames: Frames,
}

impl Job {
    /// Whether a plan is in `folder`.
    pub fn exists(folder: &Path) -> bool {
        folder.join(PLAN).exists()
    }

    /// Makes the folder for a plan, or fails where it has other things in it.
    pub fn make_folder(folder: &Path) -> Result<(), String> {
        fs::create_dir_all(folder).map_err(|error| failed(folder, &error))?;
        let entries = fs::read_dir(folder).map_err(|error| failed(folder, &error))?;
        for entry in entries {
            let name = entry.map_err(|error| failed(folder, &error))?.file_name();
            let name = name.to_string_lossy();
            let is_ours = name.starts_with(store::UNFINISHED)
                || name == FRAMES
                || FOLDERS.contains(&name.as_ref());
            if !is_ours {
                return Err(format!(
                    "{}: is not empty and has no plan; name a new folder for the job",
                    folder.display()
                ));
            }
        }
        store::remove_unfinished(folder);
        Ok(())
    }

    /// Where the frames' records are.
    pub fn records(folder: &Path) -> PathBuf {
        folder.join(FRAMES)
    }

    /// Writes `plan` into `folder`, which has the frames already.
    pub fn create(folder: &Path, plan: &Plan) -> Result<(), String> {
        for name in FOLDERS {
            let path = folder.join(name);
            fs::create_dir_all(&path).map_err(|error| failed(&path, &error))?;
        }
        let text = serde_json::to_string_pretty(plan).map_err(|error| error.to_string())?;
        store::write(&folder.join(PLAN), text.as_bytes())
    }

    /// Opens the job in `folder`.
    pub fn open(folder: &Path) -> Result<Self, String> {
        let path = folder.join(PLAN);
        let shown = folder.display();
        let text = fs::read(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                format!("{shown}: has no plan; make one with starsr plan INPUT --job {shown}")
            }
            _ => failed(&path, &error),
        })?;
        let damaged = || format!("{}: is damaged; remove {shown} and plan again", path.display());
        let value: serde_json::Value = serde_json::from_slice(&text).map_err(|_| damaged())?;
        match value["version"].as_u64() {
            Some(VERSION) => {}
            Some(version) => {
                return Err(format!(
                    "{shown}: is a job of version {version}, and this program knows version {VERSION}; use the program that made it, or another folder"
                ));
            }
            None => return Err(damaged()),
        }
        let plan: Plan = serde_json::from_value(value).map_err(|_| damaged())?;
        let video = &plan.video;
        let frames = Frames::open(&Self::records(folder), video.frames, &video.records_sha256)?;
        let id = hex(Sha256::new().chain_update(&text));
        Ok(Self { folder: folder.to_owned(), id, frames, plan })
    }

    /// The options of the plan.
    pub fn args(&self) -> Result<Args, String> {
        let failed = |reason| format!("{}: {reason}", self.folder.join(PLAN).display());
        Args::of(self.plan.options.words()).map_err(failed)
    }

    /// Removes what killed workers have left.
    pub fn remove_unfinished(&self) {
        store::remove_unfinished(&self.folder);
        for name in FOLDERS {
            store::remove_unfinished(&self.folder.join(name));
        }
    }

    /// Where the part of a segment is.
    pub fn part(&self, segment: usize) -> PathBuf {
        self.folder.join("parts").join(format!("{segment:06}.part"))
    }

    /// The folder of claims.
    pub fn claims(&self) -> PathBuf {
        self.folder.join("claims")
    }

    /// Where the failures of a segment are noted.
    pub fn failure(&self, segment: usize) -> PathBuf {
        self.folder.join("failures").join(format!("{segment:06}.json"))
    }

    /// Where it is noted which file the parts were joined to.
    fn joined(&self) -> PathBuf {
        self.folder.join("joined.json")
    }

    /// Notes that the film is about to get the name `output`.
    pub fn note_joined(&self, output: &Path) -> Result<(), String> {
        let output = std::path::absolute(output).map_err(|error| failed(output, &error))?;
        let text = serde_json::to_string(&output).map_err(|error| error.to_string())?;
        store::write(&self.joined(), text.as_bytes())
    }

    /// Whether an earlier run has joined the parts to `output`, and ended before it said so.
    pub fn is_joined(&self, output: &Path) -> bool {
        let noted = fs::read(self.joined()).ok();
        let noted = noted.and_then(|text| serde_json::from_slice::<PathBuf>(&text).ok());
        output.is_file() && noted.is_some() && noted == std::path::absolute(output).ok()
    }

    /// Fails where this folder cannot be written any more.
    pub fn check_writable(&self) -> Result<(), String> {
        let claims = self.claims();
        store::unfinished(&claims.join("claim")).map(drop).map_err(|error| failed(&claims, &error))
    }
}
