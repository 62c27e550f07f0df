# SPDX-License-Identifier: MPL-2.0
"""What a prediction costs, counted without computing anything."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from starsr.models.nano import network as nano
from starsr.models.star import network, text
from starsr.ops.declare import Parameter
from starsr.ops.torch_ops import TorchOps

#: Latents of a frame for which operations are counted: those of 1280x720 and 2048x1104 pixels.
STAR_SIZES = ((90, 160), (138, 256))
NANO_SIZES = ((128, 160), (256, 256))


def on_meta(declared: Mapping[str, Parameter]) -> TorchOps:
    """Return a back-end whose tensors have shapes and no values."""
    return TorchOps({n: torch.empty(p.shape, device="meta") for n, p in declared.items()})


def count(run: Callable[[], object]) -> int:
    """Return the floating-point operations of `run`; a product and its sum are two."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops()


def fit(
    run: Callable[[Tensor], object],
    channels: int,
    factor: int,
    frames: int,
    sizes: Sequence[tuple[int, int]],
) -> list[float]:
    """Return `canvas.operations` of the manifest, which are exact for both of `sizes`.

    `run` computes a prediction of noisy latents `[1,channels,frames,h,w]`, of `factor` pixels a
    side each.
    """

    def measured(height: int, width: int) -> tuple[int, float]:
        pixels = height * width * factor**2
        x = latents(channels, frames, height, width)
        return pixels, count(lambda: run(x)) / (frames * pixels)

    (p, a), (q, b) = (measured(*size) for size in sizes)
    # Convolutions alone take no more for a pixel of a larger frame.
    slope = max(0.0, (b - a) / (q - p))
    return [float(round(a - slope * p)), float(f"{slope:.4g}")]


def latents(channels: int, frames: int, height: int, width: int) -> Tensor:
    """Return latents without values."""
    return torch.empty(1, channels, frames, height, width, device="meta")


def of_star(config: network.StarConfig, factor: int, frames: int) -> list[float]:
    """Return `canvas.operations` of ControlNet and denoiser for windows of `frames`."""
    ops = on_meta(network.declared_parameters(config))
    embedding = torch.empty(1, text.CONTEXT, config.context_dim, device="meta")
    t = torch.zeros(1, dtype=torch.long, device="meta")

    def run(x: Tensor) -> Tensor:
        controls = network.controlnet(ops, x, t, x, embedding, config)
        return network.denoiser(ops, x, t, embedding, controls, config)

    return fit(run, config.in_dim, factor, frames, STAR_SIZES)


def of_nano(config: nano.NanoConfig, factor: int, frames: int) -> list[float]:
    """Return the same of nano."""
    ops = on_meta(nano.declared_parameters(config))
    t = torch.zeros(1, dtype=torch.long, device="meta")

    def run(x: Tensor) -> Tensor:
        return nano.denoiser(ops, x, t, nano.controlnet(ops, x, t, x, config), config)

    return fit(run, nano.CHANNELS, factor, frames, NANO_SIZES)
