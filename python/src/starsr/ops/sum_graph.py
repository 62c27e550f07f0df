# SPDX-License-Identifier: MPL-2.0
"""A channels-last graph whose sums wait until norms can compute them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from starsr.ops.onnx_graph import Initializer, numpy_type
from starsr.ops.onnx_ops import OnnxOps

CONTRIB = "com.microsoft"
#: Widths that the kernel of BiasAdd has.
BIAS_ADD_WIDTHS = (320, 640, 1280)
#: Operators whose results have the shape of their first input, apart from the channels.
KEEPING = (
    "Add",
    "BiasAdd",
    "Concat",
    "GroupNorm",
    "LayerNormalization",
    "MatMul",
    "Mul",
    "SkipGroupNorm",
    "SkipLayerNormalization",
)


class Bias:
    """A bias that the convolution `node`, if any, can still take, or that something adds later."""

    def __init__(self, name: str, node: onnx.NodeProto | None = None) -> None:
        self.name, self.node, self.attached = name, node, False

    def take(self) -> list[str]:
        """Return what must be added: the bias, unless the convolution has it."""
        if self.attached:
            return []
        self.node = None
        return [self.name]

    def attach(self) -> None:
        """Let the convolution add the bias if that is still possible."""
        if self.node is not None:
            self.node.input.append(self.name)
            self.node, self.attached = None, True


@dataclass
class Sum:
    """The value `base + bias + skip` before something computes it.

    `base` and `skip` are tensors of one shape, or `skip` is `[N,1,1,C]` if `broadcast`. `width` is
    C if `base` is `[N,T,C]`. If the sum is a reshaped one, `origin` is the value it was made of.
    """

    base: str
    bias: Bias | None = None
    skip: str | None = None
    broadcast: bool = False
    width: int = 0
    origin: str | None = None


class SumGraph(OnnxOps):
    """A graph of channels-last tensors in which sums wait until they are used.

    Norms can then compute them. Sums do not broadcast, except for the tensors in `pixels`
    (`[N,1,1,C]`). Sizes that tensors share are looked up once. `OnnxGraph` describes the arguments.
    """

    def __init__(self, parameters: Mapping[str, np.ndarray], precision: str = "fp32") -> None:
        super().__init__(parameters, precision)
        self._sums: dict[str, Sum] = {}
        # Where the value of a sum is: another tensor, or another tensor in the shape of a third.
        self._places: dict[str, tuple[str, str | None]] = {}
        self._norms: dict[str, onnx.NodeProto] = {}
        self._made: dict[str, onnx.NodeProto] = {}
        self.pixels: set[str] = set()
        # Earlier tensors that agree in so many of the first dimensions.
        self._shapes: dict[str, tuple[str, int]] = {}
        self._videos: dict[str, str] = {}
        # The first dimensions of tensors where they are known, one by one.
        self._sizes: dict[str, tuple[str, ...]] = {}
        self._widths: dict[str, int] = {}
        self._count = 0

    def _sum(self, value: Sum) -> str:
        self._count += 1
        name = f"sum_{self._count}"
        self._sums[name] = value
        return name

    def _settle(self, x: str) -> str:
        """Return the tensor that holds `x`, which is computed if it is still a sum."""
        if x in self._sums:
            self._compute(x, self._sums.pop(x))
        if x in self._places:
            place, like = self._places[x]
            if like is not None:
                place = super().node("Reshape", self._settle(place), self._dimensions(like, 0, 4))
                self._places[x] = place, None
            return self._settle(place)
        return x

    def _compute(self, x: str, s: Sum) -> None:
        if s.bias is not None:
            s.bias.attach()
        bias = s.bias.take() if s.bias else []
        if bias and s.skip and s.width in BIAS_ADD_WIDTHS and not s.broadcast:
            self.node("BiasAdd", s.base, *bias, s.skip, domain=CONTRIB, output=x)
        elif bias and s.skip:
            self.node("Add", self.node("Add", s.base, *bias), s.skip, output=x)
        elif bias or s.skip:
            self.node("Add", s.base, *bias, *([s.skip] if s.skip else []), output=x)
        else:
            self._places[x] = s.base, None
            return
        self._found(x, s.origin)

    def _like(self, x: str) -> str:
        """Return a tensor of the shape of `x` without computing a sum."""
        if x in self._sums:
            return self._sums[x].base
        if x in self._places:
            place, like = self._places[x]
            return self._like(like or place)
        return x

    def _found(self, x: str, origin: str | None) -> None:
        """Note that the tensor `x` now exists, which also holds the sum it was reshaped from."""
        while origin is not None and origin in self._sums:
            s = self._sums.pop(origin)
            self._places[origin] = x, s.base
            origin = s.origin

    def node(
        self, op: str, *inputs: str, domain: str = "", output: str | None = None, **attributes: Any
    ) -> str:
        settled = [self._settle(x) for x in inputs]
        for x in settled:
            self._norms.pop(x, None)
        name = super().node(op, *settled, domain=domain, output=output, **attributes)
        self._note(op, settled, name)
        return name

    def _note(self, op: str, inputs: list[str], *outputs: str) -> None:
        for name in outputs:
            self._made[name] = self.nodes[-1]
            if op in KEEPING:
                if inputs[0] in self._shapes:
                    self._keep(name, inputs[0])
                if op not in ("Concat", "MatMul") and inputs[0] in self._widths:
                    self._widths[name] = self._widths[inputs[0]]

    def _keep(self, x: str, like: str, count: int = 3) -> None:
        """Note that the first `count` dimensions of `x` are those of `like`."""
        like = self._like(like)
        first, known = self._shapes.get(like, (like, count))
        self._shapes[self._like(x)] = first, min(known, count)

    def nodes_of(self, op: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        return super().nodes_of(op, *map(self._settle, inputs), outputs=outputs, **attributes)

    def _dimensions(self, x: str, start: int, end: int) -> str:
        x = self._like(x)
        first, known = self._shapes.get(x, (x, 0))
        x = first if end <= known else x
        sizes = self._sizes.get(x, ())
        return (
            sizes[start] if start + 1 == end <= len(sizes) else super()._dimensions(x, start, end)
        )

    def _wide(self, x: str, channels: int) -> str:
        """Note the channels of `x`, and return it."""
        self._widths[self._like(x)] = channels
        return x

    def _width(self, x: str) -> str:
        return self.integers(self._widths[self._like(x)])

    def _reshape(self, x: str, shape: str) -> str:
        s = self._sums.get(x)
        if s is None or s.broadcast:
            return self.node("Reshape", x, shape)
        base = self.node("Reshape", s.base, shape)
        skip = None if s.skip is None else self.node("Reshape", s.skip, shape)
        return self._sum(Sum(base, s.bias, skip, origin=x))

    def _permute(self, x: str, *order: int) -> str:
        made = self._made.get(x)
        if made is not None and made.op_type == "Transpose":
            before = list(made.attribute[0].ints)
            if [before[axis] for axis in order] == list(range(len(order))):
                return made.input[0]
        return self.node("Transpose", x, perm=list(order))

    def _biased(self, x: str, name: str, channels: int) -> str:
        """Return the sum of the result `x` of a convolution and the parameter `name`."""
        return self._sum(Sum(x, Bias(self.weight(name, (channels,)), self._made[x])))

    def _joined(self, a: str, b: str) -> str:
        """Return the sum of two biases as a constant that replaces both."""
        name = f"{a}+{b}"
        first, second = self.initializers.pop(a), self.initializers.pop(b)

        def load() -> np.ndarray:
            total = first.load().astype(np.float32) + second.load().astype(np.float32)
            return total.astype(numpy_type(self.element))

        self.initializers[name] = Initializer(self.element, first.shape, load)
        return name

    def add(self, a: str, b: str) -> str:
        if self._waiting(a) is None and b not in self.pixels:
            a, b = b, a
        broadcast = b in self.pixels
        first, second = self._waiting(a), self._waiting(b)
        if first is None or first.bias is None:
            return self._sum(Sum(self._settle(a), None, self._settle(b), broadcast))
        if second is None or second.bias is None:
            skip = self._settle(b)
            return self._sum(Sum(first.base, first.bias, skip, broadcast, first.width))
        bias = Bias(self._joined(*first.bias.take(), *second.bias.take()))
        return self._sum(Sum(first.base, bias, second.base, width=first.width))

    def _waiting(self, x: str) -> Sum | None:
        """Return `x` if it is the sum of a tensor and a bias that nothing has added yet."""
        s = self._sums.get(x)
        return s if s and s.bias and not s.bias.attached and s.skip is None else None
