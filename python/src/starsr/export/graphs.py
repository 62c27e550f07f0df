# SPDX-License-Identifier: MPL-2.0
"""The ONNX graphs of a STAR bundle (models/README.md)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from onnx import TensorProto

from starsr.ops.onnx_ops import OnnxOps
from starsr.models.star.network import StarConfig, controlnet, denoiser
from starsr.models.star.text import CONTEXT, TextConfig, encode_text
from starsr.models.star.vae import VaeConfig, decode, encode

FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64


@dataclass
class Graph:
    """A graph ready to be written: its nodes, and the values that leave it as `outputs`. Both sides map names to element type
    and dimensions."""

    ops: OnnxOps
    inputs: dict[str, tuple]
    outputs: dict[str, tuple]
    results: list[str] = field(default_factory=list)

    def data_size(self) -> int:
        """Bytes of weights."""
        return self.ops.data_size()

    def save(self, path: Path, progress: Callable[[int], None] = lambda size: None) -> dict[str, str]:
        """As `OnnxGraph.save`."""
        return self.ops.save(path, self.inputs, self.outputs, self.results, progress)


def star_graphs(weights: Mapping[str, np.ndarray], config: StarConfig, precision: str) -> dict[str, Graph]:
    """ControlNet and denoiser. Latents, embedding and velocity are 32-bit on the outside, the controls of `precision`."""
    control, denoise = OnnxOps(weights, precision), OnnxOps(weights, precision)
    latents = (FLOAT, ["B", config.in_dim, "F", "h", "w"])
    conditions = {"t": (INT, ["B"]), "embedding": (FLOAT, ["B", CONTEXT, config.context_dim])}
    controls = {
        f"control_{i}": (control.element, ["BF", channels, f"h_{level}", f"w_{level}"])
        for i, (channels, level) in enumerate(config.controls())
    }
    return {
        "controlnet": Graph(
            control,
            {"x": latents, "hint": latents, **conditions},
            controls,
            controlnet(control, "x", "t", "hint", "embedding", config),
        ),
        "denoiser": Graph(
            denoise,
            {"x": latents, **conditions, **controls},
            {"v": (FLOAT, ["B", config.out_dim, "F", "h", "w"])},
            [denoiser(denoise, "x", "t", "embedding", list(controls), config)],
        ),
    }


def vae_graphs(weights: Mapping[str, np.ndarray], config: VaeConfig, precision: str) -> dict[str, Graph]:
    """Encoder and decoder of the autoencoder, 32-bit on the outside."""
    encoder, decoder = OnnxOps(weights, precision), OnnxOps(weights, precision)
    latents = (FLOAT, ["F", config.latent_channels, "h", "w"])
    pixels = (FLOAT, ["F", 3, "H", "W"])
    return {
        "vae_encoder": Graph(
            encoder, {"pixels": pixels}, {"latents": latents, "std": latents}, list(encode(encoder, "pixels", config))
        ),
        "vae_decoder": Graph(decoder, {"latents": latents}, {"pixels": pixels}, [decode(decoder, "latents", config)]),
    }


def text_graphs(weights: Mapping[str, np.ndarray], config: TextConfig, precision: str) -> dict[str, Graph]:
    """The text encoder."""
    ops = OnnxOps(weights, precision)
    tokens, embedding = (INT, ["B", CONTEXT]), (FLOAT, ["B", CONTEXT, config.width])
    return {"text_encoder": Graph(ops, {"tokens": tokens}, {"embedding": embedding}, [encode_text(ops, "tokens", config)])}
