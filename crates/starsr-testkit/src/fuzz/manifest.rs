// SPDX-License-Identifier: MPL-2.0

//! What a bundle brings along: its manifest, and the embeddings of prompts.

use std::path::Path;
use std::sync::OnceLock;

use arbitrary::Arbitrary;
use ndarray::{Array2, Array3, Array4, ArrayView4};
use starsr::Cancel;
use starsr::bundle::{Bundle, Manifest};
use starsr::model::{Denoiser, Embedded, Embedding, Model, Query, Samples};
use starsr::text::Prompts;
use starsr::{Error, Result};
use starsr::{Received, Settings, Size, Upscaler};
use tempfile::TempDir;
use toml::{Table, Value};

use crate::fixtures;

const MANIFESTS: [&str; 2] = [
    include_str!("../../../../models/nano/bundle.toml"),
    include_str!("../../fixtures/text/bundle.toml"),
];

/// What is read.
#[derive(Debug, Arbitrary)]
pub enum Input {
    /// Any text.
    Text(String),
    /// A manifest with some lines changed.
    Lines { text: bool, edits: Vec<(u8, Line)> },
    /// A manifest with some values changed, and the size of the frames.
    Values { text: bool, edits: Vec<(u8, Edit)>, size: (u8, u8) },
    /// A file of embeddings.
    Embeddings(Embeddings),
    /// Any file of embeddings.
    Bytes(Vec<u8>),
}

#[derive(Debug, Arbitrary)]
pub enum Line {
    Remove,
    Twice,
    Before(String),
    Instead(String),
    Value(String),
}

#[derive(Debug, Arbitrary)]
pub enum Edit {
    Remove,
    Unknown,
    Small(u8),
    Integer(i64),
    Float(f64),
    Text(String),
    Boolean(bool),
    Array(Vec<i64>),
    Table,
    /// One of the words that manifests know.
    Word(u8),
    /// Another file and its hash.
    File(String, bool),
}

const WORDS: [&str; 23] = [
    "bicubic",
    "bilinear",
    "edge",
    "white",
    "official",
    "blend",
    "wavefront",
    "fast",
    "normal",
    "none",
    "adain",
    "wavelet",
    "v",
    "logsnr-cosine-interp",
    "scaled-linear",
    "dpmpp-2m-sde",
    "vp-sde-dpmpp-2m",
    "wave",
    "concat",
    "cogvideox",
    "nano",
    "..",
    "/",
];

/// A safetensors file that is nearly right.
#[derive(Debug, Arbitrary)]
pub struct Embeddings {
    tensors: Vec<Tensor>,
    /// Added to the stated length of the header.
    header: i8,
    /// Bytes at the end that are missing, or too many.
    rest: i8,
    fill: Vec<u8>,
}

#[derive(Debug, Arbitrary)]
struct Tensor {
    name: u8,
    dtype: u8,
    shape: Vec<Side>,
    /// Added to the offset where it begins and where it ends.
    shift: (i8, i8),
}

#[derive(Debug, Arbitrary)]
enum Side {
    Context,
    Small(u8),
    Any(u64),
}

/// Reads it all; nothing panics, and what is accepted works.
pub fn run(input: &Input) {
    match input {
        Input::Text(text) => parse(text, (8, 8)),
        Input::Lines { text, edits } => {
            let mut lines: Vec<String> =
                MANIFESTS[usize::from(*text)].lines().map(String::from).collect();
            for (at, edit) in edits.iter().take(16) {
                let at = usize::from(*at) % lines.len().max(1);
                match edit {
                    _ if lines.is_empty() => {}
                    Line::Remove => drop(lines.remove(at)),
                    Line::Twice => lines.insert(at, lines[at].clone()),
                    Line::Before(line) => lines.insert(at, line.clone()),
                    Line::Instead(line) => lines[at].clone_from(line),
                    Line::Value(value) => {
                        let key = lines[at].split('=').next().unwrap_or_default().to_string();
                        lines[at] = format!("{key}= {value}");
                    }
                }
            }
            parse(&lines.join("\n"), (8, 8));
        }
        Input::Values { text, edits, size } => {
            let mut table: Table = MANIFESTS[usize::from(*text)].parse().unwrap();
            edits.iter().take(16).for_each(|(at, edit)| change(&mut table, *at, edit));
            parse(&table.to_string(), (usize::from(size.0), usize::from(size.1)));
        }
        Input::Embeddings(file) => embeddings(&file.bytes()),
        Input::Bytes(bytes) => embeddings(bytes),
    }
}

/// Changes one value; `at` counts them through all tables.
fn change(table: &mut Table, at: u8, edit: &Edit) {
    let count: usize = table.values().map(|v| v.as_table().map_or(1, Table::len)).sum();
    let mut at = usize::from(at) % count.max(1);
    let keys: Vec<String> = table.keys().cloned().collect();
    for key in keys {
        match table.get_mut(&key) {
            Some(Value::Table(inner)) if at < inner.len() && !inner.is_empty() => {
                let name = inner.keys().nth(at).cloned().unwrap_or_default();
                return apply(inner, name, edit);
            }
            Some(Value::Table(inner)) => at -= inner.len(),
            _ if at == 0 => return apply(table, key, edit),
            _ => at -= 1,
        }
    }
}

fn apply(table: &mut Table, key: String, edit: &Edit) {
    let value = match edit {
        Edit::Remove => return drop(table.remove(&key)),
        Edit::Unknown => return drop(table.insert(key + "_", Value::Boolean(true))),
        Edit::Small(value) => Value::Integer((*value).into()),
        Edit::Integer(value) => Value::Integer(*value),
        Edit::Float(value) => Value::Float(*value),
        Edit::Text(text) => Value::String(text.clone()),
        Edit::Boolean(value) => Value::Boolean(*value),
        Edit::Array(values) => Value::Array(values.iter().map(|v| Value::Integer(*v)).collect()),
        Edit::Table => Value::Table(Table::new()),
        Edit::Word(word) => Value::String(WORDS[usize::from(*word) % WORDS.len()].into()),
        Edit::File(file, valid) => {
            let mut data = Table::new();
            data.insert("file".into(), Value::String(file.clone()));
            data.insert(
                "sha256".into(),
                Value::String(if *valid { "0".repeat(64) } else { file.clone() }),
            );
            Value::Table(data)
        }
    };
    table.insert(key, value);
}

fn parse(text: &str, size: (usize, usize)) {
    match Manifest::parse(text, Path::new("bundle.toml")) {
        Ok(manifest) => restore(&manifest, size),
        Err(Error::Bundle { field, reason, .. }) => {
            assert!(!field.is_empty() && !reason.is_empty());
        }
        Err(other) => panic!("{other}"),
    }
}

/// Work that is not worth waiting for.
const MOST: u64 = 1 << 22;

/// Three frames through an upscaler of that manifest, unless they would take long.
fn restore(manifest: &Manifest, (width, height): (usize, usize)) {
    let size = Size { width, height };
    let settings = Settings::default();
    let model = Box::new(Zeros {
        channels: manifest.latent.channels,
        factor: manifest.latent.spatial_factor,
    });
    let upscaler = Upscaler::new(model, manifest, &settings, size, Cancel::default());
    let Ok(mut upscaler) = upscaler else { return };
    let large = upscaler.output_size();
    assert_eq!(large, size.enlarged(manifest.scale.default as usize).unwrap());
    if upscaler.memory_estimate().saturating_mul(manifest.sampler.steps.into()) > MOST {
        return;
    }
    if manifest.prompts.is_some() {
        upscaler.set_prompts(&Prompts::default()).unwrap();
    }
    for number in 0..3 {
        upscaler.send_frame(number, Array3::from_elem((3, height, width), 0.5)).unwrap();
    }
    upscaler.flush();
    for _ in 0..3 {
        match upscaler.receive_frame() {
            Ok(Received::Frame(frame)) => assert_eq!(frame.dim(), (3, large.height, large.width)),
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(upscaler.receive_frame(), Ok(Received::Drained)));
}

/// A model that takes every shape and knows nothing.
struct Zeros {
    channels: usize,
    factor: usize,
}

impl Denoiser for Zeros {
    fn predict(&mut self, query: &Query) -> Result<Vec<Samples>> {
        Ok(vec![Array4::zeros(query.x.dim()).into(); query.conditions.len()])
    }
}

impl Model for Zeros {
    fn encode(&mut self, pixels: ArrayView4<f32>) -> Result<Samples> {
        let (frames, _, height, width) = pixels.dim();
        Ok(Array4::zeros((frames, self.channels, height / self.factor, width / self.factor)).into())
    }

    fn decode(&mut self, latents: ArrayView4<f32>) -> Result<Samples> {
        let (frames, _, height, width) = latents.dim();
        Ok(Array4::zeros((frames, 3, height * self.factor, width * self.factor)).into())
    }

    fn embed(&mut self, texts: &[&str]) -> Result<Vec<Embedded>> {
        let zeros = || Embedding::new(Array2::zeros((77, 4)));
        Ok(texts.iter().map(|_| Embedded { embedding: zeros(), truncated: 0 }).collect())
    }
}

impl Embeddings {
    fn bytes(&self) -> Vec<u8> {
        const NAMES: [&str; 4] = ["tokens", "embeddings", "__metadata__", "other"];
        const DTYPES: [(&str, u64); 6] =
            [("I64", 8), ("F32", 4), ("F16", 2), ("BF16", 2), ("U8", 1), ("BOOL", 1)];
        let (mut header, mut length) = (Vec::new(), 0u64);
        for tensor in self.tensors.iter().take(4) {
            let (dtype, size) = DTYPES[usize::from(tensor.dtype) % DTYPES.len()];
            let sides = tensor.shape.iter().take(5).map(|side| match side {
                Side::Context => 77,
                Side::Small(side) => u64::from(*side % 8),
                Side::Any(side) => *side,
            });
            let sides: Vec<u64> = sides.collect();
            let bytes = sides.iter().fold(size, |n, side| n.saturating_mul(*side));
            let bytes = if bytes > 1 << 16 { 16 } else { bytes };
            let begin = length.saturating_add_signed(tensor.shift.0.into());
            let end = (length + bytes).saturating_add_signed(tensor.shift.1.into());
            let name = NAMES[usize::from(tensor.name) % NAMES.len()];
            header.push(format!(
                r#""{name}":{{"dtype":"{dtype}","shape":{sides:?},"data_offsets":[{begin},{end}]}}"#
            ));
            length += bytes;
        }
        let header = format!("{{{}}}", header.join(","));
        let stated = (header.len() as u64).saturating_add_signed(self.header.into());
        let mut file = [&stated.to_le_bytes(), header.as_bytes()].concat();
        let fill = if self.fill.is_empty() { &[0][..] } else { &self.fill };
        let data = length.saturating_add_signed(self.rest.into()) as usize;
        file.extend(fill.iter().cycle().take(data));
        file
    }
}

/// Reads `bytes` as the embeddings of a bundle.
fn embeddings(bytes: &[u8]) {
    static BUNDLE: OnceLock<(TempDir, String)> = OnceLock::new();
    let (bundle, manifest) = BUNDLE.get_or_init(|| {
        let copy = fixtures::copy_of(&fixtures::text());
        let hash = fixtures::sha256(&copy.path().join("embeddings.safetensors"));
        let manifest = std::fs::read_to_string(copy.path().join("bundle.toml")).unwrap();
        (copy, manifest.replace(&hash, "{}"))
    });
    let file = bundle.path().join("embeddings.safetensors");
    std::fs::write(&file, bytes).unwrap();
    let manifest = manifest.replace("{}", &fixtures::sha256(&file));
    std::fs::write(bundle.path().join("bundle.toml"), manifest).unwrap();
    match Bundle::open(bundle.path()).unwrap().embeddings() {
        Ok(embeddings) => {
            for (_, embedding) in &embeddings {
                assert_eq!(embedding.values().dim(), (77, embeddings[0].1.values().dim().1));
                assert!(embedding.values().iter().all(|v| v.is_finite()));
            }
        }
        Err(Error::Bundle { reason, .. }) => assert!(!reason.is_empty()),
        Err(other) => panic!("{other}"),
    }
}
