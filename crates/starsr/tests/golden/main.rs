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
//! The tests `whole` and `sharing` read the folder that `STARSR_SMALL` names (default
//! `.cache/small`), and those of CogVideoX's networks that which `STARSR_SMALL_COGVIDEOX` names
//! (`.cache/small-cogvideox`); `make small-reference` makes both. They need ONNX Runtime:
//! `ORT_DYLIB_PATH`, or beside the test's executable.

mod cogvideox;
mod cogvideox_bundle;
mod reference;
mod sampler;
mod tables;
mod text;
mod whole;

use std::path::Path;

use reference::{Report, folders};
use starsr_testkit::fixtures;

/// Runs `check` on each folder's file or folder `name` that exists; at least `tests/data` must have
/// it.
fn everywhere(name: &str, check: impl Fn(&Path, &mut Report)) {
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

/// [`everywhere`] for files that are too large for `tests/data`; skipped where no folder has them.
fn in_references(name: &str, check: impl Fn(&Path, &mut Report)) {
    if folders().iter().any(|folder| folder.join(name).exists()) {
        return everywhere(name, check);
    }
    fixtures::skip(&format!("no folder of references has {name}"));
}

/// [`in_references`] for folders `golden_cogvideox` with the file `name`, whose networks are exported.
fn with_bundles(name: &str, check: impl Fn(&Path, &mut Report)) {
    if fixtures::small_cogvideox("tame").is_some() {
        let name = format!("golden_cogvideox/{name}");
        in_references(&name, |path, report| check(path.parent().unwrap(), report));
    }
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
fn cogvideox_positions() {
    in_references("golden_cogvideox/pos_tables.safetensors", cogvideox_bundle::positions);
}

#[test]
fn cogvideox_networks() {
    with_bundles("net_small.state_dict.f16.safetensors", cogvideox_bundle::networks);
}

#[test]
fn cogvideox_sampler() {
    with_bundles("net_small.state_dict.f16.safetensors", cogvideox_bundle::runs);
}

#[test]
fn cogvideox_autoencoder() {
    with_bundles("vae_small.safetensors", cogvideox_bundle::autoencoder);
}

/// Runs `check` on the folder of small networks; skipped without it.
fn with_small_star(name: &str, check: fn(&Path, &mut Report)) {
    let folder = whole::folder();
    if !folder.join("index.json").is_file() {
        let missing = "has no index.json; run `make small-reference`";
        return fixtures::skip(&format!("{} {missing}", folder.display()));
    }
    let mut report = Report::default();
    check(&folder, &mut report);
    report.finish(name);
}

#[test]
fn whole() {
    with_small_star("whole", whole::cases);
}

#[test]
fn sharing() {
    with_small_star("sharing", whole::sharing);
}
