# SPDX-License-Identifier: MPL-2.0
"""nano: the roles of a STAR bundle in a few megabytes.

A fixed 4x4 DCT of each YCbCr channel is the autoencoder, so the latent grid is the low-resolution
grid of a x4 upscale. ControlNet and denoiser are U-Nets of three scales with LIEM before spatial
and temporal attention (paper, section 3.2). The residual blocks have no normalisation that pools
over pixels, so a result does not depend on the size of the canvas. If the network outputs zero,
the result is the hint itself: the denoiser returns `v` of `x0 = hint + output`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from starsr.data.color import YCBCR
from starsr.models.liem import check_position, gated_attention
from starsr.models.schedule import alphas_sigmas
from starsr.ops import Declare, Parameter
from starsr.ops.primitives import Ops, V
from starsr.ops.torch_ops import TorchOps, parameters_of

#: Pixels per latent in each direction, and latent channels (4x4 coefficients of Y, Cb and Cr).
BLOCK = 4
CHANNELS = 3 * BLOCK * BLOCK
#: Number of tensors from ControlNet to denoiser: one per scale, and the hint itself.
CONTROLS = 4
#: Coring thresholds of the residual, in standard deviations of a coefficient: for frequencies, and
#: for the mean of a block.
CORE, LEVEL_CORE = 0.04, 0.01
#: Side of an attention window in tokens of the coarsest scale. The sides of a canvas are multiples
#: of `WINDOW * 4` latents.
WINDOW = 8


@dataclass(frozen=True)
class NanoConfig:
    """Sizes of the networks.

    `widths` are the channels of the three scales, `time` those of the timestep embedding and
    `head` those of an attention head. LIEM gates at `liem_position`, one of `liem.POSITIONS`;
    `spatial_liem` and `temporal_liem` switch it on for each kind of attention.
    """

    widths: tuple[int, int, int] = (64, 64, 96)
    time: int = 64
    head: int = 32
    liem_position: str = "i"
    spatial_liem: bool = True
    temporal_liem: bool = True

    def __post_init__(self) -> None:
        check_position(self.liem_position)


NANO = NanoConfig()


def dct_basis() -> np.ndarray:
    """Return the orthonormal map `[48,48]` from 4x4 RGB blocks to DCT coefficients of YCbCr.

    A block is ordered (row, column, RGB), its coefficients (Y, Cb, Cr) by (vertical, horizontal)
    frequency. The conversion is BT.601, full range, without offsets.
    """
    n = np.arange(BLOCK)
    dct = np.sqrt(2.0 / BLOCK) * np.cos(np.pi * (2 * n[None, :] + 1) * n[:, None] / (2 * BLOCK))
    dct[0] /= np.sqrt(2.0)
    return np.einsum("cr,uy,vx->cuvyxr", YCBCR, dct, dct).reshape(CHANNELS, CHANNELS)


def encode(ops: Ops[V], pixels: V, std: np.ndarray) -> V:
    """Encode pixels `[F,3,4h,4w]` in [-1,1] as latents `[F,48,h,w]`.

    Each coefficient is divided by its standard deviation in `std` `[48]`.
    """
    weight = (dct_basis() / std[:, None])[:, :, None, None]
    return ops.fixed_conv(ops.space_to_depth(pixels, BLOCK), "dct", weight)


def decode(ops: Ops[V], latents: V, std: np.ndarray) -> V:
    """Decode latents `[F,48,h,w]` to pixels `[F,3,4h,4w]`, the exact inverse of `encode`."""
    weight = np.linalg.inv(dct_basis() / std[:, None])[:, :, None, None]
    return ops.depth_to_space(ops.fixed_conv(latents, "inverse_dct", weight), BLOCK)


def time_embedding(ops: Ops[V], name: str, t: V, config: NanoConfig) -> V:
    """Embed timesteps `[B]` as `[B,time]`."""
    e = ops.linear(ops.sinusoid(t, config.time), f"{name}.0", config.time, config.time)
    return ops.silu(ops.linear(ops.silu(e), f"{name}.2", config.time, config.time))


def res_block(
    ops: Ops[V], name: str, x: V, channels: int, between: Callable[[V], V] = lambda h: h
) -> V:
    """Apply a residual block of two 3x3 convolutions, with `between` in the middle."""
    h = between(ops.leaky_relu(ops.conv(x, f"{name}.in_layers", channels, channels)))
    return ops.add(x, ops.conv(h, f"{name}.out_layers", channels, channels, gain=0.1))


def with_time(ops: Ops[V], name: str, x: V, e: V, clip: V, config: NanoConfig, channels: int) -> V:
    """Add a bias to each channel of `x` that depends on the timestep embedding `e`."""
    bias = ops.linear(e, f"{name}.emb_layers", config.time, channels, gain=0.1)
    return ops.add(x, ops.per_frame(bias, clip))


def video_block(
    ops: Ops[V], name: str, x: V, e: V, clip: V, config: NanoConfig, channels: int
) -> V:
    """Apply a residual block that depends on the timestep and mixes neighbouring frames."""

    def mix(h: V) -> V:
        return ops.add(h, ops.temporal_conv(h, f"{name}.temporal_conv", channels, clip, gain=0.1))

    return res_block(ops, name, with_time(ops, name, x, e, clip, config, channels), channels, mix)


def spatial_liem(ops: Ops[V], name: str, x: V, channels: int) -> V:
    """Gate each pixel by the maximum and the mean of its channels through a 7x7 convolution."""
    pooled = ops.pool_channels(x, 1, channels)
    gate = ops.conv(pooled, f"{name}.conv1", 2, 1, 7, bias=False)
    return ops.mul(x, ops.sigmoid(gate))


def temporal_liem(ops: Ops[V], name: str, tokens: V, channels: int) -> V:
    """Gate each token by the maximum and the mean of its channels."""
    pooled = ops.pool_channels(tokens, 2, channels)
    gate = ops.linear(pooled, f"{name}.linear", 2, 1, bias=False)
    return ops.mul(tokens, ops.sigmoid(gate))


def self_attention(ops: Ops[V], name: str, tokens: V, channels: int, config: NanoConfig) -> V:
    """Apply self-attention to tokens `[N,T,C]`."""
    q, k, v = (ops.linear(tokens, f"{name}.to_{p}", channels, channels, bias=False) for p in "qkv")
    attended = ops.attention(q, k, v, channels // config.head)
    return ops.linear(attended, f"{name}.to_out", channels, channels, gain=0.1)


def transformer(ops: Ops[V], name: str, x: V, clip: V, config: NanoConfig, channels: int) -> V:
    """Apply spatial attention within windows, temporal attention over the clip, a feed-forward."""

    def in_space(features: V) -> V:
        tokens = ops.window_tokens(features, channels, WINDOW)
        normed = ops.layer_norm(tokens, f"{name}.spatial.norm1", channels)
        attended = self_attention(ops, f"{name}.spatial.attn1", normed, channels, config)
        return ops.window_image(attended, channels, WINDOW, x)

    def in_time(tokens: V) -> V:
        normed = ops.layer_norm(tokens, f"{name}.temporal.norm1", channels)
        return self_attention(ops, f"{name}.temporal.attn1", normed, channels, config)

    def space_gate(features: V) -> V:
        if not config.spatial_liem:
            return features
        return spatial_liem(ops, f"{name}.spatial.local1", features, channels)

    def time_gate(tokens: V) -> V:
        if not config.temporal_liem:
            return tokens
        return temporal_liem(ops, f"{name}.temporal.local1", tokens, channels)

    features = gated_attention(ops, x, config.liem_position, space_gate, in_space)
    tokens = ops.frame_tokens(features, channels, clip)
    tokens = gated_attention(ops, tokens, config.liem_position, time_gate, in_time)
    normed = ops.layer_norm(tokens, f"{name}.temporal.norm3", channels)
    hidden = ops.gelu(ops.linear(normed, f"{name}.temporal.ff.0", channels, 2 * channels))
    out = ops.linear(hidden, f"{name}.temporal.ff.2", 2 * channels, channels, gain=0.1)
    return ops.frame_image(ops.add(tokens, out), channels, features, clip)


def downsample(ops: Ops[V], name: str, x: V, cin: int, cout: int) -> V:
    """Halve the size: `[N,cin,h,w]` to `[N,cout,h/2,w/2]`."""
    return ops.conv(x, name, cin, cout, 3, stride=2)


def upsample(ops: Ops[V], name: str, x: V, cin: int, cout: int) -> V:
    """Double the size: `[N,cin,h,w]` to `[N,cout,2h,2w]`."""
    return ops.depth_to_space(ops.conv(x, name, cin, 4 * cout, 1), 2)


def cored(ops: Ops[V], latents: V) -> V:
    """Shrink the latents `[N,48,h,w]` by nine tenths of what is below the threshold.

    The threshold is `CORE`, or `LEVEL_CORE` for the mean of a block. In flat areas such small
    values would show as a grid of blocks and a drift of levels.
    """
    bound = np.full((CHANNELS, 1, 1), CORE)
    bound[:: BLOCK * BLOCK] = LEVEL_CORE
    return ops.sub(latents, ops.scale(ops.clip(latents, "core", bound), 0.9))


def informative(ops: Ops[V], x: V, t: V) -> V:
    """Scale noisy latents by `alpha(t)` and fold their frames.

    Their influence fades with the signal in them, and pure noise has none.
    """
    return ops.fold_frames(ops.mul(ops.table(t, "alphas", alphas_sigmas()[0]), x), CHANNELS)


def controlnet(ops: Ops[V], x: V, t: V, hint: V, config: NanoConfig = NANO) -> list[V]:
    """Compute the controls for `denoiser`.

    Takes noisy latents `x` and low-quality latents `hint`, both `[B,48,F,h,w]`, and timesteps `t`
    `[B]`. Returns one `[B*F,C,h/s,w/s]` per scale, and the hint as `[B*F,48,h,w]`.
    """
    c0, c1, c2 = config.widths
    e = time_embedding(ops, "control.time_embed", t, config)
    guide = ops.fold_frames(hint, CHANNELS)
    h = ops.conv(guide, "control.input_hint_block", CHANNELS, c0)
    h = ops.add(h, ops.conv(informative(ops, x, t), "control.input_blocks.0", CHANNELS, c0, 1))
    h = with_time(ops, "control.input_blocks.0", h, e, x, config, c0)
    for block in range(2):
        h = res_block(ops, f"control.input_blocks.1.{block}", h, c0)
    controls = [ops.conv(h, "control.zero_convs.0", c0, c0, 1)]
    for scale, (cin, cout) in enumerate([(c0, c1), (c1, c2)], 1):
        name = f"control.input_blocks.{scale + 1}"
        h = downsample(ops, f"{name}.down", h, cin, cout)
        h = video_block(ops, name, h, e, x, config, cout)
        if scale == 2:
            h = transformer(ops, "control.middle_block", h, x, config, cout)
        controls.append(ops.conv(h, f"control.zero_convs.{scale}", cout, cout, 1))
    return [*controls, guide]


def denoiser(ops: Ops[V], x: V, t: V, controls: Sequence[V], config: NanoConfig = NANO) -> V:
    """Predict the velocity `v` `[B,48,F,h,w]` of noisy latents `x` at timesteps `t` `[B]`."""
    c0, c1, c2 = config.widths
    e = time_embedding(ops, "time_embed", t, config)
    first = ops.conv(informative(ops, x, t), "input_blocks.0", CHANNELS, c0, 1)
    skip0 = with_time(ops, "input_blocks.0", ops.add(first, controls[0]), e, x, config, c0)
    skip1 = downsample(ops, "input_blocks.1.down", skip0, c0, c1)
    skip1 = ops.add(video_block(ops, "input_blocks.1", skip1, e, x, config, c1), controls[1])
    h = downsample(ops, "input_blocks.2.down", skip1, c1, c2)
    h = ops.add(video_block(ops, "input_blocks.2", h, e, x, config, c2), controls[2])
    h = transformer(ops, "middle_block.0", h, x, config, c2)
    h = ops.add(upsample(ops, "output_blocks.0.up", h, c2, c1), skip1)
    h = video_block(ops, "output_blocks.0", h, e, x, config, c1)
    h = ops.add(upsample(ops, "output_blocks.1.up", h, c1, c0), skip0)
    for block in range(2):
        h = res_block(ops, f"output_blocks.1.{block}", h, c0)
    residual = cored(ops, ops.conv(h, "out", c0, CHANNELS, gain=0.0))

    alphas, sigmas = alphas_sigmas()
    clean = ops.unfold_frames(ops.add(controls[3], residual), CHANNELS, x)
    noisy = ops.mul(ops.table(t, "alphas", alphas), x)
    return ops.div(ops.sub(noisy, clean), ops.table(t, "sigmas", sigmas))


@cache
def declared_parameters(config: NanoConfig = NANO) -> dict[str, Parameter]:
    """Return the parameters of both networks by name; the ControlNet's begin with `control.`."""
    ops = Declare()
    controlnet(ops, None, None, None, config)
    denoiser(ops, None, None, [None] * CONTROLS, config)
    return ops.parameters


class Nano(nn.Module):
    """Both networks as one PyTorch module.

    Names in the state dict are those of `declared_parameters` with dots as `__`. The buffer
    `deviation` `[48]` holds the standard deviations for `encode` and `decode`.
    """

    deviation: Tensor

    def __init__(self, config: NanoConfig = NANO) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("deviation", torch.ones(CHANNELS))
        parameters = parameters_of(declared_parameters(config))
        self.weights = nn.ParameterDict(
            {name.replace(".", "__"): nn.Parameter(p) for name, p in parameters.items()}
        )

    def named_weights(self) -> dict[str, Tensor]:
        """Return the parameters by their declared names."""
        return {name.replace("__", "."): p for name, p in self.weights.items()}

    def std(self) -> np.ndarray:
        """Return the standard deviations of the coefficients, `[48]` float64."""
        return self.deviation.cpu().double().numpy()

    def forward(self, x: Tensor, t: Tensor, hint: Tensor) -> Tensor:
        """Predict `v` `[B,48,F,h,w]` from noisy latents, timesteps `[B]` and hint latents."""
        ops = TorchOps(self.named_weights())
        return denoiser(ops, x, t, controlnet(ops, x, t, hint, self.config), self.config)
