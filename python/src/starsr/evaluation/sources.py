# SPDX-License-Identifier: MPL-2.0
"""Clips to upscale: pairs, videos without ground truth, and held-out clips that are degraded."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np

from starsr.data.clips import is_held_out, pan
from starsr.data.media import (
    PHOTO_SUFFIXES,
    SCALE,
    VIDEO_SUFFIXES,
    find,
    from_bytes,
    read_clip,
    read_photo,
    read_video,
    to_bytes,
)
from starsr.data.pairs import read_text
from starsr.degradation import first_order, second_order
from starsr.degradation.first_order import Degradation
from starsr.degradation.second_order import PRESETS

#: Fixed degradations from mild to harsh, unlike the random ones of training.
FIXED = {
    "mild": Degradation(blur=(0.8, 0.8), codec="libx264", quality=23),
    "medium": Degradation(blur=(1.6, 1.6), gaussian=4, codec="libx264", quality=28),
    "harsh": Degradation(blur=(2.4, 2.4), gaussian=10, codec="libx264", quality=33),
    "noise": Degradation(blur=(1.2, 1.2), gaussian=12, codec=None),
}
#: The degradations of `degraded`: shrinking alone, fixed ones, and the presets of `starsr-degrade`.
DEGRADATIONS = ("clean", *FIXED, *PRESETS)


class SourceError(Exception):
    """Clips are missing or do not fit together. The message is one sentence."""


@dataclass(frozen=True)
class Clip:
    """Low-quality frames `[F,h,w,3]` and, if known, the ground truth `[F,4h,4w,3]`, both uint8.

    `note` describes the clip or its degradation.
    """

    name: str
    group: str
    low: np.ndarray
    rate: Fraction
    truth: np.ndarray | None = None
    note: str = ""


@dataclass(frozen=True)
class Source:
    """A clip that is read or made when `load` is called."""

    name: str
    group: str
    load: Callable[[], Clip]


def pair(group: str, high: Path, low: Path, frames: int | None) -> Clip:
    """Return a clip of a paired folder, with its prompt as the note."""
    truth, rate = read_video(high, frames)
    clip, _ = read_video(low, frames)
    wanted = (len(clip), SCALE * clip.shape[1], SCALE * clip.shape[2])
    if truth.shape[:3] != wanted:
        raise SourceError(
            f"{high} and {low} do not fit together: the first must have as many frames, {SCALE} "
            "times as large"
        )
    return Clip(low.stem, group, clip, rate, truth, read_text(low.parents[1], low.stem))


def single(path: Path, group: str, frames: int | None) -> Clip:
    """Return a video without ground truth."""
    clip, rate = read_video(path, frames)
    return Clip(path.stem, group, clip, rate)


def from_path(path: Path, frames: int | None) -> list[Source]:
    """Return the clips of a folder with `gt` and `lq`, of a folder of videos, or of a video.

    Only those of the first kind have a ground truth. Raises `SourceError`.
    """
    if path.is_file():
        return [Source(path.stem, "real", partial(single, path, "real", frames))]
    group = path.resolve().name
    low = path / "lq" if (path / "lq").is_dir() else path
    found = sorted(low.iterdir()) if low.is_dir() else []
    files = [p for p in found if p.suffix.lower() in VIDEO_SUFFIXES]
    if not files:
        raise SourceError(
            f"{low} holds no videos; give a video, a folder of videos, or a folder with gt and lq"
        )
    if not (path / "gt").is_dir():
        return [Source(p.stem, group, partial(single, p, group, frames)) for p in files]
    sources = []
    for p in files:
        high = next((q for q in sorted((path / "gt").iterdir()) if q.stem == p.stem), None)
        if high is None:
            raise SourceError(
                f"{p} has no ground truth; put {p.stem}.mkv into {path / 'gt'}, or take it out "
                "of lq"
            )
        sources.append(Source(p.stem, group, partial(pair, group, high, p, frames)))
    return sources


def clean_clips(media: Path, held_out: list[Path], frames: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield names and clean clips `[F,H,W,3]` uint8.

    They are held-out photographs, panned at their own size, and pieces of the `held_out` videos.
    """
    rng = np.random.default_rng(7)
    for path in find(media, PHOTO_SUFFIXES):
        if is_held_out(path):
            photo = read_photo(path)
            yield f"{path.parent.name}/{path.stem}", pan(photo, frames, (256, 384), rng, shrink=1.0)
    for path in held_out:
        whole = read_clip(path)
        for start in range(0, len(whole) - frames + 1, max(frames, len(whole) // 6)):
            yield f"{path.stem}@{start}", whole[start : start + frames]


def degrade(high: np.ndarray, name: str, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """Degrade a clean clip `[F,4h,4w,3]` uint8 to `[F,h,w,3]` and describe the degradation."""
    clean = from_bytes(np.ascontiguousarray(high))
    if name == "clean":
        size = (clean.shape[2] // SCALE, clean.shape[3] // SCALE)
        low = to_bytes(second_order.resize(clean, size, "bicubic"))
        return low, f"{name}: shrunk by bicubic interpolation"
    if name in FIXED:
        return first_order.degrade(clean, FIXED[name], rng), f"{name}: {FIXED[name]}"
    preset = PRESETS[name]
    if preset.per_frame:
        return second_order.degrade(clean, preset, rng), f"{name}: drawn anew for each frame"
    recipe = second_order.draw(rng, preset, len(clean), (clean.shape[2], clean.shape[3]))
    return to_bytes(recipe(clean)), f"{name}: " + ", ".join(step for step, _ in recipe.steps)


def degraded(
    names: list[str],
    media: Path,
    videos: list[Path],
    count: int | None,
    frames: int,
    seed: int,
    draws: int = 1,
) -> list[Source]:
    """Return held-out clips, each degraded in all of the ways `names`.

    At most `count` clips are chosen evenly among the held-out photographs (panned) below `media`
    and the pieces of `videos`. `seed` determines the random numbers; a degradation that uses them
    is drawn `draws` times. Raises `SourceError`.
    """
    if not find(media, PHOTO_SUFFIXES) and not videos:
        raise SourceError(
            f"{media} holds no photographs; name a folder with the training media, or clean videos "
            "with --video"
        )
    if draws < 1:
        raise SourceError(f"--draws is {draws}, but must be at least 1; give --draws 1 or more")
    found = list(clean_clips(media, videos, frames))
    if not found:
        raise SourceError(
            f"none of the photographs below {media} is held out for evaluation; name clean videos "
            "with --video"
        )
    most = min(count or len(found), len(found))
    chosen = np.unique(np.linspace(0, len(found) - 1, most).round().astype(int))

    def source(name: str, index: int, draw: int) -> Source:
        title, high = found[index]
        label = f"{title} draw {draw + 1}" if draw else title

        def make() -> Clip:
            low, note = degrade(high, name, np.random.default_rng((seed, index, draw)))
            return Clip(label, name, low, Fraction(25), high, note)

        return Source(label, name, make)

    return [
        source(name, int(i), draw)
        for name in names
        for draw in range(1 if name == "clean" else draws)
        for i in chosen
    ]
