# SPDX-License-Identifier: MPL-2.0
"""Checkpoints of STAR on CogVideoX, in the layout of SwissArmyTransformer (SAT).

A checkpoint holds the weights of attention and their low-rank updates (LoRA) apart, or only the
weights. It may hold the autoencoder and the text encoder too, which are ignored.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from starsr.models.cogvideox.network import (
    ROTARY,
    SINCOS,
    CogVideoXConfig,
    declared_parameters,
)
from starsr.models.weights import Weights, compare_names

#: Prefix of the network's names in whole checkpoints, and of those that hold other networks.
PREFIX = "model.diffusion_model."
OTHERS = ("first_stage_model.", "conditioner.")
#: Tables that are computed here, and one that nothing reads.
TABLES = ("mixins.pos_embed.freqs_cos", "mixins.pos_embed.freqs_sin")
ADDED_TABLE = "mixins.pos_embed.pos_embedding"
UNUSED = "transformer.position_embeddings.weight"
#: Linear layers with low-rank updates, and how many parts of their rows have one of their own.
ADAPTED = {"query_key_value": 3, "dense": 1}
#: Widths of the released networks and the kind of their positions.
KINDS = {3072: ROTARY, 1920: SINCOS}
TEXT_LENGTH = 226


class CheckpointError(ValueError):
    """Tensors are not those of STAR on CogVideoX. The message says how they differ."""


Shapes = Mapping[str, tuple[int, ...]]


def inner_names(names: Mapping[str, object]) -> dict[str, str]:
    """Return the names of a checkpoint's network without a prefix, each with its full name."""
    return {name.removeprefix(PREFIX): name for name in names if not name.startswith(OTHERS)}


def config_of(shapes: Shapes, text_length: int = TEXT_LENGTH) -> CogVideoXConfig:
    """Return the sizes of the network whose parameters have the `shapes`.

    The length of prompts does not appear in them. Raises `CheckpointError`.
    """

    def shape(name: str, axes: int) -> tuple[int, ...]:
        if name not in shapes:
            raise CheckpointError(f"{name} is missing")
        if len(shapes[name]) != axes:
            raise CheckpointError(f"{name} has the shape {list(shapes[name])}")
        return shapes[name]

    width, text_dim = shape("mixins.patch_embed.text_proj.weight", 2)
    _, both, patch, _ = shape("mixins.patch_embed.proj_sr.weight", 4)
    numbers = (re.match(r"transformer\.layers\.(\d+)\.", name) for name in shapes)
    if TABLES[0] in shapes:
        positions = ROTARY
    elif ADDED_TABLE in shapes:
        positions = SINCOS
    else:
        positions = KINDS.get(width, ROTARY)
    return CogVideoXConfig(
        width=width,
        layers=1 + max((int(n[1]) for n in numbers if n), default=-1),
        head_dim=shape("mixins.adaln_layer.query_layernorm_list.0.weight", 1)[0],
        time_dim=shape("time_embed.0.weight", 2)[0],
        text_dim=text_dim,
        text_length=text_length,
        latent_channels=both // 2,
        patch=patch,
        positions=positions,
    )


def checkpoint_shapes(config: CogVideoXConfig, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a complete checkpoint.

    `shapes` are those of the one at hand, which tells what a checkpoint may choose: whether a
    linear layer has a low-rank update and of which rank, and which tables are there.
    """
    wanted: dict[str, tuple[int, ...]] = {}
    for name, parameter in declared_parameters(config).items():
        base, _, kind = name.rpartition(".")
        parts = ADAPTED.get(base.rpartition(".")[2], 0)
        original = f"{base}.original.{kind}"
        if not parts or (name in shapes and original not in shapes):
            wanted[name] = parameter.shape
            continue
        wanted[original] = parameter.shape
        first = shapes.get(f"{base}.matrix_A.0", ())
        rank = first[0] if len(first) == 2 else 0
        for part in range(parts):
            wanted[f"{base}.matrix_A.{part}"] = (rank, config.width)
            wanted[f"{base}.matrix_B.{part}"] = (config.width, rank)
    tables: Shapes = {}
    if config.positions == ROTARY and any(name in shapes for name in TABLES):
        rows = shapes.get(TABLES[0], (0,))[0]
        tables = dict.fromkeys(TABLES, (rows, config.head_dim))
    elif config.positions == SINCOS and ADDED_TABLE in shapes:
        rows = shapes[ADDED_TABLE][1] if len(shapes[ADDED_TABLE]) == 3 else 0
        tables = {ADDED_TABLE: (1, rows, config.width)}
    unused = {UNUSED: (64, config.width)} if UNUSED in shapes else {}
    return {**wanted, **tables, **unused}


def check_names(config: CogVideoXConfig, shapes: Shapes) -> None:
    """Raise `CheckpointError` unless `shapes` are those of a complete checkpoint."""
    try:
        compare_names(checkpoint_shapes(config, shapes), shapes, "STAR on CogVideoX")
    except ValueError as e:
        raise CheckpointError(str(e)) from e


class Merged(Mapping[str, Tensor]):
    """The parameters of a network, with low-rank updates merged in 32 bits on each access.

    `tensors` are those of a checkpoint, `names` the full name of each inner one.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], names: Mapping[str, str], config: CogVideoXConfig
    ) -> None:
        self._tensors, self._names = tensors, names
        self._declared = declared_parameters(config)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._declared:
            raise KeyError(name)
        base, _, kind = name.rpartition(".")
        original = f"{base}.original.{kind}"
        if original not in self._names:
            return self._of(name)
        value = self._of(original)
        if kind != "weight":
            return value
        updates = []
        for part in range(ADAPTED[base.rpartition(".")[2]]):
            a, b = (self._of(f"{base}.matrix_{m}.{part}").float() for m in "AB")
            updates.append(b @ a / len(a))
        return value.float() + torch.cat(updates)

    def _of(self, name: str) -> Tensor:
        return self._tensors[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._declared)

    def __len__(self) -> int:
        return len(self._declared)


def merged(
    found: Weights, positions: str | None = None, text_length: int = TEXT_LENGTH
) -> tuple[Merged, CogVideoXConfig]:
    """Return the network's parameters and sizes.

    `positions` replaces what the names tell, for files without tables. Raises `CheckpointError`.
    """
    names = inner_names(found)
    all_shapes = found.shapes()
    shapes = {inner: all_shapes[full] for inner, full in names.items()}
    config = config_of(shapes, text_length)
    if positions is not None:
        config = replace(config, positions=positions)
    check_names(config, shapes)
    return Merged(found, names, config), config
