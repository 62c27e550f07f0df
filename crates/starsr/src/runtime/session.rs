// SPDX-License-Identifier: MPL-2.0

//! One graph of a bundle: its session, the demands on its tensors, and running it so that it can be cancelled.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ort::session::{RunOptions, Session};
use ort::value::{Outlet, TensorElementType, ValueType};
use parking_lot::{Mutex, MutexGuard};

use super::library::Library;
use super::one_line;
use super::providers::Chosen;
use crate::bundle::{Bundle, Role};
use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::parallel::Threads;

/// What one dimension of a declared tensor must be.
#[derive(Debug, Clone, Copy)]
pub(super) enum Dim {
    /// Free, under the given name in messages.
    Free(&'static str),
    /// This size.
    Fixed(usize),
    /// Any size, free or not.
    Any,
}

/// Element types a tensor of samples may have.
pub(super) const SAMPLES: &[TensorElementType] = &[TensorElementType::Float32, TensorElementType::Float16];

/// A loaded graph.
pub(super) struct Graph {
    pub role: Role,
    pub session: Session,
    path: PathBuf,
}

impl Graph {
    /// Loads the graph of a role, `None` for a text encoder that the bundle does not have.
    pub fn load(
        bundle: &Bundle,
        role: Role,
        library: &Library,
        chosen: &Chosen,
        cancel: &Cancel,
    ) -> Result<Option<Self>> {
        cancel.check()?;
        let Some(path) = bundle.graph(role) else { return Ok(None) };
        let load = || chosen.builder(library)?.commit_from_file(&path);
        let session = load().map_err(|e| Error::Bundle {
            file: path.clone(),
            field: format!("graphs.{role}"),
            reason: format!(
                "ONNX Runtime {} cannot load this graph with provider {}: {}; install the bundle again, or a newer ONNX Runtime",
                library.version,
                chosen.provider,
                one_line(&e)
            ),
        })?;
        cancel.check()?;
        Ok(Some(Self { role, session, path }))
    }

    /// An error about one of the graph's tensors.
    pub fn error(&self, tensor: &str, reason: impl Into<String>) -> Error {
        Error::Bundle {
            file: self.path.clone(),
            field: format!("graphs.{}, tensor {tensor}", self.role),
            reason: reason.into(),
        }
    }

    /// Whether the graph has an input of this name.
    pub fn has_input(&self, name: &str) -> bool {
        self.session.inputs().iter().any(|input| input.name() == name)
    }

    /// Whether the graph has an output of this name.
    pub fn has_output(&self, name: &str) -> bool {
        self.session.outputs().iter().any(|output| output.name() == name)
    }

    /// The size of the last dimension of an input or output, where it is fixed.
    pub fn last_dimension(&self, name: &str) -> Option<usize> {
        let tensor = self.session.inputs().iter().chain(self.session.outputs()).find(|t| t.name() == name)?;
        tensor.dtype().tensor_shape()?.last().and_then(|&size| usize::try_from(size).ok())
    }

    /// Fails for an input or output whose name is not foreseen.
    pub fn only(&self, inputs: &[&str], outputs: &[&str]) -> Result<()> {
        let sides = [("input", self.session.inputs(), inputs), ("output", self.session.outputs(), outputs)];
        for (side, tensors, known) in sides {
            if let Some(stranger) = tensors.iter().find(|tensor| !known.contains(&tensor.name())) {
                let reason =
                    format!("is not an {side} of this role, whose {side}s are: {}", known.join(", "));
                return Err(self.error(stranger.name(), reason));
            }
        }
        Ok(())
    }

    /// Checks an input that must be there and gives its element type.
    pub fn input(&self, name: &str, types: &[TensorElementType], dims: &[Dim]) -> Result<TensorElementType> {
        self.check("input", self.session.inputs(), name, types, dims)
    }

    /// Checks an output that must be there and gives its element type.
    pub fn output(&self, name: &str, types: &[TensorElementType], dims: &[Dim]) -> Result<TensorElementType> {
        self.check("output", self.session.outputs(), name, types, dims)
    }

    fn check(
        &self,
        side: &str,
        tensors: &[Outlet],
        name: &str,
        types: &[TensorElementType],
        dims: &[Dim],
    ) -> Result<TensorElementType> {
        let Some(tensor) = tensors.iter().find(|tensor| tensor.name() == name) else {
            let names = tensors.iter().map(Outlet::name).collect::<Vec<_>>().join(", ");
            return Err(self.error(name, format!("the graph has no such {side}; its {side}s are: {names}")));
        };
        let ValueType::Tensor { ty, shape, .. } = tensor.dtype() else {
            return Err(self.error(name, "must be a tensor"));
        };
        if !types.contains(ty) {
            let wanted = types.iter().map(TensorElementType::to_string).collect::<Vec<_>>().join(" or ");
            return Err(self.error(name, format!("has element type {ty}, but must have {wanted}")));
        }
        let fits = shape.len() == dims.len()
            && shape.iter().zip(dims).all(|(&found, dim)| match *dim {
                Dim::Free(_) => found < 0,
                // ONNX Runtime may not know a size of an output; what comes out is checked at each run.
                Dim::Fixed(size) => usize::try_from(found) == Ok(size) || (side == "output" && found < 0),
                Dim::Any => true,
            });
        if !fits {
            let found = shape.iter().map(|&n| if n < 0 { "?".into() } else { n.to_string() });
            let wanted = dims.iter().map(|dim| match dim {
                Dim::Free(name) => name.to_string(),
                Dim::Fixed(size) => size.to_string(),
                Dim::Any => "any".to_string(),
            });
            let list = |dims: Vec<String>| format!("[{}]", dims.join(","));
            let (found, wanted) = (list(found.collect()), list(wanted.collect()));
            let reason =
                format!("has shape {found}, but must have {wanted}, where letters are free dimensions");
            return Err(self.error(name, reason));
        }
        Ok(*ty)
    }
}

/// Time spent inside ONNX Runtime, by role. Clones share the counters, so one can be kept to watch a running engine.
#[derive(Debug, Clone, Default)]
pub struct Stats(Arc<[Counter; Role::ALL.len()]>);

#[derive(Debug, Default)]
struct Counter {
    nanoseconds: AtomicU64,
    runs: AtomicU64,
}

impl Stats {
    /// Time spent in runs of the graph, cancelled and failed ones included.
    pub fn time(&self, role: Role) -> Duration {
        Duration::from_nanos(self.0[role as usize].nanoseconds.load(Ordering::Relaxed))
    }

    /// Number of runs of the graph.
    pub fn runs(&self, role: Role) -> u64 {
        self.0[role as usize].runs.load(Ordering::Relaxed)
    }

    /// Time spent in runs of all graphs.
    pub fn total(&self) -> Duration {
        Role::ALL.iter().map(|&role| self.time(role)).sum()
    }

    fn add(&self, role: Role, time: Duration) {
        let counter = &self.0[role as usize];
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        counter.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        counter.runs.fetch_add(1, Ordering::Relaxed);
    }
}

/// How often one that waits for others looks whether it should stop.
const POLL: Duration = Duration::from_millis(10);

/// Runs graphs so that they stop when `cancel` is set, and counts their time.
pub(super) struct Runner {
    /// For copies into and out of tensors.
    pub threads: Threads,
    cancel: Cancel,
    options: Arc<RunOptions>,
    requests: Arc<AtomicU64>,
    pub stats: Stats,
}

impl Runner {
    pub fn new(cancel: &Cancel, threads: Threads) -> Result<Self> {
        let options = RunOptions::new()
            .map_err(|e| Error::Inference { graph: "ONNX Runtime".into(), reason: one_line(&e) })?;
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
        Ok(Self { threads, cancel: cancel.clone(), options, requests, stats: Stats::default() })
    }

    /// What engines share, once no other one works with it. Fails with [`Error::Cancelled`] when asked to stop meanwhile.
    pub fn lock<'a, T>(&self, shared: &'a Mutex<T>) -> Result<MutexGuard<'a, T>> {
        loop {
            self.cancel.check()?;
            if let Some(guard) = shared.try_lock_for(POLL) {
                return Ok(guard);
            }
        }
    }

    /// Runs `work` once, which is to make one run of the graph of `role` under the options it is given.
    pub fn run<T>(&self, role: Role, work: impl FnOnce(&RunOptions) -> ort::Result<T>) -> Result<T> {
        let before = self.requests.load(Ordering::SeqCst);
        self.cancel.check()?;
        let start = Instant::now();
        let result = work(&self.options);
        self.stats.add(role, start.elapsed());
        // Counted and not only looked at: the request may have been made and taken back during the run.
        if self.cancel.is_set() || self.requests.load(Ordering::SeqCst) != before {
            return Err(Error::Cancelled);
        }
        result.map_err(|e| failure(role, &e))
    }
}

/// An error of ONNX Runtime outside of loading.
pub(super) fn failure(role: Role, e: &ort::Error) -> Error {
    let (graph, reason) = (role.to_string(), one_line(e));
    let signs = ["allocate memory", "out of memory", "bad_alloc", "ALLOC_FAILED"];
    if signs.iter().any(|sign| reason.contains(sign)) {
        return Error::Memory { graph, reason };
    }
    Error::Inference { graph, reason }
}
