// SPDX-License-Identifier: MPL-2.0

//! Embeddings of prompts: those that come with the bundle, and those of its text encoder.

use std::collections::VecDeque;

use ndarray::Array2;
use ort::value::{Tensor, TensorElementType};

use super::graph::{Dim, Graph, Loader, SAMPLES};
use super::runner::{Runner, failure};
use super::tensor::{check_finite, values};
use crate::error::{Error, Result};
use crate::model::Embedding;
use crate::names::{Role, Setting};
use crate::text::{CONTEXT, Ids};

/// Embeddings that are remembered: a prompt's and a negative prompt's.
const REMEMBERED: usize = 2;

/// All that turns tokens into embeddings.
pub(super) struct TextEncoder {
    graph: Option<Graph>,
    /// The embeddings that come with the bundle.
    known: Vec<(Ids, Embedding)>,
    /// The last embeddings of the graph, the one used last at the end.
    recent: VecDeque<(Ids, Embedding)>,
}

impl TextEncoder {
    /// Loads and checks the graph. All embeddings must have the width that the graphs in `takers`
    /// take, where it is fixed.
    pub fn load(loader: &Loader, takers: &[&Graph]) -> Result<Self> {
        let graph = loader.graph(Role::TextEncoder)?;
        let known = loader.bundle.embeddings()?;
        // The widths of embeddings by who has them, in the order in which they are compared.
        let mut widths: Vec<(String, usize)> = Vec::new();
        let of_known = known.first().map(|(_, e)| e.values().ncols());
        widths.extend(of_known.map(|width| ("prompts.embeddings".to_string(), width)));
        if let Some(graph) = &graph {
            graph.only(&["tokens"], &["embedding"])?;
            let batch = Dim::Free("B");
            let tokens = [batch, Dim::Fixed(CONTEXT)];
            graph.input("tokens", &[TensorElementType::Int64], &tokens)?;
            graph.output("embedding", SAMPLES, &[batch, Dim::Fixed(CONTEXT), Dim::Any])?;
        }
        for graph in graph.iter().chain(takers.iter().copied()) {
            let Some(width) = graph.last_dimension("embedding") else { continue };
            match widths.first() {
                Some((other, expected)) if *expected != width => {
                    let reason = format!(
                        "an embedding has {width} values a token here and {expected} in {other}"
                    );
                    return Err(graph.error("embedding", reason));
                }
                _ => widths.push((graph.role.to_string(), width)),
            }
        }
        Ok(Self { graph, known, recent: VecDeque::new() })
    }

    /// The embedding of a text's tokens; the graph runs only for those that are not known.
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
        let last = self.recent.back().map(|(_, embedding)| embedding.clone());
        last.ok_or_else(|| failed("gave no embedding"))
    }

    fn encode(&mut self, ids: &Ids, runner: &Runner) -> Result<Embedding> {
        let Some(graph) = &mut self.graph else {
            let reason = "the bundle has no text encoder, so only the prompts that come with it work; \
                          leave prompt, negative prompt and suffix unset";
            return Err(Error::setting(Setting::Prompt, reason));
        };
        let tokens = Tensor::from_array(([1, CONTEXT], ids.to_vec()))
            .map_err(|e| failure(Role::TextEncoder, &e))?;
        let output = runner.run(Role::TextEncoder, |options| {
            let inputs = ort::inputs!["tokens" => tokens];
            let mut outputs = graph.session.run_with_options(inputs, options)?;
            Ok(outputs.remove("embedding"))
        })?;
        let output = output.ok_or_else(|| failed("gave no embedding"))?;
        let last = output.dtype().tensor_shape().and_then(|shape| shape.last());
        let width = last.and_then(|&n| usize::try_from(n).ok()).unwrap_or(0);
        let shape = [1, CONTEXT, width];
        let values = values(output, &shape, &runner.threads, &runner.buffers).map_err(failed)?;
        let values = (*values).as_ref();
        check_finite(values, &runner.threads).map_err(failed)?;
        let values = Array2::from_shape_vec((CONTEXT, width), values.to_vec());
        values.map(Embedding::new).map_err(|e| failed(e.to_string()))
    }
}

fn failed(reason: impl Into<String>) -> Error {
    Error::inference(Role::TextEncoder, reason)
}
