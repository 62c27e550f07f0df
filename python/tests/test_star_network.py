# SPDX-License-Identifier: MPL-2.0
"""STAR's networks in PyTorch against the official names and the official network's results."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from conftest import reference_cases
from starsr.models.star.network import (
    CONTROLNET,
    Star,
    StarConfig,
    controlnet,
    declared_parameters,
    denoiser,
    load_official,
)
from starsr.ops.torch_ops import TorchOps

TINY = StarConfig(dim=32, head_dim=16, context_dim=24)


class Corrected(TorchOps):
    """Compares each tap with the reference and continues from the reference.

    Thus no block inherits the rounding of another.
    """

    def __init__(self, parameters, reference):
        super().__init__(parameters, {})
        self.reference = reference
        self.differences = {}

    def tap(self, name, x):
        key = (
            f"cn.{name.removeprefix(CONTROLNET)}" if name.startswith(CONTROLNET) else f"unet.{name}"
        )
        if key not in self.reference:
            return x
        expected = self.reference[key]
        if expected.ndim == 5:
            expected = expected.transpose(1, 2).flatten(0, 1)
        self.differences[key] = relative(x, expected)
        return expected


def relative(x, expected):
    return float((x - expected).abs().max() / expected.abs().max())


def run(ops, case, config):
    controls = controlnet(ops, case["x"], case["t"], case["hint"], case["y"], config)
    return controls, denoiser(ops, case["x"], case["t"], case["y"], controls, config)


def inputs(config, batch=1, frames=3, height=10, width=8):
    generator = torch.Generator().manual_seed(2)
    shape = (batch, config.in_dim, frames, height, width)
    x, hint = (torch.randn(shape, generator=generator) for _ in range(2))
    y = torch.randn((batch, 77, config.context_dim), generator=generator)
    return {"x": x, "t": torch.tensor([799, 90][:batch]), "hint": hint, "y": y}


def test_full_size_has_the_official_names_and_shapes(reference):
    official = json.loads((reference / "state_dict_keys.json").read_text(encoding="utf-8"))
    declared = {name: list(p.shape) for name, p in declared_parameters().items()}
    assert declared == official["shapes"]
    assert len(declared) == official["n_tensors"] == 2247


@pytest.mark.parametrize("name", reference_cases("golden_small/config.json", "cases"))
@torch.no_grad()
def test_golden_small(reference, golden_star, name):
    config, weights = golden_star
    small = reference / "golden_small"
    listed = json.loads((small / "config.json").read_text(encoding="utf-8"))["cases"][name]
    case = load_file(small / f"case{name}.safetensors")
    assert case["x"].shape == (listed["b"], config.in_dim, listed["f"], listed["h"], listed["w"])
    assert case["t"].tolist() == listed["t"]
    controls, v = run(TorchOps(weights), case, config)
    for i, control in enumerate(controls):
        # The reference differs from double precision by as much.
        assert relative(control, case[f"control.{i:02}"]) <= 1e-4, f"control {i}"
    difference = float((v - case["v"]).abs().max())
    print(
        f"golden_small case {name} {tuple(case['x'].shape)} t {listed['t']}: "
        f"v differs by {difference:.1e}"
    )
    assert difference <= 2e-4


@pytest.mark.parametrize(
    "name", reference_cases("golden_small/config.json", "cases", having="taps")
)
@torch.no_grad()
def test_golden_small_taps(reference, golden_star, name):
    config, weights = golden_star
    small = reference / "golden_small"
    taps = json.loads((small / "config.json").read_text(encoding="utf-8"))["cases"][name]["taps"]
    case, expected = load_file(small / f"case{name}.safetensors"), load_file(small / taps)
    ops = Corrected(weights, expected)
    _, v = run(ops, case, config)
    worst = max(ops.differences, key=ops.differences.__getitem__)
    difference = float((v - case["v"]).abs().max())
    print(
        f"golden_small case {name}: {len(ops.differences)} taps, "
        f"worst {worst} {ops.differences[worst]:.1e}, v {difference:.1e}"
    )
    assert ops.differences.keys() == expected.keys()
    assert ops.differences[worst] <= 2e-5
    assert difference <= 1e-4


@torch.no_grad()
def test_module_has_the_official_names_and_loads_strictly(golden_star, reference):
    config, weights = golden_star
    model = Star(config)
    assert set(model.state_dict()) == set(weights)
    load_official(model, weights)
    case = inputs(config)
    v = model(case["x"], case["t"], case["hint"], case["y"])
    torch.testing.assert_close(v, run(TorchOps(weights), case, config)[1], atol=1e-4, rtol=0)


def test_strict_loading_names_what_differs():
    model = Star(TINY)
    state = model.state_dict()
    tensor = state.pop("out.2.bias")
    with pytest.raises(ValueError, match=r"1 missing: out\.2\.bias"):
        load_official(model, state)
    with pytest.raises(ValueError, match="1 unknown: stranger"):
        load_official(model, {**state, "out.2.bias": tensor, "stranger": tensor})
    with pytest.raises(ValueError, match=r"1 of another shape: out.2.bias \[5\] instead of \[4\]"):
        load_official(model, {**state, "out.2.bias": torch.zeros(5)})


@pytest.mark.parametrize(
    ("spatial", "temporal", "gates"),
    [(True, True, 73), (True, False, 23), (False, True, 50), (False, False, 0)],
)
def test_liem_can_be_switched(spatial, temporal, gates):
    names = declared_parameters(replace(StarConfig(), spatial_liem=spatial, temporal_liem=temporal))
    assert sum(".local" in name for name in names) == gates
    assert len(names) == 2247 - 73 + gates


@torch.no_grad()
def test_liem_positions_differ_only_in_where_they_gate():
    torch.manual_seed(0)
    model, case = Star(TINY), inputs(TINY)
    results = {}
    for position in ("i", "ii", "iii"):
        config = replace(TINY, liem_position=position)
        assert declared_parameters(config) == declared_parameters(TINY)
        results[position] = run(TorchOps(dict(model.named_parameters())), case, config)[1]
    assert len({float(v.sum()) for v in results.values()}) == 3
    with pytest.raises(ValueError, match="iv"):
        replace(TINY, liem_position="iv")


@torch.no_grad()
def test_batch_equals_single_runs():
    torch.manual_seed(1)
    weights = dict(Star(TINY).named_parameters())
    both = inputs(TINY, batch=2)
    _, v = run(TorchOps(weights), both, TINY)
    for i in range(2):
        one = {name: tensor[i : i + 1] for name, tensor in both.items()}
        torch.testing.assert_close(
            v[i : i + 1], run(TorchOps(weights), one, TINY)[1], atol=1e-4, rtol=0
        )


def test_every_parameter_is_trained():
    torch.manual_seed(1)
    model, case = Star(TINY), inputs(TINY)
    model(case["x"], case["t"], case["hint"], case["y"]).square().sum().backward()
    idle = [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert not idle
