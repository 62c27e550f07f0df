# SPDX-License-Identifier: MPL-2.0
"""Reads files of weights, one tensor at a time if the format allows it."""

import zipfile
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

#: What PyTorch raises when a file is no checkpoint or belongs to another network.
MISFITS = (KeyError, TypeError, ValueError, RuntimeError, EOFError, UnpicklingError)


def reason(error: Exception) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


class WeightsError(Exception):
    """A file or source of weights cannot be used. The message says why and what to do."""


class Weights(Mapping[str, Tensor]):
    """Tensors by name. `source` names their origin in messages."""

    def __init__(self, tensors: Mapping[str, Tensor], source: str) -> None:
        self._tensors = tensors
        self.source = source

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor."""
        return {name: tuple(self[name].shape) for name in self}

    def select(self, names: Container[str]) -> "Weights":
        """Return the tensors whose name is in `names`."""
        return Weights({name: self[name] for name in self if name in names}, self.source)


class Joined(Mapping[str, Tensor]):
    """The tensors of several files, of which no two have a name in common.

    Those whose name begins with one of `without` are left out.
    """

    def __init__(
        self, parts: Iterable[Mapping[str, Tensor]], without: tuple[str, ...] = ()
    ) -> None:
        self._parts = {
            name: part for part in parts for name in part if not name.startswith(without)
        }

    def __getitem__(self, name: str) -> Tensor:
        return self._parts[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


class Arrays(Mapping[str, np.ndarray]):
    """Weights as 32-bit NumPy arrays, converted on each access and not kept."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights

    def __getitem__(self, name: str) -> np.ndarray:
        return self._weights[name].float().numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


class Floats(Mapping[str, Tensor]):
    """Weights as 32-bit tensors, converted on each access and not kept."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights

    def __getitem__(self, name: str) -> Tensor:
        return self._weights[name].float()

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


class _Safetensors(Mapping[str, Tensor]):
    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, framework="pt")
        self._names = dict.fromkeys(self._file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read(path: Path) -> Weights:
    """Read a safetensors file or a PyTorch checkpoint, bare or under a key.

    The key is `state_dict`, or `module` as DeepSpeed writes it. Raises `WeightsError`.
    """
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as e:
        raise WeightsError(f"{path} cannot be read: {e.strerror}") from e
    _check_start(path, start)
    try:
        if path.suffix == ".safetensors":
            return Weights(_Safetensors(path), str(path))
        loaded = _load(path)
    except SafetensorError as e:
        raise WeightsError(
            f"{path} is no complete safetensors file ({e}): download it again"
        ) from e
    for key in ("state_dict", "module"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if (
        not isinstance(loaded, dict)
        or not loaded
        or not all(isinstance(v, Tensor) for v in loaded.values())
    ):
        raise WeightsError(
            f"{path} holds no state dict, a dictionary of tensors: it is not a checkpoint"
        )
    return Weights(loaded, str(path))


def _check_start(path: Path, start: bytes) -> None:
    """Raise `WeightsError` if a file is what failed downloads leave."""
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise WeightsError(
            f"{path} is a web page and not a checkpoint: download the file itself, not the page "
            "about it"
        )
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(
            f"{path} is a Git LFS pointer and not a checkpoint: run `git lfs pull` in its folder"
        )
    if not start:
        raise WeightsError(f"{path} is empty: download it again")


def _load(path: Path) -> Any:
    zipped = zipfile.is_zipfile(path)
    with path.open("rb") as file:
        cut = not zipped and file.read(4) == b"PK\x03\x04"
    if cut:
        size = path.stat().st_size
        raise WeightsError(
            f"{path} is incomplete, its end is missing after {size:,} bytes: download it again"
        )
    try:
        # Mapped into memory, since a copy would take as much memory as the file.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as e:
        raise WeightsError(
            f"{path} is not a PyTorch checkpoint that can be read ({reason(e)}): download it again"
        ) from e


def compare_names(
    wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], what: str
) -> None:
    """Compare names and shapes of tensors.

    Raises `ValueError` that says how the tensors `found` differ from those `wanted` for `what`.
    """

    def some(names: Iterable[str]) -> str:
        listed = sorted(names)
        more = f" and {len(listed) - 4} more" if len(listed) > 4 else ""
        return ", ".join(listed[:4]) + more

    other = [
        f"{name} {list(found[name])} instead of {list(wanted[name])}"
        for name in wanted.keys() & found.keys()
        if tuple(found[name]) != tuple(wanted[name])
    ]
    differences = {
        "missing": wanted.keys() - found.keys(),
        "unknown": found.keys() - wanted.keys(),
        "of another shape": other,
    }
    parts = [f"{len(names)} {word}: {some(names)}" for word, names in differences.items() if names]
    if parts:
        raise ValueError(f"these are not the tensors of {what}: " + "; ".join(parts))
