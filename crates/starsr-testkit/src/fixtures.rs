// SPDX-License-Identifier: MPL-2.0

//! Bundles for tests, made from the files that `make_bundle.py` writes.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// The folder of the fixtures.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// A file or folder of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// The bundle whose arithmetic `make_bundle.py` describes.
pub fn tiny() -> PathBuf {
    folder().join("tiny")
}

/// The bundle with a text condition that `make_bundle.py` describes.
pub fn text() -> PathBuf {
    folder().join("text")
}

/// A copy of a bundle that a test may alter.
pub fn copy_of(bundle: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(bundle).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

/// A copy of the tiny bundle that a test may alter.
pub fn copy_of_tiny() -> TempDir {
    copy_of(&tiny())
}

pub fn sha256(path: &Path) -> String {
    Sha256::digest(fs::read(path).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Changes the manifest of a bundle.
pub fn edit(bundle: &Path, change: impl FnOnce(String) -> String) {
    let path = bundle.join("bundle.toml");
    let text = fs::read_to_string(&path).unwrap();
    let changed = change(text.clone());
    assert_ne!(text, changed, "the change does nothing");
    fs::write(path, changed).unwrap();
}

/// Puts `bytes` in the place of a file and its right hash into the manifest.
pub fn replace_file(bundle: &Path, file: &str, bytes: &[u8]) {
    let path = bundle.join(file);
    let before = sha256(&path);
    fs::write(&path, bytes).unwrap();
    edit(bundle, |text| text.replace(&before, &sha256(&path)));
}

/// Puts `bytes` in the place of a role's graph and its right hash into the manifest.
pub fn replace_graph(bundle: &Path, role: &str, bytes: &[u8]) {
    replace_file(bundle, &format!("{role}.onnx"), bytes);
}

/// A bundle with some graphs replaced by files of `fixtures/graphs`.
pub fn with_graphs(bundle: &Path, graphs: &[(&str, &str)]) -> TempDir {
    let copy = copy_of(bundle);
    for (role, file) in graphs {
        let bytes = fs::read(folder().join("graphs").join(file)).unwrap();
        replace_graph(copy.path(), role, &bytes);
    }
    copy
}

/// The tiny bundle with some graphs replaced by files of `fixtures/graphs`.
pub fn tiny_with(graphs: &[(&str, &str)]) -> TempDir {
    with_graphs(&tiny(), graphs)
}

/// The tiny bundle with a graph for `role` that never ends.
pub fn tiny_endless(role: &str) -> TempDir {
    let file = role.strip_prefix("vae_").unwrap_or(role);
    tiny_with(&[(role, &format!("{file}_endless.onnx"))])
}

/// The text bundle without its text encoder.
pub fn without_text_encoder() -> TempDir {
    let copy = copy_of(&text());
    edit(copy.path(), |text| {
        let (before, rest) = text.split_once("[graphs.text_encoder]").unwrap();
        format!("{before}{}", &rest[rest.find("[graphs.controlnet]").unwrap()..])
    });
    copy
}

/// The copy of a bundle whose manifest says that all conditions share the latents.
pub fn shared_prefix(bundle: &Path) -> TempDir {
    let copy = copy_of(bundle);
    edit(copy.path(), |text| format!("shared_prefix = true\n{text}"));
    copy
}

/// The ONNX Runtime that the tests run on: `ORT_DYLIB_PATH`, or a file beside the test's executable
/// or above it.
pub fn onnx_runtime() -> PathBuf {
    if let Some(path) = std::env::var_os("ORT_DYLIB_PATH") {
        return fs::canonicalize(&path)
            .unwrap_or_else(|e| panic!("ORT_DYLIB_PATH is {}: {e}", path.display()));
    }
    let exe = std::env::current_exe().unwrap();
    for folder in exe.ancestors().skip(1).take(4) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("libonnxruntime.so") {
                return fs::canonicalize(entry.path()).unwrap();
            }
        }
    }
    panic!(
        "no ONNX Runtime for the tests: run `make build` first or set ORT_DYLIB_PATH to libonnxruntime.so"
    );
}

/// A file or folder of the media beside the references, which are in `STARSR_REFERENCE` or beside
/// the checkout. Where there are no such media the test is skipped, see [`skip`].
pub fn media(name: &str) -> Option<PathBuf> {
    let beside = || repository("../shared/star");
    let references = std::env::var_os("STARSR_REFERENCE").map_or_else(beside, PathBuf::from);
    let path = references.join("../media").join(name);
    if path.exists() {
        return Some(path);
    }
    skip(&format!("{} is missing", path.display()));
    None
}

/// A bundle of the folder that `make small-reference` fills with small networks of STAR on
/// CogVideoX: that which `STARSR_SMALL_COGVIDEOX` names, else `.cache/small-cogvideox`. Without it
/// the test is skipped, see [`skip`].
pub fn small_cogvideox(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("STARSR_SMALL_COGVIDEOX")
        .map_or_else(|| repository(".cache/small-cogvideox"), PathBuf::from);
    let bundle = folder.join(name);
    if bundle.join("bundle.toml").is_file() {
        return Some(bundle);
    }
    skip(&format!("{} is missing; run `make small-reference`", bundle.display()));
    None
}

/// How many tests were skipped in this process.
static SKIPPED: AtomicUsize = AtomicUsize::new(0);

extern "C" fn report_skipped() {
    let skipped = SKIPPED.load(Ordering::SeqCst);
    let _ = writeln!(std::io::stderr(), "skipped in all: {skipped}");
}

/// Reports that the calling test is skipped and why, and at the end of the process how many were.
/// Fails where `STARSR_REQUIRE_REFERENCES` is 1.
pub fn skip(reason: &str) {
    skip_unless("STARSR_REQUIRE_REFERENCES", reason);
}

/// The library of the execution provider OpenVINO, where `make openvino` puts it. Without it the
/// test is skipped, or fails where `STARSR_REQUIRE_PROVIDERS` is 1.
pub fn openvino() -> Option<PathBuf> {
    let folder = repository(".cache/openvino");
    let library = folder.join("libonnxruntime_providers_openvino_plugin.so");
    if library.exists() {
        return Some(library);
    }
    let reason = format!("{} is missing, which `make openvino` fetches", library.display());
    skip_unless("STARSR_REQUIRE_PROVIDERS", &reason);
    None
}

fn skip_unless(variable: &str, reason: &str) {
    let required = std::env::var(variable).is_ok_and(|value| value == "1");
    assert!(!required, "{reason}, but {variable} is 1");
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    // Not by a macro, whose output the test harness keeps to itself.
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {reason}");
    if SKIPPED.fetch_add(1, Ordering::SeqCst) == 0 {
        // SAFETY: the function only reads a static and writes to the standard error.
        unsafe { libc::atexit(report_skipped) };
    }
}
