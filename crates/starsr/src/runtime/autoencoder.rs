// SPDX-License-Identifier: MPL-2.0

//! The autoencoder: pixels to latents and back.

use ndarray::{Array4, ArrayView4};
use ort::value::TensorElementType;

use super::graph::{Dim, Graph, Loader, SAMPLES};
use super::runner::{Runner, failure};
use super::tensor::{Input, fetch};
use crate::bundle::Latent;
use crate::error::{Error, Result};
use crate::names::Role;

/// Encoder and decoder, with the element types of their inputs.
pub(super) struct Autoencoder {
    encoder: Graph,
    pixels: TensorElementType,
    decoder: Graph,
    latents: TensorElementType,
    latent: Latent,
    /// Whether the encoder gives the standard deviation of the posterior.
    pub has_std: bool,
}

impl Autoencoder {
    pub fn load(loader: &Loader) -> Result<Self> {
        let latent = loader.bundle.manifest().latent;
        let frames = Dim::Free("F");
        let small = [frames, Dim::Fixed(latent.channels), Dim::Free("h"), Dim::Free("w")];
        let large = [frames, Dim::Fixed(3), Dim::Free("H"), Dim::Free("W")];

        let encoder = loader.required(Role::VaeEncoder)?;
        encoder.only(&["pixels"], &["latents", "std"])?;
        let pixels = encoder.input("pixels", SAMPLES, &large)?;
        encoder.output("latents", SAMPLES, &small)?;
        let has_std = encoder.has_output("std");
        if has_std {
            encoder.output("std", SAMPLES, &small)?;
        }

        let decoder = loader.required(Role::VaeDecoder)?;
        decoder.only(&["latents"], &["pixels"])?;
        let latents = decoder.input("latents", SAMPLES, &small)?;
        decoder.output("pixels", SAMPLES, &large)?;
        Ok(Self { encoder, pixels, decoder, latents, latent, has_std })
    }

    /// The encoder's outputs `names` for frames `[F,3,H,W]`, in one run.
    pub fn encode<const N: usize>(
        &mut self,
        pixels: ArrayView4<f32>,
        names: [&str; N],
        runner: &Runner,
    ) -> Result<[Array4<f32>; N]> {
        let (channels, factor) = (self.latent.channels, self.latent.spatial_factor);
        let (frames, planes, height, width) = pixels.dim();
        if planes != 3 || height % factor != 0 || width % factor != 0 {
            let reason = format!("{:?} is not a legal shape of pixels", pixels.shape());
            return Err(Error::inference(Role::VaeEncoder, reason));
        }
        let shape = (frames, channels, height / factor, width / factor);
        run(&mut self.encoder, ("pixels", self.pixels), pixels, names, shape, runner)
    }

    /// Pixels of frames `[F,C,h,w]`, in one run.
    pub fn decode(&mut self, latents: ArrayView4<f32>, runner: &Runner) -> Result<Array4<f32>> {
        let (frames, channels, height, width) = latents.dim();
        if channels != self.latent.channels {
            let reason = format!("{:?} is not a legal shape of latents", latents.shape());
            return Err(Error::inference(Role::VaeDecoder, reason));
        }
        let factor = self.latent.spatial_factor;
        let shape = (frames, 3, height * factor, width * factor);
        let input = ("latents", self.latents);
        run(&mut self.decoder, input, latents, ["pixels"], shape, runner).map(|[pixels]| pixels)
    }
}

/// The outputs `names`, of one `shape`, that a graph gives for its only input.
fn run<const N: usize>(
    graph: &mut Graph,
    (input, element): (&str, TensorElementType),
    samples: ArrayView4<f32>,
    names: [&str; N],
    shape: (usize, usize, usize, usize),
    runner: &Runner,
) -> Result<[Array4<f32>; N]> {
    let mut results = std::array::from_fn(|_| Array4::zeros(shape));
    if samples.is_empty() {
        return Ok(results);
    }
    let role = graph.role;
    let mut tensor = Input::new(element, samples.shape()).map_err(|e| failure(role, &e))?;
    let samples = samples.as_standard_layout();
    tensor.fill(samples.as_slice().expect("standard layout"), &runner.threads);
    let outputs = runner.run(role, |options| {
        let inputs = ort::inputs![input => tensor.into_dyn()];
        let mut outputs = graph.session.run_with_options(inputs, options)?;
        Ok(names.map(|name| outputs.remove(name)))
    })?;
    for ((result, output), name) in results.iter_mut().zip(outputs).zip(names) {
        let fail = |reason| Error::inference(role, reason);
        let output = output.ok_or_else(|| fail(format!("gave no {name}")))?;
        let shape = result.shape().to_vec();
        let samples = result.as_slice_mut().expect("a new array is contiguous");
        fetch(&output, &shape, samples, &runner.threads).map_err(fail)?;
    }
    Ok(results)
}
