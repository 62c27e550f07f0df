# SPDX-License-Identifier: MPL-2.0
"""The interface between the networks and their back-ends."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import numpy as np

#: A value of a back-end: a tensor, the name of a tensor in a graph, or nothing.
V = TypeVar("V")
#: Zero padding: top, left, bottom, right.
Padding = tuple[int, int, int, int]


class Ops(Protocol[V]):
    """The primitive operations.

    Feature maps are `[B*F,C,h,w]`, clips `[B,C,F,h,w]`, videos `[B,C,F,h*w]` and tokens `[N,T,C]`.
    An argument `clip` gives the batch size B and the number of frames F, and `like` the shape of
    the result. `name` is the common part of the names of the parameters. `gain` scales their
    initial values, see `Parameter`.
    """

    def conv(
        self,
        x: V,
        name: str,
        cin: int,
        cout: int,
        kernel: int = 3,
        stride: int = 1,
        bias: bool = True,
        gain: float = 1.0,
        padding: Padding | None = None,
    ) -> V:
        """2-D convolution, `[N,cin,h,w]` to `[N,cout,h/stride,w/stride]`.

        Pads with `kernel // 2` zeros on each side unless `padding` is given.
        """
        ...

    def temporal_conv(self, x: V, name: str, channels: int, clip: V, gain: float = 1.0) -> V:
        """Convolution of each pixel over the previous, the same and the next frame.

        `[B*F,C,h,w]` to the same shape, with zeros beyond the ends of the clip. The weight is
        `[C,3C,1,1]`, its input channels ordered (frame, C).
        """
        ...

    def video_conv(self, x: V, name: str, cin: int, cout: int) -> V:
        """Convolution over three frames, `[B,cin,F,hw]` to `[B,cout,F,hw]`.

        Zeros beyond the ends of the video; the weight is `[cout,cin,3,1,1]`.
        """
        ...

    def fixed_conv(self, x: V, name: str, weight: np.ndarray) -> V:
        """1x1 convolution with the constant `weight` `[cout,cin,1,1]`."""
        ...

    def linear(
        self,
        x: V,
        name: str,
        cin: int,
        cout: int,
        bias: bool = True,
        gain: float = 1.0,
        unit_axes: int = 0,
        joint: str = ".",
        precise: bool = False,
    ) -> V:
        """Affine map of the last axis, `[...,cin]` to `[...,cout]`, in 32 bits if `precise`.

        The weight has `unit_axes` further axes of length 1, as a 1x1 convolution has. `joint`
        stands between `name` and `weight` or `bias`.
        """
        ...

    def layer_norm(self, x: V, name: str, channels: int) -> V:
        """Normalisation of the last axis, eps 1e-5, in 32 bits."""
        ...

    def group_norm(self, x: V, name: str, channels: int, groups: int = 32, eps: float = 1e-5) -> V:
        """Normalisation of groups of channels over all later axes, in 32 bits.

        Takes `[N,C,h,w]` or a video `[B,C,F,hw]`, for which it pools over the frames too.
        """
        ...

    def precise(self, x: V) -> V:
        """Convert to 32 bits."""
        ...

    def compute(self, x: V) -> V:
        """Convert to the precision of the network."""
        ...

    def add(self, a: V, b: V) -> V:
        """Sum with broadcasting."""
        ...

    def sub(self, a: V, b: V) -> V:
        """Difference with broadcasting."""
        ...

    def mul(self, a: V, b: V) -> V:
        """Product with broadcasting."""
        ...

    def div(self, a: V, b: V) -> V:
        """Quotient with broadcasting."""
        ...

    def leaky_relu(self, x: V) -> V:
        """Leaky rectifier of slope 0.1."""
        ...

    def silu(self, x: V) -> V:
        """`x * sigmoid(x)`."""
        ...

    def sigmoid(self, x: V) -> V:
        """Logistic function."""
        ...

    def gelu(self, x: V) -> V:
        """GELU by the error function."""
        ...

    def table(self, t: V, name: str, values: np.ndarray) -> V:
        """Look up `values[t]` for timesteps `[B]`; the result is `[B,1,1,1,1]`."""
        ...

    def sinusoid(self, t: V, channels: int) -> V:
        """Timestep embedding `[B,channels]` of timesteps `[B]`, cosines first."""
        ...

    def fold_frames(self, x: V, channels: int) -> V:
        """`[B,C,F,h,w]` to `[B*F,C,h,w]`."""
        ...

    def unfold_frames(self, x: V, channels: int, clip: V) -> V:
        """`[B*F,C,h,w]` to `[B,C,F,h,w]`."""
        ...

    def per_frame(self, e: V, clip: V) -> V:
        """Repeat `[B,C]` for each frame: `[B*F,C,1,1]`."""
        ...

    def concat(self, a: V, b: V) -> V:
        """Concatenation along the channel axis of `[N,C,h,w]`."""
        ...

    def pool_channels(self, x: V, axis: int, channels: int) -> V:
        """Maximum and mean over the channel axis, which becomes 2 long (maximum first)."""
        ...

    def clip(self, x: V, name: str, bound: np.ndarray) -> V:
        """Limit values to `-bound` to `bound`, which is broadcast."""
        ...

    def depth_to_space(self, x: V, block: int) -> V:
        """`[N,block*block*C,h,w]` to `[N,C,block*h,block*w]`, channel order (row, column, C)."""
        ...

    def space_to_depth(self, x: V, block: int) -> V:
        """Inverse of `depth_to_space`."""
        ...

    def window_tokens(self, x: V, channels: int, size: int) -> V:
        """`[N,C,h,w]` to tokens `[N*h/size*w/size,size*size,C]`; `size` divides h and w."""
        ...

    def window_image(self, tokens: V, channels: int, size: int, like: V) -> V:
        """Inverse of `window_tokens`."""
        ...

    def video(self, x: V, channels: int, clip: V | None = None) -> V:
        """`[B*F,C,h,w]` to `[B,C,F,h*w]`; B is 1 without `clip`."""
        ...

    def frames(self, x: V, like: V) -> V:
        """Inverse of `video`."""
        ...

    def frame_tokens(self, x: V, channels: int, clip: V) -> V:
        """`[B*F,C,h,w]` to `[B*h*w,F,C]`."""
        ...

    def frame_image(self, tokens: V, channels: int, like: V, clip: V) -> V:
        """Inverse of `frame_tokens`."""
        ...

    def video_tokens(self, x: V, channels: int, group: int) -> V:
        """`[B,C,F,hw]` to `[B*hw,F,C]`.

        `group`, of the following operations too, divides hw: a back-end may keep the tokens of so
        many neighbouring pixels together.
        """
        ...

    def token_video(self, tokens: V, channels: int, like: V, group: int) -> V:
        """Inverse of `video_tokens`."""
        ...

    def tokens(self, x: V) -> V:
        """`[N,C,h,w]` to `[N,h*w,C]`."""
        ...

    def image(self, tokens: V, channels: int, like: V) -> V:
        """Inverse of `tokens`, with h and w of `like`."""
        ...

    def join_frames(self, tokens: V, channels: int, clip: V) -> V:
        """`[B*F,T,C]` to `[B,F*T,C]`."""
        ...

    def split_frames(self, tokens: V, like: V) -> V:
        """Inverse of `join_frames`."""
        ...

    def repeat_frames(self, e: V, clip: V) -> V:
        """Repeat `[B,C]` for each frame: `[B*F,C]`."""
        ...

    def repeat_clip(self, clip: V, like: V) -> V:
        """Repeat a clip `[b,C,F,h,w]` to `[B,C,F,h,w]`, where `like` has batch size B; b is 1 or B.

        The result serves only as an argument `clip`.
        """
        ...

    def repeat_batch(self, x: V, axes: int, clip: V, like: V) -> V:
        """Repeat `[b*F,...]` of so many axes to `[B*F,...]` likewise; `clip` has batch size b."""
        ...

    def pixel(self, e: V) -> V:
        """`[N,C]` to `[N,C,1,1]`."""
        ...

    def upsample(self, x: V) -> V:
        """`[N,C,h,w]` to `[N,C,2h,2w]`, nearest neighbour."""
        ...

    def crop_rows(self, x: V) -> V:
        """`[N,C,h,w]` to `[N,C,h-2,w]`, without the first and the last row."""
        ...

    def split(self, x: V, parts: int) -> Sequence[V]:
        """Equal parts of the last axis."""
        ...

    def channels(self, x: V, start: int, end: int) -> V:
        """Channels `start` to `end` (exclusive) of `[N,C,h,w]`."""
        ...

    def scale(self, x: V, factor: float) -> V:
        """Product with a number, in 32 bits."""
        ...

    def weigh(self, x: V, name: str) -> V:
        """Product with the logistic function of the parameter `name`, `[1]`."""
        ...

    def std(self, x: V) -> V:
        """Convert a log-variance, clamped to [-30,20], to a standard deviation in 32 bits."""
        ...

    def lookup(self, tokens: V, name: str, rows: int, width: int) -> V:
        """Rows of the parameter `name` `[rows,width]`: tokens `[B,T]` to `[B,T,width]`."""
        ...

    def add_rows(self, x: V, name: str, rows: int, width: int) -> V:
        """Sum of `[B,rows,width]` and the parameter `name` `[rows,width]`."""
        ...

    def recompute(self, function: Callable[..., V], *values: V) -> V:
        """Evaluate `function(*values)`.

        To save memory, a back-end may compute the inner results again for the gradient.
        """
        ...

    def tap(self, name: str, x: V) -> V:
        """Return `x`, which references know as `name`."""
        ...

    def frame_attention(self, q: V, k: V, v: V, heads: int, channels: int, group: int) -> V:
        """Attention among the frames of each pixel, on tokens that `video_tokens` ordered."""
        ...

    def geglu(self, x: V, first: str, second: str, channels: int) -> V:
        """Gated layer `[N,T,C]` to `[N,T,C]`: the map `first` to 8C, GEGLU to 4C, the map `second`.

        GEGLU multiplies the first half of the channels by the GELU of the second.
        """
        ...

    def attention(self, q: V, k: V, v: V, heads: int, causal: bool = False) -> V:
        """Scaled dot-product attention of tokens `[N,T,C]` as one fused operation.

        With `causal`, a token sees only itself and earlier ones.
        """
        ...


def geglu(ops: Ops[V], x: V, first: str, second: str, channels: int) -> V:
    """Compute `Ops.geglu` by other operations."""
    value, gate = ops.split(ops.linear(x, first, channels, 8 * channels), 2)
    return ops.linear(ops.mul(value, ops.gelu(gate)), second, 4 * channels, channels)
