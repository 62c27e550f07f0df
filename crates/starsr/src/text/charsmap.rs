// SPDX-License-Identifier: MPL-2.0

//! SentencePiece's table of replacements for characters, for instance by NFKC. The longest match
//! counts, which the crate `tokenizers` takes only where it is a whole grapheme.

/// A double-array trie of what is replaced, and the replacements.
pub(super) struct Charsmap {
    trie: Vec<u32>,
    /// Each ends with a zero.
    replacements: String,
}

impl Charsmap {
    /// Reads the table: the length of the trie in bytes, the trie, the replacements. No bytes are a
    /// table without replacements.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        if bytes.is_empty() {
            return Ok(Self { trie: Vec::new(), replacements: String::new() });
        }
        let damaged = || "its table of characters is damaged".to_string();
        let (length, rest) = bytes.split_first_chunk().ok_or_else(damaged)?;
        let length = u32::from_le_bytes(*length) as usize;
        let (trie, replacements) = rest.split_at_checked(length).ok_or_else(damaged)?;
        let trie = trie.as_chunks().0.iter().map(|&unit| u32::from_le_bytes(unit)).collect();
        let replacements = String::from_utf8(replacements.to_vec()).map_err(|_| damaged())?;
        Ok(Self { trie, replacements })
    }

    /// The text with everything replaced.
    pub fn apply(&self, text: &str) -> String {
        let mut result = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let found = self.longest(rest.as_bytes()).and_then(|(length, at)| {
                let replacement = self.replacements.get(at..)?.split('\0').next()?;
                Some((replacement, rest.get(length..)?))
            });
            rest = if let Some((replacement, after)) = found {
                result.push_str(replacement);
                after
            } else {
                result.push(first);
                &rest[first.len_utf8()..]
            };
        }
        result
    }

    /// The length of the longest prefix that is replaced, and the place of its replacement.
    fn longest(&self, text: &[u8]) -> Option<(usize, usize)> {
        let mut found = None;
        let mut node = offset(*self.trie.first()?) as usize;
        for (i, &byte) in text.iter().enumerate() {
            if byte == 0 {
                break;
            }
            node ^= usize::from(byte);
            let Some(&unit) = self.trie.get(node) else { break };
            // The highest bit marks values, which no byte equals.
            if unit & (1 << 31 | 0xff) != u32::from(byte) {
                break;
            }
            node ^= offset(unit) as usize;
            if unit & 1 << 8 != 0 {
                let value = self.trie.get(node).map(|value| value & (u32::MAX >> 1));
                found = value.map(|value| (i + 1, value as usize)).or(found);
            }
        }
        found
    }
}

fn offset(unit: u32) -> u32 {
    (unit >> 10) << ((unit & 1 << 9) >> 6)
}
