# SPDX-License-Identifier: MPL-2.0
"""The contrast that training takes from edges where degradation has hidden where they are.

All losses of pixels reward the mean of what may have been there, and that is soft. The last stage
of the student's training gives the contrast back: the student learns to do what an unsharp mask
would, in proportion to what a clip has lost.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from starsr.data.media import SCALE
from starsr.data.resize import bicubic
from starsr.degradation import kernels

#: Standard deviation of the blur in pixels, and the side of its kernel.
SIGMA, SIDE = 1.5, 11
#: Severity up to which clips keep their contrast.
MILD = 0.2


def severity(plain: Tensor, high: Tensor) -> Tensor:
    """Return how much clips `[N,F,3,H,W]` lost beside pixels, `[N]` from 0 to 1.

    It compares the error of `plain`, the bicubic upscale of the low frames, with that of a clean
    shrink's: 1 dB more counts as nothing, 6 dB more as 1.
    """
    small = F.avg_pool2d(high.flatten(0, 1), SCALE).unflatten(0, high.shape[:2])
    errors = [(frames - high).square().mean((1, 2, 3, 4)) for frames in (plain, bicubic(small))]
    ratio = (errors[0] + 1e-5) / (errors[1] + 1e-5)
    return ((10 * ratio.log10() - 1) / 5).clamp(0, 1)


def lost_contrast(clips: Tensor, lost: Tensor, gain: float) -> Tensor:
    """Return what gives clips `[N,F,3,H,W]` their contrast back: a share of their finest parts.

    It is `gain` times what differs from a blurred copy in clips of severity `lost` `[N]` 1, and
    less in others.
    """
    frames = clips.flatten(0, 1)
    kernel = kernels.gaussian(SIDE, (SIGMA, SIGMA), 0.0).to(clips).expand(len(frames), -1, -1)
    fine = clips - kernels.blur(frames, kernel).view_as(clips)
    share = gain * ((lost - MILD) / (1 - MILD)).clamp(min=0)
    return share[:, None, None, None, None] * fine


def by_loss(factors: tuple[float, float], lost: Tensor) -> Tensor:
    """Return the factor `[N,1,1,1,1]` of clips of severity `lost` `[N]`.

    `factors` are those of clips that lost nothing and of clips that lost most.
    """
    return torch.lerp(*map(lost.new_tensor, factors), lost)[:, None, None, None, None]
