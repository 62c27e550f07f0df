// SPDX-License-Identifier: MPL-2.0

//! Memory of NVIDIA GPUs: how much is free, and one pool that all sessions take theirs from.

use std::ffi::{CStr, CString, c_int, c_void};
use std::ptr;

use ort::AsPointer;
use ort::environment::Environment;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::sys::{OrtApi, OrtStatusPtr};
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
        result((api.CreateArenaCfgV2)(keys.as_ptr(), values.as_ptr(), keys.len(), &raw mut arena))?;
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
        result(status)
    }
}

/// # Safety
/// `status` comes from a function of ONNX Runtime and is not used again.
unsafe fn result(status: OrtStatusPtr) -> ort::Result<()> {
    // SAFETY: by contract.
    unsafe { ort::Error::result_from_status(status) }
}

/// The driver's interface, in all versions since CUDA 4.
const DRIVER: &str = "libcuda.so.1";

/// Bytes of `device`'s memory that are free; `None` where the driver does not tell.
pub(super) fn free(device: u32) -> Option<u64> {
    let device = c_int::try_from(device).ok()?;
    // SAFETY: NVIDIA's driver library has no initialisers of note; the signatures are those of
    // cuda.h, and each call gets pointers to values that outlive it.
    unsafe {
        let driver = libloading::Library::new(DRIVER).ok()?;
        let call = Driver(&driver);
        call.one(c"cuInit", 0 as c_int)?;
        let (mut handle, mut context) = (0 as c_int, ptr::null_mut::<c_void>());
        call.two(c"cuDeviceGet", &raw mut handle, device)?;
        call.two(c"cuDevicePrimaryCtxRetain", &raw mut context, handle)?;
        let mut bytes = None;
        if call.one(c"cuCtxPushCurrent_v2", context).is_some() {
            let (mut free, mut total) = (0_usize, 0_usize);
            bytes =
                call.two(c"cuMemGetInfo_v2", &raw mut free, &raw mut total).map(|()| free as u64);
            let _ = call.one(c"cuCtxPopCurrent_v2", &raw mut context);
        }
        // Driver and context stay: the provider uses them too.
        std::mem::forget(driver);
        bytes
    }
}

/// Functions of the driver by name; `None` where one is missing or fails.
struct Driver<'a>(&'a libloading::Library);

impl Driver<'_> {
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
