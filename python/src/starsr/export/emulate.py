# SPDX-License-Identifier: MPL-2.0
"""Rewrites channels-last graphs for machines without a GPU.

ONNX Runtime has no CPU kernels for some of the operators that `NhwcOps` uses. Here they become
standard ones that compute the same, slowly, so that a graph can be compared with PyTorch anywhere.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

Nodes = Iterator[onnx.NodeProto]


class _Writer:
    """Makes the nodes that replace `node`; their results are named after its first output."""

    def __init__(self, node: onnx.NodeProto) -> None:
        self.node = node
        self.attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        self.made: list[onnx.NodeProto] = []

    def make(self, op: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        name = output or f"{self.node.output[0]}/{len(self.made)}"
        self.made.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def array(self, value: Any, kind: type = np.int64) -> str:
        return self.make("Constant", value=numpy_helper.from_array(np.asarray(value, kind)))


def _conv(w: _Writer) -> None:
    x, weight, *bias = w.node.input
    options = {k: w.attributes[k] for k in ("kernel_shape", "strides", "pads")}
    first, kernel = (w.make("Transpose", v, perm=[0, 3, 1, 2]) for v in (x, weight))
    y = w.make("Conv", first, kernel, *bias, **options)
    w.make("Transpose", y, perm=[0, 2, 3, 1], output=w.node.output[0])


def _group_norm(w: _Writer) -> None:
    x, scale, offset, *more = w.node.input
    for term in more:
        x = w.make("Add", x, term)
    if more:
        w.make("Identity", x, output=w.node.output[1])
    groups = w.attributes["groups"]
    wide = w.make("Cast", x, to=TensorProto.FLOAT)
    planes = w.make("Transpose", wide, perm=[0, 3, 1, 2])
    grouped = w.make("Reshape", planes, w.array([0, groups, -1]))
    mean = w.make("ReduceMean", grouped, w.array([2]), keepdims=1)
    centred = w.make("Sub", grouped, mean)
    variance = w.make("ReduceMean", w.make("Mul", centred, centred), w.array([2]), keepdims=1)
    epsilon = w.array(w.attributes["epsilon"], np.float32)
    deviation = w.make("Sqrt", w.make("Add", variance, epsilon))
    normed = w.make("Reshape", w.make("Div", centred, deviation), w.make("Shape", planes))
    normed = w.make("Transpose", normed, perm=[0, 2, 3, 1])
    y = w.make("Add", w.make("Mul", normed, scale), offset)
    if w.attributes["activation"]:
        y = w.make("Mul", y, w.make("Sigmoid", y))
    w.make("CastLike", y, x, output=w.node.output[0])


def _bias_split_gelu(w: _Writer) -> None:
    y = w.make("Add", *w.node.input)
    value, gate = (f"{y}/{part}" for part in ("value", "gate"))
    w.made.append(helper.make_node("Split", [y], [value, gate], axis=-1, num_outputs=2))
    w.make("Mul", value, w.make("Gelu", gate), output=w.node.output[0])


def _bias_add(w: _Writer) -> None:
    x, bias, skip = w.node.input
    w.make("Add", w.make("Add", x, bias), skip, output=w.node.output[0])


#: Operators without CPU kernels.
EMULATED: dict[str, Callable[[_Writer], None]] = {
    "BiasAdd": _bias_add,
    "BiasSplitGelu": _bias_split_gelu,
    "GroupNorm": _group_norm,
    "NhwcConv": _conv,
    "SkipGroupNorm": _group_norm,
}


def _rewritten(nodes: Iterable[onnx.NodeProto]) -> Nodes:
    for node in nodes:
        if node.domain == "com.microsoft" and node.op_type in EMULATED:
            writer = _Writer(node)
            EMULATED[node.op_type](writer)
            yield from writer.made
            continue
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rewrite(attribute.g)
        yield node


def _rewrite(graph: onnx.GraphProto) -> None:
    nodes = list(_rewritten(graph.node))
    del graph.node[:]
    graph.node.extend(nodes)


def open_session(path: Path, providers: Sequence[str]) -> onnxruntime.InferenceSession:
    """Load a graph without optimisation, and without a GPU emulate what needs one.

    The folder of `path` must then be writable.
    """
    options = onnxruntime.SessionOptions()
    # Optimisation would unpack 16-bit weights to 32 bits for the CPU.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL

    def load(place: Path) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(str(place), options, providers=list(providers))

    model = onnx.load(path, load_external_data=False)
    if list(providers) != ["CPUExecutionProvider"] or not emulate(model):
        return load(path)
    # External data is found beside the graph.
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".onnx") as file:
        file.write(model.SerializeToString())
        file.flush()
        return load(Path(file.name))


def emulate(model: onnx.ModelProto) -> bool:
    """Replace the operators that need a GPU. Returns whether there were any."""
    used = {node.op_type for node in walk(model.graph) if node.domain == "com.microsoft"}
    _rewrite(model.graph)
    return not used.isdisjoint(EMULATED)


def walk(graph: onnx.GraphProto) -> Nodes:
    """Yield all nodes, those of the branches of `If` too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from walk(attribute.g)
