# SPDX-License-Identifier: MPL-2.0

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "python"))


def folder(variable: str, default: str) -> Path:
    """A folder outside the project, named by an environment variable or at its usual place beside the checkout."""
    path = Path(os.environ.get(variable, ROOT.parent / "shared" / default))
    if not path.is_dir():
        pytest.skip(f"{path} is missing: set {variable} to the folder with the reference files")
    return path


@pytest.fixture
def reference() -> Path:
    return folder("STARSR_REFERENCE", "star")


@pytest.fixture
def media() -> Path:
    return folder("STARSR_MEDIA", "media")


@pytest.fixture
def nano_folder() -> Path:
    return ROOT / "models" / "nano"


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two small photographs made on the spot: smooth noise, which has detail at every scale."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    target = tmp_path / "photos"
    target.mkdir()
    for index in range(2):
        layers = [
            np.asarray(Image.fromarray(rng.integers(0, 256, (n, n, 3), np.uint8)).resize((320, 320)), np.float32)
            for n in (4, 20, 80)
        ]
        Image.fromarray(np.clip(sum(layers) / 3, 0, 255).astype(np.uint8)).save(target / f"photo{index}.png")
    return target
