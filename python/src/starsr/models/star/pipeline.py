# SPDX-License-Identifier: MPL-2.0
"""STAR from frames to frames in PyTorch, as the authors' program does it (see docs/star.md).

The noise is an argument. The plugin's results are compared with those of this pipeline.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from starsr.models.schedule import alphas_sigmas
from starsr.models.star.network import StarConfig, controlnet, denoiser
from starsr.models.star.vae import VaeConfig, decode, encode
from starsr.ops.torch_ops import TorchOps

#: Number of frames that the authors' program decodes at once.
DECODE_GROUP = 3

#: A prediction of `v` from scaled latents, a timestep, the hint, and whether the positive prompt
#: is meant.
Velocity = Callable[[Tensor, int, Tensor, bool], Tensor]


@dataclass(frozen=True)
class Sampling:
    """Settings of the sampler.

    `mode` is `fast` (14 evaluations) or `normal` (`steps` evaluations). `length` is the number of
    frames in a window; neighbouring windows share half of them.
    """

    mode: str = "fast"
    steps: int = 15
    noise_levels: int = 900
    guidance_scale: float = 7.5
    guidance_rescale: float = 0.2
    length: int = 32


@dataclass
class Noise:
    """N(0,1) noise.

    `start` is `[1,C,F,h,w]`, `steps` `[n-1,1,C,F,h,w]` for the `n` evaluations but the last, and
    `posterior` `[F,C,h,w]` that of the autoencoder's posterior, whose mean is taken without it.
    """

    start: Tensor
    steps: Tensor
    posterior: Tensor | None = None


@dataclass
class Trace:
    """Inputs and results `[1,C,F,h,w]` of each evaluation, for comparisons."""

    model_in: list[Tensor] = field(default_factory=list)
    denoised: list[Tensor] = field(default_factory=list)


def evaluation_points(sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """Return `k = sigma / alpha` and the timestep of each evaluation."""
    top = sampling.noise_levels - 1
    if sampling.mode == "fast":
        points = np.concatenate([np.arange(top, 499, -100), np.arange(500, -1, -(501 / 11))])[:14]
    else:
        stride = sampling.noise_levels / (sampling.steps + 1)
        points = (top - np.arange(sampling.steps) * stride).clip(0, top)
    alphas, sigmas = alphas_sigmas()
    log_k = np.log(sigmas[: top + 1] / alphas[: top + 1])
    return np.exp(np.interp(points, np.arange(top + 1), log_k)), np.rint(points).astype(np.int64)


def make_chunks(frames: int, length: int) -> list[tuple[int, int]]:
    """Return the windows of a clip as pairs of first frame and end.

    The last window holds up to 1.25 lengths, and a clip of up to that length is one window.
    """
    if 4 * frames <= 5 * length:
        return [(0, frames)]
    stride, start, chunks = length - length // 2, 0, []
    while start + 1.25 * length < frames:
        chunks.append((start, start + length))
        start += stride
    return [*chunks, (start, frames)]


def guide(positive: Tensor, negative: Tensor, sampling: Sampling) -> Tensor:
    """Combine the velocities of one window by classifier-free guidance with rescale."""
    v = negative + sampling.guidance_scale * (positive - negative)
    ratio = positive.std() / (v.std() + 1e-12)
    return v * (sampling.guidance_rescale * ratio + 1 - sampling.guidance_rescale)


def sample(
    velocity: Velocity, hint: Tensor, noise: Noise, sampling: Sampling, trace: Trace
) -> Tensor:
    """Restore latents, given the low-quality latents `hint` `[1,C,F,h,w]`."""
    alphas, sigmas = alphas_sigmas()
    k, t = evaluation_points(sampling)
    start = sampling.noise_levels - 1
    x = (float(alphas[start]) * hint + float(sigmas[start]) * noise.start) * k[0]
    chunks = make_chunks(hint.shape[2], sampling.length)
    before: Tensor | None = None
    step_before = 0.0
    for i in range(len(k) - 1):
        denoised = evaluate(velocity, x, k[i], int(t[i]), hint, chunks, sampling, trace)
        step = float(np.log(k[i] / k[i + 1]))
        decay = 1 - np.exp(-2 * step)
        x = (k[i + 1] / k[i]) * np.exp(-step) * x + decay * denoised
        if before is not None:
            x = x + 0.5 * decay * (step / step_before) * (denoised - before)
        x = x + noise.steps[i] * (k[i + 1] * decay**0.5)
        before, step_before = denoised, step
    return evaluate(velocity, x, k[-1], int(t[-1]), hint, chunks, sampling, trace)


def evaluate(
    velocity: Velocity,
    x: Tensor,
    k: float,
    t: int,
    hint: Tensor,
    chunks: Sequence[tuple[int, int]],
    sampling: Sampling,
    trace: Trace,
) -> Tensor:
    """Predict the clean latents from `x` at noise level `k` and record the evaluation."""
    model_in = x / (k**2 + 1) ** 0.5
    denoised = denoise(velocity, model_in, t, hint, chunks, sampling)
    trace.model_in.append(model_in)
    trace.denoised.append(denoised)
    return denoised


def denoise(
    velocity: Velocity,
    model_in: Tensor,
    t: int,
    hint: Tensor,
    chunks: Sequence[tuple[int, int]],
    sampling: Sampling,
) -> Tensor:
    """Predict the clean latents; neighbouring windows meet in the middle of their overlap."""
    alphas, sigmas = alphas_sigmas()
    parts = []
    for n, (start, end) in enumerate(chunks):
        x, low = model_in[:, :, start:end], hint[:, :, start:end]
        v = velocity(x, t, low, True)
        if sampling.guidance_scale != 1.0:
            v = guide(v, velocity(x, t, low, False), sampling)
        clean = float(alphas[t]) * x - float(sigmas[t]) * v
        half = (chunks[0][1] - chunks[1][0]) // 2 if len(chunks) > 1 else 0
        first = 0 if n == 0 else half
        last = end if n + 1 == len(chunks) else chunks[n + 1][0] + half
        parts.append(clean[:, :, first : last - start])
    return torch.cat(parts, 2)


def official_padding(
    height: int, width: int, minimum: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Return the pixels that `pad_to_fit` of the authors adds left, right, above and below.

    The result is at least `minimum` (height, width).
    """

    def centred(size: int, least: int, larger: int) -> tuple[int, int]:
        if size > least:
            return 0, larger - size
        return (least - size) // 2, least - size - (least - size) // 2

    above, below = centred(height, minimum[0], (height + 48) // 64 * 64 + 16)
    left, right = centred(width, minimum[1], width // 64 * 64 + 64)
    return left, right, above, below


def adain(content: Tensor, style: Tensor) -> Tensor:
    """Give frames `[F,H,W,3]` in [0,1] the mean and std of each channel of `style` `[F,h,w,3]`."""

    def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
        flat = x.flatten(1, 2)
        return flat.mean(1)[:, None, None], (flat.var(1) + 1e-5).sqrt()[:, None, None]

    (mean, std), (wanted_mean, wanted_std) = statistics(content), statistics(style)
    return ((content - mean) / std * wanted_std + wanted_mean).clamp(0, 1)


@dataclass
class Result:
    """What an upscale yields.

    `padded` is the canvas `[F,3,H,W]` in [-1,1], `hint` and `latents` are `[1,C,F,h,w]` before and
    after restoration, and `frames` and `fixed` are `[F,H,W,3]` in [0,1] before and after the
    colour fix.
    """

    padded: Tensor
    hint: Tensor
    latents: Tensor
    frames: Tensor
    fixed: Tensor
    trace: Trace


class Pipeline:
    """STAR with given weights of the networks and of the autoencoder, by name."""

    def __init__(
        self,
        star: Mapping[str, Tensor],
        vae: Mapping[str, Tensor],
        config: StarConfig,
        vae_config: VaeConfig,
        minimum: tuple[int, int] = (720, 1280),
    ) -> None:
        self.star, self.vae = TorchOps(star), TorchOps(vae)
        self.config, self.vae_config, self.minimum = config, vae_config, minimum

    def velocity(self, x: Tensor, t: int, hint: Tensor, text: Tensor) -> Tensor:
        """Predict `v` `[1,C,F,h,w]` under the text embedding `[1,77,D]`."""
        time = torch.tensor([t])
        controls = controlnet(self.star, x, time, hint, text, self.config)
        return denoiser(self.star, x, time, text, controls, self.config)

    def encode(self, pixels: Tensor, noise: Tensor | None) -> Tensor:
        """Encode canvases `[F,3,H,W]` frame by frame as latents `[1,C,F,h,w]`."""
        moments = [encode(self.vae, frame[None], self.vae_config) for frame in pixels]
        mean, std = (torch.cat(parts) for parts in zip(*moments, strict=True))
        latents = mean if noise is None else mean + std * noise
        return latents.transpose(0, 1)[None]

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents `[1,C,F,h,w]` to canvases `[F,3,H,W]`, in groups of `DECODE_GROUP`."""
        groups = latents[0].transpose(0, 1).split(DECODE_GROUP)
        return torch.cat([decode(self.vae, group, self.vae_config) for group in groups])

    @torch.no_grad()
    def upscale(
        self,
        low: np.ndarray,
        y: Tensor,
        y_neg: Tensor,
        noise: Noise,
        sampling: Sampling,
        scale: int = 4,
    ) -> Result:
        """Upscale frames `[F,h,w,3]` uint8.

        `y` and `y_neg` are the embeddings `[1,77,D]` of the prompt and of the negative prompt.
        """
        source = torch.from_numpy(low).float() / 255
        pixels = source.permute(0, 3, 1, 2) * 2 - 1
        height, width = (scale * n for n in low.shape[1:3])
        large = F.interpolate(pixels, size=(height, width), mode="bilinear")
        padding = official_padding(height, width, self.minimum)
        padded = F.pad(large, padding, value=1.0)
        hint = self.encode(padded, noise.posterior)
        trace = Trace()

        def velocity(x: Tensor, t: int, low_latents: Tensor, positive: bool) -> Tensor:
            return self.velocity(x, t, low_latents, y if positive else y_neg)

        latents = sample(velocity, hint, noise, sampling, trace)
        left, _, above, _ = padding
        decoded = self.decode(latents)[:, :, above : above + height, left : left + width]
        frames = (decoded * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        return Result(padded, hint, latents, frames, adain(frames, source), trace)
