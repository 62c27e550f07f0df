// SPDX-License-Identifier: MPL-2.0

//! Predictions: what answers queries, and ControlNet and denoiser, joined by bindings.

use std::sync::Arc;

use ndarray::Array4;
use ort::memory::MemoryInfo;
use ort::session::IoBinding;
use ort::value::{Tensor, TensorElementType, ValueType};

use super::concat::ConcatPredictor;
use super::graph::{Dim, Graph, Loader, SAMPLES};
use super::runner::{Runner, failure};
use super::tensor::{Input, values};
use crate::bundle::{ConditionKind, MANIFEST};
use crate::error::{Error, Result};
use crate::model::{Condition, Embedding, Query, Samples};
use crate::names::Role;
use crate::parallel::Threads;
use crate::text::CONTEXT;

/// What answers queries.
pub(super) trait Predict: Send {
    /// What `query` asks for, as one batch.
    fn predict(&mut self, query: &Query, runner: &Runner) -> Result<Vec<Samples>>;

    /// See [`Denoiser::prepare`](crate::model::Denoiser::prepare).
    fn prepare(&mut self, _timesteps: &[i64], _runner: &Runner) -> Result<()> {
        Ok(())
    }

    /// The graphs that take the embedding of a prompt.
    fn text_graphs(&self) -> Vec<&Graph>;
}

/// The number of a query's conditions, which a batch may have.
pub(super) fn batch_of(conditions: &[Condition]) -> Result<usize> {
    match conditions.len() {
        batch @ 1..=2 => Ok(batch),
        batch => {
            let reason = format!("it has {batch} conditions, but must have one or two");
            Err(Error::input("a prediction", reason))
        }
    }
}

/// What a run of `denoiser` gives as `v`, of the given shape.
pub(super) fn run_denoiser(
    denoiser: &mut Graph,
    binding: &IoBinding,
    shape: [usize; 5],
    runner: &Runner,
) -> Result<Arc<dyn AsRef<[f32]> + Send + Sync>> {
    let v = runner.run(Role::Denoiser, |options| {
        let mut outputs = denoiser.session.run_binding_with_options(binding, options)?;
        Ok(outputs.remove("v"))
    })?;
    let fail = |reason| Error::inference(Role::Denoiser, reason);
    let v = v.ok_or_else(|| fail("gave no v".to_string()))?;
    values(v, &shape, &runner.threads, &runner.buffers).map_err(fail)
}

/// The predictor of a bundle.
pub(super) fn load(loader: &Loader) -> Result<Box<dyn Predict>> {
    Ok(match loader.bundle.manifest().condition.kind {
        ConditionKind::ControlNet => Box::new(Predictor::load(loader)?),
        ConditionKind::Concat => Box::new(ConcatPredictor::load(loader)?),
    })
}

/// ControlNet and denoiser, with what their tensors are made of.
///
/// They are joined by bindings, so that the controls never leave the device; on the CPU they are
/// not copied at all. Memory for a window is kept until a window of another size comes.
struct Predictor {
    controlnet: Graph,
    denoiser: Graph,
    /// Names of the tensors that go from one to the other.
    controls: Vec<String>,
    /// Channels of `x` and `hint`, and their element type.
    channels: usize,
    latents: TensorElementType,
    /// Element type of the embedding, `None` where there is no text condition.
    embedding: Option<TensorElementType>,
    /// Whether all conditions share one `x`, `hint` and `t`.
    shared: bool,
    /// Where the controls are.
    device: MemoryInfo<'static>,
    /// Where `v` goes.
    host: MemoryInfo<'static>,
    /// The bindings used last, for one and for two conditions.
    bindings: [Option<Bindings>; 2],
}

/// Tensors and bindings for one size of window.
struct Bindings {
    /// `[F,C,h,w]`.
    shape: [usize; 4],
    x: Input,
    hint: Input,
    t: Tensor<i64>,
    /// The embeddings that are bound, one for each of the batch.
    text: Vec<Embedding>,
    controlnet: IoBinding,
    denoiser: IoBinding,
}

const BATCH: Dim = Dim::Free("B");

/// Controls only pass from one graph to the other, so that they may have a type that nothing here
/// reads.
const CONTROLS: &[TensorElementType] =
    &[TensorElementType::Float32, TensorElementType::Float16, TensorElementType::Bfloat16];

impl Predictor {
    fn load(loader: &Loader) -> Result<Self> {
        let channels = loader.bundle.manifest().latent.channels;
        let video = [BATCH, Dim::Fixed(channels), Dim::Free("F"), Dim::Free("h"), Dim::Free("w")];
        let controlnet = loader.required(Role::ControlNet)?;
        let controls = controls_of(&controlnet)?;
        let names = controls.iter().map(String::as_str).collect::<Vec<_>>();
        controlnet.only(&["x", "t", "hint", "embedding"], &names)?;
        let latents = controlnet.input("x", SAMPLES, &video)?;
        controlnet.input("hint", &[latents], &video)?;
        controlnet.input("t", &[TensorElementType::Int64], &[BATCH])?;

        let denoiser = loader.required(Role::Denoiser)?;
        check_controls(&controlnet, &denoiser, &controls)?;
        denoiser.only(&[&["x", "t", "embedding"], names.as_slice()].concat(), &["v"])?;
        denoiser.input("x", &[latents], &video)?;
        denoiser.input("t", &[TensorElementType::Int64], &[BATCH])?;
        denoiser.output("v", SAMPLES, &video)?;

        let embedding = embedding_of(&controlnet, &denoiser)?;
        match &loader.bundle.manifest().prompts {
            None if embedding.is_some() => {
                let reason = "the graph takes the embedding of a prompt, but the manifest has no \
                              table prompts";
                return Err(controlnet.error("embedding", reason));
            }
            Some(_) if embedding.is_none() => {
                let reason = "has no use, as neither controlnet nor denoiser takes an embedding; \
                              remove the table";
                return Err(Error::bundle(loader.bundle.root().join(MANIFEST), "prompts", reason));
            }
            _ => {}
        }

        Ok(Self {
            controlnet,
            denoiser,
            controls,
            channels,
            latents,
            embedding,
            shared: loader.bundle.manifest().shared_prefix,
            device: loader.chosen.device_memory()?,
            host: loader.chosen.host_memory()?,
            bindings: [None, None],
        })
    }

    fn bind(&self, shape: [usize; 4], conditions: usize) -> ort::Result<Bindings> {
        let [frames, channels, height, width] = shape;
        let batch = if self.shared { 1 } else { conditions };
        let video = [batch, channels, frames, height, width];
        let mut controlnet = self.controlnet.session.create_binding()?;
        for name in &self.controls {
            controlnet.bind_output_to_device(name, &self.device)?;
        }
        let denoiser = self.denoiser.session.create_binding()?;
        Ok(Bindings {
            shape,
            x: Input::new(self.latents, &video)?,
            hint: Input::new(self.latents, &video)?,
            t: Tensor::from_array(([batch], vec![0_i64; batch]))?,
            text: Vec::new(),
            controlnet,
            denoiser,
        })
    }
}

impl Predict for Predictor {
    fn text_graphs(&self) -> Vec<&Graph> {
        let graphs = [&self.controlnet, &self.denoiser];
        graphs.into_iter().filter(|_| self.embedding.is_some()).collect()
    }

    fn predict(&mut self, query: &Query, runner: &Runner) -> Result<Vec<Samples>> {
        let Query { x, t, hint, conditions } = *query;
        let batch = batch_of(conditions)?;
        if x.dim() != hint.dim() || x.dim().1 != self.channels {
            let (x, hint) = (x.shape(), hint.shape());
            let reason = format!("x {x:?} and hint {hint:?} must have one shape, [F,C,h,w]");
            return Err(Error::inference(Role::ControlNet, reason));
        }
        if x.is_empty() {
            return Ok(vec![Array4::zeros(x.dim()).into(); batch]);
        }
        let shape: [usize; 4] = x.dim().into();
        let at_controlnet = |e: ort::Error| failure(Role::ControlNet, &e);
        let at_denoiser = |e: ort::Error| failure(Role::Denoiser, &e);

        // Not put back after a failure, when what its bindings hold is unknown.
        let mut bindings = match self.bindings[batch - 1].take() {
            Some(bindings) if bindings.shape == shape => bindings,
            _ => self.bind(shape, batch).map_err(at_controlnet)?,
        };
        bindings.x.fill(x.permuted_axes([1, 0, 2, 3]), &runner.threads);
        bindings.hint.fill(hint.permuted_axes([1, 0, 2, 3]), &runner.threads);
        bindings.t.extract_tensor_mut().1.fill(t);
        if let Some(element) = self.embedding {
            bindings.bind_text(element, conditions, &runner.threads)?;
        }

        // Bound anew each time: to a device, binding is what copies.
        let bind = |b: &mut Bindings| {
            b.x.bind(&mut b.controlnet, "x")?;
            b.hint.bind(&mut b.controlnet, "hint")?;
            b.controlnet.bind_input("t", &b.t)
        };
        bind(&mut bindings).map_err(at_controlnet)?;
        let controls = runner.run(Role::ControlNet, |options| {
            let session = &mut self.controlnet.session;
            let mut outputs = session.run_binding_with_options(&bindings.controlnet, options)?;
            Ok(self.controls.iter().map(|name| outputs.remove(name)).collect::<Vec<_>>())
        })?;

        let bind = |b: &mut Bindings| {
            b.x.bind(&mut b.denoiser, "x")?;
            b.denoiser.bind_input("t", &b.t)?;
            // Bound anew, or this run would write over what the last one gave.
            b.denoiser.bind_output_to_device("v", &self.host)?;
            for (name, value) in self.controls.iter().zip(&controls) {
                if let Some(value) = value {
                    b.denoiser.bind_input(name, value)?;
                }
            }
            Ok(())
        };
        bind(&mut bindings).map_err(at_denoiser)?;
        let [frames, channels, height, width] = shape;
        let video = [batch, channels, frames, height, width];
        let values = run_denoiser(&mut self.denoiser, &bindings.denoiser, video, runner)?;
        self.bindings[batch - 1] = Some(bindings);
        Samples::batch(values, batch, shape, true)
    }
}

impl Bindings {
    /// Binds the embeddings of `conditions` unless they are bound already.
    fn bind_text(
        &mut self,
        element: TensorElementType,
        conditions: &[Condition],
        threads: &Threads,
    ) -> Result<()> {
        let embeddings = conditions.iter().map(|c| c.cloned()).collect::<Option<Vec<_>>>();
        let embeddings = embeddings.ok_or_else(|| {
            let reason = "the bundle has a text condition, but no embedding was set; set the \
                          prompts first";
            Error::input("a prediction", reason)
        })?;
        let same = |(a, b): (&Embedding, &Embedding)| a.is_same(b);
        if self.text.len() == embeddings.len() && self.text.iter().zip(&embeddings).all(same) {
            return Ok(());
        }
        let widths: Vec<usize> = embeddings.iter().map(|e| e.values().ncols()).collect();
        if embeddings.iter().any(|e| e.values().dim() != (CONTEXT, widths[0])) {
            let reason = format!("all must be [{CONTEXT}, D] of one D, but D is {widths:?}");
            return Err(Error::input("an embedding", reason));
        }
        let values = embeddings.iter().flat_map(|e| e.values().into_iter().copied()).collect();
        let shape = (1, embeddings.len(), CONTEXT, widths[0]);
        let values = Array4::from_shape_vec(shape, values)
            .map_err(|e| Error::input("an embedding", e.to_string()))?;
        let mut bind = || {
            let mut tensor = Input::new(element, &[embeddings.len(), CONTEXT, widths[0]])?;
            tensor.fill(values.view(), threads);
            tensor.bind(&mut self.controlnet, "embedding")?;
            tensor.bind(&mut self.denoiser, "embedding")
        };
        bind().map_err(|e| failure(Role::ControlNet, &e))?;
        self.text = embeddings;
        Ok(())
    }
}

/// The ControlNet's outputs, which must be `control_0`, `control_1` and so on.
fn controls_of(controlnet: &Graph) -> Result<Vec<String>> {
    let count = controlnet.session.outputs().len();
    let names: Vec<String> = (0..count).map(|i| format!("control_{i}")).collect();
    for name in &names {
        if !controlnet.has_output(name) {
            let reason = format!(
                "the graph has no such output; its {count} outputs must be called control_0, \
                 control_1, …"
            );
            return Err(controlnet.error(name, reason));
        }
    }
    Ok(names)
}

/// Checks that the denoiser takes just the controls that the ControlNet gives, in their types and
/// shapes.
fn check_controls(controlnet: &Graph, denoiser: &Graph, names: &[String]) -> Result<()> {
    let inputs = denoiser.session.inputs();
    let known = |name: &str| names.iter().any(|known| known == name);
    let extra = inputs.iter().find(|i| i.name().starts_with("control_") && !known(i.name()));
    if let Some(extra) = extra {
        let reason = format!(
            "the denoiser needs this control, but the ControlNet gives only {}",
            names.join(", ")
        );
        return Err(denoiser.error(extra.name(), reason));
    }
    for output in controlnet.session.outputs() {
        let Some(input) = inputs.iter().find(|input| input.name() == output.name()) else {
            let reason = "the ControlNet gives this control, but the denoiser does not take it";
            return Err(denoiser.error(output.name(), reason));
        };
        let (given, taken) = (output.dtype(), input.dtype());
        let fits = match (given, taken) {
            (
                ValueType::Tensor { ty: a, shape: from, .. },
                ValueType::Tensor { ty: b, shape: to, .. },
            ) => {
                CONTROLS.contains(a)
                    && a == b
                    && from.len() == to.len()
                    && from.iter().zip(to.iter()).all(|(&a, &b)| a < 0 || b < 0 || a == b)
            }
            _ => false,
        };
        if !fits {
            let reason = format!("the ControlNet gives {given}, the denoiser takes {taken}");
            return Err(denoiser.error(output.name(), reason));
        }
    }
    Ok(())
}

/// The element type of the embedding that both graphs take; `None` where neither does.
fn embedding_of(controlnet: &Graph, denoiser: &Graph) -> Result<Option<TensorElementType>> {
    for (with, without) in [(controlnet, denoiser), (denoiser, controlnet)] {
        if with.has_input("embedding") && !without.has_input("embedding") {
            let reason = format!(
                "{} takes an embedding, but {} does not; both must, or neither",
                with.role, without.role
            );
            return Err(with.error("embedding", reason));
        }
    }
    if !controlnet.has_input("embedding") {
        return Ok(None);
    }
    let dims = [BATCH, Dim::Fixed(CONTEXT), Dim::Any];
    let element = controlnet.input("embedding", SAMPLES, &dims)?;
    denoiser.input("embedding", &[element], &dims)?;
    Ok(Some(element))
}
