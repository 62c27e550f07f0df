# SPDX-License-Identifier: MPL-2.0
"""STAR's text encoder and the official prompts.

The encoder is the text tower of OpenCLIP's ViT-H-14 up to its penultimate block, with OpenCLIP's
parameter names.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from starsr.ops import Declare, Parameter
from starsr.ops.primitives import Ops, V

CONTEXT = 77
VOCABULARY = 49408

DEFAULT = "a good video"
SUFFIX = (
    "Cinematic, High Contrast, highly detailed, taken using a Canon EOS R camera,   "
    "hyper detailed photo - realistic maximum detail, 32k, Color Grading, ultra HD, extreme "
    "meticulous detailing,  skin pore detailing, hyper sharpness, perfect without deformations."
)
NEGATIVE = (
    "painting, oil painting, illustration, drawing, art, sketch, oil painting, cartoon, CG Style, "
    "3D render, unreal engine, blurring, dirty, messy, worst quality, low quality, frames, "
    "watermark, signature, jpeg artifacts, deformed, lowres, over-smooth"
)


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the text tower. The defaults are those of ViT-H-14."""

    width: int = 1024
    heads: int = 16
    layers: int = 24


VIT_H_14 = TextConfig()


def tokenize(text: str) -> np.ndarray:
    """Return the token ids `[77]` of `text`, as OpenCLIP does.

    They are start, text, end and zeros; text that is too long is cut.
    """
    from open_clip import tokenize as clip_tokenize

    return clip_tokenize([text], CONTEXT)[0].numpy()


def block(ops: Ops[V], name: str, x: V, config: TextConfig) -> V:
    """Apply one transformer block to tokens `[B,77,width]`."""
    width = config.width
    normed = ops.layer_norm(x, f"{name}.ln_1", width)
    joined = ops.linear(normed, f"{name}.attn.in_proj", width, 3 * width, joint="_")
    q, k, v = ops.split(joined, 3)
    attended = ops.attention(q, k, v, config.heads, causal=True)
    x = ops.add(x, ops.linear(attended, f"{name}.attn.out_proj", width, width))
    normed = ops.layer_norm(x, f"{name}.ln_2", width)
    hidden = ops.gelu(ops.linear(normed, f"{name}.mlp.c_fc", width, 4 * width))
    return ops.add(x, ops.linear(hidden, f"{name}.mlp.c_proj", 4 * width, width))


def encode_text(ops: Ops[V], tokens: V, config: TextConfig = VIT_H_14) -> V:
    """Embed token ids `[B,77]` as `[B,77,width]` in 32 bits.

    Applies all blocks but the last, then the final norm.
    """
    x = ops.lookup(tokens, "token_embedding.weight", VOCABULARY, config.width)
    x = ops.add_rows(x, "positional_embedding", CONTEXT, config.width)
    for i in range(config.layers - 1):
        x = block(ops, f"transformer.resblocks.{i}", x, config)
    return ops.precise(ops.layer_norm(x, "ln_final", config.width))


@cache
def declared_parameters(config: TextConfig = VIT_H_14) -> dict[str, Parameter]:
    """Return the parameters of `encode_text` by name."""
    ops = Declare()
    encode_text(ops, None, config)
    return ops.parameters
