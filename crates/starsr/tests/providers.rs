// SPDX-License-Identifier: MPL-2.0

//! Providers from libraries of their own. A process registers a library for good, so every case
//! runs in a process of its own.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ndarray::Array4;
use starsr::Cancel;
use starsr::bundle::Bundle;
use starsr::model::{Denoiser, Model, Query};
use starsr::runtime::{Engine, Options, Provider};
use starsr_testkit::fixtures;

/// Loads an engine twice as the environment says and prints what came of it.
#[test]
#[ignore = "run by the other tests, each in a process of its own"]
fn child() {
    let text = |name| std::env::var(name).ok();
    let bundle = Bundle::open(&fixtures::tiny()).unwrap();
    let provider = match text("TEST_PROVIDER").as_deref() {
        Some("cuda") => Provider::Cuda,
        Some("openvino") => Provider::OpenVino,
        Some("tensorrt-rtx") => Provider::TensorRtRtx,
        Some("webgpu") => Provider::WebGpu,
        Some("cpu") => Provider::Cpu,
        _ => Provider::Plugin,
    };
    let option = |text: String| {
        let (key, value) = text.split_once('=').unwrap();
        (key.to_string(), value.to_string())
    };
    for _ in 0..2 {
        let options = Options {
            library: Some(fixtures::onnx_runtime()),
            near: text("TEST_NEAR").into_iter().map(PathBuf::from).collect(),
            provider,
            provider_name: text("TEST_NAME"),
            provider_library: text("TEST_LIBRARY").map(PathBuf::from),
            provider_options: text("TEST_OPTION").into_iter().map(option).collect(),
            device: text("TEST_DEVICE").map_or(0, |number| number.parse().unwrap()),
            ..Options::default()
        };
        match Engine::load(&bundle, &options, &Cancel::default()) {
            Ok(engine) => println!("OUTCOME loaded on {}", engine.device()),
            Err(e) => println!("OUTCOME {e}"),
        }
    }
}

/// What came of both loads, which must be the same.
#[track_caller]
fn outcome(environment: &[(&str, &OsStr)]) -> String {
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["child", "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
    command.env("HOME", home.path()).env_remove("XDG_DATA_HOME");
    let output = command.envs(environment.iter().copied()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let all: Vec<&str> =
        text.lines().filter_map(|line| Some(line.split_once("OUTCOME ")?.1)).collect();
    assert!(all.len() == 2 && all[0] == all[1], "{all:?}");
    all[0].to_string()
}

#[track_caller]
fn assert_refused(environment: &[(&str, &OsStr)], parts: &[&str]) {
    let said = outcome(environment);
    assert!(!said.starts_with("loaded"), "{said}");
    for part in parts {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
}

/// A library made of a few lines of C.
fn compile(folder: &Path, name: &str, source: &str) -> PathBuf {
    let (c, so) = (folder.join("fake.c"), folder.join(name));
    fs::write(&c, source).unwrap();
    let done = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&so, &c]).status();
    assert!(done.expect("the tests need a C compiler, as building starsr does").success());
    so
}

/// A library of providers that has none for this machine.
const NO_DEVICE: &str = r"
    #include <stddef.h>
    void *CreateEpFactories(const char *name, const void *base, const void *log,
                            void **all, size_t max, size_t *count) {
        *count = 0;
        return 0;
    }
    void *ReleaseEpFactory(void *one) { return 0; }
";

/// A library of providers that wants another ONNX Runtime. The first two entries of the tables are
/// GetApi and CreateStatus.
const OTHER_VERSION: &str = r#"
    #include <stddef.h>
    typedef void *(*create_status)(int code, const char *message);
    typedef create_status *(*get_api)(unsigned version);
    void *CreateEpFactories(const char *name, const get_api *base, const void *log,
                            void **all, size_t max, size_t *count) {
        return (*(*base)(1))(1, "needs ONNX Runtime 1.99");
    }
    void *ReleaseEpFactory(void *one) { return 0; }
"#;

#[test]
fn a_library_that_does_not_do_is_named_for_each_engine() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.so");
    fs::write(&text, "this is no library at all, only some text".repeat(9)).unwrap();
    let make = |name, source| compile(folder.path(), name, source);
    let stranger = make("stranger.so", "int something(void) { return 1; }");
    let other = make("other.so", OTHER_VERSION);
    let none = make("none.so", NO_DEVICE);
    let missing = Path::new("/no/such/provider.so");
    let cases: [(&Path, &[&str]); 6] = [
        (missing, &["/no/such/provider.so", "No such file", "name another"]),
        (folder.path(), &["cannot be opened"]),
        (&text, &["text.so cannot be opened", "invalid ELF header"]),
        (&stranger, &["stranger.so is a library, but not one of execution providers"]),
        (&other, &["other.so does not work with ONNX Runtime 1.", "needs ONNX Runtime 1.99"]),
        (&none, &["found no device here that it can run on"]),
    ];
    for (library, parts) in cases {
        for provider in ["openvino", "tensorrt-rtx", "webgpu", "plugin"] {
            let environment =
                [("TEST_PROVIDER", OsStr::new(provider)), ("TEST_LIBRARY", library.as_os_str())];
            assert_refused(&environment, parts);
            assert_refused(
                &environment,
                &[&format!("execution provider {provider} is not available")],
            );
        }
    }
}

#[test]
fn a_missing_library_is_looked_for_and_says_where_it_comes_from() {
    let near = tempfile::tempdir().unwrap();
    for (provider, package) in [
        ("openvino", "onnxruntime-ep-openvino"),
        ("tensorrt-rtx", "onnxruntime-ep-nv-tensorrt-rtx"),
        ("webgpu", "onnxruntime-ep-webgpu"),
    ] {
        let environment =
            [("TEST_PROVIDER", OsStr::new(provider)), ("TEST_NEAR", near.path().as_os_str())];
        let parts = [
            near.path().to_str().unwrap(),
            ".local/share/starsr",
            package,
            "install the Python package",
        ];
        assert_refused(&environment, &parts);
    }
    let unknown = [("TEST_NAME", OsStr::new("Abacus")), ("TEST_NEAR", near.path().as_os_str())];
    let file = "libonnxruntime_providers_abacus.so";
    assert_refused(&unknown, &["Abacus is not known", file, "registered are: none", "webgpu"]);
    assert_refused(
        &[("TEST_NAME", OsStr::new("../abacus"))],
        &["it is not the name of a provider"],
    );
    assert_refused(&[], &["neither its name nor its library is given"]);
}

#[test]
fn a_library_is_found_in_the_folder_of_its_package() {
    let near = tempfile::tempdir().unwrap();
    for folder in ["", "onnxruntime_ep_webgpu"] {
        let folder = near.path().join(folder);
        fs::create_dir_all(&folder).unwrap();
        let library = compile(&folder, "libonnxruntime_providers_webgpu.so", NO_DEVICE);
        let environment =
            [("TEST_PROVIDER", OsStr::new("webgpu")), ("TEST_NEAR", near.path().as_os_str())];
        assert_refused(&environment, &["found no device here"]);
        fs::remove_file(library).unwrap();
    }
}

#[test]
fn options_that_name_a_provider_go_together() {
    let of = |provider, option, value| {
        [("TEST_PROVIDER", OsStr::new(provider)), (option, OsStr::new(value))]
    };
    assert_refused(&of("openvino", "TEST_NAME", "x"), &["provider_name: only provider plugin"]);
    assert_refused(
        &of("cuda", "TEST_LIBRARY", "x.so"),
        &["provider_library: provider cuda is part"],
    );
    assert_refused(
        &of("cpu", "TEST_OPTION", "a=b"),
        &["provider_options: provider cpu takes none"],
    );
    assert_refused(&of("openvino", "TEST_OPTION", "=b"), &["a name must not be empty"]);
}

#[test]
fn openvino_is_found_by_any_of_its_names_and_only_with_its_devices() {
    let Some(library) = fixtures::openvino() else { return };
    let openvino = ("TEST_PROVIDER", OsStr::new("openvino"));
    let near = ("TEST_NEAR", library.parent().unwrap().as_os_str());
    let library = ("TEST_LIBRARY", library.as_os_str());
    assert!(outcome(&[openvino, near]).starts_with("loaded on "));
    for name in ["OpenVINO", "openvino", "OpenVINOExecutionProvider"] {
        assert!(outcome(&[("TEST_NAME", OsStr::new(name)), near]).starts_with("loaded on "));
    }
    let held = "its library holds OpenVINOExecutionProvider, OpenVINOExecutionProvider.AUTO";
    assert_refused(&[library], &[held, "give the name of one"]);
    let other = [library, ("TEST_NAME", OsStr::new("abacus"))];
    assert_refused(&other, &["holds no abacus, only OpenVINOExecutionProvider"]);
    let device = [openvino, library, ("TEST_DEVICE", OsStr::new("99"))];
    assert_refused(&device, &["device: OpenVINOExecutionProvider has no device 99, only 0: "]);
    let option = [openvino, library, ("TEST_OPTION", OsStr::new("load_config={broken"))];
    assert_refused(&option, &["execution provider openvino is not available"]);
}

#[test]
fn nano_on_openvino_gives_what_it_gives_on_the_cpu() {
    let Some(library) = fixtures::openvino() else { return };
    let bundle = Bundle::open(&fixtures::repository("models/nano")).unwrap();
    let load = |provider, provider_library| {
        let library = Some(fixtures::onnx_runtime());
        let options = Options { library, provider, provider_library, ..Options::default() };
        Engine::load(&bundle, &options, &Cancel::default()).unwrap()
    };
    let mut cpu = load(Provider::Cpu, None);
    let mut openvino = load(Provider::OpenVino, Some(library));
    // Of two sizes, as bindings and compiled graphs are kept for the first.
    for (frames, height, width) in [(3, 128, 256), (4, 128, 128), (3, 128, 256)] {
        let pixels = Array4::from_shape_fn((frames, 3, height, width), |(f, c, y, x)| {
            ((x + 2 * f) as f32 / 9.0).sin() * ((y + 5 * c) as f32 / 14.0).cos()
        });
        let hint = cpu.encode(pixels.view()).unwrap();
        let query = Query { x: hint.view(), t: 900, hint: hint.view(), conditions: &[None] };
        let v = cpu.predict(&query).unwrap().remove(0);
        let pairs = [
            ("encode", hint.clone(), openvino.encode(pixels.view()).unwrap()),
            ("predict", v, openvino.predict(&query).unwrap().remove(0)),
            ("decode", cpu.decode(hint.view()).unwrap(), openvino.decode(hint.view()).unwrap()),
        ];
        for (what, expected, found) in pairs {
            let difference = (&expected.view() - &found.view())
                .iter()
                .fold(0.0_f32, |most, d| most.max(d.abs()));
            assert!(difference <= 1e-3, "{what} differs by {difference}");
        }
    }
}
