# SPDX-License-Identifier: MPL-2.0
"""nano's networks from a training checkpoint or from an exported bundle."""

from pathlib import Path

import numpy as np
import onnx
import torch

from starsr.models.nano.network import CHANNELS, Nano, dct_basis, declared_parameters
from starsr.models.weights import MISFITS, reason


def load(checkpoint: Path) -> Nano:
    """Return the averaged weights of a training checkpoint. Raises `ValueError`."""
    model = Nano()
    try:
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")["average"]
        model.load_state_dict(state)
    except MISFITS as e:
        raise ValueError(f"{checkpoint} is no checkpoint of nano ({reason(e)})") from e
    return model


def read(folder: Path) -> Nano:
    """Return the networks of an exported bundle, for further training. Raises `ValueError`."""
    model = Nano()
    constants: dict[str, np.ndarray] = {}
    for role in ("vae_encoder", "controlnet", "denoiser"):
        graph = onnx.load(folder / f"{role}.onnx").graph
        constants |= {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    weights = {}
    for name, parameter in declared_parameters(model.config).items():
        value = _parameter(constants, name, parameter.shape[0])
        if value is None or value.shape != parameter.shape:
            raise ValueError(
                f"{folder} does not hold nano's networks: {name} is missing or has another shape"
            )
        weights[f"weights.{name.replace('.', '__')}"] = torch.from_numpy(np.array(value))
    # The encoder's rows are the basis divided by the standard deviations; the largest entry of
    # each row gives the quotient most precisely.
    basis, rows = dct_basis(), constants["dct"][:, :, 0, 0]
    largest = (np.arange(CHANNELS), np.abs(basis).argmax(1))
    std = torch.from_numpy(basis[largest] / rows[largest]).float()
    model.load_state_dict({"deviation": std, **weights})
    return model


def _parameter(constants: dict[str, np.ndarray], name: str, channels: int) -> np.ndarray | None:
    """Undo how `OnnxOps` stores a parameter of `channels` output channels."""
    if f"{name}.frames" in constants:
        # A convolution over frames has the frames as an axis of its own.
        value = constants[f"{name}.frames"][..., 0].transpose(0, 2, 1)
        return value.reshape(channels, 3 * channels, 1, 1)
    if f"{name}.T" in constants:
        return constants[f"{name}.T"].T
    return constants.get(name)


def mean(models: list[Nano]) -> Nano:
    """Return the network whose weights are the mean of those of `models`.

    All must descend from the same start, so that they lie in one basin: a model soup (M. Wortsman
    and others, arXiv 2203.05482).
    """
    result, states = Nano(models[0].config), [model.state_dict() for model in models]
    result.load_state_dict(
        {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
    )
    return result
