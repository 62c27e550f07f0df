# SPDX-License-Identifier: MPL-2.0
"""T5 v1.1's encoder, which embeds prompts for CogVideoX, with transformers' parameter names.

Prompts are padded to their full length, and the padding is attended like text, as the authors'
program does.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from starsr.ops import Parameter
from starsr.ops.primitives import V
from starsr.ops.video_ops import VideoDeclare
from starsr.ops.video_primitives import VideoOps

EPS = 1e-6
#: Token at the end of a text, and what fills the rest.
END, PAD = 1, 0
#: Tokens `<extra_id_99>` to `<extra_id_0>`, which follow those of the tokenizer's file.
SENTINELS = 100
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


def padded(ids: Sequence[int], length: int) -> tuple[Tensor, int]:
    """Return the tokens `[1,length]` of a text's `ids`, and how many of these do not fit."""
    kept = [*ids[: length - 1], END]
    tokens = torch.tensor([kept + [PAD] * (length - len(kept))])
    return tokens, max(len(ids) + 1 - length, 0)


def tokenize(text: str, model: bytes, length: int) -> tuple[Tensor, int]:
    """Return the tokens `[1,length]` of a text, and how many tokens at its end do not fit.

    `model` is the content of T5's file `spiece.model`. The tokens are those of transformers' slow
    tokenizer.
    """
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_proto=model)
    first = processor.get_piece_size() + SENTINELS - 1
    special = {f"<extra_id_{i}>": first - i for i in range(SENTINELS)}
    special |= {piece: processor.piece_to_id(piece) for piece in ("<pad>", "</s>", "<unk>")}
    ids: list[int] = []
    for part in re.split(f"({'|'.join(map(re.escape, special))})", text):
        ids += [special[part]] if part in special else processor.encode(part)
    return padded(ids, length)


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


def encode_text(ops: VideoOps[V], tokens: V, length: int, config: T5Config = XXL) -> V:
    """Embed tokens `[B,length]` as `[B,length,width]` in 32 bits.

    The stream between layers and the norms have 32 bits. So does the inside of the gated layers,
    whose values exceed what fp16 can hold.
    """
    width, inner = config.width, config.heads * config.head_dim
    first = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    buckets = relative_buckets(length, config.buckets).numpy()
    x = ops.precise(ops.lookup(tokens, "shared.weight", config.vocabulary, width))
    for i in range(config.layers):
        layer = f"encoder.block.{i}.layer.0"
        name = f"{layer}.SelfAttention"
        normed = ops.compute(ops.rms_norm(x, f"{layer}.layer_norm", width, EPS))
        q, k, v = (ops.linear(normed, f"{name}.{part}", width, inner, bias=False) for part in "qkv")
        attended = ops.relative_attention(q, k, v, config.heads, first, buckets, config.buckets)
        attended = ops.linear(attended, f"{name}.o", inner, width, bias=False)
        x = ops.add(x, ops.precise(attended))
        layer = f"encoder.block.{i}.layer.1"
        name = f"{layer}.DenseReluDense"
        normed = ops.compute(ops.rms_norm(x, f"{layer}.layer_norm", width, EPS))
        gate, value = (
            ops.linear(normed, f"{name}.{part}", width, config.hidden, bias=False)
            for part in ("wi_0", "wi_1")
        )
        gated = ops.mul(ops.precise(ops.gelu_tanh(gate)), ops.precise(value))
        x = ops.add(x, ops.wide_linear(gated, f"{name}.wo", config.hidden, width))
    return ops.rms_norm(x, "encoder.final_layer_norm", width, EPS)


@cache
def declared_parameters(config: T5Config = XXL) -> dict[str, Parameter]:
    """Return the parameters of `encode_text` by name."""
    ops = VideoDeclare()
    encode_text(ops, None, 2, config)
    return ops.parameters
