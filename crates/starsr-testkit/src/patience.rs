// SPDX-License-Identifier: MPL-2.0

//! Waiting for what has to come, on a machine of any speed.

use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

/// A process hangs when it has been idle for this long.
const IDLE: Duration = Duration::from_mins(5);
/// Polling alone takes less than this in that time.
const WORK: Duration = Duration::from_secs(2);

/// Gives what `attempt` gives once that is something. Each attempt waits a second at most.
///
/// How long everything takes does not matter. Waiting fails with `complaint` when this process has
/// hardly used a processor for five minutes.
#[track_caller]
pub fn patiently<T>(complaint: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let (mut worked, mut since) = (processor_time(), Instant::now());
    loop {
        if let Some(result) = attempt() {
            return result;
        }
        let now = processor_time();
        if now > worked + WORK {
            (worked, since) = (now, Instant::now());
        }
        assert!(since.elapsed() < IDLE, "{complaint}");
    }
}

/// The time that all threads of this process have spent on processors.
fn processor_time() -> Duration {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the call writes the whole of `usage`; where it fails, zeros are valid.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    [usage.ru_utime, usage.ru_stime]
        .map(|time| {
            Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64)
        })
        .iter()
        .sum()
}
