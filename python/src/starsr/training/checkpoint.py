# SPDX-License-Identifier: MPL-2.0
"""Checkpoints that survive any interruption, and the averaged weights."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint; an interrupted write leaves the previous one in place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    torch.save(state, temporary)
    os.replace(temporary, path)


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that training changes."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


class Average:
    """Exponential moving average of a module's trained parameters. It follows quickly at first.

    The `EMAModel` of diffusers rounds in another order, so runs would not go on to the bit with it.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p.detach().clone() for name, p in trained(module).items()}

    @torch.no_grad()
    def update(self, module: nn.Module, iteration: int) -> None:
        """Take in the weights after `iteration` iterations."""
        decay = min(self.decay, (1 + iteration) / (10 + iteration))
        for name, p in trained(module).items():
            self.weights[name].lerp_(p.detach(), 1 - decay)

    def swap(self, module: nn.Module) -> None:
        """Exchange the average with the module's weights."""
        for name, p in trained(module).items():
            p.data, self.weights[name] = self.weights[name], p.data
