// SPDX-License-Identifier: MPL-2.0

//! A bundle ready to run.

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use ndarray::{Array4, ArrayView4};
use parking_lot::{Mutex, MutexGuard};

use super::graphs::Graphs;
use super::library;
use super::providers::{self, Chosen, Options, Provider};
use super::session::{Runner, Stats};
use crate::bundle::{Bundle, Manifest, Role};
use crate::cancel::Cancel;
use crate::error::Result;
use crate::model::{Condition, Denoiser, Embedding, Model, no_deviation};
use crate::parallel::Threads;
use crate::text::Ids;

/// A bundle ready to run. Engines that run one bundle in one way share its graphs and take turns, so that they take the memory of one.
pub struct Engine {
    shared: Arc<Shared>,
    chosen: Chosen,
    version: &'static str,
    runner: Runner,
}

struct Shared {
    graphs: Mutex<Graphs>,
    // Asked for without waiting for a turn.
    has_deviation: bool,
    has_text_encoder: bool,
}

/// What engines that share graphs have in common: the bundle's folder and manifest, with the hashes of all files, and how it is run.
type Key = (PathBuf, Manifest, providers::Key);

static SHARED: Mutex<Vec<(Key, Weak<Shared>)>> = Mutex::new(Vec::new());

/// The graphs of `key`, loaded unless somebody has them. Whoever asks meanwhile waits, so that nothing is loaded twice.
fn shared(key: Key, load: impl FnOnce() -> Result<Graphs>) -> Result<Arc<Shared>> {
    let mut all = SHARED.lock();
    all.retain(|(_, shared)| shared.strong_count() > 0);
    if let Some(shared) = all.iter().find(|(k, _)| *k == key).and_then(|(_, shared)| shared.upgrade()) {
        return Ok(shared);
    }
    let graphs = load()?;
    let (has_deviation, has_text_encoder) = (graphs.has_deviation, graphs.text.has_encoder());
    let shared = Arc::new(Shared { graphs: Mutex::new(graphs), has_deviation, has_text_encoder });
    all.push((key, Arc::downgrade(&shared)));
    Ok(shared)
}

impl Engine {
    /// Loads ONNX Runtime, if this process has not yet, and the bundle's graphs, unless another engine has them, and checks their
    /// tensors against the manifest and each other. `cancel` stops the loading between two graphs, and later any run.
    ///
    /// # Errors
    /// [`LibraryMissing`](crate::error::Error::LibraryMissing), [`LibraryVersion`](crate::error::Error::LibraryVersion),
    /// [`LibraryInUse`](crate::error::Error::LibraryInUse): no usable ONNX Runtime. [`Provider`](crate::error::Error::Provider): the named provider does not
    /// work. [`Bundle`](crate::error::Error::Bundle): a graph is not as it should be. [`Setting`](crate::error::Error::Setting): an option makes no sense.
    /// [`Cancelled`](crate::error::Error::Cancelled).
    pub fn load(bundle: &Bundle, options: &Options, cancel: &Cancel) -> Result<Self> {
        cancel.check()?;
        let library = library::load(options.library.as_deref(), &options.near)?;
        let chosen = Chosen::new(library, options)?;
        let root = std::fs::canonicalize(bundle.root()).unwrap_or_else(|_| bundle.root().to_path_buf());
        let key = (root, bundle.manifest().clone(), chosen.key());
        let shared = shared(key, || Graphs::load(bundle, library, &chosen, cancel))?;
        let runner = Runner::new(cancel, Threads::new(chosen.threads))?;
        Ok(Self { shared, chosen, version: &library.version, runner })
    }

    /// The provider that runs the graphs, never [`Provider::Auto`].
    pub fn provider(&self) -> Provider {
        self.chosen.provider
    }

    /// The providers that [`Provider::Auto`] would have preferred, and why each could not be had.
    pub fn passed_over(&self) -> &[(Provider, String)] {
        &self.chosen.passed_over
    }

    /// Version of ONNX Runtime, for instance `1.32.0`.
    pub fn runtime_version(&self) -> &'static str {
        self.version
    }

    /// Whether the bundle has a text encoder.
    pub fn has_text_encoder(&self) -> bool {
        self.shared.has_text_encoder
    }

    /// Time spent inside ONNX Runtime since the engine was loaded.
    pub fn stats(&self) -> Stats {
        self.runner.stats.clone()
    }

    /// The graphs, when it is this engine's turn.
    fn graphs(&self) -> Result<MutexGuard<'_, Graphs>> {
        self.runner.lock(&self.shared.graphs)
    }

    fn predict<const B: usize>(
        &self,
        x: ArrayView4<f32>,
        t: i64,
        hint: ArrayView4<f32>,
        conditions: [Condition; B],
    ) -> Result<[Array4<f32>; B]> {
        self.graphs()?.predict(x, t, hint, conditions, &self.runner)
    }
}

impl Denoiser for Engine {
    fn velocity(
        &mut self,
        x: ArrayView4<f32>,
        t: i64,
        hint: ArrayView4<f32>,
        condition: Condition,
    ) -> Result<Array4<f32>> {
        self.predict(x, t, hint, [condition]).map(|[v]| v)
    }

    fn velocities(
        &mut self,
        x: ArrayView4<f32>,
        t: i64,
        hint: ArrayView4<f32>,
        conditions: [Condition; 2],
    ) -> Result<[Array4<f32>; 2]> {
        self.predict(x, t, hint, conditions)
    }

    fn prefers_batches(&self) -> bool {
        // On two CPU cores a batch of two of nano's predictions takes as long as two runs, and 1.7 times the memory.
        self.chosen.provider != Provider::Cpu
    }
}

impl Model for Engine {
    fn encode(&mut self, pixels: ArrayView4<f32>) -> Result<Array4<f32>> {
        self.graphs()?.encode_to(pixels, ["latents"], &self.runner).map(|[latents]| latents)
    }

    fn encode_posterior(&mut self, pixels: ArrayView4<f32>) -> Result<[Array4<f32>; 2]> {
        if !self.shared.has_deviation {
            return Err(no_deviation());
        }
        self.graphs()?.encode_to(pixels, ["latents", "std"], &self.runner)
    }

    fn has_deviation(&self) -> bool {
        self.shared.has_deviation
    }

    fn decode(&mut self, latents: ArrayView4<f32>) -> Result<Array4<f32>> {
        self.graphs()?.decode(latents, &self.runner)
    }

    fn embed(&mut self, tokens: &Ids) -> Result<Embedding> {
        self.graphs()?.text.embed(tokens, &self.runner)
    }

    fn uses_main_memory(&self) -> bool {
        self.chosen.provider == Provider::Cpu
    }

    fn evaluations(&self) -> u64 {
        self.runner.stats.runs(Role::Denoiser)
    }

    fn busy(&self) -> Duration {
        self.runner.stats.total()
    }
}
