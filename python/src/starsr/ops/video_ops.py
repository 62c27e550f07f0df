# SPDX-License-Identifier: MPL-2.0
"""The back-ends of `VideoOps` that list parameters and that compute with PyTorch."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from starsr.ops.declare import Declare, Parameter
from starsr.ops.primitives import Padding
from starsr.ops.torch_ops import TorchOps, constant
from starsr.ops.video_primitives import CAUSAL


class VideoDeclare(Declare):
    """Collects the parameters of a network over `VideoOps`; values are `None`."""

    def precise_norm(self, x: None, name: str, channels: int, eps: float) -> None:
        self._norm(name, channels)

    def head_norm(self, x: None, name: str, heads: int, head_dim: int, eps: float) -> None:
        self._norm(name, head_dim)

    def volume_norm(self, x: None, name: str, channels: int, groups: int, eps: float) -> None:
        self._norm(name, channels)

    def rms_norm(self, x: None, name: str, channels: int, eps: float) -> None:
        self._declare(f"{name}.weight", Parameter((channels,), constant=1.0))

    def relative_attention(
        self, q: None, k: None, v: None, heads: int, name: str, buckets: np.ndarray, count: int
    ) -> None:
        self._declare(name, Parameter((count, heads)))

    def wide_linear(self, x: None, name: str, cin: int, cout: int) -> None:
        self.linear(x, name, cin, cout, bias=False)

    def volume_conv(
        self,
        x: None,
        name: str,
        cin: int,
        cout: int,
        kernel: tuple[int, ...],
        stride: int = 1,
        padding: Padding = (0, 0, 0, 0),
    ) -> None:
        self._declare(f"{name}.weight", Parameter((cout, cin, *kernel)))
        self._declare(f"{name}.bias", Parameter((cout,), constant=0.0))

    def split_at(self, x: None, count: int) -> tuple[None, None]:
        return None, None

    def rows(self, x: None, parts: int) -> Sequence[None]:
        return [None] * parts

    # The other operations have no parameters.

    def frame_maps(self, x: None) -> None: ...
    def token_maps(self, tokens: None, channels: int, like: None, patch: int) -> None: ...
    def map_tokens(self, maps: None, channels: int, like: None) -> None: ...
    def unpatch(self, tokens: None, channels: int, like: None, patch: int) -> None: ...
    def as_rows(self, x: None, width: int) -> None: ...
    def join(self, values: Sequence[None]) -> None: ...
    def add_constant(self, x: None, name: str, values: np.ndarray) -> None: ...
    def lead_rows(self, table: None, value: float, count: int, width: int) -> None: ...
    def rotate(self, x: None, cos: None, sin: None, heads: int) -> None: ...
    def gelu_tanh(self, x: None) -> None: ...
    def volume(self, x: None) -> None: ...
    def volume_frames(self, x: None) -> None: ...
    def lead(self, x: None, cache: None) -> None: ...
    def trail(self, x: None) -> None: ...
    def halve_frames(self, x: None) -> None: ...
    def enlarge(self, x: None, frames: bool) -> None: ...


class VideoTorchOps(TorchOps):
    """`VideoOps` on tensors; `TorchOps` describes the arguments."""

    def frame_maps(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1)

    def token_maps(self, tokens: Tensor, channels: int, like: Tensor, patch: int) -> Tensor:
        b, t, _, h, w = like.shape
        maps = tokens.reshape(b * t, h // patch, w // patch, channels)
        return maps.permute(0, 3, 1, 2)

    def map_tokens(self, maps: Tensor, channels: int, like: Tensor) -> Tensor:
        return maps.permute(0, 2, 3, 1).reshape(like.shape[0], -1, channels)

    def unpatch(self, tokens: Tensor, channels: int, like: Tensor, patch: int) -> Tensor:
        b, t, c, h, w = like.shape
        x = tokens.reshape(b * t, h // patch, w // patch, c, patch, patch)
        return x.permute(0, 3, 1, 4, 2, 5).reshape(like.shape)

    def split_at(self, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
        return x[:, :count], x[:, count:]

    def rows(self, x: Tensor, parts: int) -> Sequence[Tensor]:
        return x.chunk(parts, 1)

    def as_rows(self, x: Tensor, width: int) -> Tensor:
        return x.unflatten(1, (-1, width))

    def join(self, values: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(values), 1)

    def add_constant(self, x: Tensor, name: str, values: np.ndarray) -> Tensor:
        return x + constant(values, torch.float32, x.device)

    def precise_norm(self, x: Tensor, name: str, channels: int, eps: float) -> Tensor:
        weight, bias = (self.parameters[f"{name}.{part}"].float() for part in ("weight", "bias"))
        return F.layer_norm(x.float(), (channels,), weight, bias, eps)

    def head_norm(self, x: Tensor, name: str, heads: int, head_dim: int, eps: float) -> Tensor:
        return self.precise_norm(x.unflatten(-1, (heads, head_dim)), name, head_dim, eps).flatten(2)

    def lead_rows(self, table: Tensor, value: float, count: int, width: int) -> Tensor:
        return torch.cat([table.new_full((count, width), value), table])

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
        first, second = x.unflatten(-1, (heads, -1, 2)).unbind(-1)
        c, s = cos[:, None], sin[:, None]
        return torch.stack([first * c - second * s, second * c + first * s], -1).flatten(2)

    def gelu_tanh(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")

    def rms_norm(self, x: Tensor, name: str, channels: int, eps: float) -> Tensor:
        return F.rms_norm(x.float(), (channels,), self.parameters[f"{name}.weight"].float(), eps)

    def relative_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        name: str,
        buckets: np.ndarray,
        count: int,
    ) -> Tensor:
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        places = torch.from_numpy(buckets).to(q.device)
        added = self.parameters[name][places].permute(2, 0, 1)[None].to(q.dtype)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=added, scale=1.0)
        return attended.transpose(1, 2).flatten(2)

    def wide_linear(self, x: Tensor, name: str, cin: int, cout: int) -> Tensor:
        return self.precise(self.linear(self.compute(x), name, cin, cout, bias=False))

    def volume(self, x: Tensor) -> Tensor:
        return x.transpose(0, 1)[None]

    def volume_frames(self, x: Tensor) -> Tensor:
        return x[0].transpose(0, 1)

    def volume_conv(
        self,
        x: Tensor,
        name: str,
        cin: int,
        cout: int,
        kernel: tuple[int, ...],
        stride: int = 1,
        padding: Padding = (0, 0, 0, 0),
    ) -> Tensor:
        top, left, bottom, right = padding
        weight, bias = self.parameters[f"{name}.weight"], self.parameters[f"{name}.bias"]
        if len(kernel) == 2:
            weight = weight[:, :, None]
        x = F.pad(x, (left, right, top, bottom))
        return F.conv3d(x, weight, bias, (1, stride, stride))

    def volume_norm(self, x: Tensor, name: str, channels: int, groups: int, eps: float) -> Tensor:
        return self.group_norm(x, name, channels, groups, eps)

    def lead(self, x: Tensor, cache: Tensor | None) -> Tensor:
        if cache is None or not cache.shape[2]:
            cache = x[:, :, :1].expand(-1, -1, CAUSAL, -1, -1)
        return torch.cat([cache, x], 2)

    def trail(self, x: Tensor) -> Tensor:
        return x[:, :, -CAUSAL:]

    def halve_frames(self, x: Tensor) -> Tensor:
        pairs = torch.cat([x[:, :, :1], x], 2)
        return (pairs[:, :, ::2] + pairs[:, :, 1::2]) * 0.5

    def enlarge(self, x: Tensor, frames: bool) -> Tensor:
        if frames:
            x = x.repeat_interleave(2, 2)[:, :, x.shape[2] % 2 :]
        return x.repeat_interleave(2, 3).repeat_interleave(2, 4)
