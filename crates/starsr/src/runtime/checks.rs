// SPDX-License-Identifier: MPL-2.0

//! Demands on the graphs of a bundle that concern two of them, or a graph and the manifest.

use ort::value::{TensorElementType, ValueType};

use super::session::{Dim, Graph, SAMPLES};
use crate::error::Result;

/// Controls only pass from one session to the other, so that they may have a type that nothing here can read.
const CONTROLS: &[TensorElementType] =
    &[TensorElementType::Float32, TensorElementType::Float16, TensorElementType::Bfloat16];

/// The ControlNet's outputs, which must be `control_0`, `control_1` and so on.
pub(super) fn controls_of(controlnet: &Graph) -> Result<Vec<String>> {
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
pub(super) fn check_controls(controlnet: &Graph, denoiser: &Graph, names: &[String]) -> Result<()> {
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
                CONTROLS.contains(a)
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

/// The element type of the embedding that both graphs take, `None` where neither does.
pub(super) fn embedding_of(controlnet: &Graph, denoiser: &Graph) -> Result<Option<TensorElementType>> {
    let dims = [Dim::Free("B"), Dim::Fixed(crate::text::CONTEXT), Dim::Any];
    for (with, without) in [(controlnet, denoiser), (denoiser, controlnet)] {
        if with.has_input("embedding") && !without.has_input("embedding") {
            let reason = format!("{} takes an embedding, but {} does not", with.role, without.role);
            return Err(with.error("embedding", reason + "; both must, or neither"));
        }
    }
    if !controlnet.has_input("embedding") {
        return Ok(None);
    }
    let element = controlnet.input("embedding", SAMPLES, &dims)?;
    denoiser.input("embedding", &[element], &dims)?;
    Ok(Some(element))
}
