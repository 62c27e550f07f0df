// SPDX-License-Identifier: MPL-2.0

//! Reading references and reporting differences.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use ndarray::{Array, ArrayD, ArrayView, Dimension, IxDyn};
use safetensors::{Dtype, SafeTensors};
use starsr_testkit::fixtures;

/// The folders to look in. A folder that `STARSR_REFERENCE` names must exist and hold references.
pub fn folders() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.join("tests/data")];
    let beside = fixtures::repository("../shared/star");
    match std::env::var_os("STARSR_REFERENCE") {
        Some(named) => {
            let named = PathBuf::from(named);
            let known = ["golden_sampler", "golden_e2e", "golden_text", "golden_cogvideox"];
            assert!(
                known.iter().any(|k| named.join(k).is_dir()),
                "STARSR_REFERENCE={} has none of the folders {known:?}",
                named.display()
            );
            folders.push(named);
        }
        None if beside.is_dir() => folders.push(beside),
        None => {
            fixtures::skip("no ../shared/star and no STARSR_REFERENCE: only tests/data is checked");
        }
    }
    folders
}

/// What was compared and what differed.
#[derive(Default)]
pub struct Report {
    checked: usize,
    wrong: Vec<String>,
}

impl Report {
    /// Prints and notes a difference that must be at most `limit`.
    pub fn difference(&mut self, what: &str, difference: f64, limit: f64) {
        println!("  {what}: max difference {difference:.2e} (limit {limit:.0e})");
        self.check(difference <= limit, || format!("{what}: {difference:e} is above {limit:e}"));
    }

    /// Notes a condition.
    pub fn check(&mut self, right: bool, message: impl FnOnce() -> String) {
        self.checked += 1;
        if !right {
            let message = message();
            println!("  WRONG {message}");
            self.wrong.push(message);
        }
    }

    /// Fails where anything differed or nothing was compared.
    pub fn finish(self, name: &str) {
        assert!(
            self.wrong.is_empty(),
            "{name}: {} of {} comparisons failed:\n{}",
            self.wrong.len(),
            self.checked,
            self.wrong.join("\n")
        );
        assert!(self.checked > 0, "{name}: nothing was compared");
        println!("{name}: {} comparisons passed", self.checked);
    }
}

/// The arrays of a safetensors file; all types become f32.
pub struct Tensors(HashMap<String, ArrayD<f32>>);

impl Tensors {
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let file =
            SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let tensors = file.tensors().into_iter().map(|(name, t)| {
            let values: Vec<f32> = match t.dtype() {
                Dtype::F32 => t
                    .data()
                    .chunks_exact(4)
                    .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                    .collect(),
                Dtype::I64 => t
                    .data()
                    .chunks_exact(8)
                    .map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f32)
                    .collect(),
                Dtype::F64 => t
                    .data()
                    .chunks_exact(8)
                    .map(|b| f64::from_le_bytes(b.try_into().unwrap()) as f32)
                    .collect(),
                Dtype::U8 => t.data().iter().map(|&b| f32::from(b)).collect(),
                other => panic!("{}: {name} is {other:?}", path.display()),
            };
            (name, ArrayD::from_shape_vec(t.shape(), values).unwrap())
        });
        Self(tensors.collect())
    }

    pub fn get(&self, name: &str) -> Option<ArrayD<f32>> {
        self.0.get(name).cloned()
    }

    /// The array `name` in `D` dimensions.
    pub fn array<D: Dimension>(&self, name: &str) -> Array<f32, D> {
        let array = self.get(name).unwrap_or_else(|| panic!("no tensor {name}"));
        let shape = array.shape().to_vec();
        array.into_dimensionality().unwrap_or_else(|_| panic!("{name} has shape {shape:?}"))
    }

    /// Latents `[.., 1, C, F, h, w]` as `[.., F, C, h, w]`.
    pub fn latents<D: Dimension>(&self, name: &str) -> Array<f32, D> {
        let array: ArrayD<f32> = self.array::<IxDyn>(name);
        let n = array.ndim();
        assert!(n >= 5 && array.shape()[n - 5] == 1, "{name} has shape {:?}", array.shape());
        let mut array = array.index_axis_move(ndarray::Axis(n - 5), 0);
        array.swap_axes(n - 5, n - 4);
        array
            .as_standard_layout()
            .into_owned()
            .into_dimensionality()
            .unwrap_or_else(|_| panic!("{name}"))
    }
}

/// Largest absolute difference; infinite where a value is not finite.
pub fn max_difference<D: Dimension>(a: ArrayView<f32, D>, b: ArrayView<f32, D>) -> f64 {
    assert_eq!(a.shape(), b.shape());
    a.iter().zip(&b).fold(0.0, |worst, (&a, &b)| {
        let d = (f64::from(a) - f64::from(b)).abs();
        if d.is_finite() { d.max(worst) } else { f64::INFINITY }
    })
}

pub fn read_json(path: &Path) -> serde_json::Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
