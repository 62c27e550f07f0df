// SPDX-License-Identifier: MPL-2.0

//! Ctrl-C, SIGTERM and SIGHUP.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

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
                std::process::exit(crate::INTERRUPTED.into());
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
