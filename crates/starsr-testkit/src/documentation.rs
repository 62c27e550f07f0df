// SPDX-License-Identifier: MPL-2.0

//! Tables of the documentation that tests compute.

use std::fs;

use crate::fixtures::repository;

/// Asserts that `page`, a file of the repository, has each of the `tables` between two marks of its
/// name. With `STARSR_WRITE_DOCS` set, writes them there.
pub fn check(page: &str, tables: &[(&str, String)]) {
    let path = repository(page);
    let is = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let right = tables.iter().fold(is.clone(), |page, (name, table)| filled(&page, name, table));
    if std::env::var_os("STARSR_WRITE_DOCS").is_some() {
        fs::write(path, right).unwrap();
    } else if is != right {
        let wrong = is.lines().zip(right.lines()).find(|(is, should)| is != should);
        panic!(
            "{page} does not say what the code says; run make tables. The first difference: {wrong:#?}"
        );
    }
}

/// `page` with `content` between the marks of `name`.
fn filled(page: &str, name: &str, content: &str) -> String {
    let mark = format!("<!-- {name} -->\n");
    let [before, _, after] = page.split(&mark).collect::<Vec<_>>()[..] else {
        panic!("no two marks of {name}")
    };
    format!("{before}{mark}{content}{mark}{after}")
}
