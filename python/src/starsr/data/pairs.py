# SPDX-License-Identifier: MPL-2.0
"""Folders of pairs: gt/NAME.mkv and lq/NAME.mkv, lossless, and text/NAME.txt, the clip's prompt."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from starsr.data.media import VIDEO_SUFFIXES, write_lossless


@dataclass(frozen=True)
class Pair:
    """A clean and a degraded clip of the same frames, and a description of what they show."""

    name: str
    high: Path
    low: Path
    text: str


def read_text(folder: Path, name: str) -> str:
    """Return the prompt of a clip, empty if the folder has none."""
    path = folder / "text" / f"{name}.txt"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def pairs_in(folder: Path) -> list[Pair]:
    """Return the pairs of a folder, sorted by name: the clips that both `gt` and `lq` hold."""
    found = {}
    for side in ("gt", "lq"):
        files = sorted(p for p in (folder / side).glob("*") if p.suffix.lower() in VIDEO_SUFFIXES)
        found[side] = {p.stem: p for p in files}
    return [
        Pair(name, found["gt"][name], found["lq"][name], read_text(folder, name))
        for name in sorted(found["gt"].keys() & found["lq"].keys())
    ]


def write_pair(
    folder: Path, name: str, high: np.ndarray, low: np.ndarray, text: str, rate: int = 25
) -> None:
    """Add a pair, clips `[F,H,W,3]` and `[F,h,w,3]` uint8, to a folder."""
    write_lossless(folder / "gt" / f"{name}.mkv", high, rate)
    write_lossless(folder / "lq" / f"{name}.mkv", low, rate)
    path = folder / "text" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n", encoding="utf-8")
