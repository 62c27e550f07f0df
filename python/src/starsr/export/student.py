# SPDX-License-Identifier: MPL-2.0
"""The student of nano as an ONNX graph, and as the bundle nano2 (`starsr-export student`)."""

import argparse
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto
from torch import nn

from starsr.bundle.reader import Bundle
from starsr.bundle.writer import BundleError, staged, write_manifest
from starsr.data.media import SCALE
from starsr.export.nano import OURS
from starsr.models.nano.student import (
    MULTIPLE,
    SLOPE,
    Stage,
    Student,
    StudentConfig,
    blend,
    load,
    operations,
)
from starsr.ops.onnx_graph import OnnxGraph, Spec

#: The end of any axis.
FAR = (1 << 63) - 1
LOW: Spec = (onnx.TensorProto.FLOAT, ["F", 3, "h", "w"])
HIGH: Spec = (onnx.TensorProto.FLOAT, ["F", 3, "H", "W"])
#: The weights of the bundle's graph and those that `detail` blends them with.
FIDELITY, DETAIL = "fidelity.safetensors", "detail.safetensors"
#: Share of the weights for detail unless the user sets another.
DEFAULT_DETAIL = 0.75
#: Side of a tile in output pixels, and the overlap that hides the seams of tiles.
TILE, TILE_OVERLAP = 2048, 128
#: Bytes that ONNX Runtime needs for each pixel of a tile and frame of a window, measured on CPU.
TILE_MEMORY = 96
#: Largest absolute difference between ONNX Runtime and PyTorch, whose blend is not rounded to fp16.
LIMIT = 2e-3


class _Writer(OnnxGraph):
    """Adds the layers of a student to a graph."""

    def __init__(self, student: Student, precision: str = "fp32") -> None:
        weights = {name: w.detach().cpu().numpy() for name, w in student.named_parameters()}
        super().__init__(weights, precision)
        self.modules = {n: m for n, m in student.named_modules() if isinstance(m, nn.Conv2d)}

    def conv(self, x: str, name: str) -> str:
        module = self.modules[name]
        weight = self.single(f"{name}.weight", tuple(module.weight.shape))
        bias = self.single(f"{name}.bias", (module.out_channels,))
        pads, strides = list(module.padding) * 2, list(module.stride)
        kernel = list(module.kernel_size)
        return self.node("Conv", x, weight, bias, kernel_shape=kernel, pads=pads, strides=strides)

    def single(self, name: str, shape: tuple[int, ...]) -> str:
        """Return a weight in 32 bits; ONNX Runtime converts constants when it loads the graph."""
        weight = self.weight(name, shape)
        return weight if self.element == TensorProto.FLOAT else self.cast(weight, TensorProto.FLOAT)

    def relu(self, x: str) -> str:
        return self.node("LeakyRelu", x, alpha=SLOPE)

    def part(self, x: str, start: int, end: int) -> str:
        return self.node("Slice", x, self.integers(start), self.integers(end), self.integers(0))

    def neighbourhood(self, x: str, reach: int) -> str:
        for _ in range(reach):
            x = self.node("Concat", self.part(x, 0, 1), x, self.part(x, -1, FAR), axis=0)
        shifts = [self.part(x, start, (start - 2 * reach) or FAR) for start in range(2 * reach + 1)]
        return self.node("Concat", *shifts, axis=1)

    def block(self, x: str, name: str) -> str:
        inner = self.relu(self.conv(x, f"{name}.first"))
        return self.relu(self.node("Add", x, self.conv(inner, f"{name}.second")))

    def stage(self, x: str, name: str, stage: Stage) -> str:
        for index in range(len(stage.blocks)):
            around = self.neighbourhood(x, 1)
            x = self.node("Add", x, self.conv(around, f"{name}.mixes.{index}.project"))
            x = self.block(x, f"{name}.blocks.{index}")
        return x

    def joined(self, fine: str, coarse: str, name: str) -> str:
        scales = self.array("twice", np.array([1, 1, 2, 2], np.float32))
        enlarged = self.node(
            "Resize",
            self.conv(coarse, name),
            "",
            scales,
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
        return self.node("Add", fine, enlarged)


def graph(student: Student, weights: Path | None = None) -> onnx.ModelProto:
    """Return the network as an ONNX graph of standard operators.

    It maps `low` `[F,3,h,w]` in [0,1], the frames of a window, to `high` `[F,3,4h,4w]` in [0,1].
    F, h and w are free; h and w are multiples of `student.MULTIPLE`. The graph refers to the
    tensors in the file `weights`, which `student.save` wrote, or holds its own.
    """
    writer = _Writer(student, "fp16" if weights else "fp32")
    entered = writer.conv(writer.neighbourhood("low", student.config.reach), "enter")
    fine = writer.relu(writer.conv(writer.relu(entered), "widen"))
    half = writer.stage(writer.relu(writer.conv(fine, "down1")), "before", student.before)
    quarter = writer.stage(writer.relu(writer.conv(half, "down2")), "middle", student.middle)
    half = writer.stage(writer.joined(half, quarter, "up2"), "after", student.after)
    fine = writer.joined(fine, half, "up1")
    for index in range(len(student.finish)):
        fine = writer.block(fine, f"finish.{index}")
    padded = writer.node("Pad", "low", writer.integers(0, 0, 2, 2, 0, 0, 2, 2), mode="edge")
    kernel = writer.array("enlarge", student.enlarge.cpu().numpy())
    plain = writer.node("Conv", padded, kernel, kernel_shape=[5, 5])
    phases = writer.node("Add", plain, writer.conv(fine, "leave"))
    shuffled = writer.node("DepthToSpace", phases, blocksize=SCALE, mode="CRD")
    zero = writer.array("zero", np.array(0, np.float32))
    one = writer.array("one", np.array(1, np.float32))
    result = writer.node("Clip", shuffled, zero, one)
    model = writer.model({"low": LOW}, {"high": HIGH}, [result])
    if weights:
        refer(model, weights)
    return model


def refer(model: onnx.ModelProto, weights: Path) -> None:
    """Make the initialisers of `model` that are tensors of a safetensors file refer to it."""
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    for tensor in model.graph.initializer:
        if tensor.name not in header:
            continue
        start, end = header[tensor.name]["data_offsets"]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": weights.name, "offset": 8 + length + start, "length": end - start}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))


def export(student: Student, path: Path) -> None:
    """Write `graph`, with its weights, to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(graph(student).SerializeToString(deterministic=True))
    onnx.checker.check_model(path)


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


def verify(folder: Path, ends: tuple[Student, Student]) -> float:
    """Return the largest absolute difference between PyTorch and the bundle in ONNX Runtime."""
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for share, shape in ((0.0, (3, 12, 20)), (0.5, (1, 8, 8)), (1.0, (5, 16, 12))):
        frames, height, width = shape
        low = torch.rand((frames, 3, height, width), generator=generator)
        with torch.no_grad():
            expected = blend(*ends, share)(low[None])[0].clamp(0, 1).numpy()
        actual = Bundle(folder, share).run("upscaler", low=low.numpy())[0]
        worst = max(worst, float(np.abs(actual - expected).max()))
    return worst


def write(folder: Path, source: Path, details: dict[str, Any]) -> float:
    """Write the bundle with the weights in `source`; return what `verify` does.

    Texts that `folder` has stay. Raises `ValueError` for weights that do not belong together, and
    `BundleError` if the graph is not exact.
    """
    ends = load(source / FIDELITY), load(source / DETAIL)
    blend(*ends, 0.0)
    texts = {p.name: p.read_bytes() for p in folder.glob("*.md")}
    with staged(folder) as work:
        for name in (FIDELITY, DETAIL):
            shutil.copyfile(source / name, work / name)
        (work / "upscaler.onnx").write_bytes(
            graph(ends[0], work / FIDELITY).SerializeToString(deterministic=True)
        )
        onnx.checker.check_model(work / "upscaler.onnx")
        names = ("upscaler.onnx", FIDELITY, DETAIL)
        hashes = {n: hashlib.sha256((work / n).read_bytes()).hexdigest() for n in names}
        weights = {"file": DETAIL, "sha256": hashes.pop(DETAIL)}
        details = {**details, "detail": {**details["detail"], "weights": weights}}
        write_manifest(work, details, {"upscaler": hashes})
        for name, text in texts.items():
            (work / name).write_bytes(text)
        difference = verify(work, ends)
        if not difference <= LIMIT:
            raise BundleError(
                f"ONNX Runtime {onnxruntime.__version__} differs from PyTorch by {difference:.1e}, "
                f"more than {LIMIT:.0e}: the bundle is not written"
            )
    return difference


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
    add("--version", default="2.1.0", help="version in the manifest (%(default)s)")
    add("--detail", type=float, default=DEFAULT_DETAIL, help="default detail (%(default)s)")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = parser().parse_args(arguments)
    details = manifest(options.name, options.version, options.detail)
    try:
        difference = write(options.output, options.weights, details)
    except (ValueError, OSError, BundleError) as e:
        print(f"starsr-export student: {e}", file=sys.stderr)
        return 1
    print(f"wrote {options.output}, which differs from PyTorch by {difference:.1e}")
    return 0
