# SPDX-License-Identifier: MPL-2.0
"""Writes model bundles: a folder of ONNX graphs and `bundle.toml` (format: models/README.md)."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import onnx


def toml_value(value) -> str:
    """A scalar as TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    return repr(value)


def toml(tables: dict, prefix: str = "") -> str:
    """Nested tables of scalars as TOML text."""
    scalars = [f"{key} = {toml_value(value)}" for key, value in tables.items() if not isinstance(value, dict)]
    text = "\n".join(([f"[{prefix}]"] if prefix and scalars else []) + scalars) + ("\n" if scalars else "")
    for key, value in tables.items():
        if isinstance(value, dict):
            text += ("\n" if text else "") + toml(value, f"{prefix}.{key}" if prefix else key)
    return text


def write(folder: Path, manifest: dict, graphs: dict[str, onnx.ModelProto], extra: dict[str, str]) -> None:
    """Writes `folder` at once: it is complete or it is what it was before. `extra` maps file names to texts."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        work.chmod(0o755)
        entries = {}
        for role, graph in graphs.items():
            onnx.checker.check_model(graph)
            data = graph.SerializeToString(deterministic=True)
            (work / f"{role}.onnx").write_bytes(data)
            entries[role] = {"file": f"{role}.onnx", "sha256": hashlib.sha256(data).hexdigest()}
        (work / "bundle.toml").write_text(toml({**manifest, "graphs": entries}), encoding="utf-8")
        for name, text in extra.items():
            (work / name).write_text(text, encoding="utf-8")
        if folder.exists():
            old = work.with_suffix(".old")
            os.replace(folder, old)
            os.replace(work, folder)
            shutil.rmtree(old)
        else:
            os.replace(work, folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
