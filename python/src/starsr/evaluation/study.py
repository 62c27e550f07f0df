# SPDX-License-Identifier: MPL-2.0
"""Runs upscalers over clips, keeps their results, and measures them."""

import hashlib
import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from starsr.data.media import SCALE, read_video, write_lossless
from starsr.evaluation import metrics, optional
from starsr.evaluation.sources import Clip
from starsr.evaluation.upscalers import Upscaler, plain

#: The row of the ground truth, which is measured where that means something.
TRUTH = "ground truth"


@dataclass(frozen=True)
class Window:
    """Frames that a model sees at once, and how many neighbouring windows share."""

    length: int
    overlap: int


@dataclass
class Measured:
    """What is known of a clip's results: figures by upscaler, and series over frames by figure and upscaler."""

    figures: dict[str, dict[str, float | None]] = field(default_factory=dict)
    psnr: dict[str, list[float]] = field(default_factory=dict)
    warp: dict[str, list[float | None]] = field(default_factory=dict)


def slug(text: str) -> str:
    """A name for files."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "clip"


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def result_key(upscaler: Upscaler, clip: Clip) -> str:
    """Changes with all that a result depends on: command, files behind it, and the clip."""
    digest = hashlib.sha256(json.dumps([upscaler.command, [file_hash(p) for p in upscaler.files], str(clip.rate)]).encode())
    digest.update(str(clip.low.shape).encode())
    digest.update(np.ascontiguousarray(clip.low))
    return digest.hexdigest()


def upscale(upscaler: Upscaler, clip: Clip, folder: Path) -> tuple[np.ndarray, float]:
    """The result `[F,4h,4w,3]` and the seconds that it took; what lies in `folder` from the same command is used again."""
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
    record.write_text(json.dumps({"key": key, "command": upscaler.command, "seconds": seconds}) + "\n", encoding="utf-8")
    return result, seconds


def temporal(result: np.ndarray, base: np.ndarray, motions: list, window: Window) -> tuple[dict[str, float | None], list]:
    """Warping error, seam index and grid of a result, with the warping error of each pair of frames."""
    errors = metrics.warping_errors(result, motions)
    figures = {
        "warp": metrics.mean_or_none(errors),
        "seam": metrics.seam_index(errors, window.length, window.overlap),
        "grid4": metrics.grid_power(result, base, 4),
        "grid8": metrics.grid_power(result, base, 8),
    }
    return figures, [float(e) if np.isfinite(e) else None for e in errors]


def measure(clip: Clip, results: dict[str, np.ndarray], window: Window, scorers: dict[str, optional.Scorer]) -> Measured:
    """All figures of a clip's results."""
    measured, base = Measured(), plain(clip.low)
    motions = metrics.motion(clip.low, SCALE) if clip.truth is None else metrics.motion(clip.truth)
    rows = results if clip.truth is None else {**results, TRUTH: clip.truth}
    base_psnr = None if clip.truth is None else float(np.mean(metrics.psnr_frames(base, clip.truth)))
    for label, result in rows.items():
        figures, measured.warp[label] = temporal(result, base, motions, window)
        if clip.truth is not None and label != TRUTH:
            fidelity = metrics.fidelity(result, clip.truth)
            gain, sharpness = fidelity["psnr"] - base_psnr, metrics.sharpness(result, clip.truth)
            figures = {**fidelity, "gain": gain, **figures, "sharpness": sharpness}
            measured.psnr[label] = metrics.psnr_frames(result, clip.truth)
        for name, score in scorers.items():
            if not optional.METRICS[name].needs_truth or (clip.truth is not None and label != TRUTH):
                figures[name] = score(result, clip.truth)
        measured.figures[label] = figures
    return measured


def means(rows: list[dict[str, dict[str, float | None]]]) -> dict[str, dict[str, float | None]]:
    """Mean of each figure over clips by upscaler, of those clips that have it."""
    result: dict[str, dict[str, float | None]] = {}
    for label in dict.fromkeys(label for row in rows for label in row):
        names = dict.fromkeys(name for row in rows for name in row.get(label, {}))
        values = {name: [row[label][name] for row in rows if row.get(label, {}).get(name) is not None] for name in names}
        result[label] = {name: float(np.mean(v)) if v else None for name, v in values.items()}
    return result


def best(table: dict[str, dict[str, float | None]], name: str, figure: metrics.Figure) -> set[str]:
    """The upscalers whose figure is best as it is printed; all of a tie, none where there is nothing to choose from."""
    ranks = {"max": lambda v: -v, "min": lambda v: v, "one": lambda v: abs(v - 1), "limit": lambda v: max(v, 1.0)}
    values = {label: row.get(name) for label, row in table.items() if label != TRUTH}
    ranked = {label: ranks[figure.best](round(v, figure.digits)) for label, v in values.items() if v is not None}
    winners = {label for label, rank in ranked.items() if rank <= min(ranked.values()) + 1e-9}
    return winners if len(ranked) > len(winners) else set()
