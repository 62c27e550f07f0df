# SPDX-License-Identifier: MPL-2.0
"""Photographs under a moving camera, degraded: what the last layer of a student is mended with."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from starsr.data.clips import is_held_out, moving_crop, pan
from starsr.data.media import PHOTO_SUFFIXES, SCALE, find, read_photo
from starsr.data.resize import bicubic
from starsr.degradation.codecs import transcode
from starsr.evaluation.sources import degrade
from starsr.training.contrast import severity

#: Kinds of degradation in turn; `crf` is x264 at constant rate factors from 18 to 34.
KINDS = ("clean", "light", "heavy", "crf", "heavy")
#: Pans are to show noise, most of which heavy degradation hides.
PAN_KINDS = ("clean", "light", "heavy", "crf", "light")
#: Those of clips that are to keep their contrast.
MILD_KINDS = ("clean", "light", "crf", "light")


def photographs(
    media: Path, start: int, kinds: tuple[str, ...]
) -> Iterator[tuple[np.ndarray, str]]:
    """Yield every fourth photograph from `start` on, and the kind of its degradation."""
    files = [path for path in find(media, PHOTO_SUFFIXES) if not is_held_out(path)]
    for index, path in enumerate(files[start::4]):
        yield read_photo(path), kinds[index % len(kinds)]


def tensor_of(frames: np.ndarray) -> Tensor:
    """Return frames `[F,h,w,3]` uint8 as `[F,3,h,w]` in [0,1]."""
    return torch.from_numpy(frames.copy()).permute(0, 3, 1, 2).float() / 255


def low_of(high: np.ndarray, kind: str, rng: np.random.Generator) -> Tensor:
    """Return low-quality frames `[F,3,h,w]` of a clean clip."""
    low, _ = degrade(high, "clean" if kind == "crf" else kind, rng)
    if kind == "crf":
        low = transcode(low, "libx264", quality=float(rng.uniform(18, 34)))
    return tensor_of(low)


def clips(media: Path) -> Iterator[Tensor]:
    """Yield low-quality frames `[F,3,h,w]`, each third of a pan."""
    rng = np.random.default_rng(3)
    for photo, kind in photographs(media, 0, KINDS):
        yield low_of(pan(photo, 4, (256, 384), rng, shrink=1.0), kind, rng)[::3]


def pans(
    media: Path, kinds: tuple[str, ...] = PAN_KINDS
) -> Iterator[tuple[Tensor, tuple[int, int]]]:
    """Yield clips of seven low-quality frames, and their moves by whole input pixels."""
    rng, frames, size = np.random.default_rng(5), 7, (256, 320)
    for photo, kind in photographs(media, 1, kinds):
        move = rng.integers(-2, 3, 2)
        velocity = SCALE * move
        room = np.array(photo.shape[:2]) - size - abs(velocity) * (frames - 1)
        if room.min() < 0:
            continue
        top, left = rng.integers(0, room + 1)
        high = moving_crop(photo[top:, left:], velocity, frames, size)
        yield low_of(high, kind, rng), (int(move[0]), int(move[1]))


def judged_clips(media: Path) -> Iterator[tuple[Tensor, float]]:
    """Yield low-quality clips of six frames with their severity, of three quarters of the media."""
    rng = np.random.default_rng(9)
    for start in (0, 2, 3):
        for photo, kind in photographs(media, start, KINDS):
            high = pan(photo, 6, (256, 256), rng, shrink=float(rng.uniform(1.0, 1.6)))
            low = low_of(high, kind, rng)
            yield low, float(severity(bicubic(low[None]), tensor_of(high)[None]))
