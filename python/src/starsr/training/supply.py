# SPDX-License-Identifier: MPL-2.0
"""Batches of moving clips. Other processes make the clips while the device trains."""

import queue
import threading
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from starsr.training.moving import MovingClips, Reel, shrink

#: Share of the samples whose low frames are a clean shrink that the device makes, and share of
#: these that get a little noise.
CLEAN, NOISY = 0.25, 0.2


class Counting(Sampler[int]):
    """The indices below `length` in their order, however large it is."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Iterator[int]:
        yield from range(self.length)


class Supply:
    """Fills a reel of `pool` clips and draws batches of crops from it.

    `workers` processes make the clips. A crop has `frames` frames. The low frames of a share of
    `clean` of them are a clean shrink.
    """

    def __init__(
        self,
        clips: MovingClips,
        device: torch.device,
        pool: int,
        frames: int,
        workers: int,
        clean: float = CLEAN,
    ) -> None:
        clips.load()
        self.device, self.frames, self.clean = device, frames, clean
        self.length = clips.length
        self.generator = torch.Generator().manual_seed(clips.seed)
        self.waiting: queue.Queue[tuple[Tensor, Tensor, Tensor]] = queue.Queue(64)
        self.stop = threading.Event()
        self.failure: Exception | None = None
        loader = DataLoader(
            clips,
            batch_size=None,
            sampler=Counting(clips.length),
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            pin_memory=device.type == "cuda",
            worker_init_fn=lambda _: torch.set_num_threads(1),
        )
        # The processes must be forked before the device is in use.
        items = iter(loader)
        self.reel = Reel(pool, clips, device)
        self.thread = threading.Thread(target=self._fill, args=(items,), daemon=True)
        self.thread.start()

    def _fill(self, items: Iterator[tuple[Tensor, Tensor, Tensor]]) -> None:
        try:
            for item in items:
                while not self.stop.is_set():
                    try:
                        self.waiting.put(item, timeout=0.5)
                        break
                    except queue.Full:
                        continue
                if self.stop.is_set():
                    return
        except Exception as e:
            # `take` reports it.
            self.failure = e

    def take(self, least: int) -> None:
        """Put the clips that are ready into the reel; wait until it has received `least` clips.

        Raises `ValueError` if the clips can no longer be made.
        """
        least = min(least, self.length)
        while self.reel.made < least or not self.waiting.empty():
            try:
                self.reel.put(*self.waiting.get(timeout=1))
            except queue.Empty:
                if not self.thread.is_alive():
                    raise ValueError(
                        f"no more clips can be made ({self.failure}): check the media, or lower "
                        "--workers"
                    ) from self.failure

    def batch(self, count: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return low frames, high frames and moves of `count` crops, see `Reel.draw`.

        Some of the low frames are a clean shrink of the high ones.
        """
        self.take(min(count, 64))
        low, high, moves = self.reel.draw(count, self.frames, side, self.generator)
        chance = torch.rand((), generator=self.generator)
        clean = int(self.clean * count + chance)
        if clean:
            small = shrink(high[:clean], self.generator)
            noisy = round(NOISY * clean)
            if noisy:
                level = torch.rand(noisy, 1, 1, 1, 1, generator=self.generator) * 8 / 255
                noise = level.to(self.device) * torch.randn_like(small[:noisy])
                small[:noisy] = (small[:noisy] + noise).clamp(0, 1)
            low = torch.cat([small, low[clean:]])
        return low, high, moves

    def close(self) -> None:
        """Stop making clips."""
        self.stop.set()
        self.thread.join(30)
