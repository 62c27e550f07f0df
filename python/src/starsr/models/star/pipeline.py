# SPDX-License-Identifier: MPL-2.0
"""STAR from frames to frames in PyTorch, as the authors' program does it (SPEC A.0 to A.7), with the noise given: the reference
that the plugin's result is held against."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from starsr.ops.torch_ops import TorchOps
from starsr.models.schedule import alphas_sigmas
from starsr.models.star.network import StarConfig, controlnet, denoiser
from starsr.models.star.vae import VaeConfig, decode, encode

#: Frames that the authors' program decodes at once.
DECODE_GROUP = 3


@dataclass(frozen=True)
class Sampling:
    """Settings of the sampler: `mode` `fast` (14 evaluations) or `normal` (`steps` evaluations), noise levels used, guidance
    and frames in a window, of which neighbours share half."""

    mode: str = "fast"
    steps: int = 15
    noise_levels: int = 900
    guidance_scale: float = 7.5
    guidance_rescale: float = 0.2
    length: int = 32


@dataclass
class Noise:
    """N(0,1) noise: of the autoencoder's posterior `[F,C,h,w]` (`None` takes the mean), at the start `[1,C,F,h,w]`, and behind
    each evaluation but the last `[n-1,1,C,F,h,w]`."""

    start: Tensor
    steps: Tensor
    posterior: Tensor | None = None


@dataclass
class Trace:
    """What is compared along the way: inputs and results of each evaluation `[1,C,F,h,w]`."""

    model_in: list[Tensor] = field(default_factory=list)
    denoised: list[Tensor] = field(default_factory=list)


def evaluation_points(sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """`k = sigma / alpha` of each evaluation and the timestep that the networks are told (SPEC A.5)."""
    top = sampling.noise_levels - 1
    if sampling.mode == "fast":
        points = np.concatenate([np.arange(top, 499, -100), np.arange(500, -1, -(501 / 11))])[:14]
    else:
        points = (top - np.arange(sampling.steps) * (sampling.noise_levels / (sampling.steps + 1))).clip(0, top)
    alphas, sigmas = alphas_sigmas()
    log_k = np.log(sigmas[: top + 1] / alphas[: top + 1])
    return np.exp(np.interp(points, np.arange(top + 1), log_k)), np.rint(points).astype(np.int64)


def make_chunks(frames: int, length: int) -> list[tuple[int, int]]:
    """Windows of a clip (SPEC A.5); the last one holds up to 1.25 lengths, so that such a clip is one window."""
    if 4 * frames <= 5 * length:
        return [(0, frames)]
    stride, start, chunks = length - length // 2, 0, []
    while start + 1.25 * length < frames:
        chunks.append((start, start + length))
        start += stride
    return [*chunks, (start, frames)]


def guide(positive: Tensor, negative: Tensor, sampling: Sampling) -> Tensor:
    """Classifier-free guidance with rescale of one window's velocities."""
    v = negative + sampling.guidance_scale * (positive - negative)
    ratio = positive.std() / (v.std() + 1e-12)
    return v * (sampling.guidance_rescale * ratio + 1 - sampling.guidance_rescale)


def sample(
    velocity: Callable[[Tensor, int, Tensor, bool], Tensor], hint: Tensor, noise: Noise, sampling: Sampling, trace: Trace
) -> Tensor:
    """Restored latents of the low-quality latents `hint` `[1,C,F,h,w]`. `velocity` gives `v` for scaled latents, timestep, hint
    and whether the prompt is the positive one."""
    alphas, sigmas = alphas_sigmas()
    k, t = evaluation_points(sampling)
    start = sampling.noise_levels - 1
    x = (float(alphas[start]) * hint + float(sigmas[start]) * noise.start) * k[0]
    chunks = make_chunks(hint.shape[2], sampling.length)
    before, step_before = None, 0.0
    for i in range(len(k)):
        model_in = x / (k[i] ** 2 + 1) ** 0.5
        trace.model_in.append(model_in)
        denoised = denoise(velocity, model_in, int(t[i]), hint, chunks, sampling)
        trace.denoised.append(denoised)
        if i + 1 == len(k):
            return denoised
        step = float(np.log(k[i] / k[i + 1]))
        decay = 1 - np.exp(-2 * step)
        x = (k[i + 1] / k[i]) * np.exp(-step) * x + decay * denoised
        if before is not None:
            x = x + 0.5 * decay * (step / step_before) * (denoised - before)
        x = x + noise.steps[i] * (k[i + 1] * decay**0.5)
        before, step_before = denoised, step
    return x


def denoise(velocity, model_in: Tensor, t: int, hint: Tensor, chunks, sampling: Sampling) -> Tensor:
    """Prediction of the clean latents; neighbouring windows are cut in the middle of what they share."""
    alphas, sigmas = alphas_sigmas()
    parts = []
    for n, (start, end) in enumerate(chunks):
        x, low = model_in[:, :, start:end], hint[:, :, start:end]
        v = velocity(x, t, low, True)
        if sampling.guidance_scale != 1.0:
            v = guide(v, velocity(x, t, low, False), sampling)
        clean = float(alphas[t]) * x - float(sigmas[t]) * v
        first = 0 if n == 0 else (chunks[0][1] - chunks[1][0]) // 2
        last = end if n + 1 == len(chunks) else chunks[n + 1][0] + (chunks[0][1] - chunks[1][0]) // 2
        parts.append(clean[:, :, first : last - start])
    return torch.cat(parts, 2)


def official_padding(height: int, width: int, minimum: tuple[int, int]) -> tuple[int, int, int, int]:
    """Pixels added left, right, above and below (SPEC A.1, `pad_to_fit`) to reach at least `minimum` (height, width)."""

    def centred(size, least, larger):
        if size > least:
            return 0, larger - size
        return (least - size) // 2, least - size - (least - size) // 2

    above, below = centred(height, minimum[0], (height + 48) // 64 * 64 + 16)
    left, right = centred(width, minimum[1], width // 64 * 64 + 64)
    return left, right, above, below


def adain(content: Tensor, style: Tensor) -> Tensor:
    """Frames `[F,H,W,3]` in [0,1] with mean and deviation of each channel from `style` `[F,h,w,3]` (SPEC A.7)."""

    def statistics(x):
        flat = x.flatten(1, 2)
        return flat.mean(1)[:, None, None], (flat.var(1) + 1e-5).sqrt()[:, None, None]

    (mean, deviation), (target, wanted) = statistics(content), statistics(style)
    return ((content - mean) / deviation * wanted + target).clamp(0, 1)


@dataclass
class Result:
    """Pixels on the canvas `[F,3,H,W]` in [-1,1], latents `[1,C,F,h,w]` going in and coming out, and frames `[F,H,W,3]` in
    [0,1] before and after the colour fix."""

    padded: Tensor
    hint: Tensor
    latents: Tensor
    frames: Tensor
    fixed: Tensor
    trace: Trace


class Pipeline:
    """The whole of STAR over the weights of the networks and of the autoencoder, by name."""

    def __init__(self, star: dict, vae: dict, config: StarConfig, vae_config: VaeConfig, minimum=(720, 1280)) -> None:
        self.star, self.vae = TorchOps(star), TorchOps(vae)
        self.config, self.vae_config, self.minimum = config, vae_config, minimum

    def velocity(self, x: Tensor, t: int, hint: Tensor, text: Tensor) -> Tensor:
        """`v` `[1,C,F,h,w]` under the text embedding `[1,77,D]`."""
        time = torch.tensor([t])
        controls = controlnet(self.star, x, time, hint, text, self.config)
        return denoiser(self.star, x, time, text, controls, self.config)

    def encode(self, pixels: Tensor, noise: Tensor | None) -> Tensor:
        """Latents `[1,C,F,h,w]` of canvases `[F,3,H,W]`, frame by frame."""
        moments = [encode(self.vae, frame[None], self.vae_config) for frame in pixels]
        mean, deviation = (torch.cat(parts) for parts in zip(*moments))
        latents = mean if noise is None else mean + deviation * noise
        return latents.transpose(0, 1)[None]

    def decode(self, latents: Tensor) -> Tensor:
        """Canvases `[F,3,H,W]` of latents `[1,C,F,h,w]`, in groups of `DECODE_GROUP`."""
        groups = latents[0].transpose(0, 1).split(DECODE_GROUP)
        return torch.cat([decode(self.vae, group, self.vae_config) for group in groups])

    @torch.no_grad()
    def upscale(self, low: np.ndarray, y: Tensor, y_neg: Tensor, noise: Noise, sampling: Sampling, scale: int = 4) -> Result:
        """`low` are uint8 frames `[F,h,w,3]`, `y` and `y_neg` the embeddings `[1,77,D]` of prompt and negative prompt."""
        source = torch.from_numpy(low).float() / 255
        pixels = source.permute(0, 3, 1, 2) * 2 - 1
        height, width = (scale * n for n in low.shape[1:3])
        large = F.interpolate(pixels, size=(height, width), mode="bilinear")
        padding = official_padding(height, width, self.minimum)
        padded = F.pad(large, padding, value=1.0)
        hint = self.encode(padded, noise.posterior)
        trace = Trace()

        def velocity(x, t, low_latents, positive):
            return self.velocity(x, t, low_latents, y if positive else y_neg)

        latents = sample(velocity, hint, noise, sampling, trace)
        left, _, above, _ = padding
        decoded = self.decode(latents)[:, :, above : above + height, left : left + width]
        frames = (decoded * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        return Result(padded, hint, latents, frames, adain(frames, source), trace)
