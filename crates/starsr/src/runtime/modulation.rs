// SPDX-License-Identifier: MPL-2.0

//! The modulation of a denoiser's layers, which depends on the timestep alone.

use std::collections::BTreeMap;

use ort::value::{DynValue, Tensor, TensorElementType};

use super::graph::{Dim, Graph, Reload};
use super::runner::{Runner, failure};
use crate::error::{Error, Result};
use crate::names::Role;

/// Timesteps whose modulations are kept at most: some megabytes each.
const KEPT: usize = 128;

/// The graph `modulation`, and what it gave. Its weights are many; they are freed once the
/// modulations of a run are known, and read again for other timesteps.
pub(super) struct Modulation {
    reload: Reload,
    graph: Option<Graph>,
    known: BTreeMap<i64, DynValue>,
}

impl Modulation {
    /// Checks `graph`, which gives `[B,R,D]` of the sizes `rows`, and which `reload` loads again.
    pub fn new(graph: Graph, reload: Reload, rows: [usize; 2]) -> Result<Self> {
        let batch = Dim::Free("B");
        graph.only(&["t"], &["modulation"])?;
        graph.input("t", &[TensorElementType::Int64], &[batch])?;
        let sizes = [batch, Dim::Fixed(rows[0]), Dim::Fixed(rows[1])];
        graph.output("modulation", &[TensorElementType::Float32], &sizes)?;
        Ok(Self { reload, graph: Some(graph), known: BTreeMap::new() })
    }

    /// Computes the modulations at all `timesteps`, and frees the graph.
    pub fn prepare(&mut self, timesteps: &[i64], runner: &Runner) -> Result<()> {
        if timesteps.len() > KEPT {
            return Ok(());
        }
        if self.known.len() + timesteps.len() > KEPT {
            self.known.retain(|t, _| timesteps.contains(t));
        }
        for &t in timesteps {
            self.at(t, runner)?;
        }
        self.graph = None;
        Ok(())
    }

    /// The modulation `[1,R,D]` at timestep `t`.
    pub fn at(&mut self, t: i64, runner: &Runner) -> Result<&DynValue> {
        if !self.known.contains_key(&t) {
            if self.graph.is_none() {
                self.graph = Some(self.reload.graph(Role::Modulation, runner.cancel())?);
            }
            let value = self.compute(t, runner)?;
            while self.known.len() >= KEPT {
                self.known.pop_first();
            }
            self.known.insert(t, value);
        }
        self.known.get(&t).ok_or_else(|| failed("gave no modulation"))
    }

    fn compute(&mut self, t: i64, runner: &Runner) -> Result<DynValue> {
        let Some(graph) = &mut self.graph else { return Err(failed("is not loaded")) };
        let input =
            Tensor::from_array(([1_usize], vec![t])).map_err(|e| failure(Role::Modulation, &e))?;
        let output = runner.run(Role::Modulation, |options| {
            let inputs = ort::inputs!["t" => input];
            let mut outputs = graph.session.run_with_options(inputs, options)?;
            Ok(outputs.remove("modulation"))
        })?;
        output.ok_or_else(|| failed("gave no modulation"))
    }
}

fn failed(reason: &str) -> Error {
    Error::inference(Role::Modulation, reason)
}
