# SPDX-License-Identifier: MPL-2.0
"""An ONNX graph under construction: nodes, and initialisers that are loaded only when the graph is written."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 20
IR_VERSION = 9

#: Element types of a graph's activations and weights by the name users give.
PRECISIONS = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
#: Initialisers of fewer bytes stay in the graph file, where ONNX Runtime reads shapes and axes from.
SMALL = 1024
#: External data begins at multiples of this, so that it can be mapped into memory.
ALIGNMENT = 4096


def numpy_type(element: int) -> np.dtype:
    """The numpy type of an element type; bfloat16 comes from the package ml_dtypes, which onnx needs."""
    return np.dtype(helper.tensor_dtype_to_np_dtype(element))


@dataclass(frozen=True)
class Initializer:
    """A constant of a graph; `load` gives its array, already of the right type and shape."""

    element: int
    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """Bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * numpy_type(self.element).itemsize


class OnnxGraph:
    """Collects nodes and initialisers. `parameters` maps names to arrays and is asked for each once, when the graph is
    written; `precision` is one of `PRECISIONS`."""

    def __init__(self, parameters: Mapping[str, np.ndarray], precision: str = "fp32") -> None:
        self.parameters = parameters
        self.element = PRECISIONS[precision]
        self.nodes: list = []
        self.initializers: dict[str, Initializer] = {}
        self._values: dict[str, np.ndarray] = {}
        self._cache: dict[tuple, str] = {}

    def node(self, op: str, *inputs: str, domain: str = "", output: str | None = None, outputs: int = 1, **attributes):
        """Adds a node and returns the name of its output, or a list where it has several."""
        first = output or f"{op}_{len(self.nodes)}"
        names = [first] + [f"{first}_{i}" for i in range(1, outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, name=first, domain=domain, **attributes))
        return names if outputs > 1 else first

    def once(self, op: str, *inputs: str, **attributes) -> str:
        """As `node`, but the same node is added only once."""
        key = (op, *inputs, *attributes.items())
        if key not in self._cache:
            self._cache[key] = self.node(op, *inputs, **attributes)
        return self._cache[key]

    def array(self, name: str, value: np.ndarray) -> str:
        """A constant of known value; one of the same name is shared."""
        known = self._values.setdefault(name, value)
        if known is not value and not np.array_equal(known, value):
            raise ValueError(f"constant {name} has two values")
        element = helper.np_dtype_to_tensor_dtype(value.dtype)
        self.initializers.setdefault(name, Initializer(element, value.shape, lambda: value))
        return name

    def integers(self, *values: int) -> str:
        """A 1-D int64 constant."""
        return self.array("i_" + "_".join(map(str, values)).replace("-", "m"), np.array(values, np.int64))

    def weight(
        self,
        name: str,
        shape: tuple[int, ...],
        transform: Callable[[np.ndarray], np.ndarray] = lambda value: value,
        suffix: str = "",
        precise: bool = False,
    ) -> str:
        """The parameter `name` of `shape` after `transform`, which `suffix` tells from others of the same parameter; in the
        graph's precision, or `precise` in 32 bits."""
        element = TensorProto.FLOAT if precise else self.element
        key = name + suffix + ("" if element == self.element else ".fp32")
        if key not in self.initializers:
            final = transform(np.broadcast_to(np.float32(0), shape)).shape

            def load() -> np.ndarray:
                value = np.asarray(self.parameters[name])
                if value.shape != tuple(shape):
                    raise ValueError(f"parameter {name} has shape {value.shape}, the network needs {tuple(shape)}")
                with np.errstate(over="ignore"):
                    result = np.ascontiguousarray(transform(value)).astype(numpy_type(element))
                if element == TensorProto.FLOAT16 and not np.isfinite(result).all():
                    raise ValueError(f"parameter {name} has values that fp16 cannot hold; choose bf16 or fp32")
                return result

            self.initializers[key] = Initializer(element, final, load)
        return key

    def cast(self, x: str, element: int) -> str:
        return self.node("Cast", x, to=element)

    def _model(self, inputs: dict, outputs: dict, results: list[str], tensors: list) -> onnx.ModelProto:
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
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="starsr")

    def model(self, inputs: dict[str, tuple], outputs: dict[str, tuple], results: list[str]) -> onnx.ModelProto:
        """The finished model with its weights inside; `inputs` and `outputs` map names to `(element type, dimensions)`,
        `results` are the values that leave as `outputs`."""
        tensors = [numpy_helper.from_array(i.load(), name) for name, i in self.initializers.items()]
        return self._model(inputs, outputs, results, tensors)

    def data_size(self) -> int:
        """Bytes of the data file that `save` writes, at most."""
        return sum(i.size + ALIGNMENT for i in self.initializers.values() if i.size >= SMALL)

    def save(
        self,
        path: Path,
        inputs: dict[str, tuple],
        outputs: dict[str, tuple],
        results: list[str],
        progress: Callable[[int], None] = lambda size: None,
    ) -> dict[str, str]:
        """Writes the model as `path` with its weights in a data file beside it, one at a time, and tells `progress` of the
        bytes written. Gives the SHA-256 of both by file name, the model first."""
        data = path.with_suffix(".data")
        digest, place, tensors = hashlib.sha256(), 0, []

        def write(file, block: bytes) -> None:
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
                tensor = TensorProto(name=name, data_type=initializer.element, dims=initializer.shape)
                tensor.data_location = TensorProto.EXTERNAL
                for key, entry in (("location", data.name), ("offset", place), ("length", initializer.size)):
                    tensor.external_data.add(key=key, value=str(entry))
                tensors.append(tensor)
                write(file, value.tobytes())
        model = self._model(inputs, outputs, results, tensors).SerializeToString(deterministic=True)
        path.write_bytes(model)
        onnx.checker.check_model(path)
        return {path.name: hashlib.sha256(model).hexdigest(), data.name: digest.hexdigest()}
