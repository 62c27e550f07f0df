# SPDX-License-Identifier: MPL-2.0
"""The student of nano as the bundle nano2 (`starsr-export student`)."""

import argparse
import hashlib
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from starsr.bundle.reader import Bundle
from starsr.bundle.writer import BundleError, staged, write_manifest
from starsr.data.media import SCALE
from starsr.export import student_integer
from starsr.export.nano import OURS
from starsr.export.student_graph import graph, half_graph
from starsr.models.nano.student import MULTIPLE, Student, StudentConfig, blend, load, operations

#: The weights of the bundle's graph and those that `detail` blends them with.
FIDELITY, DETAIL = "fidelity.safetensors", "detail.safetensors"
#: The graphs in floats of 32 and 16 bits and in integers.
FLOATS, HALVES, INTEGERS = "upscaler.onnx", "upscaler-fp16.onnx", "upscaler-int8.onnx"
#: Share of the weights for detail unless the user sets another.
DEFAULT_DETAIL = 0.85
#: Side of a tile in output pixels, and the overlap that hides the seams of tiles.
TILE, TILE_OVERLAP = 2048, 128
#: Bytes that ONNX Runtime needs for each pixel of a tile and frame of a window, measured on CPU:
#: those of floats and of integers.
TILE_MEMORY, INTEGER_TILE_MEMORY = 96, 32
#: Largest absolute differences between ONNX Runtime and PyTorch, which does not round the blend.
LIMITS = {"float": 2e-3, "fp16": 8e-3}


def manifest(name: str, version: str, detail: float) -> dict[str, Any]:
    """Return the manifest of the bundle without its files."""
    side = {"multiple": SCALE * MULTIPLE, "offset": 0, "minimum": SCALE * MULTIPLE}
    for_pixel = operations(StudentConfig(), MULTIPLE, MULTIPLE) / (SCALE * MULTIPLE) ** 2
    return {
        "format": 2,
        "name": name,
        "version": version,
        **OURS,
        "scale": {"default": SCALE, "minimum": SCALE, "maximum": SCALE},
        "canvas": {
            "upscale": "bicubic",
            "padding": "edge",
            "tile": TILE,
            "tile_overlap": TILE_OVERLAP,
            "tile_memory": TILE_MEMORY,
            "operations": [for_pixel, 0.0],
            "height": side,
            "width": side,
        },
        "window": {"mode": "blend", "length": 6, "overlap": 1, "minimum": 1, "maximum": 64},
        "detail": {"default": detail},
    }


def verify(folder: Path, ends: tuple[Student, Student], precision: str) -> float:
    """Return the largest absolute difference between PyTorch and the bundle in ONNX Runtime."""
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for share, shape in ((0.0, (3, 12, 20)), (0.5, (1, 8, 8)), (1.0, (5, 16, 12))):
        frames, height, width = shape
        low = torch.rand((frames, 3, height, width), generator=generator)
        with torch.no_grad():
            expected = blend(*ends, share)(low[None])[0].clamp(0, 1).numpy()
        actual = Bundle(folder, share, precision).run("upscaler", low=low.numpy())[0]
        worst = max(worst, float(np.abs(actual - expected).max()))
    return worst


def write_graph(path: Path, model: onnx.ModelProto) -> str:
    """Write a graph and return its SHA-256."""
    data = model.SerializeToString(deterministic=True)
    path.write_bytes(data)
    onnx.checker.check_model(path)
    return hashlib.sha256(data).hexdigest()


def clips_for(purpose: int, media: Path) -> list[student_integer.Pair]:
    """Return clips for `RANGES` or `COST` of integers. Raises `BundleError` if there are none."""
    pairs = list(student_integer.pairs(media, purpose))
    if not pairs:
        raise BundleError(
            f"there are too few photographs below {media}: name a folder with at least "
            f"{student_integer.COST + 1}"
        )
    return pairs


def integers(ends: tuple[Student, Student], weights: Path, media: Path) -> onnx.ModelProto:
    """Return the graph in 8-bit integers, with ranges of clips over photographs in `media`."""
    clips = [pair.low for pair in clips_for(student_integer.RANGES, media)]
    return student_integer.graph(ends[0], student_integer.ranges(ends, clips), weights)


def check_integers(work: Path, media: Path) -> float:
    """Return how many dB the integers cost. Raises `BundleError` if that is too much."""
    cost = student_integer.loss(work, clips_for(student_integer.COST, media))
    if not cost <= student_integer.MOST_LOSS:
        raise BundleError(
            f"integers cost {cost:.2f} dB of PSNR, more than {student_integer.MOST_LOSS} dB: the "
            "bundle is not written; write it without --calibrate"
        )
    return cost


def write(
    folder: Path, source: Path, details: dict[str, Any], media: Path | None = None
) -> dict[str, float]:
    """Write the bundle with the weights in `source`; return the figures of its checks.

    With photographs in `media` the bundle gets a graph in 8-bit integers, too. Texts that `folder`
    has stay. Raises `ValueError` for weights that do not belong together, and `BundleError` if a
    graph is not exact enough.
    """
    ends = load(source / FIDELITY), load(source / DETAIL)
    blend(*ends, 0.0)
    texts = {p.name: p.read_bytes() for p in folder.glob("*.md")}
    with staged(folder) as work:
        for name in (FIDELITY, DETAIL):
            shutil.copyfile(source / name, work / name)
        hashes = {
            n: hashlib.sha256((work / n).read_bytes()).hexdigest() for n in (FIDELITY, DETAIL)
        }
        weights = {"file": DETAIL, "sha256": hashes[DETAIL]}
        details = {**details, "detail": {**details["detail"], "weights": weights}}
        own = work / FIDELITY
        floats = write_graph(work / FLOATS, graph(ends[0], own))
        halves = write_graph(work / HALVES, half_graph(ends[0], own))
        forms: dict[str, dict[str, Any]] = {"fp16": {"file": HALVES, "sha256": halves}}
        if media is not None:
            sha256 = write_graph(work / INTEGERS, integers(ends, own, media))
            table = {"file": INTEGERS, "sha256": sha256, "tile_memory": INTEGER_TILE_MEMORY}
            forms["int8"] = table
        files = {FLOATS: floats, FIDELITY: hashes[FIDELITY]}
        write_manifest(work, details, {"upscaler": files}, {"upscaler": forms})
        for name, text in texts.items():
            (work / name).write_bytes(text)
        figures = {}
        for form, limit in LIMITS.items():
            figures[form] = verify(work, ends, form)
            if not figures[form] <= limit:
                raise BundleError(
                    f"ONNX Runtime {onnxruntime.__version__} differs from PyTorch by "
                    f"{figures[form]:.1e} in {form}, more than {limit:.0e}: the bundle is not "
                    "written"
                )
        if media is not None:
            figures["cost"] = check_integers(work, media)
    return figures


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    result = argparse.ArgumentParser(
        prog="starsr-export student",
        description="Writes a bundle from the weights of starsr-distill and verifies it.",
    )
    add = result.add_argument
    add("--weights", type=Path, required=True, help=f"folder with {FIDELITY} and {DETAIL}")
    add("--output", type=Path, required=True, help="folder of the bundle, replaced when complete")
    add("--name", default="nano2", help="name in the manifest (%(default)s)")
    add("--version", default="2.3.1", help="version in the manifest (%(default)s)")
    add("--detail", type=float, default=DEFAULT_DETAIL, help="default detail (%(default)s)")
    add(
        "--calibrate",
        type=Path,
        metavar="MEDIA",
        help="folder of photographs; measures on them the ranges for a graph in 8-bit integers",
    )
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = parser().parse_args(arguments)
    details = manifest(options.name, options.version, options.detail)
    try:
        figures = write(options.output, options.weights, details, options.calibrate)
    except (ValueError, OSError, BundleError) as e:
        print(f"starsr-export student: {e}", file=sys.stderr)
        return 1
    print(
        f"wrote {options.output}, which differs from PyTorch by {figures['float']:.1e}, and by "
        f"{figures['fp16']:.1e} in fp16"
    )
    if "cost" in figures:
        print(f"8-bit integers cost {figures['cost']:.3f} dB of PSNR")
    return 0
