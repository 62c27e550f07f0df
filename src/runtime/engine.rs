// SPDX-License-Identifier: MPL-2.0

//! A bundle ready to run.

use std::time::Duration;

use ndarray::{Array4, ArrayView4, Axis, Slice};
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::value::{DynValue, TensorElementType};

use super::checks::{check_controls, controls_of, embedding_of};
use super::providers::{Chosen, Options, Provider};
use super::session::{Dim, Graph, Runner, SAMPLES, Stats, failure};
use super::step::Predictor;
use super::tensor::{self, Input};
use super::text::Text;
use super::{library, one_line};
use crate::bundle::{Bundle, Latent, MANIFEST, Role, Vae};
use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::model::{Condition, Denoiser, Embedding, Model, no_deviation};
use crate::text::Ids;

/// A bundle ready to run: one session for each graph.
///
/// ControlNet and denoiser are joined by bindings, so that the controls never leave the device; on the CPU they are
/// not copied at all. Memory for a window is kept until a window of another size comes.
pub struct Engine {
    encoder: Graph,
    decoder: Graph,
    predictor: Predictor,
    text: Text,
    has_deviation: bool,
    pixels: [TensorElementType; 2],
    latent: Latent,
    vae: Vae,
    chosen: Chosen,
    version: &'static str,
    runner: Runner,
}

const BATCH: Dim = Dim::Free("B");
const FRAMES: Dim = Dim::Free("F");

impl Engine {
    /// Loads ONNX Runtime, if this process has not yet, and the bundle's graphs, and checks their tensors against the
    /// manifest and each other. `cancel` stops the loading between two graphs, and later any run.
    ///
    /// # Errors
    /// [`Error::LibraryMissing`], [`Error::LibraryVersion`], [`Error::LibraryInUse`]: no usable ONNX Runtime.
    /// [`Error::Provider`]: the named provider does not work. [`Error::Bundle`]: a graph is not as it should be.
    /// [`Error::Setting`]: an option makes no sense. [`Error::Cancelled`].
    pub fn load(bundle: &Bundle, options: &Options, cancel: &Cancel) -> Result<Self> {
        cancel.check()?;
        let library = library::load(options.library.as_deref(), &options.near)?;
        let chosen = Chosen::new(library, options)?;
        let manifest = bundle.manifest();
        let channels = Dim::Fixed(manifest.latent.channels);
        let load = |role| Graph::load(bundle, role, library, &chosen, cancel);
        let required = |role| {
            load(role)?.ok_or_else(|| Error::Bundle {
                file: bundle.root().to_path_buf(),
                field: format!("graphs.{role}"),
                reason: "is missing".into(),
            })
        };

        let small = [FRAMES, channels, Dim::Free("h"), Dim::Free("w")];
        let large = [FRAMES, Dim::Fixed(3), Dim::Free("H"), Dim::Free("W")];
        let encoder = required(Role::VaeEncoder)?;
        encoder.only(&["pixels"], &["latents", "std"])?;
        let to_encoder = encoder.input("pixels", SAMPLES, &large)?;
        encoder.output("latents", SAMPLES, &small)?;
        let has_deviation = encoder.has_output("std");
        if has_deviation {
            encoder.output("std", SAMPLES, &small)?;
        }

        let decoder = required(Role::VaeDecoder)?;
        decoder.only(&["latents"], &["pixels"])?;
        let to_decoder = decoder.input("latents", SAMPLES, &small)?;
        decoder.output("pixels", SAMPLES, &large)?;

        let video = [BATCH, channels, FRAMES, Dim::Free("h"), Dim::Free("w")];
        let controlnet = required(Role::ControlNet)?;
        let controls = controls_of(&controlnet)?;
        let control_names = controls.iter().map(String::as_str).collect::<Vec<_>>();
        controlnet.only(&["x", "t", "hint", "embedding"], &control_names)?;
        let latents = controlnet.input("x", SAMPLES, &video)?;
        controlnet.input("hint", &[latents], &video)?;
        controlnet.input("t", &[TensorElementType::Int64], &[BATCH])?;

        let denoiser = required(Role::Denoiser)?;
        check_controls(&controlnet, &denoiser, &controls)?;
        denoiser.only(&[&["x", "t", "embedding"], control_names.as_slice()].concat(), &["v"])?;
        denoiser.input("x", &[latents], &video)?;
        denoiser.input("t", &[TensorElementType::Int64], &[BATCH])?;
        denoiser.output("v", SAMPLES, &video)?;

        let embedding = embedding_of(&controlnet, &denoiser)?;
        match &manifest.prompts {
            None if embedding.is_some() => {
                let reason =
                    "the graph takes the embedding of a prompt, but the manifest has no table prompts";
                return Err(controlnet.error("embedding", reason));
            }
            Some(_) if embedding.is_none() => {
                return Err(Error::Bundle {
                    file: bundle.root().join(MANIFEST),
                    field: "prompts".into(),
                    reason:
                        "has no use, as neither controlnet nor denoiser takes an embedding; remove the table"
                            .into(),
                });
            }
            _ => {}
        }
        let takers: &[&Graph] = if embedding.is_some() { &[&controlnet, &denoiser] } else { &[] };
        let text = Text::new(bundle, load(Role::TextEncoder)?, takers)?;

        let failed =
            |e: ort::Error| Error::Provider { provider: chosen.provider.to_string(), reason: one_line(&e) };
        let device = chosen.device_memory().map_err(failed)?;
        let host = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default)
            .map_err(failed)?;
        Ok(Self {
            encoder,
            decoder,
            predictor: Predictor {
                controlnet,
                denoiser,
                controls,
                latents,
                embedding,
                device,
                host,
                steps: [None, None],
            },
            text,
            has_deviation,
            pixels: [to_encoder, to_decoder],
            latent: manifest.latent,
            vae: manifest.vae,
            chosen,
            version: &library.version,
            runner: Runner::new(cancel)?,
        })
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
        self.text.has_encoder()
    }

    /// Time spent inside ONNX Runtime since the engine was loaded.
    pub fn stats(&self) -> Stats {
        self.runner.stats.clone()
    }

    fn decode_group(&mut self, latents: ArrayView4<f32>) -> Result<DynValue> {
        let input = input(Role::VaeDecoder, self.pixels[1], latents)?;
        let output = self.runner.run(Role::VaeDecoder, |options| {
            let inputs = ort::inputs!["latents" => input];
            self.decoder.session.run_with_options(inputs, options).map(|mut o| o.remove("pixels"))
        })?;
        output.ok_or_else(|| fail(Role::VaeDecoder, "gave no pixels"))
    }

    /// The encoder's outputs `names` for all frames `[F,3,H,W]`.
    fn encode_to<const N: usize>(
        &mut self,
        pixels: ArrayView4<f32>,
        names: [&str; N],
    ) -> Result<[Array4<f32>; N]> {
        let (channels, factor) = (self.latent.channels, self.latent.spatial_factor);
        let (frames, planes, height, width) = pixels.dim();
        if planes != 3 || height % factor != 0 || width % factor != 0 {
            let reason = format!("{:?} is not a legal shape of pixels", pixels.shape());
            return Err(fail(Role::VaeEncoder, reason));
        }
        let shape = (frames, channels, height / factor, width / factor);
        let mut results = std::array::from_fn(|_| Array4::zeros(shape));
        if pixels.is_empty() {
            return Ok(results);
        }
        let group = self.vae.frames_per_encode;
        for (k, from) in pixels.axis_chunks_iter(Axis(0), group).enumerate() {
            let input = input(Role::VaeEncoder, self.pixels[0], from)?;
            let outputs = self.runner.run(Role::VaeEncoder, |options| {
                let inputs = ort::inputs!["pixels" => input];
                let mut outputs = self.encoder.session.run_with_options(inputs, options)?;
                Ok(names.map(|name| outputs.remove(name)))
            })?;
            let place = Slice::from(k * group..k * group + from.dim().0);
            for ((result, output), name) in results.iter_mut().zip(outputs).zip(names) {
                let output = output.ok_or_else(|| fail(Role::VaeEncoder, format!("gave no {name}")))?;
                fetch(Role::VaeEncoder, &output, result, place)?;
            }
        }
        Ok(results)
    }

    /// Velocities under one or two conditions.
    fn predict<const B: usize>(
        &mut self,
        x: ArrayView4<f32>,
        t: i64,
        hint: ArrayView4<f32>,
        conditions: [Condition; B],
    ) -> Result<[Array4<f32>; B]> {
        if x.dim() != hint.dim() || x.dim().1 != self.latent.channels {
            let reason =
                format!("x {:?} and hint {:?} must have one shape, [F,C,h,w]", x.shape(), hint.shape());
            return Err(fail(Role::ControlNet, reason));
        }
        if x.is_empty() {
            return Ok(std::array::from_fn(|_| Array4::zeros(x.dim())));
        }
        self.predictor.run(x, t, hint, conditions, &self.runner)
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
        self.encode_to(pixels, ["latents"]).map(|[latents]| latents)
    }

    fn encode_posterior(&mut self, pixels: ArrayView4<f32>) -> Result<[Array4<f32>; 2]> {
        if !self.has_deviation {
            return Err(no_deviation());
        }
        self.encode_to(pixels, ["latents", "std"])
    }

    fn has_deviation(&self) -> bool {
        self.has_deviation
    }

    fn decode(&mut self, latents: ArrayView4<f32>) -> Result<Array4<f32>> {
        let (frames, channels, height, width) = latents.dim();
        if channels != self.latent.channels {
            let reason = format!("{:?} is not a legal shape of latents", latents.shape());
            return Err(fail(Role::VaeDecoder, reason));
        }
        let factor = self.latent.spatial_factor;
        let mut pixels = Array4::zeros((frames, 3, height * factor, width * factor));
        if pixels.is_empty() {
            return Ok(pixels);
        }
        let group = self.vae.frames_per_decode;
        for (k, from) in latents.axis_chunks_iter(Axis(0), group).enumerate() {
            let output = self.decode_group(from)?;
            let place = Slice::from(k * group..k * group + from.dim().0);
            fetch(Role::VaeDecoder, &output, &mut pixels, place)?;
        }
        Ok(pixels)
    }

    fn embed(&mut self, tokens: &Ids) -> Result<Embedding> {
        self.text.embed(tokens, &self.runner)
    }

    fn busy(&self) -> Duration {
        self.runner.stats.total()
    }
}

fn fail(role: Role, reason: impl Into<String>) -> Error {
    Error::Inference { graph: role.to_string(), reason: reason.into() }
}

fn input(role: Role, element: TensorElementType, samples: ArrayView4<f32>) -> Result<DynValue> {
    let mut tensor = Input::new(element, samples.shape()).map_err(|e| failure(role, &e))?;
    let samples = samples.as_standard_layout();
    tensor.fill(samples.as_slice().expect("the standard layout is contiguous"));
    Ok(tensor.into_dyn())
}

/// Copies an output to the frames `place` of a result.
fn fetch(role: Role, output: &DynValue, result: &mut Array4<f32>, place: Slice) -> Result<()> {
    let mut to = result.slice_axis_mut(Axis(0), place);
    let shape = to.shape().to_vec();
    let to = to.as_slice_mut().expect("whole frames of a new array are contiguous");
    tensor::fetch(output, &shape, to).map_err(|reason| fail(role, reason))
}
