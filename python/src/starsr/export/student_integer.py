# SPDX-License-Identifier: MPL-2.0
"""The student of nano in 8-bit integers, for processors that multiply these fast.

Features are stored as `uint8`, weights as `int8` with one scale for each output channel. The graph
derives these scales from the weights, so that it takes any blend of two sets of weights. The ranges
of the features are measured on clips.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto
from torch import Tensor, nn

from starsr.bundle.reader import Bundle
from starsr.data.clips import is_held_out, pan
from starsr.data.media import PHOTO_SUFFIXES, SCALE, find, from_bytes, read_photo, to_bytes
from starsr.degradation.codecs import transcode
from starsr.degradation.second_order import PRESETS, degrade, resize
from starsr.export.student_graph import Writer, written
from starsr.models.nano.student import Student, blend

#: Of how many photographs one is used, and the first of those whose clips give the ranges, and of
#: those that tell what the integers cost.
EVERY, RANGES, COST = 8, 0, 4
#: Kinds of degradation, in turn, and x264's constant rate factor for `video`.
KINDS, CRF = ("clean", "light", "heavy", "video"), 27.0
#: Frames of a clip, and their size (height, width).
FRAMES, SIZE = 5, (256, 384)
#: Shares of the weights for detail at which the ranges are measured.
SHARES = (0.0, 0.5, 1.0)
#: Largest loss in dB, averaged over clips.
MOST_LOSS = 0.1

#: The least and the greatest value of features.
Range = tuple[float, float]


@dataclass(frozen=True)
class Pair:
    """Low-quality frames `[F,3,h,w]` and the true ones `[F,3,4h,4w]`, both in [0,1]."""

    low: Tensor
    high: Tensor


def pairs(media: Path, first: int) -> Iterator[Pair]:
    """Yield pans over every eighth photograph that is not held out, from `first` on."""
    rng = np.random.default_rng(first)
    photos = [path for path in find(media, PHOTO_SUFFIXES) if not is_held_out(path)]
    for index, path in enumerate(photos[first::EVERY]):
        high = from_bytes(pan(read_photo(path), FRAMES, SIZE, rng, 1.0))
        kind = KINDS[index % len(KINDS)]
        if kind in PRESETS:
            low = degrade(high, PRESETS[kind], rng)
        else:
            low = to_bytes(resize(high, (SIZE[0] // SCALE, SIZE[1] // SCALE), "area"))
        if kind == "video":
            low = transcode(low, "libx264", quality=CRF)
        yield Pair(torch.from_numpy(low.copy()).permute(0, 3, 1, 2).float() / 255, high)


class IntegerWriter(Writer):
    """Adds the layers of a student, whose features have the given ranges in the order of `kept`.

    ONNX Runtime fuses each layer with the conversions around it into one of integers.
    """

    def __init__(self, student: Student, ranges: Sequence[Range]) -> None:
        super().__init__(student, "fp16")
        self.ranges = iter(ranges)
        #: Scale and zero point of features.
        self.codes: dict[str, tuple[str, str]] = {}

    def source(self) -> str:
        """Return the frames in 8 bits, which is what most videos have."""
        return self.coded("low", (0.0, 1.0))

    def feature(self, op: str, *inputs: str, same: str | None = None, **attributes: Any) -> str:
        """Add a node and convert its output to 8 bits and back."""
        name = super().feature(op, *inputs, same=same, **attributes)
        return self.rounded(name, self.codes[same]) if same else self.coded(name, next(self.ranges))

    def coded(self, x: str, limits: Range) -> str:
        """Return `x` after a conversion to a code for the given limits, and back."""
        # Zero must have a code of its own, as convolutions pad with it.
        low, high = min(limits[0], 0.0), max(limits[1], 0.0)
        step = np.float32(max(high - low, 1e-6) / 255)
        scale = self.array(f"{x}.scale", np.array(step))
        zero = self.array(f"{x}.zero", np.array(round(-low / float(step)), np.uint8))
        return self.rounded(x, (scale, zero))

    def rounded(self, x: str, code: tuple[str, str]) -> str:
        """Return `x` after a conversion to 8 bits and back."""
        result = self.node("DequantizeLinear", self.node("QuantizeLinear", x, *code), *code)
        self.codes[result] = code
        return result

    def kernel(self, x: str, name: str, module: nn.Conv2d) -> tuple[str, str]:
        """Return weight and bias after a conversion to 8 and to 32 bits and back."""
        weight, bias = super().kernel(x, name, module)
        channels = module.out_channels
        most = self.node("ReduceMax", self.node("Abs", weight), self.integers(1, 2, 3), keepdims=0)
        most = self.node("Max", most, self.array("least", np.array(1e-6, np.float32)))
        scale = self.node("Div", most, self.array("levels", np.array(127, np.float32)))
        zero = self.array(f"zeros_{channels}", np.zeros(channels, np.int8))
        small = self.node("QuantizeLinear", weight, scale, zero, axis=0)
        weight = self.node("DequantizeLinear", small, scale, zero, axis=0)
        scale = self.node("Mul", scale, self.codes[x][0])
        small = self.cast(self.node("Round", self.node("Div", bias, scale)), TensorProto.INT32)
        return weight, self.node("DequantizeLinear", small, scale, axis=0)


def ranges(ends: tuple[Student, Student], clips: Sequence[Tensor]) -> list[Range]:
    """Return the ranges of the features on clips `[F,3,h,w]` for all blends of two students."""
    found: list[np.ndarray] = []
    for share in SHARES:
        student = blend(*ends, share)
        writer = Writer(student)
        model = written(writer, student)
        for name in writer.kept:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        for low in clips:
            values = session.run(writer.kept, {"low": low.numpy()})
            found.append(np.array([[value.min(), value.max()] for value in values]))
    least, most = np.stack(found)[..., 0].min(0), np.stack(found)[..., 1].max(0)
    return [(float(low), float(high)) for low, high in zip(least, most, strict=True)]


def graph(student: Student, limits: Sequence[Range], weights: Path) -> onnx.ModelProto:
    """Return the network in integers, as `starsr.export.student_graph.graph` does in floats."""
    return written(IntegerWriter(student, limits), student, weights)


def loss(folder: Path, clips: Sequence[Pair]) -> float:
    """Return by how many dB the PSNR of a bundle is lower with integers, averaged over clips."""
    figures = []
    for precision in ("float", "int8"):
        bundle = Bundle(folder, precision=precision)
        errors = [
            np.square(bundle.run("upscaler", low=clip.low.numpy())[0] - clip.high.numpy()).mean()
            for clip in clips
        ]
        figures.append(-10 * np.log10(errors))
    return float(np.mean(figures[0] - figures[1]))
