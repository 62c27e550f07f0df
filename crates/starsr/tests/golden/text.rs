// SPDX-License-Identifier: MPL-2.0

//! Tokens of open_clip.

use std::path::Path;

use starsr::text::tokenize;

use crate::reference::{Report, read_json};

/// Every text of the file gives its tokens.
pub fn tokens(path: &Path, report: &mut Report) {
    for (name, case) in read_json(path).as_object().unwrap() {
        let expected: Vec<i64> = serde_json::from_value(case["ids"].clone()).unwrap();
        let found = tokenize(case["text"].as_str().unwrap());
        println!("  {name}: {} tokens cut", found.truncated);
        report.check(found.ids[..] == expected, || {
            format!("{name}: {:?}, not {expected:?}", found.ids)
        });
        // A text that fills the context has lost tokens or fits exactly; a shorter one has lost
        // none.
        let full = expected.last() == Some(&49407);
        report.check(full || found.truncated == 0, || {
            format!("{name}: {} tokens are said to be cut", found.truncated)
        });
    }
}
