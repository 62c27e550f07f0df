// SPDX-License-Identifier: MPL-2.0

//! A graph that restores a window in one evaluation, and its two sets of weights.

use std::path::Path;

use half::f16;
use half::slice::HalfFloatSliceExt;
use ndarray::ArrayView4;
use ort::session::builder::SessionBuilder;
use ort::value::Tensor;
use safetensors::{Dtype, SafeTensors};

use super::autoencoder::{Coder, run};
use super::graph::{Dim, Loader, SAMPLES};
use super::runner::Runner;
use crate::bundle::{Bundle, Manifest};
use crate::error::{Error, Result};
use crate::model::Samples;
use crate::names::{Role, Setting};

/// The graph with the role `upscaler`.
pub(super) struct Direct {
    coder: Coder,
    /// Output pixels along each side of an input pixel.
    factor: usize,
}

impl Direct {
    /// Loads the graph with weights of which `detail` is the share of those for detail.
    pub fn load(loader: &Loader, detail: f32) -> Result<Self> {
        let small = [Dim::Free("F"), Dim::Fixed(3), Dim::Free("h"), Dim::Free("w")];
        let large = [Dim::Free("F"), Dim::Fixed(3), Dim::Free("H"), Dim::Free("W")];
        let weights = blended(loader.bundle, detail)?;
        let graph = loader.required_with(Role::Upscaler, |builder| add(builder, weights))?;
        graph.only(&["low"], &["high"])?;
        let element = graph.input("low", SAMPLES, &small)?;
        graph.output("high", SAMPLES, &large)?;
        let factor = loader.bundle.manifest().latent.spatial_factor;
        Ok(Self { coder: Coder { graph, input: "low", element, kept: None }, factor })
    }

    /// Pixels `[F,3,H,W]` of the frames `[F,3,h,w]` of a window, both in `[0,1]`, in one run.
    pub fn upscale(&mut self, low: ArrayView4<f32>, runner: &Runner) -> Result<Samples> {
        let (frames, channels, height, width) = low.dim();
        if channels != 3 {
            let reason = format!("{:?} is not a legal shape of frames", low.shape());
            return Err(Error::inference(Role::Upscaler, reason));
        }
        let shape = [frames, 3, height * self.factor, width * self.factor];
        run(&mut self.coder, low, ["high"], shape, runner).map(|[pixels]| pixels)
    }
}

/// The share of the weights for detail that is meant by `share`, which a user may have set.
///
/// # Errors
/// [`Error::Setting`] outside 0 to 1, and for a bundle with one set of weights.
pub(super) fn detail(manifest: &Manifest, share: Option<f32>) -> Result<f32> {
    let refuse = |reason| Err(Error::setting(Setting::Detail, reason));
    match (&manifest.detail, share) {
        (Some(_), Some(share)) if !(0.0..=1.0).contains(&share) => {
            refuse(format!("{share} is outside 0 to 1"))
        }
        (Some(spec), share) => Ok(share.unwrap_or(spec.default)),
        (None, None) => Ok(0.0),
        (None, Some(_)) => refuse(format!(
            "the bundle {} has one set of weights only; use a bundle with two, or leave it unset",
            manifest.name
        )),
    }
}

/// Weights by the name of their initializer.
type Weights = Vec<(String, Tensor<f16>)>;

/// The weights between those of both files of a bundle; none where the graph's own file has them.
fn blended(bundle: &Bundle, share: f32) -> Result<Weights> {
    let manifest = bundle.manifest();
    let (Some(spec), Some(graph)) = (&manifest.detail, &manifest.graphs.upscaler) else {
        return Ok(Vec::new());
    };
    let Some(own) = graph.data.first().filter(|_| share > 0.0) else { return Ok(Vec::new()) };
    let files = [&own.file, &spec.weights.file].map(|file| bundle.root().join(file));
    let [fidelity, detail] = [read(&files[0])?, read(&files[1])?];
    let [fidelity, detail] = [parse(&fidelity, &files[0])?, parse(&detail, &files[1])?];
    let mut weights = Vec::new();
    for (name, a) in fidelity.tensors() {
        let fail = |reason: String| {
            Error::bundle(&files[1], format!("detail.weights, tensor {name}"), reason)
        };
        let b = detail.tensor(&name).map_err(|_| fail("is missing".into()))?;
        if a.dtype() != Dtype::F16 || b.dtype() != Dtype::F16 || a.shape() != b.shape() {
            let reason = format!(
                "is {:?} {:?}, and for fidelity {:?} {:?}; both must be F16 of one shape",
                b.dtype(),
                b.shape(),
                a.dtype(),
                a.shape()
            );
            return Err(fail(reason));
        }
        let [a_values, b_values] = [a.data(), b.data()].map(halves);
        let values = a_values.iter().zip(&b_values).map(|(a, b)| a + share * (b - a));
        let values: Vec<f16> = values.map(f16::from_f32).collect();
        let tensor = Tensor::from_array((a.shape(), values))
            .map_err(|e| fail(super::runner::one_line(&e)))?;
        weights.push((name, tensor));
    }
    Ok(weights)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| {
        Error::bundle(path, "detail.weights", format!("cannot be read: {e}")).caused_by(e)
    })
}

fn parse<'a>(bytes: &'a [u8], path: &Path) -> Result<SafeTensors<'a>> {
    SafeTensors::deserialize(bytes).map_err(|e| {
        let reason = format!("is not a safetensors file: {e}; install the bundle again");
        Error::bundle(path, "detail.weights", reason).caused_by(e)
    })
}

fn halves(bytes: &[u8]) -> Vec<f32> {
    let halves: Vec<f16> =
        bytes.chunks_exact(2).map(|pair| f16::from_le_bytes([pair[0], pair[1]])).collect();
    let mut values = vec![0.0; halves.len()];
    halves.convert_to_f32_slice(&mut values);
    values
}

/// Puts `weights` in the place of those that the graph's file names.
fn add(mut builder: SessionBuilder, weights: Weights) -> ort::Result<SessionBuilder> {
    for (name, tensor) in weights {
        builder = builder.with_external_initializer(name, tensor.into_dyn())?;
    }
    Ok(builder)
}
