# SPDX-License-Identifier: MPL-2.0
"""Runs upscalers on clips, keeps their results and measures them."""

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from starsr.data.media import SCALE, read_video, write_lossless
from starsr.evaluation import metrics, optional
from starsr.evaluation.sources import Clip
from starsr.evaluation.upscalers import Upscaler, plain

#: The row of the ground truth, for the figures that it can have.
TRUTH = "ground truth"

#: Figures by name; None is a figure that a clip cannot have.
Row = dict[str, float | None]


@dataclass(frozen=True)
class Window:
    """Number of frames that a model sees at once, and of those that neighbouring windows share."""

    length: int
    overlap: int


@dataclass
class Measured:
    """Figures of a clip's results by upscaler, and their series over frames."""

    figures: dict[str, Row] = field(default_factory=dict)
    psnr: dict[str, list[float]] = field(default_factory=dict)
    warp: dict[str, list[float | None]] = field(default_factory=dict)


def slug(text: str) -> str:
    """Return a file name for a text."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "clip"


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def result_key(upscaler: Upscaler, clip: Clip) -> str:
    """Return a hash of everything a result depends on: command, files behind it, and clip."""
    files = [file_hash(p) for p in upscaler.files]
    digest = hashlib.sha256(json.dumps([upscaler.command, files, str(clip.rate)]).encode())
    digest.update(str(clip.low.shape).encode())
    digest.update(np.ascontiguousarray(clip.low))
    return digest.hexdigest()


def upscale(upscaler: Upscaler, clip: Clip, folder: Path) -> tuple[np.ndarray, float]:
    """Return the result `[F,4h,4w,3]` and the seconds that it took.

    A result of the same command in `folder` is used again.
    """
    path = folder / slug(upscaler.label) / f"{slug(clip.group)}-{slug(clip.name)}.mkv"
    record, key = path.with_suffix(".json"), result_key(upscaler, clip)
    if path.is_file() and record.is_file():
        known = json.loads(record.read_text(encoding="utf-8"))
        if known["key"] == key:
            return read_video(path)[0], known["seconds"]
    start = time.monotonic()
    result = upscaler(clip.low, clip.rate)
    seconds = round(time.monotonic() - start, 3)
    record.unlink(missing_ok=True)
    write_lossless(path, result, clip.rate)
    text = json.dumps({"key": key, "command": upscaler.command, "seconds": seconds})
    record.write_text(f"{text}\n", encoding="utf-8")
    return result, seconds


def temporal(
    result: np.ndarray, base: np.ndarray, motions: list[metrics.Motion], window: Window
) -> tuple[Row, list[float | None]]:
    """Return warping error, seam index and grid of a result, and the error of each frame pair."""
    errors = metrics.warping_errors(result, motions)
    figures: Row = {
        "warp": metrics.mean_or_none(errors),
        "seam": metrics.seam_index(errors, window.length, window.overlap),
        "grid4": metrics.grid_power(result, base, 4),
        "grid8": metrics.grid_power(result, base, 8),
    }
    return figures, [float(e) if np.isfinite(e) else None for e in errors]


def measure(
    clip: Clip,
    results: Mapping[str, np.ndarray],
    window: Window,
    scorers: Mapping[str, optional.Scorer],
) -> Measured:
    """Return all figures of a clip's results."""
    measured, base, truth = Measured(), plain(clip.low), clip.truth
    motions = metrics.motion(clip.low, SCALE) if truth is None else metrics.motion(truth)
    base_psnr = 0.0 if truth is None else float(np.mean(metrics.psnr_frames(base, truth)))
    for label, result in results.items():
        figures, measured.warp[label] = temporal(result, base, motions, window)
        if truth is not None:
            fidelity = metrics.fidelity(result, truth)
            gain = fidelity["psnr"] - base_psnr
            sharpness = metrics.sharpness(result, truth)
            figures = {**fidelity, "gain": gain, **figures, "sharpness": sharpness}
            measured.psnr[label] = metrics.psnr_frames(result, truth)
        for name, score in scorers.items():
            if truth is not None or not optional.METRICS[name].needs_truth:
                figures[name] = score(result, truth)
        measured.figures[label] = figures
    if truth is not None:
        figures, measured.warp[TRUTH] = temporal(truth, base, motions, window)
        for name, score in scorers.items():
            if not optional.METRICS[name].needs_truth:
                figures[name] = score(truth, truth)
        measured.figures[TRUTH] = figures
    return measured


def means(clips: Sequence[Mapping[str, Row]]) -> dict[str, Row]:
    """Return the mean of each figure by upscaler, over the clips that have it."""
    result: dict[str, Row] = {}
    for label in dict.fromkeys(label for clip in clips for label in clip):
        rows = [clip[label] for clip in clips if label in clip]
        result[label] = {}
        for name in dict.fromkeys(name for row in rows for name in row):
            values = [v for row in rows if (v := row.get(name)) is not None]
            result[label][name] = float(np.mean(values)) if values else None
    return result


#: Ranks of values for each kind of best value; the least rank is best.
RANKS: dict[str, Callable[[float], float]] = {
    "max": lambda v: -v,
    "min": lambda v: v,
    "one": lambda v: abs(v - 1),
    "limit": lambda v: max(v, 1.0),
}


def best(table: Mapping[str, Row], name: str, figure: metrics.Figure) -> set[str]:
    """Return the upscalers whose figure, as printed, is best.

    A tie gives all of them, and no choice gives an empty set.
    """
    rank_of = RANKS[figure.best]
    values = {label: row.get(name) for label, row in table.items() if label != TRUTH}
    ranked = {
        label: rank_of(round(v, figure.digits)) for label, v in values.items() if v is not None
    }
    winners = {label for label, rank in ranked.items() if rank <= min(ranked.values()) + 1e-9}
    return winners if len(ranked) > len(winners) else set()
