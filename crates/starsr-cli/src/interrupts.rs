// SPDX-License-Identifier: MPL-2.0

//! Ctrl-C, SIGTERM and SIGHUP, and other ends without an output.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

/// Exit status after Ctrl-C, as of a program that SIGINT ends.
pub const INTERRUPTED: u8 = 130;

/// Why there is no output.
pub enum Stop {
    /// A sentence for the user.
    Failed(String),
    /// Ctrl-C, SIGTERM or SIGHUP.
    Interrupted,
}

impl From<String> for Stop {
    fn from(reason: String) -> Self {
        Self::Failed(reason)
    }
}

/// The signals so far. The second one ends the program at once.
pub struct Interrupts {
    pub count: Arc<AtomicU32>,
    part: Arc<Mutex<Option<PathBuf>>>,
}

impl Interrupts {
    /// Begins to count.
    pub fn catch() -> Result<Self, String> {
        let this = Self { count: Arc::default(), part: Arc::default() };
        let (count, part) = (this.count.clone(), this.part.clone());
        ctrlc::set_handler(move || {
            if count.fetch_add(1, Ordering::SeqCst) > 0 {
                if let Some(part) = part.lock().take() {
                    // One that stays is removed by the next run.
                    let _ = fs::remove_file(part);
                }
                std::process::exit(INTERRUPTED.into());
            }
        })
        .map_err(|error| format!("signals cannot be handled: {error}"))?;
        Ok(this)
    }

    /// Lets the second signal remove `part`, in the place of what was named before.
    pub fn remove_at_once(&self, part: &Path) {
        *self.part.lock() = Some(part.to_owned());
    }
}
