// SPDX-License-Identifier: MPL-2.0

//! Embeddings of prompts: those that the bundle brings along, and those of its text encoder.

use std::collections::VecDeque;

use ndarray::Array2;
use ort::value::{Tensor, TensorElementType};

use super::session::{Dim, Graph, Runner, SAMPLES, failure};
use super::tensor;
use crate::bundle::{Bundle, Role};
use crate::error::{Error, Result};
use crate::model::Embedding;
use crate::text::{CONTEXT, Ids};

/// Embeddings that are remembered: a prompt's and a negative prompt's.
const REMEMBERED: usize = 2;

/// All that turns tokens into embeddings.
pub(super) struct Text {
    encoder: Option<Graph>,
    /// Those of the bundle.
    known: Vec<(Ids, Embedding)>,
    /// The last ones of the encoder, the one used last at the end.
    recent: VecDeque<(Ids, Embedding)>,
}

impl Text {
    /// Checks the text encoder, and that all embeddings have the size that the graphs in `takers` take where it is fixed.
    pub fn new(bundle: &Bundle, encoder: Option<Graph>, takers: &[&Graph]) -> Result<Self> {
        let known = bundle.embeddings()?;
        // Who says how wide an embedding is, in the order in which they are compared.
        let mut widths: Vec<(String, usize)> = Vec::new();
        widths.extend(known.first().map(|(_, e)| ("prompts.embeddings".to_string(), e.values().ncols())));
        if let Some(graph) = &encoder {
            graph.only(&["tokens"], &["embedding"])?;
            graph.input("tokens", &[TensorElementType::Int64], &[Dim::Free("B"), Dim::Fixed(CONTEXT)])?;
            graph.output("embedding", SAMPLES, &[Dim::Free("B"), Dim::Fixed(CONTEXT), Dim::Any])?;
        }
        for graph in encoder.iter().chain(takers.iter().copied()) {
            let Some(width) = graph.last_dimension("embedding") else { continue };
            match widths.first() {
                Some((other, expected)) if *expected != width => {
                    let reason =
                        format!("an embedding has {width} values a token here and {expected} in {other}");
                    return Err(graph.error("embedding", reason));
                }
                _ => widths.push((graph.role.to_string(), width)),
            }
        }
        Ok(Self { encoder, known, recent: VecDeque::new() })
    }

    /// Whether there is a text encoder.
    pub fn has_encoder(&self) -> bool {
        self.encoder.is_some()
    }

    /// The embedding of a text's tokens; the encoder runs only for those that are not known.
    pub fn embed(&mut self, ids: &Ids, runner: &Runner) -> Result<Embedding> {
        if let Some((_, embedding)) = self.known.iter().find(|(known, _)| known == ids) {
            return Ok(embedding.clone());
        }
        if let Some(at) = self.recent.iter().position(|(recent, _)| recent == ids) {
            let used = self.recent.remove(at);
            self.recent.extend(used);
        } else {
            let embedding = self.encode(ids, runner)?;
            self.recent.drain(..self.recent.len().saturating_sub(REMEMBERED - 1));
            self.recent.push_back((*ids, embedding));
        }
        self.recent.back().map(|(_, embedding)| embedding.clone()).ok_or_else(|| gave_none("no embedding"))
    }

    fn encode(&mut self, ids: &Ids, runner: &Runner) -> Result<Embedding> {
        let Some(encoder) = &mut self.encoder else {
            return Err(Error::Setting {
                setting: "prompt",
                reason: "the bundle has no text encoder, so that only the prompts it comes with work; leave prompt, \
                         negative-prompt and prompt-suffix unset"
                    .into(),
            });
        };
        let tokens =
            Tensor::from_array(([1, CONTEXT], ids.to_vec())).map_err(|e| failure(Role::TextEncoder, &e))?;
        let output = runner.run(Role::TextEncoder, |options| {
            encoder
                .session
                .run_with_options(ort::inputs!["tokens" => tokens], options)
                .map(|mut outputs| outputs.remove("embedding"))
        })?;
        let output = output.ok_or_else(|| gave_none("no embedding"))?;
        let shape = output.dtype().tensor_shape();
        let width = shape.and_then(|shape| shape.last()).and_then(|&n| usize::try_from(n).ok()).unwrap_or(0);
        let mut values = Array2::zeros((CONTEXT, width));
        let samples = values.as_slice_mut().expect("a new array is contiguous");
        tensor::fetch(&output, &[1, CONTEXT, width], samples, runner.threads)
            .map_err(|reason| gave_none(&reason))?;
        Ok(Embedding::new(values))
    }
}

fn gave_none(reason: &str) -> Error {
    Error::Inference { graph: Role::TextEncoder.to_string(), reason: reason.into() }
}
