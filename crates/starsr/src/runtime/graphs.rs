// SPDX-License-Identifier: MPL-2.0

//! The graphs of a bundle, joined.

use ndarray::{Array4, ArrayView4, Axis, Slice};
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::value::{DynValue, TensorElementType};

use super::checks::{check_controls, controls_of, embedding_of};
use super::library::Library;
use super::one_line;
use super::providers::Chosen;
use super::session::{Dim, Graph, Runner, SAMPLES, failure};
use super::step::Predictor;
use super::tensor::{self, Input};
use super::text::Text;
use crate::bundle::{Bundle, Latent, MANIFEST, Role, Vae};
use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::model::Condition;
use crate::parallel::Threads;

/// One session for each graph.
///
/// ControlNet and denoiser are joined by bindings, so that the controls never leave the device; on the CPU they are
/// not copied at all. Memory for a window is kept until a window of another size comes.
pub(super) struct Graphs {
    encoder: Graph,
    decoder: Graph,
    predictor: Predictor,
    pub text: Text,
    pub has_deviation: bool,
    pixels: [TensorElementType; 2],
    latent: Latent,
    vae: Vae,
}

const BATCH: Dim = Dim::Free("B");
const FRAMES: Dim = Dim::Free("F");

impl Graphs {
    /// Loads the graphs and checks their tensors against the manifest and each other. `cancel` stops that between two graphs.
    pub fn load(bundle: &Bundle, library: &Library, chosen: &Chosen, cancel: &Cancel) -> Result<Self> {
        let manifest = bundle.manifest();
        let channels = Dim::Fixed(manifest.latent.channels);
        let load = |role| Graph::load(bundle, role, library, chosen, cancel);
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
        })
    }

    fn decode_group(&mut self, latents: ArrayView4<f32>, runner: &Runner) -> Result<DynValue> {
        let input = input(Role::VaeDecoder, self.pixels[1], latents, runner.threads)?;
        let output = runner.run(Role::VaeDecoder, |options| {
            let inputs = ort::inputs!["latents" => input];
            self.decoder.session.run_with_options(inputs, options).map(|mut o| o.remove("pixels"))
        })?;
        output.ok_or_else(|| fail(Role::VaeDecoder, "gave no pixels"))
    }

    /// The encoder's outputs `names` for all frames `[F,3,H,W]`.
    pub fn encode_to<const N: usize>(
        &mut self,
        pixels: ArrayView4<f32>,
        names: [&str; N],
        runner: &Runner,
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
            let input = input(Role::VaeEncoder, self.pixels[0], from, runner.threads)?;
            let outputs = runner.run(Role::VaeEncoder, |options| {
                let inputs = ort::inputs!["pixels" => input];
                let mut outputs = self.encoder.session.run_with_options(inputs, options)?;
                Ok(names.map(|name| outputs.remove(name)))
            })?;
            let place = Slice::from(k * group..k * group + from.dim().0);
            for ((result, output), name) in results.iter_mut().zip(outputs).zip(names) {
                let output = output.ok_or_else(|| fail(Role::VaeEncoder, format!("gave no {name}")))?;
                fetch(Role::VaeEncoder, &output, result, place, runner.threads)?;
            }
        }
        Ok(results)
    }

    /// Velocities under one or two conditions.
    pub fn predict<const B: usize>(
        &mut self,
        x: ArrayView4<f32>,
        t: i64,
        hint: ArrayView4<f32>,
        conditions: [Condition; B],
        runner: &Runner,
    ) -> Result<[Array4<f32>; B]> {
        if x.dim() != hint.dim() || x.dim().1 != self.latent.channels {
            let reason =
                format!("x {:?} and hint {:?} must have one shape, [F,C,h,w]", x.shape(), hint.shape());
            return Err(fail(Role::ControlNet, reason));
        }
        if x.is_empty() {
            return Ok(std::array::from_fn(|_| Array4::zeros(x.dim())));
        }
        self.predictor.run(x, t, hint, conditions, runner)
    }

    /// Pixels of all frames `[F,C,h,w]`.
    pub fn decode(&mut self, latents: ArrayView4<f32>, runner: &Runner) -> Result<Array4<f32>> {
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
            let output = self.decode_group(from, runner)?;
            let place = Slice::from(k * group..k * group + from.dim().0);
            fetch(Role::VaeDecoder, &output, &mut pixels, place, runner.threads)?;
        }
        Ok(pixels)
    }
}

fn fail(role: Role, reason: impl Into<String>) -> Error {
    Error::Inference { graph: role.to_string(), reason: reason.into() }
}

fn input(
    role: Role,
    element: TensorElementType,
    samples: ArrayView4<f32>,
    threads: Threads,
) -> Result<DynValue> {
    let mut tensor = Input::new(element, samples.shape()).map_err(|e| failure(role, &e))?;
    let samples = samples.as_standard_layout();
    tensor.fill(samples.as_slice().expect("the standard layout is contiguous"), threads);
    Ok(tensor.into_dyn())
}

/// Copies an output to the frames `place` of a result.
fn fetch(
    role: Role,
    output: &DynValue,
    result: &mut Array4<f32>,
    place: Slice,
    threads: Threads,
) -> Result<()> {
    let mut to = result.slice_axis_mut(Axis(0), place);
    let shape = to.shape().to_vec();
    let to = to.as_slice_mut().expect("whole frames of a new array are contiguous");
    tensor::fetch(output, &shape, to, threads).map_err(|reason| fail(role, reason))
}
