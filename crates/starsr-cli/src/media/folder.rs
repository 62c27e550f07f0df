// SPDX-License-Identifier: MPL-2.0

//! The files in a folder.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Whether the name is that of a still picture.
pub fn is_picture_name(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    ["png", "jpg", "jpeg", "webp", "tif", "tiff", "bmp"].iter().any(|known| extension == *known)
}

/// The visible pictures in `folder`, by name.
pub fn pictures_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    files_in(folder, is_picture_name)
}

/// The visible files in `folder` that are `wanted`, by name.
pub fn files_in(folder: &Path, wanted: impl Fn(&Path) -> bool) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.is_file() && wanted(&path) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
