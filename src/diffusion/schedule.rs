// SPDX-License-Identifier: MPL-2.0

/// Spacing of the timesteps (SPEC A.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SamplerMode {
    /// The official 14 evaluations.
    Fast,
    /// As many evaluations as `steps` says, evenly spaced.
    Normal,
}
