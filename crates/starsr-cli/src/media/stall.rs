// SPDX-License-Identifier: MPL-2.0

//! An input that delivers nothing any more, and does not end either.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Threads that wait take less processor time than this, and a model that runs takes more.
const WORK: Duration = Duration::from_millis(300);

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

    /// How long no buffer was added to those `moved`, and the other threads have hardly used a
    /// processor: a window may take hours, but not idly.
    pub fn idle_time(&mut self, moved: u64) -> Duration {
        if moved != self.moved || processor_time() > self.worked + WORK {
            self.moved = moved;
            self.reset();
        }
        self.since.elapsed()
    }
}

/// The time that the threads of this process beside the calling one have spent on processors.
fn processor_time() -> Duration {
    let [all, own] = [ClockId::ProcessCPUTime, ClockId::ThreadCPUTime].map(|clock| {
        let time = clock_gettime(clock);
        Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
    });
    all.saturating_sub(own)
}
