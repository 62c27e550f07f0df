// SPDX-License-Identifier: MPL-2.0

//! Cancelling work that runs in another thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::error::{Error, Result};

type Hook = Box<dyn Fn(bool) -> bool + Send + Sync>;

#[derive(Default)]
struct Inner {
    cancelled: AtomicBool,
    hooks: Mutex<Vec<Hook>>,
}

/// A flag shared between the thread that works and the threads that may stop it. Clones share one state.
#[derive(Clone, Default)]
pub struct Cancel(Arc<Inner>);

impl Cancel {
    /// Sets (`true`) or clears (`false`) the request and calls every hook. Never blocks on running work.
    pub fn set(&self, cancelled: bool) {
        let mut hooks = self.0.hooks.lock();
        self.0.cancelled.store(cancelled, Ordering::SeqCst);
        hooks.retain(|hook| hook(cancelled));
    }

    /// Whether the work should stop.
    pub fn is_set(&self) -> bool {
        self.0.cancelled.load(Ordering::SeqCst)
    }

    /// Checks whether to go on.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when the work should stop.
    pub fn check(&self) -> Result<()> {
        if self.is_set() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Whether both share one state.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Registers a hook that is called with each change, and at once with the present state. It must
    /// return quickly and must not call back into this object. It is kept while it returns `true`.
    pub fn on_change(&self, hook: impl Fn(bool) -> bool + Send + Sync + 'static) {
        let mut hooks = self.0.hooks.lock();
        if hook(self.is_set()) {
            hooks.push(Box::new(hook));
        }
    }
}
