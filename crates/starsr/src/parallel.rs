// SPDX-License-Identifier: MPL-2.0

//! Independent pieces of work, such as the frames of a window, shared out among threads.

use std::thread;

use parking_lot::Mutex;

/// Values of a long array that a thread takes at a time where each is worked on alone.
pub const PART: usize = 1 << 16;

/// How many threads work at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threads(usize);

impl Default for Threads {
    /// One for each core.
    fn default() -> Self {
        Self::new(0)
    }
}

impl Threads {
    /// `count` threads; 0 is one for each core that this process may use.
    pub fn new(count: usize) -> Self {
        Self(if count > 0 { count } else { thread::available_parallelism().map_or(1, |n| n.get()) })
    }

    /// Does `work` once for each of `items`, in any order. Returns when all is done.
    pub fn for_each<T>(self, items: impl ExactSizeIterator<Item = T> + Send, work: impl Fn(T) + Sync) {
        let helpers = self.0.min(items.len()).saturating_sub(1);
        let items = Mutex::new(items);
        let take = || items.lock().next();
        let run = || {
            while let Some(item) = take() {
                work(item);
            }
        };
        thread::scope(|scope| {
            for _ in 0..helpers {
                // With fewer threads than wanted it takes longer.
                if thread::Builder::new().spawn_scoped(scope, run).is_err() {
                    break;
                }
            }
            run();
        });
    }

    /// What `work` gives for each of `items`, in their order. Fails as the first of those that fail; all are tried.
    pub fn map<T, R: Send, E: Send>(
        self,
        items: impl ExactSizeIterator<Item = T> + Send,
        work: impl Fn(T) -> Result<R, E> + Sync,
    ) -> Result<Vec<R>, E> {
        let mut results: Vec<_> = (0..items.len()).map(|_| None).collect();
        self.for_each(results.iter_mut().zip(items), |(result, item)| *result = Some(work(item)));
        results.into_iter().flatten().collect()
    }

    /// Whether all of `values` are finite numbers.
    pub fn all_finite(self, values: &[f32]) -> bool {
        // Without an early end, so that it compiles to vector code.
        let sound = |part: &[f32]| part.iter().fold(true, |sound, v| sound & v.is_finite());
        self.map(values.chunks(PART), |part| if sound(part) { Ok(()) } else { Err(()) }).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn order_and_errors() {
        for threads in [1, 2, 7, 1000].map(Threads::new) {
            let doubled = threads.map(0..100_usize, |n| Ok::<_, usize>(2 * n)).unwrap();
            assert_eq!(doubled, (0..100).map(|n| 2 * n).collect::<Vec<_>>());
            assert!(threads.map(0..0_usize, Ok::<_, usize>).unwrap().is_empty());
            assert_eq!(threads.map(0..100_usize, |n| if n % 10 == 7 { Err(n) } else { Ok(n) }), Err(7));
        }
    }

    #[test]
    fn one_value_that_is_not_finite_is_found() {
        let mut values = vec![0.5; 2 * PART + 3];
        for threads in [1, 3].map(Threads::new) {
            assert!(threads.all_finite(&values) && threads.all_finite(&[]));
            for (place, wrong) in [(0, f32::NAN), (PART, f32::INFINITY), (2 * PART + 2, f32::NEG_INFINITY)] {
                values[place] = wrong;
                assert!(!threads.all_finite(&values));
                values[place] = 0.5;
            }
        }
    }

    #[test]
    fn as_many_threads_as_wanted() {
        for wanted in [1, 2, 5] {
            let (seen, start) = (Mutex::new(HashSet::new()), Instant::now());
            // Each waits for the others, so that no thread does the work of two.
            Threads::new(wanted).for_each(0..5_usize, |_| {
                seen.lock().insert(thread::current().id());
                while seen.lock().len() < wanted && start.elapsed() < Duration::from_secs(10) {
                    thread::yield_now();
                }
            });
            assert_eq!(seen.into_inner().len(), wanted);
        }
    }
}
