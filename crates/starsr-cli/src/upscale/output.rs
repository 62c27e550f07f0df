// SPDX-License-Identifier: MPL-2.0

//! The file written: hidden and temporary until it is complete.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tempfile::TempPath;

/// An output that has been started. Dropped without [`Output::finish`] it leaves nothing behind.
pub struct Output {
    part: TempPath,
    target: PathBuf,
    force: bool,
}

impl Output {
    /// Checks that `target` may be written and makes the hidden file beside it.
    pub fn create(input: &Path, target: &Path, force: bool) -> Result<Self, String> {
        let shown = target.display();
        if let Ok(old) = fs::metadata(target) {
            let same = fs::metadata(input)
                .is_ok_and(|new| (new.dev(), new.ino()) == (old.dev(), old.ino()));
            if same {
                return Err(format!("{shown}: output and input are the same file"));
            }
            if !old.is_file() {
                return Err(format!("{shown}: exists and is not a regular file"));
            }
            if !force {
                return Err(format!("{shown}: exists already; use --force to replace it"));
            }
        }
        let name = target.file_name().ok_or_else(|| format!("{shown}: not a file name"))?;
        // File systems allow 255 bytes for a name; what is added here must fit.
        let mut prefix = vec![b'.'];
        prefix.extend(name.as_bytes().iter().take(230));
        prefix.extend(b".part-");
        let part = tempfile::Builder::new()
            .prefix(&OsString::from_vec(prefix))
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder(target))
            .map_err(|error| format!("{shown}: cannot be created: {}", reason(&error)))?
            .into_temp_path();
        Ok(Self { part, target: target.to_owned(), force })
    }

    /// The file to write to.
    pub fn part(&self) -> &Path {
        &self.part
    }

    /// Gives the complete file its final name, once its bytes are on the disk.
    pub fn finish(self) -> Result<(), String> {
        let Self { part, target, force } = self;
        let failed = |error: io::Error| format!("{}: {}", target.display(), reason(&error));
        File::open(&part).and_then(|file| file.sync_all()).map_err(failed)?;
        if force { part.persist(&target) } else { part.persist_noclobber(&target) }
            .map_err(|error| failed(error.error))?;
        // The name is in the folder, which has bytes of its own.
        File::open(folder(&target)).and_then(|folder| folder.sync_all()).map_err(failed)
    }
}

/// The folder a file is in.
fn folder(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The operating system's words, without its number.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let words = text.split(" (os error").next().unwrap_or(&text);
    // tempfile adds the path it tried, which is not one the user gave.
    words.split(" at path").next().unwrap_or(words).to_owned()
}
