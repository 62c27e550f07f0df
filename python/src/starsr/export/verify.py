# SPDX-License-Identifier: MPL-2.0
"""Compares the graphs of a STAR bundle with PyTorch.

The networks are compared with `starsr.models.star.network`, the others with the libraries that own
them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from starsr.export.emulate import open_session
from starsr.export.graphs import CHANNELS_FIRST
from starsr.export.sources import TextTower, embed_with
from starsr.models.star import network, text
from starsr.models.star.vae import VaeConfig
from starsr.models.weights import Floats, Weights, WeightsError
from starsr.ops.torch_ops import TorchOps

#: Limit of the relative root mean square of the difference, by precision. Small random networks
#: amplify the rounding of 16 bits.
LIMITS = {"fp32": 1e-3, "fp16": 8e-2, "bf16": 4e-1}
#: Texts that share latents, and frames, height and width of the latents.
SHAPES = [(1, 2, 10, 8), (2, 3, 18, 16)]

#: The shape of a case, the inputs of the graph by name and PyTorch's results.
Case = tuple[tuple[int, ...], Mapping[str, Any], Sequence[Tensor]]


@dataclass(frozen=True)
class Difference:
    """Difference between ONNX Runtime and PyTorch for one graph and one shape.

    `largest` is absolute, `relative` the root mean square over that of PyTorch's result.
    """

    role: str
    shape: tuple[int, ...]
    largest: float
    relative: float


class Verifier:
    """Runs the graphs of the bundle in `folder` and their PyTorch forms on random inputs.

    `layout` is that of the feature maps. Uses a GPU if ONNX Runtime has one.
    """

    def __init__(self, folder: Path, precision: str, layout: str = CHANNELS_FIRST) -> None:
        self.folder, self.layout = folder, layout
        self.generator = torch.Generator().manual_seed(0)
        available = onnxruntime.get_available_providers()
        known = ("CUDAExecutionProvider", "CPUExecutionProvider")
        self.providers = [p for p in known if p in available]
        if precision == "bf16" and len(self.providers) == 1:
            raise WeightsError(
                "bf16 graphs cannot be verified here: ONNX Runtime runs them on GPUs only"
            )

    def random(self, *shape: int) -> Tensor:
        """Return N(0,1) values."""
        return torch.randn(shape, generator=self.generator)

    def session(self, role: str) -> onnxruntime.InferenceSession:
        """Return the session of a graph."""
        return open_session(self.folder / f"{role}.onnx", self.providers)

    def compare(self, role: str, cases: Iterable[Case]) -> Iterator[Difference]:
        """Run a graph on each case and yield the differences."""
        session = self.session(role)
        for shape, feeds, expected in cases:
            arrays = {name: np.asarray(value) for name, value in feeds.items()}
            results = session.run(None, arrays)
            pairs = [
                (torch.from_numpy(r.astype(np.float32)), e.float())
                for r, e in zip(results, expected, strict=True)
            ]
            largest = max(float((r - e).abs().max()) for r, e in pairs)
            relative = max(float((r - e).norm() / e.norm()) for r, e in pairs)
            yield Difference(role, shape, largest, relative)

    @torch.no_grad()
    def star(self, weights: Weights, config: network.StarConfig) -> Iterator[Difference]:
        """Compare ControlNet and denoiser; the denoiser receives PyTorch's controls."""
        ops, inputs = TorchOps(Floats(weights)), []
        for texts, frames, height, width in SHAPES:
            shape = (1, config.in_dim, frames, height, width)
            x, hint = (self.random(*shape) for _ in range(2))
            t = torch.tensor([899 if texts == 1 else 90])
            embedding = self.random(texts, text.CONTEXT, config.context_dim)
            inputs.append((x, hint, t, embedding))
        first: list[Case] = []
        second: list[Case] = []
        types = self._control_types()
        for x, hint, t, embedding in inputs:
            controls = network.controlnet(ops, x, t, hint, embedding, config)
            v = network.denoiser(ops, x, t, embedding, controls, config)
            if self.layout != CHANNELS_FIRST:
                controls = [control.permute(0, 2, 3, 1) for control in controls]
            size, feeds = tuple(x.shape), {"x": x, "t": t, "embedding": embedding}
            first.append((size, {**feeds, "hint": hint}, controls))
            named = {
                name: np.asarray(control).astype(kind)
                for (name, kind), control in zip(types.items(), controls, strict=True)
            }
            second.append((size, {**feeds, **named}, [v]))
        yield from self.compare("controlnet", first)
        yield from self.compare("denoiser", second)

    def _control_types(self) -> dict[str, type[np.generic]]:
        """Return the types of the controls, in their order."""
        types = {"tensor(float16)": np.float16, "tensor(float)": np.float32}
        outputs = self.session("controlnet").get_outputs()
        return {output.name: types.get(output.type, np.float32) for output in outputs}

    @torch.no_grad()
    def vae(self, model: nn.Module, config: VaeConfig) -> Iterator[Difference]:
        """Compare encoder and decoder with diffusers' module, on groups of 3 and of 2 frames."""
        # The methods are attributes of diffusers' class.
        diffusers: Any = model
        first: list[Case] = []
        second: list[Case] = []
        scale, side = config.scaling_factor, config.spatial_factor
        for frames, height, width in [(3, 10, 8), (2, 5, 8)]:
            pixels = self.random(frames, 3, height * side, width * side).tanh()
            latents = self.random(frames, config.latent_channels, height, width)
            moments = diffusers.encode(pixels).latent_dist
            expected = [moments.mean * scale, moments.std * scale]
            first.append((tuple(pixels.shape), {"pixels": pixels}, expected))
            decoded = diffusers.decode(latents / scale, num_frames=frames).sample
            second.append((tuple(latents.shape), {"latents": latents}, [decoded]))
        yield from self.compare("vae_encoder", first)
        yield from self.compare("vae_decoder", second)

    @torch.no_grad()
    def text(self, tower: TextTower, texts: Sequence[str]) -> Iterator[Difference]:
        """Compare the text encoder with OpenCLIP's module."""
        tokens = torch.from_numpy(np.stack([text.tokenize(t) for t in texts]))
        expected = embed_with(tower.module(), tokens)
        case: Case = (tuple(tokens.shape), {"tokens": tokens}, [expected])
        yield from self.compare("text_encoder", [case])
