# SPDX-License-Identifier: MPL-2.0
"""The back-end that only lists the parameters a network needs; it documents the primitive operations."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Parameter:
    """Shape and initialisation of a parameter: `gain` scales He-normal weights, 0 gives zeros; `constant` fills."""

    shape: tuple[int, ...]
    gain: float = 1.0
    constant: float | None = None


class Declare:
    """Collects `parameters` (name to `Parameter`). Tensors are `None`; feature maps are `[B*F,C,h,w]`."""

    def __init__(self) -> None:
        self.parameters: dict[str, Parameter] = {}

    def _declare(self, name: str, parameter: Parameter) -> None:
        if self.parameters.setdefault(name, parameter) != parameter:
            raise ValueError(f"parameter {name} is declared twice with different shapes")

    def conv(self, x, name, cin, cout, kernel=3, stride=1, bias=True, gain=1.0, padding=None):
        """2-D convolution `[N,cin,h,w]` to `[N,cout,h/stride,w/stride]`, zero padded by `kernel // 2` on each side or by
        `padding` (top, left, bottom, right)."""
        self._declare(f"{name}.weight", Parameter((cout, cin, kernel, kernel), gain))
        if bias:
            self._declare(f"{name}.bias", Parameter((cout,), constant=0.0))

    def temporal_conv(self, x, name, channels, clip, gain=1.0):
        """Convolution of each pixel over previous, same and next frame, zeros beyond the clip's ends: `[B*F,C,h,w]` to the
        same shape. The weight is `[C,3C,1,1]`, its input channels ordered (frame, C)."""
        self._declare(f"{name}.weight", Parameter((channels, 3 * channels, 1, 1), gain))
        self._declare(f"{name}.bias", Parameter((channels,), constant=0.0))

    def video_conv(self, x, name, cin, cout):
        """As `temporal_conv`, of videos `[B,cin,F,hw]` with a weight `[cout,cin,3,1,1]`."""
        self._declare(f"{name}.weight", Parameter((cout, cin, 3, 1, 1)))
        self._declare(f"{name}.bias", Parameter((cout,), constant=0.0))

    def fixed_conv(self, x, name, weight):
        """1x1 convolution with the given array `[cout,cin,1,1]`, which is no parameter."""

    def linear(self, x, name, cin, cout, bias=True, gain=1.0, unit_axes=0, joint=".", precise=False):
        """Affine map of the last axis, in 32 bits where `precise`. The weight has `unit_axes` further axes of 1, as that of
        a 1x1 convolution; `joint` stands between `name` and `weight` or `bias`."""
        self._declare(f"{name}{joint}weight", Parameter((cout, cin) + (1,) * unit_axes, gain))
        if bias:
            self._declare(f"{name}{joint}bias", Parameter((cout,), constant=0.0))

    def layer_norm(self, x, name, channels):
        """Normalisation over the last axis, eps 1e-5, in 32 bits."""
        self._declare(f"{name}.weight", Parameter((channels,), constant=1.0))
        self._declare(f"{name}.bias", Parameter((channels,), constant=0.0))

    def group_norm(self, x, name, channels, groups=32, eps=1e-5):
        """Normalisation of `groups` of channels over all axes behind them, in 32 bits, of `[N,C,h,w]` or a video `[B,C,F,hw]`,
        where it pools over the frames."""
        self._declare(f"{name}.weight", Parameter((channels,), constant=1.0))
        self._declare(f"{name}.bias", Parameter((channels,), constant=0.0))

    def precise(self, x):
        """`x` in 32 bits."""

    def compute(self, x):
        """`x` in the precision of the network."""

    def add(self, a, b):
        """Sum with broadcasting."""

    def sub(self, a, b):
        """Difference with broadcasting."""

    def mul(self, a, b):
        """Product with broadcasting."""

    def div(self, a, b):
        """Quotient with broadcasting."""

    def leaky_relu(self, x):
        """Leaky rectifier of slope 0.1."""

    def silu(self, x):
        """`x * sigmoid(x)`."""

    def sigmoid(self, x):
        """Logistic function."""

    def gelu(self, x):
        """Gelu by the error function."""

    def table(self, t, name, values):
        """`values[t]` as `[B,1,1,1,1]` for timesteps `[B]`."""

    def sinusoid(self, t, channels):
        """Timestep embedding `[B,channels]`, cosines first (SPEC A.6)."""

    def fold_frames(self, x, channels):
        """`[B,C,F,h,w]` to `[B*F,C,h,w]`."""

    def unfold_frames(self, x, channels, clip):
        """`[B*F,C,h,w]` to `[B,C,F,h,w]`, with B and F of `clip` `[B,*,F,*,*]`."""

    def per_frame(self, e, clip):
        """`[B,C]` to `[B*F,C,1,1]`, with F of `clip`."""

    def concat(self, a, b):
        """Concatenation on the channel axis."""

    def pool_channels(self, x, axis):
        """Maximum and mean over the channel axis, which becomes 2 (maximum first)."""

    def clip(self, x, name, bound):
        """Values limited to `-bound` to `bound`, an array that is broadcast."""

    def depth_to_space(self, x, block):
        """`[N,block*block*C,h,w]` to `[N,C,block*h,block*w]`; channel order is (row, column, C)."""

    def space_to_depth(self, x, block):
        """Inverse of `depth_to_space`."""

    def window_tokens(self, x, channels, size):
        """`[N,C,h,w]` to tokens `[N*h/size*w/size, size*size, C]`; h and w must be multiples of `size`."""

    def window_image(self, tokens, channels, size, like):
        """Inverse of `window_tokens` for a map of the shape of `like`."""

    def video(self, x, channels, clip=None):
        """`[B*F,C,h,w]` to `[B,C,F,h*w]`; B is 1 without `clip`."""

    def frames(self, x, like):
        """Inverse of `video` for a map of the shape of `like`."""

    def frame_tokens(self, x, channels, clip):
        """`[B*F,C,h,w]` to `[B*h*w,F,C]`."""

    def frame_image(self, tokens, channels, like, clip):
        """Inverse of `frame_tokens` for a map of the shape of `like`."""

    def video_tokens(self, x, channels):
        """`[B,C,F,hw]` to `[B*hw,F,C]`."""

    def token_video(self, tokens, channels, like):
        """Inverse of `video_tokens` for a video with B and F of `like`."""

    def tokens(self, x):
        """`[N,C,h,w]` to `[N,h*w,C]`."""

    def image(self, tokens, channels, like):
        """Inverse of `tokens` for a map with h and w of `like`."""

    def join_frames(self, tokens, channels, clip):
        """`[B*F,T,C]` to `[B,F*T,C]`."""

    def split_frames(self, tokens, like):
        """Inverse of `join_frames` for tokens of the shape of `like`."""

    def repeat_frames(self, e, clip):
        """`[B,C]` to `[B*F,C]`, with F of `clip`."""

    def pixel(self, e):
        """`[N,C]` to `[N,C,1,1]`."""

    def upsample(self, x):
        """`[N,C,h,w]` to `[N,C,2h,2w]`, nearest."""

    def crop_rows(self, x):
        """`[N,C,h,w]` without its first and last row."""

    def split(self, x, parts):
        """Equal parts of the last axis."""
        return [None] * parts

    def channels(self, x, start, end):
        """Channels `start..end` of `[N,C,h,w]`."""

    def scale(self, x, factor):
        """Product with a number, in 32 bits."""

    def weigh(self, x, name):
        """Product with the logistic function of the parameter `name`, `[1]`."""
        self._declare(name, Parameter((1,), constant=0.5))

    def deviation(self, x):
        """Standard deviation of a log-variance, which is clamped to [-30,20], in 32 bits."""

    def lookup(self, tokens, name, rows, width):
        """Rows of the parameter `name` `[rows,width]`: tokens `[B,T]` to `[B,T,width]`."""
        self._declare(name, Parameter((rows, width), gain=0.02 * width**0.5))

    def add_rows(self, x, name, rows, width):
        """Sum of `[B,rows,width]` and the parameter `name` `[rows,width]`."""
        self._declare(name, Parameter((rows, width), gain=0.01 * width**0.5))

    def recompute(self, function, *values):
        """`function(*values)`; where memory is short, its inner results are computed again for the gradient."""
        return function(*values)

    def tap(self, name, x):
        """`x`, which a reference knows as `name`."""
        return x

    def attention(self, q, k, v, heads, causal=False):
        """Scaled dot-product attention of tokens `[N,T,C]` over `heads`, as one fused operation; `causal` hides later
        tokens."""
