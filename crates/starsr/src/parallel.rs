// SPDX-License-Identifier: MPL-2.0

//! Independent pieces of work, such as the frames of a window, shared out among threads.

use std::sync::Arc;

use ndarray::{ArrayView2, ArrayView4, s};
use rayon::iter::{ParallelBridge, ParallelIterator};
use rayon::{ThreadPool, ThreadPoolBuilder};

/// Values of a long array that a thread takes at a time where each is worked on alone.
/// Several such arrays fit into a core's cache.
pub const PART: usize = 1 << 14;

/// The threads that share work. Clones share the pool. The default is the calling thread alone.
#[derive(Clone, Default)]
pub struct Threads(Option<Arc<ThreadPool>>);

impl Threads {
    /// `count` threads; 0 is one for each core that this process may use. Where the system refuses
    /// threads, the calling thread does all the work.
    pub fn new(count: usize) -> Self {
        let cores = || std::thread::available_parallelism().map_or(1, |n| n.get());
        let count = if count > 0 { count } else { cores() };
        let name = |i| format!("starsr-{i}");
        let build = || ThreadPoolBuilder::new().num_threads(count).thread_name(name).build();
        Self((count > 1).then(build).and_then(|pool| pool.ok()).map(Arc::new))
    }

    /// Does `work` once for each of `items`, in any order. Returns when all is done.
    pub fn for_each<T: Send>(
        &self,
        items: impl Iterator<Item = T> + Send,
        work: impl Fn(T) + Send + Sync,
    ) {
        match &self.0 {
            Some(pool) => pool.install(|| items.par_bridge().for_each(work)),
            None => items.for_each(work),
        }
    }

    /// Does `work` in the calling thread and `other` in another one meanwhile, where there is one.
    pub fn beside<A, B: Send>(
        &self,
        work: impl FnOnce() -> A,
        other: impl FnOnce() -> B + Send,
    ) -> (A, B) {
        let Some(pool) = &self.0 else { return (work(), other()) };
        let mut others = None;
        let result = pool.in_place_scope(|scope| {
            scope.spawn(|_| others = Some(other()));
            work()
        });
        (result, others.expect("the scope ends after what it has spawned"))
    }

    /// Does `work` with each plane of `from` `[A,B,h,w]` and the next `h * w` of the values `to`; begins
    /// anew with the first plane where there are more of these.
    pub fn for_each_plane<T: Send>(
        &self,
        from: ArrayView4<f32>,
        to: &mut [T],
        work: impl Fn(ArrayView2<f32>, &mut [T]) + Send + Sync,
    ) {
        if from.is_empty() {
            return;
        }
        let (a, b, height, width) = from.dim();
        self.for_each(to.chunks_exact_mut(height * width).enumerate(), |(place, to)| {
            work(from.slice(s![place / b % a, place % b, .., ..]), to);
        });
    }

    /// What `work` gives for each of `items`, in their order, or the error of the first item that
    /// fails; all are tried.
    pub fn map<T: Send, R: Send, E: Send>(
        &self,
        items: impl ExactSizeIterator<Item = T> + Send,
        work: impl Fn(T) -> Result<R, E> + Send + Sync,
    ) -> Result<Vec<R>, E> {
        let mut results: Vec<_> = (0..items.len()).map(|_| None).collect();
        let pairs = results.iter_mut().zip(items);
        self.for_each(pairs, |(result, item)| *result = Some(work(item)));
        results.into_iter().flatten().collect()
    }

    /// Whether all of `values` are finite numbers.
    pub fn all_finite(&self, values: &[f32]) -> bool {
        self.map(values.chunks(PART), |part| if are_finite(part) { Ok(()) } else { Err(()) })
            .is_ok()
    }
}

/// Whether all of `values` are finite numbers.
pub fn are_finite(values: &[f32]) -> bool {
    // Without an early end, so that it compiles to vector code.
    values.iter().fold(true, |finite, v| finite & v.is_finite())
}

// The pool itself says nothing of use.
impl std::fmt::Debug for Threads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let count = self.0.as_ref().map_or(1, |pool| pool.current_num_threads());
        f.debug_tuple("Threads").field(&count).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn order_and_errors() {
        for threads in [1, 2, 7, 100].map(Threads::new) {
            let doubled = threads.map(0..100_usize, |n| Ok::<_, usize>(2 * n)).unwrap();
            assert_eq!(doubled, (0..100).map(|n| 2 * n).collect::<Vec<_>>());
            assert!(threads.map(0..0_usize, Ok::<_, usize>).unwrap().is_empty());
            assert_eq!(
                threads.map(0..100_usize, |n| if n % 10 == 7 { Err(n) } else { Ok(n) }),
                Err(7)
            );
        }
    }

    #[test]
    fn one_value_that_is_not_finite_is_found() {
        let mut values = vec![0.5; 2 * PART + 3];
        for threads in [1, 3].map(Threads::new) {
            assert!(threads.all_finite(&values) && threads.all_finite(&[]));
            for (place, wrong) in
                [(0, f32::NAN), (PART, f32::INFINITY), (2 * PART + 2, f32::NEG_INFINITY)]
            {
                values[place] = wrong;
                assert!(!threads.all_finite(&values));
                values[place] = 0.5;
            }
        }
    }

    #[test]
    fn work_beside_other_work() {
        for threads in [1, 2, 7].map(Threads::new) {
            // The other work may itself be shared out.
            let sum = || threads.map(0..100_usize, Ok::<_, ()>).map(|n| n.iter().sum::<usize>());
            assert_eq!(threads.beside(sum, sum), (Ok(4950), Ok(4950)));
        }
        // Each waits for the other, so that this ends only if both work at once.
        let both = Barrier::new(2);
        Threads::new(2).beside(|| both.wait(), || both.wait());
    }

    #[test]
    fn as_many_threads_as_wanted() {
        for wanted in [1, 2, 5] {
            // Each waits for the others, so that this ends only if all work at once.
            let all = Barrier::new(wanted);
            Threads::new(wanted).for_each(0..wanted, |_| {
                all.wait();
            });
        }
    }
}
