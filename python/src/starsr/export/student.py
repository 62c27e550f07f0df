# SPDX-License-Identifier: MPL-2.0
"""The student of nano as an ONNX graph."""

from pathlib import Path

import numpy as np
import onnx
from torch import nn

from starsr.data.media import SCALE
from starsr.models.nano.student import SLOPE, Stage, Student
from starsr.ops.onnx_graph import OnnxGraph, Spec

#: The end of any axis.
FAR = (1 << 63) - 1
LOW: Spec = (onnx.TensorProto.FLOAT, ["F", 3, "h", "w"])
HIGH: Spec = (onnx.TensorProto.FLOAT, ["F", 3, "H", "W"])


class _Writer(OnnxGraph):
    """Adds the layers of a student to a graph."""

    def __init__(self, student: Student) -> None:
        super().__init__({name: w.detach().cpu().numpy() for name, w in student.named_parameters()})
        self.modules = {n: m for n, m in student.named_modules() if isinstance(m, nn.Conv2d)}

    def conv(self, x: str, name: str) -> str:
        module = self.modules[name]
        weight = self.weight(f"{name}.weight", tuple(module.weight.shape))
        bias = self.weight(f"{name}.bias", (module.out_channels,))
        pads, strides = list(module.padding) * 2, list(module.stride)
        kernel = list(module.kernel_size)
        return self.node("Conv", x, weight, bias, kernel_shape=kernel, pads=pads, strides=strides)

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


def graph(student: Student) -> onnx.ModelProto:
    """Return the network as an ONNX graph of standard operators.

    It maps `low` `[F,3,h,w]` in [0,1], the frames of a window, to `high` `[F,3,4h,4w]` in [0,1].
    F, h and w are free; h and w are multiples of `student.MULTIPLE`.
    """
    writer = _Writer(student)
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
    return writer.model({"low": LOW}, {"high": HIGH}, [result])


def export(student: Student, path: Path) -> None:
    """Write `graph` to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(graph(student).SerializeToString(deterministic=True))
    onnx.checker.check_model(path)
