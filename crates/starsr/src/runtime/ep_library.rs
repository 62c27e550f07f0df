// SPDX-License-Identifier: MPL-2.0

//! Libraries of execution providers, which ONNX Runtime loads at run time: finding, checking and
//! registering one, and its devices.

use std::ffi::{CStr, CString, c_char, c_void};
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use ort::AsPointer;
use ort::session::builder::SessionBuilder;
use ort::sys::{OrtApi, OrtApiBase, OrtEnv, OrtEpDevice, OrtSessionOptions, OrtStatusPtr};
use parking_lot::Mutex;

use super::library::{Library, chain};
use super::runner::one_line;
use crate::bundle::user_data_dir;

/// The first ONNX Runtime 1.x for which providers come as libraries of their own.
const SINCE: u32 = 23;

/// The functions of `OrtApi` for such libraries. They are declared here because asking ort for them
/// would make ort refuse every older ONNX Runtime; entries of `OrtApi` never move.
#[repr(C)]
struct Functions {
    _before: [*const c_void; 301],
    register: unsafe extern "system" fn(*mut OrtEnv, *const c_char, *const c_char) -> OrtStatusPtr,
    _unregister: *const c_void,
    devices: unsafe extern "system" fn(
        *const OrtEnv,
        *mut *const *const OrtEpDevice,
        *mut usize,
    ) -> OrtStatusPtr,
    append: unsafe extern "system" fn(
        *mut OrtSessionOptions,
        *mut OrtEnv,
        *const *const OrtEpDevice,
        usize,
        *const *const c_char,
        *const *const c_char,
        usize,
    ) -> OrtStatusPtr,
    _policies: [*const c_void; 2],
    hardware_type: unsafe extern "system" fn(*const c_void) -> i32,
    _vendor_id: *const c_void,
    hardware_vendor: unsafe extern "system" fn(*const c_void) -> *const c_char,
    _device_id_and_metadata: [*const c_void; 2],
    provider_name: unsafe extern "system" fn(*const OrtEpDevice) -> *const c_char,
    _vendor_metadata_options: [*const c_void; 3],
    hardware: unsafe extern "system" fn(*const OrtEpDevice) -> *const c_void,
}

const _: () = assert!(size_of::<OrtApi>() <= size_of::<Functions>(), "ort must stay at api-17");

impl Functions {
    fn of(library: &Library) -> Result<&'static Self, String> {
        let too_old = || {
            format!(
                "{} is ONNX Runtime {}, but libraries of providers need 1.{SINCE} or newer; \
                 install a newer one",
                library.path.display(),
                library.version
            )
        };
        // SAFETY: it is open already, so that no initialiser runs.
        let handle = unsafe { libloading::Library::new(&library.path) }.map_err(|e| chain(&e))?;
        // SAFETY: `library::check` found it; the signature is the one in onnxruntime_c_api.h.
        let entry = unsafe {
            handle.get::<unsafe extern "C" fn() -> *const OrtApiBase>(
                c"OrtGetApiBase".to_bytes_with_nul(),
            )
        };
        // SAFETY: as above; ort keeps the library open for good.
        let base = unsafe { entry.map_err(|e| chain(&e))?().as_ref() }.ok_or_else(too_old)?;
        // SAFETY: null, or a table that has all entries up to version `SINCE`.
        unsafe { (base.GetApi)(SINCE).cast::<Self>().as_ref() }.ok_or_else(too_old)
    }
}

/// A device on which a provider of a library can compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Device {
    // Kept by the environment, which is never dropped.
    pointer: *const OrtEpDevice,
    /// For instance `OpenVINOExecutionProvider`.
    pub provider: &'static str,
    pub kind: Kind,
    vendor: &'static str,
}

// SAFETY: ONNX Runtime never changes a device.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

/// What a device is. The order is the one in which they are numbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Gpu,
    Cpu,
    Npu,
    Other,
}

impl fmt::Display for Device {
    /// For instance `CPU (Intel)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Gpu => "GPU",
            Kind::Cpu => "CPU",
            Kind::Npu => "NPU",
            Kind::Other => "device",
        };
        write!(f, "{kind} ({})", self.vendor)
    }
}

impl Device {
    /// Lets a session run on this device, with options for the provider.
    pub fn add_to(
        &self,
        builder: &mut SessionBuilder,
        library: &Library,
        options: &[(String, String)],
    ) -> ort::Result<()> {
        let functions = Functions::of(library).map_err(ort::Error::new)?;
        let texts = |part: fn(&(String, String)) -> &str| {
            let texts = options.iter().map(|option| CString::new(part(option)));
            texts.collect::<Result<Vec<_>, _>>().map_err(ort::Error::wrap)
        };
        let (names, values) = (texts(|option| &option.0)?, texts(|option| &option.1)?);
        let pointers = |texts: &[CString]| texts.iter().map(|t| t.as_ptr()).collect::<Vec<_>>();
        // SAFETY: all pointers live until the call returns; ONNX Runtime copies the texts.
        unsafe {
            ort::Error::result_from_status((functions.append)(
                builder.ptr_mut(),
                library.environment.ptr().cast_mut(),
                &raw const self.pointer,
                1,
                pointers(&names).as_ptr(),
                pointers(&values).as_ptr(),
                options.len(),
            ))
        }
    }
}

/// The libraries that this process has registered, with their devices.
static REGISTERED: Mutex<Vec<(PathBuf, Vec<Device>)>> = Mutex::new(Vec::new());

/// The devices of all libraries that this process has registered.
pub(super) fn registered() -> Vec<Device> {
    REGISTERED.lock().iter().flat_map(|(_, devices)| devices).copied().collect()
}

/// The devices of the providers in the library at `path`, GPUs first; the library is registered
/// with ONNX Runtime unless it is already, and stays so. Fails with a sentence.
pub(super) fn register(library: &Library, path: &Path) -> Result<Vec<Device>, String> {
    let functions = Functions::of(library)?;
    let path = fs::canonicalize(path)
        .map_err(|e| format!("{} cannot be opened: {e}; name another", path.display()))?;
    let mut all = REGISTERED.lock();
    if let Some((_, devices)) = all.iter().find(|(known, _)| *known == path) {
        return Ok(devices.clone());
    }
    check(&path)?;
    let known = devices(library, functions)?;
    // No text from outside: a name that ends in ".virtual" would have a meaning.
    let name = CString::new(format!("starsr-{}", all.len())).expect("it has no NUL");
    let file = CString::new(path.as_os_str().as_bytes()).expect("a file's name has no NUL");
    // SAFETY: the environment and both texts live until the call returns.
    unsafe {
        let environment = library.environment.ptr().cast_mut();
        let status = (functions.register)(environment, name.as_ptr(), file.as_ptr());
        ort::Error::result_from_status(status)
    }
    .map_err(|e| {
        format!(
            "{} does not work with ONNX Runtime {}: {}; install versions that go together",
            path.display(),
            library.version,
            one_line(&e)
        )
    })?;
    let mut new = devices(library, functions)?;
    new.retain(|device| !known.contains(device));
    new.sort_by_key(|device| device.kind);
    all.push((path, new.clone()));
    Ok(new)
}

/// Checks that a file is a library of providers, before ONNX Runtime gets it.
fn check(path: &Path) -> Result<(), String> {
    // SAFETY: the user chose this library or put it in a place for it; loading it runs its
    // initialisers.
    let handle = unsafe { libloading::Library::new(path) }.map_err(|e| {
        format!(
            "{} cannot be opened: {}; if that is a library that it needs, install it, or set \
             LD_LIBRARY_PATH to its folder",
            path.display(),
            chain(&e)
        )
    })?;
    // SAFETY: the symbol is only looked for.
    unsafe { handle.get::<*const c_void>(c"CreateEpFactories".to_bytes_with_nul()) }.map_err(|_| {
        format!(
            "{} is a library, but not one of execution providers (it has no CreateEpFactories); \
             name another",
            path.display()
        )
    })?;
    Ok(())
}

/// All devices that ONNX Runtime knows in this process.
fn devices(library: &Library, functions: &'static Functions) -> Result<Vec<Device>, String> {
    let (mut first, mut count) = (std::ptr::null(), 0);
    // SAFETY: the environment lives for good. The list holds until the next registration, which
    // waits for the caller's lock.
    let pointers = unsafe {
        let status = (functions.devices)(library.environment.ptr(), &raw mut first, &raw mut count);
        ort::Error::result_from_status(status).map_err(|e| one_line(&e))?;
        if first.is_null() { &[] } else { std::slice::from_raw_parts(first, count) }
    };
    let device = |&pointer: &*const OrtEpDevice| {
        // SAFETY: the pointer is one of the list; the texts live as long as the device.
        unsafe {
            let hardware = (functions.hardware)(pointer);
            Device {
                pointer,
                provider: text((functions.provider_name)(pointer)),
                vendor: text((functions.hardware_vendor)(hardware)),
                kind: match (functions.hardware_type)(hardware) {
                    0 => Kind::Cpu,
                    1 => Kind::Gpu,
                    2 => Kind::Npu,
                    _ => Kind::Other,
                },
            }
        }
    };
    Ok(pointers.iter().filter(|pointer| !pointer.is_null()).map(device).collect())
}

/// A text of ONNX Runtime; empty where there is none.
///
/// # Safety
/// `text` must be null or a C string that lives for good.
unsafe fn text(text: *const c_char) -> &'static str {
    if text.is_null() {
        return "";
    }
    // SAFETY: not null; the rest is the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_str().unwrap_or_default()
}

/// The file that holds a provider whose libraries have `stem` in their names, such as `openvino`.
/// Looked for beside ONNX Runtime, in the folders `near`, in the folder `starsr` of the user's data
/// folder, and in the folder of the Python package inside each of these. Fails with a sentence.
pub(super) fn find(library: &Library, near: &[PathBuf], stem: &str) -> Result<PathBuf, String> {
    let files = ["_plugin.so", ".so"].map(|end| format!("libonnxruntime_providers_{stem}{end}"));
    let package = format!("onnxruntime_ep_{stem}");
    let beside = library.path.parent().filter(|folder| folder.is_absolute());
    let user = user_data_dir().map(|folder| folder.join("starsr"));
    let mut folders: Vec<&Path> = Vec::new();
    for folder in beside.into_iter().chain(near.iter().chain(&user).map(PathBuf::as_path)) {
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    folders
        .iter()
        .flat_map(|folder| [folder.to_path_buf(), folder.join(&package)])
        .flat_map(|folder| files.each_ref().map(|file| folder.join(file)))
        .find(|path| path.is_file())
        .ok_or_else(|| {
            let folders = folders.iter().map(|folder| folder.display().to_string());
            format!(
                "neither {} is in {}, nor in a folder {package} there",
                files.join(" nor "),
                folders.collect::<Vec<_>>().join(", ")
            )
        })
}
