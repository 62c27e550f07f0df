// SPDX-License-Identifier: MPL-2.0

/// How neighbouring windows are joined (DESIGN section 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WindowMode {
    /// Every window is sampled on its own; the pixels of the overlap are cross-faded.
    Blend,
    /// The windows' predictions are merged at every step, as the official program does.
    Wavefront,
}
