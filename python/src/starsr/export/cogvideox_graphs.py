# SPDX-License-Identifier: MPL-2.0
"""The ONNX graphs of a bundle of STAR on CogVideoX (format: models/README.md)."""

from collections.abc import Mapping

import numpy as np

from starsr.export.graphs import FLOAT, INT, Graph
from starsr.models.cogvideox.network import ROTARY, CogVideoXConfig, denoiser, modulation
from starsr.models.cogvideox.text import T5Config, encode_text
from starsr.models.cogvideox.vae import Caches, VaeConfig, cache_shapes, decode, encode
from starsr.ops.onnx_graph import Spec
from starsr.ops.video_onnx_ops import VideoOnnxOps
from starsr.ops.video_primitives import CAUSAL


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


def text_graph(
    weights: Mapping[str, np.ndarray], config: T5Config, length: int, precision: str
) -> dict[str, Graph]:
    """Return the text encoder, which takes `length` tokens. The embedding has 32 bits."""
    ops = VideoOnnxOps(weights, precision)
    tokens: Spec = (INT, ["B", length])
    embedding: Spec = (FLOAT, ["B", length, config.width])
    results = [encode_text(ops, "tokens", length, config)]
    return {"text_encoder": Graph(ops, {"tokens": tokens}, {"embedding": embedding}, results)}


def vae_graphs(
    weights: Mapping[str, np.ndarray], config: VaeConfig, precision: str
) -> dict[str, Graph]:
    """Return encoder and decoder of the autoencoder. Pixels and latents have 32 bits.

    The decoder's caches, `cache_0` and so on as inputs and `next_0` and so on as outputs, have the
    given precision.
    """
    encoder, decoder = (VideoOnnxOps(weights, precision) for _ in range(2))
    latents: Spec = (FLOAT, ["T", config.latent_channels, "h", "w"])
    pixels: Spec = (FLOAT, ["F", 3, "H", "W"])
    before: dict[str, Spec] = {}
    after: dict[str, Spec] = {}
    for i, (channels, level) in enumerate(cache_shapes(config)):
        for specs, name, frames in ((before, "cache", "P"), (after, "next", CAUSAL)):
            sizes = [1, channels, frames, f"h_{level}", f"w_{level}"]
            specs[f"{name}_{i}"] = (decoder.element, sizes)
    caches = Caches(list(before))
    decoded = decode(decoder, "latents", caches, config)
    return {
        "vae_encoder": Graph(
            encoder,
            {"pixels": pixels},
            {"latents": latents, "std": latents},
            list(encode(encoder, "pixels", config)),
        ),
        "vae_decoder": Graph(
            decoder,
            {"latents": latents, **before},
            {"pixels": pixels, **after},
            [decoded, *caches.kept],
        ),
    }
