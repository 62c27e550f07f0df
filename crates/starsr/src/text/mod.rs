// SPDX-License-Identifier: MPL-2.0

//! Prompts: how they are put together and turned into tokens, those of CLIP (docs/star.md, A.3) or
//! of T5 (B.4).

use std::sync::LazyLock;

use instant_clip_tokenizer::Tokenizer;

use crate::error::{Error, Result};
use crate::names::Setting;

mod charsmap;
mod protobuf;
mod sentencepiece;

pub use sentencepiece::SentencePiece;

/// Tokens that CLIP takes.
pub const CONTEXT: usize = 77;

/// Tokens that T5 takes for CogVideoX.
pub const T5_LENGTH: usize = 226;

/// How the bundle's suffix follows a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PromptSuffix {
    /// Behind a space; an empty prompt is the suffix alone.
    #[default]
    Spaced,
    /// Directly behind, as in the official program, so that two words become one.
    Glued,
    /// The suffix is left out.
    None,
}

impl PromptSuffix {
    /// The text of a prompt with its suffix.
    pub fn compose(self, prompt: &str, suffix: &str) -> String {
        match self {
            _ if suffix.is_empty() => prompt.to_owned(),
            Self::Spaced if prompt.trim().is_empty() => suffix.to_owned(),
            Self::Spaced => format!("{prompt} {suffix}"),
            Self::Glued => format!("{prompt}{suffix}"),
            Self::None => prompt.to_owned(),
        }
    }
}

/// Prompt and negative prompt; `None` stands for the bundle's own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Prompts {
    /// What the video shows.
    pub prompt: Option<String>,
    /// What the video should not look like.
    pub negative: Option<String>,
    /// How the bundle's suffix follows the prompt, be it the user's or the bundle's.
    pub suffix: PromptSuffix,
}

impl Prompts {
    /// Checks that no text is given, for a bundle without text condition.
    ///
    /// # Errors
    /// [`Error::Setting`] where a text is given.
    pub fn refuse(&self, bundle: &str) -> Result<()> {
        let setting = match self {
            Self { prompt: Some(_), .. } => Setting::Prompt,
            Self { negative: Some(_), .. } => Setting::NegativePrompt,
            _ => return Ok(()),
        };
        let reason = format!("the bundle {bundle} has no text condition; leave it unset");
        Err(Error::setting(setting, reason))
    }
}

/// A text as a text encoder takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// As many as the text encoder takes, padded.
    pub ids: Vec<i64>,
    /// Number of tokens at the text's end that did not fit.
    pub truncated: usize,
}

/// What a bundle knows a text by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// Its tokens.
    Tokens(Vec<i64>),
    /// Itself, where the bundle has no tokenizer. White space is as in [`Key::text`].
    Text(String),
}

impl Key {
    /// The key of a text without tokenizer: its words, with one space between them.
    pub fn text(text: &str) -> Self {
        Self::Text(text.split_ascii_whitespace().collect::<Vec<_>>().join(" "))
    }
}

/// CLIP's tokens of a text of any length, as open_clip's `tokenize` gives them: start, the text's
/// tokens, end, and 0 up to [`CONTEXT`].
pub fn tokenize(text: &str) -> Tokens {
    static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(Tokenizer::new);
    let mut tokens = vec![TOKENIZER.start_of_text()];
    TOKENIZER.encode(&clean(text), &mut tokens);
    let truncated = tokens.len().saturating_sub(CONTEXT - 1);
    tokens.truncate(CONTEXT - 1);
    tokens.push(TOKENIZER.end_of_text());
    let mut ids: Vec<i64> = tokens.into_iter().map(|token| token.to_u16().into()).collect();
    ids.resize(CONTEXT, 0);
    Tokens { ids, truncated }
}

/// Makes typographic quotes plain, resolves entities twice and collapses white space. The tokenizer
/// itself turns letters into small ones.
fn clean(text: &str) -> String {
    let plain = |c| match c {
        '\u{02bc}' | '\u{2018}'..='\u{201b}' => '\'',
        '\u{201c}'..='\u{201f}' => '"',
        other => other,
    };
    let text: String = text.chars().map(plain).collect();
    let once = html_escape::decode_html_entities(&text);
    let twice = html_escape::decode_html_entities(&once);
    twice.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes() {
        let compose = |suffix: PromptSuffix, prompt| suffix.compose(prompt, "sharp, 32k");
        assert_eq!(compose(PromptSuffix::Spaced, "a dog"), "a dog sharp, 32k");
        assert_eq!(compose(PromptSuffix::Spaced, " "), "sharp, 32k");
        assert_eq!(compose(PromptSuffix::Glued, "a dog"), "a dogsharp, 32k");
        assert_eq!(compose(PromptSuffix::None, "a dog"), "a dog");
        assert_eq!(PromptSuffix::Spaced.compose("a dog", ""), "a dog");
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let of = |words: usize| tokenize(&"panda ".repeat(words));
        assert_eq!((of(75).truncated, of(75).ids[75], of(75).ids[76]), (0, 12952, 49407));
        assert_eq!(of(76).truncated, 1);
        assert_eq!((of(300).truncated, of(300).ids), (225, of(75).ids));
    }

    #[test]
    fn entities_are_resolved_twice() {
        assert_eq!(tokenize("a &amp;amp; b"), tokenize("A  & b\n"));
        assert_ne!(tokenize("a &amp;amp;amp; b"), tokenize("a & b"));
    }

    #[test]
    fn any_text_has_tokens() {
        for text in [
            "",
            " ",
            "\0",
            "\u{fffd}\u{10ffff}",
            "&#x110000;",
            "&",
            "'",
            "\u{1f3b8}\u{200d}",
            "<end_of_text>",
        ] {
            let Tokens { ids, truncated } = tokenize(text);
            assert_eq!((ids[0], truncated), (49406, 0), "{text:?}");
            assert!(ids.contains(&49407), "{text:?}");
        }
    }
}
