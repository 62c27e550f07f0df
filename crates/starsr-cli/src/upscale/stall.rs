// SPDX-License-Identifier: MPL-2.0

//! An input that delivers nothing any more, and does not end either.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Waiting and showing the progress take less processor time than this, with a share of the time
/// that passes, and a model that runs takes more.
const WORK: Duration = Duration::from_millis(300);
const SHARE: u32 = 20;

/// Notices that nothing happens.
pub struct Watchdog {
    /// What had moved and what had been worked when `since` was set.
    moved: u64,
    worked: Duration,
    since: Instant,
}

impl Watchdog {
    pub fn new() -> Self {
        Self { moved: 0, worked: processor_time(), since: Instant::now() }
    }

    /// Begins to wait anew.
    pub fn reset(&mut self) {
        (self.worked, self.since) = (processor_time(), Instant::now());
    }

    /// How long no buffer was added to those `moved`, and this process has hardly used a processor:
    /// a window may take hours, but not idly.
    pub fn idle_time(&mut self, moved: u64) -> Duration {
        let idle = self.since.elapsed();
        if moved != self.moved || processor_time() > self.worked + WORK + idle / SHARE {
            self.moved = moved;
            self.reset();
        }
        self.since.elapsed()
    }
}

/// The time that all threads of this process have spent on processors.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}
