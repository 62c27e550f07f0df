# SPDX-License-Identifier: MPL-2.0
"""The back-end of `VideoOps` that writes an ONNX graph."""

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from starsr.ops.onnx_ops import OnnxOps
from starsr.ops.primitives import Padding
from starsr.ops.video_primitives import CAUSAL

#: An end of a slice beyond every axis.
END = 2**62


class VideoOnnxOps(OnnxOps):
    """`VideoOps` as nodes of a graph; `OnnxGraph` describes the arguments."""

    def frame_maps(self, x: str) -> str:
        shape = self._shape(self.integers(-1), self._dimensions(x, 2, 5))
        return self.node("Reshape", x, shape)

    def token_maps(self, tokens: str, channels: int, like: str, patch: int) -> str:
        sizes = (self._windows(like, axis, patch) for axis in (3, 4))
        shape = self._shape(self.integers(-1), *sizes, self.integers(channels))
        return self.node("Transpose", self.node("Reshape", tokens, shape), perm=[0, 3, 1, 2])

    def map_tokens(self, maps: str, channels: int, like: str) -> str:
        shape = self._shape(self._dimensions(like, 0, 1), self.integers(-1, channels))
        return self.node("Reshape", self.node("Transpose", maps, perm=[0, 2, 3, 1]), shape)

    def unpatch(self, tokens: str, channels: int, like: str, patch: int) -> str:
        sizes = (self._windows(like, axis, patch) for axis in (3, 4))
        shape = self._shape(self.integers(-1), *sizes, self.integers(channels, patch, patch))
        x = self.node("Transpose", self.node("Reshape", tokens, shape), perm=[0, 3, 1, 4, 2, 5])
        return self.node("Reshape", x, self._dimensions(like, 0, 5))

    def split_at(self, x: str, count: int) -> tuple[str, str]:
        return self.channels(x, 0, count), self.channels(x, count, END)

    def rows(self, x: str, parts: int) -> list[str]:
        return self.nodes_of("Split", x, outputs=parts, axis=1, num_outputs=parts)

    def as_rows(self, x: str, width: int) -> str:
        return self.node("Reshape", x, self.integers(0, -1, width))

    def join(self, values: Sequence[str]) -> str:
        return self.node("Concat", *values, axis=1)

    def add_constant(self, x: str, name: str, values: np.ndarray) -> str:
        return self.add(x, self.array(name, values.astype(np.float32)))

    def precise_norm(self, x: str, name: str, channels: int, eps: float) -> str:
        scale, bias = (
            self.weight(f"{name}.{part}", (channels,), precise=True) for part in ("weight", "bias")
        )
        return self.node("LayerNormalization", x, scale, bias, axis=-1, epsilon=eps)

    def head_norm(self, x: str, name: str, heads: int, head_dim: int, eps: float) -> str:
        by_head = self.node("Reshape", self.precise(x), self.integers(0, 0, heads, head_dim))
        normed = self.precise_norm(by_head, name, head_dim, eps)
        return self.node("Reshape", normed, self.integers(0, 0, heads * head_dim))

    def lead_rows(self, table: str, value: float, count: int, width: int) -> str:
        rows = np.full((count, width), value, np.float32)
        return self.node("Concat", self.array(f"rows_{value:g}", rows), table, axis=0)

    def rotate(self, x: str, cos: str, sin: str, heads: int) -> str:
        return self.node(
            "RotaryEmbedding",
            x,
            self.integers(0),
            cos,
            sin,
            domain="com.microsoft",
            interleaved=1,
        )

    def gelu_tanh(self, x: str) -> str:
        return self.node("Gelu", x, approximate="tanh")

    def rms_norm(self, x: str, name: str, channels: int, eps: float) -> str:
        # The nodes that ONNX Runtime makes one of.
        square = self.node("Pow", x, self.array("two", np.array(2, np.float32)))
        mean = self.node("ReduceMean", square, self.integers(-1), keepdims=1)
        added = self.add(mean, self.array(f"eps_{eps:g}", np.array(eps, np.float32)))
        scale = self.weight(f"{name}.weight", (channels,), precise=True)
        return self.mul(scale, self.div(x, self.node("Sqrt", added)))

    def relative_attention(
        self, q: str, k: str, v: str, heads: int, name: str, buckets: np.ndarray, count: int
    ) -> str:
        added = self.weight(
            name, (count, heads), lambda w: w[buckets].transpose(2, 0, 1)[None], ".pairs"
        )
        return self.node(
            "MultiHeadAttention",
            *(q, k, v, "", "", added),
            domain="com.microsoft",
            num_heads=heads,
            scale=1.0,
        )

    def wide_linear(self, x: str, name: str, cin: int, cout: int) -> str:
        if self.element != TensorProto.FLOAT16:
            return self.precise(self.linear(self.compute(x), name, cin, cout, bias=False))
        # Each token is divided by its largest value, so that nothing overflows in fp16.
        largest = self.node("ReduceMax", self.node("Abs", x), self.integers(-1), keepdims=1)
        largest = self.node("Max", largest, self.array("tiny", np.array(1e-6, np.float32)))
        unit = self.compute(self.div(x, largest))
        return self.mul(self.precise(self.linear(unit, name, cin, cout, bias=False)), largest)

    def volume(self, x: str) -> str:
        return self.node(
            "Unsqueeze", self.node("Transpose", x, perm=[1, 0, 2, 3]), self.integers(0)
        )

    def volume_frames(self, x: str) -> str:
        return self.node("Transpose", self.node("Squeeze", x, self.integers(0)), perm=[1, 0, 2, 3])

    def volume_conv(
        self,
        x: str,
        name: str,
        cin: int,
        cout: int,
        kernel: tuple[int, ...],
        stride: int = 1,
        padding: Padding = (0, 0, 0, 0),
    ) -> str:
        top, left, bottom, right = padding
        weight = self.weight(
            f"{name}.weight",
            (cout, cin, *kernel),
            lambda w: w[:, :, None] if w.ndim == 4 else w,
            ".volume",
        )
        return self.node(
            "Conv",
            x,
            weight,
            self.weight(f"{name}.bias", (cout,)),
            kernel_shape=[1] * (3 - len(kernel)) + list(kernel),
            strides=[1, stride, stride],
            pads=[0, top, left, 0, bottom, right],
        )

    def volume_norm(self, x: str, name: str, channels: int, groups: int, eps: float) -> str:
        planes = self.node("Reshape", x, self.integers(0, 0, 1, -1))
        normed = self.group_norm(planes, name, channels, groups, eps)
        return self.node("Reshape", normed, self._dimensions(x, 0, 5))

    def _frames(self, x: str, start: int, end: int) -> str:
        return self.node("Slice", x, self.integers(start), self.integers(end), self.integers(2))

    def lead(self, x: str, cache: str | None) -> str:
        first = [self._frames(x, 0, 1)] * CAUSAL
        if cache is None:
            return self.node("Concat", *first, x, axis=2)
        # An empty cache leaves the copies of the first frame at the end, without a branch.
        before = self._frames(self.node("Concat", *first, cache, axis=2), -CAUSAL, END)
        return self.node("Concat", before, x, axis=2)

    def trail(self, x: str) -> str:
        return self._frames(x, -CAUSAL, END)

    def halve_frames(self, x: str) -> str:
        pairs = self.node("Concat", self._frames(x, 0, 1), x, axis=2)
        return self.node("AveragePool", pairs, kernel_shape=[2, 1, 1], strides=[2, 1, 1])

    def enlarge(self, x: str, frames: bool) -> str:
        factors = np.array([1, 1, 1 + frames, 2, 2], np.float32)
        larger = self._repeated(x, self.array(f"factors_{1 + frames}", factors))
        if not frames:
            return larger
        odd = self.once("Mod", self._dimensions(x, 2, 3), self.integers(2))
        return self.node("Slice", larger, odd, self.integers(END), self.integers(2))
