# SPDX-License-Identifier: MPL-2.0

import numpy as np
import pytest
import torch

from starsr.models.nano.network import (
    CHANNELS,
    CORE,
    LEVEL_CORE,
    Nano,
    controlnet,
    cored,
    decode,
    denoiser,
    encode,
)
from starsr.models.schedule import T_START, alphas_sigmas
from starsr.ops.torch_ops import TorchOps


@pytest.fixture
def model():
    torch.manual_seed(1)
    model = Nano()
    with torch.no_grad():
        model.weights["out__weight"].normal_(0, 0.05)
    return model.eval()


def inputs(batch=1, frames=3, height=32, width=32):
    generator = torch.Generator().manual_seed(2)
    shape = (batch, CHANNELS, frames, height, width)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def test_autoencoder_is_invertible():
    std = np.linspace(0.1, 2, CHANNELS)
    pixels = torch.rand(2, 3, 32, 48) * 2 - 1
    latents = encode(TorchOps({}), pixels, std)
    assert latents.shape == (2, CHANNELS, 8, 12)
    torch.testing.assert_close(decode(TorchOps({}), latents, std), pixels, atol=1e-5, rtol=0)


def test_constant_picture_has_only_mean_coefficients():
    latents = encode(TorchOps({}), torch.full((1, 3, 8, 8), 0.5), np.ones(CHANNELS))
    expected = torch.zeros(CHANNELS)
    expected[0] = 2.0
    torch.testing.assert_close(latents[0, :, 0, 0], expected, atol=1e-5, rtol=0)


def test_coring_takes_what_is_small():
    bound = torch.full((1, CHANNELS, 2, 2), CORE)
    bound[:, [0, 16, 32]] = LEVEL_CORE
    for factor, expected in [(0.5, 0.05), (1.0, 0.1), (2.0, 1.1), (-20.0, -19.1)]:
        torch.testing.assert_close(cored(TorchOps({}), factor * bound), expected * bound)


@pytest.mark.parametrize("t", [T_START, 500, 90, 1])
def test_new_network_returns_the_hint(t):
    x, hint = inputs()
    alphas, sigmas = alphas_sigmas()
    v = Nano()(x, torch.tensor([t]), hint)
    clean = float(alphas[t]) * x - float(sigmas[t]) * v
    torch.testing.assert_close(clean, hint, atol=2e-4, rtol=0)


def test_batch_equals_single_runs(model):
    x, hint = inputs(batch=2)
    t = torch.tensor([T_START, 318])
    both = model(x, t, hint)
    for i in range(2):
        torch.testing.assert_close(
            both[i : i + 1], model(x[i : i + 1], t[i : i + 1], hint[i : i + 1]), atol=1e-4, rtol=0
        )


def test_result_does_not_depend_on_the_canvas(model):
    """Far from the border of a larger canvas the result is the same: nothing pools over pixels."""
    x, hint = inputs(height=96, width=160)
    t = torch.tensor([T_START])
    whole, part = model(x, t, hint), model(x[..., :96], t, hint[..., :96])
    torch.testing.assert_close(whole[..., :16], part[..., :16], atol=1e-5, rtol=0)


def test_frames_inform_each_other(model):
    x, hint = inputs()
    t = torch.tensor([T_START])
    changed = hint.clone()
    changed[:, :, 2] += 1
    difference = (model(x, t, hint) - model(x, t, changed)).abs().amax((0, 1, 3, 4))
    assert difference[0] > 1e-5 and difference[2] > difference[0]


def test_controls_reach_the_denoiser(model):
    x, hint = inputs()
    t = torch.tensor([T_START])
    ops = TorchOps(model.named_weights())
    controls = controlnet(ops, x, t, hint)
    reference = denoiser(ops, x, t, controls)
    for i, control in enumerate(controls):
        changed = [c + 1 if j == i else c for j, c in enumerate(controls)]
        assert (denoiser(ops, x, t, changed) - reference).abs().max() > 1e-4, (
            f"control_{i} of shape {control.shape}"
        )
