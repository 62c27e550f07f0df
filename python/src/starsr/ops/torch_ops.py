# SPDX-License-Identifier: MPL-2.0
"""The back-end that computes with PyTorch."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def constant(values, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of a NumPy array's values, without waiting for what the device computes."""
    return torch.as_tensor(values, dtype=dtype).to(device, non_blocking=True)


class TorchOps:
    """Primitive operations on tensors; `parameters` maps names to tensors. Tensors that pass a `tap` are kept in `taps` where
    that is a dict; `dtype` is the precision of the network where its parameters are not in 32 bits; `checkpointing`
    saves memory for the gradient. See `Declare` for the meaning of each operation."""

    def __init__(
        self,
        parameters,
        taps: dict[str, Tensor] | None = None,
        dtype: torch.dtype | None = None,
        checkpointing: bool = False,
    ) -> None:
        self.parameters = parameters
        self.taps = taps
        self.dtype = dtype
        self.checkpointing = checkpointing

    def conv(self, x, name, cin, cout, kernel=3, stride=1, bias=True, gain=1.0, padding=None):
        if padding is not None:
            top, left, bottom, right = padding
            x = F.pad(x, (left, right, top, bottom))
        weight, side = self.parameters[f"{name}.weight"], kernel // 2 if padding is None else 0
        return F.conv2d(x, weight, self.parameters[f"{name}.bias"] if bias else None, stride, side)

    def video_conv(self, x, name, cin, cout):
        return F.conv2d(x, self.parameters[f"{name}.weight"][..., 0], self.parameters[f"{name}.bias"], padding=(1, 0))

    def temporal_conv(self, x, name, channels, clip, gain=1.0):
        frames = F.pad(x.unflatten(0, (clip.shape[0], clip.shape[2])), (0, 0, 0, 0, 0, 0, 1, 1))
        three = torch.cat([frames[:, :-2], frames[:, 1:-1], frames[:, 2:]], 2).flatten(0, 1)
        return F.conv2d(three, self.parameters[f"{name}.weight"], self.parameters[f"{name}.bias"])

    def fixed_conv(self, x, name, weight):
        return F.conv2d(x, constant(weight, x.dtype, x.device))

    def linear(self, x, name, cin, cout, bias=True, gain=1.0, unit_axes=0, joint=".", precise=False):
        weight = self.parameters[f"{name}{joint}weight"].reshape(cout, cin)
        offset = self.parameters[f"{name}{joint}bias"] if bias else None
        if precise:
            weight, offset = weight.float(), offset.float()
        return F.linear(x, weight, offset)

    def layer_norm(self, x, name, channels):
        weight, bias = self.parameters[f"{name}.weight"].float(), self.parameters[f"{name}.bias"].float()
        return F.layer_norm(x.float(), (channels,), weight, bias).to(x.dtype)

    def group_norm(self, x, name, channels, groups=32, eps=1e-5):
        weight, bias = self.parameters[f"{name}.weight"].float(), self.parameters[f"{name}.bias"].float()
        return F.group_norm(x.float(), groups, weight, bias, eps).to(x.dtype)

    def precise(self, x):
        return x.float()

    def compute(self, x):
        return x if self.dtype is None else x.to(self.dtype)

    def add(self, a, b):
        return a + b

    def sub(self, a, b):
        return a - b

    def mul(self, a, b):
        return a * b

    def div(self, a, b):
        return a / b

    def leaky_relu(self, x):
        return F.leaky_relu(x, 0.1)

    def silu(self, x):
        return F.silu(x)

    def sigmoid(self, x):
        return torch.sigmoid(x)

    def gelu(self, x):
        return F.gelu(x)

    def table(self, t, name, values):
        return constant(values, torch.float32, t.device)[t].reshape(-1, 1, 1, 1, 1)

    def sinusoid(self, t, channels):
        half = channels // 2
        frequencies = torch.exp(-math.log(10000.0) / half * torch.arange(half, device=t.device))
        angles = t.to(torch.float32)[:, None] * frequencies
        return torch.cat([angles.cos(), angles.sin()], 1)

    def fold_frames(self, x, channels):
        return x.transpose(1, 2).flatten(0, 1)

    def unfold_frames(self, x, channels, clip):
        return x.unflatten(0, (clip.shape[0], clip.shape[2])).transpose(1, 2)

    def per_frame(self, e, clip):
        return self.pixel(self.repeat_frames(e, clip))

    def concat(self, a, b):
        return torch.cat([a, b], 1)

    def pool_channels(self, x, axis):
        return torch.cat([x.amax(axis, keepdim=True), x.mean(axis, keepdim=True)], axis)

    def clip(self, x, name, bound):
        bound = constant(bound, x.dtype, x.device)
        return x.clamp(-bound, bound)

    def depth_to_space(self, x, block):
        n, c, h, w = x.shape
        x = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
        return x.reshape(n, c // block**2, h * block, w * block)

    def space_to_depth(self, x, block):
        n, c, h, w = x.shape
        x = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
        return x.reshape(n, c * block**2, h // block, w // block)

    def window_tokens(self, x, channels, size):
        n, c, h, w = x.shape
        x = x.reshape(n, c, h // size, size, w // size, size).permute(0, 2, 4, 3, 5, 1)
        return x.reshape(-1, size * size, c)

    def window_image(self, tokens, channels, size, like):
        n, c, h, w = like.shape
        x = tokens.reshape(n, h // size, w // size, size, size, c).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(n, c, h, w)

    def video(self, x, channels, clip=None):
        b, f = (clip.shape[0], clip.shape[2]) if clip is not None else (1, len(x))
        return x.reshape(b, f, channels, -1).transpose(1, 2)

    def frames(self, x, like):
        return x.transpose(1, 2).reshape(like.shape)

    def frame_tokens(self, x, channels, clip):
        b, f = clip.shape[0], clip.shape[2]
        return x.reshape(b, f, channels, -1).permute(0, 3, 1, 2).reshape(-1, f, channels)

    def frame_image(self, tokens, channels, like, clip):
        b, f = clip.shape[0], clip.shape[2]
        return tokens.reshape(b, -1, f, channels).permute(0, 2, 3, 1).reshape(like.shape)

    def video_tokens(self, x, channels):
        return x.permute(0, 3, 2, 1).flatten(0, 1)

    def token_video(self, tokens, channels, like):
        return tokens.unflatten(0, (like.shape[0], -1)).permute(0, 3, 2, 1)

    def tokens(self, x):
        return x.flatten(2).transpose(1, 2)

    def image(self, tokens, channels, like):
        return tokens.transpose(1, 2).unflatten(2, like.shape[2:])

    def join_frames(self, tokens, channels, clip):
        return tokens.reshape(clip.shape[0], -1, channels)

    def split_frames(self, tokens, like):
        return tokens.reshape(like.shape)

    def repeat_frames(self, e, clip):
        return e.repeat_interleave(clip.shape[2], 0)

    def pixel(self, e):
        return e[:, :, None, None]

    def upsample(self, x):
        return F.interpolate(x, scale_factor=2.0, mode="nearest")

    def crop_rows(self, x):
        return x[:, :, 1:-1]

    def split(self, x, parts):
        return x.chunk(parts, -1)

    def channels(self, x, start, end):
        return x[:, start:end]

    def scale(self, x, factor):
        return x * factor

    def weigh(self, x, name):
        return x * torch.sigmoid(self.parameters[name])

    def deviation(self, x):
        return torch.exp(0.5 * x.clamp(-30.0, 20.0))

    def lookup(self, tokens, name, rows, width):
        return self.parameters[name][tokens]

    def add_rows(self, x, name, rows, width):
        return x + self.parameters[name]

    def recompute(self, function, *values):
        return checkpoint(function, *values, use_reentrant=False) if self.checkpointing else function(*values)

    def tap(self, name, x):
        if self.taps is not None:
            self.taps[name] = x
        return x

    def attention(self, q, k, v, heads, causal=False):
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)


def parameters_of(declared) -> dict[str, Tensor]:
    """Freshly initialised tensors for `declared` parameters (name to `Parameter`)."""
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
