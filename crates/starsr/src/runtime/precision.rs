// SPDX-License-Identifier: MPL-2.0

//! Whether the graphs compute in floats, in 16-bit floats or in 8-bit integers.

use super::provider::Chosen;
use crate::bundle::{Bundle, Manifest};
use crate::error::{Error, Result};
use crate::names::{Precision, Provider, Setting};

/// The precision of a bundle's graphs on a provider, never [`Precision::Auto`].
///
/// # Errors
/// [`Error::Setting`] for one that the bundle, the provider or the processor does not have.
pub(super) fn choose(bundle: &Bundle, chosen: &Chosen, wanted: Precision) -> Result<Precision> {
    of(bundle.manifest(), chosen.provider, has_fast_integers(), wanted)
}

fn of(
    manifest: &Manifest,
    provider: Provider,
    is_fast: bool,
    wanted: Precision,
) -> Result<Precision> {
    let obstacle = |precision| obstacle(manifest, provider, is_fast, precision);
    if wanted == Precision::Auto {
        let integers = obstacle(Precision::Int8).is_none();
        return Ok(if integers { Precision::Int8 } else { Precision::Float });
    }
    let Some(reason) = obstacle(wanted) else { return Ok(wanted) };
    let reason = format!("{wanted} needs {reason}; use float, or leave it at auto");
    Err(Error::setting(Setting::Precision, reason))
}

/// What a precision needs and does not find.
fn obstacle(
    manifest: &Manifest,
    provider: Provider,
    is_fast: bool,
    precision: Precision,
) -> Option<String> {
    if precision == Precision::Float {
        return None;
    }
    if !manifest.graphs.have(precision) {
        return Some(format!("graphs for it, which the bundle {} does not have", manifest.name));
    }
    if precision == Precision::Fp16 {
        return None;
    }
    if provider != Provider::Cpu {
        return Some(format!("provider cpu, not {provider}"));
    }
    (!is_fast).then(|| "a processor with AVX-VNNI or AVX-512 VNNI".into())
}

/// Whether the processor sums products of 8-bit integers in one instruction. On others such sums
/// take as long as those of floats, and may overflow 16 bits.
pub fn has_fast_integers() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx512vnni") || is_x86_feature_detected!("avxvnni")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(name: &str) -> Manifest {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
        let file = folder.join(name).join("bundle.toml");
        Manifest::parse(&std::fs::read_to_string(&file).unwrap(), &file).unwrap()
    }

    #[test]
    fn integers_are_taken_where_all_is_there() {
        use Precision::{Auto, Float, Fp16, Int8};
        let (with, without) = (manifest("nano2"), manifest("nano"));
        let cases = [
            (&with, Provider::Cpu, true, None),
            (&without, Provider::Cpu, true, Some("bundle nano does not have")),
            (&with, Provider::Cuda, true, Some("provider cpu, not cuda")),
            (&with, Provider::Cpu, false, Some("a processor with AVX-VNNI")),
        ];
        for (manifest, provider, is_fast, obstacle) in cases {
            let of = |wanted| of(manifest, provider, is_fast, wanted);
            assert_eq!(of(Float).unwrap(), Float);
            assert_eq!(of(Fp16).is_ok(), manifest.name == "nano2");
            let chosen = if obstacle.is_some() { Float } else { Int8 };
            assert_eq!(of(Auto).unwrap(), chosen);
            match (of(Int8), obstacle) {
                (Ok(found), None) => assert_eq!(found, Int8),
                (Err(Error::Setting { setting: Setting::Precision, reason }), Some(part)) => {
                    assert!(reason.contains(part), "{reason}");
                }
                (other, _) => panic!("{obstacle:?}: {other:?}"),
            }
        }
    }
}
