// SPDX-License-Identifier: MPL-2.0

//! Memory of NVIDIA GPUs: how much is free, and one pool that all sessions take theirs from.

use std::ffi::{CStr, CString, c_int, c_void};
use std::ptr;

use ort::AsPointer;
use ort::environment::Environment;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::sys::OrtApi;
use parking_lot::Mutex;

use super::runner::one_line;

/// The devices whose pool exists. ONNX Runtime keeps a pool until its environment ends.
static POOLS: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// Makes one pool of `device`'s memory for all sessions that ask for the environment's allocators:
/// graphs that run in turn take the memory of the largest, not of all together. The pool is CUDA's
/// own (`cudaMallocAsync`), which joins free pieces, where ONNX Runtime's arena does not.
///
/// Fails with a reason where this ONNX Runtime cannot; each session has an arena of its own then.
pub(super) fn share(environment: &Environment, device: u32) -> Result<(), String> {
    let mut pools = POOLS.lock();
    if !pools.contains(&device) {
        register(ort::api(), environment, device).map_err(|e| one_line(&e))?;
        pools.push(device);
    }
    Ok(())
}

fn register(api: &OrtApi, environment: &Environment, device: u32) -> ort::Result<()> {
    let memory = MemoryInfo::new(
        AllocationDevice::CUDA,
        device as i32,
        AllocatorType::Device,
        MemoryType::Default,
    )?;
    // Kept by the pool between runs, for as much as it ever needed at once.
    let options = [(c"use_cuda_mempool", 1), (c"cuda_mempool_release_threshold", usize::MAX >> 1)];
    let (keys, values): (Vec<_>, Vec<_>) =
        options.iter().map(|&(key, value)| (key.as_ptr(), value)).unzip();
    let id = CString::new(device.to_string()).unwrap_or_default();
    let (id_key, id_value) = ([c"device_id".as_ptr()], [id.as_ptr()]);
    let mut arena = ptr::null_mut();
    // SAFETY: the functions are those of the loaded library; all pointers live until they return,
    // and the environment copies what it keeps.
    unsafe {
        let status =
            (api.CreateArenaCfgV2)(keys.as_ptr(), values.as_ptr(), keys.len(), &raw mut arena);
        ort::Error::result_from_status(status)?;
        let status = (api.CreateAndRegisterAllocatorV2)(
            environment.ptr().cast_mut(),
            c"CUDAExecutionProvider".as_ptr(),
            memory.ptr(),
            arena,
            id_key.as_ptr(),
            id_value.as_ptr(),
            id_key.len(),
        );
        (api.ReleaseArenaCfg)(arena);
        ort::Error::result_from_status(status)
    }
}

/// The driver's interface, in all versions since CUDA 4.
const DRIVER: &str = "libcuda.so.1";

/// The driver's context of each device that was asked about. They stay, as the provider uses them
/// too.
static CONTEXTS: Mutex<Vec<(u32, Context)>> = Mutex::new(Vec::new());

/// Bytes of `device`'s memory that are free; `None` where the driver does not tell.
pub(super) fn free(device: u32) -> Option<u64> {
    let mut contexts = CONTEXTS.lock();
    if contexts.iter().all(|(known, _)| *known != device) {
        contexts.push((device, Context::of(device)?));
    }
    contexts.iter().find(|(known, _)| *known == device)?.1.free()
}

/// The primary context of a device.
struct Context {
    driver: Driver,
    handle: *mut c_void,
}

// SAFETY: the driver takes a context's handle from any thread.
unsafe impl Send for Context {}

impl Context {
    fn of(device: u32) -> Option<Self> {
        let device = c_int::try_from(device).ok()?;
        let (mut number, mut handle) = (0 as c_int, ptr::null_mut::<c_void>());
        // SAFETY: NVIDIA's driver library has no initialisers of note; the signatures are those of
        // cuda.h, and each call gets pointers to values that outlive it.
        unsafe {
            let driver = Driver(libloading::Library::new(DRIVER).ok()?);
            driver.one(c"cuInit", 0 as c_int)?;
            driver.two(c"cuDeviceGet", &raw mut number, device)?;
            driver.two(c"cuDevicePrimaryCtxRetain", &raw mut handle, number)?;
            Some(Self { driver, handle })
        }
    }

    fn free(&self) -> Option<u64> {
        let (mut free, mut total, mut popped) = (0_usize, 0_usize, ptr::null_mut::<c_void>());
        // SAFETY: as above; the context is retained.
        unsafe {
            self.driver.one(c"cuCtxPushCurrent_v2", self.handle)?;
            let answer = self.driver.two(c"cuMemGetInfo_v2", &raw mut free, &raw mut total);
            let _ = self.driver.one(c"cuCtxPopCurrent_v2", &raw mut popped);
            answer.map(|()| free as u64)
        }
    }
}

/// Functions of the driver by name; `None` where one is missing or fails.
struct Driver(libloading::Library);

impl Driver {
    /// # Safety
    /// The function takes one argument of type `A`.
    unsafe fn one<A>(&self, name: &CStr, a: A) -> Option<()> {
        // SAFETY: by contract.
        unsafe {
            let call = self.0.get::<unsafe extern "C" fn(A) -> c_int>(name.to_bytes_with_nul());
            (call.ok()?(a) == 0).then_some(())
        }
    }

    /// # Safety
    /// The function takes two arguments of types `A` and `B`.
    unsafe fn two<A, B>(&self, name: &CStr, a: A, b: B) -> Option<()> {
        // SAFETY: by contract.
        unsafe {
            let call = self.0.get::<unsafe extern "C" fn(A, B) -> c_int>(name.to_bytes_with_nul());
            (call.ok()?(a, b) == 0).then_some(())
        }
    }
}
