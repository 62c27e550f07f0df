# SPDX-License-Identifier: MPL-2.0
"""The ONNX graphs of a bundle of STAR on CogVideoX (format: models/README.md)."""

from collections.abc import Mapping

import numpy as np

from starsr.export.graphs import FLOAT, INT, Graph
from starsr.models.cogvideox.network import ROTARY, CogVideoXConfig, denoiser, modulation
from starsr.ops.onnx_graph import Spec
from starsr.ops.video_onnx_ops import VideoOnnxOps


def positions_of(config: CogVideoXConfig) -> dict[str, Spec]:
    """Return the denoiser's inputs that hold positions."""
    if config.positions == ROTARY:
        pairs = config.head_dim // 2
        return {name: (FLOAT, ["N", pairs]) for name in ("cos", "sin")}
    return {"positions": (FLOAT, ["N", config.width])}


def network_graphs(
    weights: Mapping[str, np.ndarray],
    config: CogVideoXConfig,
    precision: str,
    ops: type[VideoOnnxOps] = VideoOnnxOps,
) -> dict[str, Graph]:
    """Return modulation and denoiser. All inputs and outputs but `t` have 32 bits."""
    first, second = (ops(weights, precision) for _ in range(2))
    latents: Spec = (FLOAT, ["B", "T", config.latent_channels, "h", "w"])
    rows: list[int | str] = ["B", config.modulation_rows, config.width]
    # One modulation may serve the whole batch.
    of_batch: Spec = (FLOAT, ["M", *rows[1:]])
    inputs: dict[str, Spec] = {
        "x": latents,
        "hint": latents,
        "modulation": of_batch,
        "embedding": (FLOAT, ["B", config.text_length, config.text_dim]),
        **positions_of(config),
    }
    places = list(positions_of(config))
    velocity = denoiser(second, "x", "hint", "modulation", "embedding", places, config)
    return {
        "modulation": Graph(
            first,
            {"t": (INT, ["B"])},
            {"modulation": (FLOAT, rows)},
            [modulation(first, "t", config)],
        ),
        "denoiser": Graph(second, inputs, {"v": latents}, [velocity]),
    }
