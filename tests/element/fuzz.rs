// SPDX-License-Identifier: MPL-2.0

//! The bodies of the fuzz targets, run on the corpus and on inputs by chance. `make fuzz` looks for
//! more. Needs ONNX Runtime: `ORT_DYLIB_PATH`, or beside the test's executable.

use starsr_testkit::fuzz as targets;

use std::path::Path;

use arbitrary::{Arbitrary, Unstructured};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Runs a target on its corpus and on `chance` further inputs.
fn replay<T: for<'a> Arbitrary<'a>>(name: &str, run: impl Fn(&T), chance: u64) {
    let try_one = |bytes: &[u8], what: &str| {
        // Told beforehand, as a critical or a signal ends the process.
        println!("{what}");
        let input = Unstructured::new(bytes);
        if let Ok(input) = T::arbitrary_take_rest(input) {
            run(&input);
            return true;
        }
        false
    };
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut files: Vec<_> = corpus.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let runs = files
        .iter()
        .filter(|file| try_one(&std::fs::read(file).unwrap(), &file.display().to_string()));
    assert!(runs.count() >= 10, "{} has too few inputs", corpus.display());
    for seed in 0..chance {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut bytes = vec![0; 32 + rng.next_u32() as usize % 480];
        rng.fill_bytes(&mut bytes);
        try_one(&bytes, &format!("{name}, seed {seed}"));
    }
}

#[test]
fn manifest() {
    replay("manifest", targets::manifest::run, 2000);
}

#[test]
fn caps() {
    replay("caps", targets::caps::run, 300);
}

#[test]
fn events() {
    replay("events", targets::events::run, 300);
}

#[test]
fn frames() {
    replay("frames", targets::frames::run, 300);
}
