// SPDX-License-Identifier: MPL-2.0

//! The engine with stand-ins in place of a model: bundles, windows, sampler, guidance, decoding,
//! faults; and the rules that its sources keep.

mod bundle;
mod context;
mod decoding;
mod device_memory;
mod direct;
mod faults;
mod formats;
mod guidance;
mod read_ahead;
mod structure;
mod tokens;
mod upscaler;
mod windows;
