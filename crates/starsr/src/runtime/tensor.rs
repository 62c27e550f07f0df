// SPDX-License-Identifier: MPL-2.0

//! Samples on their way into and out of tensors: 32- or 16-bit floats, frames or channels first.

use std::fmt::Debug;
use std::sync::Arc;

use half::f16;
use half::slice::HalfFloatSliceExt;
use ndarray::{ArrayView2, ArrayView4};
use ort::session::{IoBinding, SessionInputValue};
use ort::value::{
    DynValue, PrimitiveTensorElementType, Tensor, TensorElementType, TensorValueType,
};

use super::runner::one_line;
use crate::buffers::Buffers;
use crate::parallel::{PART, Threads};

/// An element type of samples.
trait Sample: PrimitiveTensorElementType + Debug + Copy + Default + Send + Sync + 'static {
    fn store(from: &[f32], to: &mut [Self]);
}

impl Sample for f32 {
    fn store(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
}

impl Sample for f16 {
    fn store(from: &[f32], to: &mut [f16]) {
        to.convert_from_f32_slice(from);
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

    /// Fills each of the tensor's equal parts with the same samples, in the order of their axes.
    pub fn fill(&mut self, samples: ArrayView4<f32>, threads: &Threads) {
        match self {
            Self::F32(tensor) => store(samples, tensor.extract_tensor_mut().1, threads),
            Self::F16(tensor) => store(samples, tensor.extract_tensor_mut().1, threads),
        }
    }

    pub fn bind(&self, binding: &mut IoBinding, name: &str) -> ort::Result<()> {
        match self {
            Self::F32(tensor) => binding.bind_input(name, tensor),
            Self::F16(tensor) => binding.bind_input(name, tensor),
        }
    }

    /// The tensor as the input of a run.
    pub fn view(&self) -> SessionInputValue<'_> {
        match self {
            Self::F32(tensor) => tensor.into(),
            Self::F16(tensor) => tensor.into(),
        }
    }
}

/// Stores `samples` in each equal part of `to`.
fn store<T: Sample>(samples: ArrayView4<f32>, to: &mut [T], threads: &Threads) {
    threads.for_each_plane(samples, to, |from, to| match from.to_slice() {
        Some(from) => T::store(from, to),
        None => store_rows(from, to),
    });
}

fn store_rows<T: Sample>(from: ArrayView2<f32>, to: &mut [T]) {
    for (from, to) in from.outer_iter().zip(to.chunks_exact_mut(from.ncols())) {
        match from.to_slice() {
            Some(from) => T::store(from, to),
            None => {
                from.iter().zip(to).for_each(|(v, to)| T::store(&[*v], std::slice::from_mut(to)));
            }
        }
    }
}

/// A tensor's values where the runtime has left them.
struct InTensor(Tensor<f32>);

impl AsRef<[f32]> for InTensor {
    fn as_ref(&self) -> &[f32] {
        self.0.extract_tensor().1
    }
}

/// The values of an output of `shape`: where they are, or in a buffer where they are 16-bit floats.
/// Fails with a sentence when the tensor has another shape.
pub(super) fn values(
    value: DynValue,
    shape: &[usize],
    threads: &Threads,
    buffers: &Buffers,
) -> Result<Arc<dyn AsRef<[f32]> + Send + Sync>, String> {
    let element = value.dtype().tensor_type().ok_or("gave no tensor")?;
    if element == TensorElementType::Float16 {
        let from = checked::<f16>(&value, shape)?;
        let mut to = buffers.lease(from.len());
        let parts = from.chunks(PART).zip(to.chunks_mut(PART));
        threads.for_each(parts, |(from, to)| from.convert_to_f32_slice(to));
        return Ok(Arc::new(to));
    }
    checked::<f32>(&value, shape)?;
    let tensor = value.downcast::<TensorValueType<f32>>().map_err(|e| one_line(&e))?;
    Ok(Arc::new(InTensor(tensor)))
}

/// Fails with a sentence where some of `values` is no finite number.
pub(super) fn check_finite(values: &[f32], threads: &Threads) -> Result<(), String> {
    if threads.all_finite(values) {
        return Ok(());
    }
    Err("gave values that are not finite numbers; with 16-bit graphs use the 32-bit version of the bundle"
        .into())
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
