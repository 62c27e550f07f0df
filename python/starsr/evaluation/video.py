# SPDX-License-Identifier: MPL-2.0
"""Reads clips and writes them without loss."""

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


def write(path: Path, clip: np.ndarray, rate: Fraction = Fraction(25)) -> None:
    """Writes `[F,H,W,3]` uint8 RGB as FFV1, which `read` gives back bit by bit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.part.mkv")
    with av.open(str(part), "w") as container:
        stream = container.add_stream("ffv1", rate=rate)
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "bgr0"
        for frame in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="bgr0")))
        container.mux(stream.encode())
    part.replace(path)
