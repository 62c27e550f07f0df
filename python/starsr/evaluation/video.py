# SPDX-License-Identifier: MPL-2.0
"""Reads clips with their frame rate."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


class VideoError(Exception):
    """A video that cannot be read, as one sentence."""


def read(path: Path, limit: int | None = None) -> tuple[np.ndarray, Fraction]:
    """The first `limit` frames `[F,H,W,3]` uint8 RGB and the frame rate (25 where the file has none)."""
    frames = []
    try:
        with av.open(str(path)) as container:
            rate = container.streams.video[0].average_rate or Fraction(25)
            for frame in container.decode(video=0):
                frames.append(frame.to_ndarray(format="rgb24"))
                if limit and len(frames) == limit:
                    break
    except (av.FFmpegError, IndexError) as e:
        raise VideoError(f"{path} could not be read as video: {getattr(e, 'strerror', e)}; check the file") from e
    if not frames:
        raise VideoError(f"{path} holds no frames; check the file")
    return np.stack(frames), rate
