# SPDX-License-Identifier: MPL-2.0
"""The ONNX graphs of a STAR bundle (format: models/README.md)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from onnx import TensorProto

from starsr.models.star.network import StarConfig, controlnet, denoiser
from starsr.models.star.text import CONTEXT, TextConfig, encode_text
from starsr.models.star.vae import VaeConfig, decode, encode
from starsr.ops.nhwc_ops import NhwcOps
from starsr.ops.onnx_graph import Spec
from starsr.ops.onnx_ops import OnnxOps

#: Back-ends by the layout of the feature maps inside the graphs.
CHANNELS_FIRST, CHANNELS_LAST = "channels-first", "channels-last"
LAYOUTS: dict[str, type[OnnxOps]] = {CHANNELS_FIRST: OnnxOps, CHANNELS_LAST: NhwcOps}
FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64


@dataclass
class Graph:
    """A graph ready to be written. `results` are the values that leave it as `outputs`."""

    ops: OnnxOps
    inputs: dict[str, Spec]
    outputs: dict[str, Spec]
    results: list[str] = field(default_factory=list)

    def data_size(self) -> int:
        """Return an upper bound of the bytes of weights."""
        return self.ops.data_size()

    def save(
        self, path: Path, progress: Callable[[int], object] = lambda size: None
    ) -> dict[str, str]:
        """Write the graph as `OnnxGraph.save` does."""
        return self.ops.save(path, self.inputs, self.outputs, self.results, progress)


def star_graphs(
    weights: Mapping[str, np.ndarray],
    config: StarConfig,
    precision: str,
    layout: str = CHANNELS_FIRST,
) -> dict[str, Graph]:
    """Return ControlNet and denoiser.

    Latents, embedding and velocity have 32 bits; the controls have the given precision and layout,
    one of `LAYOUTS`. Latents and `t` may have a batch of one, which all embeddings share.
    """
    control, denoise = (LAYOUTS[layout](weights, precision) for _ in range(2))
    latents: Spec = (FLOAT, ["b", config.in_dim, "F", "h", "w"])
    conditions: dict[str, Spec] = {
        "t": (INT, ["b"]),
        "embedding": (FLOAT, ["B", CONTEXT, config.context_dim]),
    }
    controls: dict[str, Spec] = {
        f"control_{i}": (
            control.element,
            control.feature_map(
                "bF" if i < config.textless else "BF", channels, f"h_{level}", f"w_{level}"
            ),
        )
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


def vae_graphs(
    weights: Mapping[str, np.ndarray],
    config: VaeConfig,
    precision: str,
    layout: str = CHANNELS_FIRST,
) -> dict[str, Graph]:
    """Return encoder and decoder of the autoencoder, whose inputs and outputs have 32 bits.

    `layout` is one of `LAYOUTS`.
    """
    encoder, decoder = (LAYOUTS[layout](weights, precision) for _ in range(2))
    latents: Spec = (FLOAT, ["F", config.latent_channels, "h", "w"])
    pixels: Spec = (FLOAT, ["F", 3, "H", "W"])
    return {
        "vae_encoder": Graph(
            encoder,
            {"pixels": pixels},
            {"latents": latents, "std": latents},
            [encoder.leave(x) for x in encode(encoder, encoder.enter("pixels"), config)],
        ),
        "vae_decoder": Graph(
            decoder,
            {"latents": latents},
            {"pixels": pixels},
            [decoder.leave(decode(decoder, decoder.enter("latents"), config))],
        ),
    }


def text_graphs(
    weights: Mapping[str, np.ndarray], config: TextConfig, precision: str
) -> dict[str, Graph]:
    """Return the text encoder."""
    ops = OnnxOps(weights, precision)
    tokens: Spec = (INT, ["B", CONTEXT])
    embedding: Spec = (FLOAT, ["B", CONTEXT, config.width])
    results = [encode_text(ops, "tokens", config)]
    return {"text_encoder": Graph(ops, {"tokens": tokens}, {"embedding": embedding}, results)}
