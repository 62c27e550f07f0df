# SPDX-License-Identifier: MPL-2.0
"""Folders of pairs: gt/NAME.mkv and lq/NAME.mkv, lossless, and text/NAME.txt, the clip's prompt."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SUFFIXES = (".mkv", ".mp4", ".mov", ".webm")


@dataclass(frozen=True)
class Pair:
    """A clean and a degraded clip of the same frames, and what they show."""

    name: str
    high: Path
    low: Path
    text: str


def pairs_in(folder: Path) -> list[Pair]:
    """The pairs of a folder, by name: clips of gt that lq has too."""
    found = {}
    for side in ("gt", "lq"):
        files = sorted(p for p in (folder / side).glob("*") if p.suffix.lower() in SUFFIXES)
        found[side] = {p.stem: p for p in files}
    result = []
    for name in sorted(found["gt"].keys() & found["lq"].keys()):
        words = folder / "text" / f"{name}.txt"
        text = words.read_text(encoding="utf-8").strip() if words.is_file() else ""
        result.append(Pair(name, found["gt"][name], found["lq"][name], text))
    return result


def write_lossless(path: Path, clip: np.ndarray, rate: int | Fraction = 25) -> None:
    """Writes `[F,H,W,3]` uint8 as FFV1 in RGB; the file appears when it is complete."""
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


def write_pair(folder: Path, name: str, high: np.ndarray, low: np.ndarray, text: str, rate: int = 25) -> None:
    """Adds a pair to a folder."""
    write_lossless(folder / "gt" / f"{name}.mkv", high, rate)
    write_lossless(folder / "lq" / f"{name}.mkv", low, rate)
    words = folder / "text" / f"{name}.txt"
    words.parent.mkdir(parents=True, exist_ok=True)
    words.write_text(f"{text}\n", encoding="utf-8")
