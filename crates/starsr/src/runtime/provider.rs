// SPDX-License-Identifier: MPL-2.0

//! Execution providers: which one runs the graphs, and how it is set up.

use std::path::{Path, PathBuf};

use ort::ep::{self, ExecutionProvider, ExecutionProviderDispatch};
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::value::Tensor;

use super::device_memory;
use super::library::{self, Level, Library};
use super::runner::one_line;
use crate::error::{Error, Result};
use crate::names::{Provider, Setting};

/// How the graphs are run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// The ONNX Runtime library; `None` looks for it.
    pub library: Option<PathBuf>,
    /// Folders in which the library may lie, in this order.
    pub near: Vec<PathBuf>,
    /// What computes. A named provider must work; only [`Provider::Auto`] falls back.
    pub provider: Provider,
    /// Number of the GPU.
    pub device: u32,
    /// Folder in which TensorRT keeps its engines between runs; created where it is missing.
    pub cache_dir: Option<PathBuf>,
    /// Bytes of the GPU's memory that the graphs may take with their weights; `None` is what is
    /// free.
    pub device_memory: Option<u64>,
    /// Threads on the CPU; 0 is one for each core.
    pub threads: usize,
}

/// The provider that was taken.
pub(super) struct Chosen {
    /// Never [`Provider::Auto`].
    pub provider: Provider,
    /// The better ones that do not work, and why.
    pub passed_over: Vec<(Provider, String)>,
    dispatches: Vec<ExecutionProviderDispatch>,
    pub threads: usize,
    device: u32,
    cache_dir: Option<PathBuf>,
    /// Whether all sessions take the GPU's memory from one pool.
    shares_device_memory: bool,
}

/// What makes sessions run alike: provider, device, threads and the folder of TensorRT's engines.
pub(super) type ProviderKey = (Provider, u32, usize, Option<PathBuf>);

/// A graph `y = x + x`, for trying a provider out.
static PROBE: &[u8] = include_bytes!("probe.onnx");

impl Chosen {
    /// Takes the provider that was named, or for [`Provider::Auto`] the first that passes a trial.
    pub fn new(library: &Library, options: &Options) -> Result<Self> {
        let order: &[Provider] = match options.provider {
            Provider::Auto => &[Provider::TensorRt, Provider::Cuda, Provider::Cpu],
            Provider::Cpu => &[Provider::Cpu],
            Provider::Cuda => &[Provider::Cuda],
            Provider::TensorRt => &[Provider::TensorRt],
        };
        let mut passed_over = Vec::new();
        for &provider in order {
            let dispatches = dispatches(provider, options)?;
            let Options { threads, device, .. } = *options;
            let cache_dir = options.cache_dir.clone();
            let mut chosen = Self {
                provider,
                passed_over: Vec::new(),
                dispatches,
                threads,
                device,
                cache_dir,
                shares_device_memory: false,
            };
            match chosen.probe(library) {
                Ok(()) => {
                    chosen.share_device_memory(library);
                    chosen.passed_over = passed_over;
                    return Ok(chosen);
                }
                Err(reason) => passed_over.push((provider, reason)),
            }
        }
        let reason = match passed_over.as_slice() {
            [(_, reason)] => reason.clone(),
            all => all
                .iter()
                .map(|(p, reason)| format!("{p}: {reason}"))
                .collect::<Vec<_>>()
                .join("; "),
        };
        Err(Error::Provider { provider: options.provider, reason })
    }

    fn probe(&self, library: &Library) -> Result<(), String> {
        let built_in = match self.provider {
            Provider::TensorRt => ep::TensorRT::is_available(),
            Provider::Cuda => ep::CUDA::is_available(),
            Provider::Auto | Provider::Cpu => Ok(true),
        };
        if !built_in.unwrap_or(false) {
            return Err(format!(
                "{} (ONNX Runtime {}) was built without it; the library of onnxruntime-gpu has it",
                library.path.display(),
                library.version
            ));
        }
        let run = || -> ort::Result<f32> {
            let mut session = self.builder(library)?.commit_from_memory(PROBE)?;
            let outputs = session
                .run(ort::inputs!["x" => Tensor::from_array(([1_usize], vec![1.0_f32]))?])?;
            Ok(outputs["y"].try_extract_tensor::<f32>()?.1.iter().sum())
        };
        match run() {
            Ok(2.0) => Ok(()),
            Ok(other) => Err(format!("a trial gave {other} for 1 + 1")),
            Err(e) => Err(one_line(&e)),
        }
    }

    /// Lets all sessions take the GPU's memory from one pool, where this ONNX Runtime can.
    fn share_device_memory(&mut self, library: &Library) {
        if self.has_device_memory() {
            match device_memory::share(&library.environment, self.device) {
                Ok(()) => self.shares_device_memory = true,
                Err(reason) => {
                    let message = format!(
                        "each graph keeps device memory of its own, as ONNX Runtime {} gives no \
                         common pool: {reason}",
                        library.version
                    );
                    library::report(Level::Info, &message);
                }
            }
        }
    }

    /// Whether the graphs compute in memory of a GPU's own.
    pub fn has_device_memory(&self) -> bool {
        matches!(self.provider, Provider::Cuda | Provider::TensorRt)
    }

    /// Bytes of the GPU's memory that are free; `None` where there is none or the driver does not
    /// tell.
    pub fn free_device_memory(&self) -> Option<u64> {
        self.has_device_memory().then(|| device_memory::free(self.device)).flatten()
    }

    /// Equal for those whose sessions can be shared.
    pub fn key(&self) -> ProviderKey {
        (self.provider, self.device, self.threads, self.cache_dir.clone())
    }

    /// The settings that all sessions share.
    pub fn builder(&self, library: &Library) -> ort::Result<SessionBuilder> {
        let mut builder = Session::builder(&library.environment)?;
        if self.shares_device_memory {
            builder = builder.with_env_allocators()?;
        }
        Ok(builder
            .with_optimization_level(GraphOptimizationLevel::All)?
            .with_intra_threads(self.threads)?
            // The sessions run in turn: threads of one that spin on would take cores from the next.
            .with_config_entry("session.force_spinning_stop", "1")?
            // Patterns are recorded for each input shape and kept; window and canvas sizes vary.
            .with_memory_pattern(false)?
            .with_deterministic_compute(true)?
            .with_execution_providers(&self.dispatches)?)
    }

    /// Where tensors live that pass from one graph to the next.
    pub fn device_memory(&self) -> ort::Result<MemoryInfo<'static>> {
        let (device, id) = match self.provider {
            Provider::Auto | Provider::Cpu => (AllocationDevice::CPU, 0),
            Provider::Cuda | Provider::TensorRt => (AllocationDevice::CUDA, self.device as i32),
        };
        MemoryInfo::new(device, id, AllocatorType::Device, MemoryType::Default)
    }
}

fn dispatches(provider: Provider, options: &Options) -> Result<Vec<ExecutionProviderDispatch>> {
    let device = i32::try_from(options.device).map_err(|_| {
        let reason = format!("{} is not the number of a GPU; the first is 0", options.device);
        Error::setting(Setting::Device, reason)
    })?;
    // No search for convolution algorithms by timing: its outcome, and with it the last bits, would
    // vary.
    let cuda = || {
        ep::CUDA::default()
            .with_device_id(device)
            .with_arena_extend_strategy(ep::ArenaExtendStrategy::SameAsRequested)
            .with_conv_algorithm_search(ep::cuda::ConvAlgorithmSearch::Heuristic)
            .with_tf32(false)
            // Otherwise sums of residuals in 16 bits are rounded before they are normalized.
            .with_skip_layer_norm_strict_mode(true)
            .build()
            .error_on_failure()
    };
    Ok(match provider {
        Provider::Auto | Provider::Cpu => {
            vec![ep::CPU::default().with_arena_allocator(true).build()]
        }
        Provider::Cuda => vec![cuda()],
        Provider::TensorRt => {
            let mut tensorrt = ep::TensorRT::default().with_device_id(device);
            if let Some(folder) = &options.cache_dir {
                let folder = cache_folder(folder)?;
                tensorrt = tensorrt
                    .with_engine_cache(true)
                    .with_engine_cache_path(folder)
                    .with_timing_cache(true)
                    .with_timing_cache_path(folder);
            }
            vec![tensorrt.build().error_on_failure(), cuda()]
        }
    })
}

fn cache_folder(folder: &Path) -> Result<&str> {
    let fail =
        |wrong: String| Error::setting(Setting::CacheDir, format!("{} {wrong}", folder.display()));
    std::fs::create_dir_all(folder).map_err(|e| fail(format!("cannot be created: {e}")))?;
    let text = folder.to_str().filter(|text| !text.contains('\0'));
    text.ok_or_else(|| fail("is not UTF-8, which TensorRT needs; choose another folder".into()))
}
