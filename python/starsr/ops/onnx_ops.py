# SPDX-License-Identifier: MPL-2.0
"""The back-end that writes an ONNX graph. Values are tensor names; nothing is computed."""

import math

import numpy as np
from onnx import TensorProto, helper, numpy_helper

OPSET = 20


class OnnxOps:
    """Collects nodes and initialisers; `parameters` maps names to arrays. See `Declare` for the meaning of each."""

    def __init__(self, parameters: dict[str, np.ndarray]) -> None:
        self.parameters = parameters
        self.nodes: list = []
        self.initializers: dict[str, np.ndarray] = {}
        self._cache: dict[tuple, str] = {}

    def node(self, op: str, *inputs: str, domain: str = "", output: str | None = None, **attributes) -> str:
        """Adds a node with one output and returns the output's name."""
        output = output or f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, domain=domain, **attributes))
        return output

    def array(self, name: str, value: np.ndarray) -> str:
        """An initialiser; one of the same name is shared."""
        if self.initializers.setdefault(name, value) is not value:
            if not np.array_equal(self.initializers[name], value):
                raise ValueError(f"initialiser {name} has two values")
        return name

    def integers(self, *values: int) -> str:
        """A 1-D int64 constant."""
        return self.array("i_" + "_".join(map(str, values)).replace("-", "m"), np.array(values, np.int64))

    def model(self, inputs: dict[str, tuple], outputs: dict[str, tuple], results: list[str]):
        """The finished `ModelProto`; `inputs` and `outputs` map names to `(element type, dimensions)`."""
        for result, name in zip(results, outputs, strict=True):
            self.node("Identity", result, output=name)
        graph = helper.make_graph(
            self.nodes,
            "starsr",
            [helper.make_tensor_value_info(name, *spec) for name, spec in inputs.items()],
            [helper.make_tensor_value_info(name, *spec) for name, spec in outputs.items()],
            [numpy_helper.from_array(value, name) for name, value in self.initializers.items()],
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9, producer_name="starsr")

    def _weight(self, name: str, transform=lambda value: value, suffix: str = "") -> str:
        value = self.parameters[name]
        key = name + suffix
        return key if key in self.initializers else self.array(key, np.ascontiguousarray(transform(value)))

    def _dimensions(self, x: str, start: int, end: int) -> str:
        key = ("Shape", x, start, end)
        if key not in self._cache:
            self._cache[key] = self.node("Shape", x, start=start, end=end)
        return self._cache[key]

    def _shape(self, *parts: str) -> str:
        key = ("Concat", *parts)
        if key not in self._cache:
            self._cache[key] = self.node("Concat", *parts, axis=0)
        return self._cache[key]

    def _windows(self, x: str, axis: int, size: int) -> str:
        key = ("Windows", x, axis, size)
        if key not in self._cache:
            self._cache[key] = self.node("Div", self._dimensions(x, axis, axis + 1), self.integers(size))
        return self._cache[key]

    def conv(self, x, name, cin, cout, kernel=3, stride=1, bias=True, gain=1.0):
        inputs = [x, self._weight(f"{name}.weight")] + ([self._weight(f"{name}.bias")] if bias else [])
        return self.node(
            "Conv", *inputs, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[kernel // 2] * 4
        )

    def temporal_conv(self, x, name, channels, clip, gain=1.0):
        # With frames and pixels as the two axes of a picture it is a 3x1 convolution.
        shape = self._shape(self._dimensions(clip, 0, 1), self._dimensions(clip, 2, 3), self.integers(channels, -1))
        pictures = self.node("Transpose", self.node("Reshape", x, shape), perm=[0, 2, 1, 3])
        weight = self._weight(
            f"{name}.weight", lambda w: w.reshape(channels, 3, channels).transpose(0, 2, 1)[..., None], ".frames"
        )
        bias = self._weight(f"{name}.bias")
        mixed = self.node("Conv", pictures, weight, bias, kernel_shape=[3, 1], pads=[1, 0, 1, 0])
        frames = self.node("Transpose", mixed, perm=[0, 2, 1, 3])
        return self.node("Reshape", frames, self._dimensions(x, 0, 4))

    def fixed_conv(self, x, name, weight):
        return self.node("Conv", x, self.array(name, weight.astype(np.float32)), kernel_shape=[1, 1])

    def linear(self, x, name, cin, cout, bias=True, gain=1.0):
        y = self.node("MatMul", x, self._weight(f"{name}.weight", np.transpose, ".T"))
        return self.add(y, self._weight(f"{name}.bias")) if bias else y

    def layer_norm(self, x, name, channels):
        scale, bias = self._weight(f"{name}.weight"), self._weight(f"{name}.bias")
        return self.node("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-5)

    def add(self, a, b):
        return self.node("Add", a, b)

    def sub(self, a, b):
        return self.node("Sub", a, b)

    def mul(self, a, b):
        return self.node("Mul", a, b)

    def div(self, a, b):
        return self.node("Div", a, b)

    def leaky_relu(self, x):
        return self.node("LeakyRelu", x, alpha=0.1)

    def silu(self, x):
        return self.mul(x, self.sigmoid(x))

    def sigmoid(self, x):
        return self.node("Sigmoid", x)

    def gelu(self, x):
        return self.node("Gelu", x)

    def table(self, t, name, values):
        key = ("Gather", name, t)
        if key not in self._cache:
            column = self.array(name, values.astype(np.float32).reshape(-1, 1, 1, 1, 1))
            self._cache[key] = self.node("Gather", column, t, axis=0)
        return self._cache[key]

    def sinusoid(self, t, channels):
        half = channels // 2
        frequencies = np.exp(-math.log(10000.0) / half * np.arange(half)).astype(np.float32)
        time = self.node("Cast", self.node("Unsqueeze", t, self.integers(1)), to=TensorProto.FLOAT)
        angles = self.mul(time, self.array("frequencies", frequencies))
        return self.concat(self.node("Cos", angles), self.node("Sin", angles))

    def fold_frames(self, x, channels):
        frames = self.node("Transpose", x, perm=[0, 2, 1, 3, 4])
        return self.node("Reshape", frames, self._shape(self.integers(-1, channels), self._dimensions(x, 3, 5)))

    def unfold_frames(self, x, channels, clip):
        return self.node("Transpose", self._by_frame(x, channels, clip), perm=[0, 2, 1, 3, 4])

    def _by_frame(self, x, channels, clip):
        sizes = self._dimensions(clip, 0, 1), self._dimensions(clip, 2, 3)
        shape = self._shape(*sizes, self.integers(channels), self._dimensions(x, 2, 4))
        return self.node("Reshape", x, shape)

    def per_frame(self, e, clip):
        rows = self.node("Unsqueeze", e, self.integers(1))
        rows = self.node("Expand", rows, self._shape(self.integers(1), self._dimensions(clip, 2, 3), self.integers(1)))
        rows = self.node("Unsqueeze", rows, self.integers(3, 4))
        return self.node("Reshape", rows, self._shape(self.integers(-1), self._dimensions(e, 1, 2), self.integers(1, 1)))

    def concat(self, a, b):
        return self.node("Concat", a, b, axis=1)

    def pool_channels(self, x, axis):
        parts = [self.node(f"Reduce{kind}", x, self.integers(axis), keepdims=1) for kind in ("Max", "Mean")]
        return self.node("Concat", *parts, axis=axis)

    def depth_to_space(self, x, block):
        return self.node("DepthToSpace", x, blocksize=block, mode="DCR")

    def space_to_depth(self, x, block):
        return self.node("SpaceToDepth", x, blocksize=block)

    def window_tokens(self, x, channels, size):
        side = self.integers(size)
        shape = self._shape(self.integers(0, channels), self._windows(x, 2, size), side, self._windows(x, 3, size), side)
        split = self.node("Transpose", self.node("Reshape", x, shape), perm=[0, 2, 4, 3, 5, 1])
        return self.node("Reshape", split, self.integers(-1, size * size, channels))

    def window_image(self, tokens, channels, size, like):
        rows, columns = self._windows(like, 2, size), self._windows(like, 3, size)
        shape = self._shape(self.integers(-1), rows, columns, self.integers(size, size, channels))
        joined = self.node("Transpose", self.node("Reshape", tokens, shape), perm=[0, 5, 1, 3, 2, 4])
        return self.node("Reshape", joined, self._dimensions(like, 0, 4))

    def frame_tokens(self, x, channels, clip):
        frames = self._dimensions(clip, 2, 3)
        flat = self.node("Reshape", x, self._shape(self._dimensions(clip, 0, 1), frames, self.integers(channels, -1)))
        flat = self.node("Transpose", flat, perm=[0, 3, 1, 2])
        return self.node("Reshape", flat, self._shape(self.integers(-1), frames, self.integers(channels)))

    def frame_image(self, tokens, channels, like, clip):
        frames = self._dimensions(clip, 2, 3)
        shape = self._shape(self._dimensions(clip, 0, 1), self.integers(-1), frames, self.integers(channels))
        joined = self.node("Transpose", self.node("Reshape", tokens, shape), perm=[0, 2, 3, 1])
        return self.node("Reshape", joined, self._dimensions(like, 0, 4))

    def attention(self, q, k, v, heads):
        return self.node("MultiHeadAttention", q, k, v, domain="com.microsoft", num_heads=heads)
