// SPDX-License-Identifier: MPL-2.0

//! What the sampler asks of a model. Implemented over ONNX Runtime in [`crate::runtime`], and by
//! stand-ins in tests.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use ndarray::{Array2, Array4, ArrayView2, ArrayView4, s};

use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::names::{Role, Setting};

/// A text as the model sees it, `[N,D]` for `N` tokens. Clones share the values.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding(Arc<Array2<f32>>);

impl Embedding {
    /// The embedding with the values `[N,D]`.
    pub fn new(values: Array2<f32>) -> Self {
        Self(Arc::new(values.as_standard_layout().into_owned()))
    }

    /// The values `[N,D]`, in standard layout.
    pub fn values(&self) -> ArrayView2<'_, f32> {
        self.0.view()
    }

    /// Zeros of the same shape: what some models take for no prompt at all (docs/star.md, B.3).
    pub fn zeros_like(&self) -> Self {
        Self(Arc::new(Array2::zeros(self.0.raw_dim())))
    }

    /// Whether both are clones of one embedding.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// An embedding with what became of its text.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedded {
    /// The embedding.
    pub embedding: Embedding,
    /// Number of tokens at the text's end that did not fit; 0 where the text is known without its
    /// tokens.
    pub truncated: usize,
}

/// What a prediction is made under: a text, or nothing where the model has no text condition.
pub type Condition<'a> = Option<&'a Embedding>;

/// What a window is restored under.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conditioning {
    /// The prompt, for `v_c`; `None` where the model has no text condition.
    pub positive: Option<Embedding>,
    /// The negative prompt, for `v_u`; only guidance needs it.
    pub negative: Option<Embedding>,
}

/// What a model gives: samples `[F,C,h,w]`, read where the model has left them.
#[derive(Clone)]
pub struct Samples {
    memory: Arc<dyn AsRef<[f32]> + Send + Sync>,
    range: Range<usize>,
    /// Frames, channels, height, width.
    shape: [usize; 4],
    channels_first: bool,
}

impl Samples {
    /// Samples of the given shape `[F,C,h,w]` that are the first in `memory`, in this order.
    ///
    /// # Errors
    /// [`Error::Input`] where `memory` holds fewer.
    pub fn new(
        memory: impl AsRef<[f32]> + Send + Sync + 'static,
        shape: [usize; 4],
    ) -> Result<Self> {
        Ok(Self::batch(Arc::new(memory), 1, shape, false)?.remove(0))
    }

    /// `count` samples of the given shape `[F,C,h,w]`, one after the other in `memory`; each may be
    /// in the order `[C,F,h,w]`.
    pub(crate) fn batch(
        memory: Arc<dyn AsRef<[f32]> + Send + Sync>,
        count: usize,
        shape: [usize; 4],
        channels_first: bool,
    ) -> Result<Vec<Self>> {
        let size = shape.iter().try_fold(1, |size: usize, &n| size.checked_mul(n));
        let held = (*memory).as_ref().len();
        let size = size.filter(|size| size.checked_mul(count).is_some_and(|all| all <= held));
        let Some(size) = size else {
            let reason = format!("{held} values are not {count} times {shape:?}");
            return Err(Error::input("samples", reason));
        };
        let part = |i| Self {
            memory: memory.clone(),
            range: i * size..(i + 1) * size,
            shape,
            channels_first,
        };
        Ok((0..count).map(part).collect())
    }

    /// The samples `[F,C,h,w]`. Each plane is contiguous; frames or channels come first in memory.
    pub fn view(&self) -> ArrayView4<'_, f32> {
        let values = &(*self.memory).as_ref()[self.range.clone()];
        let [frames, channels, height, width] = self.shape;
        let outer = if self.channels_first { [channels, frames] } else { [frames, channels] };
        let view = as_array(values, [outer[0], outer[1], height, width]);
        if self.channels_first { view.permuted_axes([1, 0, 2, 3]) } else { view }
    }

    /// Frames, channels, height, width.
    pub fn dim(&self) -> (usize, usize, usize, usize) {
        self.shape.into()
    }

    /// The frames `range` of them alone; those there are.
    pub fn frames(&self, range: Range<usize>) -> ArrayView4<'_, f32> {
        let end = range.end.min(self.shape[0]);
        self.view().slice_move(s![range.start.min(end)..end, .., .., ..])
    }
}

/// As many `values` as an array of `shape` has, as that array.
fn as_array(values: &[f32], shape: [usize; 4]) -> ArrayView4<'_, f32> {
    ArrayView4::from_shape(shape, values).expect("as many values as the shape has")
}

impl From<Array4<f32>> for Samples {
    fn from(values: Array4<f32>) -> Self {
        let (shape, range) = (values.dim().into(), 0..values.len());
        let (values, _) = values.as_standard_layout().into_owned().into_raw_vec_and_offset();
        Self { memory: Arc::new(values), range, shape, channels_first: false }
    }
}

impl PartialEq for Samples {
    fn eq(&self, other: &Self) -> bool {
        self.view() == other.view()
    }
}

impl std::fmt::Debug for Samples {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.view().fmt(f)
    }
}

/// A request for predictions: the velocities of one window of latents, one for each condition.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// The noisy latents, scaled for the model, `[F,C,h,w]`.
    pub x: ArrayView4<'a, f32>,
    /// The timestep, 0 to 999.
    pub t: i64,
    /// The low-quality latents, `[F,C,h,w]`.
    pub hint: ArrayView4<'a, f32>,
    /// One or two conditions.
    pub conditions: &'a [Condition<'a>],
}

impl Query<'_> {
    /// What `model` predicts, one velocity `[F,C,h,w]` for each condition.
    ///
    /// # Errors
    /// As the model, and [`Error::Inference`] where the number or a shape is another one.
    pub fn ask(&self, model: &mut dyn Denoiser) -> Result<Vec<Samples>> {
        let velocities = model.predict(self)?;
        let wrong = velocities.iter().find(|v| v.dim() != self.x.dim());
        if wrong.is_none() && velocities.len() == self.conditions.len() {
            return Ok(velocities);
        }
        let reason = match wrong {
            Some(v) => format!("it gave {:?} for an input of {:?}", v.shape, self.x.shape()),
            None => format!(
                "it gave {} predictions for {} conditions",
                velocities.len(),
                self.conditions.len()
            ),
        };
        Err(Error::inference(Role::Denoiser, reason))
    }
}

/// Predicts `v` for a window of latents: ControlNet and denoiser (docs/star.md, A.6), or a denoiser
/// that takes the low-quality latents itself (B.6).
pub trait Denoiser {
    /// The velocities `v` `[F,C,h,w]` that `query` asks for, one for each condition, in one batch
    /// where the model has batches.
    ///
    /// # Errors
    /// [`Error::Memory`] where that takes more memory than there is, and as the model fails.
    fn predict(&mut self, query: &Query) -> Result<Vec<Samples>>;

    /// Computes beforehand what predictions at these timesteps need of them alone.
    ///
    /// # Errors
    /// As the model fails.
    fn prepare(&mut self, _timesteps: &[i64]) -> Result<()> {
        Ok(())
    }

    /// Whether a query with two conditions takes less time than two queries.
    fn prefers_batches(&self) -> bool {
        false
    }
}

/// The memory that graphs compute in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// The machine's main memory.
    Main,
    /// A device's own, with the bytes that runs may take besides the weights; `None` where that is
    /// not known.
    Device(Option<u64>),
}

/// A whole bundle: autoencoder, denoiser and text encoder.
pub trait Model: Denoiser + Send {
    /// Latents `[T,C,h,w]` of pixels `[F,3,H,W]` in `[-1,1]`: the scaled mean of their posterior.
    /// `T` is `F`, or less where latents hold several frames.
    ///
    /// # Errors
    /// As the model fails.
    fn encode(&mut self, pixels: ArrayView4<f32>) -> Result<Samples>;

    /// Mean and standard deviation `[T,C,h,w]`, scaled, of the posterior of pixels `[F,3,H,W]` in
    /// `[-1,1]`.
    ///
    /// # Errors
    /// [`Error::Setting`] unless [`Self::has_std`], and as the model fails.
    fn encode_posterior(&mut self, _pixels: ArrayView4<f32>) -> Result<[Samples; 2]> {
        Err(no_std())
    }

    /// Whether the encoder gives the posterior's standard deviation.
    fn has_std(&self) -> bool {
        false
    }

    /// Pixels `[F,3,H,W]`, nominally in `[-1,1]` and not clamped, of scaled latents `[T,C,h,w]`.
    ///
    /// # Errors
    /// As the model fails.
    fn decode(&mut self, latents: ArrayView4<f32>) -> Result<Samples>;

    /// Pixels `[F,3,H,W]`, nominally in `[0,1]` and not clamped, of the frames `[F,3,h,w]` in
    /// `[0,1]` of a window, for a bundle that restores without a sampler.
    ///
    /// # Errors
    /// As the model fails.
    fn upscale(&mut self, _low: ArrayView4<f32>) -> Result<Samples> {
        Err(Error::inference(Role::Upscaler, "the model has no such graph"))
    }

    /// The embeddings of texts, in their order. What is loaded for them is freed afterwards.
    ///
    /// # Errors
    /// [`Error::Setting`] where the model cannot embed one, and as the model fails.
    fn embed(&mut self, _texts: &[&str]) -> Result<Vec<Embedded>> {
        Err(Error::setting(Setting::Prompt, "this model has no text condition"))
    }

    /// The most bytes that [`Self::embed`] has taken so far with the weights that it loaded,
    /// according to the bundle; 0 where all embeddings were known.
    fn text_memory(&self) -> u64 {
        0
    }

    /// Lets `cancel` stop the model's runs from now on, in place of the one before.
    /// [`Upscaler::new`] calls it, so that one `Cancel` stops all that the upscaler does.
    ///
    /// [`Upscaler::new`]: crate::Upscaler::new
    ///
    /// # Errors
    /// As the model fails.
    fn cancel_with(&mut self, _cancel: &Cancel) -> Result<()> {
        Ok(())
    }

    /// Where the graphs compute.
    fn memory(&self) -> Memory {
        Memory::Main
    }

    /// The most bytes of a device's memory that the graphs have taken so far, with their weights;
    /// `None` where that is not known.
    fn device_memory_used(&self) -> Option<u64> {
        None
    }

    /// Runs so far of the graph that restores windows.
    fn evaluations(&self) -> u64 {
        0
    }

    /// Time spent so far inside the runtime that computes the graphs. Whatever else a caller
    /// measures is this crate's own work.
    fn busy(&self) -> Duration {
        Duration::ZERO
    }
}

/// The error of sampling a posterior whose standard deviation is not known.
pub(crate) fn no_std() -> Error {
    let reason = "sample needs the standard deviation of the posterior, but the bundle's encoder \
                  has no output std; use mean";
    Error::setting(Setting::Posterior, reason)
}
