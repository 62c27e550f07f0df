// SPDX-License-Identifier: MPL-2.0

//! Embeddings of prompts that come with a bundle: a safetensors file with `embeddings` and, unless
//! the manifest has their texts, `tokens`.

use std::path::Path;

use half::f16;
use ndarray::Array2;
use safetensors::{Dtype, SafeTensors};

use crate::error::{Error, Result};
use crate::model::Embedding;
use crate::text::Key;

/// Reads `embeddings` F32 or F16 `[N,length,D]`, and `tokens` I64 `[N,length]` where there are no
/// `texts`, of which there are `N` otherwise.
pub(super) fn read(
    path: &Path,
    length: usize,
    texts: Option<&[String]>,
) -> Result<Vec<(Key, Embedding)>> {
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

    let keys: Vec<Key> = if let Some(texts) = texts {
        texts.iter().map(|text| Key::text(text)).collect()
    } else {
        let tokens = tensor("tokens")?;
        match (tokens.dtype(), tokens.shape()) {
            (Dtype::I64, &[_, n]) if n == length => {
                let ids = integers(tokens.data());
                ids.chunks_exact(length).map(|ids| Key::Tokens(ids.to_vec())).collect()
            }
            (dtype, shape) => {
                let reason = format!("is {dtype:?} {shape:?}, but must be I64 [N, {length}]");
                return Err(fail("tokens", reason));
            }
        }
    };
    let embeddings = tensor("embeddings")?;
    let (width, shape) = match embeddings.shape() {
        &[n, l, width] if n == keys.len() && l == length && width > 0 => (width, true),
        _ => (1, false),
    };
    let values = match embeddings.dtype() {
        Dtype::F32 if shape => singles(embeddings.data()),
        Dtype::F16 if shape => halves(embeddings.data()),
        dtype => {
            let reason = format!(
                "is {dtype:?} {:?}, but must be F32 or F16 [{}, {length}, D]",
                embeddings.shape(),
                keys.len()
            );
            return Err(fail("embeddings", reason));
        }
    };
    if !values.iter().all(|v| v.is_finite()) {
        return Err(fail("embeddings", "holds values that are not finite numbers".into()));
    }
    let embedding = |values: &[f32]| {
        Array2::from_shape_vec((length, width), values.to_vec())
            .map(Embedding::new)
            .map_err(|e| fail("embeddings", e.to_string()))
    };
    keys.into_iter()
        .zip(values.chunks_exact(length * width))
        .map(|(key, values)| Ok((key, embedding(values)?)))
        .collect()
}

fn integers(bytes: &[u8]) -> Vec<i64> {
    bytes.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b)).collect()
}

fn singles(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

fn halves(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect()
}
