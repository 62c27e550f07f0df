// SPDX-License-Identifier: MPL-2.0

//! Stopping the work of the streaming thread from another thread.

use parking_lot::Mutex;

use starsr::Cancel;

/// Why running work should stop. There are two reasons, as each ends on its own: a FLUSH_STOP just
/// after the state change must not revoke the state change.
#[derive(Debug, Default)]
struct Reasons {
    flushing: bool,
    stopping: bool,
}

/// Sets [`Cancel`] as long as there is a reason.
#[derive(Default)]
pub(super) struct Interrupt {
    reasons: Mutex<Reasons>,
    cancel: Cancel,
}

impl Interrupt {
    pub(super) fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// Whether running work should stop.
    pub(super) fn is_set(&self) -> bool {
        self.cancel.is_set()
    }

    pub(super) fn set_flushing(&self, flushing: bool) {
        self.change(|reasons| reasons.flushing = flushing);
    }

    pub(super) fn set_stopping(&self) {
        self.change(|reasons| reasons.stopping = true);
    }

    pub(super) fn reset(&self) {
        self.change(|reasons| *reasons = Reasons::default());
    }

    fn change(&self, change: impl FnOnce(&mut Reasons)) {
        let mut reasons = self.reasons.lock();
        change(&mut reasons);
        self.cancel.set(reasons.flushing || reasons.stopping);
    }
}
