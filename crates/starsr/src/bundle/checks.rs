// SPDX-License-Identifier: MPL-2.0

//! Checks of a manifest's values, and the sentences about what is wrong.

use std::fmt;
use std::path::{Component, Path};

use crate::error::Error;
use crate::geometry::LegalSizes;

/// What is wrong with a field of the manifest.
pub(super) struct Fault {
    pub(super) field: String,
    pub(super) reason: String,
}

impl Fault {
    pub(super) fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into() }
    }
}

pub(super) fn check_axis(field: &str, axis: LegalSizes, factor: usize) -> Result<(), Fault> {
    within(&format!("{field}.multiple"), axis.multiple, 1, 4096)?;
    within(&format!("{field}.offset"), axis.offset, 0, axis.multiple - 1)?;
    within(&format!("{field}.minimum"), axis.minimum, 0, 16384)?;
    for (key, value) in [("multiple", axis.multiple), ("offset", axis.offset)] {
        if value % factor != 0 {
            let reason =
                format!("is {value}, but must be a multiple of latent.spatial_factor, {factor}");
            return Err(Fault::new(format!("{field}.{key}"), reason));
        }
    }
    Ok(())
}

pub(super) fn within<T: PartialOrd + fmt::Display>(
    field: &str,
    value: T,
    low: T,
    high: T,
) -> Result<(), Fault> {
    // Written so that NaN fails.
    if value >= low && value <= high {
        Ok(())
    } else {
        Err(Fault::new(field, format!("is {value}, but must be between {low} and {high}")))
    }
}

pub(super) fn above_zero(field: &str, value: f64) -> Result<(), Fault> {
    if value.is_finite() && value > 0.0 {
        Ok(())
    } else {
        Err(Fault::new(field, format!("is {value}, but must be a number above 0")))
    }
}

/// A file name must be a plain relative path which stays in the folder; a hash 64 hexadecimal
/// digits.
pub(super) fn check_file(field: &str, file: &str, sha256: &str) -> Result<(), Fault> {
    let mut components = Path::new(file).components().peekable();
    let plain =
        components.peek().is_some() && components.all(|c| matches!(c, Component::Normal(_)));
    if !plain || file.contains(['\\', '\0']) || file.ends_with('/') {
        let reason = format!(
            "{file:?} must be a plain path inside the bundle's folder, without `..` or a leading `/`"
        );
        return Err(Fault::new(format!("{field}.file"), reason));
    }
    if sha256.len() != 64 || !sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
        let reason = format!("must be the 64 hexadecimal digits that `sha256sum {file}` prints");
        return Err(Fault::new(format!("{field}.sha256"), reason));
    }
    Ok(())
}

/// Turns a TOML error into one sentence which names the line and, where there is one, the key.
pub(super) fn toml_error(text: &str, file: &Path, e: toml::de::Error) -> Error {
    let message = e.message().trim().replace('\n', "; ");
    let Some(before) = e.span().and_then(|span| text.get(..span.start)) else {
        return Error::bundle(file, "manifest", message).caused_by(e);
    };
    let number = before.matches('\n').count();
    let mut table = "";
    for line in text.lines().take(number + 1) {
        if let Some(rest) = line.trim().strip_prefix('[') {
            table = rest.trim_start_matches('[').split(']').next().unwrap_or("").trim();
        }
    }
    let line = text.lines().nth(number).unwrap_or("").trim();
    let key = line.split_once('=').map_or("", |(key, _)| key.trim());
    let dot = if table.is_empty() || key.is_empty() { "" } else { "." };
    let gap = if table.is_empty() && key.is_empty() { "" } else { " " };
    let field = format!("{table}{dot}{key}{gap}(line {})", number + 1);
    Error::bundle(file, field, message).caused_by(e)
}
