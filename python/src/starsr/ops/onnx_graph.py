# SPDX-License-Identifier: MPL-2.0
"""An ONNX graph under construction, whose weights are loaded only when it is written."""

import hashlib
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 20
IR_VERSION = 9

#: Element types of activations and weights, by the name of the precision.
PRECISIONS = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
#: Smaller initialisers, in bytes, stay in the graph file: ONNX Runtime reads shapes and axes there.
SMALL = 1024
#: External data begins at multiples of this, so that it can be mapped into memory.
ALIGNMENT = 4096

#: Element type and dimensions of an input or output; named dimensions are free.
Spec = tuple[int, list[int | str]]


def numpy_type(element: int) -> np.dtype:
    """Return the NumPy type of an ONNX element type; bfloat16 is that of ml_dtypes."""
    return np.dtype(helper.tensor_dtype_to_np_dtype(element))


@dataclass(frozen=True)
class Initializer:
    """A constant of a graph. `load` returns its array, already of the right type and shape."""

    element: int
    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """Size in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * numpy_type(self.element).itemsize


class OnnxGraph:
    """Collects nodes and initialisers.

    `parameters` maps names to arrays; each is looked up once, when the graph is written.
    `precision` is one of `PRECISIONS`.
    """

    def __init__(self, parameters: Mapping[str, np.ndarray], precision: str = "fp32") -> None:
        self.parameters = parameters
        self.element = PRECISIONS[precision]
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, Initializer] = {}
        self._values: dict[str, np.ndarray] = {}
        self._cache: dict[tuple[Hashable, ...], str] = {}

    def node(
        self, op: str, *inputs: str, domain: str = "", output: str | None = None, **attributes: Any
    ) -> str:
        """Add a node and return the name of its output."""
        name = output or f"{op}_{len(self.nodes)}"
        self._add(op, inputs, [name], domain, attributes)
        return name

    def nodes_of(self, op: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """Add a node with several outputs and return their names."""
        name = f"{op}_{len(self.nodes)}"
        names = [name] + [f"{name}_{i}" for i in range(1, outputs)]
        self._add(op, inputs, names, "", attributes)
        return names

    def _add(
        self,
        op: str,
        inputs: tuple[str, ...],
        outputs: list[str],
        domain: str,
        attributes: dict[str, Any],
    ) -> None:
        node = helper.make_node(op, inputs, outputs, name=outputs[0], domain=domain, **attributes)
        self.nodes.append(node)

    def once(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Return the output of a node that is added only the first time it is asked for."""
        key = (op, *inputs, *attributes.items())
        if key not in self._cache:
            self._cache[key] = self.node(op, *inputs, **attributes)
        return self._cache[key]

    def array(self, name: str, value: np.ndarray) -> str:
        """Add a constant, or share the one that has the same name, and return its name."""
        known = self._values.setdefault(name, value)
        if known is not value and not np.array_equal(known, value):
            raise ValueError(f"constant {name} has two values")
        element = helper.np_dtype_to_tensor_dtype(value.dtype)
        self.initializers.setdefault(name, Initializer(element, value.shape, lambda: value))
        return name

    def integers(self, *values: int) -> str:
        """Add a 1-D int64 constant and return its name."""
        return self.array(
            "i_" + "_".join(map(str, values)).replace("-", "m"), np.array(values, np.int64)
        )

    def weight(
        self,
        name: str,
        shape: tuple[int, ...],
        transform: Callable[[np.ndarray], np.ndarray] = lambda value: value,
        suffix: str = "",
        precise: bool = False,
    ) -> str:
        """Add the parameter `name` of `shape` after `transform` and return the name of the result.

        `suffix` distinguishes different transforms of one parameter. The result is in the
        precision of the graph, or in 32 bits if `precise`.
        """
        element = TensorProto.FLOAT if precise else self.element
        key = name + suffix + ("" if element == self.element else ".fp32")
        if key not in self.initializers:
            final = transform(np.broadcast_to(np.float32(0), shape)).shape

            def load() -> np.ndarray:
                value = np.asarray(self.parameters[name])
                if value.shape != tuple(shape):
                    raise ValueError(
                        f"parameter {name} has shape {value.shape}, but the network needs "
                        f"{tuple(shape)}"
                    )
                with np.errstate(over="ignore"):
                    result = np.ascontiguousarray(transform(value)).astype(numpy_type(element))
                if element == TensorProto.FLOAT16 and not np.isfinite(result).all():
                    raise ValueError(
                        f"parameter {name} has values that fp16 cannot hold; choose bf16 or fp32"
                    )
                return result

            self.initializers[key] = Initializer(element, final, load)
        return key

    def cast(self, x: str, element: int) -> str:
        """Add a conversion to another element type and return its output."""
        return self.node("Cast", x, to=element)

    def _model(
        self,
        inputs: Mapping[str, Spec],
        outputs: Mapping[str, Spec],
        results: list[str],
        tensors: list[TensorProto],
    ) -> onnx.ModelProto:
        for result, name in zip(results, outputs, strict=True):
            self.node("Identity", result, output=name)
        graph = helper.make_graph(
            self.nodes,
            "starsr",
            [helper.make_tensor_value_info(name, *spec) for name, spec in inputs.items()],
            [helper.make_tensor_value_info(name, *spec) for name, spec in outputs.items()],
            tensors,
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="starsr"
        )

    def model(
        self, inputs: Mapping[str, Spec], outputs: Mapping[str, Spec], results: list[str]
    ) -> onnx.ModelProto:
        """Return the finished model with its weights inside.

        `results` are the values that leave the graph as `outputs`, in the same order.
        """
        tensors = [numpy_helper.from_array(i.load(), name) for name, i in self.initializers.items()]
        return self._model(inputs, outputs, results, tensors)

    def data_size(self) -> int:
        """Return an upper bound of the bytes in the data file that `save` writes."""
        return sum(i.size + ALIGNMENT for i in self.initializers.values() if i.size >= SMALL)

    def save(
        self,
        path: Path,
        inputs: Mapping[str, Spec],
        outputs: Mapping[str, Spec],
        results: list[str],
        progress: Callable[[int], object] = lambda size: None,
    ) -> dict[str, str]:
        """Write the model to `path` and its weights, one at a time, to a data file beside it.

        Calls `progress` with the number of bytes after each write. Returns the SHA-256 of both
        files by name, the model first.
        """
        data = path.with_suffix(".data")
        digest, place = hashlib.sha256(), 0
        tensors: list[TensorProto] = []

        def write(file: BinaryIO, block: bytes) -> None:
            nonlocal place
            file.write(block)
            digest.update(block)
            place += len(block)
            progress(len(block))

        with data.open("wb") as file:
            for name, initializer in self.initializers.items():
                value = initializer.load()
                if initializer.size < SMALL:
                    tensors.append(numpy_helper.from_array(value, name))
                    continue
                write(file, bytes(-place % ALIGNMENT))
                tensor = TensorProto(
                    name=name, data_type=initializer.element, dims=initializer.shape
                )
                tensor.data_location = TensorProto.EXTERNAL
                entries = {"location": data.name, "offset": place, "length": initializer.size}
                for key, entry in entries.items():
                    tensor.external_data.add(key=key, value=str(entry))
                tensors.append(tensor)
                write(file, value.tobytes())
        model = self._model(inputs, outputs, results, tensors).SerializeToString(deterministic=True)
        path.write_bytes(model)
        onnx.checker.check_model(path)
        return {path.name: hashlib.sha256(model).hexdigest(), data.name: digest.hexdigest()}
