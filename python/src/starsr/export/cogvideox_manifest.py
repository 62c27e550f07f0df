# SPDX-License-Identifier: MPL-2.0
"""The manifest of a bundle of STAR on CogVideoX."""

from dataclasses import dataclass
from typing import Any

from starsr.export.graphs import Graph
from starsr.models.cogvideox.network import ROTARY, CogVideoXConfig
from starsr.models.cogvideox.positions import BASE, SPATIAL_SCALE, rotary_parts
from starsr.models.cogvideox.vae import VaeConfig

#: The kind of bundle; those of format 1 have none.
KIND = "cogvideox"
LICENCE = "weights and autoencoder: CogVideoX's licence"
TEXT_LICENCE = "; text encoder: Apache-2.0"
#: Scale of the latents and shift of the schedule, by the kind of positions.
SCALING_FACTORS = {"rotary": 0.7, "sincos": 1.15258426}
SHIFTS = {"rotary": 1.0, "sincos": 3.0}
#: The only size that the networks were trained for.
TRAINED_SIZE = (480, 720)
#: Pixels that neighbouring tiles of this size share, as far as they have room.
TILE_OVERLAP = 64
#: Frames of a window.
LENGTH = 25


@dataclass(frozen=True)
class RunMemory:
    """What runs of the graphs take: bytes for each channel of what they hold the most of.

    These are the tokens of the denoiser, and the pixels and frames of the autoencoder's first
    level.
    """

    token: int
    encode: int
    decode: int


#: In 32 bits as ONNX Runtime takes it on the CPU, measured with networks of the true width; in 16
#: bits the tensors that a layer keeps at once.
MEASURED, COMPUTED = RunMemory(75, 45, 127), RunMemory(45, 12, 24)


def positions(config: CogVideoXConfig) -> dict[str, Any]:
    """Return the rule for the tables of positions, see `starsr.models.cogvideox.positions`."""
    if config.positions == ROTARY:
        frames, rows, columns = rotary_parts(config.head_dim)
        return {
            "kind": config.positions,
            "base": BASE,
            "frames": frames,
            "rows": rows,
            "columns": columns,
        }
    return {
        "kind": config.positions,
        "base": BASE,
        "width": config.width,
        "spatial_scale": SPATIAL_SCALE,
    }


def text_memory(graph: Graph) -> int:
    """Return the bytes that a text encoder takes while it is loaded and runs.

    Measured at a sixth of T5 v1.1 XXL's layers in 32 bits: 1.07 times its weights.
    """
    return graph.data_size() * 11 // 10


def manifest(
    name: str,
    version: str,
    provenance: str,
    config: CogVideoXConfig,
    vae: VaeConfig,
    precisions: tuple[str, str],
    prompt: str | None,
    trained: tuple[int, int] = TRAINED_SIZE,
) -> dict[str, Any]:
    """Return the manifest without its files.

    The defaults of the sampler are the authors'. `precisions` are those of network and autoencoder.
    Without a `prompt` there is nothing to guide to. `trained` are height and width that the network
    was trained for.
    """
    height, width = trained
    side = vae.spatial_factor * config.patch
    latents = (LENGTH - 1) // vae.temporal_factor + 1
    network, coder = (MEASURED if p == "fp32" else COMPUTED for p in precisions)
    first = vae.block_out_channels[0]
    described: dict[str, Any] = {
        "format": 2,
        "kind": KIND,
        "name": name,
        "version": version,
        "licence": LICENCE,
        "provenance": provenance,
        "training_data": "CogVideoX's; STAR: OpenVid-1M, degraded (arXiv 2501.02976, section 4.1)",
        "scale": {"default": 4, "minimum": 1, "maximum": 8},
        "latent": {
            "channels": config.latent_channels,
            "spatial_factor": vae.spatial_factor,
            "temporal_factor": vae.temporal_factor,
            "scaling_factor": vae.scaling_factor,
        },
        "canvas": {
            "upscale": "bicubic",
            "padding": "edge",
            "height": {"multiple": side, "offset": 0, "minimum": height},
            "width": {"multiple": side, "offset": 0, "minimum": width},
            "trained": {"height": height, "width": width},
            "tile_overlap": min(TILE_OVERLAP, min(trained) // 2),
            "tile_memory": -(-network.token * config.width * latents // (LENGTH * side**2)),
        },
        "window": {
            "mode": "blend",
            "length": LENGTH,
            "overlap": 8,
            "minimum": 1,
            "maximum": 41,
            "multiple": 2 * vae.temporal_factor,
            "offset": 1,
        },
        "schedule": {
            "kind": "scaled-linear",
            "prediction": "v",
            "timesteps": 1000,
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "shift_scale": SHIFTS[config.positions],
            "zero_terminal_snr": True,
        },
        "sampler": {
            "solver": "vp-sde-dpmpp-2m",
            "steps": 50,
            "guidance": 1.0 if prompt is None else "wave",
            "color_fix": "adain",
            "strength": 1.0,
        },
        "vae": {
            "encode_memory": coder.encode * first,
            "decode_memory": coder.decode * first,
            "run_pixels": (2**31 - 1) // first,
        },
        "condition": {"kind": "concat"},
        "positions": positions(config),
    }
    if prompt is not None:
        described["prompts"] = {"default": prompt, "length": config.text_length}
    return described
