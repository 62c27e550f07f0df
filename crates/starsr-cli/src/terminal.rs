// SPDX-License-Identifier: MPL-2.0

//! Lines for the user. Unlike those of `println!` and `eprintln!` they may go unread: the work is
//! worth finishing where the program behind a pipe has ended.

use std::fmt::Display;
use std::io::{self, Write};

/// Prints a line to standard output.
pub fn say(line: impl Display) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// Prints a line to standard error.
pub fn warn(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}
