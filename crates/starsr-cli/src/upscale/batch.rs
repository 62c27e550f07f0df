// SPDX-License-Identifier: MPL-2.0

//! Which files become which.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::media::folder::{files_in, is_picture_name, pictures_in};
use crate::media::streams::Container;
use crate::output::reason;

/// Extensions of the files that are taken from a folder.
const VIDEO: [&str; 28] = [
    "3gp", "asf", "avi", "dv", "f4v", "flv", "gif", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg",
    "mpg", "mts", "mxf", "nut", "ogm", "ogv", "qt", "rm", "rmvb", "ts", "vob", "webm", "wmv",
    "y4m", "m2v",
];

/// One file to read and one to write.
#[derive(Clone)]
pub struct Job {
    /// What the user calls the input, and where it is read.
    pub input: PathBuf,
    pub source: PathBuf,
    pub output: PathBuf,
}

/// One job for each of `inputs`, and for each video, or else picture, in those that are folders. The
/// outputs are in `folder`, which is made if it is missing, and have the names of the inputs; two that
/// would have the same name get different ones.
pub fn jobs(inputs: &[PathBuf], folder: &Path) -> Result<Vec<Job>, String> {
    let failed = |path: &Path, error: &io::Error| format!("{}: {}", path.display(), reason(error));
    fs::create_dir_all(folder).map_err(|error| failed(folder, &error))?;
    let mut files = Vec::new();
    for input in inputs {
        if input.is_dir() {
            let failed = |error| failed(input, &error);
            let mut found = files_in(input, is_video).map_err(failed)?;
            if found.is_empty() {
                found = pictures_in(input).map_err(failed)?;
            }
            if found.is_empty() {
                return Err(format!("{}: no video or picture is in this folder", input.display()));
            }
            files.extend(found);
        } else {
            files.push(input.clone());
        }
    }
    let mut taken = HashSet::new();
    let job = |input: PathBuf| {
        let mut outputs = (1..=u32::MAX).map(|number| folder.join(name(&input, number)));
        let output = outputs.find(|output| taken.insert(output.clone()));
        Job { output: output.unwrap_or_default(), source: input.clone(), input }
    };
    Ok(files.into_iter().map(job).collect())
}

/// Whether the name is a video's.
fn is_video(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    VIDEO.iter().any(|known| extension == *known)
}

/// A name for the output of `input`, with its extension where that is a container's or a picture's.
fn name(input: &Path, number: u32) -> OsString {
    let mut name = input.file_stem().unwrap_or_default().to_owned();
    if number > 1 {
        name.push(format!("-{number}"));
    }
    name.push(".");
    match (Container::from_path(input), input.extension()) {
        (Ok(_), Some(extension)) => name.push(extension),
        (Err(_), Some(extension)) if is_picture_name(input) => name.push(extension),
        _ => name.push("mkv"),
    }
    name
}
