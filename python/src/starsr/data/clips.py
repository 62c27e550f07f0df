# SPDX-License-Identifier: MPL-2.0
"""Clean clips made of photographs, and which photographs are kept for evaluation."""

from pathlib import Path

import numpy as np
from PIL import Image

#: The first held-out number of each set of numbered photographs, by the name of its folder.
HELD_OUT = {"kodak": 17, "urban100": 92, "sunhays80": 73}


def is_held_out(path: Path) -> bool:
    """Return whether a photograph is kept for evaluation: the last ones of each numbered set."""
    digits = "".join(c for c in path.stem if c.isdigit())
    return bool(digits) and int(digits) >= HELD_OUT.get(path.parent.name, 1 << 30)


def moving_crop(
    picture: np.ndarray, velocity: np.ndarray, frames: int, size: tuple[int, int]
) -> np.ndarray:
    """Move a crop over a picture `[H,W,3]` by `velocity`, (down, right) pixels a frame.

    It begins at the top and left, or as far from there as it moves back. Returns frames
    `[F,h,w,3]` of `size` (height, width).
    """
    height, width = size
    start = np.maximum(-velocity * (frames - 1), 0)
    corners = start + velocity * np.arange(frames)[:, None]
    return np.stack([picture[y : y + height, x : x + width] for y, x in corners])


def pan(
    photo: np.ndarray,
    frames: int,
    size: tuple[int, int],
    rng: np.random.Generator,
    shrink: float,
) -> np.ndarray:
    """Move a camera over a photograph at a constant velocity of at most 6 pixels a frame.

    The photograph `[H,W,3]` is shrunk by `shrink`, a factor below 1, or enlarged if it is too
    small for the move. Returns frames `[F,h,w,3]` of `size` (height, width).
    """
    height, width = size
    velocity = np.rint(rng.uniform(-6, 6, 2) * rng.choice([0.0, 0.3, 1.0], p=[0.15, 0.35, 0.5]))
    velocity = velocity.astype(int)
    travel = np.abs(velocity) * (frames - 1)
    need = np.array([height, width]) + travel
    shrink = min(shrink, *(side / n for side, n in zip(photo.shape[:2], need, strict=True)))
    crop = np.minimum(np.ceil(need * max(shrink, 1e-3)).astype(int), photo.shape[:2])
    top, left = (
        int(rng.integers(0, full - part + 1))
        for full, part in zip(photo.shape[:2], crop, strict=True)
    )
    region = Image.fromarray(photo[top : top + crop[0], left : left + crop[1]])
    region = region.resize((int(need[1]), int(need[0])), Image.Resampling.LANCZOS)
    return moving_crop(np.asarray(region), velocity, frames, size)
