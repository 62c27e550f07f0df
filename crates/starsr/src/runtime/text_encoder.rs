// SPDX-License-Identifier: MPL-2.0

//! Embeddings of prompts: those that come with the bundle, and those of its text encoder.

use std::collections::VecDeque;

use ndarray::Array2;
use ort::value::{Tensor, TensorElementType};

use super::graph::{Dim, Graph, Loader, Reload, SAMPLES};
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
    /// Loads the graph, where the bundle has one.
    reload: Option<Reload>,
    /// Bytes that the graph takes while it is loaded, 0 where that is not known.
    memory: u64,
    /// Values of a token that the first graph or file named takes or has, where that is fixed.
    width: Option<(String, usize)>,
    /// The embeddings that come with the bundle.
    known: Vec<(Key, Embedding)>,
    /// The texts of these, where the manifest has them, as an error lists them.
    texts: String,
    /// The last embeddings of the graph, the one used last at the end.
    recent: VecDeque<(Key, Embedding)>,
}

impl TextEncoder {
    /// Reads what comes with the bundle; the graph, which may be the largest of all, is loaded and
    /// checked when a text needs it. All embeddings must have the width that the graphs in `takers`
    /// take, where it is fixed.
    pub fn load(loader: &Loader, takers: &[&Graph]) -> Result<Self> {
        let manifest = loader.bundle.manifest();
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
        let of_known = known.first().map(|(_, e)| e.values().ncols());
        let mut width = of_known.map(|width| ("prompts.embeddings".to_string(), width));
        for graph in takers {
            check_width(graph, width.as_ref())?;
            let found = graph.last_dimension("embedding");
            width = width.or(found.map(|found| (graph.role.to_string(), found)));
        }
        let has_graph = loader.bundle.graph(Role::TextEncoder).is_some();
        Ok(Self {
            tokenizer,
            length: manifest.text_length(),
            reload: has_graph.then(|| loader.reload()),
            memory: manifest.prompts.as_ref().map_or(0, |prompts| prompts.memory),
            width,
            known,
            texts,
            recent: VecDeque::new(),
        })
    }

    /// The embeddings of texts, and the bytes that this took besides. The graph is loaded and runs
    /// only for texts that are not known, and is freed afterwards. `available` are the bytes that
    /// it may take, where that is known.
    pub fn embed(
        &mut self,
        texts: &[&str],
        available: Option<u64>,
        runner: &Runner,
    ) -> Result<(Vec<Embedded>, u64)> {
        let mut graph = None;
        let embed = |text: &&str| self.embed_one(text, &mut graph, available, runner);
        let embedded = texts.iter().map(embed).collect::<Result<Vec<_>>>()?;
        Ok((embedded, if graph.is_some() { self.memory } else { 0 }))
    }

    fn embed_one(
        &mut self,
        text: &str,
        graph: &mut Option<Graph>,
        available: Option<u64>,
        runner: &Runner,
    ) -> Result<Embedded> {
        let (key, truncated) = self.tokenizer.key(text)?;
        if let Some((_, embedding)) = self.known.iter().find(|(known, _)| *known == key) {
            return Ok(Embedded { embedding: embedding.clone(), truncated });
        }
        let at = self.recent.iter().position(|(recent, _)| *recent == key);
        let embedding = if let Some((_, embedding)) = at.and_then(|at| self.recent.remove(at)) {
            embedding
        } else {
            let ids = self.ids(&key)?;
            let graph = match graph {
                Some(graph) => graph,
                None => graph.insert(self.graph(available, runner)?),
            };
            encode(graph, ids, runner)?
        };
        self.recent.drain(..self.recent.len().saturating_sub(REMEMBERED - 1));
        self.recent.push_back((key, embedding.clone()));
        Ok(Embedded { embedding, truncated })
    }

    /// The tokens of a text that is not known.
    fn ids<'a>(&self, key: &'a Key) -> Result<&'a [i64]> {
        match key {
            Key::Tokens(ids) if self.reload.is_some() => Ok(ids),
            _ => {
                let reason = format!(
                    "the bundle has no text encoder, so only the prompts that come with it work{}; \
                     leave prompt, negative prompt and suffix unset",
                    self.texts
                );
                Err(Error::setting(Setting::Prompt, reason))
            }
        }
    }

    /// Loads and checks the graph.
    fn graph(&self, available: Option<u64>, runner: &Runner) -> Result<Graph> {
        let Some(reload) = &self.reload else { return Err(failed("the bundle has no such graph")) };
        if let Some(available) = available.filter(|&available| available < self.memory) {
            let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
            let reason = format!(
                "the text encoder takes {:.1} GiB of memory, but there are {:.1} GiB; use a prompt \
                 that comes with the bundle{}",
                gib(self.memory),
                gib(available),
                self.texts
            );
            return Err(Error::Memory { graph: Role::TextEncoder, reason });
        }
        let graph = reload.graph(Role::TextEncoder, runner.cancel())?;
        graph.only(&["tokens"], &["embedding"])?;
        let (batch, length) = (Dim::Free("B"), Dim::Fixed(self.length));
        graph.input("tokens", &[TensorElementType::Int64], &[batch, length])?;
        graph.output("embedding", SAMPLES, &[batch, length, Dim::Any])?;
        check_width(&graph, self.width.as_ref())?;
        Ok(graph)
    }
}

/// Checks that embeddings have as many values in `graph` as elsewhere, where that is fixed.
fn check_width(graph: &Graph, expected: Option<&(String, usize)>) -> Result<()> {
    match (graph.last_dimension("embedding"), expected) {
        (Some(width), Some((other, expected))) if width != *expected => {
            let reason =
                format!("an embedding has {width} values a token here and {expected} in {other}");
            Err(graph.error("embedding", reason))
        }
        _ => Ok(()),
    }
}

/// The embedding of tokens by the text encoder.
fn encode(graph: &mut Graph, ids: &[i64], runner: &Runner) -> Result<Embedding> {
    let length = ids.len();
    let tokens = Tensor::from_array(([1, length], ids.to_vec()))
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
