// SPDX-License-Identifier: MPL-2.0

//! An input that delivers nothing any more, and does not end either.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Waiting and showing the progress take less than this, and a model that runs takes more.
const WORK: Duration = Duration::from_millis(300);

/// Notices that nothing happens.
pub struct Watchdog {
    /// How long nothing may happen; zero for any time.
    limit: Duration,
    /// What had moved and what had been worked when `since` was set.
    moved: u64,
    worked: Duration,
    since: Instant,
}

impl Watchdog {
    pub fn new(limit: Duration) -> Self {
        Self { limit, moved: 0, worked: processor_time(), since: Instant::now() }
    }

    /// Begins to wait anew.
    pub fn reset(&mut self) {
        (self.worked, self.since) = (processor_time(), Instant::now());
    }

    /// Whether in all the time that is allowed no buffer was added to those `moved`, and this
    /// process has hardly used a processor: a window may take hours, but not idly.
    pub fn is_stalled(&mut self, moved: u64) -> bool {
        if moved != self.moved || processor_time() > self.worked + WORK {
            self.moved = moved;
            self.reset();
        }
        !self.limit.is_zero() && self.since.elapsed() > self.limit
    }
}

/// The time that all threads of this process have spent on processors.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}
