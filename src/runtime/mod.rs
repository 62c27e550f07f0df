// SPDX-License-Identifier: MPL-2.0

//! Running a bundle's graphs with ONNX Runtime. The only place with ort types.

use std::time::Duration;

use ndarray::{Array4, ArrayView4, Axis};
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::IoBinding;
use ort::value::{Tensor, TensorElementType, ValueType};

use crate::bundle::{Bundle, Manifest, Role};
use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::model::{Condition, Denoiser, Model};

mod library;
mod providers;
mod session;
mod tensor;

pub use library::{Level, Logger, set_logger};
pub use providers::{Options, Provider};
pub use session::Stats;

use providers::Chosen;
use session::{Dim, Graph, Runner, SAMPLES, failure};
use tensor::Input;

/// A bundle ready to run: one session for each graph.
///
/// ControlNet and denoiser are joined by bindings, so that the controls never leave the device; on the CPU they are
/// not copied at all. Memory for a window is kept until a window of another size comes.
pub struct Engine {
    encoder: Graph,
    decoder: Graph,
    controlnet: Graph,
    denoiser: Graph,
    text_encoder: Option<Graph>,
    controls: Vec<String>,
    pixels: [TensorElementType; 2],
    latents: TensorElementType,
    device_memory: MemoryInfo<'static>,
    step: Option<Step>,
    manifest: Manifest,
    chosen: Chosen,
    version: &'static str,
    runner: Runner,
}

/// Tensors and bindings for one size of window.
struct Step {
    /// `[F,C,h,w]`.
    shape: [usize; 4],
    x: Input,
    hint: Input,
    t: Tensor<i64>,
    controlnet: IoBinding,
    denoiser: IoBinding,
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
        let manifest = bundle.manifest().clone();
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

        let decoder = required(Role::VaeDecoder)?;
        decoder.only(&["latents"], &["pixels"])?;
        let to_decoder = decoder.input("latents", SAMPLES, &small)?;
        decoder.output("pixels", SAMPLES, &large)?;

        let video = [BATCH, channels, FRAMES, Dim::Free("h"), Dim::Free("w")];
        let controlnet = required(Role::ControlNet)?;
        refuse_embedding(&controlnet)?;
        let controls = controls_of(&controlnet)?;
        let control_names = controls.iter().map(String::as_str).collect::<Vec<_>>();
        controlnet.only(&["x", "t", "hint"], &control_names)?;
        let latents = controlnet.input("x", SAMPLES, &video)?;
        controlnet.input("hint", &[latents], &video)?;
        controlnet.input("t", &[TensorElementType::Int64], &[BATCH])?;

        let denoiser = required(Role::Denoiser)?;
        refuse_embedding(&denoiser)?;
        check_controls(&controlnet, &denoiser, &controls)?;
        denoiser.only(&[&["x", "t"], control_names.as_slice()].concat(), &["v"])?;
        denoiser.input("x", &[latents], &video)?;
        denoiser.input("t", &[TensorElementType::Int64], &[BATCH])?;
        denoiser.output("v", SAMPLES, &video)?;

        let text_encoder = load(Role::TextEncoder)?;
        if let Some(graph) = &text_encoder {
            graph.only(&["tokens"], &["embedding"])?;
            graph.input("tokens", &[TensorElementType::Int64], &[BATCH, Dim::Fixed(77)])?;
            graph.output("embedding", SAMPLES, &[BATCH, Dim::Fixed(77), Dim::Any])?;
        }

        let device_memory = chosen
            .device_memory()
            .map_err(|e| Error::Provider { provider: chosen.provider.to_string(), reason: one_line(&e) })?;
        Ok(Self {
            encoder,
            decoder,
            controlnet,
            denoiser,
            text_encoder,
            controls,
            pixels: [to_encoder, to_decoder],
            latents,
            device_memory,
            step: None,
            manifest,
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
        self.text_encoder.is_some()
    }

    /// Time spent inside ONNX Runtime since the engine was loaded.
    pub fn stats(&self) -> Stats {
        self.runner.stats.clone()
    }

    fn step(&mut self, shape: [usize; 4]) -> ort::Result<Step> {
        if let Some(step) = self.step.take()
            && step.shape == shape
        {
            return Ok(step);
        }
        let [frames, channels, height, width] = shape;
        let video = [1, channels, frames, height, width];
        let mut controlnet = self.controlnet.session.create_binding()?;
        for name in &self.controls {
            controlnet.bind_output_to_device(name, &self.device_memory)?;
        }
        let mut denoiser = self.denoiser.session.create_binding()?;
        let host = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default)?;
        denoiser.bind_output_to_device("v", &host)?;
        Ok(Step {
            shape,
            x: Input::new(self.latents, &video)?,
            hint: Input::new(self.latents, &video)?,
            t: Tensor::from_array(([1_usize], vec![0_i64]))?,
            controlnet,
            denoiser,
        })
    }

    /// Runs one of the autoencoder's graphs over all frames, `group` of them at a time.
    fn convert(&mut self, role: Role, input: ArrayView4<f32>) -> Result<Array4<f32>> {
        let factor = self.manifest.latent.spatial_factor;
        let (frames, channels, height, width) = input.dim();
        let encode = role == Role::VaeEncoder;
        let (graph, names, group, element, planes) = if encode {
            let group = self.manifest.vae.frames_per_encode;
            (
                &mut self.encoder,
                ("pixels", "latents"),
                group,
                self.pixels[0],
                (3, self.manifest.latent.channels),
            )
        } else {
            let group = self.manifest.vae.frames_per_decode;
            (
                &mut self.decoder,
                ("latents", "pixels"),
                group,
                self.pixels[1],
                (self.manifest.latent.channels, 3),
            )
        };
        let fail = |reason: String| Error::Inference { graph: role.to_string(), reason };
        if channels != planes.0 || (encode && (height % factor != 0 || width % factor != 0)) {
            return Err(fail(format!("{:?} is not a legal shape of {}", input.shape(), names.0)));
        }
        let (to_height, to_width) =
            if encode { (height / factor, width / factor) } else { (height * factor, width * factor) };
        let mut result = Array4::zeros((frames, planes.1, to_height, to_width));
        if result.is_empty() {
            return Ok(result);
        }
        let groups = input.axis_chunks_iter(Axis(0), group).zip(result.axis_chunks_iter_mut(Axis(0), group));
        for (from, mut to) in groups {
            let mut tensor = Input::new(element, from.shape()).map_err(|e| failure(role, &e))?;
            let from = from.as_standard_layout();
            tensor.fill(from.as_slice().expect("the standard layout is contiguous"));
            let tensor = tensor.into_dyn();
            let output = self.runner.run(role, |options| {
                graph
                    .session
                    .run_with_options(ort::inputs![names.0 => tensor], options)
                    .map(|mut o| o.remove(names.1))
            })?;
            let output = output.ok_or_else(|| fail(format!("gave no {}", names.1)))?;
            let shape = to.shape().to_vec();
            let to = to.as_slice_mut().expect("whole frames of a new array are contiguous");
            tensor::fetch(&output, &shape, to).map_err(fail)?;
        }
        Ok(result)
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
        // Without text both conditions are the same.
        let _ = condition;
        let shape: [usize; 4] = x.dim().into();
        if x.dim() != hint.dim() || shape[1] != self.manifest.latent.channels {
            let reason = format!("x {shape:?} and hint {:?} must have one shape, [F,C,h,w]", hint.shape());
            return Err(Error::Inference { graph: Role::ControlNet.to_string(), reason });
        }
        if x.is_empty() {
            return Ok(Array4::zeros(shape));
        }
        let at_controlnet = |e: ort::Error| failure(Role::ControlNet, &e);
        let at_denoiser = |e: ort::Error| failure(Role::Denoiser, &e);

        // Not put back after a failure, when what its bindings hold is unknown.
        let mut step = self.step(shape).map_err(at_controlnet)?;
        step.x.fill_channels_first(x);
        step.hint.fill_channels_first(hint);
        step.t.extract_tensor_mut().1.fill(t);

        // Bound anew each time: to a device, binding is what copies.
        let bind = |step: &mut Step| {
            step.x.bind(&mut step.controlnet, "x")?;
            step.hint.bind(&mut step.controlnet, "hint")?;
            step.controlnet.bind_input("t", &step.t)
        };
        bind(&mut step).map_err(at_controlnet)?;
        let controls = self.runner.run(Role::ControlNet, |options| {
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
        let v = self.runner.run(Role::Denoiser, |options| {
            self.denoiser.session.run_binding_with_options(&step.denoiser, options).map(|mut o| o.remove("v"))
        })?;

        let fail = |reason| Error::Inference { graph: Role::Denoiser.to_string(), reason };
        let v = v.ok_or_else(|| fail("gave no v".to_string()))?;
        let mut result = Array4::zeros(shape);
        tensor::fetch_latents(&v, &mut result).map_err(fail)?;
        self.step = Some(step);
        Ok(result)
    }
}

impl Model for Engine {
    fn encode(&mut self, pixels: ArrayView4<f32>) -> Result<Array4<f32>> {
        self.convert(Role::VaeEncoder, pixels)
    }

    fn decode(&mut self, latents: ArrayView4<f32>) -> Result<Array4<f32>> {
        self.convert(Role::VaeDecoder, latents)
    }

    fn busy(&self) -> Duration {
        self.runner.stats.total()
    }
}

fn refuse_embedding(graph: &Graph) -> Result<()> {
    if graph.session.inputs().iter().any(|input| input.name() == "embedding") {
        let reason = "this graph needs the embedding of a prompt, and text conditions are not supported by this version \
                      of starsr; use a bundle without text condition, such as nano";
        return Err(graph.error("embedding", reason));
    }
    Ok(())
}

/// The ControlNet's outputs, which must be `control_0`, `control_1` and so on.
fn controls_of(controlnet: &Graph) -> Result<Vec<String>> {
    let count = controlnet.session.outputs().len();
    let names: Vec<String> = (0..count).map(|i| format!("control_{i}")).collect();
    for name in &names {
        if !controlnet.session.outputs().iter().any(|output| output.name() == name) {
            let reason = format!(
                "the graph has no such output; its {count} outputs must be called control_0, control_1, …"
            );
            return Err(controlnet.error(name, reason));
        }
    }
    Ok(names)
}

/// The denoiser must take just the controls that the ControlNet gives, in their types and shapes.
fn check_controls(controlnet: &Graph, denoiser: &Graph, names: &[String]) -> Result<()> {
    let inputs = denoiser.session.inputs();
    let extra =
        inputs.iter().find(|i| i.name().starts_with("control_") && !names.iter().any(|n| n == i.name()));
    if let Some(extra) = extra {
        let reason =
            format!("the denoiser needs this control, but the ControlNet gives only {}", names.join(", "));
        return Err(denoiser.error(extra.name(), reason));
    }
    for output in controlnet.session.outputs() {
        let Some(input) = inputs.iter().find(|input| input.name() == output.name()) else {
            return Err(denoiser.error(
                output.name(),
                "the ControlNet gives this control, but the denoiser does not take it",
            ));
        };
        let fits = match (output.dtype(), input.dtype()) {
            (ValueType::Tensor { ty: a, shape: from, .. }, ValueType::Tensor { ty: b, shape: to, .. }) => {
                SAMPLES.contains(a)
                    && a == b
                    && from.len() == to.len()
                    && from.iter().zip(to.iter()).all(|(&a, &b)| a < 0 || b < 0 || a == b)
            }
            _ => false,
        };
        if !fits {
            let reason =
                format!("the ControlNet gives {}, the denoiser takes {}", output.dtype(), input.dtype());
            return Err(denoiser.error(output.name(), reason));
        }
    }
    Ok(())
}

/// The text of an error of ort on one line.
fn one_line<R>(e: &ort::Error<R>) -> String {
    e.message().split_whitespace().collect::<Vec<_>>().join(" ")
}
