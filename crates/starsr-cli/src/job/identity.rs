// SPDX-License-Identifier: MPL-2.0

//! Which file a job reads.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::store::{failed, hex, sha256};

/// Samples of a file, and the bytes of each.
const SAMPLES: u64 = 64;
const SAMPLE: u64 = 16 << 10;

/// A file and its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Where it was when the plan was made, from the root.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// When it was changed last, in nanoseconds since 1970, by the machine of the plan.
    pub modified: i128,
    /// SHA-256 of samples that are spread over it.
    pub sample_sha256: String,
    /// SHA-256 of all of it.
    pub sha256: String,
}

impl Identity {
    /// That of the file at `path`, which is read to its end.
    pub fn new(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let metadata = fs::metadata(path).map_err(|error| failed(path, &error))?;
        if !metadata.is_file() {
            return Err(format!("{shown}: a job needs a regular file, which can be read again"));
        }
        let open = || File::open(path);
        let whole = open().and_then(sha256).map_err(|error| failed(path, &error))?;
        Ok(Self {
            path: std::path::absolute(path).map_err(|error| failed(path, &error))?,
            size: metadata.len(),
            modified: modified(&metadata),
            sample_sha256: sampled(path, metadata.len())?,
            sha256: whole,
        })
    }

    /// Fails where the file at `path` is another one, as far as a glance can tell.
    pub fn check(&self, path: &Path) -> Result<(), String> {
        let shown = path.display();
        let metadata = fs::metadata(path).map_err(|error| failed(path, &error))?;
        if metadata.len() != self.size {
            return Err(format!(
                "{shown}: is not the input of the plan: it has {} bytes, and that one had {}",
                metadata.len(),
                self.size
            ));
        }
        if sampled(path, self.size)? != self.sample_sha256 {
            return Err(format!("{shown}: is not the input of the plan: its content differs"));
        }
        Ok(())
    }

    /// Fails where the file at `path` was written since.
    pub fn check_unchanged(&self, path: &Path) -> Result<(), String> {
        let metadata = fs::metadata(path).map_err(|error| failed(path, &error))?;
        if (metadata.len(), modified(&metadata)) != (self.size, self.modified) {
            let shown = path.display();
            return Err(format!("{shown}: was changed while it was read; plan again"));
        }
        Ok(())
    }

    /// [`Self::check`] that reads all of a file which may have been changed.
    pub fn check_whole(&self, path: &Path) -> Result<(), String> {
        self.check(path)?;
        let metadata = fs::metadata(path).map_err(|error| failed(path, &error))?;
        if modified(&metadata) != self.modified {
            let whole = File::open(path).and_then(sha256).map_err(|error| failed(path, &error))?;
            if whole != self.sha256 {
                let shown = path.display();
                return Err(format!("{shown}: is not the input of the plan: its content differs"));
            }
        }
        Ok(())
    }
}

fn modified(metadata: &fs::Metadata) -> i128 {
    i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec())
}

/// SHA-256 of samples of a file of `size` bytes.
fn sampled(path: &Path, size: u64) -> Result<String, String> {
    let sample = || {
        let (mut file, mut hash) = (File::open(path)?, Sha256::new());
        let last = size.saturating_sub(SAMPLE);
        for number in 0..SAMPLES {
            let place =
                last / (SAMPLES - 1) * number + last % (SAMPLES - 1) * number / (SAMPLES - 1);
            file.seek(SeekFrom::Start(place))?;
            let mut bytes = Vec::new();
            Read::by_ref(&mut file).take(SAMPLE).read_to_end(&mut bytes)?;
            hash.update(&bytes);
        }
        Ok(hex(hash))
    };
    sample().map_err(|error: std::io::Error| failed(path, &error))
}
