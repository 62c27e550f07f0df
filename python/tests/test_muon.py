# SPDX-License-Identifier: MPL-2.0

import copy

import pytest
import torch
from torch import nn

from starsr.models.nano.network import Nano
from starsr.training.checkpoint import trained
from starsr.training.muon import ADAMW_RMS, Muon, is_matrix, orthogonal


@pytest.mark.parametrize("shape", [(32, 32), (32, 300), (300, 32)])
def test_orthogonal_levels_singular_values(shape):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=generator)
    result = orthogonal(matrix[None])[0]
    values = torch.linalg.svdvals(result)
    # The quintic is fast rather than exact.
    assert values.min() > 0.5 and values.max() < 1.3
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(result.flatten(), (u @ v).flatten(), dim=0) > 0.95


def test_matrices_are_orthogonalised_each_on_its_own():
    matrices = (
        torch.randn((3, 20, 70), generator=torch.Generator().manual_seed(0))
        * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    )
    torch.testing.assert_close(
        orthogonal(matrices),
        torch.cat([orthogonal(m[None]) for m in matrices]),
        rtol=1e-4,
        atol=1e-5,
    )


def test_matrices_are_the_weights_of_nano():
    chosen = {name for name, p in trained(Nano()).items() if is_matrix(name, p)}
    weights = {name for name, p in trained(Nano()).items() if p.ndim >= 2}
    assert len(chosen) > 50 and chosen < weights
    assert not any("time_embed" in name or "norm" in name for name in chosen)


def step_of(module: nn.Module, optimizer: torch.optim.Optimizer, factor: float = 1.0) -> None:
    inputs = torch.randn((4, 20, 8, 8), generator=torch.Generator().manual_seed(1))
    optimizer.zero_grad()
    (factor * module(inputs).square().mean()).backward()
    optimizer.step()


def test_muon_moves_a_convolution_whatever_the_size_of_its_gradient():
    torch.manual_seed(0)
    one = nn.Conv2d(20, 32, 3, bias=False)
    other, before = copy.deepcopy(one), one.weight.detach().clone()
    step_of(one, Muon(one, lr=0.01, weight_decay=0.0))
    step_of(other, Muon(other, lr=0.01, weight_decay=0.0), factor=100.0)
    moved = one.weight.detach() - before
    torch.testing.assert_close(moved, other.weight.detach() - before, rtol=1e-3, atol=1e-6)
    assert float(moved.square().mean().sqrt()) == pytest.approx(0.01 * ADAMW_RMS, rel=0.2)


def test_what_is_no_matrix_has_adamw():
    torch.manual_seed(0)
    one = nn.Sequential(nn.Conv2d(20, 8, 3), nn.GroupNorm(2, 8))
    other = copy.deepcopy(one)
    ours = Muon(one, lr=0.01, weight_decay=0.1)
    theirs = torch.optim.AdamW(other.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(3):
        step_of(one, ours)
        step_of(other, theirs)
    for mine, reference in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, reference, rtol=0, atol=0)


def test_closures_are_refused():
    module = nn.Conv2d(20, 32, 3)
    with pytest.raises(ValueError, match="closure"):
        Muon(module, 0.01, 0.0).step(lambda: 1.0)
