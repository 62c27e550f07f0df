// SPDX-License-Identifier: MPL-2.0

//! The diffusion process of STAR: noise schedule, solver, guidance and noise, free of ONNX Runtime.

pub mod family;
pub mod guidance;
pub mod guidance_scale;
pub mod noise;
pub mod positions;
pub mod sampler;
pub mod scaled_linear;
pub mod schedule;
pub mod solver;
pub mod tiled;
pub mod wavefront;
