# SPDX-License-Identifier: MPL-2.0
"""Bicubic upscaling, exactly as the plugin does it before it runs the model."""

from functools import cache

import torch
from torch import Tensor


def keys_kernel(x: Tensor) -> Tensor:
    """Evaluate Keys' cubic convolution kernel with a = -0.5 at the distances `x`."""
    x = x.abs()
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


@cache
def bicubic_matrix(size: int, scale: int) -> Tensor:
    """Return the weights `[scale*size,size]` of an upscale with half-pixel centres.

    Pixels beyond the edge repeat those at the edge.
    """
    centre = (torch.arange(size * scale, dtype=torch.float64) + 0.5) / scale - 0.5
    taps = centre.floor()[:, None] + torch.arange(-1, 3, dtype=torch.float64)
    weights = keys_kernel(centre[:, None] - taps)
    matrix = torch.zeros(size * scale, size, dtype=torch.float64)
    matrix.scatter_add_(1, taps.clamp(0, size - 1).long(), weights)
    return matrix.float()


def bicubic(clip: Tensor, scale: int = 4) -> Tensor:
    """Upscale `[...,h,w]` to `[...,scale*h,scale*w]`; values may overshoot their range.

    Computes in the precision of `clip`, even under autocast.
    """
    rows, columns = (bicubic_matrix(n, scale).to(clip.device) for n in clip.shape[-2:])
    with torch.autocast(clip.device.type, enabled=False):
        return rows @ clip @ columns.T
