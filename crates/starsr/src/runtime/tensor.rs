// SPDX-License-Identifier: MPL-2.0

//! Samples on their way into and out of tensors: 32- or 16-bit floats, frames or channels first.

use std::fmt::Debug;

use half::f16;
use half::slice::HalfFloatSliceExt;
use ndarray::{Array4, ArrayView4};
use ort::session::IoBinding;
use ort::value::{DynValue, PrimitiveTensorElementType, Tensor, TensorElementType};

use super::runner::one_line;
use crate::parallel::{PART, Threads};

/// An element type of samples.
trait Sample: PrimitiveTensorElementType + Debug + Copy + Default + Send + Sync + 'static {
    fn store(from: &[f32], to: &mut [Self]);
    fn fetch(from: &[Self], to: &mut [f32]);
}

impl Sample for f32 {
    fn store(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }

    fn fetch(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
}

impl Sample for f16 {
    fn store(from: &[f32], to: &mut [f16]) {
        to.convert_from_f32_slice(from);
    }

    fn fetch(from: &[f16], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
}

/// An input tensor in host memory, owned so that a binding may hold it.
pub(super) enum Input {
    F32(Tensor<f32>),
    F16(Tensor<f16>),
}

fn zeros<T: Sample>(shape: &[usize]) -> ort::Result<Tensor<T>> {
    Tensor::from_array((shape, vec![T::default(); shape.iter().product()]))
}

impl Input {
    /// A tensor of zeros.
    pub fn new(element: TensorElementType, shape: &[usize]) -> ort::Result<Self> {
        Ok(match element {
            TensorElementType::Float16 => Self::F16(zeros(shape)?),
            _ => Self::F32(zeros(shape)?),
        })
    }

    /// Fills the tensor with samples that are already in its order.
    pub fn fill(&mut self, samples: &[f32], threads: &Threads) {
        match self {
            Self::F32(tensor) => store(samples, tensor.extract_tensor_mut().1, threads),
            Self::F16(tensor) => store(samples, tensor.extract_tensor_mut().1, threads),
        }
    }

    /// Fills each part of the tensor `[B,C,F,h,w]` with the same latents `[F,C,h,w]`.
    pub fn fill_channels_first(&mut self, latents: ArrayView4<f32>, threads: &Threads) {
        match self {
            Self::F32(tensor) => {
                store_channels_first(latents, tensor.extract_tensor_mut().1, threads);
            }
            Self::F16(tensor) => {
                store_channels_first(latents, tensor.extract_tensor_mut().1, threads);
            }
        }
    }

    pub fn bind(&self, binding: &mut IoBinding, name: &str) -> ort::Result<()> {
        match self {
            Self::F32(tensor) => binding.bind_input(name, tensor),
            Self::F16(tensor) => binding.bind_input(name, tensor),
        }
    }

    pub fn into_dyn(self) -> DynValue {
        match self {
            Self::F32(tensor) => tensor.into_dyn(),
            Self::F16(tensor) => tensor.into_dyn(),
        }
    }
}

fn store<T: Sample>(from: &[f32], to: &mut [T], threads: &Threads) {
    threads.for_each(from.chunks(PART).zip(to.chunks_mut(PART)), |(from, to)| T::store(from, to));
}

fn store_channels_first<T: Sample>(latents: ArrayView4<f32>, to: &mut [T], threads: &Threads) {
    let (frames, channels, height, width) = latents.dim();
    let latents = latents.as_standard_layout();
    let from = latents.as_slice().expect("the standard layout is contiguous");
    let plane = height * width;
    threads.for_each(to.chunks_exact_mut(plane).enumerate(), |(place, to)| {
        let (c, f) = (place / frames % channels, place % frames);
        let at = (f * channels + c) * plane;
        T::store(&from[at..at + plane], to);
    });
}

fn fetch_frames_first<T: Sample>(from: &[T], latents: &mut Array4<f32>, threads: &Threads) {
    let (frames, channels, height, width) = latents.dim();
    let to = latents.as_slice_mut().expect("a new array is contiguous");
    let plane = height * width;
    threads.for_each(to.chunks_exact_mut(plane).enumerate(), |(place, to)| {
        let (f, c) = (place / channels, place % channels);
        let at = (c * frames + f) * plane;
        T::fetch(&from[at..at + plane], to);
    });
}

/// Copies an output of `shape` to `samples`, which has as many elements. Fails with a sentence when
/// the tensor has another shape or holds values that are not finite.
pub(super) fn fetch(
    value: &DynValue,
    shape: &[usize],
    samples: &mut [f32],
    threads: &Threads,
) -> Result<(), String> {
    fn copy<T: Sample>(from: &[T], to: &mut [f32], threads: &Threads) {
        threads
            .for_each(from.chunks(PART).zip(to.chunks_mut(PART)), |(from, to)| T::fetch(from, to));
    }
    match element(value)? {
        TensorElementType::Float16 => copy::<f16>(checked(value, shape)?, samples, threads),
        _ => copy::<f32>(checked(value, shape)?, samples, threads),
    }
    if threads.all_finite(samples) {
        return Ok(());
    }
    Err("gave values that are not finite numbers; with 16-bit graphs use the 32-bit version of the bundle"
        .into())
}

/// Copies an output `[B,C,F,h,w]` to B latents `[F,C,h,w]`, be they finite or not. Fails with a
/// sentence when the tensor has another shape.
pub(super) fn fetch_latents(
    value: &DynValue,
    results: &mut [Array4<f32>],
    threads: &Threads,
) -> Result<(), String> {
    let Some(latents) = results.first() else { return Ok(()) };
    let (frames, channels, height, width) = latents.dim();
    let size = latents.len();
    let shape = [results.len(), channels, frames, height, width];
    if element(value)? == TensorElementType::Float16 {
        let parts = checked::<f16>(value, &shape)?.chunks_exact(size);
        parts
            .zip(&mut *results)
            .for_each(|(part, latents)| fetch_frames_first(part, latents, threads));
    } else {
        let parts = checked::<f32>(value, &shape)?.chunks_exact(size);
        parts
            .zip(&mut *results)
            .for_each(|(part, latents)| fetch_frames_first(part, latents, threads));
    }
    Ok(())
}

fn element(value: &DynValue) -> Result<TensorElementType, String> {
    value.dtype().tensor_type().ok_or_else(|| "gave no tensor".into())
}

fn checked<'v, T: Sample>(value: &'v DynValue, shape: &[usize]) -> Result<&'v [T], String> {
    let (found, samples) = value.try_extract_tensor::<T>().map_err(|e| one_line(&e))?;
    if found.len() == shape.len()
        && found.iter().zip(shape).all(|(&a, &b)| usize::try_from(a) == Ok(b))
    {
        Ok(samples)
    } else {
        Err(format!("gave a tensor of shape {:?} where {shape:?} was expected", &**found))
    }
}
