// SPDX-License-Identifier: MPL-2.0

//! Providers from libraries of their own: which library, which provider in it, which device, and
//! its options.

use super::ep_library::{self, Device, Kind};
use super::library::Library;
use super::options::Options;
use crate::error::{Error, Result};
use crate::names::{Provider, Setting};

/// The part of a library's name that tells its provider, and the provider's own name.
fn known(provider: Provider) -> Option<(&'static str, &'static str)> {
    Some(match provider {
        Provider::OpenVino => ("openvino", "OpenVINOExecutionProvider"),
        Provider::TensorRtRtx => ("nv_tensorrt_rtx", "NvTensorRTRTXExecutionProvider"),
        Provider::WebGpu => ("webgpu", "WebGpuExecutionProvider"),
        Provider::Auto | Provider::Cpu | Provider::Cuda | Provider::TensorRt | Provider::Plugin => {
            return None;
        }
    })
}

/// Checks that the options that name a provider go together.
pub(super) fn check(options: &Options) -> Result<()> {
    let provider = options.provider;
    if options.provider_name.is_some() && provider != Provider::Plugin {
        let reason = format!("only provider plugin takes a name, not {provider}");
        return Err(Error::setting(Setting::ProviderName, reason));
    }
    if options.provider_library.is_some() && !provider.has_library() {
        let reason = format!("provider {provider} is part of ONNX Runtime; use plugin for another");
        return Err(Error::setting(Setting::ProviderLibrary, reason));
    }
    let takes_options =
        provider.has_library() || matches!(provider, Provider::Cuda | Provider::TensorRt);
    if !options.provider_options.is_empty() && !takes_options {
        let reason = format!("provider {provider} takes none; name another, such as cuda");
        return Err(Error::setting(Setting::ProviderOptions, reason));
    }
    let unfit = |text: &str| text.is_empty() || text.contains('\0');
    if options.provider_options.iter().any(|(key, value)| unfit(key) || value.contains('\0')) {
        let reason = "a name must not be empty, and no text may hold a zero byte";
        return Err(Error::setting(Setting::ProviderOptions, reason));
    }
    Ok(())
}

/// The device that `options` ask for, and the options for its provider.
pub(super) fn choose(
    library: &Library,
    options: &Options,
) -> Result<(Device, Vec<(String, String)>)> {
    let fail = |reason| Error::Provider { provider: options.provider, reason };
    let devices = devices(library, options).map_err(fail)?;
    let list = || {
        let list = devices.iter().enumerate().map(|(number, device)| format!("{number}: {device}"));
        list.collect::<Vec<_>>().join(", ")
    };
    let device = devices.get(options.device as usize).ok_or_else(|| {
        let reason =
            format!("{} has no device {}, only {}", devices[0].provider, options.device, list());
        Error::setting(Setting::Device, reason)
    })?;
    let mut settings = settings(device, options);
    settings.retain(|(key, _)| options.provider_options.iter().all(|(known, _)| known != key));
    settings.extend_from_slice(&options.provider_options);
    Ok((*device, settings))
}

/// The devices of the provider that is asked for, at least one. Fails with a sentence.
fn devices(library: &Library, options: &Options) -> Result<Vec<Device>, String> {
    let known = known(options.provider);
    let name = known.map(|(_, name)| name).or(options.provider_name.as_deref());
    let found = match (&options.provider_library, known, name) {
        (Some(path), ..) => ep_library::register(library, path)?,
        (None, Some((stem, _)), _) => {
            let path = ep_library::find(library, &options.near, stem).map_err(|missing| {
                let package = format!("onnxruntime-ep-{}", stem.replace('_', "-"));
                format!("{missing}; install the Python package {package} in one of them")
            })?;
            ep_library::register(library, &path)?
        }
        (None, None, Some(name)) => by_name(library, options, name)?,
        (None, None, None) => {
            return Err("neither its name nor its library is given; give one of them".into());
        }
    };
    of_name(found, name)
}

/// The devices of a library that is registered already or has a usual name.
fn by_name(library: &Library, options: &Options, name: &str) -> Result<Vec<Device>, String> {
    let registered = ep_library::registered();
    if registered.iter().any(|device| matches(device, name)) {
        return Ok(registered);
    }
    let stem = name.to_lowercase();
    let stem = stem.strip_suffix("executionprovider").unwrap_or(&stem);
    let fits =
        !stem.is_empty() && stem.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
    let path = if fits {
        ep_library::find(library, &options.near, &stem.replace('-', "_"))
    } else {
        Err("it is not the name of a provider".into())
    };
    let path = path.map_err(|missing| {
        let others = names(&registered);
        let others = if others.is_empty() { "none".into() } else { others };
        format!(
            "{name} is not known ({missing}; registered are: {others}); give its library, or use \
             one of cpu, cuda, tensorrt, openvino, tensorrt-rtx, webgpu"
        )
    })?;
    ep_library::register(library, &path)
}

/// Those of `devices` that belong to the provider of this name, or without one to the only
/// provider there is.
fn of_name(devices: Vec<Device>, name: Option<&str>) -> Result<Vec<Device>, String> {
    let Some(first) = devices.first() else {
        return Err("its library found no device here that it can run on; check that there is \
                    one, and its driver"
            .into());
    };
    let name = match name {
        Some(name) => name,
        None if devices.iter().all(|device| device.provider == first.provider) => first.provider,
        None => {
            return Err(format!("its library holds {}; give the name of one", names(&devices)));
        }
    };
    let found: Vec<Device> =
        devices.iter().filter(|device| matches(device, name)).copied().collect();
    if found.is_empty() {
        let held = names(&devices);
        return Err(format!("its library holds no {name}, only {held}; give the name of one"));
    }
    Ok(found)
}

/// Whether the device belongs to the provider of this name, with or without its usual ending.
fn matches(device: &Device, name: &str) -> bool {
    let provider = device.provider;
    let short = provider.strip_suffix("ExecutionProvider").unwrap_or(provider);
    provider.eq_ignore_ascii_case(name) || short.eq_ignore_ascii_case(name)
}

/// The providers of some devices, each once.
fn names(devices: &[Device]) -> String {
    let mut names: Vec<&str> = devices.iter().map(|device| device.provider).collect();
    names.dedup();
    names.join(", ")
}

/// The options of this crate for a provider that it knows.
fn settings(device: &Device, options: &Options) -> Vec<(String, String)> {
    let section = match (options.provider, device.kind) {
        (Provider::OpenVino, Kind::Cpu) => "CPU",
        (Provider::OpenVino, Kind::Gpu) => "GPU",
        _ => return Vec::new(),
    };
    // OpenVINO itself would take 16-bit floats where the device has them.
    let mut values = vec![r#""INFERENCE_PRECISION_HINT":"f32""#.to_string()];
    if device.kind == Kind::Cpu && options.threads > 0 {
        values.push(format!(r#""INFERENCE_NUM_THREADS":"{}""#, options.threads));
    }
    vec![("load_config".into(), format!(r#"{{"{section}":{{{}}}}}"#, values.join(",")))]
}
