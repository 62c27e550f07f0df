# SPDX-License-Identifier: MPL-2.0
"""STAR's autoencoder, diffusers' `AutoencoderKLTemporalDecoder`, with diffusers' parameter names.

Pixels are in [-1,1]. Latents are scaled already, as the diffusion model needs them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from starsr.ops import Declare, Parameter
from starsr.ops.primitives import Ops, V


@dataclass(frozen=True)
class VaeConfig:
    """Sizes of the autoencoder. The defaults are those of Stable Video Diffusion."""

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    scaling_factor: float = 0.18215

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent in each direction."""
        return 2 ** (len(self.block_out_channels) - 1)

    @staticmethod
    def of(config: Mapping[str, Any]) -> "VaeConfig":
        """Convert diffusers' configuration."""
        return VaeConfig(
            tuple(config["block_out_channels"]),
            config["layers_per_block"],
            config["latent_channels"],
            config["scaling_factor"],
        )


SVD = VaeConfig()


def norm_conv(ops: Ops[V], norm: str, conv: str, x: V, cin: int, cout: int) -> V:
    """Apply a group norm, SiLU and a 3x3 convolution."""
    return ops.conv(ops.silu(ops.group_norm(x, norm, cin, eps=1e-6)), conv, cin, cout)


def res_block(ops: Ops[V], name: str, x: V, cin: int, cout: int) -> V:
    """Apply a residual block, `[F,cin,h,w]` to `[F,cout,h,w]`."""
    h = norm_conv(ops, f"{name}.norm1", f"{name}.conv1", x, cin, cout)
    h = norm_conv(ops, f"{name}.norm2", f"{name}.conv2", h, cout, cout)
    return ops.add(x if cin == cout else ops.conv(x, f"{name}.conv_shortcut", cin, cout, 1), h)


def spatio_temporal_block(ops: Ops[V], name: str, x: V, cin: int, cout: int) -> V:
    """Apply a residual block, then a weighted one over the frames, all in one group."""
    x = res_block(ops, f"{name}.spatial_res_block", x, cin, cout)
    temporal = f"{name}.temporal_res_block"
    h = ops.video(x, cout)
    for i in (1, 2):
        normed = ops.silu(ops.group_norm(h, f"{temporal}.norm{i}", cout))
        h = ops.video_conv(normed, f"{temporal}.conv{i}", cout, cout)
    return ops.add(x, ops.weigh(ops.frames(h, x), f"{name}.time_mixer.mix_factor"))


def attention(ops: Ops[V], name: str, x: V, channels: int) -> V:
    """Apply self-attention among the pixels of a frame, with one head."""
    tokens = ops.tokens(ops.group_norm(x, f"{name}.group_norm", channels, eps=1e-6))
    q, k, v = (ops.linear(tokens, f"{name}.to_{part}", channels, channels) for part in "qkv")
    attended = ops.linear(ops.attention(q, k, v, 1), f"{name}.to_out.0", channels, channels)
    return ops.add(x, ops.image(attended, channels, x))


def middle(
    ops: Ops[V],
    name: str,
    x: V,
    channels: int,
    block: Callable[[Ops[V], str, V, int, int], V],
) -> V:
    """Apply the middle of encoder or decoder: a `block`, attention and another `block`."""
    x = block(ops, f"{name}.resnets.0", x, channels, channels)
    x = attention(ops, f"{name}.attentions.0", x, channels)
    return block(ops, f"{name}.resnets.1", x, channels, channels)


def encode(ops: Ops[V], pixels: V, config: VaeConfig = SVD) -> tuple[V, V]:
    """Encode pixels `[F,3,H,W]`, each frame on its own.

    Returns mean and standard deviation of the latents, each `[F,C,h,w]` in 32 bits.
    """
    channels = config.block_out_channels
    h = ops.conv(ops.compute(pixels), "encoder.conv_in", 3, channels[0])
    cin = channels[0]
    for i, cout in enumerate(channels):
        name = f"encoder.down_blocks.{i}"
        for j in range(config.layers_per_block):
            h = res_block(ops, f"{name}.resnets.{j}", h, cin, cout)
            cin = cout
        if i + 1 < len(channels):
            sides = (0, 0, 1, 1)
            h = ops.conv(h, f"{name}.downsamplers.0.conv", cin, cin, stride=2, padding=sides)
    h = middle(ops, "encoder.mid_block", h, cin, res_block)
    count = config.latent_channels
    h = norm_conv(ops, "encoder.conv_norm_out", "encoder.conv_out", h, cin, 2 * count)
    moments = ops.precise(ops.conv(h, "quant_conv", 2 * count, 2 * count, 1))
    mean, log_variance = ops.channels(moments, 0, count), ops.channels(moments, count, 2 * count)
    factor = config.scaling_factor
    return ops.scale(mean, factor), ops.scale(ops.std(log_variance), factor)


def decode(ops: Ops[V], latents: V, config: VaeConfig = SVD) -> V:
    """Decode latents `[F,C,h,w]` to pixels `[F,3,H,W]` in 32 bits.

    The frames are one group: convolutions and norms reach over all of them.
    """
    channels = config.block_out_channels[::-1]
    h = ops.compute(ops.scale(latents, 1 / config.scaling_factor))
    h = ops.conv(h, "decoder.conv_in", config.latent_channels, channels[0])
    h = middle(ops, "decoder.mid_block", h, channels[0], spatio_temporal_block)
    cin = channels[0]
    for i, cout in enumerate(channels):
        name = f"decoder.up_blocks.{i}"
        for j in range(config.layers_per_block + 1):
            h = spatio_temporal_block(ops, f"{name}.resnets.{j}", h, cin, cout)
            cin = cout
        if i + 1 < len(channels):
            h = ops.conv(ops.upsample(h), f"{name}.upsamplers.0.conv", cin, cin)
    h = norm_conv(ops, "decoder.conv_norm_out", "decoder.conv_out", h, cin, 3)
    mixed = ops.video_conv(ops.video(h, 3), "decoder.time_conv_out", 3, 3)
    return ops.precise(ops.frames(mixed, h))


@cache
def declared_parameters(config: VaeConfig = SVD) -> dict[str, Parameter]:
    """Return the parameters of encoder and decoder by name."""
    ops = Declare()
    encode(ops, None, config)
    decode(ops, None, config)
    return ops.parameters
