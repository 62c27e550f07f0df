# SPDX-License-Identifier: MPL-2.0
"""The autoencoder of STAR (SPEC A.2), diffusers' `AutoencoderKLTemporalDecoder`, described over the primitive operations with
diffusers' parameter names. Pixels are in [-1,1]; latents are scaled, so that the diffusion takes them as they are."""

from dataclasses import dataclass
from functools import cache

from starsr.ops import Declare, Parameter


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
    def of(config: dict) -> "VaeConfig":
        """From diffusers' configuration."""
        return VaeConfig(
            tuple(config["block_out_channels"]),
            config["layers_per_block"],
            config["latent_channels"],
            config["scaling_factor"],
        )


def norm_conv(ops, norm, conv, x, cin, cout):
    return ops.conv(ops.silu(ops.group_norm(x, norm, cin, eps=1e-6)), conv, cin, cout)


def res_block(ops, name, x, cin, cout):
    """`[F,cin,h,w]` to `[F,cout,h,w]`."""
    h = norm_conv(ops, f"{name}.norm1", f"{name}.conv1", x, cin, cout)
    h = norm_conv(ops, f"{name}.norm2", f"{name}.conv2", h, cout, cout)
    return ops.add(x if cin == cout else ops.conv(x, f"{name}.conv_shortcut", cin, cout, 1), h)


def spatio_temporal_block(ops, name, x, cin, cout):
    """Residual block, then one over the frames whose weight is learned. All frames are one group."""
    x = res_block(ops, f"{name}.spatial_res_block", x, cin, cout)
    temporal = f"{name}.temporal_res_block"
    h = ops.video(x, cout)
    for i in (1, 2):
        h = ops.video_conv(ops.silu(ops.group_norm(h, f"{temporal}.norm{i}", cout)), f"{temporal}.conv{i}", cout, cout)
    return ops.add(x, ops.weigh(ops.frames(h, x), f"{name}.time_mixer.mix_factor"))


def attention(ops, name, x, channels):
    """Self-attention among the pixels of a frame, with one head."""
    tokens = ops.tokens(ops.group_norm(x, f"{name}.group_norm", channels, eps=1e-6))
    q, k, v = (ops.linear(tokens, f"{name}.to_{part}", channels, channels) for part in "qkv")
    attended = ops.linear(ops.attention(q, k, v, 1), f"{name}.to_out.0", channels, channels)
    return ops.add(x, ops.image(attended, channels, x))


def middle(ops, name, x, channels, block):
    x = block(ops, f"{name}.resnets.0", x, channels, channels)
    x = attention(ops, f"{name}.attentions.0", x, channels)
    return block(ops, f"{name}.resnets.1", x, channels, channels)


def encode(ops, pixels, config=VaeConfig()):
    """Mean and standard deviation of the latents, each `[F,C,h,w]` in 32 bits, of pixels `[F,3,H,W]`."""
    channels = config.block_out_channels
    h = ops.conv(ops.compute(pixels), "encoder.conv_in", 3, channels[0])
    cin = channels[0]
    for i, cout in enumerate(channels):
        name = f"encoder.down_blocks.{i}"
        for j in range(config.layers_per_block):
            h = res_block(ops, f"{name}.resnets.{j}", h, cin, cout)
            cin = cout
        if i + 1 < len(channels):
            h = ops.conv(h, f"{name}.downsamplers.0.conv", cin, cin, stride=2, padding=(0, 0, 1, 1))
    h = middle(ops, "encoder.mid_block", h, cin, res_block)
    count = config.latent_channels
    h = norm_conv(ops, "encoder.conv_norm_out", "encoder.conv_out", h, cin, 2 * count)
    moments = ops.precise(ops.conv(h, "quant_conv", 2 * count, 2 * count, 1))
    mean, log_variance = ops.channels(moments, 0, count), ops.channels(moments, count, 2 * count)
    return ops.scale(mean, config.scaling_factor), ops.scale(ops.deviation(log_variance), config.scaling_factor)


def decode(ops, latents, config=VaeConfig()):
    """Pixels `[F,3,H,W]` in 32 bits of latents `[F,C,h,w]`. The frames are one group: convolutions and norms reach over all."""
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
    return ops.precise(ops.frames(ops.video_conv(ops.video(h, 3), "decoder.time_conv_out", 3, 3), h))


@cache
def declared_parameters(config: VaeConfig = VaeConfig()) -> dict[str, Parameter]:
    """Name to `Parameter`."""
    ops = Declare()
    encode(ops, None, config)
    decode(ops, None, config)
    return ops.parameters
