// SPDX-License-Identifier: MPL-2.0

//! The engine with stand-ins in place of a model: bundles, windows, sampler, guidance, decoding, faults.

mod bundle;
mod conditioning;
mod decoding;
mod faults;
mod guidance;
mod upscaler;
mod windows;
