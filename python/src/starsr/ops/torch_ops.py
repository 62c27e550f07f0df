# SPDX-License-Identifier: MPL-2.0
"""The back-end that computes with PyTorch."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from starsr.ops.declare import Parameter
from starsr.ops.primitives import Padding, geglu


def constant(values: np.ndarray, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor of the array's values without waiting for the device."""
    return torch.as_tensor(values, dtype=dtype).to(device, non_blocking=True)


class TorchOps:
    """The primitive operations on tensors; `Ops` describes each one.

    `parameters` maps names to tensors. If `taps` is a dict, every tensor that passes a `tap` is
    kept in it. `dtype` is the precision of the network unless its parameters have 32 bits, and
    `checkpointing` trades time for memory when the gradient is computed.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        taps: dict[str, Tensor] | None = None,
        dtype: torch.dtype | None = None,
        checkpointing: bool = False,
    ) -> None:
        self.parameters = parameters
        self.taps = taps
        self.dtype = dtype
        self.checkpointing = checkpointing

    def conv(
        self,
        x: Tensor,
        name: str,
        cin: int,
        cout: int,
        kernel: int = 3,
        stride: int = 1,
        bias: bool = True,
        gain: float = 1.0,
        padding: Padding | None = None,
    ) -> Tensor:
        if padding is not None:
            top, left, bottom, right = padding
            x = F.pad(x, (left, right, top, bottom))
        weight, side = self.parameters[f"{name}.weight"], kernel // 2 if padding is None else 0
        return F.conv2d(x, weight, self.parameters[f"{name}.bias"] if bias else None, stride, side)

    def video_conv(self, x: Tensor, name: str, cin: int, cout: int) -> Tensor:
        weight, bias = self.parameters[f"{name}.weight"], self.parameters[f"{name}.bias"]
        return F.conv2d(x, weight[..., 0], bias, padding=(1, 0))

    def temporal_conv(
        self, x: Tensor, name: str, channels: int, clip: Tensor, gain: float = 1.0
    ) -> Tensor:
        frames = x.unflatten(0, (clip.shape[0], clip.shape[2]))
        frames = F.pad(frames, (0, 0, 0, 0, 0, 0, 1, 1))
        three = torch.cat([frames[:, :-2], frames[:, 1:-1], frames[:, 2:]], 2).flatten(0, 1)
        return F.conv2d(three, self.parameters[f"{name}.weight"], self.parameters[f"{name}.bias"])

    def fixed_conv(self, x: Tensor, name: str, weight: np.ndarray) -> Tensor:
        return F.conv2d(x, constant(weight, x.dtype, x.device))

    def linear(
        self,
        x: Tensor,
        name: str,
        cin: int,
        cout: int,
        bias: bool = True,
        gain: float = 1.0,
        unit_axes: int = 0,
        joint: str = ".",
        precise: bool = False,
    ) -> Tensor:
        weight = self.parameters[f"{name}{joint}weight"].reshape(cout, cin)
        offset = self.parameters[f"{name}{joint}bias"] if bias else None
        if precise:
            weight, offset = weight.float(), None if offset is None else offset.float()
        return F.linear(x, weight, offset)

    def layer_norm(self, x: Tensor, name: str, channels: int) -> Tensor:
        weight, bias = (self.parameters[f"{name}.{part}"].float() for part in ("weight", "bias"))
        return F.layer_norm(x.float(), (channels,), weight, bias).to(x.dtype)

    def group_norm(
        self, x: Tensor, name: str, channels: int, groups: int = 32, eps: float = 1e-5
    ) -> Tensor:
        weight, bias = (self.parameters[f"{name}.{part}"].float() for part in ("weight", "bias"))
        return F.group_norm(x.float(), groups, weight, bias, eps).to(x.dtype)

    def precise(self, x: Tensor) -> Tensor:
        return x.float()

    def compute(self, x: Tensor) -> Tensor:
        return x if self.dtype is None else x.to(self.dtype)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def sub(self, a: Tensor, b: Tensor) -> Tensor:
        return a - b

    def mul(self, a: Tensor, b: Tensor) -> Tensor:
        return a * b

    def div(self, a: Tensor, b: Tensor) -> Tensor:
        return a / b

    def leaky_relu(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, 0.1)

    def silu(self, x: Tensor) -> Tensor:
        return F.silu(x)

    def sigmoid(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)

    def gelu(self, x: Tensor) -> Tensor:
        return F.gelu(x)

    def table(self, t: Tensor, name: str, values: np.ndarray) -> Tensor:
        return constant(values, torch.float32, t.device)[t].reshape(-1, 1, 1, 1, 1)

    def sinusoid(self, t: Tensor, channels: int) -> Tensor:
        half = channels // 2
        frequencies = torch.exp(-math.log(10000.0) / half * torch.arange(half, device=t.device))
        angles = t.to(torch.float32)[:, None] * frequencies
        return torch.cat([angles.cos(), angles.sin()], 1)

    def fold_frames(self, x: Tensor, channels: int) -> Tensor:
        return x.transpose(1, 2).flatten(0, 1)

    def unfold_frames(self, x: Tensor, channels: int, clip: Tensor) -> Tensor:
        return x.unflatten(0, (clip.shape[0], clip.shape[2])).transpose(1, 2)

    def per_frame(self, e: Tensor, clip: Tensor) -> Tensor:
        return self.pixel(self.repeat_frames(e, clip))

    def concat(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a, b], 1)

    def pool_channels(self, x: Tensor, axis: int, channels: int) -> Tensor:
        return torch.cat([x.amax(axis, keepdim=True), x.mean(axis, keepdim=True)], axis)

    def clip(self, x: Tensor, name: str, bound: np.ndarray) -> Tensor:
        limit = constant(bound, x.dtype, x.device)
        return x.clamp(-limit, limit)

    def depth_to_space(self, x: Tensor, block: int) -> Tensor:
        n, c, h, w = x.shape
        x = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
        return x.reshape(n, c // block**2, h * block, w * block)

    def space_to_depth(self, x: Tensor, block: int) -> Tensor:
        n, c, h, w = x.shape
        x = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
        return x.reshape(n, c * block**2, h // block, w // block)

    def window_tokens(self, x: Tensor, channels: int, size: int) -> Tensor:
        n, c, h, w = x.shape
        x = x.reshape(n, c, h // size, size, w // size, size).permute(0, 2, 4, 3, 5, 1)
        return x.reshape(-1, size * size, c)

    def window_image(self, tokens: Tensor, channels: int, size: int, like: Tensor) -> Tensor:
        n, c, h, w = like.shape
        x = tokens.reshape(n, h // size, w // size, size, size, c).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(n, c, h, w)

    def video(self, x: Tensor, channels: int, clip: Tensor | None = None) -> Tensor:
        b, f = (clip.shape[0], clip.shape[2]) if clip is not None else (1, len(x))
        return x.reshape(b, f, channels, -1).transpose(1, 2)

    def frames(self, x: Tensor, like: Tensor) -> Tensor:
        return x.transpose(1, 2).reshape(like.shape)

    def frame_tokens(self, x: Tensor, channels: int, clip: Tensor) -> Tensor:
        b, f = clip.shape[0], clip.shape[2]
        return x.reshape(b, f, channels, -1).permute(0, 3, 1, 2).reshape(-1, f, channels)

    def frame_image(self, tokens: Tensor, channels: int, like: Tensor, clip: Tensor) -> Tensor:
        b, f = clip.shape[0], clip.shape[2]
        return tokens.reshape(b, -1, f, channels).permute(0, 2, 3, 1).reshape(like.shape)

    def video_tokens(self, x: Tensor, channels: int, group: int) -> Tensor:
        return x.permute(0, 3, 2, 1).flatten(0, 1)

    def token_video(self, tokens: Tensor, channels: int, like: Tensor, group: int) -> Tensor:
        return tokens.unflatten(0, (like.shape[0], -1)).permute(0, 3, 2, 1)

    def tokens(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)

    def image(self, tokens: Tensor, channels: int, like: Tensor) -> Tensor:
        return tokens.transpose(1, 2).unflatten(2, like.shape[2:])

    def join_frames(self, tokens: Tensor, channels: int, clip: Tensor) -> Tensor:
        return tokens.reshape(clip.shape[0], -1, channels)

    def split_frames(self, tokens: Tensor, like: Tensor) -> Tensor:
        return tokens.reshape(like.shape)

    def repeat_frames(self, e: Tensor, clip: Tensor) -> Tensor:
        return e.repeat_interleave(clip.shape[2], 0)

    def repeat_clip(self, clip: Tensor, like: Tensor) -> Tensor:
        return clip.expand(len(like), *clip.shape[1:])

    def repeat_batch(self, x: Tensor, axes: int, clip: Tensor, like: Tensor) -> Tensor:
        if len(clip) == len(like):
            return x
        return x.expand(len(like), *x.shape).flatten(0, 1)

    def pixel(self, e: Tensor) -> Tensor:
        return e[:, :, None, None]

    def upsample(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")

    def crop_rows(self, x: Tensor) -> Tensor:
        return x[:, :, 1:-1]

    def split(self, x: Tensor, parts: int) -> Sequence[Tensor]:
        return x.chunk(parts, -1)

    def channels(self, x: Tensor, start: int, end: int) -> Tensor:
        return x[:, start:end]

    def scale(self, x: Tensor, factor: float) -> Tensor:
        return x * factor

    def weigh(self, x: Tensor, name: str) -> Tensor:
        return x * torch.sigmoid(self.parameters[name])

    def std(self, x: Tensor) -> Tensor:
        return torch.exp(0.5 * x.clamp(-30.0, 20.0))

    def lookup(self, tokens: Tensor, name: str, rows: int, width: int) -> Tensor:
        return self.parameters[name][tokens]

    def add_rows(self, x: Tensor, name: str, rows: int, width: int) -> Tensor:
        return x + self.parameters[name]

    def recompute(self, function: Callable[..., Tensor], *values: Tensor) -> Tensor:
        if not self.checkpointing:
            return function(*values)
        result: Tensor = checkpoint(function, *values, use_reentrant=False)
        return result

    def tap(self, name: str, x: Tensor) -> Tensor:
        if self.taps is not None:
            self.taps[name] = x
        return x

    def frame_attention(
        self, q: Tensor, k: Tensor, v: Tensor, heads: int, channels: int, group: int
    ) -> Tensor:
        return self.attention(q, k, v, heads)

    def geglu(self, x: Tensor, first: str, second: str, channels: int) -> Tensor:
        return geglu(self, x, first, second, channels)

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool = False
    ) -> Tensor:
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return attended.transpose(1, 2).flatten(2)


def parameters_of(declared: Mapping[str, Parameter]) -> dict[str, Tensor]:
    """Return freshly initialised tensors for declared parameters."""
    tensors = {}
    for name, parameter in declared.items():
        tensor = torch.zeros(parameter.shape)
        if parameter.constant is not None:
            tensor.fill_(parameter.constant)
        elif parameter.gain:
            fan_in = math.prod(parameter.shape[1:])
            tensor.normal_(0.0, parameter.gain / math.sqrt(fan_in))
        tensors[name] = tensor
    return tensors
