# SPDX-License-Identifier: MPL-2.0

import hashlib
import tomllib

import onnx
import pytest
import torch

from starsr.bundle import writer
from starsr.export import nano
from starsr.models.nano.network import Nano
from starsr.models.nano.weights import mean, read


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    model = Nano()
    with torch.no_grad():
        model.weights["out__weight"].normal_(0, 0.05)
        model.deviation.uniform_(0.1, 2)
    return model


@pytest.fixture(scope="module")
def built(model):
    return nano.graphs(model)


def test_onnx_runtime_agrees_with_pytorch(model, built):
    for role, difference in nano.verify(model, built).items():
        assert difference <= 1e-4, role


def test_verify_notices_a_wrong_weight(model, built):
    wrong = onnx.ModelProto()
    wrong.CopyFrom(built["denoiser"])
    bias = next(i for i in wrong.graph.initializer if i.name == "out.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 1, "out.bias"))
    assert nano.verify(model, {**built, "denoiser": wrong})["denoiser"] > 0.5


def test_each_attention_is_one_fused_node(built):
    for role in ("controlnet", "denoiser"):
        kinds = [node.op_type for node in built[role].graph.node]
        assert kinds.count("MultiHeadAttention") == 2
        assert "Softmax" not in kinds and "Attention" not in kinds


def test_every_axis_but_channels_is_dynamic(built):
    for role, graph in built.items():
        for value in graph.graph.input:
            dimensions = [d.dim_value for d in value.type.tensor_type.shape.dim]
            assert sum(1 for d in dimensions if d) <= 1, f"{role}: {value.name} {dimensions}"


def test_written_bundle_is_complete_and_hashed(tmp_path, built):
    target = tmp_path / "nano"
    writer.write(target, nano.manifest("1.2.3"), built, {"README.md": "card"})
    manifest = tomllib.loads((target / "bundle.toml").read_text())
    assert (
        manifest["version"] == "1.2.3"
        and manifest["window"]["length"] == nano.manifest("")["window"]["length"]
    )
    assert set(manifest["graphs"]) == {"vae_encoder", "vae_decoder", "controlnet", "denoiser"}
    for entry in manifest["graphs"].values():
        assert hashlib.sha256((target / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]
    assert [p.name for p in tmp_path.iterdir()] == ["nano"]


def test_an_exported_bundle_can_be_read_back(tmp_path, model, built):
    writer.write(tmp_path / "nano", nano.manifest("1"), built, {})
    again = read(tmp_path / "nano").state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(again[name], value, atol=1e-6, rtol=1e-6)


def test_a_mean_of_networks(model):
    other = Nano()
    result = mean([model, other]).state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(result[name], (value + other.state_dict()[name]) / 2)
    alone = mean([model]).state_dict()
    assert all(torch.equal(value, alone[name]) for name, value in model.state_dict().items())


def test_failed_write_leaves_the_old_bundle(tmp_path, built):
    target = tmp_path / "nano"
    writer.write(target, nano.manifest("1"), built, {})
    broken = onnx.ModelProto()
    with pytest.raises(onnx.checker.ValidationError):
        writer.write(target, nano.manifest("2"), {**built, "denoiser": broken}, {})
    assert 'version = "1"' in (target / "bundle.toml").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["nano"]
