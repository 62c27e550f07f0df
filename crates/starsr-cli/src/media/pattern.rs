// SPDX-License-Identifier: MPL-2.0

//! Names of numbered files, such as `frame_%05d.png`.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::output::folder;

/// A path whose file name has a place for a number.
#[derive(Debug, PartialEq, Eq)]
pub struct Pattern {
    path: PathBuf,
    /// What is in front of the number, and behind it.
    before: String,
    after: String,
    /// Digits that the number has at least.
    width: usize,
}

impl Pattern {
    /// The pattern that `path` is: with `%d` or, for numbers of at least N digits, `%0Nd`.
    pub fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let (before, rest) = name.split_once('%')?;
        let (digits, after) = rest.split_once('d')?;
        let is_width = digits.is_empty()
            || digits.starts_with('0') && digits[1..].parse::<u8>().is_ok_and(|width| width > 0);
        let width = digits.parse().unwrap_or(1);
        (is_width && !after.contains('%')).then(|| Self {
            path: path.to_owned(),
            before: before.to_owned(),
            after: after.to_owned(),
            width,
        })
    }

    pub fn name(&self) -> &std::ffi::OsStr {
        self.path.file_name().unwrap_or_default()
    }

    /// The path for elements that put numbers in as `printf` does.
    pub fn printf(&self) -> PathBuf {
        let folder = folder(&self.path).to_string_lossy().replace('%', "%%");
        Path::new(&folder).join(self.name())
    }

    /// The file of `number`.
    pub fn file(&self, number: u64) -> PathBuf {
        let width = self.width;
        folder(&self.path).join(format!("{}{number:0width$}{}", self.before, self.after))
    }

    /// The lowest number of a file that exists.
    pub fn first(&self) -> Option<u64> {
        self.numbers().into_iter().min()
    }

    /// How many numbers from `first` on have files without a gap.
    pub fn count_from(&self, first: u64) -> u64 {
        let numbers = self.numbers();
        let end = first.saturating_add(numbers.len() as u64);
        (first..end).take_while(|number| numbers.contains(number)).count() as u64
    }

    /// The numbers of the files that exist.
    fn numbers(&self) -> HashSet<u64> {
        let number = |name: &str| {
            let number = name.strip_prefix(&self.before)?.strip_suffix(&self.after)?;
            let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
            if is_number { number.parse().ok() } else { None }
        };
        let entries = fs::read_dir(folder(&self.path)).into_iter().flatten().flatten();
        entries.filter_map(|entry| number(entry.file_name().to_str()?)).collect()
    }
}
