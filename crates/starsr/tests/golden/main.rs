// SPDX-License-Identifier: MPL-2.0

//! Compares the diffusion core with references computed by STAR's official program.
//!
//! Reads every reference in the folder that `STARSR_REFERENCE` names (default `../shared/star`) and
//! in `tests/data`: `golden_sampler/` (`index.json` and its runs, `schedule.safetensors`,
//! `make_chunks.json`, `pad_to_fit.json`, `color_fix.safetensors`), `golden_e2e/` and
//! `golden_text/tokens.json`. In `golden_cogvideox/` every case of `config.json` and
//! `sampler_schedules.json` is checked. To check further runs put them in such a folder:
//! `STARSR_REFERENCE=folder cargo test --release -p starsr --test golden -- --nocapture`
//!
//! The test `whole` reads the folder that `STARSR_SMALL` names (default `.cache/small`), which
//! `make small-reference` makes. It needs ONNX Runtime: `ORT_DYLIB_PATH`, or beside the test's
//! executable.

mod cogvideox;
mod reference;
mod sampler;
mod tables;
mod text;
mod whole;

use reference::{Report, folders};
use starsr_testkit::fixtures;

/// Runs `check` on each folder's file or folder `name` that exists; at least `tests/data` must have
/// it.
fn everywhere(name: &str, check: impl Fn(&std::path::Path, &mut Report)) {
    let mut report = Report::default();
    for folder in folders() {
        let path = folder.join(name);
        if path.exists() {
            println!("{}", path.display());
            check(&path, &mut report);
        } else {
            println!("{} has no {name}", folder.display());
        }
    }
    report.finish(name);
}

#[test]
fn runs() {
    everywhere("golden_sampler", sampler::runs);
}

#[test]
fn schedule() {
    everywhere("golden_sampler/schedule.safetensors", tables::schedule);
}

#[test]
fn make_chunks() {
    everywhere("golden_sampler/make_chunks.json", tables::make_chunks);
}

#[test]
fn pad_to_fit() {
    everywhere("golden_sampler/pad_to_fit.json", tables::pad_to_fit);
}

#[test]
fn color_fix() {
    everywhere("golden_sampler/color_fix.safetensors", tables::color_fix);
}

#[test]
fn end_to_end() {
    everywhere("golden_e2e", sampler::end_to_end);
}

#[test]
fn tokens() {
    everywhere("golden_text/tokens.json", text::tokens);
}

#[test]
fn cogvideox_schedules() {
    everywhere("golden_cogvideox", cogvideox::schedules);
}

#[test]
fn cogvideox_runs() {
    everywhere("golden_cogvideox", cogvideox::runs);
}

#[test]
fn cogvideox_pictures() {
    everywhere("golden_cogvideox/preprocess.safetensors", cogvideox::pictures);
}

#[test]
fn whole() {
    let folder = whole::folder();
    if !folder.join("index.json").is_file() {
        let missing = "has no index.json; run `make small-reference`";
        return fixtures::skip(&format!("{} {missing}", folder.display()));
    }
    let mut report = Report::default();
    whole::cases(&folder, &mut report);
    report.finish("whole");
}
