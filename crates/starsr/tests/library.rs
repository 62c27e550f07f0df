// SPDX-License-Identifier: MPL-2.0

//! Finding ONNX Runtime. A process can load only one, so every case runs in a process of its own.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use starsr::Cancel;
use starsr::bundle::Bundle;
use starsr::runtime::{Engine, Level, Options, Provider, set_logger};
use starsr_testkit::fixtures;

/// Loads an engine as the environment says and prints what came of it.
#[test]
#[ignore = "run by the other tests, each in a process of its own"]
fn child() {
    let path = |name| std::env::var_os(name).map(PathBuf::from);
    let threshold = if path("TEST_VERBOSE").is_some() { Level::Debug } else { Level::Warning };
    set_logger(threshold, |level, message| println!("LOG {level:?} {message}"));
    let bundle = Bundle::open(&fixtures::tiny()).unwrap();
    let load = |library| {
        let near = path("TEST_NEAR").into_iter().collect();
        let options = Options { library, near, provider: Provider::Cpu, ..Options::default() };
        match Engine::load(&bundle, &options, &Cancel::default()) {
            Ok(engine) => println!("OUTCOME loaded {}", engine.runtime_version()),
            Err(e) => println!("OUTCOME {e}"),
        }
    };
    load(path("TEST_LIBRARY"));
    if let Some(second) = path("TEST_SECOND") {
        load(Some(second));
    }
}

/// All that `child` printed under the given environment, with no library to be found but in the
/// places named.
fn output_of_child(environment: &[(&str, &Path)]) -> String {
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["child", "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
    for name in [
        "ORT_DYLIB_PATH",
        "XDG_DATA_HOME",
        "TEST_LIBRARY",
        "TEST_NEAR",
        "TEST_SECOND",
        "TEST_VERBOSE",
    ] {
        command.env_remove(name);
    }
    command.env("HOME", home.path()).envs(environment.iter().copied());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// What came of each load.
fn outcomes(environment: &[(&str, &Path)]) -> Vec<String> {
    let text = output_of_child(environment);
    text.lines()
        .filter_map(|line| line.split_once("OUTCOME "))
        .map(|(_, outcome)| outcome.to_string())
        .collect()
}

fn outcome(environment: &[(&str, &Path)]) -> String {
    let all = outcomes(environment);
    assert_eq!(all.len(), 1, "{all:?}");
    all.into_iter().next().unwrap()
}

/// A library made of a few lines of C.
fn compile(folder: &Path, source: &str) -> PathBuf {
    let (c, so) = (folder.join("fake.c"), folder.join("libonnxruntime.so"));
    fs::write(&c, source).unwrap();
    let done = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&so, &c]).status();
    assert!(done.expect("the tests need a C compiler, as building starsr does").success());
    so
}

const TOO_OLD: &str = r#"
    static const void *api(unsigned version) { return 0; }
    static const char *version(void) { return "1.16.3"; }
    static const struct { const void *(*api)(unsigned); const char *(*version)(void); } base = { api, version };
    const void *OrtGetApiBase(void) { return &base; }
"#;

#[test]
fn messages_of_the_threshold_and_above_reach_the_logger() {
    let library = fixtures::onnx_runtime();
    let quiet = output_of_child(&[("TEST_LIBRARY", &library)]);
    let verbose = output_of_child(&[("TEST_LIBRARY", &library), ("TEST_VERBOSE", Path::new("1"))]);
    assert!(!quiet.contains("LOG Info") && !quiet.contains("LOG Debug"), "{quiet}");
    assert!(verbose.contains("LOG Info") && verbose.contains("LOG Debug"), "{verbose}");
}

#[test]
fn named_by_the_caller() {
    assert!(outcome(&[("TEST_LIBRARY", &fixtures::onnx_runtime())]).starts_with("loaded 1."));
}

#[test]
fn named_by_the_variable() {
    assert!(outcome(&[("ORT_DYLIB_PATH", &fixtures::onnx_runtime())]).starts_with("loaded 1."));
}

#[test]
fn found_beside_the_plugin_under_any_of_its_names() {
    for name in ["libonnxruntime.so", "libonnxruntime.so.1", "libonnxruntime.so.1.99.0"] {
        let near = tempfile::tempdir().unwrap();
        symlink(fixtures::onnx_runtime(), near.path().join(name)).unwrap();
        assert!(outcome(&[("TEST_NEAR", near.path())]).starts_with("loaded 1."), "{name}");
    }
}

#[test]
fn found_in_the_user_data_folder() {
    let data = tempfile::tempdir().unwrap();
    fs::create_dir(data.path().join("starsr")).unwrap();
    symlink(fixtures::onnx_runtime(), data.path().join("starsr/libonnxruntime.so")).unwrap();
    assert!(outcome(&[("XDG_DATA_HOME", data.path())]).starts_with("loaded 1."));
}

#[test]
fn found_by_the_system_loader() {
    let folder = tempfile::tempdir().unwrap();
    symlink(fixtures::onnx_runtime(), folder.path().join("libonnxruntime.so.1")).unwrap();
    assert!(outcome(&[("LD_LIBRARY_PATH", folder.path())]).starts_with("loaded 1."));
    assert!(
        outcome(&[
            ("LD_LIBRARY_PATH", folder.path()),
            ("TEST_LIBRARY", Path::new("libonnxruntime.so.1"))
        ])
        .starts_with("loaded 1.")
    );
}

#[test]
fn an_unusable_one_beside_the_plugin_is_passed_over() {
    let near = tempfile::tempdir().unwrap();
    compile(near.path(), TOO_OLD);
    symlink(fixtures::onnx_runtime(), near.path().join("libonnxruntime.so.1")).unwrap();
    assert!(outcome(&[("TEST_NEAR", near.path())]).starts_with("loaded 1."));
}

#[test]
fn none_anywhere() {
    // SAFETY: at worst the real library is opened, whose initialisers are harmless.
    let in_system = ["libonnxruntime.so", "libonnxruntime.so.1"]
        .iter()
        .any(|name| unsafe { libloading::Library::new(*name) }.is_ok());
    let near = tempfile::tempdir().unwrap();
    let said = outcome(&[("TEST_NEAR", near.path())]);
    if in_system {
        assert!(said.starts_with("loaded 1."), "{said}");
        return;
    }
    assert!(said.starts_with("ONNX Runtime could not be loaded: "), "{said}");
    for part in [
        near.path().to_str().unwrap(),
        ".local/share/starsr",
        "libonnxruntime.so.1: ",
        "No such file",
    ] {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
}

#[test]
fn a_named_one_that_fails_is_an_error_although_others_would_do() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.so");
    fs::write(&text, "this is no library at all, only some text".repeat(9)).unwrap();
    let stranger = folder.path().join("stranger");
    fs::create_dir(&stranger).unwrap();
    let stranger = compile(&stranger, "int something(void) { return 1; }");
    let null = folder.path().join("null");
    fs::create_dir(&null).unwrap();
    let null = compile(&null, "const void *OrtGetApiBase(void) { return 0; }");
    let old = compile(folder.path(), TOO_OLD);
    let real = fixtures::onnx_runtime();
    let cases: [(&Path, &str); 6] = [
        (Path::new("/no/such/libonnxruntime.so"), "No such file"),
        (folder.path(), ""),
        (&text, "invalid ELF header"),
        (&stranger, "it has no OrtGetApiBase"),
        (&null, "OrtGetApiBase returned null"),
        (&old, "is ONNX Runtime 1.16.3, but starsr needs 1.17 or newer"),
    ];
    for (library, part) in cases {
        let by_caller = outcome(&[("TEST_LIBRARY", library), ("ORT_DYLIB_PATH", &real)]);
        let by_variable =
            outcome(&[("ORT_DYLIB_PATH", library), ("TEST_NEAR", real.parent().unwrap())]);
        for said in [by_caller, by_variable] {
            assert!(
                said.contains(part) && said.contains(library.to_str().unwrap()),
                "{}: {said}",
                library.display()
            );
            assert!(!said.starts_with("loaded"), "{}: {said}", library.display());
        }
    }
}

#[test]
fn a_second_library_is_refused_and_the_same_one_is_not() {
    let real = fixtures::onnx_runtime();
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("libonnxruntime.so");
    symlink(&real, &link).unwrap();
    let same = outcomes(&[("TEST_LIBRARY", &real), ("TEST_SECOND", &link)]);
    assert!(same.iter().all(|said| said.starts_with("loaded 1.")) && same.len() == 2, "{same:?}");

    let other = folder.path().join("other.so");
    fs::write(&other, "").unwrap();
    let two = outcomes(&[("TEST_LIBRARY", &real), ("TEST_SECOND", &other)]);
    assert!(two[1].starts_with("this process already uses the ONNX Runtime in"), "{two:?}");

    // A first failure does not stand in the way of a second try.
    let again = outcomes(&[("TEST_LIBRARY", &other), ("TEST_SECOND", &real)]);
    assert!(again[0].contains("file too short") && again[1].starts_with("loaded 1."), "{again:?}");
}
