// SPDX-License-Identifier: MPL-2.0

//! Prompts: how they are put together and turned into the tokens of CLIP (SPEC A.3).

use std::sync::LazyLock;

use instant_clip_tokenizer::{Token, Tokenizer};

use crate::error::{Error, Result};

/// Tokens that a text encoder takes.
pub const CONTEXT: usize = 77;

/// The tokens of a text as numbers, filled up with 0.
pub type Ids = [i64; CONTEXT];

/// How the bundle's suffix follows a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PromptSuffix {
    /// Behind a space; an empty prompt is the suffix alone.
    #[default]
    Spaced,
    /// Directly behind, as the official program does, so that two words become one.
    Glued,
    /// Not at all.
    None,
}

impl PromptSuffix {
    /// The whole of a prompt.
    pub fn compose(self, prompt: &str, suffix: &str) -> String {
        match self {
            Self::Spaced if prompt.trim().is_empty() => suffix.to_owned(),
            Self::Spaced => format!("{prompt} {suffix}"),
            Self::Glued => format!("{prompt}{suffix}"),
            Self::None => prompt.to_owned(),
        }
    }
}

/// What a user asks for in words; `None` means the bundle's own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Prompts {
    /// What the video shows.
    pub prompt: Option<String>,
    /// What it should not look like.
    pub negative: Option<String>,
    /// How the bundle's suffix follows the prompt, be it the user's or the bundle's.
    pub suffix: PromptSuffix,
}

impl Prompts {
    /// For a bundle without text condition: fails with [`Error::Setting`] where a text is given.
    pub fn refuse(&self, bundle: &str) -> Result<()> {
        let setting = match self {
            Self { prompt: Some(_), .. } => "prompt",
            Self { negative: Some(_), .. } => "negative-prompt",
            _ => return Ok(()),
        };
        let reason = format!("the bundle {bundle} has no text condition; leave it unset");
        Err(Error::Setting { setting, reason })
    }
}

/// A text as a text encoder takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tokens {
    /// Start, the text's tokens, end, and 0 up to [`CONTEXT`].
    pub ids: Ids,
    /// The text's last tokens that did not fit.
    pub cut: usize,
}

/// Tokens of a text of any length, as open_clip's `tokenize` gives them.
pub fn tokenize(text: &str) -> Tokens {
    static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(Tokenizer::new);
    let mut tokens = vec![TOKENIZER.start_of_text()];
    TOKENIZER.encode(&clean(text), &mut tokens);
    let cut = tokens.len().saturating_sub(CONTEXT - 1);
    tokens.truncate(CONTEXT - 1);
    tokens.push(TOKENIZER.end_of_text());
    let mut ids = [0; CONTEXT];
    for (id, token) in ids.iter_mut().zip(tokens.into_iter().map(Token::to_u16)) {
        *id = i64::from(token);
    }
    Tokens { ids, cut }
}

/// Typographic quotes made plain, entities resolved twice, white space collapsed. The tokenizer itself writes it small.
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
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let of = |words: usize| tokenize(&"panda ".repeat(words));
        assert_eq!((of(75).cut, of(75).ids[75], of(75).ids[76]), (0, 12952, 49407));
        assert_eq!(of(76).cut, 1);
        assert_eq!((of(300).cut, of(300).ids), (225, of(75).ids));
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
            let Tokens { ids, cut } = tokenize(text);
            assert_eq!((ids[0], cut), (49406, 0), "{text:?}");
            assert!(ids.contains(&49407), "{text:?}");
        }
    }
}
