# SPDX-License-Identifier: MPL-2.0
"""The back-end that lists the parameters of a network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from starsr.ops.primitives import Padding, geglu


@dataclass(frozen=True)
class Parameter:
    """Shape and initial values of a parameter.

    Values are normal with a variance of `gain**2` over the fan-in, zero for a gain of 0, or
    `constant` throughout if that is given.
    """

    shape: tuple[int, ...]
    gain: float = 1.0
    constant: float | None = None


class Declare:
    """Collects the `parameters` of a network by name; values are `None`.

    `Ops` describes each operation.
    """

    def __init__(self) -> None:
        self.parameters: dict[str, Parameter] = {}

    def _declare(self, name: str, parameter: Parameter) -> None:
        if self.parameters.setdefault(name, parameter) != parameter:
            raise ValueError(f"parameter {name} is declared twice with different shapes")

    def _norm(self, name: str, channels: int) -> None:
        self._declare(f"{name}.weight", Parameter((channels,), constant=1.0))
        self._declare(f"{name}.bias", Parameter((channels,), constant=0.0))

    def conv(
        self,
        x: None,
        name: str,
        cin: int,
        cout: int,
        kernel: int = 3,
        stride: int = 1,
        bias: bool = True,
        gain: float = 1.0,
        padding: Padding | None = None,
    ) -> None:
        self._declare(f"{name}.weight", Parameter((cout, cin, kernel, kernel), gain))
        if bias:
            self._declare(f"{name}.bias", Parameter((cout,), constant=0.0))

    def temporal_conv(
        self, x: None, name: str, channels: int, clip: None, gain: float = 1.0
    ) -> None:
        self._declare(f"{name}.weight", Parameter((channels, 3 * channels, 1, 1), gain))
        self._declare(f"{name}.bias", Parameter((channels,), constant=0.0))

    def video_conv(self, x: None, name: str, cin: int, cout: int) -> None:
        self._declare(f"{name}.weight", Parameter((cout, cin, 3, 1, 1)))
        self._declare(f"{name}.bias", Parameter((cout,), constant=0.0))

    def linear(
        self,
        x: None,
        name: str,
        cin: int,
        cout: int,
        bias: bool = True,
        gain: float = 1.0,
        unit_axes: int = 0,
        joint: str = ".",
        precise: bool = False,
    ) -> None:
        self._declare(f"{name}{joint}weight", Parameter((cout, cin) + (1,) * unit_axes, gain))
        if bias:
            self._declare(f"{name}{joint}bias", Parameter((cout,), constant=0.0))

    def layer_norm(self, x: None, name: str, channels: int) -> None:
        self._norm(name, channels)

    def group_norm(
        self, x: None, name: str, channels: int, groups: int = 32, eps: float = 1e-5
    ) -> None:
        self._norm(name, channels)

    def weigh(self, x: None, name: str) -> None:
        self._declare(name, Parameter((1,), constant=0.5))

    def lookup(self, tokens: None, name: str, rows: int, width: int) -> None:
        self._declare(name, Parameter((rows, width), gain=0.02 * width**0.5))

    def add_rows(self, x: None, name: str, rows: int, width: int) -> None:
        self._declare(name, Parameter((rows, width), gain=0.01 * width**0.5))

    def geglu(self, x: None, first: str, second: str, channels: int) -> None:
        geglu(self, x, first, second, channels)

    def recompute(self, function: Callable[..., None], *values: None) -> None:
        function(*values)

    def split(self, x: None, parts: int) -> Sequence[None]:
        return [None] * parts

    # The other operations have no parameters.

    def fixed_conv(self, x: None, name: str, weight: np.ndarray) -> None: ...
    def precise(self, x: None) -> None: ...
    def compute(self, x: None) -> None: ...
    def add(self, a: None, b: None) -> None: ...
    def sub(self, a: None, b: None) -> None: ...
    def mul(self, a: None, b: None) -> None: ...
    def div(self, a: None, b: None) -> None: ...
    def leaky_relu(self, x: None) -> None: ...
    def silu(self, x: None) -> None: ...
    def sigmoid(self, x: None) -> None: ...
    def gelu(self, x: None) -> None: ...
    def table(self, t: None, name: str, values: np.ndarray) -> None: ...
    def sinusoid(self, t: None, channels: int) -> None: ...
    def fold_frames(self, x: None, channels: int) -> None: ...
    def unfold_frames(self, x: None, channels: int, clip: None) -> None: ...
    def per_frame(self, e: None, clip: None) -> None: ...
    def concat(self, a: None, b: None) -> None: ...
    def pool_channels(self, x: None, axis: int, channels: int) -> None: ...
    def clip(self, x: None, name: str, bound: np.ndarray) -> None: ...
    def depth_to_space(self, x: None, block: int) -> None: ...
    def space_to_depth(self, x: None, block: int) -> None: ...
    def window_tokens(self, x: None, channels: int, size: int) -> None: ...
    def window_image(self, tokens: None, channels: int, size: int, like: None) -> None: ...
    def video(self, x: None, channels: int, clip: None = None) -> None: ...
    def frames(self, x: None, like: None) -> None: ...
    def frame_tokens(self, x: None, channels: int, clip: None) -> None: ...
    def frame_image(self, tokens: None, channels: int, like: None, clip: None) -> None: ...
    def video_tokens(self, x: None, channels: int, group: int) -> None: ...
    def token_video(self, tokens: None, channels: int, like: None, group: int) -> None: ...
    def tokens(self, x: None) -> None: ...
    def image(self, tokens: None, channels: int, like: None) -> None: ...
    def join_frames(self, tokens: None, channels: int, clip: None) -> None: ...
    def split_frames(self, tokens: None, like: None) -> None: ...
    def repeat_frames(self, e: None, clip: None) -> None: ...
    def repeat_clip(self, clip: None, like: None) -> None: ...
    def repeat_batch(self, x: None, axes: int, clip: None, like: None) -> None: ...
    def pixel(self, e: None) -> None: ...
    def upsample(self, x: None) -> None: ...
    def crop_rows(self, x: None) -> None: ...
    def channels(self, x: None, start: int, end: int) -> None: ...
    def scale(self, x: None, factor: float) -> None: ...
    def std(self, x: None) -> None: ...
    def tap(self, name: str, x: None) -> None: ...
    def frame_attention(
        self, q: None, k: None, v: None, heads: int, channels: int, group: int
    ) -> None: ...
    def attention(self, q: None, k: None, v: None, heads: int, causal: bool = False) -> None: ...
