# SPDX-License-Identifier: MPL-2.0
"""The training objective of STAR (paper, section 3.3 and equation 2), and nano's further losses.

The dynamic frequency (DF) loss follows the paper. The released code differs in two ways: its DF
loss carries no gradient, and its "low-pass" keeps the weakest coefficients instead of the lowest
frequencies. The latter is available for comparison.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

T_MAX = 999

#: How the DF loss weighs frequencies over the timesteps: `direct` as in the paper (low frequencies
#: at large t), `inverse` the other way round, `unseparated` all alike, `released` by magnitude as
#: in the released code, and `none` for no DF loss.
SEPARATIONS = ("direct", "inverse", "unseparated", "released", "none")


@dataclass(frozen=True)
class DfConfig:
    """Settings of the DF loss.

    `separation` is one of `SEPARATIONS`, `alpha` the exponent of `c(t) = (t / t_max) ** alpha` and
    `beta` the weight, larger for fidelity. `b(t) = beta (1 - t / t_max)` is constant unless
    `falling`. `cutoff` of the low-pass is a fraction of the Nyquist frequency.
    """

    separation: str = "direct"
    alpha: float = 2.0
    beta: float = 1.0
    falling: bool = True
    cutoff: float = 0.25

    def __post_init__(self) -> None:
        if self.separation not in SEPARATIONS:
            raise ValueError(
                f"the DF loss is {self.separation!r}, but must be one of {', '.join(SEPARATIONS)}"
            )


DF = DfConfig()


@cache
def low_pass(height: int, width: int, cutoff: float, device: torch.device) -> Tensor:
    """Return a radial low-pass `[height,width//2+1]` for `rfft2`.

    It is 1 below `cutoff`, a fraction of the Nyquist frequency, and has a smooth edge.
    """
    fy = torch.fft.fftfreq(height, device=device)[:, None]
    fx = torch.fft.rfftfreq(width, device=device)[None, :]
    radius = 2 * torch.sqrt(fy**2 + fx**2)
    return torch.sigmoid(40 * (cutoff - radius))


def weakest(spectrum: Tensor) -> Tensor:
    """Return the released code's mask `[...,h,w,1]` of a spectrum `[...,h,w,2]`.

    It is near 1 for the 80 % weakest coefficients of each sample.
    """
    magnitude = torch.linalg.vector_norm(spectrum.detach(), dim=-1, keepdim=True)
    cutoff = torch.quantile(magnitude.flatten(1)[:, ::7], 0.8, dim=1)
    cutoff = cutoff.reshape(-1, *[1] * (magnitude.ndim - 1))
    return torch.sigmoid(10 * (cutoff - magnitude))


def df_loss(predicted: Tensor, target: Tensor, t: Tensor, config: DfConfig = DF) -> Tensor:
    """Return the DF loss per sample `[B]`, without its weight `df_weight`.

    Takes pixels `[B,F,3,H,W]` and timesteps `t` `[B]`.
    """
    precise = torch.promote_types(predicted.dtype, torch.float32)
    a, b = (
        torch.view_as_real(torch.fft.rfft2(pixels.to(precise), norm="ortho"))
        for pixels in (predicted, target)
    )
    axes = tuple(range(1, a.ndim))
    if config.separation == "unseparated":
        return (a - b).abs().mean(axes)
    if config.separation == "released":
        mask_a, mask_b = weakest(a), weakest(b)
    else:
        height, width = predicted.shape[-2:]
        mask_a = mask_b = low_pass(height, width, config.cutoff, predicted.device)[..., None]
    low = (mask_a * a - mask_b * b).abs().mean(axes)
    high = ((1 - mask_a) * a - (1 - mask_b) * b).abs().mean(axes)
    c = (t / T_MAX) ** config.alpha
    if config.separation == "inverse":
        c = 1 - c
    return c * low + (1 - c) * high


def df_weight(t: Tensor, config: DfConfig = DF) -> Tensor:
    """Return `b(t)` (paper, equation 2)."""
    falling = 1 - t / T_MAX if config.falling else torch.ones_like(t, dtype=torch.float32)
    return config.beta * falling


def v_loss(predicted: Tensor, target: Tensor, sigma: Tensor, floor: float = 0.7) -> Tensor:
    """Return the mean squared error of `v` per sample `[B]`.

    Where `sigma` is below `floor`, the error is measured as if it were `floor`, since `v` of a
    clean prediction diverges there.
    """
    weight = (sigma / sigma.clamp(min=floor)) ** 2
    return weight * (predicted.float() - target.float()).square().mean((1, 2, 3, 4))


def grid_loss(predicted: Tensor, target: Tensor, period: int = 4, patch: int = 32) -> Tensor:
    """Return the share of the error that repeats every `period` pixels, per sample `[B]`.

    Such a grid is what a network leaves behind that writes blocks of pixels. It is measured within
    patches of `patch` pixels, each of which counts alike, as a grid is most visible where the
    picture is flat. Takes pixels `[B,F,3,H,W]` whose sides are multiples of `patch`.
    """
    error = (predicted - target).mean(2)
    patches = error.unflatten(3, (-1, patch)).unflatten(2, (-1, patch)).transpose(3, 4)
    phases = patches.unflatten(5, (-1, period)).unflatten(4, (-1, period)).mean((4, 6))
    grid = (phases - phases.mean((4, 5), keepdim=True)).square().mean((4, 5))
    whole = patches.detach().square().mean((4, 5))
    return (grid / (whole + 1e-6)).mean((1, 2, 3))


def translation(first: Tensor, second: Tensor) -> Tensor:
    """Find by phase correlation how far pictures have moved from `first` to `second`.

    Takes `[B,3,H,W]` and returns whole pixels (down, right) `[B,2]`.
    """
    a, b = (torch.fft.rfft2(pictures.float().mean(1)) for pictures in (first, second))
    cross = b * a.conj()
    correlation = torch.fft.irfft2(cross / cross.abs().clamp(min=1e-9), s=first.shape[2:])
    peak = correlation.flatten(1).argmax(1)
    height, width = first.shape[2:]
    moved = ((peak // width, height), (peak % width, width))
    return torch.stack(
        [torch.where(steps > side // 2, steps - side, steps) for steps, side in moved], 1
    )


def moved_by(pictures: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
    """Move pictures `[N,3,H,W]` back by pixels (down, right) `[N,2]`.

    Returns them with a mask `[N,1,H,W]` of the pixels that come from inside the picture.
    """
    height, width = pictures.shape[2:]
    down, right = moved.unbind(1)
    rows = torch.arange(height, device=pictures.device) + down[:, None]
    columns = torch.arange(width, device=pictures.device) + right[:, None]
    back = pictures.gather(2, (rows % height)[:, None, :, None].expand_as(pictures))
    back = back.gather(3, (columns % width)[:, None, None, :].expand_as(pictures))
    in_rows, in_columns = (
        (places >= 0) & (places < side) for side, places in ((height, rows), (width, columns))
    )
    return back, in_rows[:, None, :, None] & in_columns[:, None, None, :]


def change(clips: Tensor, moved: Tensor) -> Tensor:
    """Return the mean squared difference `[B]` of neighbouring frames along their motion.

    Takes clips `[B,F,3,H,W]` and the pixels (down, right) `[B,F-1,2]` by which the picture has
    moved from each frame to the next. Counts only what both frames show.
    """
    back, inside = moved_by(clips[:, 1:].flatten(0, 1), moved.flatten(0, 1))
    errors = ((clips[:, :-1].flatten(0, 1) - back).square() * inside).sum((1, 2, 3))
    errors = errors / (3 * inside.sum((1, 2, 3)))
    return errors.unflatten(0, moved.shape[:2]).mean(1)


def flicker_loss(predicted: Tensor, plain: Tensor, target: Tensor, quiet: float = 1e-6) -> Tensor:
    """Compare the change along the motion of the target with nine tenths of that of `plain`.

    Returns the logarithm of the ratio per sample `[B]`, or 0 if the prediction changes less. This
    is E*_warp for clips that only pan; for others the loss is 0. All clips are `[B,F,3,H,W]`.
    """
    if target.shape[1] == 1:
        return predicted.new_zeros(len(target))
    first, second = (target[:, s].flatten(0, 1) for s in (slice(-1), slice(1, None)))
    moved = translation(first, second).unflatten(0, (len(target), -1))
    ours, theirs = change(predicted, moved), change(plain, moved)
    loss = ((ours + quiet) / (0.9 * theirs + quiet)).log().clamp(min=0)
    return torch.where(change(target, moved) < quiet, loss, 0)
