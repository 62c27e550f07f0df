# SPDX-License-Identifier: MPL-2.0
"""Writes model bundles."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tomli_w
from safetensors.numpy import save

MANIFEST = "bundle.toml"
LOCK = ".lock"


class BundleError(Exception):
    """A bundle cannot be written. The message says why and what to do."""


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `folder` if the block succeeds.

    If the block fails, the new folder is removed. `folder` is therefore either complete or
    unchanged. What a killed run left behind is removed by the next one. Raises `BundleError`.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = folder.with_name(f".{folder.name}.partial")
    work.mkdir(exist_ok=True)
    with (work / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            raise BundleError(
                f"{folder} is being written by another process: wait for it, or choose another "
                "folder"
            ) from e
        _empty(work)
        try:
            yield work
            (work / LOCK).unlink()
            if folder.exists():
                old = folder.with_name(f".{folder.name}.old")
                shutil.rmtree(old, ignore_errors=True)
                os.replace(folder, old)
                os.replace(work, folder)
                shutil.rmtree(old)
            else:
                os.replace(work, folder)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise


def _empty(work: Path) -> None:
    for entry in work.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
            entry.unlink()


def write_manifest(
    work: Path,
    manifest: Mapping[str, Any],
    files: Mapping[str, Mapping[str, str]],
    forms: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
) -> None:
    """Write the manifest.

    `files` are those of each role with their SHA-256, the graph first and then its data. `forms`
    are the tables of the other precisions of each role's graph.
    """
    graphs: dict[str, dict[str, Any]] = {}
    for role, entries in files.items():
        (graph, sha256), *data = entries.items()
        graphs[role] = {"file": graph, "sha256": sha256}
        if data:
            graphs[role]["data"] = [{"file": name, "sha256": sha256} for name, sha256 in data]
    for role, tables in (forms or {}).items():
        graphs[role] |= {precision: dict(table) for precision, table in tables.items()}
    text = tomli_w.dumps({**manifest, "graphs": graphs})
    (work / MANIFEST).write_text(text, encoding="utf-8")


def write_embeddings(path: Path, tokens: np.ndarray, embeddings: np.ndarray) -> str:
    """Write token ids `[N,77]` and their embeddings `[N,77,D]`; return the file's SHA-256."""
    data = save({"tokens": tokens.astype(np.int64), "embeddings": embeddings.astype(np.float32)})
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def write(
    folder: Path,
    manifest: Mapping[str, Any],
    graphs: Mapping[str, onnx.ModelProto],
    extra: Mapping[str, str],
) -> None:
    """Write a bundle of graphs that hold their weights.

    `extra` maps the names of further files to their texts.
    """
    with staged(folder) as work:
        files = {}
        for role, graph in graphs.items():
            onnx.checker.check_model(graph)
            data = graph.SerializeToString(deterministic=True)
            (work / f"{role}.onnx").write_bytes(data)
            files[role] = {f"{role}.onnx": hashlib.sha256(data).hexdigest()}
        write_manifest(work, manifest, files)
        for name, text in extra.items():
            (work / name).write_text(text, encoding="utf-8")
