# SPDX-License-Identifier: MPL-2.0
"""Fixtures that several test files share, and the rule for missing references."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from browser import Browser, chromium
from small_star import Networks, read_networks
from starsr.models.star.network import StarConfig
from starsr.models.star.vae import VaeConfig

# Tests download nothing. The hub's library, which reads this, is imported only when it is used.
os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = Path(__file__).resolve().parents[2]
#: With this variable set to 1, a test fails whose references or programs are missing.
REQUIRE = "STARSR_REQUIRE_REFERENCES"
#: Begins the reason of each skipped test that lacks something.
MISSING = "missing: "


def skip_or_fail(reason: str) -> NoReturn:
    """Skip a test that lacks references or a program, or fail it if they are required."""
    if os.environ.get(REQUIRE) == "1":
        raise pytest.fail.Exception(MISSING + reason)
    raise pytest.skip.Exception(MISSING + reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many tests lacked something."""
    skipped = terminalreporter.stats.get("skipped", [])
    count = sum(MISSING in str(report.longrepr) for report in skipped)
    if count:
        terminalreporter.write_line(
            f"{count} tests were skipped because references or programs are missing; with "
            f"{REQUIRE}=1 they would fail"
        )


def place(variable: str, default: str) -> Path:
    """Return a folder outside the project: the variable's, or the one beside the checkout."""
    return Path(os.environ.get(variable) or ROOT.parent / "shared" / default)


def folder(variable: str, default: str) -> Path:
    """Return the folder `place` or leave the test by `skip_or_fail`."""
    path = place(variable, default)
    if not path.is_dir():
        skip_or_fail(f"{path}; set {variable} to the folder of the reference files")
    return path


def reference_cases(index: str, key: str, having: str | None = None) -> list[str]:
    """Return the names of the cases that a file of the reference folder lists under `key`.

    `having` selects those with such an entry. The names are parameters of a test.
    """
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
def golden_networks() -> Networks:
    """The reference's small networks and autoencoder."""
    return read_networks(folder("STARSR_REFERENCE", "star"))


@pytest.fixture(scope="session")
def golden_star(golden_networks: Networks) -> tuple[StarConfig, Mapping[str, Tensor]]:
    """Configuration and weights of the small networks of `golden_small`."""
    return golden_networks.config, golden_networks.star


@pytest.fixture(scope="session")
def golden_vae(golden_networks: Networks) -> tuple[VaeConfig, Mapping[str, Tensor]]:
    """Configuration and weights of the small autoencoder of `golden_vae`."""
    return golden_networks.vae_config, golden_networks.vae


@pytest.fixture
def nano_folder() -> Path:
    return ROOT / "models" / "nano"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two small photographs of smooth noise, which has detail at every scale."""
    rng = np.random.default_rng(0)
    target = tmp_path / "photos"
    target.mkdir()
    for index in range(2):
        layers = []
        for n in (4, 20, 80):
            noise = Image.fromarray(rng.integers(0, 256, (n, n, 3), np.uint8))
            layers.append(np.asarray(noise.resize((320, 320)), np.float32))
        levels = np.clip(np.sum(layers, 0) / 3, 0, 255).astype(np.uint8)
        Image.fromarray(levels).save(target / f"photo{index}.png")
    return target


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser that tests pages."""
    if not shutil.which("chromedriver"):
        skip_or_fail("chromedriver, which tests pages; run tools/install-system tests")
    with chromium(tmp_path_factory.mktemp("browser") / "log") as session:
        yield session
