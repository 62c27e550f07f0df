// SPDX-License-Identifier: MPL-2.0

//! Embeddings of prompts that come with a bundle: a safetensors file with `tokens` and
//! `embeddings`.

use std::path::Path;

use half::f16;
use ndarray::Array2;
use safetensors::{Dtype, SafeTensors};

use crate::error::{Error, Result};
use crate::model::Embedding;
use crate::text::{CONTEXT, Ids};

/// Reads `tokens` I64 `[N,77]` and `embeddings` F32 or F16 `[N,77,D]`.
pub(super) fn read(path: &Path) -> Result<Vec<(Ids, Embedding)>> {
    let error = |reason: String| Error::bundle(path, "prompts.embeddings", reason);
    let fail = |tensor: &str, reason: String| {
        Error::bundle(path, format!("prompts.embeddings, tensor {tensor}"), reason)
    };
    let bytes =
        std::fs::read(path).map_err(|e| error(format!("cannot be read: {e}")).caused_by(e))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| {
        error(format!("is not a safetensors file: {e}; install the bundle again")).caused_by(e)
    })?;
    let tensor = |name: &str| file.tensor(name).map_err(|_| fail(name, "is missing".into()));

    let tokens = tensor("tokens")?;
    let ids = match (tokens.dtype(), tokens.shape()) {
        (Dtype::I64, &[_, CONTEXT]) => integers(tokens.data()),
        (dtype, shape) => {
            return Err(fail(
                "tokens",
                format!("is {dtype:?} {shape:?}, but must be I64 [N, {CONTEXT}]"),
            ));
        }
    };
    let embeddings = tensor("embeddings")?;
    let (width, values) = match (embeddings.dtype(), embeddings.shape()) {
        (Dtype::F32, &[n, CONTEXT, width]) if n == ids.len() && width > 0 => {
            (width, singles(embeddings.data()))
        }
        (Dtype::F16, &[n, CONTEXT, width]) if n == ids.len() && width > 0 => {
            (width, halves(embeddings.data()))
        }
        (dtype, shape) => {
            let reason = format!(
                "is {dtype:?} {shape:?}, but must be F32 or F16 [{}, {CONTEXT}, D]",
                ids.len()
            );
            return Err(fail("embeddings", reason));
        }
    };
    if !values.iter().all(|v| v.is_finite()) {
        return Err(fail("embeddings", "holds values that are not finite numbers".into()));
    }
    let embedding = |values: &[f32]| {
        Array2::from_shape_vec((CONTEXT, width), values.to_vec())
            .map(Embedding::new)
            .map_err(|e| fail("embeddings", e.to_string()))
    };
    ids.into_iter()
        .zip(values.chunks_exact(CONTEXT * width))
        .map(|(ids, values)| Ok((ids, embedding(values)?)))
        .collect()
}

fn integers(bytes: &[u8]) -> Vec<Ids> {
    let values: Vec<i64> = bytes.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b)).collect();
    values.as_chunks().0.to_vec()
}

fn singles(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

fn halves(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect()
}
