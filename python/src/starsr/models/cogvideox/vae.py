# SPDX-License-Identifier: MPL-2.0
"""CogVideoX's autoencoder, diffusers' `AutoencoderKLCogVideoX`, with diffusers' parameter names.

Convolutions see no later frames. The encoder takes a whole clip of `4n+1` frames and gives `n+1`
latents; the decoder takes a few latents at a time and carries the last frames of each convolution's
input to the next run. Pixels are in [-1,1]. Latents are scaled, as the diffusion model needs them.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic

from starsr.ops import Parameter
from starsr.ops.primitives import V
from starsr.ops.video_ops import VideoDeclare
from starsr.ops.video_primitives import VideoOps

EPS = 1e-6


@dataclass(frozen=True)
class VaeConfig:
    """Sizes of the autoencoder. The defaults are those of CogVideoX-5B.

    The first `temporal_levels` of the levels halve the number of frames, too.
    """

    block_out_channels: tuple[int, ...] = (128, 256, 256, 512)
    layers_per_block: int = 3
    latent_channels: int = 16
    groups: int = 32
    temporal_levels: int = 2
    scaling_factor: float = 0.7

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent in each direction."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def temporal_factor(self) -> int:
        """Frames per latent after the first."""
        return 2**self.temporal_levels

    @staticmethod
    def of(config: Mapping[str, Any]) -> "VaeConfig":
        """Convert diffusers' configuration."""
        return VaeConfig(
            tuple(config["block_out_channels"]),
            config["layers_per_block"],
            config["latent_channels"],
            config.get("norm_num_groups", 32),
            int(math.log2(config.get("temporal_compression_ratio", 4))),
            config["scaling_factor"],
        )


class Caches(Generic[V]):
    """The last frames of the inputs of the decoder's convolutions, in the order of their use.

    Takes those of the run before from `given`, which may have no frames, and keeps those of this
    run in `kept`; `shapes` are channels and level of each. Without `given`, every convolution
    starts with copies of its first frame.
    """

    def __init__(self, given: Sequence[V] | None = None) -> None:
        self._given: Iterator[V] | None = None if given is None else iter(given)
        self.kept: list[V] = []
        self.shapes: list[tuple[int, int]] = []

    def lead(self, ops: VideoOps[V], x: V, channels: int, level: int) -> V:
        """Prepend the frames before `x`, and keep the last ones."""
        extended = ops.lead(x, None if self._given is None else next(self._given))
        self.kept.append(ops.trail(extended))
        self.shapes.append((channels, level))
        return extended


def causal_conv(
    ops: VideoOps[V], name: str, x: V, cin: int, cout: int, caches: Caches[V], level: int
) -> V:
    """Apply a 3x3x3 convolution that sees the current and the two frames before."""
    extended = caches.lead(ops, x, cin, level)
    return ops.volume_conv(extended, f"{name}.conv", cin, cout, (3, 3, 3), padding=(1, 1, 1, 1))


def plain_norm(ops: VideoOps[V], config: VaeConfig) -> Callable[[str, V, int], V]:
    """Return the encoder's norm: a group norm and SiLU of a volume with so many channels."""

    def norm(name: str, x: V, channels: int) -> V:
        return ops.silu(ops.volume_norm(x, name, channels, config.groups, EPS))

    return norm


def latent_norm(ops: VideoOps[V], z: V, config: VaeConfig) -> Callable[[str, V, int], V]:
    """Return the decoder's norm.

    Latents `z` as large as the volume give scale and offset of each pixel after the group norm.
    """

    def norm(name: str, x: V, channels: int) -> V:
        normed = ops.volume_norm(x, f"{name}.norm_layer", channels, config.groups, EPS)
        scale, offset = (
            ops.volume_conv(z, f"{name}.{part}.conv", config.latent_channels, channels, (1, 1, 1))
            for part in ("conv_y", "conv_b")
        )
        return ops.silu(ops.add(ops.mul(normed, scale), offset))

    return norm


def res_block(
    ops: VideoOps[V],
    name: str,
    x: V,
    cin: int,
    cout: int,
    norm: Callable[[str, V, int], V],
    caches: Caches[V],
    level: int,
) -> V:
    """Apply a residual block, `[1,cin,F,h,w]` to `[1,cout,F,h,w]`."""
    h = norm(f"{name}.norm1", x, cin)
    h = causal_conv(ops, f"{name}.conv1", h, cin, cout, caches, level)
    h = norm(f"{name}.norm2", h, cout)
    h = causal_conv(ops, f"{name}.conv2", h, cout, cout, caches, level)
    if cin != cout:
        x = ops.volume_conv(x, f"{name}.conv_shortcut", cin, cout, (1, 1, 1))
    return ops.add(x, h)


def encode(ops: VideoOps[V], pixels: V, config: VaeConfig) -> tuple[V, V]:
    """Encode pixels `[4n+1,3,H,W]`, all in one piece.

    Returns mean and standard deviation of the latents, each `[n+1,C,h,w]` in 32 bits.
    """
    channels, caches = config.block_out_channels, Caches[V]()
    norm = plain_norm(ops, config)
    h = ops.volume(ops.compute(pixels))
    h = causal_conv(ops, "encoder.conv_in", h, 3, channels[0], caches, 0)
    cin = channels[0]
    for i, cout in enumerate(channels):
        name = f"encoder.down_blocks.{i}"
        for j in range(config.layers_per_block):
            h = res_block(ops, f"{name}.resnets.{j}", h, cin, cout, norm, caches, i)
            cin = cout
        if i + 1 < len(channels):
            if i < config.temporal_levels:
                h = ops.halve_frames(h)
            down, sides = f"{name}.downsamplers.0.conv", (0, 0, 1, 1)
            h = ops.volume_conv(h, down, cin, cin, (3, 3), stride=2, padding=sides)
    last = len(channels) - 1
    for j in range(2):
        name = f"encoder.mid_block.resnets.{j}"
        h = res_block(ops, name, h, cin, cin, norm, caches, last)
    h = norm("encoder.norm_out", h, cin)
    count, factor = config.latent_channels, config.scaling_factor
    h = causal_conv(ops, "encoder.conv_out", h, cin, 2 * count, caches, last)
    moments = ops.volume_frames(ops.precise(h))
    mean, log_variance = ops.channels(moments, 0, count), ops.channels(moments, count, 2 * count)
    return ops.scale(mean, factor), ops.scale(ops.std(log_variance), factor)


def decode(ops: VideoOps[V], latents: V, caches: Caches[V], config: VaeConfig) -> V:
    """Decode latents `[T,C,h,w]` to pixels `[F,3,H,W]` in 32 bits.

    The first run of a clip takes an odd number T of latents and gives `4T-3` frames; later ones
    take an even number, the `caches` of the run before, and give `4T` frames.
    """
    channels = config.block_out_channels[::-1]
    z = ops.volume(ops.compute(ops.scale(latents, 1 / config.scaling_factor)))
    h = causal_conv(ops, "decoder.conv_in", z, config.latent_channels, channels[0], caches, 0)
    cin, norm = channels[0], latent_norm(ops, z, config)
    for j in range(2):
        name = f"decoder.mid_block.resnets.{j}"
        h = res_block(ops, name, h, cin, cin, norm, caches, 0)
    for i, cout in enumerate(channels):
        name = f"decoder.up_blocks.{i}"
        for j in range(config.layers_per_block + 1):
            h = res_block(ops, f"{name}.resnets.{j}", h, cin, cout, norm, caches, i)
            cin = cout
        if i + 1 < len(channels):
            frames = i < config.temporal_levels
            h, z = ops.enlarge(h, frames), ops.enlarge(z, frames)
            norm = latent_norm(ops, z, config)
            up = f"{name}.upsamplers.0.conv"
            h = ops.volume_conv(h, up, cin, cin, (3, 3), padding=(1, 1, 1, 1))
    last = len(channels) - 1
    h = norm("decoder.norm_out", h, cin)
    h = causal_conv(ops, "decoder.conv_out", h, cin, 3, caches, last)
    return ops.volume_frames(ops.precise(h))


def runs(latents: int) -> list[int]:
    """Return how many of a clip's latents each run of the decoder takes.

    They are three at first, or the only one, and then two. Raises `ValueError` for an even number
    of latents: as a run of an even number doubles its first latent, too, it cannot be the first.
    """
    if latents % 2 == 0:
        raise ValueError(f"a clip of {latents} latents cannot be decoded, their number must be odd")
    return [min(latents, 3)] + [2] * ((latents - 3) // 2)


@cache
def cache_shapes(config: VaeConfig) -> list[tuple[int, int]]:
    """Return channels and level of each cache; a level is twice as large as the one before."""
    caches = Caches[None]()
    decode(VideoDeclare(), None, caches, config)
    return caches.shapes


@cache
def declared_parameters(config: VaeConfig) -> dict[str, Parameter]:
    """Return the parameters of encoder and decoder by name."""
    ops = VideoDeclare()
    encode(ops, None, config)
    decode(ops, None, Caches(), config)
    return ops.parameters


def config_of(shapes: Mapping[str, tuple[int, ...]], scaling_factor: float) -> VaeConfig:
    """Return the sizes of an autoencoder from the shapes of its parameters.

    They do not tell groups and temporal levels, which are the same in every released one. Raises
    `ValueError` if one that tells the sizes is missing.
    """
    channels: list[int] = []
    while (name := f"encoder.down_blocks.{len(channels)}.resnets.0.conv2.conv.bias") in shapes:
        channels += shapes[name]
    layers = 0
    while f"encoder.down_blocks.0.resnets.{layers}.conv2.conv.bias" in shapes:
        layers += 1
    first = "decoder.conv_in.conv.weight"
    if not channels or first not in shapes:
        raise ValueError(f"{first if channels else name} is missing")
    latents = shapes[first][1]
    return VaeConfig(tuple(channels), layers, latents, scaling_factor=scaling_factor)


def diffusers_names(names: Iterable[str]) -> dict[str, str]:
    """Return diffusers' name of each parameter in the layout of the authors' `3d-vae.pt`.

    What belongs to the loss of the training is left out.
    """
    kept = [name for name in names if not name.startswith("loss")]
    levels = len({name.split(".")[2] for name in kept if name.startswith("decoder.up.")})
    return {name: _diffusers_name(name, levels) for name in kept}


def _diffusers_name(name: str, levels: int) -> str:
    up = re.match(r"decoder\.up\.(\d+)\.", name)
    if up:
        name = name.replace(up[0], f"decoder.up_blocks.{levels - 1 - int(up[1])}.")
    name = re.sub(r"mid\.block_(\d)", lambda m: f"mid_block.resnets.{int(m[1]) - 1}", name)
    name = name.replace(".down.", ".down_blocks.").replace(".block.", ".resnets.")
    name = name.replace(".downsample.", ".downsamplers.0.")
    name = name.replace(".upsample.", ".upsamplers.0.")
    return name.replace("nin_shortcut", "conv_shortcut")
