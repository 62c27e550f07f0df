# SPDX-License-Identifier: MPL-2.0
"""Blur kernels of Real-ESRGAN: Gaussians of several shapes, and low-pass filters that ring."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

#: Shapes of Gaussian kernels, anisotropic or not, and their shares.
SHAPES = {
    ("gaussian", False): 0.45,
    ("gaussian", True): 0.25,
    ("generalized", False): 0.12,
    ("generalized", True): 0.03,
    ("plateau", False): 0.12,
    ("plateau", True): 0.03,
}


def coordinates(size: int) -> tuple[Tensor, Tensor]:
    """Return the vertical and horizontal distance of each tap from the centre."""
    axis = torch.arange(size) - (size - 1) / 2
    return torch.meshgrid(axis, axis, indexing="ij")


def gaussian(
    size: int,
    sigmas: tuple[float, float],
    angle: float,
    kind: str = "gaussian",
    beta: float = 1.0,
) -> Tensor:
    """Return a normalised kernel `[size,size]`.

    `sigmas` are its standard deviations in pixels along axes turned by `angle`. `kind` is
    `gaussian`, `generalized` (`exp(-r^(2 beta) / 2)`) or `plateau` (`1 / (1 + r^(2 beta))`), with
    `r` in standard deviations.
    """
    y, x = coordinates(size)
    u = (math.cos(angle) * x + math.sin(angle) * y) / max(sigmas[0], 1e-3)
    v = (math.cos(angle) * y - math.sin(angle) * x) / max(sigmas[1], 1e-3)
    power = (u**2 + v**2) ** beta
    kernel = 1 / (1 + power) if kind == "plateau" else torch.exp(-0.5 * power)
    return kernel / kernel.sum()


def sinc(size: int, cutoff: float) -> Tensor:
    """Return a normalised circular low-pass `[size,size]` with a `cutoff` in radians a pixel."""
    y, x = coordinates(size)
    radius = torch.sqrt(x**2 + y**2)
    safe = radius.clamp(min=1e-6)
    kernel = cutoff * torch.special.bessel_j1(cutoff * safe) / (2 * math.pi * safe)
    kernel = torch.where(radius == 0, torch.tensor(cutoff**2 / (4 * math.pi)), kernel)
    return kernel / kernel.sum()


def draw_size(rng: np.random.Generator) -> int:
    """Draw an odd size from 7 to 21."""
    return 2 * int(rng.integers(3, 11)) + 1


def draw(
    rng: np.random.Generator, size: int, sigma: tuple[float, float], sinc_share: float
) -> Tensor:
    """Draw a kernel `[size,size]`.

    It is a low-pass for a share `sinc_share` of the draws, and otherwise a Gaussian with standard
    deviations in the range `sigma`.
    """
    if rng.random() < sinc_share:
        return sinc(size, rng.uniform(math.pi / (3 if size < 13 else 5), math.pi))
    shares = np.array(list(SHAPES.values()))
    kind, anisotropic = list(SHAPES)[rng.choice(len(SHAPES), p=shares / shares.sum())]
    first = rng.uniform(*sigma)
    second, angle = first, 0.0
    if anisotropic:
        second, angle = rng.uniform(*sigma), rng.uniform(-math.pi, math.pi)
    generalized, plateau = rng.uniform(0.5, 4.0), rng.uniform(1.0, 2.0)
    beta = {"gaussian": 1.0, "generalized": generalized, "plateau": plateau}[kind]
    return gaussian(size, (first, second), angle, kind, beta)


def blur(clip: Tensor, kernels: Tensor) -> Tensor:
    """Convolve each frame of `[F,3,H,W]` with its kernel of `[F,k,k]`; edges are mirrored."""
    frames, _, height, width = clip.shape
    radius = min(kernels.shape[-1] // 2, height - 1, width - 1)
    side = kernels.shape[-1] // 2
    inner = slice(side - radius, side + radius + 1)
    kernels = kernels[:, inner, inner]
    kernels = kernels / kernels.sum((1, 2), keepdim=True)
    planes = F.pad(clip, (radius,) * 4, mode="reflect").transpose(0, 1)
    return F.conv2d(planes, kernels[:, None].to(clip), groups=frames).transpose(0, 1)
