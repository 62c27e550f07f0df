// SPDX-License-Identifier: MPL-2.0

//! Reading: what an input is, and how its streams come out of it.

pub mod converter;
pub mod counts;
pub mod cut;
pub mod elements;
pub mod errors;
pub mod ffmpeg;
pub mod folder;
pub mod hdr;
pub mod held;
pub mod input;
pub mod mending;
pub mod pattern;
pub mod probe;
pub mod reading;
pub mod scan;
pub mod spool;
pub mod stall;
pub mod streams;
