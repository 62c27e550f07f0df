// SPDX-License-Identifier: MPL-2.0

//! One prediction: ControlNet and denoiser, joined by bindings.

use ndarray::{Array4, ArrayView4};
use ort::memory::MemoryInfo;
use ort::session::IoBinding;
use ort::value::{Tensor, TensorElementType};

use super::session::{Graph, Runner, failure};
use super::tensor::{self, Input};
use crate::bundle::Role;
use crate::error::{Error, Result};
use crate::model::{Condition, Embedding};
use crate::parallel::Threads;
use crate::text::CONTEXT;

/// ControlNet and denoiser, with what their tensors are made of.
pub(super) struct Predictor {
    pub controlnet: Graph,
    pub denoiser: Graph,
    /// Names of the tensors that go from one to the other.
    pub controls: Vec<String>,
    /// Element type of `x` and `hint`.
    pub latents: TensorElementType,
    /// Element type of the embedding, `None` where there is no text condition.
    pub embedding: Option<TensorElementType>,
    /// Where the controls are.
    pub device: MemoryInfo<'static>,
    /// Where `v` goes.
    pub host: MemoryInfo<'static>,
    /// Those of the last window, for one and for two conditions.
    pub steps: [Option<Step>; 2],
}

/// Tensors and bindings for one size of window.
pub(super) struct Step {
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

impl Predictor {
    fn new_step(&self, shape: [usize; 4], batch: usize) -> ort::Result<Step> {
        let [frames, channels, height, width] = shape;
        let video = [batch, channels, frames, height, width];
        let mut controlnet = self.controlnet.session.create_binding()?;
        for name in &self.controls {
            controlnet.bind_output_to_device(name, &self.device)?;
        }
        let mut denoiser = self.denoiser.session.create_binding()?;
        denoiser.bind_output_to_device("v", &self.host)?;
        Ok(Step {
            shape,
            x: Input::new(self.latents, &video)?,
            hint: Input::new(self.latents, &video)?,
            t: Tensor::from_array(([batch], vec![0_i64; batch]))?,
            text: Vec::new(),
            controlnet,
            denoiser,
        })
    }

    /// Velocities for a window `x` and `hint` `[F,C,h,w]` of one shape, one for each of one or two conditions.
    pub fn run<const B: usize>(
        &mut self,
        x: ArrayView4<f32>,
        t: i64,
        hint: ArrayView4<f32>,
        conditions: [Condition; B],
        runner: &Runner,
    ) -> Result<[Array4<f32>; B]> {
        let shape: [usize; 4] = x.dim().into();
        let at_controlnet = |e: ort::Error| failure(Role::ControlNet, &e);
        let at_denoiser = |e: ort::Error| failure(Role::Denoiser, &e);

        // Not put back after a failure, when what its bindings hold is unknown.
        let mut step = match self.steps[B - 1].take() {
            Some(step) if step.shape == shape => step,
            _ => self.new_step(shape, B).map_err(at_controlnet)?,
        };
        step.x.fill_channels_first(x, runner.threads);
        step.hint.fill_channels_first(hint, runner.threads);
        step.t.extract_tensor_mut().1.fill(t);
        if let Some(element) = self.embedding {
            step.bind_text(element, &conditions, runner.threads)?;
        }

        // Bound anew each time: to a device, binding is what copies.
        let bind = |step: &mut Step| {
            step.x.bind(&mut step.controlnet, "x")?;
            step.hint.bind(&mut step.controlnet, "hint")?;
            step.controlnet.bind_input("t", &step.t)
        };
        bind(&mut step).map_err(at_controlnet)?;
        let controls = runner.run(Role::ControlNet, |options| {
            let mut outputs = self.controlnet.session.run_binding_with_options(&step.controlnet, options)?;
            Ok(self.controls.iter().map(|name| outputs.remove(name)).collect::<Vec<_>>())
        })?;

        let bind = |step: &mut Step| {
            step.x.bind(&mut step.denoiser, "x")?;
            step.denoiser.bind_input("t", &step.t)?;
            for (name, value) in self.controls.iter().zip(&controls) {
                if let Some(value) = value {
                    step.denoiser.bind_input(name, value)?;
                }
            }
            Ok(())
        };
        bind(&mut step).map_err(at_denoiser)?;
        let v = runner.run(Role::Denoiser, |options| {
            self.denoiser.session.run_binding_with_options(&step.denoiser, options).map(|mut o| o.remove("v"))
        })?;

        let fail = |reason| Error::Inference { graph: Role::Denoiser.to_string(), reason };
        let v = v.ok_or_else(|| fail("gave no v".to_string()))?;
        let mut results = std::array::from_fn(|_| Array4::zeros(shape));
        tensor::fetch_latents(&v, &mut results, runner.threads).map_err(fail)?;
        self.steps[B - 1] = Some(step);
        Ok(results)
    }
}

impl Step {
    /// Binds the embeddings of `conditions` unless they are bound already.
    fn bind_text(
        &mut self,
        element: TensorElementType,
        conditions: &[Condition],
        threads: Threads,
    ) -> Result<()> {
        let embeddings = conditions.iter().map(|c| c.cloned()).collect::<Option<Vec<Embedding>>>();
        let embeddings = embeddings.ok_or_else(|| Error::Input {
            what: "a prediction".into(),
            reason: "the bundle has a text condition, but no embedding was set; set the prompts first".into(),
        })?;
        let same = |(a, b): (&Embedding, &Embedding)| a.is_same(b);
        if self.text.len() == embeddings.len() && self.text.iter().zip(&embeddings).all(same) {
            return Ok(());
        }
        let widths: Vec<usize> = embeddings.iter().map(|e| e.values().ncols()).collect();
        if embeddings.iter().any(|e| e.values().dim() != (CONTEXT, widths[0])) {
            return Err(Error::Input {
                what: "an embedding".into(),
                reason: format!("all must be [{CONTEXT}, D] of one D, but D is {widths:?}"),
            });
        }
        let values: Vec<f32> = embeddings.iter().flat_map(|e| e.values().into_iter().copied()).collect();
        let mut bind = || {
            let mut tensor = Input::new(element, &[embeddings.len(), CONTEXT, widths[0]])?;
            tensor.fill(&values, threads);
            tensor.bind(&mut self.controlnet, "embedding")?;
            tensor.bind(&mut self.denoiser, "embedding")
        };
        bind().map_err(|e| failure(Role::ControlNet, &e))?;
        self.text = embeddings;
        Ok(())
    }
}
