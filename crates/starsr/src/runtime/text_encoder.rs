// SPDX-License-Identifier: MPL-2.0

//! Embeddings of prompts: those that come with the bundle, and those of its text encoder.

use std::collections::VecDeque;

use ndarray::Array2;
use ort::value::{Tensor, TensorElementType};

use super::graph::{Dim, Graph, Loader, SAMPLES};
use super::runner::{Runner, failure};
use super::tensor::{check_finite, values};
use crate::error::{Error, Result};
use crate::model::{Embedded, Embedding};
use crate::names::{Role, Setting};
use crate::text::{Key, SentencePiece, Tokens, tokenize};

/// Embeddings that are remembered: a prompt's and a negative prompt's.
const REMEMBERED: usize = 2;
/// Prompts that an error names.
const NAMED: usize = 8;

/// What makes tokens.
enum Tokenizer {
    Clip,
    SentencePiece(Box<SentencePiece>),
    /// The bundle knows the texts of its embeddings alone.
    None,
}

impl Tokenizer {
    /// What a text is known by, and the number of tokens that did not fit.
    fn key(&self, text: &str) -> Result<(Key, usize)> {
        let Tokens { ids, truncated } = match self {
            Self::Clip => tokenize(text),
            Self::SentencePiece(tokenizer) => tokenizer.tokenize(text).map_err(|reason| {
                let reason = format!("cannot be turned into tokens: {reason}");
                Error::setting(Setting::Prompt, reason)
            })?,
            Self::None => return Ok((Key::text(text), 0)),
        };
        Ok((Key::Tokens(ids), truncated))
    }
}

/// All that turns texts into embeddings.
pub(super) struct TextEncoder {
    tokenizer: Tokenizer,
    /// Tokens of a text.
    length: usize,
    graph: Option<Graph>,
    /// The embeddings that come with the bundle.
    known: Vec<(Key, Embedding)>,
    /// The texts of these, where the manifest has them, as an error lists them.
    texts: String,
    /// The last embeddings of the graph, the one used last at the end.
    recent: VecDeque<(Key, Embedding)>,
}

impl TextEncoder {
    /// Loads and checks the graph. All embeddings must have the width that the graphs in `takers`
    /// take, where it is fixed.
    pub fn load(loader: &Loader, takers: &[&Graph]) -> Result<Self> {
        let graph = loader.graph(Role::TextEncoder)?;
        let manifest = loader.bundle.manifest();
        let length = manifest.text_length();
        let tokenizer = match loader.bundle.tokenizer()? {
            Some(tokenizer) => Tokenizer::SentencePiece(Box::new(tokenizer)),
            None if manifest.has_clip_tokens() => Tokenizer::Clip,
            None => Tokenizer::None,
        };
        let mut known = loader.bundle.embeddings()?;
        let texts = listed(&known);
        for (key, _) in &mut known {
            if let Key::Text(text) = key {
                *key = tokenizer.key(text)?.0;
            }
        }
        // The widths of embeddings by who has them, in the order in which they are compared.
        let mut widths: Vec<(String, usize)> = Vec::new();
        let of_known = known.first().map(|(_, e)| e.values().ncols());
        widths.extend(of_known.map(|width| ("prompts.embeddings".to_string(), width)));
        if let Some(graph) = &graph {
            graph.only(&["tokens"], &["embedding"])?;
            let batch = Dim::Free("B");
            let tokens = [batch, Dim::Fixed(length)];
            graph.input("tokens", &[TensorElementType::Int64], &tokens)?;
            graph.output("embedding", SAMPLES, &[batch, Dim::Fixed(length), Dim::Any])?;
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
        Ok(Self { tokenizer, length, graph, known, texts, recent: VecDeque::new() })
    }

    /// The embedding of a text; the graph runs only for those that are not known.
    pub fn embed(&mut self, text: &str, runner: &Runner) -> Result<Embedded> {
        let (key, truncated) = self.tokenizer.key(text)?;
        if let Some((_, embedding)) = self.known.iter().find(|(known, _)| *known == key) {
            return Ok(Embedded { embedding: embedding.clone(), truncated });
        }
        let at = self.recent.iter().position(|(recent, _)| *recent == key);
        let embedding = match at.and_then(|at| self.recent.remove(at)) {
            Some((_, embedding)) => embedding,
            None => self.encode(&key, runner)?,
        };
        self.recent.drain(..self.recent.len().saturating_sub(REMEMBERED - 1));
        self.recent.push_back((key, embedding.clone()));
        Ok(Embedded { embedding, truncated })
    }

    fn encode(&mut self, key: &Key, runner: &Runner) -> Result<Embedding> {
        let (Some(graph), Key::Tokens(ids)) = (&mut self.graph, key) else {
            let reason = format!(
                "the bundle has no text encoder, so only the prompts that come with it work{}; \
                 leave prompt, negative prompt and suffix unset",
                self.texts
            );
            return Err(Error::setting(Setting::Prompt, reason));
        };
        let length = self.length;
        let tokens = Tensor::from_array(([1, length], ids.clone()))
            .map_err(|e| failure(Role::TextEncoder, &e))?;
        let output = runner.run(Role::TextEncoder, |options| {
            let inputs = ort::inputs!["tokens" => tokens];
            let mut outputs = graph.session.run_with_options(inputs, options)?;
            Ok(outputs.remove("embedding"))
        })?;
        let output = output.ok_or_else(|| failed("gave no embedding"))?;
        let last = output.dtype().tensor_shape().and_then(|shape| shape.last());
        let width = last.and_then(|&n| usize::try_from(n).ok()).unwrap_or(0);
        let shape = [1, length, width];
        let values = values(output, &shape, &runner.threads, &runner.buffers).map_err(failed)?;
        let values = (*values).as_ref();
        check_finite(values, &runner.threads).map_err(failed)?;
        let values = Array2::from_shape_vec((length, width), values.to_vec());
        values.map(Embedding::new).map_err(|e| failed(e.to_string()))
    }
}

/// The texts among `known` for the middle of a sentence.
fn listed(known: &[(Key, Embedding)]) -> String {
    let texts = known.iter().filter_map(|(key, _)| match key {
        Key::Text(text) if text.is_empty() => Some("the empty prompt".to_string()),
        Key::Text(text) => Some(format!("{text:?}")),
        Key::Tokens(_) => None,
    });
    let mut texts: Vec<String> = texts.collect();
    if texts.is_empty() {
        return String::new();
    }
    let more = texts.len().saturating_sub(NAMED);
    texts.truncate(NAMED);
    let and = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!(" ({}{and})", texts.join(", "))
}

fn failed(reason: impl Into<String>) -> Error {
    Error::inference(Role::TextEncoder, reason)
}
