# SPDX-License-Identifier: MPL-2.0
"""Reads a network of ncnn, a text of layers (`.param`) and their weights (`.bin`), into ONNX.

It knows the layers of the super-resolution networks of `rivals`. The numbers in front of the equal
signs are those of ncnn's documentation of its operators.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 20, 9
#: First line of every `.param`.
MAGIC = "7767517"
#: In front of weights: they are halves (ncnn's `modelbin.cpp`). Zero stands for floats.
HALVES = 0x01306B47
#: Numbers of arrays in a layer's line are negative and begin here.
ARRAYS = -23300

#: A parameter of a layer: a number, or an array.
Value = float | list[float]


class NetworkError(ValueError):
    """A network cannot be read. The message is one sentence."""


@dataclass
class Layer:
    """One line of a `.param`: its kind, name, tensors and parameters by number."""

    kind: str
    name: str
    inputs: list[str]
    outputs: list[str]
    values: dict[int, Value]

    def number(self, key: int, default: float = 0) -> float:
        """Return a parameter that is one number. Raises `NetworkError`."""
        value = self.values.get(key, default)
        if isinstance(value, list):
            raise NetworkError(f"parameter {key} of the layer {self.name} is an array")
        return value

    def whole(self, key: int, default: int = 0) -> int:
        """Return a parameter that is a whole number. Raises `NetworkError`."""
        return int(self.number(key, default))

    def array(self, key: int) -> list[float]:
        """Return a parameter that is an array, empty if it is missing."""
        value = self.values.get(key, [])
        return value if isinstance(value, list) else [value]


def layers(text: str) -> list[Layer]:
    """Return the layers of a `.param`. Raises `NetworkError`."""
    first, _, *lines = text.splitlines() or ["", ""]
    if first.strip() != MAGIC:
        raise NetworkError(f"it does not begin with {MAGIC}, so it is no text of ncnn's layers")
    found = []
    for line in filter(str.strip, lines):
        try:
            kind, name, taken, made, *words = line.split()
            ends = int(taken), int(taken) + int(made)
            values: dict[int, Value] = {}
            for word in words[ends[1] :]:
                key, value = word.split("=")
                numbers = [float(number) for number in value.split(",")]
                if int(key) <= ARRAYS:
                    values[ARRAYS - int(key)] = numbers[1:]
                else:
                    values[int(key)] = numbers[0]
        except ValueError as e:
            raise NetworkError(f"the line `{line[:80]}` describes no layer") from e
        found.append(Layer(kind, name, words[: ends[0]], words[ends[0] : ends[1]], values))
    return found


@dataclass
class Reader:
    """Builds the graph: `nodes` and `constants`, whose weights come from `data` in order."""

    data: bytes
    at: int = 0
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def take(self, count: int, kind: np.dtype) -> np.ndarray:
        """Return the next `count` values; they end at a multiple of four bytes."""
        size = count * kind.itemsize
        if self.at + size > len(self.data):
            raise NetworkError("its weights end too early")
        values = np.frombuffer(self.data, kind, count, self.at)
        self.at += -(-size // 4) * 4
        return values

    def floats(self, count: int) -> np.ndarray:
        """Return the next `count` floats."""
        return self.take(count, np.dtype("<f4")).astype(np.float32)

    def weights(self, count: int) -> np.ndarray:
        """Return the next `count` weights behind their mark, as floats."""
        mark = int(self.take(1, np.dtype("<u4"))[0])
        if mark not in (0, HALVES):
            raise NetworkError(
                f"its weights are stored as {mark:#x}; only floats and halves are read"
            )
        return self.take(count, np.dtype("<f2")).astype(np.float32) if mark else self.floats(count)

    def constant(self, name: str, values: np.ndarray) -> str:
        """Add a constant and return its name."""
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def add(self, kind: str, inputs: list[str], output: str, **attributes: object) -> None:
        """Add a node with one output."""
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))


def activated(reader: Reader, layer: Layer) -> str:
    """Return the name of what a layer makes before its activation, which is added to the graph."""
    output, kind, before = layer.outputs[0], layer.whole(9), f"{layer.outputs[0]}.before"
    if kind == 0:
        return output
    if kind == 1:
        reader.add("Relu", [before], output)
    elif kind == 2:
        reader.add("LeakyRelu", [before], output, alpha=layer.array(10)[0])
    elif kind == 4:
        reader.add("Sigmoid", [before], output)
    else:
        raise NetworkError(f"the layer {layer.name} has the unknown activation {kind}")
    return before


def convolution(reader: Reader, layer: Layer) -> None:
    """Add a convolution, a transposed one, or a dense layer, which is a convolution of 1x1."""
    dense, transposed = layer.kind == "InnerProduct", layer.kind == "Deconvolution"
    made, side = layer.whole(0), 1 if dense else layer.whole(1)
    has_bias, count = layer.whole(1 if dense else 5), layer.whole(2 if dense else 6)
    if not dense and layer.whole(11, side) != side:
        raise NetworkError(f"the layer {layer.name} has a kernel that is no square")
    weight = reader.weights(count).reshape(made, -1, side, side)
    if transposed:
        weight = weight.transpose(1, 0, 2, 3)
    inputs = [layer.inputs[0], reader.constant(f"{layer.name}.weight", weight)]
    if has_bias:
        inputs.append(reader.constant(f"{layer.name}.bias", reader.floats(made)))
    step, pad = (1, 0) if dense else (layer.whole(3, 1), layer.whole(4))
    spread = 1 if dense else layer.whole(2, 1)
    start = len(reader.nodes)
    before = activated(reader, layer)
    kind = "ConvTranspose" if transposed else "Conv"
    options = {"strides": [step] * 2, "pads": [pad] * 4, "dilations": [spread] * 2}
    node = helper.make_node(kind, inputs, [before], kernel_shape=[side] * 2, **options)
    reader.nodes.insert(start, node)


def arithmetic(reader: Reader, layer: Layer) -> None:
    """Add a sum, difference, product or quotient of two tensors, or of a tensor and a number."""
    kinds = ("Add", "Sub", "Mul", "Div")
    if layer.whole(0) >= len(kinds):
        raise NetworkError(f"the layer {layer.name} does the unknown arithmetic {layer.whole(0)}")
    inputs = list(layer.inputs)
    if layer.whole(1):
        number = np.float32(layer.number(2))
        inputs.append(reader.constant(f"{layer.name}.number", np.array(number)))
    reader.add(kinds[layer.whole(0)], inputs, layer.outputs[0])


def weighted(reader: Reader, layer: Layer) -> None:
    """Add a weighted sum of tensors."""
    if layer.whole(0) != 1:
        raise NetworkError(f"the layer {layer.name} is no sum")
    parts = list(layer.inputs)
    for index, factor in enumerate(layer.array(1)):
        if factor != 1:
            name = f"{layer.outputs[0]}.part{index}"
            number = reader.constant(f"{name}.factor", np.array(np.float32(factor)))
            reader.add("Mul", [parts[index], number], name)
            parts[index] = name
    reader.add("Sum", parts, layer.outputs[0])


def resize(reader: Reader, layer: Layer) -> None:
    """Add an enlargement that repeats pixels."""
    if layer.whole(0) != 1:
        raise NetworkError(f"the layer {layer.name} interpolates, but only repetition is read")
    scales = np.array([1, 1, layer.number(1), layer.number(2)], np.float32)
    inputs = [layer.inputs[0], "", reader.constant(f"{layer.name}.scales", scales)]
    ways = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    reader.add("Resize", inputs, layer.outputs[0], mode="nearest", **ways)


def crop(reader: Reader, layer: Layer) -> None:
    """Add a crop; starts, ends and axes are those of ONNX."""
    inputs = [layer.inputs[0]]
    for key, name in ((9, "starts"), (10, "ends"), (11, "axes")):
        values = np.array(layer.array(key), np.int64)
        inputs.append(reader.constant(f"{layer.name}.{name}", values))
    reader.add("Slice", inputs, layer.outputs[0])


def memory(reader: Reader, layer: Layer) -> None:
    """Add a constant tensor of width, height and channels."""
    width, height, channels = (max(layer.whole(key), 1) for key in range(3))
    values = reader.floats(width * height * channels)
    reader.constant(layer.outputs[0], values.reshape(1, channels, height, width))


def slopes(reader: Reader, layer: Layer) -> None:
    """Add a rectifier whose negative slopes are learned, one for each channel."""
    values = reader.floats(layer.whole(0)).reshape(-1, 1, 1)
    slope = reader.constant(f"{layer.name}.slope", values)
    reader.add("PRelu", [layer.inputs[0], slope], layer.outputs[0])


def swish(reader: Reader, layer: Layer) -> None:
    """Add the product of a tensor with its logistic function."""
    gate = f"{layer.outputs[0]}.gate"
    reader.add("Sigmoid", layer.inputs, gate)
    reader.add("Mul", [layer.inputs[0], gate], layer.outputs[0])


def mean(reader: Reader, layer: Layer) -> None:
    """Add the mean of each channel."""
    if (layer.whole(0), layer.whole(4)) != (1, 1):
        raise NetworkError(f"the layer {layer.name} pools, but only whole means are read")
    reader.add("GlobalAveragePool", layer.inputs, layer.outputs[0])


def split(reader: Reader, layer: Layer) -> None:
    """Give a tensor further names."""
    for output in layer.outputs:
        reader.add("Identity", layer.inputs, output)


def shuffle(reader: Reader, layer: Layer) -> None:
    """Add the rearrangement of channels into pixels."""
    mode = "DCR" if layer.whole(1) else "CRD"
    size = layer.whole(0, 1)
    reader.add("DepthToSpace", layer.inputs, layer.outputs[0], blocksize=size, mode=mode)


def join(reader: Reader, layer: Layer) -> None:
    """Add the concatenation of channels."""
    if layer.whole(0):
        raise NetworkError(f"the layer {layer.name} joins along another axis than channels")
    reader.add("Concat", layer.inputs, layer.outputs[0], axis=1)


def logistic(reader: Reader, layer: Layer) -> None:
    """Add the logistic function."""
    reader.add("Sigmoid", layer.inputs, layer.outputs[0])


KINDS: dict[str, Callable[[Reader, Layer], None]] = {
    "BinaryOp": arithmetic,
    "Concat": join,
    "Convolution": convolution,
    "Crop": crop,
    "Deconvolution": convolution,
    "Eltwise": weighted,
    "InnerProduct": convolution,
    "Interp": resize,
    "MemoryData": memory,
    "PReLU": slopes,
    "PixelShuffle": shuffle,
    "Pooling": mean,
    "Sigmoid": logistic,
    "Split": split,
    "Swish": swish,
}


def read(param: Path, weights: Path) -> onnx.ModelProto:
    """Return the network as a graph from `[1,3,h,w]` to its last tensor, for any h and w.

    Raises `NetworkError` and `OSError`.
    """
    try:
        found = layers(param.read_text(encoding="utf-8"))
        reader = Reader(weights.read_bytes())
        entries = [layer.outputs[0] for layer in found if layer.kind == "Input"]
        for layer in found:
            if layer.kind == "Input":
                continue
            if layer.kind not in KINDS:
                raise NetworkError(f"the layer {layer.name} is of the unknown kind {layer.kind}")
            KINDS[layer.kind](reader, layer)
        if len(entries) != 1 or not reader.nodes:
            raise NetworkError("it has not one input and an output")
        if reader.at != len(reader.data):
            raise NetworkError(f"{len(reader.data) - reader.at} bytes of its weights are left")
    except (ValueError, IndexError) as e:
        raise NetworkError(f"{param} could not be read as a network of ncnn: {e}") from e
    kind = TensorProto.FLOAT
    entry = helper.make_tensor_value_info(entries[0], kind, [1, 3, "h", "w"])
    output = helper.make_tensor_value_info(found[-1].outputs[0], kind, [1, 3, "H", "W"])
    graph = helper.make_graph(reader.nodes, param.stem, [entry], [output], reader.constants)
    versions = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=versions, ir_version=IR_VERSION)
