# SPDX-License-Identifier: MPL-2.0
"""STAR's denoiser and ControlNet (SPEC A.6), described over the primitive operations, with the official parameter names.

Feature maps are `[B*F,C,h,w]`, tokens `[N,T,C]`, videos `[B,C,F,h*w]`. `h` must be 2 and `w` 0 modulo 8.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from starsr.models.liem import check_position, gated_attention
from starsr.models.weights import compare_names
from starsr.ops import Declare, Parameter
from starsr.ops.torch_ops import TorchOps, parameters_of

#: What the names of the ControlNet's parameters begin with.
CONTROLNET = "VideoControlNet."


@dataclass(frozen=True)
class StarConfig:
    """Sizes of the networks. The defaults are those of the released checkpoints.

    `dim` times `dim_mult` are the channels of the levels, of which the first `attention_levels` have transformers; `head_dim`
    is the size of an attention head, of which the first transformer has `num_heads` and the others as many as their channels
    allow; `context_dim` is the width of the text embedding. `liem_position` is one of `liem.POSITIONS`; `spatial_liem` and
    `temporal_liem` switch the gates of the spatial and the temporal transformers."""

    in_dim: int = 4
    out_dim: int = 4
    dim: int = 320
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attention_levels: int = 3
    head_dim: int = 64
    num_heads: int = 8
    context_dim: int = 1024
    liem_position: str = "i"
    spatial_liem: bool = True
    temporal_liem: bool = True

    def __post_init__(self) -> None:
        check_position(self.liem_position)

    @property
    def channels(self) -> list[int]:
        """Channels of each level."""
        return [self.dim * factor for factor in self.dim_mult]

    @property
    def embed_dim(self) -> int:
        """Width of the timestep embedding."""
        return 4 * self.dim

    def controls(self) -> list[tuple[int, int]]:
        """Channels and level of each tensor from ControlNet to denoiser."""
        return [(entry.cout, entry.level + (entry.kind == "down")) for entry in encoder_entries(self)] + [
            (self.channels[-1], len(self.channels) - 1)
        ]


@dataclass(frozen=True)
class Entry:
    """One of the `input_blocks`: `kind` is `in`, `block` (residual block, with transformers on the first levels) or `down`."""

    kind: str
    level: int
    cin: int
    cout: int


def encoder_entries(config: StarConfig) -> list[Entry]:
    """The `input_blocks` in order."""
    entries = [Entry("in", 0, config.in_dim, config.dim)]
    for level, channels in enumerate(config.channels):
        for _ in range(config.num_res_blocks):
            entries.append(Entry("block", level, entries[-1].cout, channels))
        if level + 1 < len(config.channels):
            entries.append(Entry("down", level, channels, channels))
    return entries


def decoder_entries(config: StarConfig) -> Iterator[tuple[int, int, int, int, bool]]:
    """The `output_blocks` in order: level, channels of the input, of the skip connection and of the output, and whether an
    upsampling follows."""
    skips = [entry.cout for entry in encoder_entries(config)]
    cin = config.channels[-1]
    for level in reversed(range(len(config.channels))):
        for i in range(config.num_res_blocks + 1):
            yield level, cin, skips.pop(), config.channels[level], level > 0 and i == config.num_res_blocks
            cin = config.channels[level]


def time_embedding(ops, name, t, config):
    """`[B]` to `[B,embed_dim]`."""
    e = ops.linear(ops.sinusoid(t, config.dim), f"{name}.0", config.dim, config.embed_dim, precise=True)
    return ops.tap(name, ops.linear(ops.silu(e), f"{name}.2", config.embed_dim, config.embed_dim, precise=True))


def res_block(ops, name, x, e, clip, config, cin, cout):
    """Residual block with the timestep embedding `e` `[B*F,embed_dim]`, followed by four convolutions over the frames."""
    h = ops.silu(ops.group_norm(x, f"{name}.in_layers.0", cin))
    h = ops.conv(h, f"{name}.in_layers.2", cin, cout)
    h = ops.add(h, ops.pixel(ops.linear(e, f"{name}.emb_layers.1", config.embed_dim, cout)))
    h = ops.silu(ops.group_norm(h, f"{name}.out_layers.0", cout))
    h = ops.conv(h, f"{name}.out_layers.3", cout, cout)
    h = ops.add(x if cin == cout else ops.conv(x, f"{name}.skip_connection", cin, cout, 1), h)

    video = mixed = ops.video(h, cout, clip)
    for i, place in enumerate((2, 3, 3, 3), 1):
        layer = f"{name}.temopral_conv.conv{i}"
        mixed = ops.silu(ops.group_norm(mixed, f"{layer}.0", cout))
        mixed = ops.video_conv(mixed, f"{layer}.{place}", cout, cout)
    return ops.tap(name, ops.frames(ops.add(video, mixed), h))


def attention(ops, name, x, context, config, cin, inner, clip=None):
    """Attention of tokens `x` to tokens `context` `[.,.,cin]`. With `clip` all frames of a batch entry share one context."""
    q = ops.linear(x, f"{name}.to_q", inner, inner, bias=False)
    k, v = (ops.linear(context, f"{name}.to_{part}", cin, inner, bias=False) for part in "kv")
    heads = inner // config.head_dim
    if clip is None:
        attended = ops.attention(q, k, v, heads)
    else:
        attended = ops.split_frames(ops.attention(ops.join_frames(q, inner, clip), k, v, heads), q)
    return ops.linear(attended, f"{name}.to_out.0", inner, inner)


def gated_self_attention(ops, block, number, x, config, channels, gate):
    """Self-attention `number` of a transformer block with LIEM, whose `gate` maps tokens to tokens, at the configured place."""

    def attend(tokens):
        normed = ops.layer_norm(tokens, f"{block}.norm{number}", channels)
        return attention(ops, f"{block}.attn{number}", normed, normed, config, channels, channels)

    return gated_attention(ops, x, config.liem_position, gate, attend)


def feed_forward(ops, block, x, channels):
    """GEGLU and its residual."""
    hidden = ops.linear(ops.layer_norm(x, f"{block}.norm3", channels), f"{block}.ff.net.0.proj", channels, 8 * channels)
    value, gate = ops.split(hidden, 2)
    return ops.add(ops.linear(ops.mul(value, ops.gelu(gate)), f"{block}.ff.net.2", 4 * channels, channels), x)


def spatial_transformer(ops, name, x, text, clip, config, channels):
    """Attention among the pixels of a frame, then to the text embedding `[B,77,context_dim]`."""
    block = f"{name}.transformer_blocks.0"

    def gate(tokens):
        if not config.spatial_liem:
            return tokens
        pooled = ops.image(ops.pool_channels(tokens, 2), 2, x)
        local = ops.conv(pooled, f"{block}.local1.conv1", 2, 1, 7, bias=False)
        return ops.mul(tokens, ops.sigmoid(ops.tokens(local)))

    tokens = ops.tokens(ops.group_norm(x, f"{name}.norm", channels, eps=1e-6))
    tokens = ops.linear(tokens, f"{name}.proj_in", channels, channels)
    tokens = gated_self_attention(ops, block, 1, tokens, config, channels, gate)
    normed = ops.layer_norm(tokens, f"{block}.norm2", channels)
    attended = attention(ops, f"{block}.attn2", normed, text, config, config.context_dim, channels, clip)
    tokens = feed_forward(ops, block, ops.add(attended, tokens), channels)
    tokens = ops.linear(tokens, f"{name}.proj_out", channels, channels)
    return ops.tap(name, ops.add(ops.image(tokens, channels, x), x))


def temporal_transformer(ops, name, x, clip, config, channels, inner):
    """Two attentions among the frames of each pixel."""
    block = f"{name}.transformer_blocks.0"

    def gate(number):
        def apply(tokens):
            if not config.temporal_liem:
                return tokens
            local = ops.linear(ops.pool_channels(tokens, 2), f"{block}.local{number}.conv1", 2, 1, bias=False)
            return ops.mul(tokens, ops.sigmoid(local))

        return apply

    video = ops.video(x, channels, clip)
    tokens = ops.video_tokens(ops.group_norm(video, f"{name}.norm", channels, eps=1e-6), channels)
    tokens = ops.linear(tokens, f"{name}.proj_in", channels, inner, unit_axes=1)
    for number in (1, 2):
        tokens = gated_self_attention(ops, block, number, tokens, config, inner, gate(number))
    tokens = feed_forward(ops, block, tokens, inner)
    tokens = ops.linear(tokens, f"{name}.proj_out", inner, channels, unit_axes=1)
    return ops.tap(name, ops.frames(ops.add(ops.token_video(tokens, channels, video), video), x))


def res_and_transformers(ops, name, x, e, text, clip, config, cin, cout, attend):
    """Residual block, and where `attend` both transformers, as entries 0, 1 and 2 of `name`."""

    def run(x, e, text):
        x = res_block(ops, f"{name}.0", x, e, clip, config, cin, cout)
        if attend:
            x = spatial_transformer(ops, f"{name}.1", x, text, clip, config, cout)
            x = temporal_transformer(ops, f"{name}.2", x, clip, config, cout, cout)
        return x

    return ops.recompute(run, x, e, text)


def upsample(ops, name, x, channels):
    """Twice the size less the first and last row, which undoes the `down` of an encoder."""
    grown = ops.crop_rows(ops.upsample(x))
    return ops.tap(name, ops.conv(grown, f"{name}.conv", channels, channels))


def embeddings(ops, prefix, t, text, clip, config):
    """What the blocks are conditioned on: the timestep `[B*F,embed_dim]` and the text `[B,77,context_dim]`."""
    e = ops.compute(ops.silu(time_embedding(ops, f"{prefix}time_embed", t, config)))
    return ops.repeat_frames(e, clip), ops.compute(text)


def encoder(ops, prefix, x, e, text, clip, config, hint=None):
    """Results of all `input_blocks` and of the middle block. `hint` is added behind the first convolution."""
    results = []
    for i, entry in enumerate(encoder_entries(config)):
        name = f"{prefix}input_blocks.{i}"
        if entry.kind == "in":
            x = ops.tap(f"{name}.0", ops.conv(x, f"{name}.0", entry.cin, entry.cout))
            x = x if hint is None else ops.add(x, hint)
            x = temporal_transformer(ops, f"{name}.1", x, clip, config, entry.cout, config.num_heads * config.head_dim)
        elif entry.kind == "down":
            down = ops.conv(x, f"{name}.op", entry.cin, entry.cout, stride=2, padding=(2, 1, 2, 1))
            x = ops.tap(name, down)
        else:
            attend = entry.level < config.attention_levels
            x = res_and_transformers(ops, name, x, e, text, clip, config, entry.cin, entry.cout, attend)
        results.append(x)
    name, channels = f"{prefix}middle_block", config.channels[-1]
    x = res_and_transformers(ops, name, x, e, text, clip, config, channels, channels, True)
    return [*results, res_block(ops, f"{name}.3", x, e, clip, config, channels, channels)]


def controlnet(ops, x, t, hint, text, config=StarConfig()):
    """Controls for `denoiser`, `[B*F,C,h,w]` each (`StarConfig.controls`), from noisy latents `x` and low-quality latents
    `hint` `[B,4,F,h,w]`, timesteps `t` `[B]` and the text embedding `[B,77,context_dim]`."""
    e, text = embeddings(ops, CONTROLNET, t, text, x, config)
    folded = ops.compute(ops.fold_frames(hint, config.in_dim))
    guide = ops.conv(folded, f"{CONTROLNET}input_hint_block", config.in_dim, config.dim)
    guide = ops.tap(f"{CONTROLNET}input_hint_block", guide)
    noisy = ops.compute(ops.fold_frames(x, config.in_dim))
    *results, middle = encoder(ops, CONTROLNET, noisy, e, text, x, config, guide)
    controls = [
        ops.conv(result, f"{CONTROLNET}zero_convs.{i}.0", channels, channels, 1)
        for i, (result, (channels, _)) in enumerate(zip(results, config.controls()))
    ]
    channels = config.channels[-1]
    return [*controls, ops.conv(middle, f"{CONTROLNET}middle_block_out.0", channels, channels, 1)]


def denoiser(ops, x, t, text, controls, config=StarConfig()):
    """Velocity `v` `[B,4,F,h,w]`, in 32 bits, of noisy latents `x` `[B,4,F,h,w]` at timesteps `t` `[B]`."""
    e, text = embeddings(ops, "", t, text, x, config)
    noisy = ops.compute(ops.fold_frames(x, config.in_dim))
    *skips, h = encoder(ops, "", noisy, e, text, x, config)
    h = ops.add(h, controls[-1])
    skips = [ops.add(skip, control) for skip, control in zip(skips, controls)]
    for i, (level, cin, skipped, cout, grows) in enumerate(decoder_entries(config)):
        name, attend = f"output_blocks.{i}", level < config.attention_levels
        h = ops.concat(h, skips.pop())
        h = res_and_transformers(ops, name, h, e, text, x, config, cin + skipped, cout, attend)
        if grows:
            h = upsample(ops, f"{name}.{3 if attend else 1}", h, cout)
    h = ops.silu(ops.group_norm(h, "out.0", config.dim))
    v = ops.conv(h, "out.2", config.dim, config.out_dim)
    return ops.precise(ops.unfold_frames(v, config.out_dim, x))


@cache
def declared_parameters(config: StarConfig = StarConfig()) -> dict[str, Parameter]:
    """Name to `Parameter` of both networks."""
    ops = Declare()
    controls = controlnet(ops, None, None, None, None, config)
    denoiser(ops, None, None, None, controls, config)
    return ops.parameters


class Star(nn.Module):
    """Both networks as one PyTorch module whose state dict has the official names (`ControlledV2VUNet`)."""

    def __init__(self, config: StarConfig = StarConfig()) -> None:
        super().__init__()
        self.config = config
        for name, tensor in parameters_of(declared_parameters(config)).items():
            *path, leaf = name.split(".")
            place: nn.Module = self
            for part in path:
                if part not in place._modules:
                    place.add_module(part, nn.Module())
                place = place._modules[part]
            place.register_parameter(leaf, nn.Parameter(tensor))

    def forward(self, x, t, hint, text):
        """Velocity `v` `[B,4,F,h,w]` from noisy latents, timesteps `[B]`, hint latents and embedding `[B,77,context_dim]`."""
        ops = TorchOps(dict(self.named_parameters()), dtype=self.get_parameter("out.2.weight").dtype)
        controls = controlnet(ops, x, t, hint, text, self.config)
        return denoiser(ops, x, t, text, controls, self.config)


def load_official(model: Star, state: dict[str, torch.Tensor]) -> None:
    """Copies official weights into `model`; raises `ValueError` that says which are missing, unknown or of another shape."""
    check_names(model.config, {name: tuple(tensor.shape) for name, tensor in state.items()})
    model.load_state_dict(state, strict=True)


def check_names(config: StarConfig, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises `ValueError` unless `shapes` are the parameters of the networks, all of them and nothing else."""
    compare_names({name: p.shape for name, p in declared_parameters(config).items()}, shapes, "STAR's networks")
