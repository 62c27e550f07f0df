// SPDX-License-Identifier: MPL-2.0

//! Manifests of format 2, and what they have and format 1 lacks.

use std::fs;
use std::path::Path;

use starsr::bundle::{
    ConditionKind, Family, GuidanceScale, Kind, Manifest, PositionsSpec, ScaledLinearConfig,
    SolverKind, Unconditional,
};
use starsr::color::ColorFix;
use starsr::windows::WindowMode;
use starsr::{Cancel, Error, Result, Setting, Settings, Size, Upscaler};
use starsr_testkit::fixtures;
use starsr_testkit::stand_in::Plain;

/// A bundle of the CogVideoX variant.
fn cogvideox() -> String {
    let head = r#"
format = 2
kind = "cogvideox"
name = "star-cogvideox"
version = "1"
licence = "other"
provenance = "none"
training_data = "none"
scale = { default = 1, minimum = 1, maximum = 4 }
condition = { kind = "concat" }
prompts = { default = "", tokenizer = { file = "spiece.model", sha256 = "HASH" } }

[latent]
channels = 16
spatial_factor = 8
temporal_factor = 4
scaling_factor = 0.7

[canvas]
upscale = "bicubic"
padding = "edge"
tile_overlap = 64
height = { multiple = 16, minimum = 480 }
width = { multiple = 16, minimum = 720 }
trained = { height = 480, width = 720 }

[window]
mode = "blend"
length = 25
overlap = 8
minimum = 1
maximum = 41
multiple = 8
offset = 1

[positions]
kind = "rotary"
base = 10000.0
frames = 16
rows = 24
columns = 24

[schedule]
kind = "scaled-linear"
timesteps = 1000
beta_start = 0.00085
beta_end = 0.012
shift_scale = 1.0
zero_terminal_snr = true
prediction = "v"

[sampler]
solver = "vp-sde-dpmpp-2m"
steps = 50
guidance = "wave"
"#;
    let hash = "0".repeat(64);
    ["vae_encoder", "vae_decoder", "modulation", "denoiser", "text_encoder"].iter().fold(
        head.replace("HASH", &hash),
        |text, role| {
            format!("{text}\n[graphs.{role}]\nfile = \"{role}.onnx\"\nsha256 = \"{hash}\"\n")
        },
    )
}

fn parse(text: &str) -> Result<Manifest> {
    Manifest::parse(text, Path::new("bundle.toml"))
}

/// The field and the reason of an error of the bundle.
#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T>) -> (String, String) {
    match result {
        Err(Error::Bundle { field, reason, .. }) => {
            assert!(!reason.contains('\n'), "{reason}");
            (field, reason)
        }
        other => panic!("expected an error of the bundle, got {other:?}"),
    }
}

#[test]
fn everything_is_read() {
    let manifest = parse(&cogvideox()).unwrap();
    assert_eq!((manifest.format, manifest.kind), (2, Kind::CogVideoX));
    assert_eq!(manifest.kind.unconditional(), Unconditional::Zeros);
    assert_eq!((manifest.latent.channels, manifest.latent.temporal_factor), (16, 4));
    assert_eq!(manifest.schedule.family, Family::ScaledLinear(ScaledLinearConfig::default()));
    assert_eq!(manifest.schedule.noise_level, 1000);
    assert_eq!(manifest.sampler.solver, SolverKind::VpSdeDpmpp2m);
    assert_eq!((manifest.sampler.steps, manifest.sampler.guidance), (50, GuidanceScale::Wave));
    let sampler = manifest.sampler;
    let rest = (sampler.guidance_rescale, sampler.color_fix, sampler.strength);
    assert_eq!(rest, (0.0, ColorFix::Adain, 1.0));
    assert_eq!(manifest.condition.kind, ConditionKind::Concat);
    assert!(manifest.graphs.controlnet.is_none() && manifest.graphs.modulation.is_some());
    assert_eq!(manifest.canvas.trained, Some(Size::new(720, 480)));
    let rotary = PositionsSpec::Rotary { base: 1e4, frames: 16, rows: 24, columns: 24 };
    assert_eq!(manifest.positions, Some(rotary));
    let window = manifest.window;
    assert_eq!([1, 9, 25, 41].map(|n| window.is_legal(n)), [true; 4]);
    assert_eq!([0, 8, 26, 49].map(|n| window.is_legal(n)), [false; 4]);
    assert_eq!([1, 2, 25, 26, 41, 42].map(|n| window.fit(n)), [1, 9, 25, 33, 41, 42]);
    assert_eq!(manifest.text_length(), 226);
    let prompts = manifest.prompts.unwrap();
    assert_eq!((prompts.suffix.as_str(), prompts.negative.as_str()), ("", ""));

    for (number, scale) in [("6", 6.0), ("6.5", 6.5)] {
        let text = cogvideox().replace("\"wave\"", number);
        assert_eq!(parse(&text).unwrap().sampler.guidance, GuidanceScale::Constant(scale));
    }
}

#[test]
fn format_1_has_its_defaults_and_no_newer_keys() {
    let text = fs::read_to_string(fixtures::tiny().join("bundle.toml")).unwrap();
    let manifest = parse(&text).unwrap();
    assert_eq!((manifest.kind, manifest.latent.temporal_factor), (Kind::I2vGen, 1));
    assert_eq!(manifest.kind.unconditional(), Unconditional::NegativePrompt);
    assert_eq!(manifest.condition.kind, ConditionKind::ControlNet);
    assert_eq!(manifest.sampler.solver, SolverKind::Dpmpp2mSde);
    assert_eq!(manifest.sampler.guidance, GuidanceScale::Constant(1.0));

    for (from, to, field) in [
        ("name =", "kind = \"i2vgen\"\nname =", "kind"),
        ("[scale]", "[condition]\nkind = \"controlnet\"\n[scale]", "condition"),
        ("[latent]", "[latent]\ntemporal_factor = 1", "latent.temporal_factor"),
        ("[window]", "[window]\nmultiple = 1", "window.multiple"),
        ("[canvas]", "[canvas]\ntrained = { width = 64, height = 64 }", "canvas.trained"),
        ("[sampler]", "[sampler]\nsolver = \"dpmpp-2m-sde\"", "sampler.solver"),
        ("guidance_scale =", "guidance =", "sampler.guidance"),
    ] {
        let newer = text.replacen(from, to, 1);
        assert_ne!(newer, text);
        let (found, reason) = refused(parse(&newer));
        assert_eq!(found, field);
        assert!(reason.contains("format = 2"), "{reason}");
        parse(&newer.replacen("format = 1", "format = 2", 1)).unwrap();
    }
    let (field, reason) = refused(parse(&text.replace("mode = \"normal\"\n", "")));
    assert!(field.contains("sampler") && reason.contains("missing field `mode`"), "{reason}");
}

#[test]
fn mistakes() {
    let cases: &[(&str, &str, &str, &str)] = &[
        ("\"cogvideox\"", "\"other\"", "kind", "expected `i2vgen` or `cogvideox`"),
        ("temporal_factor = 4", "temporal_factor = 0", "latent.temporal_factor", "is 0"),
        (
            "length = 25",
            "length = 24",
            "window.length",
            "is 24, but must be 1, 9, 17, 25, 33 or 41 frames",
        ),
        ("maximum = 41", "maximum = 42", "window.maximum", "must be 1, 9, 17"),
        ("overlap = 8", "overlap = 9", "window.overlap", "a multiple of latent.temporal_factor"),
        ("multiple = 8", "multiple = 2", "window.multiple", "one frame more"),
        ("offset = 1", "offset = 8", "window.offset", "is 8"),
        ("\"blend\"", "\"wavefront\"", "window.mode", "must be \"blend\""),
        ("width = 720 }", "width = 712 }", "canvas.trained.width", "is 712"),
        ("width = 720 }", "width = 720, top = 1 }", "canvas", "unknown field"),
        ("tile_overlap = 64", "tile_overlap = 480", "canvas.tile_overlap", "is 480"),
        ("multiple = 16, minimum = 720", "multiple = 8, minimum = 720", "canvas.width", "even"),
        ("\"rotary\"", "\"other\"", "kind", "`sincos`"),
        ("\"rotary\"", "\"sincos\"", "positions", "field"),
        ("columns = 24", "columns = 23", "positions.columns", "even"),
        ("base = 10000.0", "base = 0.0", "positions.base", "is 0"),
        (
            "[latent]",
            "vae = { frames_per_encode = 25, frames_per_decode = 9 }\n[latent]",
            "vae",
            "one piece",
        ),
        ("[graphs.modulation]", "[graphs.other]", "graphs", "unknown field"),
        ("beta_start = 0.00085", "beta_start = 0.0", "schedule.beta_start", "above 0"),
        ("beta_start = 0.00085\n", "", "schedule", "missing field `beta_start`"),
        ("beta_end = 0.012", "beta_end = nan", "schedule.beta_end", "is NaN"),
        ("beta_end = 0.012", "beta_end = 1.0", "schedule", "between 0 and 1"),
        ("shift_scale = 1.0", "shift_scale = 0", "schedule.shift_scale", "is 0"),
        ("shift_scale = 1.0", "shift_scale = 1.0\nscale_min = 2.0", "schedule", "`scale_min`"),
        ("prediction = \"v\"", "prediction = \"v\"\nnoise_level = 9", "schedule", "`noise_level`"),
        ("timesteps = 1000", "timesteps = 1", "schedule.timesteps", "is 1"),
        ("timesteps = 1000", "timesteps = 40", "sampler.steps", "is 50"),
        ("\"vp-sde-dpmpp-2m\"", "\"euler\"", "sampler.solver", "`vp-sde-dpmpp-2m`"),
        ("steps = 50", "steps = 50\nmode = \"fast\"", "sampler.mode", "normal"),
        ("guidance = \"wave\"", "guidance = \"steady\"", "sampler", "`wave` or a number"),
        ("guidance = \"wave\"", "guidance = [1]", "sampler", "`wave` or a number"),
        ("guidance = \"wave\"", "guidance = 0.5", "sampler.guidance", "is 0.5"),
        ("guidance = \"wave\"", "guidance = nan", "sampler.guidance", "is NaN"),
        ("guidance = \"wave\"", "", "sampler", "missing field `guidance`"),
        ("guidance = \"wave\"", "guidance = 2\nguidance_scale = 2", "sampler", "remove one"),
        ("{ kind = \"concat\" }", "{ kind = \"add\" }", "condition", "`concat`"),
        ("{ kind = \"concat\" }", "{ kind = \"controlnet\" }", "positions", "has no use"),
        ("default = \"\",", "default = \"\", length = 1,", "prompts.length", "is 1"),
        ("default = \"\",", "default = \"\", embedded = [\"a\"],", "prompts.embedded", "no use"),
        ("tokenizer = {", "embeddings = {", "prompts.tokenizer", "is missing"),
        ("\"spiece.model\"", "\"../spiece.model\"", "prompts.tokenizer", "plain path"),
        ("[canvas]", "[canvas]\noperations = [1.0, -1.0]", "canvas.operations", "between 0 and"),
        (
            "kind =",
            "shared_prefix = true\nkind =",
            "shared_prefix",
            "has no use without a ControlNet",
        ),
        ("condition = {", "conditions = {", "conditions", "unknown field"),
        (
            "[graphs.denoiser]",
            "[graphs.controlnet]\nfile = \"a\"\nsha256 = \"\"\n[graphs.denoiser]",
            "graphs.controlnet",
            "has no use",
        ),
        (
            "solver = \"vp-sde-dpmpp-2m\"",
            "mode = \"normal\"\nguidance_rescale = 0\ncolor_fix = \"none\"\nstrength = 1",
            "sampler.solver",
            "does not belong",
        ),
    ];
    let text = cogvideox();
    for (from, to, field_wanted, reason_wanted) in cases {
        let changed = text.replacen(from, to, 1);
        assert_ne!(text, changed, "{from:?} is not in the manifest");
        let (field, reason) = refused(parse(&changed));
        assert!(field.contains(field_wanted), "{to:?}: field {field:?}: {reason}");
        assert!(reason.contains(reason_wanted), "{to:?}: field {field:?}: {reason}");
    }
}

/// What users may set follows from the bundle, too.
#[test]
fn settings() {
    let manifest = parse(&cogvideox()).unwrap();
    let upscaler = |settings: Settings| {
        Upscaler::new(Box::new(Plain), &manifest, &settings, Size::new(40, 30), Cancel::default())
    };
    let upscaled = upscaler(Settings::default()).unwrap();
    assert_eq!((upscaled.latency(), upscaled.tile_size()), (24, Size::new(720, 480)));
    assert_eq!(upscaled.trained_otherwise(), None);
    let other = Settings { window_length: Some(33), ..Settings::default() };
    assert_eq!(upscaler(other).unwrap().latency(), 32);
    let wide = Settings { scale: Some(4), tile_size: Some(0), ..Settings::default() };
    let size = Size::new(360, 120);
    let wide = Upscaler::new(Box::new(Plain), &manifest, &wide, size, Cancel::default()).unwrap();
    assert_eq!(wide.tile_size(), Size::new(1440, 480));
    assert_eq!(wide.trained_otherwise(), Some(Size::new(720, 480)));

    let refused = |settings: Settings, wanted: Setting, words: &str| match upscaler(settings).err()
    {
        Some(Error::Setting { setting, reason }) => {
            assert_eq!(setting, wanted, "{reason}");
            assert!(reason.contains(words), "{reason}");
        }
        other => panic!("expected an error about {wanted}, got {other:?}"),
    };
    let default = Settings::default;
    let length = |n| Settings { window_length: Some(n), ..default() };
    refused(length(24), Setting::WindowLength, "takes 1, 9, 17, 25, 33 or 41 frames, not 24");
    refused(length(49), Setting::WindowLength, "frames, not 49");
    let overlap = Settings { window_overlap: Some(5), ..default() };
    refused(overlap, Setting::WindowOverlap, "multiples of 4, not 5");
    let mode = Settings { window_mode: Some(WindowMode::Wavefront), ..default() };
    refused(mode, Setting::WindowMode, "use blend");
    let groups = Settings { decode_overlap: Some(1), ..default() };
    refused(groups, Setting::DecodeOverlap, "in one piece");
}
