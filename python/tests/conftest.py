# SPDX-License-Identifier: MPL-2.0

import json
import os
import sys
from pathlib import Path
from typing import NoReturn

import pytest

# Before anything imports the hub's library: tests fetch nothing.
os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "python" / "src"))


def skip_or_fail(reason: str) -> NoReturn:
    """Skips a test for which something is missing; in continuous integration, where nothing may be, it fails."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


def place(variable: str, default: str) -> Path:
    """Where a folder outside the project is: as an environment variable says, or beside the checkout."""
    return Path(os.environ.get(variable, ROOT.parent / "shared" / default))


def folder(variable: str, default: str) -> Path:
    """As `place`; where it is missing the test is left by `skip_or_fail`."""
    path = place(variable, default)
    if not path.is_dir():
        skip_or_fail(f"{path} is missing: set {variable} to the folder with the reference files")
    return path


def reference_cases(index: str, key: str, having: str | None = None) -> list[str]:
    """Names of all cases (or of those `having` an entry) that the file `index` of the reference folder lists under `key`, as
    parameters of a test."""
    path = place("STARSR_REFERENCE", "star") / index
    if not path.is_file():
        return ["missing"]
    cases = json.loads(path.read_text(encoding="utf-8"))[key]
    return [name for name, case in cases.items() if having is None or having in case]


@pytest.fixture
def reference() -> Path:
    return folder("STARSR_REFERENCE", "star")


@pytest.fixture
def media() -> Path:
    return folder("STARSR_MEDIA", "media")


@pytest.fixture(scope="session")
def golden_networks():
    """Weights of the reference's small networks and autoencoder, and their sizes."""
    from small_star import read_networks

    return read_networks(folder("STARSR_REFERENCE", "star"))


@pytest.fixture(scope="session")
def golden_star(golden_networks):
    """Configuration and weights of the small networks of `golden_small`."""
    star, _, config, _ = golden_networks
    return config, star


@pytest.fixture(scope="session")
def golden_vae(golden_networks):
    """Configuration and weights of the small autoencoder of `golden_vae`."""
    _, vae, _, config = golden_networks
    return config, vae


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
