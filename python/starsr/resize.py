# SPDX-License-Identifier: MPL-2.0
"""The upscale in front of the model, as the plugin does it."""

from functools import cache

import torch
from torch import Tensor


def keys_kernel(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -0.5."""
    x = x.abs()
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


@cache
def bicubic_matrix(size: int, scale: int) -> Tensor:
    """Weights `[scale*size,size]` of a bicubic upscale with half-pixel centres and replicated edges."""
    centre = (torch.arange(size * scale, dtype=torch.float64) + 0.5) / scale - 0.5
    taps = centre.floor()[:, None] + torch.arange(-1, 3, dtype=torch.float64)
    weights = keys_kernel(centre[:, None] - taps)
    matrix = torch.zeros(size * scale, size, dtype=torch.float64)
    matrix.scatter_add_(1, taps.clamp(0, size - 1).long(), weights)
    return matrix.float()


def bicubic(clip: Tensor, scale: int = 4) -> Tensor:
    """`[...,h,w]` to `[...,scale*h,scale*w]` in the precision of `clip`, also in mixed precision; values may overshoot."""
    rows, columns = (bicubic_matrix(n, scale).to(clip.device) for n in clip.shape[-2:])
    with torch.autocast(clip.device.type, enabled=False):
        return rows @ clip @ columns.T
