# SPDX-License-Identifier: MPL-2.0
"""The back-end that writes an ONNX graph. Values are tensor names; nothing is computed."""

import math
from collections.abc import Callable, Mapping

import numpy as np
from onnx import TensorProto

from starsr.ops.onnx_graph import OnnxGraph
from starsr.ops.primitives import Padding, geglu


class OnnxOps(OnnxGraph):
    """The primitive operations as nodes of a graph; `Ops` describes each one."""

    def __init__(self, parameters: Mapping[str, np.ndarray], precision: str = "fp32") -> None:
        super().__init__(parameters, precision)
        # Repeated clips: the clip, and what gives the batch size.
        self._clips: dict[str, tuple[str, str]] = {}

    def _dimensions(self, x: str, start: int, end: int) -> str:
        clip, like = self._clips.get(x, (x, x))
        return self.once("Shape", like if end == 1 else clip, start=start, end=end)

    def _shape(self, *parts: str) -> str:
        return self.once("Concat", *parts, axis=0)

    def _windows(self, x: str, axis: int, size: int) -> str:
        return self.once("Div", self._dimensions(x, axis, axis + 1), self.integers(size))

    def enter(self, x: str) -> str:
        """Convert `[N,C,h,w]` from outside the graph to a feature map."""
        return x

    def leave(self, x: str) -> str:
        """Convert a feature map to `[N,C,h,w]`."""
        return x

    def feature_map(self, count: int | str, channels: int, *sizes: str) -> list[int | str]:
        """Return the dimensions of a feature map; `sizes` are height and width."""
        return [count, channels, *sizes]

    def conv(
        self,
        x: str,
        name: str,
        cin: int,
        cout: int,
        kernel: int = 3,
        stride: int = 1,
        bias: bool = True,
        gain: float = 1.0,
        padding: Padding | None = None,
    ) -> str:
        inputs = [x, self.weight(f"{name}.weight", (cout, cin, kernel, kernel))]
        if bias:
            inputs.append(self.weight(f"{name}.bias", (cout,)))
        pads = [kernel // 2] * 4 if padding is None else list(padding)
        return self.node(
            "Conv", *inputs, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads
        )

    def temporal_conv(self, x: str, name: str, channels: int, clip: str, gain: float = 1.0) -> str:
        # With frames and pixels as the two axes of a picture, this is a 3x1 convolution.
        weight = self.weight(
            f"{name}.weight",
            (channels, 3 * channels, 1, 1),
            lambda w: w[..., 0, 0].reshape(channels, 3, channels).transpose(0, 2, 1)[..., None],
            ".frames",
        )
        bias = self.weight(f"{name}.bias", (channels,))
        return self.frames(self._conv_of_frames(self.video(x, channels, clip), weight, bias), x)

    def video_conv(self, x: str, name: str, cin: int, cout: int) -> str:
        weight = self.weight(f"{name}.weight", (cout, cin, 3, 1, 1), lambda w: w[..., 0], ".frames")
        return self._conv_of_frames(x, weight, self.weight(f"{name}.bias", (cout,)))

    def _conv_of_frames(self, x: str, weight: str, bias: str) -> str:
        return self.node("Conv", x, weight, bias, kernel_shape=[3, 1], pads=[1, 0, 1, 0])

    def fixed_conv(self, x: str, name: str, weight: np.ndarray) -> str:
        return self.node(
            "Conv", x, self.array(name, weight.astype(np.float32)), kernel_shape=[1, 1]
        )

    def linear(
        self,
        x: str,
        name: str,
        cin: int,
        cout: int,
        bias: bool = True,
        gain: float = 1.0,
        unit_axes: int = 0,
        joint: str = ".",
        precise: bool = False,
    ) -> str:
        shape = (cout, cin) + (1,) * unit_axes
        transposed = self.weight(
            f"{name}{joint}weight", shape, lambda w: w.reshape(w.shape[:2]).T, ".T", precise
        )
        y = self.node("MatMul", x, transposed)
        return (
            self.add(y, self.weight(f"{name}{joint}bias", (cout,), precise=precise)) if bias else y
        )

    def layer_norm(self, x: str, name: str, channels: int) -> str:
        scale, bias = (
            self.weight(f"{name}.{part}", (channels,), precise=True) for part in ("weight", "bias")
        )
        return self.compute(
            self.node("LayerNormalization", self.precise(x), scale, bias, axis=-1, epsilon=1e-5)
        )

    def group_norm(
        self, x: str, name: str, channels: int, groups: int = 32, eps: float = 1e-5
    ) -> str:
        # As an instance norm of the groups, which has a kernel everywhere and does not suffer the
        # cancellation that GroupNormalization may.
        ones = self.array(f"ones_{groups}", np.ones(groups, np.float32))
        zeros = self.array(f"zeros_{groups}", np.zeros(groups, np.float32))
        grouped = self.node("Reshape", self.precise(x), self.integers(0, groups, -1))
        normed = self.node("InstanceNormalization", grouped, ones, zeros, epsilon=eps)
        normed = self.node("Reshape", normed, self._dimensions(x, 0, 4))
        scale, bias = (
            self.weight(
                f"{name}.{part}",
                (channels,),
                lambda w: w.reshape(-1, 1, 1),
                ".column",
                precise=True,
            )
            for part in ("weight", "bias")
        )
        return self.compute(self.add(self.mul(normed, scale), bias))

    def precise(self, x: str) -> str:
        return x if self.element == TensorProto.FLOAT else self.cast(x, TensorProto.FLOAT)

    def compute(self, x: str) -> str:
        return x if self.element == TensorProto.FLOAT else self.cast(x, self.element)

    def add(self, a: str, b: str) -> str:
        return self.node("Add", a, b)

    def sub(self, a: str, b: str) -> str:
        return self.node("Sub", a, b)

    def mul(self, a: str, b: str) -> str:
        return self.node("Mul", a, b)

    def div(self, a: str, b: str) -> str:
        return self.node("Div", a, b)

    def leaky_relu(self, x: str) -> str:
        return self.node("LeakyRelu", x, alpha=0.1)

    def silu(self, x: str) -> str:
        return self.mul(x, self.sigmoid(x))

    def sigmoid(self, x: str) -> str:
        return self.node("Sigmoid", x)

    def gelu(self, x: str) -> str:
        return self.node("Gelu", x)

    def table(self, t: str, name: str, values: np.ndarray) -> str:
        column = self.array(name, values.astype(np.float32).reshape(-1, 1, 1, 1, 1))
        return self.once("Gather", column, t, axis=0)

    def sinusoid(self, t: str, channels: int) -> str:
        half = channels // 2
        frequencies = np.exp(-math.log(10000.0) / half * np.arange(half)).astype(np.float32)
        time = self.node("Cast", self.node("Unsqueeze", t, self.integers(1)), to=TensorProto.FLOAT)
        angles = self.mul(time, self.array("frequencies", frequencies))
        return self.concat(self.node("Cos", angles), self.node("Sin", angles))

    def fold_frames(self, x: str, channels: int) -> str:
        frames = self.node("Transpose", x, perm=[0, 2, 1, 3, 4])
        return self.node(
            "Reshape", frames, self._shape(self.integers(-1, channels), self._dimensions(x, 3, 5))
        )

    def unfold_frames(self, x: str, channels: int, clip: str) -> str:
        return self.node("Transpose", self._by_frame(x, channels, clip), perm=[0, 2, 1, 3, 4])

    def _by_frame(self, x: str, channels: int, clip: str) -> str:
        sizes = self._dimensions(clip, 0, 1), self._dimensions(clip, 2, 3)
        shape = self._shape(*sizes, self.integers(channels), self._dimensions(x, 2, 4))
        return self.node("Reshape", x, shape)

    def per_frame(self, e: str, clip: str) -> str:
        return self.pixel(self.repeat_frames(e, clip))

    def concat(self, a: str, b: str) -> str:
        return self.node("Concat", a, b, axis=1)

    def pool_channels(self, x: str, axis: int, channels: int) -> str:
        parts = [
            self.node(f"Reduce{kind}", x, self.integers(axis), keepdims=1)
            for kind in ("Max", "Mean")
        ]
        return self.node("Concat", *parts, axis=axis)

    def clip(self, x: str, name: str, bound: np.ndarray) -> str:
        low, high = (
            self.array(f"{name}_{n}", (s * bound).astype(np.float32))
            for n, s in (("low", -1), ("high", 1))
        )
        return self.node("Max", self.node("Min", x, high), low)

    def depth_to_space(self, x: str, block: int) -> str:
        return self.node("DepthToSpace", x, blocksize=block, mode="DCR")

    def space_to_depth(self, x: str, block: int) -> str:
        return self.node("SpaceToDepth", x, blocksize=block)

    def window_tokens(self, x: str, channels: int, size: int) -> str:
        side = self.integers(size)
        shape = self._shape(
            self.integers(0, channels),
            self._windows(x, 2, size),
            side,
            self._windows(x, 3, size),
            side,
        )
        split = self.node("Transpose", self.node("Reshape", x, shape), perm=[0, 2, 4, 3, 5, 1])
        return self.node("Reshape", split, self.integers(-1, size * size, channels))

    def window_image(self, tokens: str, channels: int, size: int, like: str) -> str:
        rows, columns = self._windows(like, 2, size), self._windows(like, 3, size)
        shape = self._shape(self.integers(-1), rows, columns, self.integers(size, size, channels))
        joined = self.node(
            "Transpose", self.node("Reshape", tokens, shape), perm=[0, 5, 1, 3, 2, 4]
        )
        return self.node("Reshape", joined, self._dimensions(like, 0, 4))

    def video(self, x: str, channels: int, clip: str | None = None) -> str:
        batch = self._dimensions(clip, 0, 1) if clip else self.integers(1)
        frames = self._dimensions(clip, 2, 3) if clip else self._dimensions(x, 0, 1)
        flat = self.node("Reshape", x, self._shape(batch, frames, self.integers(channels, -1)))
        return self.node("Transpose", flat, perm=[0, 2, 1, 3])

    def frames(self, x: str, like: str) -> str:
        return self.node(
            "Reshape", self.node("Transpose", x, perm=[0, 2, 1, 3]), self._dimensions(like, 0, 4)
        )

    def frame_tokens(self, x: str, channels: int, clip: str) -> str:
        frames = self._dimensions(clip, 2, 3)
        flat = self.node(
            "Reshape",
            x,
            self._shape(self._dimensions(clip, 0, 1), frames, self.integers(channels, -1)),
        )
        flat = self.node("Transpose", flat, perm=[0, 3, 1, 2])
        return self.node(
            "Reshape", flat, self._shape(self.integers(-1), frames, self.integers(channels))
        )

    def frame_image(self, tokens: str, channels: int, like: str, clip: str) -> str:
        frames = self._dimensions(clip, 2, 3)
        shape = self._shape(
            self._dimensions(clip, 0, 1), self.integers(-1), frames, self.integers(channels)
        )
        joined = self.node("Transpose", self.node("Reshape", tokens, shape), perm=[0, 2, 3, 1])
        return self.node("Reshape", joined, self._dimensions(like, 0, 4))

    def video_tokens(self, x: str, channels: int, group: int) -> str:
        flat = self.node("Transpose", x, perm=[0, 3, 2, 1])
        shape = self._shape(self.integers(-1), self._dimensions(x, 2, 3), self.integers(channels))
        return self.node("Reshape", flat, shape)

    def token_video(self, tokens: str, channels: int, like: str, group: int) -> str:
        shape = self._shape(
            self._dimensions(like, 0, 1),
            self.integers(-1),
            self._dimensions(like, 2, 3),
            self.integers(channels),
        )
        return self.node("Transpose", self.node("Reshape", tokens, shape), perm=[0, 3, 2, 1])

    def tokens(self, x: str) -> str:
        return self.node(
            "Transpose", self.node("Reshape", x, self.integers(0, 0, -1)), perm=[0, 2, 1]
        )

    def image(self, tokens: str, channels: int, like: str) -> str:
        shape = self._shape(self.integers(0, channels), self._dimensions(like, 2, 4))
        return self.node("Reshape", self.node("Transpose", tokens, perm=[0, 2, 1]), shape)

    def join_frames(self, tokens: str, channels: int, clip: str) -> str:
        return self.node(
            "Reshape",
            tokens,
            self._shape(self._dimensions(clip, 0, 1), self.integers(-1, channels)),
        )

    def split_frames(self, tokens: str, like: str) -> str:
        return self.node("Reshape", tokens, self._dimensions(like, 0, 3))

    def repeat_frames(self, e: str, clip: str) -> str:
        rows = self.node("Unsqueeze", e, self.integers(1))
        rows = self.node(
            "Expand",
            rows,
            self._shape(self.integers(1), self._dimensions(clip, 2, 3), self.integers(1)),
        )
        return self.node("Reshape", rows, self._shape(self.integers(-1), self._dimensions(e, 1, 2)))

    def repeat_clip(self, clip: str, like: str) -> str:
        # Clips only give sizes, so that nothing needs to be computed.
        name = f"{clip}_for_{like}"
        self._clips[name] = clip, like
        return name

    def repeat_batch(self, x: str, axes: int, clip: str, like: str) -> str:
        sizes = self._dimensions(like, 0, 1), self._dimensions(clip, 0, 1)
        repeats = self._shape(self.once("Div", *sizes), self.integers(*[1] * (axes - 1)))
        return self.node("Tile", x, repeats)

    def pixel(self, e: str) -> str:
        return self.node("Unsqueeze", e, self.integers(2, 3))

    def upsample(self, x: str) -> str:
        scales = self.array("twice", np.array([1, 1, 2, 2], np.float32))
        return self._repeated(x, scales)

    def _repeated(self, x: str, scales: str) -> str:
        return self.node(
            "Resize",
            x,
            "",
            scales,
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )

    def crop_rows(self, x: str) -> str:
        return self.node("Slice", x, self.integers(1), self.integers(-1), self.integers(2))

    def split(self, x: str, parts: int) -> list[str]:
        return self.nodes_of("Split", x, outputs=parts, axis=-1, num_outputs=parts)

    def channels(self, x: str, start: int, end: int) -> str:
        return self.node("Slice", x, self.integers(start), self.integers(end), self.integers(1))

    def scale(self, x: str, factor: float) -> str:
        return self.mul(x, self.array(f"factor_{factor:g}", np.array(factor, np.float32)))

    def weigh(self, x: str, name: str) -> str:
        return self.mul(x, self.weight(name, (1,), lambda w: 1 / (1 + np.exp(-w)), ".sigmoid"))

    def std(self, x: str) -> str:
        low, high = (self.array(f"limit_{v}", np.array(v, np.float32)) for v in (-30, 20))
        return self.node("Exp", self.scale(self.node("Clip", x, low, high), 0.5))

    def lookup(self, tokens: str, name: str, rows: int, width: int) -> str:
        return self.node("Gather", self.weight(name, (rows, width)), tokens, axis=0)

    def add_rows(self, x: str, name: str, rows: int, width: int) -> str:
        return self.add(x, self.weight(name, (rows, width)))

    def recompute(self, function: Callable[..., str], *values: str) -> str:
        return function(*values)

    def tap(self, name: str, x: str) -> str:
        return x

    def frame_attention(self, q: str, k: str, v: str, heads: int, channels: int, group: int) -> str:
        return self.attention(q, k, v, heads)

    def geglu(self, x: str, first: str, second: str, channels: int) -> str:
        return geglu(self, x, first, second, channels)

    def attention(self, q: str, k: str, v: str, heads: int, causal: bool = False) -> str:
        return self.node(
            "MultiHeadAttention",
            q,
            k,
            v,
            domain="com.microsoft",
            num_heads=heads,
            unidirectional=int(causal),
        )
