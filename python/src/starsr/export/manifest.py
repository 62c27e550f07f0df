# SPDX-License-Identifier: MPL-2.0
"""The manifest of a STAR bundle."""

from typing import Any

from starsr.export.graphs import CHANNELS_FIRST
from starsr.models.schedule import MANIFEST
from starsr.models.star import text
from starsr.models.star.vae import VaeConfig

EMBEDDINGS = "embeddings.safetensors"
TOKENIZER = "spiece.model"
LICENCE = (
    "STAR: MIT; autoencoder: Stability AI's licence of Stable Video Diffusion; text encoder: MIT"
)

#: Runs of the autoencoder on a CPU: the decoder's are the authors'.
VAE = {"frames_per_encode": 1, "frames_per_decode": 3, "decode_overlap": 1}
#: Elements of a tensor that many kernels for NVIDIA GPUs can count.
COUNT = 2**31 - 1
#: Runs of fp16 on a GPU. The bytes a pixel and frame are estimates, not yet measured; the widest
#: tensors have 256 channels at full size in the autoencoder, 960 a latent in the networks.
VAE_CHANNELS_LAST = {
    "frames_per_encode": 8,
    "frames_per_decode": 8,
    "decode_overlap": 1,
    "encode_memory": 1900,
    "decode_memory": 1900,
    "run_pixels": COUNT // 256,
}
CANVAS_RUN = {"tile_memory": 512, "run_pixels": COUNT // 960 * 64}


def canvas(kind: str) -> dict[str, Any]:
    """Return the rules for the size of a canvas, which the networks' scales require.

    `official` fills frames up to 1280x720 with white, as the authors' program does; `compact` takes
    the smallest legal size and repeats the edge. docs/star.md explains the legal sizes.
    """
    official = kind == "official"
    return {
        "upscale": "bilinear",
        "padding": "official" if official else "edge",
        "height": {"multiple": 64, "offset": 16, "minimum": 720 if official else 80},
        "width": {"multiple": 64, "offset": 0, "minimum": 1280 if official else 64},
    }


def manifest(
    name: str,
    version: str,
    provenance: str,
    vae: VaeConfig,
    canvas_kind: str,
    layout: str = CHANNELS_FIRST,
) -> dict[str, Any]:
    """Return the manifest of a STAR bundle without its files.

    The defaults of the sampler are the authors'.
    """
    # Channels-first bundles do not say so: earlier versions of the reader know no layout.
    first = layout == CHANNELS_FIRST
    stated = {} if first else {"layout": layout}
    return {
        "format": 1,
        "name": name,
        "version": version,
        "licence": LICENCE,
        "provenance": provenance,
        "training_data": "I2VGen-XL's and VEnhancer's; STAR: OpenVid-1M, degraded "
        "(arXiv 2501.02976, section 4.1)",
        **stated,
        "shared_prefix": True,
        "scale": {"default": 4, "minimum": 1, "maximum": 8},
        "latent": {
            "channels": vae.latent_channels,
            "spatial_factor": vae.spatial_factor,
            "scaling_factor": vae.scaling_factor,
        },
        "canvas": {**canvas(canvas_kind), **({} if first else CANVAS_RUN)},
        "window": {"mode": "blend", "length": 32, "overlap": 8, "minimum": 1, "maximum": 64},
        "schedule": MANIFEST,
        "sampler": {
            "mode": "fast",
            "steps": 15,
            "guidance_scale": 7.5,
            "guidance_rescale": 0.2,
            "color_fix": "adain",
            "strength": 1.0,
        },
        "vae": VAE if first else VAE_CHANNELS_LAST,
        "prompts": {
            "default": text.DEFAULT,
            "suffix": text.SUFFIX,
            "negative": text.NEGATIVE,
        },
    }


def prompts() -> list[str]:
    """Return the texts whose embeddings are part of a bundle.

    They are the default prompt in each combination with the suffix, and the negative prompt.
    """
    joined = [f"{text.DEFAULT} {text.SUFFIX}", text.DEFAULT + text.SUFFIX]
    return [*joined, text.DEFAULT, text.SUFFIX, text.NEGATIVE]
