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
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What was asked of this flag, and of the one that it branches off.
    own: bool,
    inherited: bool,
    hooks: Vec<Hook>,
}

impl Inner {
    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        change(&mut state);
        let cancelled = state.own || state.inherited;
        self.cancelled.store(cancelled, Ordering::SeqCst);
        state.hooks.retain(|hook| hook(cancelled));
    }
}

/// A flag shared between the thread that works and the threads that may stop it. Clones share one
/// state.
#[derive(Clone, Default)]
pub struct Cancel(Arc<Inner>);

impl Cancel {
    /// Sets (`true`) or clears (`false`) the request and calls every hook. Never blocks on running
    /// work.
    pub fn set(&self, cancelled: bool) {
        self.0.change(|state| state.own = cancelled);
    }

    /// A flag that is set while this one is, and can be set alone.
    pub fn branch(&self) -> Self {
        let branch = Self::default();
        let inner = Arc::downgrade(&branch.0);
        self.on_change(move |cancelled| {
            let inner = inner.upgrade();
            inner.map(|inner| inner.change(|state| state.inherited = cancelled)).is_some()
        });
        branch
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

    /// Registers a hook that is called with each change, and at once with the present state. It
    /// must return quickly and must not call back into this object. It is kept while it returns
    /// `true`.
    pub fn on_change(&self, hook: impl Fn(bool) -> bool + Send + Sync + 'static) {
        let mut state = self.0.state.lock();
        if hook(self.is_set()) {
            state.hooks.push(Box::new(hook));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_branch_is_set_alone_and_with_its_origin() {
        let origin = Cancel::default();
        let branch = origin.branch();
        let states = || (origin.is_set(), branch.is_set());
        branch.set(true);
        assert_eq!(states(), (false, true));
        origin.set(true);
        branch.set(false);
        assert_eq!((states(), origin.branch().is_set()), ((true, true), true));
        origin.set(false);
        assert_eq!(states(), (false, false));
        // A branch that is gone is forgotten.
        drop(branch);
        origin.set(true);
        assert!(origin.0.state.lock().hooks.is_empty());
    }
}
