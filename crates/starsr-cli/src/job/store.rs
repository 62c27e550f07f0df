// SPDX-License-Identifier: MPL-2.0

//! Files of a job's folder: complete under their names or not there at all, also after a power cut.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use crate::output::{folder, reason};

/// Bytes that are hashed at once.
const BLOCK: usize = 1 << 20;
/// What the names of unfinished files begin with.
pub const UNFINISHED: &str = ".unfinished-";

/// The sentence for an `error` with the file or folder at `path`.
pub fn failed(path: &Path, error: &io::Error) -> String {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            format!("{path}: no space is left on the device; the job goes on once there is some")
        }
        _ => format!("{path}: {}", reason(error)),
    }
}

/// A file beside `target` that has no name yet. It is locked for as long as it is open.
pub fn unfinished(target: &Path) -> io::Result<NamedTempFile> {
    // Workers may be of several users.
    let file = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder(target))?;
    // Where a file system knows no locks, nothing is removed either.
    let _ = file.as_file().try_lock();
    Ok(file)
}

/// Gives a written file the name `target`, once its bytes are on the disk, in the place of another.
pub fn place(file: NamedTempFile, target: &Path) -> io::Result<()> {
    file.as_file().sync_all()?;
    file.persist(target).map_err(|error| error.error)?;
    sync_folder(target)
}

/// The same where there is no such file; whether there was none.
pub fn place_new(file: NamedTempFile, target: &Path) -> io::Result<bool> {
    file.as_file().sync_all()?;
    match file.persist_noclobber(target) {
        Ok(_) => sync_folder(target).map(|()| true),
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        // Some network file systems cannot do both in one step.
        Err(error) if fs::symlink_metadata(target).is_err() => {
            error.file.persist(target).map_err(|error| error.error)?;
            sync_folder(target).map(|()| true)
        }
        Err(error) => Err(error.error),
    }
}

/// Writes `bytes` as the file `target`.
pub fn write(target: &Path, bytes: &[u8]) -> Result<(), String> {
    let write = || {
        let mut file = unfinished(target)?;
        file.write_all(bytes)?;
        place(file, target)
    };
    write().map_err(|error| failed(target, &error))
}

/// The name is in the folder, which has bytes of its own.
fn sync_folder(target: &Path) -> io::Result<()> {
    File::open(folder(target))?.sync_all()
}

/// SHA-256 of what `reader` has left, hexadecimal.
pub fn sha256(mut reader: impl Read) -> io::Result<String> {
    let (mut hash, mut block) = (Sha256::new(), vec![0; BLOCK]);
    loop {
        match reader.read(&mut block)? {
            0 => return Ok(hex(hash)),
            count => hash.update(&block[..count]),
        }
    }
}

/// The digest in hexadecimal.
pub fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Removes what killed workers have left in `folder`.
pub fn remove_unfinished(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED)
            && File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok())
        {
            // One that cannot be removed does no harm.
            let _ = fs::remove_file(entry.path());
        }
    }
}
