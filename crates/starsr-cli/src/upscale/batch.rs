// SPDX-License-Identifier: MPL-2.0

//! Which files become which.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::output::reason;
use super::streams::Container;

/// Extensions of the files that are taken from a folder.
const VIDEO: [&str; 28] = [
    "3gp", "asf", "avi", "dv", "f4v", "flv", "gif", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg",
    "mpg", "mts", "mxf", "nut", "ogm", "ogv", "qt", "rm", "rmvb", "ts", "vob", "webm", "wmv",
    "y4m", "m2v",
];

/// One file to read and one to write.
pub struct Job {
    pub input: PathBuf,
    pub output: PathBuf,
}

/// One job for each of `inputs`, and for each video in those that are folders. The outputs are in
/// `folder`, which is made if it is missing, and have the names of the inputs; two that would have
/// the same name get different ones.
pub fn jobs(inputs: &[PathBuf], folder: &Path) -> Result<Vec<Job>, String> {
    let failed = |path: &Path, error: &io::Error| format!("{}: {}", path.display(), reason(error));
    fs::create_dir_all(folder).map_err(|error| failed(folder, &error))?;
    let mut files = Vec::new();
    for input in inputs {
        if input.is_dir() {
            let videos = videos(input).map_err(|error| failed(input, &error))?;
            if videos.is_empty() {
                return Err(format!("{}: no video is in this folder", input.display()));
            }
            files.extend(videos);
        } else {
            files.push(input.clone());
        }
    }
    let mut taken = HashSet::new();
    let job = |input: PathBuf| {
        let mut outputs = (1..=u32::MAX).map(|number| folder.join(name(&input, number)));
        let output = outputs.find(|output| taken.insert(output.clone()));
        Job { output: output.unwrap_or_default(), input }
    };
    Ok(files.into_iter().map(job).collect())
}

/// The visible videos in `folder`, by name.
fn videos(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut videos = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        if !hidden && path.is_file() && VIDEO.iter().any(|known| extension == *known) {
            videos.push(path);
        }
    }
    videos.sort();
    Ok(videos)
}

/// A name for the output of `input`, with its extension where that is a container's.
fn name(input: &Path, number: u32) -> OsString {
    let mut name = input.file_stem().unwrap_or_default().to_owned();
    if number > 1 {
        name.push(format!("-{number}"));
    }
    name.push(".");
    match (Container::from_path(input), input.extension()) {
        (Ok(_), Some(extension)) => name.push(extension),
        _ => name.push("mkv"),
    }
    name
}
