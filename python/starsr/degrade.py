# SPDX-License-Identifier: MPL-2.0
"""Low-quality clips from clean ones: blur, downscale, noise and a codec, in the manner of Real-ESRGAN's first order.

Unlike the released recipe (SPEC D) one draw holds for the whole clip, so that degradations are coherent in time, and the
codec sees the clip as video, so that its inter-frame artefacts are there.
"""

import io
import math
from dataclasses import dataclass

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from starsr.color import YCBCR

SCALE = 4


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


def gaussian_kernel(sigmas: tuple[float, float], angle: float) -> Tensor:
    """Normalised anisotropic Gaussian `[k,k]`, k odd and at most 21."""
    radius = min(10, max(1, math.ceil(3 * max(sigmas))))
    y, x = torch.meshgrid(*[torch.arange(-radius, radius + 1.0)] * 2, indexing="ij")
    u = math.cos(angle) * x + math.sin(angle) * y
    v = -math.sin(angle) * x + math.cos(angle) * y
    kernel = torch.exp(-0.5 * ((u / max(sigmas[0], 1e-3)) ** 2 + (v / max(sigmas[1], 1e-3)) ** 2))
    return kernel / kernel.sum()


def blur(clip: Tensor, kernel: Tensor) -> Tensor:
    """Convolution of each frame and channel of `[F,3,H,W]`, edges replicated."""
    radius = kernel.shape[0] // 2
    planes = F.pad(clip.reshape(-1, 1, *clip.shape[2:]), (radius,) * 4, mode="replicate")
    return F.conv2d(planes, kernel[None, None]).reshape(clip.shape)


def downscale(clip: Tensor, mode: str) -> Tensor:
    """`[F,3,H,W]` to a quarter of its size in each direction, antialiased."""
    size = (clip.shape[2] // SCALE, clip.shape[3] // SCALE)
    if mode == "area":
        return F.avg_pool2d(clip, SCALE)
    return F.interpolate(clip, size=size, mode=mode, antialias=True, align_corners=False)


def to_yuv420(clip: np.ndarray, full_range: bool) -> np.ndarray:
    """`[F,h,w,3]` uint8 RGB with even sides to planar 4:2:0 `[F,h*3/2,w]`, rounded to nearest: a colour cast of the
    converter, however small, would be learned."""
    frames, height, width, _ = clip.shape
    yuv = clip.reshape(-1, 3) @ YCBCR.T
    yuv = yuv.reshape(frames, height, width, 3) * ([1, 1, 1] if full_range else [219 / 255, 224 / 255, 224 / 255])
    luma = yuv[..., 0] + (0 if full_range else 16)
    chroma = yuv[..., 1:].reshape(frames, height // 2, 2, width // 2, 2, 2).mean((2, 4)) + 128
    planes = [luma.reshape(frames, -1), chroma[..., 0].reshape(frames, -1), chroma[..., 1].reshape(frames, -1)]
    packed = np.concatenate(planes, 1).reshape(frames, height * 3 // 2, width)
    return np.clip(np.rint(packed), 0, 255).astype(np.uint8)


def from_yuv420(planes: np.ndarray, full_range: bool) -> np.ndarray:
    """Inverse of `to_yuv420`, chroma repeated."""
    frames, rows, width = planes.shape
    height = rows * 2 // 3
    flat, size = planes.reshape(frames, -1).astype(np.float64), height * width
    chroma = flat[:, size:].reshape(frames, 2, height // 2, width // 2).repeat(2, 2).repeat(2, 3) - 128
    luma = flat[:, :size].reshape(frames, 1, height, width) - (0 if full_range else 16)
    if not full_range:
        luma, chroma = luma * (255 / 219), chroma * (255 / 224)
    rgb = np.concatenate([luma, chroma], 1).transpose(0, 2, 3, 1) @ np.linalg.inv(YCBCR).T
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def transcode(clip: np.ndarray, codec: str, quality: float, rate: int = 25) -> np.ndarray:
    """Encodes and decodes `[F,h,w,3]` uint8. `quality` is the CRF for libx264, else the quantiser scale."""
    frames, height, width, _ = clip.shape
    padded = np.pad(clip, ((0, 0), (0, -height % 2), (0, -width % 2), (0, 0)), mode="edge")
    buffer = io.BytesIO()
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = padded.shape[1:3]
        stream.pix_fmt = pixels
        stream.codec_context.thread_count = 1
        if codec == "libx264":
            stream.options = {"crf": f"{quality:.1f}", "preset": "veryfast"}
        else:
            stream.codec_context.flags |= av.codec.context.Flags.qscale
            stream.codec_context.global_quality = int(quality * 118)
        for planes in to_yuv420(padded, codec == "mjpeg"):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format=pixels)))
        container.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer) as container:
        decoded = np.stack([frame.to_ndarray() for frame in container.decode(video=0)])
    if len(decoded) != frames:
        raise RuntimeError(f"{codec} returned {len(decoded)} of {frames} frames")
    decoded = from_yuv420(decoded, codec == "mjpeg")
    return decoded[:, :height, :width]


def degrade(clip: Tensor, degradation: Degradation, rng: np.random.Generator) -> np.ndarray:
    """Low-quality uint8 `[F,H/4,W/4,3]` of a clean clip `[F,3,H,W]` in [0,1]."""
    if degradation.blur[0]:
        clip = blur(clip, gaussian_kernel(degradation.blur, degradation.angle))
    low = downscale(clip, degradation.mode).clamp(0, 1).numpy()
    if degradation.gaussian:
        shape = (low.shape[0], 1 if degradation.gray else 3, *low.shape[2:])
        low = low + rng.normal(0, degradation.gaussian / 255, shape)
    if degradation.poisson:
        level = 255.0 / max(degradation.poisson, 1e-3)
        low = rng.poisson(np.clip(low, 0, 1) * level) / level
    low = np.clip(np.rint(low * 255), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    return transcode(low, degradation.codec, degradation.quality) if degradation.codec else low
