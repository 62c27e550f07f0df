# SPDX-License-Identifier: MPL-2.0
"""STAR's denoiser and ControlNet with the official parameter names (see docs/star.md).

Feature maps are `[B*F,C,h,w]`, tokens `[N,T,C]` and videos `[B,C,F,h*w]`. `h` must be 2 modulo 8
and `w` 0 modulo 8.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Generic, NamedTuple

from torch import Tensor, nn

from starsr.models.liem import check_position, gated_attention
from starsr.models.weights import compare_names
from starsr.ops import Declare, Parameter
from starsr.ops.primitives import Ops, V
from starsr.ops.torch_ops import TorchOps, parameters_of

#: Prefix of the names of the ControlNet's parameters.
CONTROLNET = "VideoControlNet."


@dataclass(frozen=True)
class StarConfig:
    """Sizes of the networks. The defaults are those of the released checkpoints.

    The levels have `dim` times `dim_mult` channels, and the first `attention_levels` of them have
    transformers. An attention head has `head_dim` channels; the first transformer has `num_heads`
    heads, and the others have as many as their channels allow. `context_dim` is the width of the
    text embedding. LIEM gates at `liem_position`, one of `liem.POSITIONS`; `spatial_liem` and
    `temporal_liem` switch it on for each kind of transformer.
    """

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
        """Return channels and level of each tensor from ControlNet to denoiser."""
        entries = [(e.cout, e.level + (e.kind == "down")) for e in encoder_entries(self)]
        return [*entries, (self.channels[-1], len(self.channels) - 1)]

    @property
    def textless(self) -> int:
        """How many `input_blocks`, from the first, have results that do not depend on the text."""
        kinds = [
            e.kind == "block" and e.level < self.attention_levels for e in encoder_entries(self)
        ]
        return [*kinds, True].index(True)


STAR = StarConfig()


@dataclass(frozen=True)
class Entry:
    """One of the `input_blocks`.

    `kind` is `in` (the first convolution), `block` (a residual block, with transformers on the
    first levels) or `down`.
    """

    kind: str
    level: int
    cin: int
    cout: int


def encoder_entries(config: StarConfig) -> list[Entry]:
    """Return the `input_blocks` in order."""
    entries = [Entry("in", 0, config.in_dim, config.dim)]
    for level, channels in enumerate(config.channels):
        for _ in range(config.num_res_blocks):
            entries.append(Entry("block", level, entries[-1].cout, channels))
        if level + 1 < len(config.channels):
            entries.append(Entry("down", level, channels, channels))
    return entries


def decoder_entries(config: StarConfig) -> Iterator[tuple[int, int, int, int, bool]]:
    """Yield the `output_blocks` in order.

    Each is its level, the channels of the input, of the skip connection and of the output, and
    whether an upsampling follows.
    """
    skips = [entry.cout for entry in encoder_entries(config)]
    cin = config.channels[-1]
    for level in reversed(range(len(config.channels))):
        for i in range(config.num_res_blocks + 1):
            grows = level > 0 and i == config.num_res_blocks
            yield level, cin, skips.pop(), config.channels[level], grows
            cin = config.channels[level]


class Batch(NamedTuple, Generic[V]):
    """The timestep embedding `[B*F,embed_dim]`, and a clip with batch size B and F frames."""

    e: V
    clip: V


def time_embedding(ops: Ops[V], name: str, t: V, config: StarConfig) -> V:
    """Embed timesteps `[B]` as `[B,embed_dim]`."""
    width = config.embed_dim
    e = ops.linear(ops.sinusoid(t, config.dim), f"{name}.0", config.dim, width, precise=True)
    return ops.tap(name, ops.linear(ops.silu(e), f"{name}.2", width, width, precise=True))


def res_block(
    ops: Ops[V], name: str, x: V, e: V, clip: V, config: StarConfig, cin: int, cout: int
) -> V:
    """Apply a residual block, then four convolutions over the frames.

    Takes `x` `[B*F,cin,h,w]` and the timestep embedding `e` `[B*F,embed_dim]`.
    """
    h = ops.silu(ops.group_norm(x, f"{name}.in_layers.0", cin))
    h = ops.conv(h, f"{name}.in_layers.2", cin, cout)
    h = ops.add(h, ops.pixel(ops.linear(e, f"{name}.emb_layers.1", config.embed_dim, cout)))
    h = ops.silu(ops.group_norm(h, f"{name}.out_layers.0", cout))
    h = ops.conv(h, f"{name}.out_layers.3", cout, cout)
    h = ops.add(x if cin == cout else ops.conv(x, f"{name}.skip_connection", cin, cout, 1), h)

    video = mixed = ops.video(h, cout, clip)
    for i, place in enumerate((2, 3, 3, 3), 1):
        # The name is misspelt in the released checkpoints.
        layer = f"{name}.temopral_conv.conv{i}"
        mixed = ops.silu(ops.group_norm(mixed, f"{layer}.0", cout))
        mixed = ops.video_conv(mixed, f"{layer}.{place}", cout, cout)
    return ops.tap(name, ops.frames(ops.add(video, mixed), h))


def attention(
    ops: Ops[V],
    name: str,
    x: V,
    context: V,
    config: StarConfig,
    cin: int,
    inner: int,
    clip: V | None = None,
    few: V | None = None,
    group: int = 0,
) -> V:
    """Attend from tokens `x` to tokens `context` `[.,.,cin]`.

    With `clip`, all frames of a batch entry share one context; with `few`, `x` has the batch size
    of that clip and is repeated to that of `clip`. With `group`, the tokens are those of
    `video_tokens`.
    """
    q = ops.linear(x, f"{name}.to_q", inner, inner, bias=False)
    if few is not None and clip is not None:
        q = ops.repeat_batch(q, 3, few, clip)
    k, v = (ops.linear(context, f"{name}.to_{part}", cin, inner, bias=False) for part in "kv")
    heads = inner // config.head_dim
    if group:
        attended = ops.frame_attention(q, k, v, heads, inner, group)
    elif clip is None:
        attended = ops.attention(q, k, v, heads)
    else:
        joined = ops.join_frames(q, inner, clip)
        attended = ops.split_frames(ops.attention(joined, k, v, heads), q)
    return ops.linear(attended, f"{name}.to_out.0", inner, inner)


def gated_self_attention(
    ops: Ops[V],
    block: str,
    number: int,
    x: V,
    config: StarConfig,
    channels: int,
    gate: Callable[[V], V],
    group: int = 0,
) -> V:
    """Apply self-attention `number` of a transformer block.

    The LIEM `gate` maps tokens to tokens and acts at the configured position. `group` is that of
    `attention`.
    """

    def attend(tokens: V) -> V:
        normed = ops.layer_norm(tokens, f"{block}.norm{number}", channels)
        name = f"{block}.attn{number}"
        return attention(ops, name, normed, normed, config, channels, channels, group=group)

    return gated_attention(ops, x, config.liem_position, gate, attend)


def feed_forward(ops: Ops[V], block: str, x: V, channels: int) -> V:
    """Apply GEGLU with a residual connection."""
    normed = ops.layer_norm(x, f"{block}.norm3", channels)
    names = (f"{block}.ff.net.0.proj", f"{block}.ff.net.2")
    return ops.add(ops.geglu(normed, *names, channels), x)


def spatial_transformer(
    ops: Ops[V],
    name: str,
    x: V,
    text: V,
    clip: V,
    config: StarConfig,
    channels: int,
    few: V | None = None,
) -> V:
    """Attend among the pixels of a frame, then to the text embedding `[B,77,context_dim]`.

    With `few`, `x` has the batch size of that clip; the text brings it to that of `clip`.
    """
    block = f"{name}.transformer_blocks.0"

    def gate(tokens: V) -> V:
        if not config.spatial_liem:
            return tokens
        pooled = ops.image(ops.pool_channels(tokens, 2, channels), 2, x)
        local = ops.conv(pooled, f"{block}.local1.conv1", 2, 1, 7, bias=False)
        return ops.mul(tokens, ops.sigmoid(ops.tokens(local)))

    tokens = ops.tokens(ops.group_norm(x, f"{name}.norm", channels, eps=1e-6))
    tokens = ops.linear(tokens, f"{name}.proj_in", channels, channels)
    tokens = gated_self_attention(ops, block, 1, tokens, config, channels, gate)
    normed = ops.layer_norm(tokens, f"{block}.norm2", channels)
    width = config.context_dim
    attended = attention(ops, f"{block}.attn2", normed, text, config, width, channels, clip, few)
    if few is not None:
        tokens, x = ops.repeat_batch(tokens, 3, few, clip), ops.repeat_batch(x, 4, few, clip)
    tokens = feed_forward(ops, block, ops.add(attended, tokens), channels)
    tokens = ops.linear(tokens, f"{name}.proj_out", channels, channels)
    return ops.tap(name, ops.add(ops.image(tokens, channels, x), x))


def pixel_group(level: int) -> int:
    """Return a divisor of the pixels of each feature map of a level, as large as known.

    Latents have an even height and a width that 8 divides (see above). Height and width of the
    next levels are even and divided by 4, then even and divided by 2, then any.
    """
    return (16, 8, 4)[level] if level < 3 else 1


def temporal_transformer(
    ops: Ops[V], name: str, x: V, clip: V, config: StarConfig, level: int, channels: int, inner: int
) -> V:
    """Attend twice among the frames of each pixel."""
    block = f"{name}.transformer_blocks.0"

    def gate(number: int) -> Callable[[V], V]:
        def apply(tokens: V) -> V:
            if not config.temporal_liem:
                return tokens
            pooled = ops.pool_channels(tokens, 2, inner)
            local = ops.linear(pooled, f"{block}.local{number}.conv1", 2, 1, bias=False)
            return ops.mul(tokens, ops.sigmoid(local))

        return apply

    video = ops.video(x, channels, clip)
    normed = ops.group_norm(video, f"{name}.norm", channels, eps=1e-6)
    group = pixel_group(level)
    tokens = ops.video_tokens(normed, channels, group)
    tokens = ops.linear(tokens, f"{name}.proj_in", channels, inner, unit_axes=1)
    for number in (1, 2):
        tokens = gated_self_attention(
            ops, block, number, tokens, config, inner, gate(number), group
        )
    tokens = feed_forward(ops, block, tokens, inner)
    tokens = ops.linear(tokens, f"{name}.proj_out", inner, channels, unit_axes=1)
    mixed = ops.add(ops.token_video(tokens, channels, video, group), video)
    return ops.tap(name, ops.frames(mixed, x))


def res_and_transformers(
    ops: Ops[V],
    name: str,
    x: V,
    batch: Batch[V],
    text: V,
    config: StarConfig,
    cin: int,
    cout: int,
    level: int,
    attend: bool,
    few: Batch[V] | None = None,
) -> V:
    """Apply a residual block and, if `attend`, both transformers: entries 0, 1, 2 of `name`.

    With `few`, `x` has this batch; the transformers bring it to `batch`.
    """
    first, clip = batch if few is None else few, batch.clip

    def run(x: V, e: V, text: V) -> V:
        x = res_block(ops, f"{name}.0", x, e, first.clip, config, cin, cout)
        if attend:
            before = None if few is None else few.clip
            x = spatial_transformer(ops, f"{name}.1", x, text, clip, config, cout, before)
            x = temporal_transformer(ops, f"{name}.2", x, clip, config, level, cout, cout)
        return x

    return ops.recompute(run, x, first.e, text)


def upsample(ops: Ops[V], name: str, x: V, channels: int) -> V:
    """Double the size and drop the first and last row, the inverse of the encoder's `down`."""
    grown = ops.crop_rows(ops.upsample(x))
    return ops.tap(name, ops.conv(grown, f"{name}.conv", channels, channels))


def conditions(
    ops: Ops[V], prefix: str, x: V, t: V, text: V, config: StarConfig
) -> tuple[Batch[V], Batch[V], V]:
    """Return what all blocks take: the batch of `x`, that of `text`, and the text embedding.

    `x` `[b,4,F,h,w]` and the timesteps `t` `[b]` may serve all texts `[B,77,context_dim]`, b = 1.
    Guidance asks for the same `x` under two texts: what comes before the first text is then
    computed once.
    """
    e = ops.compute(ops.silu(time_embedding(ops, f"{prefix}time_embed", t, config)))
    few = Batch(ops.repeat_frames(e, x), x)
    clip = ops.repeat_clip(x, text)
    return few, Batch(ops.repeat_batch(few.e, 2, x, clip), clip), ops.compute(text)


def encoder(
    ops: Ops[V],
    prefix: str,
    x: V,
    few: Batch[V],
    batch: Batch[V],
    text: V,
    config: StarConfig,
    hint: V | None = None,
) -> list[V]:
    """Return the results of all `input_blocks` and of the middle block.

    `hint` is added to the result of the first convolution. The first `StarConfig.textless` results
    have the batch `few`, the others `batch`.
    """

    def block(i: int, name: str, x: V, cin: int, cout: int, level: int, attend: bool) -> V:
        own, before = few if i < config.textless else batch, few if i == config.textless else None
        return res_and_transformers(
            ops, name, x, own, text, config, cin, cout, level, attend, before
        )

    results: list[V] = []
    for i, entry in enumerate(encoder_entries(config)):
        name = f"{prefix}input_blocks.{i}"
        if entry.kind == "in":
            x = ops.tap(f"{name}.0", ops.conv(x, f"{name}.0", entry.cin, entry.cout))
            x = x if hint is None else ops.add(x, hint)
            inner = config.num_heads * config.head_dim
            x = temporal_transformer(ops, f"{name}.1", x, few.clip, config, 0, entry.cout, inner)
        elif entry.kind == "down":
            sides = (2, 1, 2, 1)
            down = ops.conv(x, f"{name}.op", entry.cin, entry.cout, stride=2, padding=sides)
            x = ops.tap(name, down)
        else:
            attend = entry.level < config.attention_levels
            x = block(i, name, x, entry.cin, entry.cout, entry.level, attend)
        results.append(x)
    name, channels = f"{prefix}middle_block", config.channels[-1]
    x = block(len(results), name, x, channels, channels, len(config.channels) - 1, True)
    return [*results, res_block(ops, f"{name}.3", x, *batch, config, channels, channels)]


def controlnet(ops: Ops[V], x: V, t: V, hint: V, text: V, config: StarConfig = STAR) -> list[V]:
    """Compute the controls for `denoiser`, `[B*F,C,h,w]` each (see `StarConfig.controls`).

    Takes noisy latents `x` and low-quality latents `hint`, both `[b,4,F,h,w]`, timesteps `t` `[b]`
    and the text embedding `[B,77,context_dim]`, where b is B or 1. The first `StarConfig.textless`
    controls are `[b*F,C,h,w]`.
    """
    few, batch, text = conditions(ops, CONTROLNET, x, t, text, config)
    folded = ops.compute(ops.fold_frames(hint, config.in_dim))
    guide = ops.conv(folded, f"{CONTROLNET}input_hint_block", config.in_dim, config.dim)
    guide = ops.tap(f"{CONTROLNET}input_hint_block", guide)
    noisy = ops.compute(ops.fold_frames(x, config.in_dim))
    *results, middle = encoder(ops, CONTROLNET, noisy, few, batch, text, config, guide)
    controls = [
        ops.conv(result, f"{CONTROLNET}zero_convs.{i}.0", channels, channels, 1)
        # The last control belongs to the middle block.
        for i, (result, (channels, _)) in enumerate(
            zip(results, config.controls()[:-1], strict=True)
        )
    ]
    channels = config.channels[-1]
    return [
        *controls,
        ops.conv(middle, f"{CONTROLNET}middle_block_out.0", channels, channels, 1),
    ]


def denoiser(
    ops: Ops[V], x: V, t: V, text: V, controls: Sequence[V], config: StarConfig = STAR
) -> V:
    """Predict the velocity `v` `[B,4,F,h,w]`, in 32 bits.

    Takes noisy latents `x` `[b,4,F,h,w]`, timesteps `t` `[b]`, the text embedding
    `[B,77,context_dim]` and the results of `controlnet`, where b is B or 1.
    """
    few, batch, text = conditions(ops, "", x, t, text, config)
    noisy = ops.compute(ops.fold_frames(x, config.in_dim))
    *skips, h = encoder(ops, "", noisy, few, batch, text, config)
    h = ops.add(h, controls[-1])
    skips = [ops.add(skip, control) for skip, control in zip(skips, controls[:-1], strict=True)]
    for i, (level, cin, skipped, cout, grows) in enumerate(decoder_entries(config)):
        name, attend = f"output_blocks.{i}", level < config.attention_levels
        skip = skips.pop()
        if len(skips) < config.textless:
            skip = ops.repeat_batch(skip, 4, x, batch.clip)
        h = ops.concat(h, skip)
        h = res_and_transformers(
            ops, name, h, batch, text, config, cin + skipped, cout, level, attend
        )
        if grows:
            h = upsample(ops, f"{name}.{3 if attend else 1}", h, cout)
    h = ops.silu(ops.group_norm(h, "out.0", config.dim))
    v = ops.conv(h, "out.2", config.dim, config.out_dim)
    return ops.precise(ops.unfold_frames(v, config.out_dim, batch.clip))


@cache
def declared_parameters(config: StarConfig = STAR) -> dict[str, Parameter]:
    """Return the parameters of both networks by name."""
    ops = Declare()
    controls = controlnet(ops, None, None, None, None, config)
    denoiser(ops, None, None, None, controls, config)
    return ops.parameters


class Star(nn.Module):
    """Both networks as one PyTorch module.

    The state dict has the official names, those of `ControlledV2VUNet`.
    """

    def __init__(self, config: StarConfig = STAR) -> None:
        super().__init__()
        self.config = config
        for name, tensor in parameters_of(declared_parameters(config)).items():
            *path, leaf = name.split(".")
            place: nn.Module = self
            for part in path:
                if part not in place._modules:
                    place.add_module(part, nn.Module())
                place = place.get_submodule(part)
            place.register_parameter(leaf, nn.Parameter(tensor))

    def forward(self, x: Tensor, t: Tensor, hint: Tensor, text: Tensor) -> Tensor:
        """Predict `v` `[B,4,F,h,w]`; the arguments are those of `controlnet`."""
        dtype = self.get_parameter("out.2.weight").dtype
        ops = TorchOps(dict(self.named_parameters()), dtype=dtype)
        controls = controlnet(ops, x, t, hint, text, self.config)
        return denoiser(ops, x, t, text, controls, self.config)


def load_official(model: Star, state: dict[str, Tensor]) -> None:
    """Copy official weights into `model`.

    Raises `ValueError` that says which are missing, unknown or of another shape.
    """
    check_names(model.config, {name: tuple(tensor.shape) for name, tensor in state.items()})
    model.load_state_dict(state, strict=True)


def check_names(config: StarConfig, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise `ValueError` unless `shapes` are exactly the parameters of the networks."""
    wanted = {name: p.shape for name, p in declared_parameters(config).items()}
    compare_names(wanted, shapes, "STAR's networks")
