// SPDX-License-Identifier: MPL-2.0

//! Execution providers: which one runs the graphs, and how it is set up.

use std::path::{Path, PathBuf};

use ort::ep::{
    self, ArbitrarilyConfigurableExecutionProvider, ExecutionProvider, ExecutionProviderDispatch,
};
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::value::Tensor;

use super::device_memory;
use super::ep_library::{Device, Kind};
use super::from_library;
use super::library::{self, Level, Library};
use super::options::Options;
use super::runner::one_line;
use crate::error::{Error, Result};
use crate::names::{Provider, Setting};

/// The provider that was taken.
pub(super) struct Chosen {
    /// Never [`Provider::Auto`].
    pub provider: Provider,
    /// The better ones that do not work, and why.
    pub passed_over: Vec<(Provider, String)>,
    way: Way,
    pub threads: usize,
    device: u32,
    cache_dir: Option<PathBuf>,
    options: Vec<(String, String)>,
    /// Whether all sessions take the GPU's memory from one pool.
    shares_device_memory: bool,
}

/// How sessions get the provider.
enum Way {
    /// It is part of ONNX Runtime.
    BuiltIn(Vec<ExecutionProviderDispatch>),
    /// It comes from a library.
    Library(Device, Vec<(String, String)>),
}

/// What makes sessions run alike: provider, device, threads, the folder of compiled engines, the
/// options and the device of a library's provider.
pub(super) type ProviderKey =
    (Provider, u32, usize, Option<PathBuf>, Vec<(String, String)>, Option<Device>);

/// A graph `y = x + x`, for trying a provider out.
static PROBE: &[u8] = include_bytes!("probe.onnx");

impl Chosen {
    /// Takes the provider that was named, or for [`Provider::Auto`] the first that passes a trial.
    pub fn new(library: &Library, options: &Options) -> Result<Self> {
        let named = [options.provider];
        let order: &[Provider] = match options.provider {
            Provider::Auto => &[Provider::TensorRt, Provider::Cuda, Provider::Cpu],
            _ => &named,
        };
        from_library::check(options)?;
        let mut passed_over = Vec::new();
        for &provider in order {
            let way = if provider.has_library() {
                let (device, settings) = from_library::choose(library, options)?;
                Way::Library(device, settings)
            } else {
                Way::BuiltIn(dispatches(provider, options)?)
            };
            let mut chosen = Self {
                provider,
                passed_over: Vec::new(),
                way,
                threads: options.threads,
                device: options.device,
                cache_dir: options.cache_dir.clone(),
                options: options.provider_options.clone(),
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
            _ => Ok(true),
        };
        if !built_in.unwrap_or(false) {
            return Err(format!(
                "{} (ONNX Runtime {}) was built without it; the library of onnxruntime-gpu has it, \
                 which `make gpu` fetches",
                library.path.display(),
                library.version
            ));
        }
        let run = || -> ort::Result<f32> {
            let mut builder = self.builder(library)?;
            if self.library_device().is_some() {
                // One that takes no part of the graph would leave it to the CPU without a word.
                builder = builder.with_disable_cpu_fallback()?;
            }
            let mut session = builder.commit_from_memory(PROBE)?;
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
        let (cache_dir, options) = (self.cache_dir.clone(), self.options.clone());
        let device = self.library_device().copied();
        (self.provider, self.device, self.threads, cache_dir, options, device)
    }

    /// The device, where the provider comes from a library.
    fn library_device(&self) -> Option<&Device> {
        match &self.way {
            Way::Library(device, _) => Some(device),
            Way::BuiltIn(_) => None,
        }
    }

    /// Whether the graphs run on the processor.
    pub fn is_on_cpu(&self) -> bool {
        match self.library_device() {
            Some(device) => device.kind == Kind::Cpu,
            None => self.provider == Provider::Cpu,
        }
    }

    /// What computes, for instance `CPU`, `GPU 0` or `CPU (Intel)`.
    pub fn device_name(&self) -> String {
        match self.library_device() {
            Some(device) => device.to_string(),
            None if self.is_on_cpu() => "CPU".into(),
            None => format!("GPU {}", self.device),
        }
    }

    /// The settings that all sessions share.
    pub fn builder(&self, library: &Library) -> ort::Result<SessionBuilder> {
        let mut builder = Session::builder(&library.environment)?;
        if self.shares_device_memory {
            builder = builder.with_env_allocators()?;
        }
        let mut builder = builder
            .with_optimization_level(GraphOptimizationLevel::All)?
            .with_intra_threads(self.threads)?
            // The sessions run in turn: threads of one that spin on would take cores from the next.
            .with_config_entry("session.force_spinning_stop", "1")?
            // Patterns are recorded for each input shape and kept; window and canvas sizes vary.
            .with_memory_pattern(false)?
            .with_deterministic_compute(true)?;
        match &self.way {
            Way::BuiltIn(dispatches) => Ok(builder.with_execution_providers(dispatches)?),
            Way::Library(device, settings) => {
                device.add_to(&mut builder, library, settings)?;
                Ok(builder)
            }
        }
    }

    /// Where tensors live that pass from one graph to the next.
    pub fn device_memory(&self) -> Result<MemoryInfo<'static>> {
        match self.provider {
            Provider::Cuda | Provider::TensorRt => {
                self.memory(AllocationDevice::CUDA, self.device as i32)
            }
            // That of a library's provider is not known; ONNX Runtime copies where it must.
            _ => self.host_memory(),
        }
    }

    /// Where tensors live that are read here.
    pub fn host_memory(&self) -> Result<MemoryInfo<'static>> {
        self.memory(AllocationDevice::CPU, 0)
    }

    fn memory(&self, device: AllocationDevice, id: i32) -> Result<MemoryInfo<'static>> {
        let memory = MemoryInfo::new(device, id, AllocatorType::Device, MemoryType::Default);
        memory.map_err(|e| Error::Provider { provider: self.provider, reason: one_line(&e) })
    }
}

fn dispatches(provider: Provider, options: &Options) -> Result<Vec<ExecutionProviderDispatch>> {
    let device = i32::try_from(options.device).map_err(|_| {
        let reason = format!("{} is not the number of a GPU; the first is 0", options.device);
        Error::setting(Setting::Device, reason)
    })?;
    // No search for convolution algorithms by timing: its outcome, and with it the last bits, would
    // vary.
    let cuda = ep::CUDA::default()
        .with_device_id(device)
        .with_arena_extend_strategy(ep::ArenaExtendStrategy::SameAsRequested)
        .with_conv_algorithm_search(ep::cuda::ConvAlgorithmSearch::Heuristic)
        .with_tf32(false)
        // Otherwise sums of residuals in 16 bits are rounded before they are normalized.
        .with_skip_layer_norm_strict_mode(true);
    Ok(match provider {
        Provider::Cuda => vec![with_options(cuda, options).build().error_on_failure()],
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
            let tensorrt = with_options(tensorrt, options).build();
            vec![tensorrt.error_on_failure(), cuda.build().error_on_failure()]
        }
        _ => vec![ep::CPU::default().with_arena_allocator(true).build()],
    })
}

/// A provider with the options that were set for it.
fn with_options<P: ArbitrarilyConfigurableExecutionProvider>(provider: P, options: &Options) -> P {
    let options = options.provider_options.iter();
    options.fold(provider, |provider, (key, value)| provider.with_arbitrary_config(key, value))
}

fn cache_folder(folder: &Path) -> Result<&str> {
    let fail =
        |wrong: String| Error::setting(Setting::CacheDir, format!("{} {wrong}", folder.display()));
    std::fs::create_dir_all(folder).map_err(|e| fail(format!("cannot be created: {e}")))?;
    let text = folder.to_str().filter(|text| !text.contains('\0'));
    text.ok_or_else(|| fail("is not UTF-8, which TensorRT needs; choose another folder".into()))
}
