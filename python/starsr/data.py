# SPDX-License-Identifier: MPL-2.0
"""Clean clips for training and evaluation: photographs panned, and shrunk video."""

from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from starsr.degradation import first_order, kernels, second_order
from starsr.degradation.second_order import PRESETS, SCALE

PHOTO_SUFFIXES = {".webp", ".png", ".jpg"}
VIDEO_SUFFIXES = {".mp4", ".mkv"}
#: How clips are degraded for training, and how often.
MIX = {"clean": 0.2, "first": 0.1, "light": 0.35, "heavy": 0.35}

#: Factors by which photographs are shrunk for training: what is near their own size is as soft as video.
SHRINK = (0.7, 1.6)


def is_held_out(path: Path) -> bool:
    """Whether a photograph is kept for evaluation: the last of each numbered set."""
    digits = "".join(c for c in path.stem if c.isdigit())
    limits = {"kodak": 17, "urban100": 92, "sunhays80": 73}
    return bool(digits) and int(digits) >= limits.get(path.parent.name, 1 << 30)


def find(folder: Path, suffixes: set[str]) -> list[Path]:
    """Files below `folder` with one of the suffixes, sorted."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes)


def read_photo(path: Path) -> np.ndarray:
    """`[H,W,3]` uint8."""
    return np.asarray(Image.open(path).convert("RGB"))


def read_video(path: Path, limit: int | None = None, short_side: int | None = None) -> np.ndarray:
    """The first `limit` frames `[F,H,W,3]` uint8, shrunk to at most `short_side`, sides cut to multiples of 4."""
    frames = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            image = frame.to_image()
            shrink = max(1.0, min(image.size) / short_side) if short_side else 1.0
            size = tuple(int(side / shrink) // SCALE * SCALE for side in image.size)
            frames.append(np.asarray(image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)))
            if limit and len(frames) == limit:
                break
    return np.stack(frames)


def pan(photo: np.ndarray, frames: int, size: tuple[int, int], rng: np.random.Generator, shrink: float) -> np.ndarray:
    """A camera move of constant velocity, at most 6 pixels a frame, over a photograph shrunk by `shrink` (below 1, and where it
    is too small, enlarged): `[F,H,W,3]`."""
    height, width = size
    velocity = np.rint(rng.uniform(-6, 6, 2) * rng.choice([0.0, 0.3, 1.0], p=[0.15, 0.35, 0.5])).astype(int)
    travel = np.abs(velocity) * (frames - 1)
    need = np.array([height, width]) + travel
    shrink = min(shrink, *(side / n for side, n in zip(photo.shape[:2], need)))
    crop = np.minimum(np.ceil(need * max(shrink, 1e-3)).astype(int), photo.shape[:2])
    top, left = (int(rng.integers(0, full - part + 1)) for full, part in zip(photo.shape[:2], crop))
    region = Image.fromarray(photo[top : top + crop[0], left : left + crop[1]])
    region = np.asarray(region.resize((int(need[1]), int(need[0])), Image.Resampling.LANCZOS))
    start = np.where(velocity < 0, travel, 0)
    corners = start + velocity * np.arange(frames)[:, None]
    return np.stack([region[y : y + height, x : x + width] for y, x in corners])


class Clips(Dataset):
    """Pairs `(low [F,h,w,3], high [F,4h,4w,3])` uint8 with h = w = `side`, each a function of `seed` and its index alone. A
    clip is degraded as `mix` says: kinds (`clean`, `first` order, or a preset of the second) and their shares."""

    def __init__(self, media: Path, length: int, frames: int = 6, side: int = 64, seed: int = 0, mix: dict = MIX) -> None:
        self.photos = [p for p in find(media, PHOTO_SUFFIXES) if not is_held_out(p)]
        self.videos = find(media, VIDEO_SUFFIXES)
        if not self.photos:
            raise FileNotFoundError(f"no photographs below {media}: name a folder that has some")
        self.length, self.frames, self.side, self.seed, self.mix = length, frames, side, seed, mix

    def __len__(self) -> int:
        return self.length

    @cached_property
    def _media(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        with ThreadPoolExecutor() as threads:
            photos = threads.map(read_photo, self.photos)
            videos = threads.map(partial(read_video, limit=150, short_side=self.side * SCALE + 16), self.videos)
            usable = [v for v in videos if min(v.shape[1:3]) >= self.side * SCALE and len(v) >= self.frames]
            return list(photos), usable

    def load(self) -> None:
        """Reads the media, so that processes forked from this one share them."""
        _ = self._media

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng((self.seed, index))
        high = self._clip(*self._media, rng)
        low = self._degrade(second_order.from_bytes(high), rng)
        return torch.from_numpy(low.copy()), torch.from_numpy(high)

    def _degrade(self, clip: torch.Tensor, rng) -> np.ndarray:
        kind = str(rng.choice(list(self.mix), p=list(self.mix.values())))
        if kind == "clean":
            return second_order.to_bytes(second_order.resize(clip, (self.side, self.side), str(rng.choice(second_order.MODES))))
        if kind == "first":
            return first_order.degrade(clip, first_order.draw(rng), rng)
        return second_order.degrade(clip, PRESETS[kind], rng)

    def _clip(self, photos, videos, rng) -> np.ndarray:
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
                other = pan(photos[rng.integers(len(photos))], self.frames, (size, size), rng, 1.5)
                cut = rng.integers(1, self.frames)
                high = np.concatenate([high[:cut], other[cut:]])
        if rng.random() < 0.12:
            # What is out of focus must stay so.
            kernel = kernels.gaussian(13, (rng.uniform(0.7, 3),) * 2, 0.0).expand(len(high), -1, -1)
            high = second_order.to_bytes(kernels.blur(second_order.from_bytes(high), kernel))
        if rng.random() < 0.25:
            gain, gamma = rng.uniform(0.2, 1.0), rng.uniform(0.7, 1.6)
            table = np.rint(255 * gain * (np.arange(256) / 255) ** gamma).astype(np.uint8)
            high = table[high]
        return np.ascontiguousarray(high)
