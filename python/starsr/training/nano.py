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
from starsr.training.losses import DfConfig, df_loss, df_weight, flicker_loss, grid_loss, v_loss
from starsr.training.loop import TrainingError, generator_of


#: One crop in so many is the flattest of as many.
CANDIDATES = 4
#: Mean squared error, 55 dB, below which there is nothing to gain.
QUIET = 3e-6
#: Periods of grids in pixels, from the blocks of the codec and from the second scale, and their shares of the weight.
GRIDS = {4: 1.0, 8: 0.25}


@dataclass(frozen=True)
class NanoOptions:
    """Clips in a batch, their frames (1 to 6) and the side of a crop in low-resolution pixels (32 or 64); clips kept for
    crops, iterations for each new one, and processes that make them; share of the samples at the first timestep of inference;
    weights of the fidelity there (0: STAR's objective there too) and of flicker beside it, of the losses on `v` elsewhere, and
    on the grid."""

    batch: int = 8
    frames: int = 3
    side: int = 32
    pool: int = 400
    every: int = 4
    workers: int = 1
    start_share: float = 0.85
    fidelity_weight: float = 1.0
    flicker_weight: float = 0.2
    v_weight: float = 0.3
    grid_weight: float = 20.0
    df: DfConfig = DfConfig()


def exact(device: torch.device) -> torch.autocast:
    """The codec's precision is that of the pictures, also in mixed precision."""
    return torch.autocast(device.type, enabled=False)


def to_latents(pixels: Tensor, deviation) -> Tensor:
    """Latents `[B,48,F,h,w]` of pixels `[B,F,3,H,W]` in [0,1]."""
    with exact(pixels.device):
        latents = encode(TorchOps({}), pixels.flatten(0, 1) * 2 - 1, deviation)
    return latents.unflatten(0, pixels.shape[:2]).transpose(1, 2)


def to_pixels(latents: Tensor, deviation) -> Tensor:
    """Inverse of `to_latents`."""
    frames = latents.transpose(1, 2)
    with exact(latents.device):
        pixels = decode(TorchOps({}), frames.flatten(0, 1), deviation).unflatten(0, frames.shape[:2])
    return pixels * 0.5 + 0.5


def coefficient_deviation(clips: Iterable[Tensor]) -> Tensor:
    """Standard deviation `[48]` of each DCT coefficient over clean clips `[F,H,W,3]` uint8, a piece of each."""
    high = torch.cat([clip[:1, :128, :128] for clip in clips])
    latents = encode(TorchOps({}), high.permute(0, 3, 1, 2).float() / 127.5 - 1, torch.ones(CHANNELS).numpy())
    return latents.std((0, 2, 3)).clamp(min=1e-3)


class NanoTask:
    """`loop.Task` of nano. Each clip costs a run of a codec, so it serves many crops: those of an iteration come from the
    `pool` clips made last, with some preference for flat ones."""

    def __init__(
        self, media: Path, config: NanoConfig, options: NanoOptions, seed: int, device: torch.device, init: Nano | None = None
    ) -> None:
        if options.side not in (32, 64):
            raise TrainingError(f"--side is {options.side}, but must be 32 or 64")
        if min(options.batch, options.pool, options.every) < 1:
            given = f"--batch is {options.batch}, --pool {options.pool} and --every {options.every}"
            raise TrainingError(f"{given}, but all must be at least 1")
        try:
            self.clips = Clips(media, length=1 << 40, seed=seed)
        except FileNotFoundError as e:
            raise TrainingError(str(e)) from e
        if not 1 <= options.frames <= self.clips.frames:
            raise TrainingError(f"--frames is {options.frames}, but must be 1 to {self.clips.frames}")
        self.options, self.seed, self.device = options, seed, device
        if init is None:
            init = Nano(config)
            init.deviation.copy_(coefficient_deviation(self.clips[index][1] for index in range(32)))
        # Faster on CPU, above all in bfloat16.
        self.module = init.to(device, memory_format=torch.channels_last)
        self.deviation = self.module.deviation.cpu().double().numpy()
        self.alphas, self.sigmas = (torch.as_tensor(v, dtype=torch.float32, device=device) for v in alphas_sigmas())
        self._shown: tuple[Tensor, Tensor] | None = None

    def batches(self, start: int, end: int) -> Iterator[tuple[Tensor, Tensor]]:
        """`(low [B,F,3,side,side], high [B,F,3,4*side,4*side])` in [0,1]."""
        if start >= end:
            return
        options = self.options
        # In iteration n the clips are those from `n // every`.
        first = start // options.every
        loader = iter(
            DataLoader(
                Subset(self.clips, range(first, end // options.every + options.pool)),
                batch_size=None,
                num_workers=options.workers,
                prefetch_factor=8 if options.workers else None,
                worker_init_fn=lambda _: torch.set_num_threads(1),
            )
        )
        pool: deque = deque((next(loader) for _ in range(options.pool)), maxlen=options.pool)
        for iteration in range(start, end):
            if iteration > start and iteration % options.every == 0:
                pool.append(next(loader))
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

        def crop() -> tuple[Tensor, Tensor]:
            low, high = pool[below(len(pool))]
            f, y, x = (below(full - part + 1) for full, part in zip(low.shape[:3], (frames, side, side), strict=True))
            low = low[f : f + frames, y : y + side, x : x + side]
            return low, high[f : f + frames, 4 * y : 4 * (y + side), 4 * x : 4 * (x + side)]

        frames, side = self.options.frames, self.options.side
        # Skies and walls, which are few, are where a grid, a shift of level and flicker are seen.
        choice = [crop() for _ in range(CANDIDATES if below(CANDIDATES) == 0 else 1)]
        low, high = min(choice, key=lambda pair: float(pair[1].float().std()))
        flips = [axis for axis in (0, 1, 2) if below(2)]
        low, high = low.flip(flips), high.flip(flips)
        return (low.transpose(1, 2), high.transpose(1, 2)) if below(2) else (low, high)

    def loss(self, module, batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """A share of the samples is at the first timestep of inference with the noised low-quality latents, as inference starts
        there, and has the loss `_fidelity`; the rest noises the clean ones and has STAR's objective."""
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
        v = module(x, t, hint).float()
        pixels = to_pixels(a * x - s * v, self.deviation)
        grid = sum(share * grid_loss(pixels, high, period) for period, share in GRIDS.items())
        before, after = ((picture - high).square().mean((1, 2, 3, 4)).clamp(min=1e-7) for picture in (plain, pixels.detach()))
        gains = 10 * torch.log10(before / after)
        figures = {"grid": grid.mean(), "gain_db": gains[at_start if at_start.any() else ...].mean()}
        faithful = at_start if options.fidelity_weight else torch.zeros_like(at_start)
        losses = options.grid_weight * grid.sum()
        if faithful.any():
            losses = losses + self._fidelity(pixels[faithful], plain[faithful], high[faithful], figures)
        if not faithful.all():
            rest = ~faithful
            target = ((a * x - clean) / s)[rest]
            losses = losses + self._objective(v[rest], target, pixels[rest], high[rest], t[rest], s[rest].flatten(), figures)
        return losses / count, figures

    def _fidelity(self, pixels: Tensor, plain: Tensor, high: Tensor, figures: dict[str, Tensor]) -> Tensor:
        """Sum over samples of the logarithm of the mean squared error, so that a decibel counts the same in all clips, easy or
        hard, and of flicker."""
        error = (pixels - high).square().mean((1, 2, 3, 4))
        flicker = flicker_loss(pixels, plain, high)
        figures["flicker"] = flicker.mean()
        return self.options.fidelity_weight * ((error + QUIET).log() + self.options.flicker_weight * flicker).sum()

    def _objective(self, v, target, pixels, high, t, sigma, figures: dict[str, Tensor]) -> Tensor:
        """Sum over samples of STAR's objective: the losses on `v` and on the frequencies of the pixels."""
        losses = v_loss(v, target, sigma)
        figures["v"] = losses.mean()
        losses = self.options.v_weight * losses
        if self.options.df.separation != "none":
            frequency = df_weight(t, self.options.df) * df_loss(pixels, high, t, self.options.df)
            figures["df"] = frequency.mean()
            losses = losses + frequency
        return losses.sum()

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
