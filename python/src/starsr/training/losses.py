# SPDX-License-Identifier: MPL-2.0
"""The training objective of STAR (paper, section 3.3 and equation 2), with the DF loss as the paper defines it.

The released code differs from the paper in two ways (SPEC C): its DF loss carries no gradient, and its "low-pass" keeps
the weakest coefficients instead of the lowest frequencies. The second can be had for comparison.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

T_MAX = 999

#: How the DF loss weighs frequencies over the timesteps: `direct` is the paper's (low ones at large t), `inverse` the other
#: way round, `unseparated` weighs all alike, `released` separates by magnitude as the released code does, `none` leaves the
#: loss out.
SEPARATIONS = ("direct", "inverse", "unseparated", "released", "none")


@dataclass(frozen=True)
class DfConfig:
    """The DF loss: kind (`SEPARATIONS`), exponent `alpha` of `c(t) = (t / t_max) ** alpha`, weight `beta` (larger for
    fidelity), whether `b(t) = beta (1 - t / t_max)` falls with t or is constant, and the low-pass's cutoff in Nyquist
    frequencies."""

    separation: str = "direct"
    alpha: float = 2.0
    beta: float = 1.0
    falling: bool = True
    cutoff: float = 0.25

    def __post_init__(self) -> None:
        if self.separation not in SEPARATIONS:
            raise ValueError(f"the DF loss is {self.separation!r}, but must be one of {', '.join(SEPARATIONS)}")


@cache
def low_pass(height: int, width: int, cutoff: float, device: torch.device) -> Tensor:
    """Radial low-pass `[height, width//2+1]` for `rfft2`: 1 below `cutoff` (of the Nyquist frequency), smooth edge."""
    fy = torch.fft.fftfreq(height, device=device)[:, None]
    fx = torch.fft.rfftfreq(width, device=device)[None, :]
    radius = 2 * torch.sqrt(fy**2 + fx**2)
    return torch.sigmoid(40 * (cutoff - radius))


def weakest(spectrum: Tensor) -> Tensor:
    """The released code's mask of a spectrum `[...,h,w,2]`, `[...,h,w,1]`: near 1 for the 80 % weakest coefficients of each
    sample."""
    magnitude = torch.linalg.vector_norm(spectrum.detach(), dim=-1, keepdim=True)
    cutoff = torch.quantile(magnitude.flatten(1)[:, ::7], 0.8, dim=1).reshape(-1, *[1] * (magnitude.ndim - 1))
    return torch.sigmoid(10 * (cutoff - magnitude))


def df_loss(predicted: Tensor, target: Tensor, t: Tensor, config: DfConfig = DfConfig()) -> Tensor:
    """Dynamic frequency loss per sample `[B]` of pixels `[B,F,3,H,W]` at timesteps `[B]`, without its weight `df_weight`."""
    precise = torch.promote_types(predicted.dtype, torch.float32)
    a, b = (torch.view_as_real(torch.fft.rfft2(pixels.to(precise), norm="ortho")) for pixels in (predicted, target))
    axes = tuple(range(1, a.ndim))
    if config.separation == "unseparated":
        return (a - b).abs().mean(axes)
    if config.separation == "released":
        masks = weakest(a), weakest(b)
    else:
        masks = (low_pass(*predicted.shape[-2:], config.cutoff, predicted.device)[..., None],) * 2
    low = (masks[0] * a - masks[1] * b).abs().mean(axes)
    high = ((1 - masks[0]) * a - (1 - masks[1]) * b).abs().mean(axes)
    c = (t / T_MAX) ** config.alpha
    if config.separation == "inverse":
        c = 1 - c
    return c * low + (1 - c) * high


def df_weight(t: Tensor, config: DfConfig = DfConfig()) -> Tensor:
    """`b(t)` (paper, equation 2)."""
    return config.beta * (1 - t / T_MAX if config.falling else torch.ones_like(t, dtype=torch.float32))


def v_loss(predicted: Tensor, target: Tensor, sigma: Tensor, floor: float = 0.7) -> Tensor:
    """Mean squared error of `v` per sample `[B]`. Where `sigma` is below `floor` the error is measured as if it were
    `floor`, since `v` of a clean prediction diverges there."""
    weight = (sigma / sigma.clamp(min=floor)) ** 2
    return weight * (predicted.float() - target.float()).square().mean((1, 2, 3, 4))


def grid_loss(predicted: Tensor, target: Tensor, period: int = 4, patch: int = 32) -> Tensor:
    """Share per sample `[B]` of the error of pixels `[B,F,3,H,W]` that repeats every `period` pixels within patches of
    `patch`: a grid, which a network that writes blocks of pixels leaves behind. Each patch counts alike, as a grid is seen best
    where the picture is flat. Sides are multiples of `patch`."""
    error = (predicted - target).mean(2)
    patches = error.unflatten(3, (-1, patch)).unflatten(2, (-1, patch)).transpose(3, 4)
    phases = patches.unflatten(5, (-1, period)).unflatten(4, (-1, period)).mean((4, 6))
    grid = (phases - phases.mean((4, 5), keepdim=True)).square().mean((4, 5))
    whole = patches.detach().square().mean((4, 5))
    return (grid / (whole + 1e-6)).mean((1, 2, 3))


def translation(first: Tensor, second: Tensor) -> Tensor:
    """Whole pixels (down, right) `[B,2]` by which pictures `[B,3,H,W]` have moved from `first` to `second`, by phase
    correlation."""
    a, b = (torch.fft.rfft2(pictures.float().mean(1)) for pictures in (first, second))
    cross = b * a.conj()
    peak = torch.fft.irfft2(cross / cross.abs().clamp(min=1e-9), s=first.shape[2:]).flatten(1).argmax(1)
    height, width = first.shape[2:]
    moved = ((peak // width, height), (peak % width, width))
    return torch.stack([torch.where(steps > side // 2, steps - side, steps) for steps, side in moved], 1)


def moved_by(pictures: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures `[N,3,H,W]` moved back by pixels (down, right) `[N,2]`, and a mask `[N,1,H,W]` of what they show there."""
    height, width = pictures.shape[2:]
    rows, columns = (
        torch.arange(side, device=pictures.device) + steps[:, None] for side, steps in zip((height, width), moved.unbind(1))
    )
    back = pictures.gather(2, (rows % height)[:, None, :, None].expand_as(pictures))
    back = back.gather(3, (columns % width)[:, None, None, :].expand_as(pictures))
    inside = [(places >= 0) & (places < side) for side, places in zip((height, width), (rows, columns))]
    return back, inside[0][:, None, :, None] & inside[1][:, None, None, :]


def change(clips: Tensor, moved: Tensor) -> Tensor:
    """Mean squared difference `[B]` of neighbouring frames of clips `[B,F,3,H,W]` where both show the same, with the pixels
    (down, right) `[B,F-1,2]` by which the picture has `moved` from each to the next."""
    back, inside = moved_by(clips[:, 1:].flatten(0, 1), moved.flatten(0, 1))
    errors = ((clips[:, :-1].flatten(0, 1) - back).square() * inside).sum((1, 2, 3)) / (3 * inside.sum((1, 2, 3)))
    return errors.unflatten(0, moved.shape[:2]).mean(1)


def flicker_loss(predicted: Tensor, plain: Tensor, target: Tensor, quiet: float = 1e-6) -> Tensor:
    """By how much, as a logarithm per sample `[B]`, pixels `[B,F,3,H,W]` change along the motion of the target by more than
    nine tenths of what the plain upscale does: E*_warp, for clips that only pan. 0 for others."""
    if target.shape[1] == 1:
        return predicted.new_zeros(len(target))
    pairs = (target[:, frames].flatten(0, 1) for frames in (slice(-1), slice(1, None)))
    moved = translation(*pairs).unflatten(0, (len(target), -1))
    ours, theirs = change(predicted, moved), change(plain, moved)
    loss = ((ours + quiet) / (0.9 * theirs + quiet)).log().clamp(min=0)
    return torch.where(change(target, moved) < quiet, loss, 0)
