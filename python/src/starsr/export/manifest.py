# SPDX-License-Identifier: MPL-2.0
"""The manifest of a STAR bundle."""

from typing import Any

from starsr.export.graphs import CHANNELS_FIRST
from starsr.models.schedule import MANIFEST
from starsr.models.star import text
from starsr.models.star.vae import VaeConfig

EMBEDDINGS = "embeddings.safetensors"
LICENCE = (
    "STAR: MIT; autoencoder: Stability AI's licence of Stable Video Diffusion; text encoder: MIT"
)


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
    stated = {} if layout == CHANNELS_FIRST else {"layout": layout}
    return {
        "format": 1,
        "name": name,
        "version": version,
        "licence": LICENCE,
        "provenance": provenance,
        "training_data": "I2VGen-XL's and VEnhancer's; STAR: OpenVid-1M, degraded "
        "(arXiv 2501.02976, section 4.1)",
        **stated,
        "scale": {"default": 4, "minimum": 1, "maximum": 8},
        "latent": {
            "channels": vae.latent_channels,
            "spatial_factor": vae.spatial_factor,
            "scaling_factor": vae.scaling_factor,
        },
        "canvas": canvas(canvas_kind),
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
        "vae": {"frames_per_encode": 1, "frames_per_decode": 3, "decode_overlap": 1},
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
