# SPDX-License-Identifier: MPL-2.0
"""The text encoder of STAR (SPEC A.3): the text tower of OpenCLIP's ViT-H-14 up to its penultimate block, described over the
primitive operations with OpenCLIP's parameter names; and the official prompts."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from starsr.ops import Declare, Parameter

CONTEXT = 77
VOCABULARY = 49408

DEFAULT = "a good video"
SUFFIX = (
    "Cinematic, High Contrast, highly detailed, taken using a Canon EOS R camera,   hyper detailed photo - realistic "
    "maximum detail, 32k, Color Grading, ultra HD, extreme meticulous detailing,  skin pore detailing, hyper sharpness, "
    "perfect without deformations."
)
NEGATIVE = (
    "painting, oil painting, illustration, drawing, art, sketch, oil painting, cartoon, CG Style, 3D render, unreal "
    "engine, blurring, dirty, messy, worst quality, low quality, frames, watermark, signature, jpeg artifacts, deformed, "
    "lowres, over-smooth"
)


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the text tower. The defaults are those of ViT-H-14."""

    width: int = 1024
    heads: int = 16
    layers: int = 24


def tokenize(text: str) -> np.ndarray:
    """Token ids `[77]` of `text`, as OpenCLIP gives them: start, text, end, zeros; what is too long is cut."""
    from open_clip import tokenize as clip_tokenize

    return clip_tokenize([text], CONTEXT)[0].numpy()


def block(ops, name, x, config):
    width = config.width
    normed = ops.layer_norm(x, f"{name}.ln_1", width)
    q, k, v = ops.split(ops.linear(normed, f"{name}.attn.in_proj", width, 3 * width, joint="_"), 3)
    attended = ops.attention(q, k, v, config.heads, causal=True)
    x = ops.add(x, ops.linear(attended, f"{name}.attn.out_proj", width, width))
    hidden = ops.gelu(ops.linear(ops.layer_norm(x, f"{name}.ln_2", width), f"{name}.mlp.c_fc", width, 4 * width))
    return ops.add(x, ops.linear(hidden, f"{name}.mlp.c_proj", 4 * width, width))


def encode_text(ops, tokens, config=TextConfig()):
    """Embedding `[B,77,width]` in 32 bits of token ids `[B,77]`: all blocks but the last, then the final norm."""
    x = ops.lookup(tokens, "token_embedding.weight", VOCABULARY, config.width)
    x = ops.add_rows(x, "positional_embedding", CONTEXT, config.width)
    for i in range(config.layers - 1):
        x = block(ops, f"transformer.resblocks.{i}", x, config)
    return ops.precise(ops.layer_norm(x, "ln_final", config.width))


@cache
def declared_parameters(config: TextConfig = TextConfig()) -> dict[str, Parameter]:
    """Name to `Parameter` of all that `encode_text` uses."""
    ops = Declare()
    encode_text(ops, None, config)
    return ops.parameters
