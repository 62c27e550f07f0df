# SPDX-License-Identifier: MPL-2.0
"""STAR's diffusion transformer on CogVideoX, with the checkpoint's parameter names.

Low-rank updates are merged already (`weights`). Frames come before channels: latents are
`[B,T,C,h,w]` with even `h` and `w`, and image tokens `[B,T*h/2*w/2,D]`. The streams of text and
image stay in 32 bits, as do norms, modulation and gates; products and attention are in the
precision of the network.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from starsr.ops import Parameter
from starsr.ops.primitives import V
from starsr.ops.video_ops import VideoDeclare
from starsr.ops.video_primitives import VideoOps

#: Kinds of positions: rotated queries and keys, or a table that is added to the tokens.
ROTARY, SINCOS = "rotary", "sincos"
#: Modulations of each layer, for the norm before attention and the one before the MLP.
MODULATIONS = 12
#: Those that multiply: the scales of image and text.
SCALES = (1, 4, 7, 10)
LAYER_EPS, HEAD_EPS, FINAL_EPS = 1e-5, 1e-6, 1e-6


@dataclass(frozen=True)
class CogVideoXConfig:
    """Sizes of the network. The defaults are those of STAR on CogVideoX-5B.

    `latent_channels` are those of the noisy and of the low-quality latents each. A token is
    `patch` latents wide and high, and has `width` channels, `head_dim` for each attention head.
    `time_dim` is the width of the timestep embedding; prompts are `text_length` tokens of
    `text_dim` channels. `positions` is `ROTARY` or `SINCOS`.
    """

    width: int = 3072
    layers: int = 42
    head_dim: int = 64
    time_dim: int = 512
    text_dim: int = 4096
    text_length: int = 226
    latent_channels: int = 16
    patch: int = 2
    positions: str = ROTARY

    @property
    def heads(self) -> int:
        """Attention heads of each layer."""
        return self.width // self.head_dim

    @property
    def modulation_rows(self) -> int:
        """Rows of the modulation: those of all layers, then shift and scale of the last norm."""
        return MODULATIONS * self.layers + 2


COGVIDEOX_5B = CogVideoXConfig()
COGVIDEOX_2B = CogVideoXConfig(width=1920, layers=30, positions=SINCOS)


def modulation(ops: VideoOps[V], t: V, config: CogVideoXConfig) -> V:
    """Return the modulation `[B,modulation_rows,width]` of timesteps `[B]`, in 32 bits.

    A layer has shift, scale and gate of the image before attention, the same before the MLP, then
    all six of the text. Scales are complete factors, 1 included.
    """
    width, inner = config.width, config.time_dim
    e = ops.linear(ops.sinusoid(t, width), "time_embed.0", width, inner, precise=True)
    e = ops.tap("emb", ops.linear(ops.silu(e), "time_embed.2", inner, inner, precise=True))
    e = ops.compute(ops.silu(e))
    rows = []
    for i in range(config.layers):
        name = f"mixins.adaln_layer.adaLN_modulations.{i}.1"
        flat = ops.linear(e, name, inner, MODULATIONS * width)
        rows.append(ops.as_rows(ops.precise(ops.tap(f"L{i}.modulation", flat)), width))
    final = ops.linear(e, "mixins.final_layer.adaLN_modulation.1", inner, 2 * width)
    rows.append(ops.as_rows(ops.precise(final), width))
    return ops.add_constant(ops.join(rows), "ones_of_scales", _ones_of_scales(config))


def _ones_of_scales(config: CogVideoXConfig) -> np.ndarray:
    ones = np.zeros((config.modulation_rows, 1), np.float32)
    for scale in SCALES:
        ones[scale : MODULATIONS * config.layers : MODULATIONS] = 1
    ones[-1] = 1
    return ones


def denoiser(
    ops: VideoOps[V],
    x: V,
    hint: V,
    modulations: V,
    embedding: V,
    positions: Sequence[V],
    config: CogVideoXConfig,
) -> V:
    """Predict the velocity `[B,T,C,h,w]` in 32 bits.

    Takes noisy and low-quality latents `x` and `hint` of the same shape, the `modulation` of the
    batch or of each entry, the prompts' embedding `[B,text_length,text_dim]`, and as `positions`
    cosine and sine `[T*h/2*w/2,head_dim/2]` or the table `[T*h/2*w/2,width]`, as the module
    `positions` makes them.
    """
    width, channels = config.width, config.latent_channels
    maps = ops.compute(ops.concat(ops.frame_maps(x), ops.frame_maps(hint)))
    patch, flush = config.patch, (0, 0, 0, 0)
    name = "mixins.patch_embed.proj_sr"
    maps = ops.conv(maps, name, 2 * channels, width, patch, patch, padding=flush)
    image = ops.precise(ops.map_tokens(maps, width, x))
    name = "mixins.patch_embed.text_proj"
    text = ops.precise(ops.linear(ops.compute(embedding), name, config.text_dim, width))
    turns: tuple[V, ...] = ()
    if config.positions == ROTARY:
        pairs, count = config.head_dim // 2, config.text_length
        # Text does not turn.
        turns = tuple(
            ops.lead_rows(table, value, count, pairs)
            for table, value in zip(positions, (1.0, 0.0), strict=True)
        )
    else:
        (table,) = positions
        image = ops.add(image, table)
    text, image = ops.tap("tokens.text", text), ops.tap("tokens.image", image)
    for i in range(config.layers):
        rows = ops.channels(modulations, MODULATIONS * i, MODULATIONS * (i + 1))
        parts = ops.rows(rows, MODULATIONS)
        text, image = layer(ops, i, text, image, x, parts, turns, config)
        text, image = ops.tap(f"layer{i}.out.text", text), ops.tap(f"layer{i}.out.image", image)
    image = ops.precise_norm(image, "transformer.final_layernorm", width, LAYER_EPS)
    image = ops.tap("final_layernorm", image)
    image = ops.precise_norm(image, "mixins.final_layer.norm_final", width, FINAL_EPS)
    image = ops.tap("norm_final", image)
    last = MODULATIONS * config.layers
    shift, scale = ops.rows(ops.channels(modulations, last, last + 2), 2)
    image = ops.compute(ops.tap("final_mod", ops.add(ops.mul(image, scale), shift)))
    features = channels * patch * patch
    values = ops.precise(ops.linear(image, "mixins.final_layer.linear", width, features))
    return ops.unpatch(ops.tap("final_linear", values), channels, x, patch)


def layer(
    ops: VideoOps[V],
    i: int,
    text: V,
    image: V,
    latents: V,
    parts: Sequence[V],
    turns: Sequence[V],
    config: CogVideoXConfig,
) -> tuple[V, V]:
    """Apply a layer to text and image, attention first and then the MLP.

    `parts` are its modulations `[B,1,width]`, `turns` cosine and sine of all tokens unless the
    positions are added.
    """
    width, count, name = config.width, config.text_length, f"transformer.layers.{i}"

    def modulated(x: V, norm: str, shift: int, role: str) -> V:
        normed = ops.precise_norm(x, f"{name}.{norm}", width, LAYER_EPS)
        normed = ops.tap(f"L{i}.{norm}#{role}", normed)
        return ops.add(ops.mul(normed, parts[shift + 1]), parts[shift])

    def added(joined: V, gate: int) -> tuple[V, V]:
        of_text, of_image = ops.split_at(ops.precise(joined), count)
        return (
            ops.add(text, ops.mul(of_text, parts[6 + gate])),
            ops.add(image, ops.mul(of_image, parts[gate])),
        )

    gated = liem(ops, i, modulated(image, "input_layernorm", 0, "0"), latents, config)
    joined = ops.concat(modulated(text, "input_layernorm", 6, "1"), gated)
    joined = ops.compute(ops.tap(f"L{i}.attn_in", joined))
    text, image = added(attention(ops, i, joined, turns, config), 2)
    joined = ops.concat(
        modulated(text, "post_attention_layernorm", 9, "1"),
        modulated(image, "post_attention_layernorm", 3, "0"),
    )
    joined = ops.compute(ops.tap(f"L{i}.mlp_in", joined))
    hidden = ops.gelu_tanh(ops.linear(joined, f"{name}.mlp.dense_h_to_4h", width, 4 * width))
    return added(ops.linear(hidden, f"{name}.mlp.dense_4h_to_h", 4 * width, width), 5)


def attention(
    ops: VideoOps[V], i: int, joined: V, turns: Sequence[V], config: CogVideoXConfig
) -> V:
    """Apply self-attention among all tokens `[B,text_length+N,width]`."""
    width, heads = config.width, config.heads
    name = f"transformer.layers.{i}.attention"
    qkv = ops.tap(f"L{i}.qkv", ops.linear(joined, f"{name}.query_key_value", width, 3 * width))
    q, k, v = ops.split(qkv, 3)

    def prepared(part: V, kind: str) -> V:
        norm = f"mixins.adaln_layer.{kind}_layernorm_list.{i}"
        normed = ops.head_norm(part, norm, heads, config.head_dim, HEAD_EPS)
        turned = ops.rotate(normed, turns[0], turns[1], heads) if turns else normed
        return ops.compute(ops.tap(f"L{i}.{kind}", turned))

    attended = ops.attention(prepared(q, "query"), prepared(k, "key"), v, heads)
    return ops.tap(f"L{i}.attn_out", ops.linear(attended, f"{name}.dense", width, width))


def liem(ops: VideoOps[V], i: int, image: V, latents: V, config: CogVideoXConfig) -> V:
    """Gate image tokens `[B,N,width]` of the `latents`, first over each frame, then over time.

    The first gate is positive, so that the second one's maximum and mean are those of the input
    times the first gate: both are one factor for each token.
    """
    name = f"transformer.layers.{i}"
    image = ops.tap(f"L{i}.spa_in", image)
    pooled = ops.compute(ops.pool_channels(image, 2, config.width))
    maps = ops.token_maps(pooled, 2, latents, config.patch)
    logits = ops.conv(maps, f"{name}.spa_local.conv1", 2, 1, 7, bias=False)
    spatial = ops.map_tokens(ops.sigmoid(ops.precise(logits)), 1, latents)
    spatial = ops.tap(f"L{i}.spatial_gate", spatial)
    mixed = ops.linear(pooled, f"{name}.temp_local.conv1", 2, 1, bias=False)
    temporal = ops.sigmoid(ops.mul(spatial, ops.precise(mixed)))
    gate = ops.tap(f"L{i}.gate", ops.mul(spatial, temporal))
    return ops.mul(image, gate)


@cache
def declared_parameters(config: CogVideoXConfig = COGVIDEOX_5B) -> dict[str, Parameter]:
    """Return the parameters of `modulation` and `denoiser` by name."""
    ops = VideoDeclare()
    modulation(ops, None, config)
    positions = [None] * (2 if config.positions == ROTARY else 1)
    denoiser(ops, None, None, None, None, positions, config)
    return ops.parameters
