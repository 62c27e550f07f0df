# SPDX-License-Identifier: MPL-2.0
"""Discriminators over space and time.

One judges pixels and their change from frame to frame, the other slices along time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

SLOPE = 0.2


def conv(inputs: int, outputs: int, size: int = 3, stride: int | tuple[int, int] = 1) -> nn.Module:
    """Return a convolution with spectral normalisation."""
    return spectral_norm(nn.Conv2d(inputs, outputs, size, stride, size // 2))


class FrameCritic(nn.Module):
    """Gives a logit for each 2x2 pixels of frames.

    It sees a frame with the changes from the frame before and to the frame after, and with the
    plain upscale. As a U-Net, it judges detail together with its surroundings.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.enter = nn.Conv2d(4 * 12, width, 3, 1, 1)
        self.down1 = conv(width, 2 * width, 3, 2)
        self.down2 = conv(2 * width, 4 * width, 3, 2)
        self.deep = conv(4 * width, 4 * width)
        self.up2, self.up1 = conv(4 * width, 2 * width), conv(2 * width, width)
        self.last = conv(width, width)
        self.judge = nn.Conv2d(width, 1, 3, 1, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        """Map pictures `[N,12,H,W]`, as `changes` makes them, to logits `[N,1,H/2,W/2]`."""
        fine = F.leaky_relu(self.enter(F.pixel_unshuffle(pictures, 2)), SLOPE)
        half = F.leaky_relu(self.down1(fine), SLOPE)
        quarter = F.leaky_relu(self.deep(F.leaky_relu(self.down2(half), SLOPE)), SLOPE)
        half = half + enlarged(F.leaky_relu(self.up2(quarter), SLOPE))
        fine = fine + enlarged(F.leaky_relu(self.up1(half), SLOPE))
        logits: Tensor = self.judge(F.leaky_relu(self.last(fine), SLOPE))
        return logits


class SliceCritic(nn.Module):
    """Gives logits for slices `[N,3,F,W]` whose rows are frames. Flicker is rough along time."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, width, 3, 1, 1)
        self.body = nn.ModuleList(
            [
                conv(width, 2 * width, 3, (1, 2)),
                conv(2 * width, 4 * width, 3, (1, 2)),
                conv(4 * width, 4 * width),
            ]
        )
        self.judge = nn.Conv2d(4 * width, 1, 3, 1, 1)

    def forward(self, slices: Tensor) -> Tensor:
        """Map slices `[N,3,F,W]` to logits `[N,1,F,W/4]`."""
        x = F.leaky_relu(self.enter(slices), SLOPE)
        for layer in self.body:
            x = F.leaky_relu(layer(x), SLOPE)
        logits: Tensor = self.judge(x)
        return logits


class Critic(nn.Module):
    """Both discriminators."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.frames, self.slices = FrameCritic(width), SliceCritic(width // 2)

    def forward(self, clips: Tensor, plain: Tensor, rows: Tensor, columns: Tensor) -> list[Tensor]:
        """Return the logits of both discriminators for clips `[N,F,3,H,W]`.

        `plain` is the bicubic upscale of the same shape. The first discriminator judges all frames
        except the first and the last one, the second slices through `rows` and `columns`, which are
        indices `[K]`.
        """
        return [self.frames(changes(clips, plain)), self.slices(slices(clips, rows, columns))]


def changes(clips: Tensor, plain: Tensor) -> Tensor:
    """Stack frames with their changes and the plain upscale, `[N*(F-2),12,H,W]`.

    The first and the last frame of a clip are left out. The changes are amplified.
    """
    middle = clips[:, 1:-1]
    before, after = 3 * (middle - clips[:, :-2]), 3 * (clips[:, 2:] - middle)
    return torch.cat([middle, before, after, plain[:, 1:-1]], 2).flatten(0, 1)


def slices(clips: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Cut slices `[N*2K,3,F,side]` through square clips, along the given rows and columns."""
    along_rows = clips[:, :, :, rows].permute(0, 3, 2, 1, 4).flatten(0, 1)
    along_columns = clips[..., columns].permute(0, 4, 2, 1, 3).flatten(0, 1)
    return torch.cat([along_rows, along_columns])


def enlarged(features: Tensor) -> Tensor:
    """Repeat each pixel twice in each direction."""
    return F.interpolate(features, scale_factor=2.0)


def critic_loss(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Return the loss that the discriminators minimise."""
    losses = [
        F.softplus(-r.float()).mean() + F.softplus(f.float()).mean()
        for r, f in zip(real, fake, strict=True)
    ]
    return torch.stack(losses).sum()


def realism_loss(fake: list[Tensor]) -> Tensor:
    """Return the loss that the student minimises."""
    return torch.stack([F.softplus(-f.float()).mean() for f in fake]).sum()
