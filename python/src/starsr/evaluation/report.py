# SPDX-License-Identifier: MPL-2.0
"""Writes the report: `report.json`, and `index.html` with pictures, which needs no network."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from starsr.data.media import SCALE
from starsr.evaluation import metrics, optional, study
from starsr.evaluation.sources import Clip
from starsr.evaluation.study import Row

INPUT = "input"
#: Side of the crops, in pixels of the output, and the greatest width of x-t slices.
CROP, SLICE = 96, 480
#: Least height of a slice in the picture of all slices, and the height of its labels.
TALL, LABEL = 48, 18


@dataclass(frozen=True)
class Picture:
    """A file, named relative to the report, and the label of the result that it shows."""

    label: str
    file: str


@dataclass(frozen=True)
class Chart:
    """Lines over the frames of a clip, in a view of 720x200.

    A line has a label and points (x, y, text). Ticks and frames are pairs of position and text.
    """

    title: str
    lines: list[tuple[str, list[tuple[float, float, str]]]]
    ticks: list[tuple[float, str]]
    frames: list[tuple[float, str]]


@dataclass
class Page:
    """The part of the report about one clip.

    It shows `frame` whole and in crops at `(x, y)`, and x-t slices of `row` from pixel `left`, of
    which the file `sheet` shows all. `width` is that of the output.
    """

    name: str
    group: str
    note: str
    frames: int
    size: str
    width: int
    frame: int
    figures: dict[str, Row]
    psnr: dict[str, list[float]]
    warp: dict[str, list[float | None]]
    pictures: list[Picture] = field(default_factory=list)
    crops: list[tuple[tuple[int, int], list[Picture]]] = field(default_factory=list)
    slices: list[Picture] = field(default_factory=list)
    sheet: str = ""
    row: int = 0
    left: int = 0

    def charts(self) -> list[Chart]:
        """Return charts of the PSNR of each frame, if known, and of the warping errors."""
        found = [
            chart("PSNR of each frame, dB", self.psnr),
            chart("E*warp from each frame to the next, x1e-3", self.warp),
        ]
        return [c for c in found if c]


def chart(title: str, series: Mapping[str, Sequence[float | None]]) -> Chart | None:
    """Return a chart of series of one length, or None if there is nothing to draw."""
    values = [v for line in series.values() for v in line if v is not None]
    length = max((len(line) for line in series.values()), default=0)
    if not values or length < 2:
        return None
    low, high = min(values), max(values)
    step = 10.0 ** math.floor(math.log10(max(high - low, 1e-3)))
    step *= next(f for f in (0.2, 0.5, 1, 2, 5) if (high - low) / (step * f) <= 5 or f == 5)
    low = math.floor(low / step + 1e-9) * step
    high = max(math.ceil(high / step - 1e-9) * step, low + step)

    def x(frame: int) -> float:
        return round(48 + frame * 660 / (length - 1), 1)

    def y(value: float) -> float:
        return round(176 - (value - low) * 160 / (high - low), 1)

    digits = max(0, -math.floor(math.log10(step)))
    lines = [
        (
            label,
            [
                (x(i), y(v), f"{label}, frame {i}: {v:.{digits + 1}f}")
                for i, v in enumerate(line)
                if v is not None
            ],
        )
        for label, line in series.items()
    ]
    levels = [low + i * step for i in range(round((high - low) / step) + 1)]
    ticks = [(y(level), f"{level:.{digits}f}") for level in levels]
    every = max(1, math.ceil(length / 12))
    return Chart(title, lines, ticks, [(x(i), str(i)) for i in range(0, length, every)])


def interesting(reference: np.ndarray, results: list[np.ndarray]) -> list[tuple[int, int]]:
    """Return the corners `(x, y)` of two crops of pictures `[H,W,3]`.

    The first is where the reference has most detail, the second elsewhere, where the results differ
    most.
    """
    height, width = reference.shape[:2]
    side = min(CROP, height, width)
    detail = np.hypot(*np.gradient(metrics.luma(reference)))
    spread = np.stack([metrics.luma(r) for r in results]).std(0)
    corners: list[tuple[int, int]] = []
    for interest in (detail, spread):
        total = np.pad(interest, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
        sums = total[side:, side:] - total[:-side, side:]
        sums = sums - total[side:, :-side] + total[:-side, :-side]
        for x, y in corners:
            sums[max(y - side, 0) : y + side, max(x - side, 0) : x + side] = -1
        y, x = np.unravel_index(sums.argmax(), sums.shape)
        if sums[y, x] >= 0:
            corners.append((int(x), int(y)))
    return corners


def save(picture: np.ndarray, folder: Path, name: str) -> str:
    """Write a picture `[H,W,3]` uint8 without loss and return its name relative to the report."""
    path = folder / "images" / f"{name}.webp"
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.ascontiguousarray(picture))
    image.save(path, "WEBP", lossless=True, quality=40, method=2)
    return f"images/{path.name}"


def sheet(slices: Mapping[str, np.ndarray]) -> Image.Image:
    """Return x-t slices `[F,W,3]` uint8 below each other under their labels.

    Each frame is a few rows high. Pixels are not changed otherwise.
    """
    frames, width = next(iter(slices.values())).shape[:2]
    times = max(1, -(-TALL // frames))
    height = LABEL + times * frames
    picture = Image.new("RGB", (width, height * len(slices)), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(LABEL - 6)
    for number, (label, piece) in enumerate(slices.items()):
        draw.text((4, number * height + 1), label, "black", font)
        rows = Image.fromarray(np.ascontiguousarray(piece.repeat(times, 0)))
        picture.paste(rows, (0, number * height + LABEL))
    return picture


def page(
    clip: Clip, results: Mapping[str, np.ndarray], measured: study.Measured, folder: Path
) -> Page:
    """Write a clip's pictures: the middle frame whole and in crops, and x-t slices."""
    enlarged = clip.low.repeat(SCALE, 1).repeat(SCALE, 2)
    shown = {INPUT: enlarged, **results}
    if clip.truth is not None:
        shown[study.TRUTH] = clip.truth
    middle, (height, width) = len(clip.low) // 2, enlarged.shape[1:3]
    prefix = f"{study.slug(clip.group)}-{study.slug(clip.name)}"
    made = Page(
        clip.name,
        clip.group,
        clip.note,
        len(clip.low),
        f"{clip.low.shape[2]}x{clip.low.shape[1]} to {width}x{height}",
        width,
        middle,
        measured.figures,
        measured.psnr,
        measured.warp,
    )
    reference = next(iter(results.values())) if clip.truth is None else clip.truth
    corners = interesting(reference[middle], [r[middle] for r in results.values()])
    x, y = corners[0]
    made.row = min(y + CROP // 2, height - 1)
    made.left = max(0, min(x + CROP // 2 - SLICE // 2, width - SLICE))
    pieces = {}
    for label, frames in shown.items():
        name = f"{prefix}-{study.slug(label)}"
        made.pictures.append(Picture(label, save(frames[middle], folder, name)))
        pieces[label] = frames[:, made.row, made.left : made.left + SLICE]
        made.slices.append(Picture(label, save(pieces[label], folder, f"{name}-xt")))
    made.sheet = f"images/{prefix}-xt.png"
    sheet(pieces).save(folder / made.sheet)
    for number, (x, y) in enumerate(corners):
        crops = []
        for label, frames in shown.items():
            name = f"{prefix}-{study.slug(label)}-crop{number}"
            piece = frames[middle, y : y + CROP, x : x + CROP]
            crops.append(Picture(label, save(piece, folder, name)))
        made.crops.append(((x, y), crops))
    return made


def columns(table: Mapping[str, Row]) -> dict[str, metrics.Figure]:
    """Return the figures that at least one row of a table has, in their order."""
    known = metrics.FIGURES | {name: metric.figure for name, metric in optional.METRICS.items()}
    rows = table.values()
    return {name: f for name, f in known.items() if any(r.get(name) is not None for r in rows)}


#: Attributes of a page that `report.json` holds.
RECORDED = ("name", "group", "note", "frames", "size", "figures", "psnr", "warp")


def write(
    folder: Path,
    pages: Sequence[Page],
    manifest: Mapping[str, Any],
    missing: Mapping[str, str],
    title: str,
) -> None:
    """Write `report.json` and `index.html` into a folder that holds the pages' pictures."""
    names = dict.fromkeys(p.group for p in pages)
    groups = {name: [p for p in pages if p.group == name] for name in names}
    tables = {name: study.means([p.figures for p in members]) for name, members in groups.items()}
    record = {
        "title": title,
        "manifest": manifest,
        "not_measured": missing,
        "means": tables,
        "clips": [{key: getattr(p, key) for key in RECORDED} for p in pages],
    }
    text = json.dumps(record, indent=1, allow_nan=False)
    (folder / "report.json").write_text(f"{text}\n", encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("starsr.evaluation", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    labels = list(dict.fromkeys(label for table in tables.values() for label in table))
    figures = columns(
        {f"{name}/{label}": row for name, table in tables.items() for label, row in table.items()}
    )
    html = environment.get_template("report.html").render(
        title=title,
        groups=groups,
        tables=tables,
        figures=figures,
        columns=columns,
        best=study.best,
        manifest=manifest,
        missing=missing,
        series={label: index for index, label in enumerate(labels)},
        truth=study.TRUTH,
        input=INPUT,
    )
    (folder / "index.html").write_text(html, encoding="utf-8")
