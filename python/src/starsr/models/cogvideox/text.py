# SPDX-License-Identifier: MPL-2.0
"""T5 v1.1's encoder, which embeds prompts for CogVideoX, with transformers' parameter names.

Prompts are padded to their full length, and the padding is attended like text, as the authors'
program does.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6
#: Entry of an empty prompt, and what fills the rest.
END, PAD = 1, 0
#: Relative positions of each sign are counted up to half of their buckets, then in logarithmic
#: steps up to this distance.
MAX_DISTANCE = 128


@dataclass(frozen=True)
class T5Config:
    """Sizes of the encoder. The defaults are those of T5 v1.1 XXL."""

    width: int = 4096
    heads: int = 64
    head_dim: int = 64
    hidden: int = 10240
    layers: int = 24
    vocabulary: int = 32128
    buckets: int = 32


XXL = T5Config()
#: Parts of whole T5 models that the encoder does not need, and a second name of its first tensor.
NEEDLESS = ("decoder.", "lm_head.", "encoder.embed_tokens.")


def config_of(found: Mapping[str, tuple[int, ...]]) -> T5Config:
    """Return the sizes of the encoder whose parameters have the shapes `found`.

    Raises `ValueError` if one that tells them is missing.
    """
    first = "encoder.block.0.layer."
    try:
        vocabulary, width = found["shared.weight"]
        buckets, heads = found[f"{first}0.SelfAttention.relative_attention_bias.weight"]
        inner, _ = found[f"{first}0.SelfAttention.q.weight"]
        hidden, _ = found[f"{first}1.DenseReluDense.wi_0.weight"]
    except KeyError as e:
        raise ValueError(f"{e.args[0]} is missing") from e
    numbers = (re.match(r"encoder\.block\.(\d+)\.", name) for name in found)
    layers = 1 + max(int(n[1]) for n in numbers if n)
    return T5Config(width, heads, inner // heads, hidden, layers, vocabulary, buckets)


def shapes(config: T5Config = XXL) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the encoder's parameters."""
    width, inner = config.width, config.heads * config.head_dim
    result: dict[str, tuple[int, ...]] = {
        "shared.weight": (config.vocabulary, width),
        "encoder.final_layer_norm.weight": (width,),
    }
    for i in range(config.layers):
        attention, feed = f"encoder.block.{i}.layer.0", f"encoder.block.{i}.layer.1"
        for part in "qkv":
            result[f"{attention}.SelfAttention.{part}.weight"] = (inner, width)
        result[f"{attention}.SelfAttention.o.weight"] = (width, inner)
        if i == 0:
            bias = f"{attention}.SelfAttention.relative_attention_bias.weight"
            result[bias] = (config.buckets, config.heads)
        for part in ("wi_0", "wi_1"):
            result[f"{feed}.DenseReluDense.{part}.weight"] = (config.hidden, width)
        result[f"{feed}.DenseReluDense.wo.weight"] = (width, config.hidden)
        result |= {f"{layer}.layer_norm.weight": (width,) for layer in (attention, feed)}
    return result


def empty_prompt(length: int) -> Tensor:
    """Return the tokens `[1,length]` of a prompt without text."""
    tokens = torch.full((1, length), PAD)
    tokens[0, 0] = END
    return tokens


def relative_buckets(length: int, buckets: int) -> Tensor:
    """Return the bucket `[length,length]` of each key's position relative to each query's."""
    places = torch.arange(length)
    relative = places[None] - places[:, None]
    half = buckets // 2
    exact = half // 2
    distance = relative.abs()
    growth = torch.log(distance.clamp(min=1).float() / exact) / math.log(MAX_DISTANCE / exact)
    far = (exact + (growth * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(distance < exact, distance, far) + (relative > 0) * half


@torch.no_grad()
def encode(parameters: Mapping[str, Tensor], tokens: Tensor, config: T5Config = XXL) -> Tensor:
    """Embed tokens `[B,length]` as `[B,length,width]` in 32 bits.

    Looks each parameter up once, so that they need not be in memory together.
    """

    def norm(x: Tensor, name: str) -> Tensor:
        weight = parameters[f"{name}.layer_norm.weight"].float()
        return F.rms_norm(x, (config.width,), weight, EPS)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, parameters[f"{name}.weight"].float())

    x = parameters["shared.weight"][tokens].float()
    first = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    buckets = relative_buckets(tokens.shape[1], config.buckets)
    bias = parameters[first].float()[buckets].permute(2, 0, 1)
    for i in range(config.layers):
        name = f"encoder.block.{i}.layer.0"
        normed = norm(x, name)
        q, k, v = (
            linear(normed, f"{name}.SelfAttention.{part}")
            .unflatten(-1, (config.heads, config.head_dim))
            .transpose(1, 2)
            for part in "qkv"
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None], scale=1.0)
        x = x + linear(attended.transpose(1, 2).flatten(2), f"{name}.SelfAttention.o")
        name = f"encoder.block.{i}.layer.1"
        normed, inner = norm(x, name), f"{name}.DenseReluDense"
        gate = F.gelu(linear(normed, f"{inner}.wi_0"), approximate="tanh")
        x = x + linear(gate * linear(normed, f"{inner}.wi_1"), f"{inner}.wo")
    weight = parameters["encoder.final_layer_norm.weight"].float()
    return F.rms_norm(x, (config.width,), weight, EPS)
