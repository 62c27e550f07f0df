// SPDX-License-Identifier: MPL-2.0

/// How the colours of the result are corrected against the input (SPEC A.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ColorFix {
    /// Colours as the model gives them.
    None,
    /// Mean and standard deviation of each channel and frame taken from the input.
    Adain,
    /// Low frequencies taken from the input.
    Wavelet,
}
