# SPDX-License-Identifier: MPL-2.0
"""Reading files of weights, one tensor at a time where the format allows it."""

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

#: What a file raises, as it is loaded, that is no checkpoint or one of another network.
MISFITS = (KeyError, TypeError, ValueError, RuntimeError, EOFError, UnpicklingError)


def reason(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


class WeightsError(Exception):
    """A file or source of weights cannot be used; the message says why and what to do."""


class Weights(Mapping[str, torch.Tensor]):
    """Tensors by name. `source` is what they came from, for messages."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], source: str) -> None:
        self._tensors = tensors
        self.source = source

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor."""
        return {name: tuple(self[name].shape) for name in self}

    def select(self, names) -> "Weights":
        """Only the tensors that `names` holds too."""
        return Weights({name: self[name] for name in self if name in names}, self.source)


class Arrays(Mapping[str, np.ndarray]):
    """Weights as 32-bit numpy arrays, converted when asked for and not kept."""

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        self._weights = weights

    def __getitem__(self, name: str) -> np.ndarray:
        return self._weights[name].float().numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


class Floats(Arrays):
    """Weights as 32-bit tensors, converted when asked for and not kept."""

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._weights[name].float()


class _Safetensors(Mapping[str, torch.Tensor]):
    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, framework="pt")
        self._names = dict.fromkeys(self._file.keys())

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read(path: Path) -> Weights:
    """The tensors of a PyTorch checkpoint (bare, or under a key `state_dict`) or a safetensors file. Raises `WeightsError`."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as e:
        raise WeightsError(f"{path} cannot be read: {e.strerror}") from e
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise WeightsError(f"{path} is a web page and not a checkpoint: download the file itself, not the page about it")
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is a Git LFS pointer and not a checkpoint: run `git lfs pull` in its folder")
    if not start:
        raise WeightsError(f"{path} is empty: download it again")
    try:
        if path.suffix == ".safetensors":
            return Weights(_Safetensors(path), str(path))
        loaded = _load(path)
    except SafetensorError as e:
        raise WeightsError(f"{path} is no complete safetensors file ({e}): download it again") from e
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(v, torch.Tensor) for v in loaded.values()):
        raise WeightsError(f"{path} holds no state dict, a dictionary of tensors: it is another kind of file than a checkpoint")
    return Weights(loaded, str(path))


def _load(path: Path):
    zipped = zipfile.is_zipfile(path)
    if not zipped and path.open("rb").read(4) == b"PK\x03\x04":
        size = path.stat().st_size
        raise WeightsError(f"{path} is incomplete, its end is missing after {size:,} bytes: download it again")
    try:
        # Mapped, since the whole would take as much memory as the file.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as e:
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise WeightsError(f"{path} is not a PyTorch checkpoint that can be read ({reason[:200]}): download it again") from e


def compare_names(wanted: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]], what: str) -> None:
    """Raises `ValueError` that says how the tensors `found` differ from those `wanted` for `what`."""

    def some(names) -> str:
        names = sorted(names)
        return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")

    missing, extra = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    other = [
        f"{name} {list(found[name])} instead of {list(wanted[name])}"
        for name in wanted.keys() & found.keys()
        if tuple(found[name]) != tuple(wanted[name])
    ]
    parts = [
        f"{len(names)} {word}: {some(names)}"
        for word, names in (("missing", missing), ("unknown", extra), ("of another shape", other))
        if names
    ]
    if parts:
        raise ValueError(f"these are not the tensors of {what}: " + "; ".join(parts))
