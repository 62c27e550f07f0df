// SPDX-License-Identifier: MPL-2.0

//! Names that errors use: the parts of a bundle, the execution providers, the settings.

/// An enum whose values have names, which `Display` writes.
macro_rules! named {
    ($(#[$about:meta])* pub enum $name:ident { $($(#[$doc:meta])* $value:ident = $text:literal,)* }) => {
        $(#[$about])*
        pub enum $name {
            $($(#[$doc])* $value,)*
        }

        impl $name {
            /// The value's name, which `Display` writes too.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$value => $text,)*
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

named! {
    /// What a graph of a bundle is for. Its name is its key in the manifest.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub enum Role {
        /// Pixels to latents.
        VaeEncoder = "vae_encoder",
        /// Latents to pixels.
        VaeDecoder = "vae_decoder",
        /// Tokens to an embedding.
        TextEncoder = "text_encoder",
        /// Noisy and low-quality latents to controls.
        ControlNet = "controlnet",
        /// Timestep to the modulation of the denoiser's layers.
        Modulation = "modulation",
        /// Noisy latents, and controls or low-quality latents, to the prediction.
        Denoiser = "denoiser",
        /// Frames to enlarged frames, in one evaluation.
        Upscaler = "upscaler",
    }
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 7] = [
        Self::VaeEncoder,
        Self::VaeDecoder,
        Self::TextEncoder,
        Self::ControlNet,
        Self::Modulation,
        Self::Denoiser,
        Self::Upscaler,
    ];
}

named! {
    /// An execution provider of ONNX Runtime: what computes the graphs.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub enum Provider {
        /// The first of TensorRT, CUDA and CPU that works.
        #[default]
        Auto = "auto",
        /// The processor.
        Cpu = "cpu",
        /// An NVIDIA GPU.
        Cuda = "cuda",
        /// An NVIDIA GPU through TensorRT, and through CUDA for operators that TensorRT lacks.
        TensorRt = "tensorrt",
        /// Intel's processors and GPUs through OpenVINO, from a library of its own.
        OpenVino = "openvino",
        /// An NVIDIA RTX GPU through TensorRT for RTX, from a library of its own.
        TensorRtRtx = "tensorrt-rtx",
        /// Any GPU through WebGPU, from a library of its own.
        WebGpu = "webgpu",
        /// Another provider from a library of its own.
        Plugin = "plugin",
    }
}

impl Provider {
    /// Whether it comes from a library of its own, and is no part of ONNX Runtime.
    pub fn has_library(self) -> bool {
        matches!(self, Self::OpenVino | Self::TensorRtRtx | Self::WebGpu | Self::Plugin)
    }
}

named! {
    /// What the graphs compute in.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub enum Precision {
        /// 8-bit integers where the bundle has graphs for them and the processor gains by them.
        #[default]
        Auto = "auto",
        /// Floats, as the bundle's graphs have them.
        Float = "float",
        /// 16-bit floats.
        Fp16 = "fp16",
        /// 8-bit integers.
        Int8 = "int8",
    }
}

named! {
    /// The setting that an error is about: a field of [`Settings`], [`Prompts`] or [`Options`].
    ///
    /// [`Settings`]: crate::Settings
    /// [`Prompts`]: crate::text::Prompts
    /// [`Options`]: crate::runtime::Options
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    #[non_exhaustive]
    pub enum Setting {
        /// Upscaling factor.
        Scale = "scale",
        /// Frames in a window.
        WindowLength = "window_length",
        /// Frames that neighbouring windows share.
        WindowOverlap = "window_overlap",
        /// How windows are joined.
        WindowMode = "window_mode",
        /// Model evaluations.
        Steps = "steps",
        /// Spacing of the timesteps.
        SamplerMode = "sampler_mode",
        /// Strength of the guidance.
        GuidanceScale = "guidance_scale",
        /// How far guidance restores the standard deviation.
        GuidanceRescale = "guidance_rescale",
        /// The part of the evaluations that is guided.
        GuidanceInterval = "guidance_interval",
        /// Whether both halves of a guided prediction are computed together.
        GuidanceBatching = "guidance_batching",
        /// What the video shows.
        Prompt = "prompt",
        /// What the video should not look like.
        NegativePrompt = "negative_prompt",
        /// How the bundle's suffix follows the prompt.
        PromptSuffix = "prompt_suffix",
        /// The timestep at which sampling starts.
        NoiseLevel = "noise_level",
        /// Mean or sample of the encoder's posterior.
        Posterior = "posterior",
        /// Frames that neighbouring runs of the decoder share.
        DecodeOverlap = "decode_overlap",
        /// Colour correction.
        ColorFix = "color_fix",
        /// Blend of the model's picture with the plain upscale.
        Strength = "strength",
        /// Share of the weights that were trained for detail.
        Detail = "detail",
        /// Largest side of a spatial tile.
        TileSize = "tile_size",
        /// Pixels that neighbouring tiles share.
        TileOverlap = "tile_overlap",
        /// Name of a provider from a library.
        ProviderName = "provider_name",
        /// Library of a provider.
        ProviderLibrary = "provider_library",
        /// Options of a provider.
        ProviderOptions = "provider_options",
        /// Number of the GPU.
        Device = "device",
        /// Folder of TensorRT's engines.
        CacheDir = "cache_dir",
        /// Floats or integers.
        Precision = "precision",
        /// CPU threads.
        Threads = "threads",
    }
}
