# SPDX-License-Identifier: MPL-2.0
"""Compares the graphs of a STAR bundle with PyTorch: the networks with `starsr.models.star.network`, the others with the libraries
that own them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from starsr.ops.torch_ops import TorchOps
from starsr.models.star import network, text
from starsr.export.sources import TextTower, embed_with
from starsr.models.star.vae import VaeConfig
from starsr.models.weights import Floats, Weights, WeightsError

#: Root mean square of the difference over that of the reference which a faithful graph stays below. Small random networks
#: amplify what 16 bits round away.
LIMITS = {"fp32": 1e-3, "fp16": 8e-2, "bf16": 4e-1}
#: Batch, frames, height and width of latents.
SHAPES = [(1, 2, 10, 8), (2, 3, 18, 16)]


@dataclass(frozen=True)
class Difference:
    """Between the results of ONNX Runtime and PyTorch for one graph and one shape: largest, and root mean square relative to
    that of PyTorch's."""

    role: str
    shape: tuple[int, ...]
    largest: float
    relative: float


class Verifier:
    """Runs graphs of the bundle in `folder`, on a GPU where ONNX Runtime has one, and their PyTorch forms on random inputs."""

    def __init__(self, folder: Path, precision: str) -> None:
        self.folder = folder
        self.generator = torch.Generator().manual_seed(0)
        available = onnxruntime.get_available_providers()
        self.providers = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in available]
        if precision == "bf16" and len(self.providers) == 1:
            raise WeightsError("bf16 graphs cannot be verified here: ONNX Runtime runs them on GPUs only")

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator)

    def session(self, role: str) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        # Optimised, 16-bit weights would be unpacked to 32 bits for the CPU.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        return onnxruntime.InferenceSession(str(self.folder / f"{role}.onnx"), options, providers=self.providers)

    def compare(self, role: str, cases) -> Iterator[Difference]:
        """For each of `cases`, shape, inputs by name and PyTorch's results."""
        session = self.session(role)
        for shape, feeds, expected in cases:
            results = session.run(None, {name: np.asarray(value) for name, value in feeds.items()})
            pairs = [(torch.from_numpy(r.astype(np.float32)), e.float()) for r, e in zip(results, expected, strict=True)]
            largest = max(float((r - e).abs().max()) for r, e in pairs)
            relative = max(float((r - e).norm() / e.norm()) for r, e in pairs)
            yield Difference(role, shape, largest, relative)

    @torch.no_grad()
    def star(self, weights: Weights, config: network.StarConfig) -> Iterator[Difference]:
        """ControlNet and denoiser; the denoiser is given PyTorch's controls."""
        ops, inputs, both = TorchOps(Floats(weights)), [], {"controlnet": [], "denoiser": []}
        for batch, frames, height, width in SHAPES:
            x, hint = (self.random(batch, config.in_dim, frames, height, width) for _ in range(2))
            t = torch.tensor([899, 90][:batch])
            embedding = self.random(batch, text.CONTEXT, config.context_dim)
            inputs.append((x, hint, t, embedding))
        for x, hint, t, embedding in inputs:
            controls = network.controlnet(ops, x, t, hint, embedding, config)
            v = network.denoiser(ops, x, t, embedding, controls, config)
            shape, feeds = tuple(x.shape), {"x": x, "t": t, "embedding": embedding}
            both["controlnet"].append((shape, {**feeds, "hint": hint}, controls))
            both["denoiser"].append((shape, (feeds, controls), [v]))
        yield from self.compare("controlnet", both["controlnet"])
        yield from self.compare("denoiser", self._with_controls(both["denoiser"]))

    def _with_controls(self, cases):
        types = {"tensor(float16)": np.float16, "tensor(float)": np.float32}
        wanted = {i.name: types.get(i.type) for i in self.session("controlnet").get_outputs()}
        for shape, (feeds, controls), expected in cases:
            named = {name: np.asarray(c).astype(wanted[name]) for name, c in zip(wanted, controls, strict=True)}
            yield shape, {**feeds, **named}, expected

    @torch.no_grad()
    def vae(self, model, config: VaeConfig) -> Iterator[Difference]:
        """Encoder and decoder against diffusers' module, a group of 3 and of 2 frames."""
        encode, decode, scale = [], [], config.scaling_factor
        for frames, height, width in [(3, 10, 8), (2, 5, 8)]:
            side = config.spatial_factor
            pixels = self.random(frames, 3, height * side, width * side).tanh()
            latents = self.random(frames, config.latent_channels, height, width)
            moments = model.encode(pixels).latent_dist
            encode.append((tuple(pixels.shape), {"pixels": pixels}, [moments.mean * scale, moments.std * scale]))
            decoded = model.decode(latents / scale, num_frames=frames).sample
            decode.append((tuple(latents.shape), {"latents": latents}, [decoded]))
        yield from self.compare("vae_encoder", encode)
        yield from self.compare("vae_decoder", decode)

    @torch.no_grad()
    def text(self, tower: TextTower, texts: list[str]) -> Iterator[Difference]:
        """The text encoder against OpenCLIP's module."""
        tokens = torch.from_numpy(np.stack([text.tokenize(t) for t in texts]))
        expected = embed_with(tower.module(), tokens)
        yield from self.compare("text_encoder", [(tuple(tokens.shape), {"tokens": tokens}, [expected])])
