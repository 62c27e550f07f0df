# SPDX-License-Identifier: MPL-2.0
"""Training clips for nano: panned photographs and shrunk video, degraded on the fly."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from starsr.data.clips import is_held_out, pan
from starsr.data.media import (
    PHOTO_SUFFIXES,
    SCALE,
    find,
    from_bytes,
    read_clip,
    read_photo,
    to_bytes,
)
from starsr.degradation import first_order, kernels, second_order
from starsr.degradation.second_order import PRESETS

#: Kinds of degradation in training, and their shares.
MIX = {"clean": 0.2, "first": 0.1, "light": 0.35, "heavy": 0.35}

#: Factors by which photographs are shrunk: at about their own size they are as soft as video.
SHRINK = (0.7, 1.6)

VIDEO_SUFFIXES = (".mp4", ".mkv")


class Clips(Dataset[tuple[Tensor, Tensor]]):
    """Pairs `(low [F,h,w,3], high [F,4h,4w,3])` uint8 with h = w = `side`.

    Each pair is a function of `seed` and its index alone. `mix` gives the share of each kind of
    degradation: `clean`, `first` (first order), or a second-order preset.
    """

    def __init__(
        self,
        media: Path,
        length: int,
        frames: int = 6,
        side: int = 64,
        seed: int = 0,
        mix: Mapping[str, float] = MIX,
    ) -> None:
        self.photos = [p for p in find(media, PHOTO_SUFFIXES) if not is_held_out(p)]
        self.videos = find(media, VIDEO_SUFFIXES)
        if not self.photos:
            raise FileNotFoundError(f"no photographs below {media}: name a folder that has some")
        self.length, self.frames, self.side, self.seed, self.mix = length, frames, side, seed, mix

    def __len__(self) -> int:
        return self.length

    @cached_property
    def _media(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        read = partial(read_clip, limit=150, short_side=self.side * SCALE + 16)
        with ThreadPoolExecutor() as threads:
            photos = threads.map(read_photo, self.photos)
            videos = threads.map(read, self.videos)
            least = self.side * SCALE
            usable = [v for v in videos if min(v.shape[1:3]) >= least and len(v) >= self.frames]
            return list(photos), usable

    def load(self) -> None:
        """Read the media now, so that processes forked from this one share them."""
        _ = self._media

    def high(self, index: int) -> Tensor:
        """Return the second of the pair `index`, without the work of degrading it."""
        return torch.from_numpy(self._clip(*self._media, self._random(index)))

    def _random(self, index: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, index))

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        rng = self._random(index)
        high = self._clip(*self._media, rng)
        low = self._degrade(from_bytes(high), rng)
        return torch.from_numpy(low.copy()), torch.from_numpy(high)

    def _degrade(self, clip: Tensor, rng: np.random.Generator) -> np.ndarray:
        kind = str(rng.choice(list(self.mix), p=list(self.mix.values())))
        if kind == "clean":
            size, mode = (self.side, self.side), str(rng.choice(second_order.MODES))
            return to_bytes(second_order.resize(clip, size, mode))
        if kind == "first":
            return first_order.degrade(clip, first_order.draw(rng), rng)
        return second_order.degrade(clip, PRESETS[kind], rng)

    def _clip(
        self, photos: list[np.ndarray], videos: list[np.ndarray], rng: np.random.Generator
    ) -> np.ndarray:
        size = self.side * SCALE
        if videos and rng.random() < 0.2:
            video = videos[rng.integers(len(videos))]
            start = rng.integers(0, len(video) - self.frames + 1)
            y, x = (rng.integers(0, full - size + 1) for full in video.shape[1:3])
            high = video[start : start + self.frames, y : y + size, x : x + size]
        else:
            photo = photos[rng.integers(len(photos))]
            high = pan(photo, self.frames, (size, size), rng, rng.uniform(*SHRINK))
            if rng.random() < 0.04:
                other = photos[rng.integers(len(photos))]
                after = pan(other, self.frames, (size, size), rng, 1.5)
                cut = rng.integers(1, self.frames)
                high = np.concatenate([high[:cut], after[cut:]])
        if rng.random() < 0.12:
            # The network must leave alone what is out of focus.
            sigma = rng.uniform(0.7, 3)
            kernel = kernels.gaussian(13, (sigma, sigma), 0.0).expand(len(high), -1, -1)
            high = to_bytes(kernels.blur(from_bytes(high), kernel))
        if rng.random() < 0.25:
            gain, gamma = rng.uniform(0.2, 1.0), rng.uniform(0.7, 1.6)
            table = np.rint(255 * gain * (np.arange(256) / 255) ** gamma).astype(np.uint8)
            high = table[high]
        return np.ascontiguousarray(high)
