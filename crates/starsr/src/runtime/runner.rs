// SPDX-License-Identifier: MPL-2.0

//! Running graphs so that they can be cancelled, counting their time, and turning errors of ort
//! into this crate's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ort::session::RunOptions;
use parking_lot::{Mutex, MutexGuard};

use crate::buffers::Buffers;
use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::names::Role;
use crate::parallel::Threads;

/// Time spent inside ONNX Runtime, by role, and what was computed in it. Clones share the counters,
/// so that one can be kept to watch a running engine.
#[derive(Debug, Clone, Default)]
pub struct GraphTimes(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    graphs: [Counter; Role::ALL.len()],
    /// Millions.
    operations: AtomicU64,
}

#[derive(Debug, Default)]
struct Counter {
    nanoseconds: AtomicU64,
    runs: AtomicU64,
}

impl GraphTimes {
    /// Time spent in runs of the graph, cancelled and failed ones included.
    pub fn time(&self, role: Role) -> Duration {
        Duration::from_nanos(self.0.graphs[role as usize].nanoseconds.load(Ordering::Relaxed))
    }

    /// Number of runs of the graph.
    pub fn runs(&self, role: Role) -> u64 {
        self.0.graphs[role as usize].runs.load(Ordering::Relaxed)
    }

    /// Number of runs of the graphs that restore windows.
    pub fn evaluations(&self) -> u64 {
        self.runs(Role::Denoiser) + self.runs(Role::Upscaler)
    }

    /// Time spent in runs of all graphs.
    pub fn total(&self) -> Duration {
        Role::ALL.iter().map(|&role| self.time(role)).sum()
    }

    /// Time spent in runs of the graphs that make predictions.
    pub fn predicting(&self) -> Duration {
        let graphs = [Role::ControlNet, Role::Modulation, Role::Denoiser, Role::Upscaler];
        graphs.map(|role| self.time(role)).iter().sum()
    }

    /// Millions of floating-point operations in predictions that have succeeded; 0 where the bundle
    /// does not say how many these take.
    pub fn operations(&self) -> u64 {
        self.0.operations.load(Ordering::Relaxed)
    }

    /// Counts a number of operations.
    pub(super) fn add_operations(&self, count: f64) {
        self.0.operations.fetch_add((count / 1e6) as u64, Ordering::Relaxed);
    }

    fn add(&self, role: Role, time: Duration) {
        let counter = &self.0.graphs[role as usize];
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        counter.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        counter.runs.fetch_add(1, Ordering::Relaxed);
    }
}

/// How often an engine that waits for its turn checks whether to stop.
const POLL: Duration = Duration::from_millis(10);

/// Runs graphs so that they stop when `cancel` is set, and counts their time.
pub(super) struct Runner {
    /// For copies into and out of tensors.
    pub threads: Threads,
    pub buffers: Buffers,
    pub times: GraphTimes,
    cancel: Cancel,
    options: Arc<RunOptions>,
    requests: Arc<AtomicU64>,
}

impl Runner {
    pub fn new(cancel: &Cancel, threads: Threads, times: GraphTimes) -> Result<Self> {
        let options = RunOptions::new().map_err(|e| Error::LibraryMissing {
            reason: format!("it gives no options for runs: {}", one_line(&e)),
        })?;
        let options = Arc::new(options);
        let requests = Arc::new(AtomicU64::new(0));
        // Weak, since the hook outlives the engine.
        let (weak, counter) = (Arc::downgrade(&options), requests.clone());
        cancel.on_change(move |cancelled| {
            let Some(options) = weak.upgrade() else { return false };
            if cancelled {
                counter.fetch_add(1, Ordering::SeqCst);
                let _ = options.terminate();
            } else {
                let _ = options.unterminate();
            }
            true
        });
        Ok(Self {
            threads,
            buffers: Buffers::default(),
            times,
            cancel: cancel.clone(),
            options,
            requests,
        })
    }

    /// Follows `cancel` from now on.
    pub fn cancel_with(&mut self, cancel: &Cancel) -> Result<()> {
        if !self.cancel.is_same(cancel) {
            *self = Self::new(cancel, self.threads.clone(), self.times.clone())?;
        }
        Ok(())
    }

    /// The flag that it follows.
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// Locks what engines share as soon as no other one works with it. Fails with
    /// [`Error::Cancelled`] when asked to stop meanwhile.
    pub fn lock<'a, T>(&self, shared: &'a Mutex<T>) -> Result<MutexGuard<'a, T>> {
        loop {
            self.cancel.check()?;
            if let Some(guard) = shared.try_lock_for(POLL) {
                return Ok(guard);
            }
        }
    }

    /// Calls `work` once, which makes one run of the graph of `role` under the options it gets.
    pub fn run<T>(
        &self,
        role: Role,
        work: impl FnOnce(&RunOptions) -> ort::Result<T>,
    ) -> Result<T> {
        let before = self.requests.load(Ordering::SeqCst);
        self.cancel.check()?;
        let start = Instant::now();
        let result = work(&self.options);
        self.times.add(role, start.elapsed());
        // Counted: the request may have been made and taken back during the run.
        if self.cancel.is_set() || self.requests.load(Ordering::SeqCst) != before {
            return Err(Error::Cancelled);
        }
        result.map_err(|e| failure(role, &e))
    }
}

/// An error of ONNX Runtime outside of loading.
pub(super) fn failure(graph: Role, e: &ort::Error) -> Error {
    let reason = one_line(e);
    let signs = ["allocate memory", "out of memory", "bad_alloc", "ALLOC_FAILED"];
    if signs.iter().any(|sign| reason.contains(sign)) {
        return Error::Memory { graph, reason };
    }
    Error::Inference { graph, reason }
}

/// The text of an error of ort on one line.
pub(super) fn one_line<R>(e: &ort::Error<R>) -> String {
    e.message().split_whitespace().collect::<Vec<_>>().join(" ")
}
