// SPDX-License-Identifier: MPL-2.0

//! A bundle ready to run.

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use ndarray::ArrayView4;
use parking_lot::{Mutex, MutexGuard};

use super::autoencoder::Autoencoder;
use super::direct::{self, Direct};
use super::graph::Loader;
use super::library;
use super::options::Options;
use super::precision;
use super::predictor::{self, Predict};
use super::provider::{Chosen, ProviderKey};
use super::runner::{GraphTimes, Runner};
use super::text_encoder::TextEncoder;
use crate::bundle::{Bundle, Latent, Layout, MANIFEST, Manifest};
use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::machine::memory_of_this_machine;
use crate::model::{Denoiser, Embedded, Memory, Model, Query, Samples, no_std};
use crate::names::{Precision, Provider, Role};
use crate::parallel::Threads;

/// A bundle ready to run. Engines that run one bundle in one way share its graphs and take turns,
/// so that together they take the memory of one.
pub struct Engine {
    shared: Arc<Shared>,
    chosen: Arc<Chosen>,
    precision: Precision,
    manifest: Manifest,
    version: &'static str,
    runner: Runner,
    /// See [`Options::device_memory`].
    device_memory: Option<u64>,
    /// See [`Model::text_memory`].
    text_memory: u64,
}

/// The graphs of a bundle.
enum Graphs {
    /// Of one that samples.
    Sampled(Box<Sampled>),
    /// Of one that restores in one evaluation.
    Direct(Direct),
}

struct Sampled {
    autoencoder: Autoencoder,
    predictor: Box<dyn Predict>,
    text: TextEncoder,
}

impl Graphs {
    fn load(loader: &Loader, detail: f32) -> Result<Self> {
        if loader.bundle.manifest().is_direct() {
            return Direct::load(loader, detail).map(Self::Direct);
        }
        let autoencoder = Autoencoder::load(loader)?;
        let predictor = predictor::load(loader)?;
        let text = TextEncoder::load(loader, &predictor.text_graphs())?;
        Ok(Self::Sampled(Box::new(Sampled { autoencoder, predictor, text })))
    }

    fn has_std(&self) -> bool {
        matches!(self, Self::Sampled(graphs) if graphs.autoencoder.has_std)
    }

    /// The graphs of a bundle that samples; `role` is of one that is needed.
    fn sampled(&mut self, role: Role) -> Result<&mut Sampled> {
        match self {
            Self::Sampled(graphs) => Ok(graphs),
            Self::Direct(_) => Err(Error::inference(role, "the bundle has no such graph")),
        }
    }
}

/// What loading the graphs took of a device's memory and left of it.
#[derive(Clone, Copy, Default)]
struct Footprint {
    /// Bytes that were free before; `None` where that is not known.
    before: Option<u64>,
    /// Bytes that are left; `None` where that is not known.
    free: Option<u64>,
}

struct Shared {
    graphs: Mutex<Graphs>,
    footprint: Footprint,
    /// Known without waiting for a turn.
    has_std: bool,
    latent: Latent,
    /// See [`CanvasSpec::operations`](crate::bundle::CanvasSpec::operations).
    operations: Option<[f64; 2]>,
    threads: Threads,
}

/// What engines that share graphs have in common: the bundle's folder and manifest, with the hashes
/// of all files, and how it is run.
type BundleKey = (PathBuf, Manifest, ProviderKey, Precision, f32);

static SHARED: Mutex<Vec<(BundleKey, Weak<Shared>)>> = Mutex::new(Vec::new());

/// The graphs of `key`, loaded unless another engine has them. Whoever asks meanwhile waits, so
/// that nothing is loaded twice.
fn shared(key: BundleKey, load: impl FnOnce() -> Result<Shared>) -> Result<Arc<Shared>> {
    let mut all = SHARED.lock();
    all.retain(|(_, shared)| shared.strong_count() > 0);
    let found = all.iter().find(|(k, _)| *k == key).and_then(|(_, shared)| shared.upgrade());
    if let Some(shared) = found {
        return Ok(shared);
    }
    let shared = Arc::new(load()?);
    all.push((key, Arc::downgrade(&shared)));
    Ok(shared)
}

impl Engine {
    /// Loads ONNX Runtime, unless this process has loaded it, and the bundle's graphs, unless
    /// another engine has them, and checks their tensors against the manifest and each other.
    /// `cancel` stops the loading between two graphs, and later any run, see
    /// [`Model::cancel_with`].
    ///
    /// # Errors
    /// * [`LibraryMissing`], [`LibraryVersion`], [`LibraryInUse`]: there is no usable ONNX Runtime.
    /// * [`Provider`](crate::Error::Provider): the named provider does not work.
    /// * [`Bundle`](crate::Error::Bundle): a graph is not as it should be.
    /// * [`Setting`](crate::Error::Setting): an option makes no sense.
    /// * [`Cancelled`](crate::Error::Cancelled).
    ///
    /// [`LibraryMissing`]: crate::Error::LibraryMissing
    /// [`LibraryVersion`]: crate::Error::LibraryVersion
    /// [`LibraryInUse`]: crate::Error::LibraryInUse
    pub fn load(bundle: &Bundle, options: &Options, cancel: &Cancel) -> Result<Self> {
        cancel.check()?;
        let library = library::load(options.library.as_deref(), &options.near)?;
        let chosen = Arc::new(Chosen::new(library, options)?);
        check_layout(bundle, &chosen)?;
        let root = bundle.root();
        let root = std::fs::canonicalize(root).unwrap_or_else(|_| root.to_path_buf());
        let detail = direct::detail(bundle.manifest(), options.detail)?;
        let precision = precision::choose(bundle, &chosen, options.precision)?;
        let key = (root, bundle.manifest().clone(), chosen.key(), precision, detail);
        let shared = shared(key, || {
            let before = chosen.free_device_memory();
            let loader = Loader { bundle, library, chosen: &chosen, precision, cancel };
            let graphs = Graphs::load(&loader, detail)?;
            let (has_std, threads) = (graphs.has_std(), Threads::new(chosen.threads));
            let graphs = Mutex::new(graphs);
            let free = chosen.free_device_memory();
            let footprint = Footprint { before, free };
            let (latent, operations) =
                (bundle.manifest().latent, bundle.manifest().canvas.operations);
            Ok(Shared { graphs, footprint, has_std, latent, operations, threads })
        })?;
        let runner = Runner::new(cancel, shared.threads.clone(), GraphTimes::default())?;
        let device_memory = options.device_memory;
        let version = &library.version;
        let manifest = bundle.manifest().in_precision(precision);
        let text_memory = 0;
        Ok(Self {
            shared,
            chosen,
            precision,
            manifest,
            version,
            runner,
            device_memory,
            text_memory,
        })
    }

    /// The provider that runs the graphs, never [`Provider::Auto`].
    pub fn provider(&self) -> Provider {
        self.chosen.provider
    }

    /// What the provider computes on, for instance `CPU`, `GPU 0` or `CPU (Intel)`.
    pub fn device(&self) -> String {
        self.chosen.device_name()
    }

    /// What the graphs compute in, never [`Precision::Auto`].
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The bundle's manifest; the memory in it is that of graphs in [`Self::precision`].
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The providers that [`Provider::Auto`] would have preferred, and why each does not work.
    pub fn passed_over(&self) -> &[(Provider, String)] {
        &self.chosen.passed_over
    }

    /// Version of ONNX Runtime, for instance `1.32.0`.
    pub fn runtime_version(&self) -> &'static str {
        self.version
    }

    /// Whether both engines run the same graphs, taking turns.
    pub fn shares_graphs_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Time spent inside ONNX Runtime since the engine was loaded.
    pub fn stats(&self) -> GraphTimes {
        self.runner.times.clone()
    }

    /// Counts the operations of `predictions` of latents `[T,C,h,w]`, or frames `[F,3,h,w]`.
    fn count(&self, predictions: usize, shape: (usize, usize, usize, usize)) {
        let Some([a, b]) = self.shared.operations else { return };
        let Latent { spatial_factor, temporal_factor, .. } = self.shared.latent;
        let (times, _, height, width) = shape;
        let frames = times.saturating_sub(1) * temporal_factor + times.min(1);
        let pixels = (height * width * spatial_factor * spatial_factor) as f64;
        let count = (predictions * frames) as f64 * pixels * (a + b * pixels);
        self.runner.times.add_operations(count);
    }

    /// The graphs, when it is this engine's turn.
    fn graphs(&self) -> Result<MutexGuard<'_, Graphs>> {
        self.runner.lock(&self.shared.graphs)
    }
}

/// Refuses graphs that the provider cannot run.
fn check_layout(bundle: &Bundle, chosen: &Chosen) -> Result<()> {
    if bundle.manifest().layout == Layout::ChannelsFirst || chosen.has_device_memory() {
        return Ok(());
    }
    let reason = format!(
        "channels-last graphs run on NVIDIA GPUs alone, not with provider {}; use provider cuda, or \
         export the bundle with --layout channels-first",
        chosen.provider
    );
    Err(Error::bundle(bundle.root().join(MANIFEST), "layout", reason))
}

impl Denoiser for Engine {
    fn predict(&mut self, query: &Query) -> Result<Vec<Samples>> {
        let v = self.graphs()?.sampled(Role::Denoiser)?.predictor.predict(query, &self.runner)?;
        self.count(query.conditions.len(), query.x.dim());
        Ok(v)
    }

    fn prepare(&mut self, timesteps: &[i64]) -> Result<()> {
        self.graphs()?.sampled(Role::Denoiser)?.predictor.prepare(timesteps, &self.runner)
    }

    fn prefers_batches(&self) -> bool {
        // On two CPU cores a batch of two of nano's predictions takes as long as two runs, and 1.7
        // times the memory.
        !self.chosen.is_on_cpu()
    }
}

impl Model for Engine {
    fn encode(&mut self, pixels: ArrayView4<f32>) -> Result<Samples> {
        let mut graphs = self.graphs()?;
        let coder = &mut graphs.sampled(Role::VaeEncoder)?.autoencoder;
        let [latents] = coder.encode(pixels, ["latents"], &self.runner)?;
        Ok(latents)
    }

    fn encode_posterior(&mut self, pixels: ArrayView4<f32>) -> Result<[Samples; 2]> {
        if !self.shared.has_std {
            return Err(no_std());
        }
        let mut graphs = self.graphs()?;
        let coder = &mut graphs.sampled(Role::VaeEncoder)?.autoencoder;
        coder.encode(pixels, ["latents", "std"], &self.runner)
    }

    fn has_std(&self) -> bool {
        self.shared.has_std
    }

    fn decode(&mut self, latents: ArrayView4<f32>) -> Result<Samples> {
        self.graphs()?.sampled(Role::VaeDecoder)?.autoencoder.decode(latents, &self.runner)
    }

    fn upscale(&mut self, low: ArrayView4<f32>) -> Result<Samples> {
        match &mut *self.graphs()? {
            Graphs::Direct(direct) => {
                let high = direct.upscale(low, &self.runner)?;
                self.count(1, low.dim());
                Ok(high)
            }
            Graphs::Sampled(_) => {
                Err(Error::inference(Role::Upscaler, "the bundle has no such graph"))
            }
        }
    }

    fn embed(&mut self, texts: &[&str]) -> Result<Vec<Embedded>> {
        let available = match self.memory() {
            Memory::Main => memory_of_this_machine(),
            Memory::Device(free) => free,
        };
        let mut graphs = self.graphs()?;
        let text = &mut graphs.sampled(Role::TextEncoder)?.text;
        let (embedded, taken) = text.embed(texts, available, &self.runner)?;
        drop(graphs);
        self.text_memory = self.text_memory.max(taken);
        Ok(embedded)
    }

    fn text_memory(&self) -> u64 {
        self.text_memory
    }

    fn cancel_with(&mut self, cancel: &Cancel) -> Result<()> {
        self.runner.cancel_with(cancel)
    }

    fn memory(&self) -> Memory {
        if self.chosen.is_on_cpu() {
            return Memory::Main;
        }
        let Footprint { before, free } = self.shared.footprint;
        let weights = before.zip(free).map_or(0, |(before, free)| before.saturating_sub(free));
        let allowed = self.device_memory.map(|bytes| bytes.saturating_sub(weights));
        Memory::Device([free, allowed].into_iter().flatten().min())
    }

    fn device_memory_used(&self) -> Option<u64> {
        // The pool keeps what it ever needed.
        let free = self.chosen.free_device_memory()?;
        Some(self.shared.footprint.before?.saturating_sub(free))
    }

    fn evaluations(&self) -> u64 {
        self.runner.times.evaluations()
    }

    fn busy(&self) -> Duration {
        self.runner.times.total()
    }
}
