// SPDX-License-Identifier: MPL-2.0

//! Finding, checking and opening the ONNX Runtime library, and the one environment of the process.

use std::ffi::CStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use once_cell::sync::OnceCell;
use ort::environment::Environment;
use ort::logging::LogLevel;
use parking_lot::RwLock;

use crate::bundle::user_data_dir;
use crate::error::{Error, Result};

/// The variable that names the library where the caller does not.
const VARIABLE: &str = "ORT_DYLIB_PATH";

/// The library in use and its environment. A process can have only one environment, so this one is
/// never dropped.
pub(super) struct Library {
    /// The file, or the name that the system loader resolved.
    pub path: PathBuf,
    /// As reported by the library, for instance `1.32.0`.
    pub version: String,
    /// What sessions are created in.
    pub environment: Environment,
}

static LIBRARY: OnceCell<Library> = OnceCell::new();

/// Importance of a message from ONNX Runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something failed.
    Error,
    /// Something is not as it should be.
    Warning,
    /// What is being done.
    Info,
    /// Everything.
    Debug,
}

impl Level {
    fn from_ort(level: LogLevel) -> Self {
        match level {
            LogLevel::Fatal | LogLevel::Error => Level::Error,
            LogLevel::Warning => Level::Warning,
            LogLevel::Info => Level::Info,
            LogLevel::Verbose => Level::Debug,
        }
    }

    fn to_ort(self) -> LogLevel {
        match self {
            Level::Error => LogLevel::Error,
            Level::Warning => LogLevel::Warning,
            Level::Info => LogLevel::Info,
            Level::Debug => LogLevel::Verbose,
        }
    }
}

/// Takes messages of ONNX Runtime. Called from any thread; must return quickly and must not panic.
pub type Logger = fn(Level, &str);

static LOGGER: RwLock<Option<(Level, Logger)>> = RwLock::new(None);

/// Sends the messages of ONNX Runtime of `threshold` and more important to `logger`. Without a
/// logger they are dropped: failures are reported as errors in any case. May be called at any time;
/// sessions keep the threshold that they began with.
pub fn set_logger(threshold: Level, logger: Logger) {
    *LOGGER.write() = Some((threshold, logger));
    if let Some(library) = LIBRARY.get() {
        library.environment.set_log_level(threshold.to_ort());
    }
}

fn log(level: LogLevel, _category: &str, _id: &str, _location: &str, message: &str) {
    report(Level::from_ort(level), message);
}

/// Sends a message to the logger.
pub(super) fn report(level: Level, message: &str) {
    // Copied out, so that no lock is held while foreign code runs.
    let logger = *LOGGER.read();
    if let Some((threshold, logger)) = logger
        && level <= threshold
    {
        logger(level, message);
    }
}

/// The library, found and opened at the first call. Looked for, in this order: `named`, the
/// variable `ORT_DYLIB_PATH`, the folder `gpu` inside each of the next ones, the folders `near`, the
/// folder `starsr` in the user's data folder, the system's loader. A library that is named by the
/// caller or the variable must work; the others are tried in turn.
pub(super) fn load(named: Option<&Path>, near: &[PathBuf]) -> Result<&'static Library> {
    let library = LIBRARY.get_or_try_init(|| find(named, near).and_then(open))?;
    if let Some(named) = named
        && resolve(named) != library.path
    {
        return Err(Error::LibraryInUse {
            loaded: library.path.clone(),
            asked: named.to_path_buf(),
        });
    }
    Ok(library)
}

fn find(named: Option<&Path>, near: &[PathBuf]) -> Result<Candidate> {
    if let Some(path) = named {
        return check(&resolve(path)).map_err(|e| e.into_error(path.display().to_string()));
    }
    if let Some(value) = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
        let path = Path::new(&value);
        return check(&resolve(path))
            .map_err(|e| e.into_error(format!("{}, named by {VARIABLE}", path.display())));
    }
    let user = user_data_dir().map(|folder| folder.join("starsr"));
    let mut failures = Vec::new();
    // One for GPUs also has the CPU, and lies apart, as GStreamer must not open the files beside it.
    let folders = || near.iter().chain(&user);
    let in_folders = folders()
        .map(|folder| folder.join("gpu"))
        .chain(folders().cloned())
        .flat_map(|folder| libraries_in(&folder));
    let of_loader = ["libonnxruntime.so", "libonnxruntime.so.1"].map(PathBuf::from);
    for path in in_folders.chain(of_loader) {
        match check(&path) {
            Ok(candidate) => return Ok(candidate),
            Err(e) => failures.push(format!("{}: {}", path.display(), e.reason())),
        }
    }
    let folders = folders().map(|folder| folder.display().to_string()).collect::<Vec<_>>();
    let reason =
        format!("looked in {} and asked the system ({})", folders.join(", "), failures.join("; "));
    Err(Error::LibraryMissing { reason })
}

/// The files in a folder that are named like the library, the plain name first, then the highest
/// version.
fn libraries_in(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<(Vec<u32>, PathBuf)> = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix("libonnxruntime.so"))
        else {
            continue;
        };
        if rest.is_empty() || rest == ".1" || rest.starts_with(".1.") {
            // The plain name sorts last and so comes out first.
            let version =
                rest.split('.').skip(1).map(|n| n.parse().unwrap_or(0)).collect::<Vec<_>>();
            let key = if rest.is_empty() { vec![u32::MAX] } else { version };
            found.push((key, resolve(&entry.path())));
        }
    }
    found.sort();
    found.dedup_by(|a, b| a.1 == b.1);
    found.into_iter().rev().map(|(_, path)| path).collect()
}

/// The file itself behind any links, since ONNX Runtime looks for its provider libraries beside it.
/// A bare name that is no file is left to the system's loader.
fn resolve(path: &Path) -> PathBuf {
    let bare = path.components().count() == 1 && !path.exists();
    if bare {
        path.to_path_buf()
    } else {
        fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf())
    }
}

struct Candidate {
    path: PathBuf,
    version: String,
    // Kept until ort has opened it too, so that it is not unmapped in between.
    _handle: libloading::Library,
}

enum Unfit {
    Unusable(String),
    TooOld { path: PathBuf, found: String },
}

impl Unfit {
    fn reason(&self) -> String {
        match self {
            Unfit::Unusable(reason) => reason.clone(),
            Unfit::TooOld { found, .. } => {
                format!("it is version {found}, at least {} is needed", needed())
            }
        }
    }

    fn into_error(self, name: String) -> Error {
        match self {
            Unfit::TooOld { path, found } => {
                Error::LibraryVersion { path, found, needed: needed() }
            }
            Unfit::Unusable(reason) => {
                Error::LibraryMissing { reason: format!("{name}: {reason}") }
            }
        }
    }
}

fn needed() -> String {
    format!("1.{}", ort::MINOR_VERSION)
}

/// Opens a library and asks for its version. ort panics where a library is not what it should be,
/// so it only gets one that passed here.
fn check(path: &Path) -> Result<Candidate, Unfit> {
    // SAFETY: the user chose this library or put it in a place for it; loading it runs its
    // initialisers.
    let handle =
        unsafe { libloading::Library::new(path) }.map_err(|e| Unfit::Unusable(chain(&e)))?;
    // SAFETY: the signature is the one in onnxruntime_c_api.h, unchanged since version 1.
    let entry = unsafe {
        handle.get::<unsafe extern "C" fn() -> *const ort::sys::OrtApiBase>(
            c"OrtGetApiBase".to_bytes_with_nul(),
        )
    }
    .map_err(|_| {
        Unfit::Unusable("it is a library, but not ONNX Runtime (it has no OrtGetApiBase)".into())
    })?;
    // SAFETY: as above; the returned table lives as long as the library.
    let base = unsafe { entry().as_ref() }.ok_or_else(|| {
        Unfit::Unusable("it gives no programming interface (OrtGetApiBase returned null)".into())
    })?;
    // SAFETY: the function takes nothing and returns a static string or null.
    let version = unsafe { (base.GetVersionString)() };
    if version.is_null() {
        return Err(Unfit::Unusable("it does not report its version".into()));
    }
    // SAFETY: not null, and a C string by contract.
    let version = unsafe { CStr::from_ptr(version) }.to_string_lossy().into_owned();
    let mut numbers = version.split('.').map(|n| n.parse::<u32>().ok());
    let new_enough = match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(1), Some(minor)) => minor >= ort::MINOR_VERSION,
        _ => false,
    };
    if !new_enough {
        return Err(Unfit::TooOld { path: path.to_path_buf(), found: version });
    }
    // SAFETY: the version is one that knows this interface; null means it was built without it.
    if unsafe { (base.GetApi)(ort::MINOR_VERSION) }.is_null() {
        let reason = format!("version {version} does not offer interface {}", ort::MINOR_VERSION);
        return Err(Unfit::Unusable(reason));
    }
    Ok(Candidate { path: path.to_path_buf(), version, _handle: handle })
}

fn open(candidate: Candidate) -> Result<Library> {
    let failed = |reason: String| Error::LibraryMissing {
        reason: format!("{}: {reason}", candidate.path.display()),
    };
    let environment = ort::init_from(&candidate.path)
        .map_err(|e| failed(chain(&e)))?
        .with_name("starsr")
        .with_telemetry(false)
        .with_logger(Arc::new(log))
        .build()
        .map_err(|e| failed(e.to_string()))?;
    let threshold = LOGGER.read().map_or(Level::Error, |(threshold, _)| threshold);
    environment.set_log_level(threshold.to_ort());
    Ok(Library { path: candidate.path.clone(), version: candidate.version, environment })
}

/// An error with its causes: libloading says only "dlopen failed" by itself.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
