// SPDX-License-Identifier: MPL-2.0

/// The manifest.
#[derive(Debug, Clone)]
pub struct Manifest {}
