// SPDX-License-Identifier: MPL-2.0

//! A decoder of a window in several runs, each of which takes over the last frames of the inputs of
//! all convolutions from the run before.

use std::sync::Arc;

use ndarray::{Array4, ArrayView4, s};
use ort::memory::{Allocator, MemoryInfo};
use ort::value::{DynTensor, DynValue, TensorElementType, ValueType};

use super::graph::{Dim, Graph, Loader, SAMPLES};
use super::runner::{Runner, failure};
use super::tensor::{Input, check_finite, values};
use crate::bundle::Latent;
use crate::error::{Error, Result};
use crate::model::Samples;
use crate::names::Role;
use crate::parallel::PART;

/// Latents of the first run, if the window has so many, and of each later one. A window has an odd
/// number of latents.
const RUNS: [usize; 2] = [3, 2];

/// Caches may have a type that nothing here reads.
const CACHES: &[TensorElementType] =
    &[TensorElementType::Float32, TensorElementType::Float16, TensorElementType::Bfloat16];

/// The decoder with its caches: `cache_0`, `cache_1` and so on go in, `next_0` and so on come out.
pub(super) struct CarriedDecoder {
    graph: Graph,
    element: TensorElementType,
    caches: Vec<Cache>,
    latent: Latent,
    /// Where the caches are, and where pixels go.
    device: MemoryInfo<'static>,
    host: MemoryInfo<'static>,
}

/// The last frames of the input of a convolution, `[1,c,P,h,w]`.
struct Cache {
    /// Names of input and output.
    names: [String; 2],
    element: TensorElementType,
    channels: usize,
    /// Side of a latent in cells of the cache.
    scale: usize,
}

/// What a run gives: its pixels, and the caches for the next one.
struct Run {
    pixels: Arc<dyn AsRef<[f32]> + Send + Sync>,
    caches: Vec<DynValue>,
}

impl CarriedDecoder {
    /// Whether this is the right one for `graph`.
    pub fn fits(graph: &Graph) -> bool {
        graph.has_input("cache_0")
    }

    pub fn new(graph: Graph, latent: Latent, loader: &Loader) -> Result<Self> {
        let small = [Dim::Free("T"), Dim::Fixed(latent.channels), Dim::Free("h"), Dim::Free("w")];
        let large = [Dim::Free("F"), Dim::Fixed(3), Dim::Free("H"), Dim::Free("W")];
        let element = graph.input("latents", SAMPLES, &small)?;
        graph.output("pixels", SAMPLES, &large)?;
        let count = graph.session.inputs().iter().filter(|i| i.name() != "latents").count();
        let caches = (0..count).map(|i| Cache::of(&graph, i)).collect::<Result<Vec<_>>>()?;
        let inputs = caches.iter().map(|cache| cache.names[0].as_str());
        let outputs = caches.iter().map(|cache| cache.names[1].as_str());
        graph.only(
            &inputs.chain(["latents"]).collect::<Vec<_>>(),
            &outputs.chain(["pixels"]).collect::<Vec<_>>(),
        )?;
        Ok(Self {
            graph,
            element,
            caches,
            latent,
            device: loader.chosen.device_memory()?,
            host: loader.chosen.host_memory()?,
        })
    }

    /// Pixels `[F,3,H,W]` of a window's latents `[T,C,h,w]`.
    pub fn decode(&mut self, latents: ArrayView4<f32>, runner: &Runner) -> Result<Samples> {
        let (count, _, height, width) = latents.dim();
        let Latent { spatial_factor, temporal_factor, .. } = self.latent;
        let frames_of = |count: usize| count.saturating_sub(1) * temporal_factor + count.min(1);
        let [height, width] = [height * spatial_factor, width * spatial_factor];
        let shape = [frames_of(count), 3, height, width];
        if latents.is_empty() {
            return Ok(Array4::zeros((shape[0], 3, height, width)).into());
        }
        let mut pixels = runner.buffers.lease(shape.iter().product());
        let mut rest = &mut *pixels;
        let mut caches = self.empty_caches(latents.dim()).map_err(|e| failed(&e))?;
        let mut start = 0;
        while start < count {
            let end = count.min(start + if start == 0 { RUNS[0] } else { RUNS[1] });
            let frames = frames_of(end) - frames_of(start);
            let part = latents.slice(s![start..end, .., .., ..]);
            let shape = [frames, 3, height, width];
            let last = end == count;
            let Run { pixels: given, caches: next } =
                self.run(part, shape, caches, last, runner)?;
            caches = next;
            let (to, after) = rest.split_at_mut(shape.iter().product());
            let parts = to.chunks_mut(PART).zip((*given).as_ref().chunks(PART));
            runner.threads.for_each(parts, |(to, from)| to.copy_from_slice(from));
            rest = after;
            start = end;
        }
        Samples::new(pixels, shape)
    }

    /// Caches before the first run: without frames.
    fn empty_caches(
        &self,
        (_, _, height, width): (usize, usize, usize, usize),
    ) -> ort::Result<Vec<DynValue>> {
        let allocator = Allocator::default();
        let empty = |cache: &Cache| {
            let [height, width] = [height * cache.scale, width * cache.scale];
            let shape = [1, cache.channels, 0, height, width];
            DynTensor::new(&allocator, cache.element, shape).map(DynTensor::into_dyn)
        };
        self.caches.iter().map(empty).collect()
    }

    /// The pixels of some latents, and the caches for the next run unless this is the last.
    fn run(
        &mut self,
        latents: ArrayView4<f32>,
        shape: [usize; 4],
        caches: Vec<DynValue>,
        last: bool,
        runner: &Runner,
    ) -> Result<Run> {
        let bind = || {
            let mut binding = self.graph.session.create_binding()?;
            let mut input = Input::new(self.element, latents.shape())?;
            input.fill(latents, &runner.threads);
            input.bind(&mut binding, "latents")?;
            binding.bind_output_to_device("pixels", &self.host)?;
            for (cache, value) in self.caches.iter().zip(&caches) {
                binding.bind_input(&cache.names[0], value)?;
                if !last {
                    binding.bind_output_to_device(&cache.names[1], &self.device)?;
                }
            }
            Ok(binding)
        };
        let binding = bind().map_err(|e| failed(&e))?;
        let kept = if last { &[][..] } else { &self.caches[..] };
        let session = &mut self.graph.session;
        let (pixels, next) = runner.run(Role::VaeDecoder, |options| {
            let mut outputs = session.run_binding_with_options(&binding, options)?;
            let next = kept.iter().map(|cache| outputs.remove(&cache.names[1]));
            let next = next.collect::<Option<Vec<_>>>();
            Ok((outputs.remove("pixels"), next))
        })?;
        let fail = |reason: String| Error::inference(Role::VaeDecoder, reason);
        let pixels = pixels.ok_or_else(|| fail("gave no pixels".into()))?;
        let next = next.ok_or_else(|| fail("gave too few caches".into()))?;
        let pixels = values(pixels, &shape, &runner.threads, &runner.buffers).map_err(fail)?;
        check_finite((*pixels).as_ref(), &runner.threads).map_err(fail)?;
        Ok(Run { pixels, caches: next })
    }
}

impl Cache {
    fn of(graph: &Graph, i: usize) -> Result<Self> {
        let names = [format!("cache_{i}"), format!("next_{i}")];
        let any = [Dim::Fixed(1), Dim::Any, Dim::Free("P"), Dim::Free("h"), Dim::Free("w")];
        let element = graph.input(&names[0], CACHES, &any)?;
        graph.output(&names[1], &[element], &[Dim::Any; 5])?;
        let input = graph.session.inputs().iter().find(|input| input.name() == names[0]);
        let size = input.and_then(|input| match input.dtype() {
            ValueType::Tensor { shape, dimension_symbols, .. } => {
                let level = dimension_symbols[3].strip_prefix("h_")?.parse::<u32>().ok()?;
                Some((usize::try_from(shape[1]).ok()?, 1_usize.checked_shl(level)?))
            }
            _ => None,
        });
        let Some((channels, scale)) = size else {
            let reason = "must be [1,c,P,h_l,w_l] with a fixed number c and a level l";
            return Err(graph.error(&names[0], reason));
        };
        Ok(Self { names, element, channels, scale })
    }
}

fn failed(e: &ort::Error) -> Error {
    failure(Role::VaeDecoder, e)
}
