// SPDX-License-Identifier: MPL-2.0

//! Predictions of a denoiser that takes the low-quality latents as an input of its own, and tables
//! of modulation and positions (docs/star.md, B.6).

use ndarray::{Array4, Axis};
use ort::memory::MemoryInfo;
use ort::session::IoBinding;
use ort::value::{Tensor, TensorElementType};

use super::graph::{Dim, Graph, Loader, SAMPLES};
use super::modulation::Modulation;
use super::predictor::{Predict, batch_of, run_denoiser};
use super::runner::{Runner, failure};
use super::tensor::Input;
use crate::bundle::{MANIFEST, PositionsSpec};
use crate::error::{Error, Result};
use crate::model::{Condition, Embedding, Query, Samples};
use crate::names::Role;
use crate::parallel::Threads;

/// Modulation and denoiser. Frames come before channels in their tensors. Memory for a window is
/// kept until a window of another size comes.
pub(super) struct ConcatPredictor {
    modulation: Modulation,
    denoiser: Graph,
    channels: usize,
    /// Element types of the latents and of the embedding.
    latents: TensorElementType,
    embedding: TensorElementType,
    /// Tokens of an embedding, and values of a token.
    text: [usize; 2],
    positions: PositionsSpec,
    /// Where `v` goes.
    host: MemoryInfo<'static>,
    /// The bindings used last, for one and for two conditions.
    bindings: [Option<Bindings>; 2],
}

/// Tensors and bindings for one size of window.
struct Bindings {
    /// `[T,C,h,w]`.
    shape: [usize; 4],
    x: Input,
    hint: Input,
    /// The embeddings that are bound, one for each of the batch; `None` stands for zeros.
    text: Option<Vec<Option<Embedding>>>,
    denoiser: IoBinding,
}

/// Latents to a token along each side of a frame.
const PATCH: usize = 2;

impl ConcatPredictor {
    pub fn load(loader: &Loader) -> Result<Self> {
        let manifest = loader.bundle.manifest();
        let channels = manifest.latent.channels;
        let batch = Dim::Free("B");
        let video = [batch, Dim::Free("T"), Dim::Fixed(channels), Dim::Free("h"), Dim::Free("w")];
        let positions = manifest.positions.ok_or_else(|| {
            let path = loader.bundle.root().join(MANIFEST);
            Error::bundle(path, "positions", "is missing; condition.kind = \"concat\" needs it")
        })?;

        let denoiser = loader.required(Role::Denoiser)?;
        let tables = positions.widths();
        let names: Vec<&str> = tables.iter().map(|(name, _)| *name).collect();
        denoiser.only(&[&["x", "hint", "modulation", "embedding"], &names[..]].concat(), &["v"])?;
        let latents = denoiser.input("x", SAMPLES, &video)?;
        denoiser.input("hint", &[latents], &video)?;
        denoiser.output("v", SAMPLES, &video)?;
        let single = &[TensorElementType::Float32];
        denoiser.input("modulation", single, &[Dim::Free("M"), Dim::Any, Dim::Any])?;
        let embedding = denoiser.input("embedding", SAMPLES, &[batch, Dim::Any, Dim::Any])?;
        for (name, width) in tables {
            denoiser.input(name, single, &[Dim::Free("N"), Dim::Fixed(width)])?;
        }
        let fixed = |name| {
            denoiser.last_two_dimensions(name).ok_or_else(|| {
                denoiser.error(name, "must have two fixed sizes after that of the batch")
            })
        };
        let (rows, text) = (fixed("modulation")?, fixed("embedding")?);
        let graph = loader.required(Role::Modulation)?;

        Ok(Self {
            modulation: Modulation::new(graph, loader.reload(), rows)?,
            denoiser,
            channels,
            latents,
            embedding,
            text,
            positions,
            host: loader.chosen.host_memory()?,
            bindings: [None, None],
        })
    }

    fn bind(&self, shape: [usize; 4], batch: usize) -> ort::Result<Bindings> {
        let [frames, channels, height, width] = shape;
        let video = [batch, frames, channels, height, width];
        let mut denoiser = self.denoiser.session.create_binding()?;
        for (name, table) in self.positions.tables([frames, height / PATCH, width / PATCH]) {
            let shape = [table.nrows(), table.ncols()];
            let table = Tensor::from_array((shape, table.into_raw_vec_and_offset().0))?;
            denoiser.bind_input(name, &table)?;
        }
        Ok(Bindings {
            shape,
            x: Input::new(self.latents, &video)?,
            hint: Input::new(self.latents, &video)?,
            text: None,
            denoiser,
        })
    }
}

impl Predict for ConcatPredictor {
    fn text_graphs(&self) -> Vec<&Graph> {
        vec![&self.denoiser]
    }

    fn prepare(&mut self, timesteps: &[i64], runner: &Runner) -> Result<()> {
        self.modulation.prepare(timesteps, runner)
    }

    fn predict(&mut self, query: &Query, runner: &Runner) -> Result<Vec<Samples>> {
        let Query { x, t, hint, conditions } = *query;
        let batch = batch_of(conditions)?;
        let shape: [usize; 4] = x.dim().into();
        let [frames, channels, height, width] = shape;
        let even = height % PATCH == 0 && width % PATCH == 0;
        if x.dim() != hint.dim() || channels != self.channels || !even {
            let (x, hint) = (x.shape(), hint.shape());
            let reason = format!(
                "x {x:?} and hint {hint:?} must have one shape, [T,C,h,w] with even h and w"
            );
            return Err(Error::inference(Role::Denoiser, reason));
        }
        if x.is_empty() {
            return Ok(vec![Array4::zeros(x.dim()).into(); batch]);
        }
        let failed = |e: ort::Error| failure(Role::Denoiser, &e);

        // Not put back after a failure, when what its bindings hold is unknown.
        let mut bindings = match self.bindings[batch - 1].take() {
            Some(bindings) if bindings.shape == shape => bindings,
            _ => self.bind(shape, batch).map_err(failed)?,
        };
        bindings.x.fill(x, &runner.threads);
        bindings.hint.fill(hint, &runner.threads);
        bindings.bind_text(self.embedding, self.text, conditions, &runner.threads)?;
        let modulation = self.modulation.at(t, runner)?;
        // Bound anew each time: to a device, binding is what copies.
        let bind = |b: &mut Bindings| {
            b.x.bind(&mut b.denoiser, "x")?;
            b.hint.bind(&mut b.denoiser, "hint")?;
            b.denoiser.bind_input("modulation", modulation)?;
            // Bound anew, or this run would write over what the last one gave.
            b.denoiser.bind_output_to_device("v", &self.host)
        };
        bind(&mut bindings).map_err(failed)?;
        let video = [batch, frames, channels, height, width];
        let values = run_denoiser(&mut self.denoiser, &bindings.denoiser, video, runner)?;
        self.bindings[batch - 1] = Some(bindings);
        Samples::batch(values, batch, shape, false)
    }
}

impl Bindings {
    /// Binds the embeddings of `conditions`, `[tokens,width]` each, unless they are bound already.
    /// Without one it is zeros.
    fn bind_text(
        &mut self,
        element: TensorElementType,
        [tokens, width]: [usize; 2],
        conditions: &[Condition],
        threads: &Threads,
    ) -> Result<()> {
        let same = |a: &Option<Embedding>, b: &Condition| match (a, b) {
            (Some(a), Some(b)) => a.is_same(b),
            (a, b) => a.is_none() && b.is_none(),
        };
        if let Some(bound) = &self.text
            && bound.iter().zip(conditions).all(|(a, b)| same(a, b))
        {
            return Ok(());
        }
        let mut values = Array4::zeros((1, conditions.len(), tokens, width));
        let mut places = values.index_axis_mut(Axis(0), 0);
        for (mut to, condition) in places.outer_iter_mut().zip(conditions) {
            let Some(embedding) = condition else { continue };
            if embedding.values().dim() != (tokens, width) {
                let (found, wanted) = (embedding.values().dim(), (tokens, width));
                let reason = format!("it is {found:?}, but the denoiser takes {wanted:?}");
                return Err(Error::input("an embedding", reason));
            }
            to.assign(&embedding.values());
        }
        let mut bind = || {
            let mut tensor = Input::new(element, &[conditions.len(), tokens, width])?;
            tensor.fill(values.view(), threads);
            tensor.bind(&mut self.denoiser, "embedding")
        };
        bind().map_err(|e| failure(Role::Denoiser, &e))?;
        self.text = Some(conditions.iter().map(|c| c.cloned()).collect());
        Ok(())
    }
}
