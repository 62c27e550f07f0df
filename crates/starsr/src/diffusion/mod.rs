// SPDX-License-Identifier: MPL-2.0

//! The diffusion process of STAR: noise schedule, solver, guidance and noise, free of ONNX Runtime.

pub mod guidance;
pub mod noise;
pub mod sampler;
pub mod schedule;
pub mod solver;
pub mod tiled;
pub mod wavefront;
