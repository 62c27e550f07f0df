// SPDX-License-Identifier: MPL-2.0

//! The element `starsr`, driven as GStreamer drives it, with a tiny bundle.
//! Needs ONNX Runtime: `ORT_DYLIB_PATH`, or beside the test's executable.

mod allocation;
mod bypass;
mod cancelling;
mod changes;
mod chroma;
mod cogvideox;
mod direct;
mod documentation;
mod errors;
mod events;
mod feeds;
mod flow;
mod formats;
mod fuzz;
mod latency;
mod live;
mod matrix;
mod memory;
mod negotiation;
mod observing;
mod official_size;
mod pipelines;
mod prompts;
mod read_ahead;
mod real;
mod scenes;
mod seeking;
mod shutdown;
mod timing;
mod tracing;
