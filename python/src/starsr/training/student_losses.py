# SPDX-License-Identifier: MPL-2.0
"""Losses of the student of nano: for fidelity, for detail, and for steadiness along the motion."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from starsr.training.losses import grid_loss
from starsr.training.moving import warped

#: Mean squared errors below which there is nothing to gain: of pixels, 55 dB, and of their change
#: between frames, 60 dB.
QUIET, STEADY = 3e-6, 1e-6
#: Frames show the same where they differ by at most this after the motion is undone.
SAME = 0.1
#: Periods of grids in pixels and their shares of the weight.
GRIDS = {4: 1.0, 8: 0.25}


def frequency_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute difference `[N]` of the spectra of clips `[N,F,3,H,W]`."""
    spectrum = torch.fft.rfft2(predicted - target, norm="ortho")
    return torch.view_as_real(spectrum).abs().mean((1, 2, 3, 4, 5))


def unsteadiness(predicted: Tensor, target: Tensor, moves: Tensor) -> tuple[Tensor, Tensor]:
    """Return how the error changes from each frame to the next along the motion.

    Takes clips `[N,F,3,H,W]` and `moves` `[N,F-1,3,3]`. The change is `[N*(F-1),3,H,W]`; a mask
    `[N*(F-1),1,H,W]` says where both frames of the target show the same.
    """
    error = (predicted - target)[:, 1:].flatten(0, 1)
    following = torch.cat([error, target[:, 1:].flatten(0, 1)], 1)
    later, inside = warped(following, moves.flatten(0, 1))
    change = (predicted - target)[:, :-1].flatten(0, 1) - later[:, :3]
    difference = (target[:, :-1].flatten(0, 1) - later[:, 3:]).abs().amax(1, keepdim=True)
    return change, inside & (difference < SAME)


def mean_of(values: Tensor, mask: Tensor, clips: int) -> Tensor:
    """Return the mean per clip `[N]` of values `[N*(F-1),3,H,W]` where the mask holds."""
    summed = (values * mask).sum((1, 2, 3)).unflatten(0, (clips, -1)).sum(1)
    return summed / (3 * mask.sum((1, 2, 3)).unflatten(0, (clips, -1)).sum(1) + 1)


def grid_losses(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the weighted sum of the grid losses of all periods."""
    patch = math.gcd(predicted.shape[-1], 32)
    losses = [
        share * grid_loss(predicted, target, period, patch).mean()
        for period, share in GRIDS.items()
    ]
    return torch.stack(losses).sum()


def fidelity_loss(
    predicted: Tensor,
    target: Tensor,
    moves: Tensor,
    *,
    frequency_weight: float = 4.0,
    steady_weight: float = 0.1,
    grid_weight: float = 10.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of the first stage, and figures for the log.

    By the logarithm a decibel counts the same in all clips, easy or hard.
    """
    error = (predicted - target).square().mean((1, 2, 3, 4))
    change, same = unsteadiness(predicted, target, moves)
    steady = mean_of(change.square(), same, len(predicted))
    grid, frequency = grid_losses(predicted, target), frequency_loss(predicted, target).mean()
    loss = (error + QUIET).log().mean() + steady_weight * (steady + STEADY).log().mean()
    loss = loss + frequency_weight * frequency + grid_weight * grid
    psnr = -10 * (error + 1e-9).log10().mean()
    return loss, {
        "psnr": psnr,
        "frequency": frequency,
        "steady": 1000 * steady.mean(),
        "grid": grid,
    }


def charbonnier(x: Tensor) -> Tensor:
    """Return the absolute value, smoothed at zero."""
    return (x.square() + 1e-6).sqrt()


def plain_losses(predicted: Tensor, target: Tensor, moves: Tensor) -> dict[str, Tensor]:
    """Return those losses of the second stage that need no other network."""
    change, same = unsteadiness(predicted, target, moves)
    blurred = F.avg_pool2d((predicted - target).flatten(0, 1), 16, 8)
    return {
        "pixel": charbonnier(predicted - target).mean(),
        "steady": mean_of(charbonnier(change), same, len(predicted)).mean(),
        "colour": charbonnier(blurred).mean(),
        "grid": grid_losses(predicted, target),
    }


class Balance:
    """Scales gradients in proportion to the first one, by running means of their norms."""

    def __init__(self, decay: float = 0.98) -> None:
        self.decay = decay
        self.norms: dict[str, Tensor] = {}

    def scale(self, name: str, gradient: Tensor) -> Tensor:
        """Take in the norm of a gradient and return the running mean."""
        norm = torch.linalg.vector_norm(gradient)
        norm = torch.where(norm.isfinite(), norm, 0.0)
        mean = self.norms[name].lerp(norm, 1 - self.decay) if name in self.norms else norm
        self.norms[name] = mean
        return mean

    def total(self, first: str, gradients: dict[str, Tensor], shares: dict[str, float]) -> Tensor:
        """Return the gradient `first` plus the others, each of `share` times its size."""
        unit = self.scale(first, gradients[first])
        result = gradients[first]
        for name, share in shares.items():
            norm = self.scale(name, gradients[name]) + 1e-12
            result = result + gradients[name] * (share * unit / norm)
        return result
