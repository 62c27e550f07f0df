# SPDX-License-Identifier: MPL-2.0
"""The training objective of STAR (paper section 3.3 and equation 2), with the DF loss as the paper defines it.

The released code differs from the paper in two ways (SPEC C): its DF loss carries no gradient, and its "low-pass" keeps
the weakest coefficients instead of the lowest frequencies. Both are as in the paper here.
"""

from functools import cache

import torch
from torch import Tensor

T_MAX = 999


@cache
def low_pass(height: int, width: int, cutoff: float, device: torch.device) -> Tensor:
    """Radial low-pass `[height, width//2+1]` for `rfft2`: 1 below `cutoff` (of the Nyquist frequency), smooth edge."""
    fy = torch.fft.fftfreq(height, device=device)[:, None]
    fx = torch.fft.rfftfreq(width, device=device)[None, :]
    radius = 2 * torch.sqrt(fy**2 + fx**2)
    return torch.sigmoid(40 * (cutoff - radius))


def df_loss(predicted: Tensor, target: Tensor, t: Tensor, alpha: float = 2.0, cutoff: float = 0.25) -> Tensor:
    """Dynamic frequency loss per sample `[B]` of pixels `[B,F,3,H,W]` at timesteps `[B]`: early steps (large t) weigh
    low frequencies, late steps high ones, with `c(t) = (t / t_max) ** alpha`."""
    spectrum = torch.view_as_real(torch.fft.rfft2(predicted - target, norm="ortho"))
    mask = low_pass(*predicted.shape[-2:], cutoff, predicted.device)[..., None]
    low = (mask * spectrum).abs().mean((1, 2, 3, 4, 5))
    high = ((1 - mask) * spectrum).abs().mean((1, 2, 3, 4, 5))
    c = (t / T_MAX) ** alpha
    return c * low + (1 - c) * high


def v_loss(predicted: Tensor, target: Tensor, sigma: Tensor, floor: float = 0.7) -> Tensor:
    """Mean squared error of `v` per sample `[B]`. Where `sigma` is below `floor` the error is measured as if it were
    `floor`, since `v` of a clean prediction diverges there."""
    weight = (sigma / sigma.clamp(min=floor)) ** 2
    return weight * (predicted - target).square().mean((1, 2, 3, 4))


def df_weight(t: Tensor) -> Tensor:
    """`b(t) = 1 - t / t_max` (paper, equation 2)."""
    return 1 - t / T_MAX


def grid_loss(predicted: Tensor, target: Tensor, period: int = 4) -> Tensor:
    """Energy per sample `[B]` of the part of the error of pixels `[B,F,3,H,W]` that repeats every `period` pixels in both directions: a
    grid, which a network that writes blocks of pixels leaves behind."""
    error = (predicted - target).mean((1, 2))
    phases = error.unflatten(2, (-1, period)).unflatten(1, (-1, period)).mean((1, 3))
    return (phases - phases.mean((1, 2), keepdim=True)).square().mean((1, 2))
