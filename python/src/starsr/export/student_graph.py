# SPDX-License-Identifier: MPL-2.0
"""The student of nano as an ONNX graph."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto
from torch import nn

from starsr.data.media import SCALE
from starsr.models.nano.student import SLOPE, Stage, Student
from starsr.ops.onnx_graph import OnnxGraph, Spec

#: The end of any axis.
FAR = (1 << 63) - 1
LOW: Spec = (onnx.TensorProto.FLOAT, ["F", 3, "h", "w"])
HIGH: Spec = (onnx.TensorProto.FLOAT, ["F", 3, "H", "W"])


class Writer(OnnxGraph):
    """Adds the layers of a student to a graph.

    `kept` are the names of the features that the network computes, in the order of the graph.
    """

    def __init__(self, student: Student, precision: str = "fp32") -> None:
        weights = {name: w.detach().cpu().numpy() for name, w in student.named_parameters()}
        super().__init__(weights, precision)
        self.modules = {n: m for n, m in student.named_modules() if isinstance(m, nn.Conv2d)}
        self.kept: list[str] = []

    def source(self) -> str:
        """Return the frames as the first layer sees them."""
        return "low"

    def feature(self, op: str, *inputs: str, same: str | None = None, **attributes: Any) -> str:
        """Add a node that computes features and return its output.

        `same` names features that hold the same values.
        """
        name = self.node(op, *inputs, **attributes)
        if same is None:
            self.kept.append(name)
        return name

    def residual(self, x: str) -> str:
        """Return the network's result as it is added to the bicubic upscale."""
        return x

    def conv(self, x: str, name: str) -> str:
        """Add a convolution of the student."""
        module = self.modules[name]
        pads, strides = list(module.padding) * 2, list(module.stride)
        kernel = list(module.kernel_size)
        weights = self.kernel(x, name, module)
        return self.feature("Conv", x, *weights, kernel_shape=kernel, pads=pads, strides=strides)

    def kernel(self, x: str, name: str, module: nn.Conv2d) -> tuple[str, str]:
        """Return weight and bias of a convolution of `x`."""
        weight = self.single(f"{name}.weight", tuple(module.weight.shape))
        return weight, self.single(f"{name}.bias", (module.out_channels,))

    def single(self, name: str, shape: tuple[int, ...]) -> str:
        """Return a weight in 32 bits; ONNX Runtime converts constants when it loads the graph."""
        weight = self.weight(name, shape)
        return weight if self.element == TensorProto.FLOAT else self.cast(weight, TensorProto.FLOAT)

    def relu(self, x: str) -> str:
        """Add an activation."""
        return self.feature("LeakyRelu", x, alpha=SLOPE)

    def part(self, x: str, start: int, end: int) -> str:
        """Cut frames out."""
        places = (self.integers(n) for n in (start, end, 0))
        return self.feature("Slice", x, *places, same=x)

    def neighbourhood(self, x: str, reach: int) -> str:
        """Stack each frame with those around it, as `starsr.models.nano.student` does."""
        for _ in range(reach):
            ends = self.part(x, 0, 1), self.part(x, -1, FAR)
            x = self.feature("Concat", ends[0], x, ends[1], same=x, axis=0)
        shifts = [self.part(x, start, (start - 2 * reach) or FAR) for start in range(2 * reach + 1)]
        return self.feature("Concat", *shifts, same=x, axis=1)

    def block(self, x: str, name: str) -> str:
        """Add a residual block."""
        inner = self.relu(self.conv(x, f"{name}.first"))
        return self.relu(self.feature("Add", x, self.conv(inner, f"{name}.second")))

    def stage(self, x: str, name: str, stage: Stage) -> str:
        """Add the mixes and blocks of one scale."""
        for index in range(len(stage.blocks)):
            around = self.neighbourhood(x, 1)
            x = self.feature("Add", x, self.conv(around, f"{name}.mixes.{index}.project"))
            x = self.block(x, f"{name}.blocks.{index}")
        return x

    def joined(self, fine: str, coarse: str, name: str) -> str:
        """Add coarse features to fine ones."""
        scales = self.array("twice", np.array([1, 1, 2, 2], np.float32))
        small = self.conv(coarse, name)
        enlarged = self.feature(
            "Resize",
            small,
            "",
            scales,
            same=small,
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
        return self.feature("Add", fine, enlarged)


class HalfWriter(Writer):
    """Adds the layers of a student in 16-bit floats."""

    def __init__(self, student: Student) -> None:
        super().__init__(student, "fp16")

    def source(self) -> str:
        """Return the frames in 16 bits."""
        return self.cast("low", TensorProto.FLOAT16)

    def single(self, name: str, shape: tuple[int, ...]) -> str:
        """Return a weight as it is stored."""
        return self.weight(name, shape)

    def residual(self, x: str) -> str:
        """Return the residual in 32 bits, in which it is added to the bicubic upscale."""
        return self.cast(x, TensorProto.FLOAT)


def graph(student: Student, weights: Path | None = None) -> onnx.ModelProto:
    """Return the network as an ONNX graph of standard operators.

    It maps `low` `[F,3,h,w]` in [0,1], the frames of a window, to `high` `[F,3,4h,4w]` in [0,1].
    F, h and w are free; h and w are multiples of `student.MULTIPLE`. The graph refers to the
    tensors in the file `weights`, which `student.save` wrote, or holds its own.
    """
    return written(Writer(student, "fp16" if weights else "fp32"), student, weights)


def half_graph(student: Student, weights: Path) -> onnx.ModelProto:
    """Return `graph` with features in 16-bit floats."""
    return written(HalfWriter(student), student, weights)


def written(writer: Writer, student: Student, weights: Path | None = None) -> onnx.ModelProto:
    """Return the graph that a writer makes of a student, see `graph`."""
    entered = writer.conv(writer.neighbourhood(writer.source(), student.config.reach), "enter")
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
    phases = writer.node("Add", plain, writer.residual(writer.conv(fine, "leave")))
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
