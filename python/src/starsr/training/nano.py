# SPDX-License-Identifier: MPL-2.0
"""Training of nano on photographs and video that are degraded on the fly."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from starsr.data.media import SCALE
from starsr.data.resize import bicubic
from starsr.models.nano.network import CHANNELS, Nano, NanoConfig, decode, encode
from starsr.models.schedule import T_START, alphas_sigmas
from starsr.ops.torch_ops import TorchOps
from starsr.training.dataset import Clips
from starsr.training.loop import TrainingError, generator_of
from starsr.training.losses import (
    DF,
    DfConfig,
    df_loss,
    df_weight,
    flicker_loss,
    grid_loss,
    v_loss,
)

#: One in so many crops is the flattest of as many candidates.
CANDIDATES = 4
#: Crops of fewer frames come from clips of `CLIP_FRAMES`, so that they see every kind of frame of a
#: codec; a crop has at most `MAX_FRAMES`.
CLIP_FRAMES, MAX_FRAMES = 6, 32
#: Mean squared error, 55 dB, below which there is nothing to gain.
QUIET = 3e-6
#: Periods of grids in pixels, from the blocks of the codec and from the second scale, and their
#: shares of the weight.
GRIDS = {4: 1.0, 8: 0.25}

#: Low-quality and clean clips `[B,F,3,h,w]` in [0,1].
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class NanoOptions:
    """Settings of the training.

    A batch holds `batch` crops of `frames` frames (1 to 32) and `side` low-resolution pixels (32 or
    64). They come from a pool of `pool` clips, to which each iteration adds `fresh` new ones that
    `workers` processes make. `start_share` of the samples are at the first timestep of inference.
    `fidelity_weight` is the weight of the fidelity there (0: STAR's objective there too) and
    `flicker_weight` that of flicker beside it, `v_weight` that of the loss on `v` elsewhere.
    """

    batch: int = 8
    frames: int = 3
    side: int = 32
    pool: int = 400
    fresh: float = 0.25
    workers: int = 1
    start_share: float = 0.85
    fidelity_weight: float = 1.0
    flicker_weight: float = 0.2
    v_weight: float = 0.3
    grid_weight: float = 20.0
    df: DfConfig = DF


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Compute in the precision of the pictures, even under autocast and on GPUs with TF32."""
    tf32 = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with torch.autocast(device.type, enabled=False), tf32:
        yield


def indices(mask: Tensor) -> Tensor:
    """Return the places where `mask` `[B]` holds.

    Unlike the mask, they tell a device the size of a selection without waiting for it.
    """
    return mask.nonzero().flatten()


def to_latents(pixels: Tensor, std: np.ndarray) -> Tensor:
    """Encode pixels `[B,F,3,H,W]` in [0,1] as latents `[B,48,F,h,w]`."""
    with exact(pixels.device):
        latents = encode(TorchOps({}), pixels.flatten(0, 1) * 2 - 1, std)
    return latents.unflatten(0, pixels.shape[:2]).transpose(1, 2)


def to_pixels(latents: Tensor, std: np.ndarray) -> Tensor:
    """Decode latents `[B,48,F,h,w]` to pixels `[B,F,3,H,W]`, the inverse of `to_latents`."""
    frames = latents.transpose(1, 2)
    with exact(latents.device):
        pixels = decode(TorchOps({}), frames.flatten(0, 1), std).unflatten(0, frames.shape[:2])
    return pixels * 0.5 + 0.5


def coefficient_std(clips: Iterable[Tensor]) -> Tensor:
    """Return the standard deviation `[48]` of each DCT coefficient over clean clips.

    Takes clips `[F,H,W,3]` uint8 and uses a piece of the first frame of each.
    """
    high = torch.cat([clip[:1, :128, :128] for clip in clips])
    pixels = high.permute(0, 3, 1, 2).float() / 127.5 - 1
    latents = encode(TorchOps({}), pixels, torch.ones(CHANNELS).numpy())
    return latents.std((0, 2, 3)).clamp(min=1e-3)


class Pool:
    """The clips that crops are taken from, on the device.

    Pixels are uint8: `low` `[count,F,h,w,3]` and `high` `[count,F,4h,4w,3]`.
    """

    def __init__(self, count: int, clips: Clips, device: torch.device) -> None:
        self.low, self.high = (
            torch.empty((count, clips.frames, side, side, 3), dtype=torch.uint8, device=device)
            for side in (clips.side, SCALE * clips.side)
        )

    def put(self, index: int, low: Tensor, high: Tensor) -> None:
        """Put a clip in the place of the one that came `count` clips before it."""
        place = index % len(self.low)
        self.low[place].copy_(low, non_blocking=True)
        self.high[place].copy_(high, non_blocking=True)

    def draw(
        self, count: int, frames: int, side: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw `count` crops, low `[count,frames,side,side,3]` and high.

        Time, rows and columns of a crop are each reversed at random, and its sides exchanged.
        """
        limits = [
            full - part + 1
            for full, part in zip(self.low.shape[1:4], (frames, side, side), strict=True)
        ]
        places = torch.stack(
            [
                torch.randint(limit, (count, CANDIDATES), generator=generator)
                for limit in (len(self.low), *limits)
            ],
            -1,
        )
        # A grid, a shift of level and flicker show in skies and walls, which are few.
        seeks_flat = torch.randint(CANDIDATES, (count,), generator=generator) == 0
        turns = torch.randint(2, (count, 4), generator=generator).bool()
        places, seeks_flat, turns = (
            part.to(self.low.device, non_blocking=True) for part in (places, seeks_flat, turns)
        )
        upright = turns.new_zeros((count * CANDIDATES, 4))
        candidates = taken(
            self.high, places.flatten(0, 1), upright, frames, side, SCALE, stride=SCALE
        )
        spread = candidates.float().std((1, 2, 3, 4))
        choice = torch.where(seeks_flat, spread.unflatten(0, (count, CANDIDATES)).argmin(1), 0)
        places = places[torch.arange(count, device=places.device), choice]
        low = taken(self.low, places, turns, frames, side, 1)
        return low, taken(self.high, places, turns, frames, side, SCALE)


def taken(
    clips: Tensor,
    places: Tensor,
    turns: Tensor,
    frames: int,
    side: int,
    scale: int,
    stride: int = 1,
) -> Tensor:
    """Take crops `[N,frames,side*scale/stride,side*scale/stride,3]` of each `stride`-th pixel.

    `places` `[N,4]` are (clip, frame, row, column) in low-resolution pixels. `turns` `[N,4]` says
    which of time, rows and columns are reversed, and whether rows and columns are exchanged.
    """

    def along(axis: int, start: Tensor, length: int, step: int = 1) -> Tensor:
        steps = torch.arange(0, length, step, device=clips.device)
        return start[:, None] + torch.where(turns[:, axis, None], length - 1 - steps, steps)

    time = along(0, places[:, 1], frames)[:, :, None, None]
    down, right = (
        along(axis, places[:, axis + 1] * scale, side * scale, stride) for axis in (1, 2)
    )
    exchanged = turns[:, 3, None, None]
    rows = torch.where(exchanged, down[:, None, :], down[:, :, None])[:, None]
    columns = torch.where(exchanged, right[:, :, None], right[:, None, :])[:, None]
    return clips[places[:, 0, None, None, None], time, rows, columns]


def check(options: NanoOptions) -> None:
    """Raise `TrainingError` unless the options make sense."""
    if options.side not in (32, 64):
        raise TrainingError(f"--side is {options.side}, but must be 32 or 64")
    if min(options.batch, options.pool) < 1:
        raise TrainingError(
            f"--batch is {options.batch} and --pool {options.pool}, but both must be at least 1"
        )
    if not 0 < options.fresh <= options.pool:
        raise TrainingError(
            f"--fresh is {options.fresh}, but must be above 0 and at most --pool, {options.pool}"
        )
    if not 1 <= options.frames <= MAX_FRAMES:
        raise TrainingError(f"--frames is {options.frames}, but must be 1 to {MAX_FRAMES}")
    if not 0 <= options.flicker_weight < math.inf:
        raise TrainingError(f"--flicker is {options.flicker_weight}, but must be at least 0")


class NanoTask:
    """The `loop.Task` of nano.

    A clip costs a run of a codec, so it serves many crops: those of an iteration come from the
    `pool` latest clips, with a preference for flat ones.
    """

    module: Nano

    def __init__(
        self,
        media: Path,
        config: NanoConfig,
        options: NanoOptions,
        seed: int,
        device: torch.device,
        init: Nano | None = None,
    ) -> None:
        check(options)
        try:
            frames = max(options.frames, CLIP_FRAMES)
            self.clips = Clips(media, length=1 << 40, frames=frames, seed=seed)
        except FileNotFoundError as e:
            raise TrainingError(str(e)) from e
        self.options, self.seed, self.device = options, seed, device
        if init is None:
            init = Nano(config)
            init.deviation.copy_(coefficient_std(self.clips.high(index) for index in range(32)))
        # This format is faster on the CPU, above all in bfloat16.
        self.module = init.to(device=device, memory_format=torch.channels_last)
        self.alphas, self.sigmas = (
            torch.as_tensor(v, dtype=torch.float32, device=device) for v in alphas_sigmas()
        )
        self._shown: tuple[Tensor, Tensor] | None = None

    @cached_property
    def std(self) -> np.ndarray:
        """Standard deviations of the coefficients, `[48]`, from a checkpoint if there is one."""
        return self.module.std()

    def batches(self, start: int, end: int) -> Iterator[Batch]:
        """Yield low and clean crops `[B,F,3,h,w]` in [0,1] of the iterations."""
        if start >= end:
            return
        options = self.options
        self.clips.load()

        def first(iteration: int) -> int:
            """Return the oldest clip in the pool."""
            return int(iteration * options.fresh)

        loader = iter(
            DataLoader(
                Subset(self.clips, range(first(start), first(end - 1) + options.pool)),
                batch_size=None,
                num_workers=options.workers,
                prefetch_factor=8 if options.workers else None,
                pin_memory=self.device.type == "cuda",
                worker_init_fn=lambda _: torch.set_num_threads(1),
            )
        )
        pool = Pool(options.pool, self.clips, self.device)
        made = first(start)
        for iteration in range(start, end):
            while made < first(iteration) + options.pool:
                pool.put(made, *next(loader))
                made += 1
            yield self.batch_of(pool, iteration)

    def batch_of(self, pool: Pool, iteration: int) -> Batch:
        """Return the batch of an iteration, made of crops of the clips in `pool`."""
        generator, options = generator_of(self.seed ^ 0x5EED, iteration), self.options
        low, high = pool.draw(options.batch, options.frames, options.side, generator)
        return low.movedim(-1, 2).float() / 255, high.movedim(-1, 2).float() / 255

    def loss(
        self, module: nn.Module, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch, and figures for the log.

        A share of the samples is at the first timestep of inference with the noised low-quality
        latents, as inference starts there, and has the loss `_fidelity`. The rest noises the clean
        latents and has STAR's objective.
        """
        (low, high), options = batch, self.options
        count = len(low)
        plain = bicubic(low).clamp(0, 1)
        hint, clean = to_latents(plain, self.std), to_latents(high, self.std)
        at_start = torch.rand(count, generator=generator) < options.start_share
        t = torch.where(
            at_start, T_START, torch.randint(0, T_START + 1, (count,), generator=generator)
        )
        noise = self._noise(clean.shape, generator)
        kinds = at_start if options.fidelity_weight else torch.zeros_like(at_start)
        visible = at_start if at_start.any() else ~at_start
        at_start, t, faithful, rest, shown = (
            part.to(self.device, non_blocking=True)
            for part in (at_start, t, indices(kinds), indices(~kinds), indices(visible))
        )
        a, s = (table[t].reshape(-1, 1, 1, 1, 1) for table in (self.alphas, self.sigmas))
        x = a * torch.where(at_start.reshape(-1, 1, 1, 1, 1), hint, clean) + s * noise
        v = module(x, t, hint).float()
        pixels = to_pixels(a * x - s * v, self.std)
        grid = torch.zeros((), device=self.device)
        for period, share in GRIDS.items():
            grid = grid + share * grid_loss(pixels, high, period)
        before, after = (
            (picture - high).square().mean((1, 2, 3, 4)).clamp(min=1e-7)
            for picture in (plain, pixels.detach())
        )
        gains = 10 * torch.log10(before / after)
        figures = {"grid": grid.mean(), "gain_db": gains[shown].mean()}
        losses = options.grid_weight * grid.sum()
        if len(faithful):
            losses = losses + self._fidelity(
                pixels[faithful], plain[faithful], high[faithful], figures
            )
        if len(rest):
            target = ((a * x - clean) / s)[rest]
            losses = losses + self._objective(
                v[rest], target, pixels[rest], high[rest], t[rest], s[rest].flatten(), figures
            )
        return losses / count, figures

    def _noise(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """Return normal noise that is made on the device."""
        seed = int(torch.randint(1 << 62, (1,), generator=generator))
        own = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(shape, generator=own, device=self.device)

    def _fidelity(
        self, pixels: Tensor, plain: Tensor, high: Tensor, figures: dict[str, Tensor]
    ) -> Tensor:
        """Return the sum over samples of the logarithm of the mean squared error, and of flicker.

        By the logarithm a decibel counts the same in all clips, easy or hard.
        """
        error = (pixels - high).square().mean((1, 2, 3, 4))
        flicker = flicker_loss(pixels, plain, high)
        figures["flicker"] = flicker.mean()
        losses = (error + QUIET).log() + self.options.flicker_weight * flicker
        return self.options.fidelity_weight * losses.sum()

    def _objective(
        self,
        v: Tensor,
        target: Tensor,
        pixels: Tensor,
        high: Tensor,
        t: Tensor,
        sigma: Tensor,
        figures: dict[str, Tensor],
    ) -> Tensor:
        """Return the sum over samples of STAR's objective, the losses on `v` and on frequencies."""
        losses = v_loss(v, target, sigma)
        figures["v"] = losses.mean()
        losses = self.options.v_weight * losses
        if self.options.df.separation != "none":
            df = self.options.df
            frequency = df_weight(t, df) * df_loss(pixels, high, t, df)
            figures["df"] = frequency.mean()
            losses = losses + frequency
        return losses.sum()

    def sample(self, module: nn.Module) -> Tensor:
        """Return two held-back clips: bicubic, restored in one evaluation, and true."""
        if self._shown is None:
            pairs = [self.clips[(1 << 39) + index] for index in range(2)]
            low, high = (
                torch.stack(part).permute(0, 1, 4, 2, 3).float().to(self.device) / 255
                for part in zip(*pairs, strict=True)
            )
            self._shown = low, high
        low, high = self._shown
        plain = bicubic(low).clamp(0, 1)
        hint = to_latents(plain, self.std)
        t = torch.full((len(low),), T_START, device=self.device)
        noise = self._noise(hint.shape, generator_of(self.seed, 0))
        a, s = self.alphas[T_START], self.sigmas[T_START]
        x = a * hint + s * noise
        restored = to_pixels(a * x - s * module(x, t, hint), self.std)
        rows = [
            torch.cat([p[i, p.shape[1] // 2] for p in (plain, restored, high)], 2)
            for i in range(len(low))
        ]
        return torch.cat(rows, 1)
