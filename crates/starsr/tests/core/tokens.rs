// SPDX-License-Identifier: MPL-2.0

//! Tokens of T5, against those of the slow tokenizer in Python (`fixtures/make_tokenizer.py`).

use std::fs;

use starsr::text::{SentencePiece, T5_LENGTH};
use starsr_testkit::fixtures;

fn model() -> Vec<u8> {
    fs::read(fixtures::folder().join("t5/spiece.model")).unwrap()
}

fn tokenizer(length: usize) -> SentencePiece {
    SentencePiece::read(&model(), length).unwrap()
}

#[test]
fn tokens_are_those_of_the_slow_tokenizer() {
    let text = fs::read_to_string(fixtures::folder().join("t5/tokens.json")).unwrap();
    let cases: serde_json::Value = serde_json::from_str(&text).unwrap();
    let cases = cases.as_object().unwrap();
    assert!(cases.len() > 20);
    let tokenizer = tokenizer(T5_LENGTH);
    for (name, case) in cases {
        let expected: Vec<i64> = serde_json::from_value(case["ids"].clone()).unwrap();
        let found = tokenizer.tokenize(case["text"].as_str().unwrap()).unwrap();
        assert_eq!(found.ids, expected, "{name}");
        assert_eq!(found.truncated as u64, case["truncated"].as_u64().unwrap(), "{name}");
    }
}

#[test]
fn any_length_ends_with_the_end() {
    for length in [2, 3, 77] {
        let found = tokenizer(length).tokenize(&"panda ".repeat(500)).unwrap();
        assert_eq!((found.ids.len(), found.ids[length - 1]), (length, 1));
        assert!(found.truncated >= 500 - length, "{length}: {}", found.truncated);
    }
}

#[test]
fn a_file_that_is_something_else_is_refused() {
    let model = model();
    let other = |from: &[u8], to: &[u8]| {
        let at = model.windows(from.len()).position(|w| w == from).unwrap();
        [&model[..at], to, &model[at + from.len()..]].concat()
    };
    for (what, bytes, reason) in [
        ("nothing", Vec::new(), "no piece </s>"),
        ("half", model[..model.len() / 2].to_vec(), "damaged or incomplete"),
        ("JSON", b"{\"version\": \"1.0\"}".to_vec(), "damaged or incomplete"),
        ("no end", other(b"</s>", b"</t>"), "no piece </s>"),
        ("no padding", other(b"<pad>", b"<bad>"), "no piece <pad>"),
    ] {
        let error = SentencePiece::read(&bytes, 226).map(|_| ()).unwrap_err();
        assert!(error.contains(reason) && !error.contains('\n'), "{what}: {error}");
    }
}

#[test]
fn damaged_files_do_not_panic() {
    let model = model();
    let texts = ["Crème brûlée ﬁne １２３ 東京 한국어", "<pad>e\u{301}\u{323}", "\0"];
    // Most of the file is the table of characters, at its end.
    for at in (0..model.len()).step_by(model.len() / 150) {
        let mut bytes = model.clone();
        for byte in bytes.iter_mut().skip(at).take(3) {
            *byte ^= 0xa5;
        }
        if let Ok(tokenizer) = SentencePiece::read(&bytes, 226) {
            for text in texts {
                let found = tokenizer.tokenize(text);
                assert!(found.is_err() || found.is_ok_and(|found| found.ids.len() == 226));
            }
        }
    }
}
