// SPDX-License-Identifier: MPL-2.0

//! The file written: hidden and temporary until it is complete.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tempfile::{PathPersistError, TempPath};

/// File systems allow 255 bytes for a name; what is added to the target's here must fit.
const NAME_BYTES: usize = 230;

/// A hidden file, removed when dropped.
pub struct Part {
    path: TempPath,
    /// Holds the lock that tells other runs, until this process ends in any way, to let the part be.
    _lock: File,
}

impl Part {
    /// Makes a file beside `target` whose name begins with `prefix`.
    fn create(target: &Path, prefix: &OsStr) -> Result<Self, String> {
        let failed = |error: io::Error| {
            format!("{}: cannot be created: {}", target.display(), reason(&error))
        };
        loop {
            let (file, path) = tempfile::Builder::new()
                .prefix(prefix)
                .permissions(Permissions::from_mode(0o666))
                .tempfile_in(folder(target))
                .map_err(failed)?
                .into_parts();
            // Where a file system knows no locks, no run finds anything to remove.
            let _ = file.try_lock();
            // Before it was locked, a run beside this one may have taken it for a leftover.
            if file.metadata().map_err(failed)?.nlink() > 0 {
                return Ok(Self { path, _lock: file });
            }
        }
    }

    /// The file to write to.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// An output that has been started. Dropped without [`Output::finish`] it leaves nothing behind.
pub struct Output {
    part: Part,
    /// What the names of hidden files for `target` begin with.
    prefix: OsString,
    target: PathBuf,
    force: bool,
}

/// A file that has got its final name.
pub struct Finished {
    /// Where it is: the target, or a name beside it.
    pub path: PathBuf,
    /// Why it is not at the target, in the operating system's words.
    pub displaced: Option<String>,
}

impl Output {
    /// Checks that `target` may be written and makes the hidden file beside it. What killed runs
    /// have left for the same target is removed.
    pub fn create(inputs: &[&Path], target: &Path, force: bool) -> Result<Self, String> {
        let shown = target.display();
        if let Ok(old) = fs::metadata(target) {
            let same = |input: &&Path| {
                fs::metadata(input)
                    .is_ok_and(|new| (new.dev(), new.ino()) == (old.dev(), old.ino()))
            };
            if inputs.iter().any(same) {
                return Err(format!("{shown}: output and input are the same file"));
            }
            if !old.is_file() {
                return Err(format!("{shown}: exists and is not a regular file"));
            }
        }
        if !force && let Ok(old) = fs::symlink_metadata(target) {
            let what = match fs::metadata(target) {
                Err(_) if old.is_symlink() => {
                    "is a symbolic link to a file that does not exist; use --force to replace it"
                }
                _ => "exists already; use --force to replace it",
            };
            return Err(format!("{shown}: {what}"));
        }
        let prefix = hidden_prefix(target)?;
        remove_leftovers(folder(target), &prefix);
        let part = Part::create(target, &prefix)?;
        Ok(Self { part, prefix, target: target.to_owned(), force })
    }

    /// The file to write to.
    pub fn part(&self) -> &Path {
        self.part.path()
    }

    /// A second hidden file beside the first, for [`Output::replace`].
    pub fn another(&self) -> Result<Part, String> {
        Part::create(&self.target, &self.prefix)
    }

    /// Puts `part`, which is complete, in the place of the file written so far.
    pub fn replace(&mut self, part: Part) {
        self.part = part;
    }

    /// Gives the complete file its final name, once its bytes are on the disk. Where it cannot have
    /// that name, for example because another program has written such a file meanwhile, it gets a
    /// free one beside it.
    pub fn finish(self) -> Result<Finished, String> {
        let Self { part: Part { path: part, _lock }, target, force, .. } = self;
        let failed = |error: &io::Error| format!("{}: {}", target.display(), reason(error));
        let synced = File::open(&part).and_then(|file| file.sync_all());
        synced.map_err(|error| failed(&error))?;
        let persisted = if force { part.persist(&target) } else { rename(part, &target) };
        let finished = match persisted {
            Ok(()) => Finished { path: target.clone(), displaced: None },
            Err(PathPersistError { error, path }) => {
                let displaced = Some(reason(&error));
                Finished { path: persist_beside(path, &target).map_err(|e| failed(&e))?, displaced }
            }
        };
        // The name is in the folder, which has bytes of its own.
        let synced = File::open(folder(&target)).and_then(|folder| folder.sync_all());
        synced.map_err(|error| failed(&error))?;
        Ok(finished)
    }
}

/// Gives `part` the first free name of `video-2.mp4`, `video-3.mp4` and so on for `video.mp4`.
fn persist_beside(mut part: TempPath, target: &Path) -> io::Result<PathBuf> {
    for number in 2..=u16::MAX {
        let mut name = target.file_stem().unwrap_or_default().as_bytes().to_vec();
        name.truncate(NAME_BYTES);
        let mut name = OsString::from_vec(name);
        name.push(format!("-{number}"));
        if let Some(extension) = target.extension() {
            name.push(".");
            name.push(extension);
        }
        let path = target.with_file_name(name);
        match rename(part, &path) {
            Ok(()) => return Ok(path),
            Err(PathPersistError { error, path })
                if error.kind() == io::ErrorKind::AlreadyExists =>
            {
                part = path;
            }
            // The work is not thrown away, even under a name that nobody would choose.
            Err(PathPersistError { path, .. }) => return Ok(path.keep()?),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Renames `part` to `path`, where nothing may be.
fn rename(part: TempPath, path: &Path) -> Result<(), PathPersistError> {
    match part.persist_noclobber(path) {
        // Some network file systems cannot do both in one step.
        Err(PathPersistError { error, path: part })
            if error.kind() != io::ErrorKind::AlreadyExists
                && fs::symlink_metadata(path).is_err() =>
        {
            part.persist(path)
        }
        result => result,
    }
}

/// What the names of hidden files for `target` begin with.
pub fn hidden_prefix(target: &Path) -> Result<OsString, String> {
    let name =
        target.file_name().ok_or_else(|| format!("{}: not a file name", target.display()))?;
    let mut prefix = vec![b'.'];
    prefix.extend(name.as_bytes().iter().take(NAME_BYTES));
    prefix.extend(b".part-");
    Ok(OsString::from_vec(prefix))
}

/// Removes the files in `folder` that begin with `prefix` and that no process is writing.
fn remove_leftovers(folder: &Path, prefix: &OsStr) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_part = entry.file_name().as_bytes().starts_with(prefix.as_bytes())
            && entry.file_type().is_ok_and(|kind| kind.is_file());
        if is_part
            && let Ok(file) = OpenOptions::new().write(true).open(entry.path())
            && file.try_lock().is_ok()
        {
            // One that cannot be removed does no harm.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The folder a file is in.
pub fn folder(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The operating system's words, without its number.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let words = text.split(" (os error").next().unwrap_or(&text);
    // tempfile adds the path it tried, which is not one the user gave.
    words.split(" at path").next().unwrap_or(words).to_owned()
}
