# SPDX-License-Identifier: MPL-2.0
"""Random weights that are the same for the bundle and for PyTorch, and the sizes of networks."""

import hashlib
import math
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from unittest.mock import MagicMock

import numpy as np
import torch

#: What the package imports, but these tools do not use.
NEEDLESS = ("safetensors", "safetensors.numpy", "safetensors.torch", "tqdm")
missing = [name for name in NEEDLESS if find_spec(name.split(".")[0]) is None]
sys.modules.update({name: MagicMock() for name in missing})

from starsr.models.star import network, vae  # noqa: E402

#: Sizes of the released networks, and of small ones for a trial.
SIZES = {
    False: (network.STAR, vae.SVD),
    True: (
        network.StarConfig(dim=32, head_dim=16, num_heads=2, context_dim=32),
        vae.VaeConfig((32, 32, 64, 64)),
    ),
}


class RandomWeights(Mapping[str, np.ndarray]):
    """16-bit weights by name, each made on `device` when it is asked for."""

    def __init__(self, declared: Mapping[str, object], device: str) -> None:
        self.declared, self.device = declared, device

    def tensor(self, name: str) -> torch.Tensor:
        """Return the weight `name` on the device."""
        shape = self.declared[name].shape
        seed = int(hashlib.md5(name.encode()).hexdigest()[:12], 16)
        generator = torch.Generator(self.device).manual_seed(seed)
        x = torch.randn(shape, generator=generator, device=self.device)
        if len(shape) == 1:
            return (0.1 * x + (1.0 if name.endswith("weight") else 0.0)).half()
        return (x / math.sqrt(math.prod(shape[1:]))).half()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all weights on the device."""
        return {name: self.tensor(name) for name in self.declared}

    def __getitem__(self, name: str) -> np.ndarray:
        return self.tensor(name).cpu().numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self.declared)

    def __len__(self) -> int:
        return len(self.declared)
