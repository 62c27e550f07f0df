# SPDX-License-Identifier: MPL-2.0
"""Low-quality clips from clean ones: blur, downscale, noise and a codec, in the manner of Real-ESRGAN's first order.

Unlike the released recipe (SPEC D) one draw holds for the whole clip, so that degradations are coherent in time, and the
codec sees the clip as video, so that its inter-frame artefacts are there.
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
    """One draw. Blur in high-resolution pixels, noise in 8-bit levels; `codec` is a name or None with its quality."""

    blur: tuple[float, float] = (0.0, 0.0)
    angle: float = 0.0
    mode: str = "area"
    gaussian: float = 0.0
    poisson: float = 0.0
    gray: bool = False
    codec: str | None = None
    quality: float = 0.0


def draw(rng: np.random.Generator) -> Degradation:
    """A random degradation; about a tenth is nearly clean."""
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
    """`[F,3,H,W]` to a quarter of its size in each direction, antialiased."""
    size = (clip.shape[2] // SCALE, clip.shape[3] // SCALE)
    if mode == "area":
        return F.avg_pool2d(clip, SCALE)
    return F.interpolate(clip, size=size, mode=mode, antialias=True, align_corners=False)


def degrade(clip: Tensor, degradation: Degradation, rng: np.random.Generator) -> np.ndarray:
    """Low-quality uint8 `[F,H/4,W/4,3]` of a clean clip `[F,3,H,W]` in [0,1]."""
    if degradation.blur[0]:
        size = 2 * min(10, max(1, math.ceil(3 * max(degradation.blur)))) + 1
        clip = kernels.blur(clip, kernels.gaussian(size, degradation.blur, degradation.angle).expand(len(clip), -1, -1))
    low = downscale(clip, degradation.mode).clamp(0, 1).numpy()
    if degradation.gaussian:
        shape = (low.shape[0], 1 if degradation.gray else 3, *low.shape[2:])
        low = low + rng.normal(0, degradation.gaussian / 255, shape)
    if degradation.poisson:
        level = 255.0 / max(degradation.poisson, 1e-3)
        low = rng.poisson(np.clip(low, 0, 1) * level) / level
    low = np.clip(np.rint(low * 255), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    return transcode(low, degradation.codec, quality=degradation.quality) if degradation.codec else low
