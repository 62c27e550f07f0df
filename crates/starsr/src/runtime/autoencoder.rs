// SPDX-License-Identifier: MPL-2.0

//! The autoencoder: pixels to latents and back.

use ndarray::{Array4, ArrayView4};
use ort::session::SessionInputValue;
use ort::value::{TensorElementType, TensorRef};

use super::carried::CarriedDecoder;
use super::graph::{Dim, Graph, Loader, SAMPLES};
use super::runner::{Runner, failure};
use super::tensor::{Input, check_finite, values};
use crate::bundle::Latent;
use crate::error::{Error, Result};
use crate::model::Samples;
use crate::names::Role;

/// A graph with one input.
pub(super) struct Coder {
    pub(super) graph: Graph,
    pub(super) input: &'static str,
    pub(super) element: TensorElementType,
    /// The input of the last run for which samples were copied, and its shape.
    pub(super) kept: Option<((usize, usize, usize, usize), Input)>,
}

/// Ways of decoding.
enum Decoder {
    /// All latents that are given in one run.
    Single(Coder),
    /// In several runs, each of which goes on where the last one ended.
    Carried(CarriedDecoder),
}

/// Encoder and decoder.
pub(super) struct Autoencoder {
    encoder: Coder,
    decoder: Decoder,
    latent: Latent,
    /// Whether the encoder gives the standard deviation of the posterior.
    pub has_std: bool,
}

impl Autoencoder {
    pub fn load(loader: &Loader) -> Result<Self> {
        let latent = loader.bundle.manifest().latent;
        let frames = Dim::Free(if latent.temporal_factor == 1 { "F" } else { "T" });
        let small = [frames, Dim::Fixed(latent.channels), Dim::Free("h"), Dim::Free("w")];
        let large = [Dim::Free("F"), Dim::Fixed(3), Dim::Free("H"), Dim::Free("W")];

        let encoder = loader.required(Role::VaeEncoder)?;
        encoder.only(&["pixels"], &["latents", "std"])?;
        let pixels = encoder.input("pixels", SAMPLES, &large)?;
        encoder.output("latents", SAMPLES, &small)?;
        let has_std = encoder.has_output("std");
        if has_std {
            encoder.output("std", SAMPLES, &small)?;
        }

        let decoder = loader.required(Role::VaeDecoder)?;
        let decoder = if CarriedDecoder::fits(&decoder) {
            Decoder::Carried(CarriedDecoder::new(decoder, latent, loader)?)
        } else {
            decoder.only(&["latents"], &["pixels"])?;
            let element = decoder.input("latents", SAMPLES, &small)?;
            decoder.output("pixels", SAMPLES, &large)?;
            Decoder::Single(Coder { graph: decoder, input: "latents", element, kept: None })
        };
        Ok(Self {
            encoder: Coder { graph: encoder, input: "pixels", element: pixels, kept: None },
            decoder,
            latent,
            has_std,
        })
    }

    /// The encoder's outputs `names`, `[T,C,h,w]`, for frames `[F,3,H,W]`, in one run.
    pub fn encode<const N: usize>(
        &mut self,
        pixels: ArrayView4<f32>,
        names: [&str; N],
        runner: &Runner,
    ) -> Result<[Samples; N]> {
        let Latent { channels, spatial_factor: factor, temporal_factor, .. } = self.latent;
        let (frames, planes, height, width) = pixels.dim();
        let whole = frames == 0 || (frames - 1) % temporal_factor == 0;
        if planes != 3 || height % factor != 0 || width % factor != 0 || !whole {
            let reason = format!("{:?} is not a legal shape of pixels", pixels.shape());
            return Err(Error::inference(Role::VaeEncoder, reason));
        }
        let frames = frames.div_ceil(temporal_factor);
        let shape = [frames, channels, height / factor, width / factor];
        run(&mut self.encoder, pixels, names, shape, runner)
    }

    /// Pixels of latents `[T,C,h,w]`.
    pub fn decode(&mut self, latents: ArrayView4<f32>, runner: &Runner) -> Result<Samples> {
        let (frames, channels, height, width) = latents.dim();
        if channels != self.latent.channels {
            let reason = format!("{:?} is not a legal shape of latents", latents.shape());
            return Err(Error::inference(Role::VaeDecoder, reason));
        }
        let decoder = match &mut self.decoder {
            Decoder::Single(decoder) => decoder,
            Decoder::Carried(decoder) => return decoder.decode(latents, runner),
        };
        let Latent { spatial_factor: factor, temporal_factor, .. } = self.latent;
        let frames = frames.saturating_sub(1) * temporal_factor + frames.min(1);
        let shape = [frames, 3, height * factor, width * factor];
        run(decoder, latents, ["pixels"], shape, runner).map(|[pixels]| pixels)
    }
}

/// The outputs `names`, of one `shape`, that a graph gives for its only input. A `kept` tensor is
/// used where the samples do not lie in memory as the graph takes them.
pub(super) fn run<const N: usize>(
    Coder { graph, input, element, kept }: &mut Coder,
    samples: ArrayView4<f32>,
    names: [&str; N],
    shape: [usize; 4],
    runner: &Runner,
) -> Result<[Samples; N]> {
    if samples.is_empty() {
        let [frames, channels, height, width] = shape;
        return Ok(names.map(|_| Array4::zeros((frames, channels, height, width)).into()));
    }
    let role = graph.role;
    let failed = |e: ort::Error| failure(role, &e);
    let tensor;
    let value = match samples.to_slice() {
        Some(values) if *element == TensorElementType::Float32 => {
            tensor = TensorRef::from_array_view((samples.shape(), values)).map_err(failed)?;
            SessionInputValue::from(tensor)
        }
        _ => {
            if kept.as_ref().is_none_or(|(shape, _)| *shape != samples.dim()) {
                let tensor = Input::new(*element, samples.shape()).map_err(failed)?;
                *kept = Some((samples.dim(), tensor));
            }
            let (_, tensor) = kept.as_mut().expect("just made");
            tensor.fill(samples, &runner.threads);
            tensor.view()
        }
    };
    let outputs = runner.run(role, |options| {
        let mut outputs = graph.session.run_with_options(ort::inputs![*input => value], options)?;
        Ok(names.map(|name| outputs.remove(name)))
    })?;
    let fail = |reason| Error::inference(role, reason);
    let mut results = Vec::with_capacity(N);
    for (output, name) in outputs.into_iter().zip(names) {
        let output = output.ok_or_else(|| fail(format!("gave no {name}")))?;
        let values = values(output, &shape, &runner.threads, &runner.buffers).map_err(fail)?;
        check_finite((*values).as_ref(), &runner.threads).map_err(fail)?;
        results.extend(Samples::batch(values, 1, shape, false)?);
    }
    results.try_into().map_err(|_| fail("gave too few outputs".into()))
}
