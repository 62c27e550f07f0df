# SPDX-License-Identifier: MPL-2.0
"""The back-end that writes channels-last ONNX graphs with the fused operators of NVIDIA GPUs."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper

from starsr.ops.onnx_graph import Initializer, numpy_type
from starsr.ops.primitives import Padding
from starsr.ops.sum_graph import CONTRIB, Bias, Sum, SumGraph

#: Convolutions with fewer channels on a side have no fast channels-last kernels.
NARROW = 8
#: Widths that the kernel of BiasSplitGelu has.
GEGLU_WIDTHS = (2560, 5120, 10240)
#: ONNX Runtime's kernels index with 32 bits: no tensor may have more elements.
ELEMENTS = 2**31
#: Parts of the rows in which GEGLU is computed where its inner tensor, which is 8 times as wide as
#: its input, would have more.
PARTS = 8
#: Most parts of one Split, whose kernel needs a copy from the host for more.
POOLED = 32


class NhwcOps(SumGraph):
    """The operations of STAR's networks on feature maps `[N,h,w,C]` and videos `[B,F,hw,C]`.

    Images, videos and tokens are reshaped into each other; only the tokens among frames are
    transposed. `OnnxGraph` describes the arguments, but there is no bf16.
    """

    def __init__(self, parameters: Mapping[str, np.ndarray], precision: str = "fp32") -> None:
        if precision == "bf16":
            raise ValueError("bf16 graphs must be channels-first: NhwcConv and GroupNorm have none")
        super().__init__(parameters, precision)
        # The feature map that the tokens at hand were made of.
        self._image = ""

    def enter(self, x: str) -> str:
        return self._permute(x, 0, 2, 3, 1)

    def leave(self, x: str) -> str:
        return self._permute(x, 0, 3, 1, 2)

    def feature_map(self, count: int | str, channels: int, *sizes: str) -> list[int | str]:
        return [count, *sizes, channels]

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
        if min(cin, cout) < NARROW:
            y = super().conv(self.leave(x), name, cin, cout, kernel, stride, bias, gain, padding)
            y = self._wide(self.enter(y), cout)
            if stride == 1:
                self._keep(y, x)
            return y
        weight = self.weight(
            f"{name}.weight",
            (cout, cin, kernel, kernel),
            lambda w: w.transpose(0, 2, 3, 1),
            ".nhwc",
        )
        pads = [kernel // 2] * 4 if padding is None else list(padding)
        y = self._wide(self._nhwc_conv(x, weight, [kernel] * 2, pads, stride), cout)
        return self._biased(y, f"{name}.bias", cout) if bias else y

    def _nhwc_conv(
        self, x: str, weight: str, kernel: list[int], pads: list[int], stride: int = 1
    ) -> str:
        y = self.node(
            "NhwcConv",
            x,
            weight,
            domain=CONTRIB,
            kernel_shape=kernel,
            strides=[stride] * 2,
            pads=pads,
            dilations=[1, 1],
            group=1,
        )
        if stride == 1:
            self._keep(y, x)
        return y

    def video_conv(self, x: str, name: str, cin: int, cout: int) -> str:
        if min(cin, cout) < NARROW:
            return self.enter(super().video_conv(self.leave(x), name, cin, cout))
        weight = self.weight(
            f"{name}.weight",
            (cout, cin, 3, 1, 1),
            lambda w: w[..., 0].transpose(0, 2, 3, 1),
            ".nhwc",
        )
        y = self._wide(self._nhwc_conv(x, weight, [3, 1], [1, 0, 1, 0]), cout)
        return self._biased(y, f"{name}.bias", cout)

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
        y = super().linear(x, name, cin, cout, False, gain, unit_axes, joint, precise)
        self._wide(y, cout)
        if not bias:
            return y
        offset = self.weight(f"{name}{joint}bias", (cout,), precise=precise)
        return self._sum(Sum(y, Bias(offset), width=cout))

    def layer_norm(self, x: str, name: str, channels: int) -> str:
        scale, bias = (self.weight(f"{name}.{part}", (channels,)) for part in ("weight", "bias"))
        s = self._sums.get(x)
        if s is None or s.skip is None or s.broadcast or not s.width:
            return self.node("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-5)
        del self._sums[x]
        offset = s.bias.take() if s.bias else []
        inputs = (s.base, s.skip, scale, bias, *offset)
        return self._with_sum("SkipLayerNormalization", inputs, ["", "", x], epsilon=1e-5)

    def _with_sum(
        self, op: str, inputs: tuple[str, ...], more: list[str], **attributes: Any
    ) -> str:
        name = f"{op}_{len(self.nodes)}"
        self._add(op, inputs, [name, *more], CONTRIB, attributes)
        self._note(op, list(inputs), name, more[-1])
        return name

    def group_norm(
        self, x: str, name: str, channels: int, groups: int = 32, eps: float = 1e-5
    ) -> str:
        scale, bias = (
            self.weight(f"{name}.{part}", (channels,), precise=True) for part in ("weight", "bias")
        )
        options: dict[str, Any] = {
            "epsilon": eps,
            "groups": groups,
            "activation": 0,
            "channels_last": 1,
        }
        s = self._sums.get(x)
        if s is None or (s.skip is None and (s.bias is None or s.bias.attached)):
            y = self.node("GroupNorm", x, scale, bias, domain=CONTRIB, **options)
        else:
            del self._sums[x]
            offset = s.bias.take() if s.bias else []
            skip = s.skip
            if skip is None:
                # The operator needs something to add: the bias, once for each entry of the batch.
                shape = self._shape(self._dimensions(s.base, 0, 1), self.integers(1, 1, channels))
                skip, offset = self.node("Expand", offset[0], shape), []
            y = self._with_sum(
                "SkipGroupNorm", (s.base, scale, bias, skip, *offset), [x], **options
            )
            self._found(x, s.origin)
        self._norms[y] = self.nodes[-1]
        return y

    def silu(self, x: str) -> str:
        norm = self._norms.pop(x, None)
        if norm is None:
            return super().silu(x)
        next(a for a in norm.attribute if a.name == "activation").i = 1
        return x

    def geglu(self, x: str, first: str, second: str, channels: int) -> str:
        width = 8 * channels
        inner, outer = (
            self.weight(f"{name}.weight", shape, lambda w: w.T, ".T")
            for name, shape in ((first, (width, channels)), (second, (channels, width // 2)))
        )
        bias = self.weight(f"{first}.bias", (width,))
        x, flat = self._settle(x), self.integers(1, -1, channels)
        # Made of Shape and arithmetic on its result, which stay on the host. Size has no kernel for
        # GPUs in this opset.
        count, rows, columns = (self._dimensions(self._image, i, i + 1) for i in range(3))
        pixels = self.once("Mul", self.once("Mul", count, rows), columns)
        small = self.once("Less", pixels, self.integers(-(-ELEMENTS // width)))
        name = f"If_{len(self.nodes)}"
        weights = inner, bias, outer
        whole = _geglu(x, f"{name}_whole", weights, width)
        parts = _in_parts(x, f"{name}_parts", weights, width, flat)
        branches = {
            branch: helper.make_graph(
                nodes,
                branch,
                [],
                [helper.make_tensor_value_info(nodes[-1].output[0], self.element, None)],
            )
            for branch, nodes in (("then_branch", whole), ("else_branch", parts))
        }
        y = self.node("If", small, **branches)
        self._keep(self._wide(y, channels), x, 2)
        offset = self.weight(f"{second}.bias", (channels,))
        return self._sum(Sum(y, Bias(offset), width=channels))

    def pool_channels(self, x: str, axis: int, channels: int) -> str:
        column = self.weight_like(f"mean_{channels}", np.full((channels, 1), 1 / channels))
        mean = self.node("MatMul", x, column)
        largest, width = x, channels
        while width > 1:
            parts = max((n for n in range(2, POOLED + 1) if width % n == 0), default=width)
            split = self.nodes_of("Split", largest, outputs=parts, axis=axis, num_outputs=parts)
            largest, width = self.node("Max", *split), width // parts
        return self.node("Concat", largest, mean, axis=axis)

    def weight_like(self, name: str, value: np.ndarray) -> str:
        """Add a constant in the precision of the graph and return its name."""
        final = value.astype(numpy_type(self.element))
        self.initializers.setdefault(name, Initializer(self.element, value.shape, lambda: final))
        return name

    def frame_attention(self, q: str, k: str, v: str, heads: int, channels: int, group: int) -> str:
        shape = self.integers(0, -1, group * channels)
        q, k, v = (self.node("Reshape", x, shape) for x in (q, k, v))
        attended = self.attention(q, k, v, group * heads)
        return self.node("Reshape", attended, self.integers(0, -1, channels))

    # Shapes

    def concat(self, a: str, b: str) -> str:
        return self.node("Concat", a, b, axis=-1)

    def pixel(self, e: str) -> str:
        x = self.node("Unsqueeze", e, self.integers(1, 2))
        self.pixels.add(x)
        return x

    def fold_frames(self, x: str, channels: int) -> str:
        frames = self.node("Transpose", x, perm=[0, 2, 3, 4, 1])
        sizes = self.integers(-1), self._dimensions(x, 3, 5), self.integers(channels)
        return self.node("Reshape", frames, self._shape(*sizes))

    def unfold_frames(self, x: str, channels: int, clip: str) -> str:
        sizes = self._dimensions(clip, 0, 1), self._dimensions(clip, 2, 3)
        shape = self._shape(*sizes, self._dimensions(x, 1, 4))
        return self.node("Transpose", self.node("Reshape", x, shape), perm=[0, 4, 1, 2, 3])

    def video(self, x: str, channels: int, clip: str | None = None) -> str:
        self._image = x
        batch = self._dimensions(clip, 0, 1) if clip else self.integers(1)
        frames = self._dimensions(clip, 2, 3) if clip else self._dimensions(x, 0, 1)
        video = self._reshape(x, self._shape(batch, frames, self.integers(-1, channels)))
        first = self._videos.setdefault(clip or "", video)
        self._sizes[self._like(first)] = batch, frames
        self._keep(video, first, 2)
        return self._wide(video, channels)

    def frames(self, x: str, like: str) -> str:
        images = self._reshape(x, self._shape(self._dimensions(like, 0, 3), self._width(like)))
        self._keep(images, like)
        return self._wide(images, self._widths[self._like(like)])

    def video_tokens(self, x: str, channels: int, group: int) -> str:
        wide = self.node("Reshape", x, self.integers(0, 0, -1, group * channels))
        moved = self.node("Transpose", wide, perm=[0, 2, 1, 3])
        tokens = self.once("Mul", self._dimensions(x, 1, 2), self.integers(group))
        return self.node(
            "Reshape", moved, self._shape(self.integers(-1), tokens, self.integers(channels))
        )

    def token_video(self, tokens: str, channels: int, like: str, group: int) -> str:
        s = self._sums.get(tokens)
        # A bias can still be added in the new order.
        x = tokens if s is None or s.skip is not None else s.base
        batch, frames = self._dimensions(like, 0, 1), self._dimensions(like, 1, 2)
        shape = self._shape(batch, self.integers(-1), frames, self.integers(group * channels))
        moved = self.node("Transpose", self.node("Reshape", x, shape), perm=[0, 2, 1, 3])
        video = self.node("Reshape", moved, self.integers(0, 0, -1, channels))
        self._keep(self._wide(video, channels), like, 2)
        return video if s is None or s.skip is not None else self._sum(Sum(video, s.bias))

    def tokens(self, x: str) -> str:
        self._image, width = x, self._widths[self._like(x)]
        tokens = self._wide(self._reshape(x, self.integers(0, -1, width)), width)
        self._keep(tokens, x, 1)
        return tokens

    def image(self, tokens: str, channels: int, like: str) -> str:
        shape = self._shape(self._dimensions(like, 0, 3), self.integers(channels))
        images = self._reshape(tokens, shape)
        self._keep(images, like)
        return self._wide(images, channels)

    def repeat_batch(self, x: str, axes: int, clip: str, like: str) -> str:
        y = super().repeat_batch(x, axes, clip, like)
        if axes == 4:
            # The tokens at hand are repeated with the feature map.
            self._image = y
            count = self._dimensions(y, 0, 1)
            self._sizes[y] = count, *(self._dimensions(x, i, i + 1) for i in (1, 2))
        width = self._widths.get(self._like(x))
        return y if width is None else self._wide(y, width)

    def join_frames(self, tokens: str, channels: int, clip: str) -> str:
        batch = self._dimensions(clip, 0, 1)
        return self.node("Reshape", tokens, self._shape(batch, self.integers(-1, channels)))

    def split_frames(self, tokens: str, like: str) -> str:
        sizes = self._dimensions(like, 0, 1), self.integers(-1), self._width(like)
        return self.node("Reshape", tokens, self._shape(*sizes))

    def upsample(self, x: str) -> str:
        scales = self.array("twice", np.array([1, 2, 2, 1], np.float32))
        return self._repeated(x, scales)

    def crop_rows(self, x: str) -> str:
        return self.node("Slice", x, self.integers(1), self.integers(-1), self.integers(1))

    def channels(self, x: str, start: int, end: int) -> str:
        return self.node("Slice", x, self.integers(start), self.integers(end), self.integers(3))


def _geglu(x: str, result: str, weights: tuple[str, str, str], width: int) -> list[onnx.NodeProto]:
    """Return the nodes of `Ops.geglu` without the last bias, from `x` to `result`."""
    inner, bias, outer = weights
    hidden, gated = f"{result}_hidden", f"{result}_gated"
    nodes = [helper.make_node("MatMul", [x, inner], [hidden])]
    if width in GEGLU_WIDTHS:
        nodes.append(helper.make_node("BiasSplitGelu", [hidden, bias], [gated], domain=CONTRIB))
    else:
        value, gate, biased = (f"{result}_{part}" for part in ("value", "gate", "biased"))
        nodes += [
            helper.make_node("Add", [hidden, bias], [biased]),
            helper.make_node("Split", [biased], [value, gate], axis=-1, num_outputs=2),
            helper.make_node("Gelu", [gate], [f"{gate}_gelu"]),
            helper.make_node("Mul", [value, f"{gate}_gelu"], [gated]),
        ]
    return [*nodes, helper.make_node("MatMul", [gated, outer], [result])]


def _in_parts(
    x: str, result: str, weights: tuple[str, str, str], width: int, flat: str
) -> list[onnx.NodeProto]:
    """Return nodes that do as those of `_geglu`, on some rows after the others.

    `flat` is the shape of all rows as one entry of a batch.
    """
    names, results = ([f"{result}_{k}_{i}" for i in range(PARTS)] for k in "xy")
    rows, joined, shape = (f"{result}_{part}" for part in ("rows", "joined", "shape"))
    nodes = [
        helper.make_node("Reshape", [x, flat], [rows]),
        helper.make_node("Split", [rows], names, axis=1, num_outputs=PARTS),
    ]
    for name, part in zip(names, results, strict=True):
        nodes += _geglu(name, part, weights, width)
    return [
        *nodes,
        helper.make_node("Concat", results, [joined], axis=1),
        helper.make_node("Shape", [x], [shape]),
        helper.make_node("Reshape", [joined, shape], [result]),
    ]
