# SPDX-License-Identifier: MPL-2.0

import json
import os
import sys
from pathlib import Path

import pytest

# Before anything imports the hub's library: tests fetch nothing.
os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "python"))


def place(variable: str, default: str) -> Path:
    """Where a folder outside the project is: as an environment variable says, or beside the checkout."""
    return Path(os.environ.get(variable, ROOT.parent / "shared" / default))


def folder(variable: str, default: str) -> Path:
    """As `place`; the test is skipped where it is missing."""
    path = place(variable, default)
    if not path.is_dir():
        pytest.skip(f"{path} is missing: set {variable} to the folder with the reference files")
    return path


def reference_cases(index: str, key: str) -> list:
    """Names of all cases that the file `index` of the reference folder lists under `key`, as parameters of a test."""
    path = place("STARSR_REFERENCE", "star") / index
    if not path.is_file():
        return [pytest.param(None, marks=pytest.mark.skip(f"{path} is missing: set STARSR_REFERENCE"))]
    return list(json.loads(path.read_text(encoding="utf-8"))[key])


@pytest.fixture
def reference() -> Path:
    return folder("STARSR_REFERENCE", "star")


@pytest.fixture
def media() -> Path:
    return folder("STARSR_MEDIA", "media")


@pytest.fixture(scope="session")
def golden_star():
    """Configuration and weights of the small networks of `golden_small`."""
    from safetensors.torch import load_file

    from starsr.star.network import StarConfig

    small = folder("STARSR_REFERENCE", "star") / "golden_small"
    sizes = json.loads((small / "config.json").read_text(encoding="utf-8"))["constructor_args"]
    config = StarConfig(
        in_dim=sizes["in_dim"],
        out_dim=sizes["out_dim"],
        dim=sizes["dim"],
        dim_mult=tuple(sizes["dim_mult"]),
        num_res_blocks=sizes["num_res_blocks"],
        attention_levels=len(sizes["attn_scales"]),
        head_dim=sizes["head_dim"],
        num_heads=sizes["num_heads"],
        context_dim=sizes["context_dim"],
    )
    weights = load_file(small / "state_dict.f16.safetensors")
    return config, {name: tensor.float() for name, tensor in weights.items()}


@pytest.fixture(scope="session")
def golden_vae():
    """Configuration and weights of the small autoencoder of `golden_vae`."""
    from safetensors.torch import load_file

    from starsr.star.vae import VaeConfig

    small = folder("STARSR_REFERENCE", "star") / "golden_vae"
    config = VaeConfig.of(json.loads((small / "config.json").read_text(encoding="utf-8"))["config"])
    return config, {name: tensor.float() for name, tensor in load_file(small / "vae.f16.safetensors").items()}


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
