# SPDX-License-Identifier: MPL-2.0
"""Blur, downscaling, noise and a codec, in the manner of Real-ESRGAN's first order.

Unlike in the released recipe, one draw holds for the whole clip, so that degradations are coherent
in time, and the codec sees the clip as video, so that it leaves inter-frame artefacts.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from starsr.data.media import SCALE
from starsr.degradation import kernels
from starsr.degradation.codecs import transcode


@dataclass(frozen=True)
class Degradation:
    """One draw.

    `blur` is the standard deviation in high-resolution pixels along two axes turned by `angle`,
    noise is in 8-bit levels, and `codec` is one of `codecs.VIDEO` with its `quality`.
    """

    blur: tuple[float, float] = (0.0, 0.0)
    angle: float = 0.0
    mode: str = "area"
    gaussian: float = 0.0
    poisson: float = 0.0
    gray: bool = False
    codec: str | None = None
    quality: float = 0.0


def draw(rng: np.random.Generator) -> Degradation:
    """Draw a degradation; about a tenth of them are nearly clean."""
    if rng.random() < 0.08:
        return Degradation(mode=str(rng.choice(["area", "bicubic"])))
    sigma = rng.uniform(0.2, 3.2)
    aspect = rng.uniform(0.6, 1.0) if rng.random() < 0.3 else 1.0
    noisy = rng.random()
    codec, quality = None, 0.0
    kind = rng.random()
    if kind < 0.7:
        codec, quality = "libx264", rng.uniform(18, 42)
    elif kind < 0.8:
        codec, quality = "mpeg4", rng.uniform(3, 24)
    elif kind < 0.9:
        codec, quality = "mjpeg", rng.uniform(3, 20)
    return Degradation(
        blur=(sigma, sigma * aspect) if rng.random() < 0.9 else (0.0, 0.0),
        angle=rng.uniform(0, math.pi),
        mode=str(rng.choice(["area", "bilinear", "bicubic"])),
        gaussian=20.0 * rng.random() ** 1.5 if noisy < 0.55 else 0.0,
        poisson=rng.uniform(0.1, 2.0) if 0.55 <= noisy < 0.7 else 0.0,
        gray=rng.random() < 0.4,
        codec=codec,
        quality=quality,
    )


def downscale(clip: Tensor, mode: str) -> Tensor:
    """Shrink `[F,3,H,W]` to `[F,3,H/4,W/4]`, antialiased."""
    size = (clip.shape[2] // SCALE, clip.shape[3] // SCALE)
    if mode == "area":
        return F.avg_pool2d(clip, SCALE)
    return F.interpolate(clip, size=size, mode=mode, antialias=True, align_corners=False)


def degrade(clip: Tensor, degradation: Degradation, rng: np.random.Generator) -> np.ndarray:
    """Degrade a clean clip `[F,3,H,W]` in [0,1] to `[F,H/4,W/4,3]` uint8."""
    if degradation.blur[0]:
        size = 2 * min(10, max(1, math.ceil(3 * max(degradation.blur)))) + 1
        kernel = kernels.gaussian(size, degradation.blur, degradation.angle)
        clip = kernels.blur(clip, kernel.expand(len(clip), -1, -1))
    low = downscale(clip, degradation.mode).clamp(0, 1).numpy()
    if degradation.gaussian:
        shape = (low.shape[0], 1 if degradation.gray else 3, *low.shape[2:])
        low = low + rng.normal(0, degradation.gaussian / 255, shape)
    if degradation.poisson:
        level = 255.0 / max(degradation.poisson, 1e-3)
        low = rng.poisson(np.clip(low, 0, 1) * level) / level
    levels = np.clip(np.rint(low * 255), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    if degradation.codec is None:
        return levels
    return transcode(levels, degradation.codec, quality=degradation.quality)
