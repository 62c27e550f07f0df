// SPDX-License-Identifier: MPL-2.0

//! Opening bundles: what a good one gives, and one sentence for everything that can be wrong with
//! one.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use starsr::Cancel;
use starsr::Error;
use starsr::bundle::{Bundle, Family, Manifest, Prediction, Role, ScheduleConfig};
use starsr::diffusion::schedule::SamplerMode;
use starsr::geometry::{Interpolation, LegalSizes, Padding};
use starsr::text::{Key, tokenize};
use starsr::windows::WindowMode;
use starsr_testkit::fixtures;

/// Opens a bundle which must be refused and gives (file, field, reason).
#[track_caller]
fn refused(dir: &Path) -> (PathBuf, String, String) {
    match Bundle::open(dir) {
        Err(Error::Bundle { file, field, reason, .. }) => (file, field, reason),
        other => panic!("expected an error of the bundle, got {other:?}"),
    }
}

#[test]
fn opens_and_reads_everything() {
    let bundle = Bundle::open(&fixtures::tiny()).unwrap();
    let manifest = bundle.manifest();
    assert_eq!((manifest.name.as_str(), manifest.version.as_str()), ("tiny", "1"));
    assert_eq!((manifest.scale.default, manifest.scale.minimum, manifest.scale.maximum), (4, 4, 4));
    assert_eq!((manifest.latent.channels, manifest.latent.spatial_factor), (48, 4));
    assert_eq!(
        (manifest.canvas.upscale, manifest.canvas.padding),
        (Interpolation::Bicubic, Padding::Edge)
    );
    assert_eq!(manifest.canvas.width, LegalSizes { multiple: 8, offset: 0, minimum: 8 });
    assert_eq!((manifest.window.length, manifest.window.overlap), (4, 1));
    assert_eq!(manifest.window.mode, WindowMode::Blend);
    assert_eq!(manifest.schedule.family, Family::LogsnrCosineInterp(ScheduleConfig::default()));
    assert_eq!(manifest.schedule.noise_level, 900);
    assert_eq!(manifest.schedule.prediction, Prediction::V);
    assert_eq!((manifest.sampler.mode, manifest.sampler.steps), (SamplerMode::Normal, 1));
    assert_eq!((manifest.vae.frames_per_encode, manifest.vae.frames_per_decode), (2, 3));
    assert_eq!(bundle.graph(Role::Denoiser).unwrap(), fixtures::tiny().join("denoiser.onnx"));
    assert_eq!(bundle.graph(Role::TextEncoder), None);
}

#[test]
fn the_manifest_may_be_named_instead_of_its_folder() {
    let bundle = Bundle::open(&fixtures::tiny().join("bundle.toml")).unwrap();
    assert_eq!(bundle.root(), fixtures::tiny());
}

#[test]
fn hashes_may_be_written_in_capitals() {
    let copy = fixtures::copy_of_tiny();
    let hash = fixtures::sha256(&copy.path().join("denoiser.onnx"));
    fixtures::edit(copy.path(), |text| text.replace(&hash, &hash.to_uppercase()));
    Bundle::open(copy.path()).unwrap();
}

#[test]
fn folder_missing() {
    let (file, field, reason) = refused(Path::new("/no/such/bundle"));
    assert_eq!((file.as_path(), field.as_str()), (Path::new("/no/such/bundle"), "folder"));
    assert!(reason.contains("does not exist"), "{reason}");
}

#[test]
fn not_a_folder() {
    let (_, _, reason) = refused(&fixtures::tiny().join("denoiser.onnx"));
    assert!(reason.contains("is not a folder"), "{reason}");
}

#[test]
fn no_manifest() {
    let empty = tempfile::tempdir().unwrap();
    let (_, _, reason) = refused(empty.path());
    assert!(reason.contains("has no bundle.toml"), "{reason}");
}

#[test]
fn manifest_is_not_text() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("bundle.toml"), [0xff, 0xfe, 0x00]).unwrap();
    assert!(refused(folder.path()).2.contains("UTF-8"));
}

#[test]
fn file_missing() {
    let copy = fixtures::copy_of_tiny();
    fs::remove_file(copy.path().join("controlnet.onnx")).unwrap();
    let (file, field, reason) = refused(copy.path());
    assert_eq!((file, field.as_str()), (copy.path().join("controlnet.onnx"), "graphs.controlnet"));
    assert!(reason.contains("does not exist"), "{reason}");
}

#[test]
fn file_is_a_folder() {
    let copy = fixtures::copy_of_tiny();
    fs::remove_file(copy.path().join("controlnet.onnx")).unwrap();
    fs::create_dir(copy.path().join("controlnet.onnx")).unwrap();
    assert!(refused(copy.path()).2.contains("is not a file"));
}

#[test]
fn file_truncated() {
    let copy = fixtures::copy_of_tiny();
    let path = copy.path().join("denoiser.onnx");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let (file, field, reason) = refused(copy.path());
    assert_eq!((file.as_path(), field.as_str()), (path.as_path(), "graphs.denoiser.sha256"));
    assert!(reason.contains("altered") && reason.contains(&fixtures::sha256(&path)), "{reason}");
}

#[test]
fn external_data_is_hashed_too() {
    let copy = fixtures::copy_of_tiny();
    let weights = copy.path().join("weights.data");
    fs::write(&weights, vec![7_u8; 3 << 20]).unwrap();
    let data = format!(
        "data = [{{ file = \"weights.data\", sha256 = \"{}\" }}]\n",
        fixtures::sha256(&weights)
    );
    fixtures::edit(copy.path(), |text| text + &data);
    Bundle::open(copy.path()).unwrap();

    fs::write(&weights, vec![8_u8; 3 << 20]).unwrap();
    let (file, field, _) = refused(copy.path());
    assert_eq!(
        (file.as_path(), field.as_str()),
        (weights.as_path(), "graphs.denoiser.data[0].sha256")
    );
}

#[test]
fn cancelled() {
    let cancel = Cancel::default();
    cancel.set(true);
    assert!(matches!(Bundle::open_with(&fixtures::tiny(), &cancel), Err(Error::Cancelled)));
}

/// Every alteration of the manifest with the field and a part of the reason it must give.
#[test]
fn manifest_mistakes() {
    let cases: &[(&str, &str, &str, &str)] = &[
        ("format = 1\n", "", "format", "is missing"),
        (
            "format = 1\n",
            "format = 3\n",
            "format",
            "format 3 is not understood, this starsr reads formats 1 to 2; update",
        ),
        ("format = 1\n", "format = 0\n", "format", "export the bundle again"),
        ("format = 1\n", "format = \"1\"\n", "format", "must be an integer, 1 to 2"),
        ("name = \"tiny\"", "name = \" \"", "name", "must not be empty"),
        ("name = \"tiny\"", "name = ", "name (line 3)", ""),
        ("name = \"tiny\"", "name = 3", "name (line 3)", "expected a string"),
        ("name = \"tiny\"\n", "", "", "missing field `name`"),
        ("[scale]", "[scales]", "scales (line 9)", "unknown field `scales`"),
        ("overlap = 1", "overlap = 1\noverlaps = 1", "window.overlaps", "unknown field `overlaps`"),
        ("length = 4", "length = 4.5", "window.length", "expected usize"),
        ("length = 4", "length = -4", "window.length", "expected usize"),
        ("length = 4", "length = 65", "window.length", "is 65, but must be between 1 and 64"),
        ("overlap = 1", "overlap = 4", "window.overlap", "is 4, but must be between 0 and 3"),
        ("minimum = 1\nmaximum = 64", "minimum = 0\nmaximum = 64", "window.minimum", "is 0"),
        (
            "maximum = 64",
            "maximum = 9223372036854775807",
            "window.maximum",
            "is 9223372036854775807",
        ),
        ("mode = \"blend\"", "mode = \"mix\"", "window.mode", "expected `blend` or `wavefront`"),
        ("default = 4", "default = 5", "scale.default", "is 5, but must be between 4 and 4"),
        ("maximum = 4\n", "maximum = 3\n", "scale.maximum", "is 3"),
        ("channels = 48", "channels = 0", "latent.channels", "is 0"),
        (
            "spatial_factor = 4",
            "spatial_factor = 3",
            "canvas.height.multiple",
            "multiple of latent.spatial_factor, 3",
        ),
        ("scaling_factor = 1.0", "scaling_factor = nan", "latent.scaling_factor", "above 0"),
        (
            "padding = \"edge\"",
            "padding = \"black\"",
            "canvas.padding",
            "expected one of `edge`, `white`, `official`",
        ),
        ("offset = 0", "offset = 8", "canvas.height.offset", "is 8, but must be between 0 and 7"),
        ("multiple = 8", "multiple = 0", "canvas.height.multiple", "is 0"),
        ("logsnr_min = -15.0", "logsnr_min = inf", "schedule.logsnr_min", "is inf"),
        ("logsnr_min = -15.0", "logsnr_min = 15.0", "schedule", "increase"),
        ("scale_min = 2.0", "scale_min = 0.0", "schedule.scale_min", "above 0"),
        ("timesteps = 1000", "timesteps = 1", "schedule.timesteps", "is 1"),
        ("noise_level = 900", "noise_level = 1001", "schedule.noise_level", "is 1001"),
        (
            "kind = \"logsnr-cosine-interp\"",
            "kind = \"linear\"",
            "schedule",
            "logsnr-cosine-interp",
        ),
        ("\nsteps = 1", "\nsteps = 0", "sampler.steps", "is 0"),
        ("guidance_scale = 1.0", "guidance_scale = nan", "sampler.guidance_scale", "is NaN"),
        (
            "guidance_scale = 1.0",
            "guidance_scale = 7.5",
            "sampler.guidance_scale",
            "must be 1 without",
        ),
        ("strength = 1.0", "strength = 1.5", "sampler.strength", "between 0 and 1"),
        ("color_fix = \"none\"", "color_fix = \"blue\"", "sampler.color_fix", "`adain`"),
        ("frames_per_decode = 3", "frames_per_decode = 0", "vae.frames_per_decode", "is 0"),
        (
            "frames_per_decode = 3",
            "frames_per_decode = 3\ndecode_overlap = 2",
            "vae.decode_overlap",
            "between 0 and 1",
        ),
        (
            "[vae]",
            "[prompts]\ndefault = \"\"\nsuffix = \"\"\nnegative = \"\"\nembeddings = { file = \"../a\", sha256 = \"\" }\n[vae]",
            "prompts.embeddings.file",
            "plain path",
        ),
        (
            "[vae]",
            "[prompts]\ndefault = \"\"\nsuffix = \"\"\nnegative = \"\"\nembeddings = { file = \"a\", sha256 = \"0\" }\n[vae]",
            "prompts.embeddings.sha256",
            "64 hexadecimal digits",
        ),
        (
            "[vae]",
            "[prompts]\ndefault = \"\"\nsuffix = \"\"\nnegative = \"\"\n[vae]",
            "prompts",
            "text_encoder",
        ),
        ("\"denoiser.onnx\"", "\"../denoiser.onnx\"", "graphs.denoiser.file", "plain path"),
        ("\"denoiser.onnx\"", "\"/etc/passwd\"", "graphs.denoiser.file", "plain path"),
        ("\"denoiser.onnx\"", "\"a/../../b\"", "graphs.denoiser.file", "plain path"),
        ("\"denoiser.onnx\"", "\"\"", "graphs.denoiser.file", "plain path"),
        ("\"denoiser.onnx\"", "\"a\\\\b\"", "graphs.denoiser.file", "plain path"),
        ("sha256 = \"", "sha256 = \"0", "graphs.vae_encoder.sha256", "64 hexadecimal digits"),
        ("[graphs.denoiser]", "[graphs.unet]", "graphs.unet", "unknown field `unet`"),
        ("[canvas]", "[canvas", "canvas (line", ""),
    ];
    let text = fs::read_to_string(fixtures::tiny().join("bundle.toml")).unwrap();
    for (from, to, field_wanted, reason_wanted) in cases {
        let changed = text.replacen(from, to, 1);
        assert_ne!(text, changed, "{from:?} is not in the manifest");
        match Manifest::parse(&changed, Path::new("bundle.toml")) {
            Err(Error::Bundle { field, reason, .. }) => {
                assert!(field.contains(field_wanted), "{to:?}: field {field:?}: {reason}");
                assert!(reason.contains(reason_wanted), "{to:?}: field {field:?}: {reason}");
                assert!(!reason.contains('\n'), "{to:?}: {reason}");
            }
            other => panic!("{to:?} gave {other:?}"),
        }
    }
}

#[test]
fn embeddings_are_read() {
    let bundle = Bundle::open(&fixtures::text()).unwrap();
    let embeddings = bundle.embeddings().unwrap();
    let texts = ["a panda test", "rock"];
    assert_eq!(embeddings.len(), texts.len());
    for ((ids, embedding), text) in embeddings.iter().zip(texts) {
        let Key::Tokens(ids) = ids else { panic!("{text} has no tokens") };
        assert_eq!(*ids, tokenize(text).ids, "{text}");
        let last = ids[1] as f32 / 65536.0 * 8.0;
        assert_eq!((embedding.values().dim(), embedding.values()[[1, 7]]), ((77, 8), last));
    }
    assert!(Bundle::open(&fixtures::tiny()).unwrap().embeddings().unwrap().is_empty());

    let halves = fixtures::copy_of(&fixtures::text());
    let bytes = fs::read(fixtures::folder().join("graphs/embeddings_half.safetensors")).unwrap();
    fixtures::replace_file(halves.path(), "embeddings.safetensors", &bytes);
    let rounded = Bundle::open(halves.path()).unwrap().embeddings().unwrap();
    for ((_, exact), (_, rounded)) in embeddings.iter().zip(&rounded) {
        assert!((&exact.values() - &rounded.values()).iter().all(|d| d.abs() < 4e-3));
    }
}

#[test]
fn embeddings_that_are_wrong() {
    let copy = fixtures::copy_of(&fixtures::text());
    let path = copy.path().join("embeddings.safetensors");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, b"altered").unwrap();
    assert_eq!(refused(copy.path()).1, "prompts.embeddings.sha256");
    fs::remove_file(&path).unwrap();
    assert_eq!(refused(copy.path()).1, "prompts.embeddings");

    let header = |from: &str, to: &str| {
        let text = whole.iter().map(|&b| char::from(b)).collect::<String>().replacen(from, to, 1);
        text.chars().map(|c| c as u8).collect::<Vec<_>>()
    };
    let mut infinite = whole.clone();
    let end = infinite.len();
    infinite[end - 4..].copy_from_slice(&f32::INFINITY.to_le_bytes());
    let cases = [
        (whole[..100].to_vec(), "prompts.embeddings", "is not a safetensors file"),
        (header("\"tokens\"", "\"tokenz\""), "tensor tokens", "is missing"),
        (header("\"I64\"", "\"F64\""), "tensor tokens", "must be I64 [N, 77]"),
        (header("\"F32\"", "\"I32\""), "tensor embeddings", "must be F32 or F16 [2, 77, D]"),
        (infinite, "tensor embeddings", "not finite"),
    ];
    for (bytes, field_wanted, reason_wanted) in cases {
        let copy = fixtures::copy_of(&fixtures::text());
        fixtures::replace_file(copy.path(), "embeddings.safetensors", &bytes);
        match Bundle::open(copy.path()).unwrap().embeddings() {
            Err(Error::Bundle { file, field, reason, .. }) => {
                assert_eq!(file, copy.path().join("embeddings.safetensors"));
                assert!(field.contains(field_wanted), "{field}: {reason}");
                assert!(reason.contains(reason_wanted), "{field}: {reason}");
            }
            other => panic!("{reason_wanted}: {other:?}"),
        }
    }
}

#[test]
fn locates_bundles() {
    let place = tempfile::tempdir().unwrap();
    let put = |path: &str| {
        let folder = place.path().join(path);
        fs::create_dir_all(&folder).unwrap();
        fs::copy(fixtures::tiny().join("bundle.toml"), folder.join("bundle.toml")).unwrap();
        folder
    };
    let near = [place.path().join("empty"), place.path().join("a")];
    let missing = Bundle::locate(Some(Path::new("absent")), &near).unwrap_err().to_string();
    for looked in ["empty/absent", "empty/starsr/absent", "a/models/absent", "starsr/absent"] {
        assert!(missing.contains(looked), "{missing}");
    }

    // Each place goes before the ones put before it.
    for path in ["a/models/nano2", "a/starsr/nano2", "a/nano2"] {
        let folder = put(path);
        assert_eq!(Bundle::locate(None, &near).unwrap(), folder);
    }
    let other = put("a/models/other");
    assert_eq!(Bundle::locate(Some(Path::new("other")), &near).unwrap(), other);
    let path = place.path().join("not/there");
    assert_eq!(Bundle::locate(Some(&path), &near).unwrap(), path);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever is done to the text of a manifest, reading it gives a manifest or an error, and
    /// never a panic.
    #[test]
    fn mutated_manifests_do_not_panic(
        cuts in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..5_u8), 1..6),
        insert in "[ -~\n\"\\[\\]=.é\u{0}-]{0,12}",
        number in any::<i64>(),
    ) {
        let mut text = fs::read_to_string(fixtures::tiny().join("bundle.toml")).unwrap();
        for (a, b, kind) in cuts {
            let places: Vec<usize> = text.char_indices().map(|(i, _)| i).chain([text.len()]).collect();
            let (a, b) = (*a.get(&places), *b.get(&places));
            let (a, b) = (a.min(b), a.max(b));
            match kind {
                0 => text.insert_str(a, &insert),
                1 => {
                    let end = places.iter().find(|&&place| place >= b.min(a + 7));
                    text.replace_range(a..*end.unwrap_or(&b), "");
                }
                2 => text.truncate(a.max(1)),
                3 => {
                    let numbers: Vec<(usize, &str)> = text.match_indices(|c: char| c.is_ascii_digit()).collect();
                    if !numbers.is_empty() {
                        let at = numbers[a % numbers.len()].0;
                        text.replace_range(at..=at, &number.to_string());
                    }
                }
                _ => {
                    let lines: Vec<&str> = text.lines().collect();
                    let twice = lines[a % lines.len()].to_string();
                    text.insert_str(0, &(twice + "\n"));
                }
            }
            if text.is_empty() { break; }
        }
        let _ = Manifest::parse(&text, Path::new("bundle.toml"));
    }
}
