# SPDX-License-Identifier: MPL-2.0
"""What the scripts share that write small bundles for the tests of the plugin."""

import argparse
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

import starsr

ROOT = Path(__file__).resolve().parents[2]
INDEX = "index.json"


def read_options(description: str | None) -> argparse.Namespace:
    """Return the options of the command line: the folders of the references and of the output."""
    parser = argparse.ArgumentParser(description=description)
    default = Path(os.environ.get("STARSR_REFERENCE") or ROOT.parent / "shared" / "star")
    parser.add_argument("--reference", type=Path, default=default, help="(%(default)s)")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder to write, replaced once complete"
    )
    return parser.parse_args()


def fingerprint(script: str, references: Iterable[Path]) -> str:
    """Return a hash of everything that `script` makes its folder of: references and code."""
    package = Path(starsr.__path__[0])
    folders = [*references, *(package / part for part in ("bundle", "export", "models", "ops"))]
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix != ".pyc"]
    digest = hashlib.sha256()
    for path in [*sorted(files), Path(script), Path(__file__)]:
        if path.is_file():
            digest.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def is_made_of(folder: Path, mark: str) -> bool:
    """Whether `folder` is complete and of that fingerprint."""
    index = folder / INDEX
    return index.is_file() and json.loads(index.read_text("utf-8")).get("fingerprint") == mark
