// SPDX-License-Identifier: MPL-2.0

//! Rules about the sources that the compiler does not check.

use std::fs;
use std::path::{Path, PathBuf};

/// Every Rust file below `folder`.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = |path: PathBuf| if path.is_dir() { sources(&path) } else { vec![path] };
    entries.flat_map(files).filter(|path| path.extension().is_some_and(|e| e == "rs")).collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn types_of_ort_stay_in_the_runtime() {
    let files = sources(&root().join("src"));
    assert!(files.len() > 30, "{} files", files.len());
    for file in files {
        let inside = file.starts_with(root().join("src/runtime"));
        let text = fs::read_to_string(&file).unwrap();
        let words = text.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':');
        let uses = words.filter(|word| word.starts_with("ort::")).count();
        assert!(inside || uses == 0, "{} names {uses} items of ort", file.display());
    }
}

#[test]
fn nothing_depends_on_gstreamer() {
    let manifest: toml::Table =
        fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    for kind in ["dependencies", "dev-dependencies"] {
        let crates = manifest[kind].as_table().unwrap();
        assert!(!crates.is_empty());
        for (name, how) in crates {
            assert!(!name.starts_with("gst") && !name.starts_with("glib"), "{kind}: {name}");
            // With its features the test kit would bring GStreamer along.
            let features = how.get("features").and_then(|features| features.as_array());
            assert!(name != "starsr-testkit" || features.is_none(), "{kind}: {name} has features");
        }
    }
}
