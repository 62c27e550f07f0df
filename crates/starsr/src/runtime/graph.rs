// SPDX-License-Identifier: MPL-2.0

//! One graph of a bundle: its session, and checks of its tensors.

use std::path::PathBuf;
use std::sync::Arc;

use ort::session::Session;
use ort::session::builder::SessionBuilder;
use ort::value::{Outlet, TensorElementType, ValueType};

use super::library::Library;
use super::provider::Chosen;
use super::runner::one_line;
use crate::bundle::Bundle;
use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::names::{Precision, Role};

/// What one dimension of a declared tensor must be.
#[derive(Debug, Clone, Copy)]
pub(super) enum Dim {
    /// Free, under the given name in messages.
    Free(&'static str),
    /// This size.
    Fixed(usize),
    /// Any size, free or not.
    Any,
}

/// Element types a tensor of samples may have.
pub(super) const SAMPLES: &[TensorElementType] =
    &[TensorElementType::Float32, TensorElementType::Float16];

/// Loads the graphs of a bundle; `cancel` stops that between two graphs.
pub(super) struct Loader<'a> {
    pub bundle: &'a Bundle,
    pub library: &'static Library,
    pub chosen: &'a Arc<Chosen>,
    /// Never [`Precision::Auto`].
    pub precision: Precision,
    pub cancel: &'a Cancel,
}

/// Loads graphs of a bundle again.
pub(super) struct Reload {
    bundle: Bundle,
    library: &'static Library,
    chosen: Arc<Chosen>,
    precision: Precision,
}

impl Reload {
    /// The graph of a role that the bundle has; `cancel` is checked before and after.
    pub fn graph(&self, role: Role, cancel: &Cancel) -> Result<Graph> {
        let Self { bundle, library, chosen, precision } = self;
        Loader { bundle, library, chosen, precision: *precision, cancel }.required(role)
    }
}

impl Loader<'_> {
    /// What loads graphs again when this loader is gone.
    pub fn reload(&self) -> Reload {
        let (bundle, chosen) = (self.bundle.clone(), self.chosen.clone());
        Reload { bundle, library: self.library, chosen, precision: self.precision }
    }

    /// The graph of a role that the bundle must have.
    pub fn required(&self, role: Role) -> Result<Graph> {
        self.required_with(role, Ok)
    }

    /// [`Self::required`] with a session that `adjust` prepares.
    pub fn required_with(
        &self,
        role: Role,
        adjust: impl FnOnce(SessionBuilder) -> ort::Result<SessionBuilder>,
    ) -> Result<Graph> {
        self.cancel.check()?;
        let path = self.bundle.graph_in(role, self.precision).ok_or_else(|| {
            Error::bundle(self.bundle.root(), format!("graphs.{role}"), "is missing")
        })?;
        let load = || adjust(self.chosen.builder(self.library)?)?.commit_from_file(&path);
        let session = load().map_err(|e| {
            let reason = format!(
                "ONNX Runtime {} cannot load this graph with provider {}: {}; install the bundle \
                 again, or a newer ONNX Runtime",
                self.library.version,
                self.chosen.provider,
                one_line(&e)
            );
            Error::bundle(&path, format!("graphs.{role}"), reason).caused_by(e)
        })?;
        self.cancel.check()?;
        Ok(Graph { role, session, path })
    }
}

/// A loaded graph.
pub(super) struct Graph {
    pub role: Role,
    pub session: Session,
    path: PathBuf,
}

impl Graph {
    /// An error about one of the graph's tensors.
    pub fn error(&self, tensor: &str, reason: impl Into<String>) -> Error {
        Error::bundle(&self.path, format!("graphs.{}, tensor {tensor}", self.role), reason)
    }

    /// Whether the graph has an input of this name.
    pub fn has_input(&self, name: &str) -> bool {
        self.session.inputs().iter().any(|input| input.name() == name)
    }

    /// Whether the graph has an output of this name.
    pub fn has_output(&self, name: &str) -> bool {
        self.session.outputs().iter().any(|output| output.name() == name)
    }

    /// The size of the last dimension of an input or output, where it is fixed.
    pub fn last_dimension(&self, name: &str) -> Option<usize> {
        let tensor = self.tensor(name)?;
        tensor.dtype().tensor_shape()?.last().and_then(|&size| usize::try_from(size).ok())
    }

    /// The sizes of the last two dimensions of an input or output, where they are fixed.
    pub fn last_two_dimensions(&self, name: &str) -> Option<[usize; 2]> {
        let shape = self.tensor(name)?.dtype().tensor_shape()?;
        let [.., a, b] = &shape[..] else { return None };
        Some([usize::try_from(*a).ok()?, usize::try_from(*b).ok()?])
    }

    fn tensor(&self, name: &str) -> Option<&Outlet> {
        self.session.inputs().iter().chain(self.session.outputs()).find(|t| t.name() == name)
    }

    /// Checks that there are no inputs and outputs but these.
    pub fn only(&self, inputs: &[&str], outputs: &[&str]) -> Result<()> {
        let sides =
            [("input", self.session.inputs(), inputs), ("output", self.session.outputs(), outputs)];
        for (side, tensors, known) in sides {
            if let Some(stranger) = tensors.iter().find(|tensor| !known.contains(&tensor.name())) {
                let reason = format!(
                    "is not an {side} of this role, whose {side}s are: {}",
                    known.join(", ")
                );
                return Err(self.error(stranger.name(), reason));
            }
        }
        Ok(())
    }

    /// Checks an input that must be there and gives its element type.
    pub fn input(
        &self,
        name: &str,
        types: &[TensorElementType],
        dims: &[Dim],
    ) -> Result<TensorElementType> {
        self.check("input", self.session.inputs(), name, types, dims)
    }

    /// Checks an output that must be there and gives its element type.
    pub fn output(
        &self,
        name: &str,
        types: &[TensorElementType],
        dims: &[Dim],
    ) -> Result<TensorElementType> {
        self.check("output", self.session.outputs(), name, types, dims)
    }

    fn check(
        &self,
        side: &str,
        tensors: &[Outlet],
        name: &str,
        types: &[TensorElementType],
        dims: &[Dim],
    ) -> Result<TensorElementType> {
        let Some(tensor) = tensors.iter().find(|tensor| tensor.name() == name) else {
            let names = tensors.iter().map(Outlet::name).collect::<Vec<_>>().join(", ");
            return Err(
                self.error(name, format!("the graph has no such {side}; its {side}s are: {names}"))
            );
        };
        let ValueType::Tensor { ty, shape, .. } = tensor.dtype() else {
            return Err(self.error(name, "must be a tensor"));
        };
        if !types.contains(ty) {
            let wanted =
                types.iter().map(TensorElementType::to_string).collect::<Vec<_>>().join(" or ");
            return Err(self.error(name, format!("has element type {ty}, but must have {wanted}")));
        }
        let fits = shape.len() == dims.len()
            && shape.iter().zip(dims).all(|(&found, dim)| match *dim {
                Dim::Free(_) => found < 0,
                // ONNX Runtime may not know a size of an output; what comes out is checked at each
                // run.
                Dim::Fixed(size) => {
                    usize::try_from(found) == Ok(size) || (side == "output" && found < 0)
                }
                Dim::Any => true,
            });
        if !fits {
            let found = shape.iter().map(|&n| if n < 0 { "?".into() } else { n.to_string() });
            let wanted = dims.iter().map(|dim| match dim {
                Dim::Free(name) => name.to_string(),
                Dim::Fixed(size) => size.to_string(),
                Dim::Any => "any".to_string(),
            });
            let list = |dims: Vec<String>| format!("[{}]", dims.join(","));
            let (found, wanted) = (list(found.collect()), list(wanted.collect()));
            let reason = format!(
                "has shape {found}, but must have {wanted}, where letters are free dimensions"
            );
            return Err(self.error(name, reason));
        }
        Ok(*ty)
    }
}
