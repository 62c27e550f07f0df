# SPDX-License-Identifier: MPL-2.0
"""Training of nano on photographs and video that are degraded on the fly."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from starsr.data import Clips
from starsr.nano.network import CHANNELS, Nano, NanoConfig, decode, encode
from starsr.ops.torch_ops import TorchOps
from starsr.resize import bicubic
from starsr.schedule import T_START, alphas_sigmas
from starsr.training.losses import DfConfig, df_loss, df_weight, grid_loss, v_loss
from starsr.training.loop import TrainingError, generator_of


@dataclass(frozen=True)
class NanoOptions:
    """Clips in a batch, their frames and the side of a crop in low-resolution pixels (a multiple of 32); clips kept for
    crops, new ones in each iteration, and processes that make them; share of the samples at the first timestep of inference;
    weights of the losses on `v`, on pixels (L1), and on the grid."""

    batch: int = 4
    frames: int = 3
    side: int = 32
    pool: int = 200
    fresh: int = 1
    workers: int = 1
    start_share: float = 0.7
    v_weight: float = 0.25
    pixel_weight: float = 8.0
    grid_weight: float = 400.0
    df: DfConfig = DfConfig()


def to_latents(pixels: Tensor, deviation) -> Tensor:
    """Latents `[B,48,F,h,w]` of pixels `[B,F,3,H,W]` in [0,1]."""
    latents = encode(TorchOps({}), pixels.flatten(0, 1) * 2 - 1, deviation)
    return latents.unflatten(0, pixels.shape[:2]).transpose(1, 2)


def to_pixels(latents: Tensor, deviation) -> Tensor:
    """Inverse of `to_latents`."""
    frames = latents.transpose(1, 2)
    pixels = decode(TorchOps({}), frames.flatten(0, 1), deviation).unflatten(0, frames.shape[:2])
    return pixels * 0.5 + 0.5


def coefficient_deviation(clips: Iterable[Tensor]) -> Tensor:
    """Standard deviation `[48]` of each DCT coefficient over clean clips `[F,H,W,3]` uint8, a piece of each."""
    high = torch.cat([clip[:1, :128, :128] for clip in clips])
    latents = encode(TorchOps({}), high.permute(0, 3, 1, 2).float() / 127.5 - 1, torch.ones(CHANNELS).numpy())
    return latents.std((0, 2, 3)).clamp(min=1e-3)


class NanoTask:
    """`loop.Task` of nano. Each clip costs a run of a codec, so it serves many crops: those of an iteration come from the
    `pool` clips made last."""

    def __init__(
        self, media: Path, config: NanoConfig, options: NanoOptions, seed: int, device: torch.device, init: Nano | None = None
    ) -> None:
        if options.side % 32 or options.side > 64:
            raise TrainingError(f"--side is {options.side}, but must be 32 or 64")
        try:
            self.clips = Clips(media, length=1 << 40, seed=seed)
        except FileNotFoundError as e:
            raise TrainingError(str(e)) from e
        self.options, self.seed, self.device = options, seed, device
        if init is None:
            init = Nano(config)
            init.deviation.copy_(coefficient_deviation(self.clips[index][1] for index in range(32)))
        self.module = init.to(device)
        self.deviation = self.module.deviation.cpu().double().numpy()
        self.alphas, self.sigmas = (torch.as_tensor(v, dtype=torch.float32, device=device) for v in alphas_sigmas())
        self._shown: tuple[Tensor, Tensor] | None = None

    def batches(self, start: int, end: int) -> Iterator[tuple[Tensor, Tensor]]:
        """`(low [B,F,3,side,side], high [B,F,3,4*side,4*side])` in [0,1]."""
        options = self.options
        # By iteration n the clips up to `batch + fresh * n` have been made.
        front = options.batch + options.fresh * start
        first = max(0, front - options.pool)
        indices = range(first, options.batch + options.fresh * end)
        loader = iter(
            DataLoader(
                Subset(self.clips, indices),
                batch_size=None,
                num_workers=options.workers,
                prefetch_factor=8 if options.workers else None,
                worker_init_fn=lambda _: torch.set_num_threads(1),
            )
        )
        pool: deque = deque((next(loader) for _ in range(front - first)), maxlen=options.pool)
        for iteration in range(start, end):
            pool.extend(next(loader) for _ in range(options.fresh))
            yield self.batch_of(pool, iteration)

    def batch_of(self, pool: Sequence, iteration: int) -> tuple[Tensor, Tensor]:
        """The batch of an iteration, of crops of the clips in `pool`."""
        generator = generator_of(self.seed ^ 0x5EED, iteration)
        pairs = [self._crop(pool, generator) for _ in range(self.options.batch)]
        low, high = (torch.stack(part).permute(0, 1, 4, 2, 3).float() / 255 for part in zip(*pairs, strict=True))
        return low.to(self.device), high.to(self.device)

    def _crop(self, pool: Sequence, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        def below(limit: int) -> int:
            return int(torch.randint(limit, (1,), generator=generator))

        low, high = pool[below(len(pool))]
        wanted = (self.options.frames, self.options.side, self.options.side)
        f, y, x = (below(full - part + 1) for full, part in zip(low.shape[:3], wanted, strict=True))
        frames, side, _ = wanted
        low = low[f : f + frames, y : y + side, x : x + side]
        high = high[f : f + frames, 4 * y : 4 * (y + side), 4 * x : 4 * (x + side)]
        flips = [axis for axis in (0, 1, 2) if below(2)]
        low, high = low.flip(flips), high.flip(flips)
        return (low.transpose(1, 2), high.transpose(1, 2)) if below(2) else (low, high)

    def loss(self, module, batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """A share of the samples is at the first timestep of inference with the noised low-quality latents, as inference starts
        there; the rest noises the clean ones."""
        (low, high), options = batch, self.options
        count = len(low)
        plain = bicubic(low).clamp(0, 1)
        hint, clean = to_latents(plain, self.deviation), to_latents(high, self.deviation)
        at_start = torch.rand(count, generator=generator) < options.start_share
        t = torch.where(at_start, T_START, torch.randint(0, T_START + 1, (count,), generator=generator))
        noise = torch.randn(clean.shape, generator=generator).to(self.device)
        at_start, t = at_start.to(self.device), t.to(self.device)
        a, s = (table[t].reshape(-1, 1, 1, 1, 1) for table in (self.alphas, self.sigmas))
        x = a * torch.where(at_start.reshape(-1, 1, 1, 1, 1), hint, clean) + s * noise
        v = module(x, t, hint)
        pixels = to_pixels(a * x - s * v, self.deviation)
        velocity = v_loss(v, (a * x - clean) / s, s.flatten())
        pixel = ((pixels - high) ** 2 + 1e-6).sqrt().mean((1, 2, 3, 4))
        grid = grid_loss(pixels, high)
        total = options.v_weight * velocity + options.pixel_weight * pixel + options.grid_weight * grid
        figures = {"v": velocity.mean(), "pixel": pixel.mean(), "grid": 1e6 * grid.mean()}
        if options.df.separation != "none":
            frequency = df_weight(t, options.df) * df_loss(pixels, high, t, options.df)
            total = total + frequency
            figures["df"] = frequency.mean()
        errors = [(picture - high).square().mean((1, 2, 3, 4)).clamp(min=1e-7) for picture in (plain, pixels.detach())]
        figures["gain_db"] = 10 * torch.log10(errors[0] / errors[1])[at_start if at_start.any() else ...].mean()
        return total.mean(), figures

    def sample(self, module) -> Tensor:
        """Two held-back clips side by side: bicubic, restored in one evaluation, and true."""
        if self._shown is None:
            pairs = [self.clips[(1 << 39) + index] for index in range(2)]
            self._shown = tuple(torch.stack(part).permute(0, 1, 4, 2, 3).float().to(self.device) / 255 for part in zip(*pairs))
        low, high = self._shown
        plain = bicubic(low).clamp(0, 1)
        hint = to_latents(plain, self.deviation)
        t = torch.full((len(low),), T_START, device=self.device)
        noise = torch.randn(hint.shape, generator=generator_of(self.seed, 0)).to(self.device)
        a, s = self.alphas[T_START], self.sigmas[T_START]
        x = a * hint + s * noise
        restored = to_pixels(a * x - s * module(x, t, hint), self.deviation)
        rows = [torch.cat([p[i, p.shape[1] // 2] for p in (plain, restored, high)], 2) for i in range(len(low))]
        return torch.cat(rows, 1)
