# SPDX-License-Identifier: MPL-2.0
"""nano: the roles of a STAR bundle in a few megabytes.

A fixed 4x4 DCT of each YCbCr channel is the autoencoder, so that the latent grid is the low-resolution grid of a x4
upscale. ControlNet and denoiser are U-Nets of three scales with LIEM before spatial and temporal attention (paper
section 3.2). The residual blocks have no normalisation that pools over pixels, so a result does not depend on the size
of the canvas. A zero network output means "the hint itself": the denoiser returns `v` of `x0 = hint + output`.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import nn

from starsr.data.color import YCBCR
from starsr.models.liem import check_position, gated_attention
from starsr.ops import Declare
from starsr.ops.torch_ops import TorchOps, parameters_of
from starsr.models.schedule import alphas_sigmas

#: Pixels per latent in each direction, and latent channels (4x4 coefficients of Y, Cb and Cr).
BLOCK = 4
CHANNELS = 3 * BLOCK * BLOCK
#: Number of tensors from ControlNet to denoiser: one per scale, and the hint itself.
CONTROLS = 4
#: What the denoiser adds is cored up to so many deviations of a coefficient: those of frequencies, and the mean of a block.
CORE, LEVEL_CORE = 0.04, 0.01
#: Side of an attention window in tokens of the coarsest scale; canvases are multiples of `WINDOW * 4` latents.
WINDOW = 8


@dataclass(frozen=True)
class NanoConfig:
    """Sizes of the networks: channels of the three scales, of the time embedding, and of an attention head; where LIEM gates
    (`liem.POSITIONS`), and whether it does so for spatial and temporal attention."""

    widths: tuple[int, int, int] = (64, 64, 96)
    time: int = 64
    head: int = 32
    liem_position: str = "i"
    spatial_liem: bool = True
    temporal_liem: bool = True

    def __post_init__(self) -> None:
        check_position(self.liem_position)


def dct_basis() -> np.ndarray:
    """Orthonormal map `[48,48]` from a 4x4 RGB block, ordered (row, column, RGB), to DCT coefficients of YCbCr
    (BT.601, full range, without offsets), ordered (Y, Cb, Cr) by (vertical, horizontal) frequency."""
    n = np.arange(BLOCK)
    dct = np.sqrt(2.0 / BLOCK) * np.cos(np.pi * (2 * n[None, :] + 1) * n[:, None] / (2 * BLOCK))
    dct[0] /= np.sqrt(2.0)
    return np.einsum("cr,uy,vx->cuvyxr", YCBCR, dct, dct).reshape(CHANNELS, CHANNELS)


def encode(ops, pixels, deviation):
    """Latents `[F,48,h,w]` of pixels `[F,3,4h,4w]` in [-1,1]; `deviation` `[48]` scales each coefficient."""
    weight = (dct_basis() / deviation[:, None])[:, :, None, None]
    return ops.fixed_conv(ops.space_to_depth(pixels, BLOCK), "dct", weight)


def decode(ops, latents, deviation):
    """Pixels `[F,3,4h,4w]` of latents `[F,48,h,w]`; the exact inverse of `encode`."""
    weight = np.linalg.inv(dct_basis() / deviation[:, None])[:, :, None, None]
    return ops.depth_to_space(ops.fixed_conv(latents, "inverse_dct", weight), BLOCK)


def time_embedding(ops, name, t, config):
    e = ops.linear(ops.sinusoid(t, config.time), f"{name}.0", config.time, config.time)
    return ops.silu(ops.linear(ops.silu(e), f"{name}.2", config.time, config.time))


def res_block(ops, name, x, channels, between=lambda h: h):
    """Residual block of two 3x3 convolutions; `between` is applied in between."""
    h = between(ops.leaky_relu(ops.conv(x, f"{name}.in_layers", channels, channels)))
    return ops.add(x, ops.conv(h, f"{name}.out_layers", channels, channels, gain=0.1))


def with_time(ops, name, x, e, clip, config, channels):
    """`x` with a bias for each channel that depends on the timestep."""
    return ops.add(x, ops.per_frame(ops.linear(e, f"{name}.emb_layers", config.time, channels, gain=0.1), clip))


def video_block(ops, name, x, e, clip, config, channels):
    """Residual block that knows the timestep and mixes each pixel with those of the neighbouring frames."""

    def mix(h):
        return ops.add(h, ops.temporal_conv(h, f"{name}.temporal_conv", channels, clip, gain=0.1))

    return res_block(ops, name, with_time(ops, name, x, e, clip, config, channels), channels, mix)


def spatial_liem(ops, name, x):
    """LIEM before spatial attention: a gate from channel maximum and mean through a 7x7 convolution."""
    gate = ops.conv(ops.pool_channels(x, 1), f"{name}.conv1", 2, 1, 7, bias=False)
    return ops.mul(x, ops.sigmoid(gate))


def temporal_liem(ops, name, tokens):
    """LIEM before temporal attention: a gate per token from channel maximum and mean."""
    return ops.mul(tokens, ops.sigmoid(ops.linear(ops.pool_channels(tokens, 2), f"{name}.linear", 2, 1, bias=False)))


def self_attention(ops, name, tokens, channels, config):
    q, k, v = (ops.linear(tokens, f"{name}.to_{p}", channels, channels, bias=False) for p in "qkv")
    return ops.linear(ops.attention(q, k, v, channels // config.head), f"{name}.to_out", channels, channels, gain=0.1)


def transformer(ops, name, x, clip, config, channels):
    """Spatial attention within windows, temporal attention over the clip, each with LIEM, then a feed-forward."""

    def in_space(features):
        normed = ops.layer_norm(ops.window_tokens(features, channels, WINDOW), f"{name}.spatial.norm1", channels)
        attended = self_attention(ops, f"{name}.spatial.attn1", normed, channels, config)
        return ops.window_image(attended, channels, WINDOW, x)

    def in_time(tokens):
        normed = ops.layer_norm(tokens, f"{name}.temporal.norm1", channels)
        return self_attention(ops, f"{name}.temporal.attn1", normed, channels, config)

    def space_gate(features):
        return spatial_liem(ops, f"{name}.spatial.local1", features) if config.spatial_liem else features

    def time_gate(tokens):
        return temporal_liem(ops, f"{name}.temporal.local1", tokens) if config.temporal_liem else tokens

    x = gated_attention(ops, x, config.liem_position, space_gate, in_space)
    tokens = ops.frame_tokens(x, channels, clip)
    tokens = gated_attention(ops, tokens, config.liem_position, time_gate, in_time)
    normed = ops.layer_norm(tokens, f"{name}.temporal.norm3", channels)
    hidden = ops.gelu(ops.linear(normed, f"{name}.temporal.ff.0", channels, 2 * channels))
    tokens = ops.add(tokens, ops.linear(hidden, f"{name}.temporal.ff.2", 2 * channels, channels, gain=0.1))
    return ops.frame_image(tokens, channels, x, clip)


def downsample(ops, name, x, cin, cout):
    return ops.conv(x, name, cin, cout, 3, stride=2)


def upsample(ops, name, x, cin, cout):
    return ops.depth_to_space(ops.conv(x, name, cin, 4 * cout, 1), 2)


def cored(ops, latents):
    """Latents `[N,48,h,w]` smaller by nine tenths of themselves, up to those of `CORE` or, for levels, `LEVEL_CORE`: what is
    below all but vanishes. In flat areas it would be a grid of blocks and a drift of levels."""
    bound = np.full((CHANNELS, 1, 1), CORE)
    bound[:: BLOCK * BLOCK] = LEVEL_CORE
    return ops.sub(latents, ops.scale(ops.clip(latents, "core", bound), 0.9))


def informative(ops, x, t):
    """Noisy latents scaled by `alpha(t)`, folded: what they tell fades with the signal in them, so pure noise is silent."""
    return ops.fold_frames(ops.mul(ops.table(t, "alphas", alphas_sigmas()[0]), x), CHANNELS)


def controlnet(ops, x, t, hint, config=NanoConfig()):
    """Controls for `denoiser` from noisy latents `x` and `hint` `[B,48,F,h,w]` and timesteps `t` `[B]`: one
    `[B*F,C,h/s,w/s]` per scale, and the hint as `[B*F,48,h,w]`."""
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
        h = video_block(ops, name, downsample(ops, f"{name}.down", h, cin, cout), e, x, config, cout)
        if scale == 2:
            h = transformer(ops, "control.middle_block", h, x, config, cout)
        controls.append(ops.conv(h, f"control.zero_convs.{scale}", cout, cout, 1))
    return [*controls, guide]


def denoiser(ops, x, t, controls, config=NanoConfig()):
    """Velocity `v` `[B,48,F,h,w]` of noisy latents `x` `[B,48,F,h,w]` at timesteps `t` `[B]`."""
    c0, c1, c2 = config.widths
    e = time_embedding(ops, "time_embed", t, config)
    skip0 = ops.add(ops.conv(informative(ops, x, t), "input_blocks.0", CHANNELS, c0, 1), controls[0])
    skip0 = with_time(ops, "input_blocks.0", skip0, e, x, config, c0)
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
    return ops.div(ops.sub(ops.mul(ops.table(t, "alphas", alphas), x), clean), ops.table(t, "sigmas", sigmas))


@cache
def declared_parameters(config: NanoConfig = NanoConfig()):
    """Name to `Parameter` of both networks; those of the ControlNet start with `control.`."""
    ops = Declare()
    controlnet(ops, None, None, None, config)
    denoiser(ops, None, None, [None] * CONTROLS, config)
    return ops.parameters


class Nano(nn.Module):
    """Both networks as one PyTorch module. State-dict names are `declared_parameters` with dots as `__`."""

    def __init__(self, config: NanoConfig = NanoConfig()) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("deviation", torch.ones(CHANNELS))
        self.weights = nn.ParameterDict(
            {name.replace(".", "__"): nn.Parameter(p) for name, p in parameters_of(declared_parameters(config)).items()}
        )

    def named_weights(self) -> dict[str, torch.Tensor]:
        """Parameter tensors by their declared names."""
        return {name.replace("__", "."): p for name, p in self.weights.items()}

    def forward(self, x, t, hint):
        """Velocity `v` `[B,48,F,h,w]` from noisy latents, timesteps `[B]` and hint latents."""
        ops = TorchOps(self.named_weights())
        return denoiser(ops, x, t, controlnet(ops, x, t, hint, self.config), self.config)
