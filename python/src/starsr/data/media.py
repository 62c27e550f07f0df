# SPDX-License-Identifier: MPL-2.0
"""Reads and writes photographs and video, and converts between bytes and tensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor

#: Upscaling factor between a low-quality clip and its high-quality counterpart.
SCALE = 4

PHOTO_SUFFIXES = (".webp", ".png", ".jpg")
VIDEO_SUFFIXES = (".mkv", ".mp4", ".mov", ".webm")


class VideoError(ValueError):
    """A video cannot be read. The message is one sentence that says what to do."""


def find(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the files below `folder` that have one of the suffixes, sorted."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes)


def read_photo(path: Path) -> np.ndarray:
    """Return the pixels of a photograph, `[H,W,3]` uint8 RGB."""
    return np.asarray(Image.open(path).convert("RGB"))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (av.FFmpegError, IndexError) as e:
        reason = getattr(e, "strerror", e)
        raise VideoError(f"{path} could not be read as video: {reason}; check the file") from e


def _stacked(path: Path, frames: list[np.ndarray]) -> np.ndarray:
    if not frames:
        raise VideoError(f"{path} holds no frames; check the file")
    return np.stack(frames)


def read_video(path: Path, limit: int | None = None) -> tuple[np.ndarray, Fraction]:
    """Return the first `limit` frames `[F,H,W,3]` uint8 RGB and the frame rate.

    The rate is 25 if the file states none. Raises `VideoError`.
    """
    frames = []
    with _readable(path), av.open(str(path)) as container:
        rate = container.streams.video[0].average_rate or Fraction(25)
        for frame in container.decode(video=0):
            frames.append(frame.to_ndarray(format="rgb24"))
            if limit and len(frames) == limit:
                break
    return _stacked(path, frames), rate


def read_clip(path: Path, limit: int | None = None, short_side: int | None = None) -> np.ndarray:
    """Return the first `limit` frames `[F,H,W,3]` uint8 RGB at a size that `SCALE` divides.

    Larger frames are shrunk until their shorter side is about `short_side`. Raises `VideoError`.
    """
    frames = []
    with _readable(path), av.open(str(path)) as container:
        for frame in container.decode(video=0):
            image = frame.to_image()
            shrink = max(1.0, min(image.size) / short_side) if short_side else 1.0
            width, height = (int(side / shrink) // SCALE * SCALE for side in image.size)
            if (width, height) != image.size:
                image = image.resize((width, height), Image.Resampling.LANCZOS)
            frames.append(np.asarray(image))
            if limit and len(frames) == limit:
                break
    return _stacked(path, frames)


def write_lossless(path: Path, clip: np.ndarray, rate: int | Fraction = 25) -> None:
    """Write `[F,H,W,3]` uint8 RGB as FFV1. The file appears only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    with av.open(str(partial), "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=rate)
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "bgr0"
        for frame in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    partial.replace(path)


def to_bytes(clip: Tensor) -> np.ndarray:
    """Convert `[F,3,h,w]` in [0,1] to `[F,h,w,3]` uint8, rounded to the nearest level."""
    levels = (clip.clamp(0, 1) * 255).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().numpy()


def from_bytes(clip: np.ndarray) -> Tensor:
    """Convert `[F,h,w,3]` uint8 to `[F,3,h,w]` float32 in [0,1]."""
    return torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 255
