// SPDX-License-Identifier: MPL-2.0

//! The tokens of T5 (docs/star.md, B.4): a unigram model of SentencePiece, read from its file
//! `spiece.model`.

use tokenizers::Model;
use tokenizers::models::unigram::Unigram;

use super::Tokens;
use super::charsmap::Charsmap;
use super::protobuf::{self, Value};

/// Stands for a space inside the pieces.
const SPACE: &str = "\u{2581}";
/// Sentinels `<extra_id_99>` to `<extra_id_0>`, whose ids follow those of the pieces.
const SENTINELS: usize = 100;

/// A tokenizer of T5's kind.
pub struct SentencePiece {
    charsmap: Charsmap,
    model: Unigram,
    /// Texts that are one token each, whatever surrounds them.
    special: Vec<(String, i64)>,
    end: i64,
    pad: i64,
    length: usize,
}

/// Kinds of pieces in the file.
const NORMAL: u64 = 1;
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;

#[derive(Default)]
struct File {
    /// Text, score and kind.
    pieces: Vec<(String, f64, u64)>,
    charsmap: Vec<u8>,
}

impl File {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut file = Self::default();
        for field in protobuf::fields(bytes) {
            match field? {
                (1, Value::Bytes(bytes)) => file.pieces.push(piece(bytes)?),
                (2, Value::Bytes(trainer)) => {
                    for field in protobuf::fields(trainer) {
                        if let (3, Value::Number(kind)) = field?
                            && kind != 1
                        {
                            return Err("its model is not unigram".into());
                        }
                    }
                }
                (3, Value::Bytes(normalizer)) => {
                    for field in protobuf::fields(normalizer) {
                        match field? {
                            (2, Value::Bytes(bytes)) => file.charsmap = bytes.to_vec(),
                            (3..=5, Value::Number(0)) => {
                                return Err("it treats spaces in another way than T5".into());
                            }
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(file)
    }
}

fn piece(bytes: &[u8]) -> Result<(String, f64, u64), String> {
    let (mut text, mut score, mut kind) = (String::new(), 0.0, NORMAL);
    for field in protobuf::fields(bytes) {
        match field? {
            (1, Value::Bytes(bytes)) => {
                text = String::from_utf8(bytes.to_vec()).map_err(|e| e.to_string())?;
            }
            (2, Value::Single(value)) => score = f64::from(value),
            (3, Value::Number(value)) => kind = value,
            _ => {}
        }
    }
    if !score.is_finite() || !(NORMAL..=CONTROL).contains(&kind) {
        return Err(format!("the piece {text:?} has the score {score} and the kind {kind}"));
    }
    Ok((text, score, kind))
}

impl SentencePiece {
    /// The tokenizer of the file `spiece.model`, which gives `length` tokens for each text.
    ///
    /// # Errors
    /// Why `bytes` are no such file.
    pub fn read(bytes: &[u8], length: usize) -> Result<Self, String> {
        let File { pieces, charsmap } = File::read(bytes)?;
        let id_of = |text: &str| {
            let at = pieces.iter().position(|(piece, _, kind)| piece == text && *kind == CONTROL);
            at.map(|at| at as i64).ok_or_else(|| format!("it has no piece {text}"))
        };
        let (end, pad) = (id_of("</s>")?, id_of("<pad>")?);
        let unknown = pieces.iter().position(|(_, _, kind)| *kind == UNKNOWN);
        let unknown = unknown.ok_or("it has no piece for what is unknown")?;
        let mut special: Vec<(String, i64)> = (0..SENTINELS)
            .map(|i| (format!("<extra_id_{i}>"), (pieces.len() + SENTINELS - 1 - i) as i64))
            .collect();
        let mut vocabulary = Vec::with_capacity(pieces.len());
        for (id, (text, score, kind)) in pieces.into_iter().enumerate() {
            if kind == NORMAL {
                vocabulary.push((text, score));
            } else {
                // Never part of a text, though the model has a place for it.
                vocabulary.push((format!("\u{10ffff}\u{10ffff}{id}"), score));
                special.push((text, id as i64));
            }
        }
        let charsmap = Charsmap::read(&charsmap)?;
        let model = Unigram::from(vocabulary, Some(unknown), false).map_err(|e| e.to_string())?;
        Ok(Self { charsmap, model, special, end, pad, length })
    }

    /// The text's tokens, end, and padding up to the length.
    ///
    /// # Errors
    /// Why the model fails.
    pub fn tokenize(&self, text: &str) -> Result<Tokens, String> {
        let mut ids = Vec::new();
        let mut rest = text;
        while let Some((before, id, after)) = self.split(rest) {
            self.encode(before, &mut ids)?;
            ids.push(id);
            rest = after;
        }
        self.encode(rest, &mut ids)?;
        let truncated = (ids.len() + 1).saturating_sub(self.length);
        ids.truncate(self.length - 1);
        ids.push(self.end);
        ids.resize(self.length, self.pad);
        Ok(Tokens { ids, truncated })
    }

    /// The text before its first special token, that token's id, and the text behind it.
    fn split<'a>(&self, text: &'a str) -> Option<(&'a str, i64, &'a str)> {
        text.match_indices('<').find_map(|(at, _)| {
            let (before, from) = text.split_at(at);
            self.special.iter().find_map(|(special, id)| {
                from.strip_prefix(special.as_str()).map(|after| (before, *id, after))
            })
        })
    }

    /// Appends the tokens of a text without special ones.
    fn encode(&self, text: &str, ids: &mut Vec<i64>) -> Result<(), String> {
        let text = self.charsmap.apply(text);
        let words = text.split(' ').filter(|word| !word.is_empty());
        let text: String = words.flat_map(|word| [SPACE, word]).collect();
        let tokens = self.model.tokenize(&text).map_err(|e| e.to_string())?;
        ids.extend(tokens.iter().map(|token| i64::from(token.id)));
        Ok(())
    }
}
