# SPDX-License-Identifier: MPL-2.0
"""Channels-last graphs against PyTorch, without a GPU, and what they consist of."""

import hashlib
import tomllib
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file

from conftest import reference_cases
from starsr.export import star
from starsr.export.emulate import EMULATED, open_session, walk
from starsr.export.graphs import CHANNELS_FIRST, CHANNELS_LAST, star_graphs, vae_graphs
from starsr.export.rehearse import write_random_sources
from starsr.models.star import network, vae
from starsr.models.star.network import StarConfig
from starsr.models.star.text import TextConfig
from starsr.models.star.vae import VaeConfig
from starsr.models.weights import Arrays
from starsr.ops import nhwc_ops, sum_graph
from starsr.ops.torch_ops import TorchOps, parameters_of

STAR = StarConfig(dim=32, head_dim=16, num_heads=2, context_dim=32)
VAE = VaeConfig((32, 32, 64, 64))
TEXT = TextConfig(32, 4, 3)
CPU = ["CPUExecutionProvider"]
LIMIT = 1e-4
#: Sides of canvases up to 4K (docs/star.md, A.1).
HEIGHTS, WIDTHS = range(80, 2193, 64), range(64, 3841, 64)


def weights_of(declared):
    """Return random weights, without the zeros that freshly initialised biases have."""
    torch.manual_seed(0)
    weights = parameters_of(declared)
    for tensor in weights.values():
        if tensor.dim() == 1:
            tensor += 0.1 * torch.randn(tensor.shape)
        elif not tensor.any():
            tensor.normal_(0, 0.1)
    return weights


def write(folder, graphs):
    """Write graphs and return their sessions, without a GPU."""
    for role, graph in graphs.items():
        graph.save(folder / f"{role}.onnx")
    return {role: open_session(folder / f"{role}.onnx", CPU) for role in graphs}


def nodes_of(graphs):
    """Return the nodes of graphs that need no weights to be described."""
    for graph in graphs.values():
        for result in graph.results:
            graph.ops.node("Identity", result)
    return {role: graph.ops.nodes for role, graph in graphs.items()}


def run_star(sessions, x, t, hint, embedding):
    """Return controls `[B*F,C,h,w]` and velocity of the graphs."""
    common = {"x": x, "t": t, "embedding": embedding}
    controls = sessions["controlnet"].run(None, {**common, "hint": hint})
    named = {f"control_{i}": control for i, control in enumerate(controls)}
    (v,) = sessions["denoiser"].run(None, {**common, **named})
    return [control.transpose(0, 3, 1, 2) for control in controls], v


@pytest.mark.parametrize("kernels", ["none", "all", "in parts"])
def test_networks_equal_pytorch(kernels, monkeypatch, tmp_path):
    """At several sizes, also as if the small network had the true one's widths or lengths."""
    if kernels != "none":
        monkeypatch.setattr(nhwc_ops, "GEGLU_WIDTHS", (256, 512, 1024))
        monkeypatch.setattr(sum_graph, "BIAS_ADD_WIDTHS", (32, 64, 128))
    if kernels == "in parts":
        # So that the larger feature maps have too many elements.
        monkeypatch.setattr(nhwc_ops, "ELEMENTS", 8 * 7168)
    weights = weights_of(network.declared_parameters(STAR))
    graphs = star_graphs(Arrays(weights), STAR, "fp32", CHANNELS_LAST)
    sessions = write(tmp_path, graphs)
    used = {node.op_type for g in graphs.values() for n in g.ops.nodes for node in inner(n)}
    assert ("BiasSplitGelu" in used and "BiasAdd" in used) == (kernels != "none")
    ops = TorchOps(weights)
    for batch, frames, height, width in [(2, 3, 10, 16), (1, 5, 18, 8), (2, 1, 26, 24)]:
        x, hint = torch.randn(2, batch, 4, frames, height, width)
        t, embedding = torch.tensor([899, 45][:batch]), torch.randn(batch, 77, STAR.context_dim)
        with torch.no_grad():
            controls = network.controlnet(ops, x, t, hint, embedding, STAR)
            v = network.denoiser(ops, x, t, embedding, controls, STAR)
        found, result = run_star(sessions, *(a.numpy() for a in (x, t, hint, embedding)))
        for a, b in zip(found, controls, strict=True):
            assert float(np.abs(a - b.numpy()).max()) <= LIMIT * max(1, float(b.abs().max()))
        assert float(np.abs(result - v.numpy()).max()) <= LIMIT


def inner(node):
    """Yield a node and those of its branches."""
    yield node
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield from walk(attribute.g)


def test_autoencoder_equals_pytorch(tmp_path):
    weights = weights_of(vae.declared_parameters(VAE))
    sessions = write(tmp_path, vae_graphs(Arrays(weights), VAE, "fp32", CHANNELS_LAST))
    ops = TorchOps(weights)
    for frames, height, width in [(3, 6, 8), (1, 5, 4), (8, 4, 4)]:
        latents = torch.randn(frames, 4, height, width)
        pixels = torch.randn(frames, 3, 8 * height, 8 * width)
        with torch.no_grad():
            decoded, encoded = vae.decode(ops, latents, VAE), vae.encode(ops, pixels, VAE)
        (found,) = sessions["vae_decoder"].run(None, {"latents": latents.numpy()})
        assert float(np.abs(found - decoded.numpy()).max()) <= LIMIT
        results = sessions["vae_encoder"].run(None, {"pixels": pixels.numpy()})
        for a, b in zip(results, encoded, strict=True):
            assert a.shape == b.shape and float(np.abs(a - b.numpy()).max()) <= LIMIT


@pytest.mark.parametrize("name", reference_cases("golden_small/config.json", "cases"))
def test_golden_small(reference, golden_star, tmp_path, name):
    config, weights = golden_star
    sessions = write(tmp_path, star_graphs(Arrays(weights), config, "fp32", CHANNELS_LAST))
    case = {
        key: t.numpy()
        for key, t in load_file(reference / "golden_small" / f"case{name}.safetensors").items()
    }
    _, v = run_star(sessions, case["x"], case["t"], case["hint"], case["y"])
    assert float(np.abs(v - case["v"]).max()) <= 2e-4


@pytest.fixture(scope="module")
def true_size():
    """Nodes of the graphs of the released networks, in both layouts."""
    return {
        layout: nodes_of(
            {
                **star_graphs({}, StarConfig(), "fp16", layout),
                **vae_graphs({}, VaeConfig(), "fp16", layout),
            }
        )
        for layout in (CHANNELS_FIRST, CHANNELS_LAST)
    }


def test_audit_of_the_true_size(true_size):
    norms = ("GroupNorm", "SkipGroupNorm", "LayerNormalization", "SkipLayerNormalization")
    for role, nodes in true_size[CHANNELS_LAST].items():
        kinds = Counter(node.op_type for node in nodes)
        before = len(true_size[CHANNELS_FIRST][role])
        print(f"{role}: {len(nodes)} nodes instead of {before}; {dict(kinds.most_common(12))}")
        assert len(nodes) <= 0.6 * before
        assert not {"InstanceNormalization", "ReduceMax", "ReduceMean", "MaxPool"} & set(kinds)
        maker = {name: node for node in nodes for name in node.output}
        for node in nodes:
            inputs = [maker[name].op_type for name in node.input if name in maker]
            assert not (node.op_type in norms and "Cast" in inputs)
            assert not (node.op_type == "Cast" and set(inputs) & set(norms))
        # Twice in each temporal transformer, at the ends, and around convolutions of few channels.
        orders = [tuple(n.attribute[0].ints) for n in nodes if n.op_type == "Transpose"]
        inside = role == "controlnet"
        temporal = [
            name
            for name in network.declared_parameters()
            if name.endswith("local2.conv1.weight")
            and name.startswith(network.CONTROLNET) == inside
        ]
        if not role.startswith("vae"):
            assert orders.count((0, 2, 1, 3)) == 2 * len(temporal)
        rest = [order for order in orders if order != (0, 2, 1, 3)]
        assert len(rest) <= 2 * kinds["Conv"] + 4


def test_biases_are_folded(true_size):
    """Only a few convolutions and linear layers add a bias by themselves."""
    for role, nodes in true_size[CHANNELS_LAST].items():
        convolutions = [node for node in nodes if node.op_type == "NhwcConv"]
        biased = sum(len(node.input) == 3 for node in convolutions)
        print(f"{role}: {biased} of {len(convolutions)} convolutions add their bias")
        assert biased <= 0.35 * len(convolutions)


@pytest.mark.parametrize("height", HEIGHTS)
def test_pixel_groups_divide_every_canvas(height):
    """And keep the batch of temporal attention below the limit of CUDA's grids."""
    for width in WIDTHS:
        h, w = height // 8, width // 8
        for level in range(4):
            group = network.pixel_group(level)
            assert h * w % group == 0
            assert 2 * h * w // group <= 65_535
            h, w = (h + 1) // 2 + 1, (w - 1) // 2 + 1


def test_geglu_never_exceeds_32_bits(true_size):
    declared = network.declared_parameters()
    for nodes in (true_size[CHANNELS_LAST][role] for role in ("controlnet", "denoiser")):
        assert not {"BiasSplitGelu", "Gelu", "Size"} & {node.op_type for node in nodes}
        maker = {node.output[0]: node for node in nodes}
        for node in (node for node in nodes if node.op_type == "If"):
            branches = {a.name: a.g.node for a in node.attribute}
            inner = branches["then_branch"][0].input[1].removesuffix(".T")
            condition, width = maker[node.input[0]], declared[inner].shape[0]
            limit = int(condition.input[1].removeprefix("i_"))
            assert condition.op_type == "Less" and (limit - 1) * width < 2**31 <= limit * width
            split = next(n for n in branches["else_branch"] if n.op_type == "Split")
            assert len(split.output) == 8


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return write_random_sources(tmp_path_factory.mktemp("sources"), STAR, VAE, TEXT)


def test_default_for_fp16_is_verified_without_a_gpu(sources, tmp_path, capsys):
    output = tmp_path / "bundle"
    assert star.main([*sources, "--output", str(output), "--verify"], STAR) == 0
    printed = capsys.readouterr().out
    assert all(f"{role} " in printed for role in ("controlnet", "denoiser", "vae_decoder"))
    manifest = tomllib.loads((output / "bundle.toml").read_text(encoding="utf-8"))
    assert manifest["layout"] == CHANNELS_LAST
    for role, entry in manifest["graphs"].items():
        model = onnx.load(output / entry["file"], load_external_data=False)
        used = {node.op_type for node in walk(model.graph)}
        assert bool(used & set(EMULATED)) == (role != "text_encoder")
        data = (output / entry["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry["sha256"]
    assert sorted(p.suffix for p in output.iterdir()).count(".onnx") == len(manifest["graphs"])


def test_ends_are_those_of_channels_first():
    def ends(layout):
        graphs = {
            **star_graphs({}, STAR, "fp16", layout),
            **vae_graphs({}, VAE, "fp16", layout),
        }
        return {
            (role, name): spec
            for role, graph in graphs.items()
            for name, spec in (*graph.inputs.items(), *graph.outputs.items())
            if not name.startswith("control_")
        }

    assert ends(CHANNELS_FIRST) == ends(CHANNELS_LAST)


@pytest.mark.parametrize(
    ("chosen", "layout", "vae_precision"),
    [
        ([], CHANNELS_LAST, "fp16"),
        (["--precision", "bf16"], CHANNELS_FIRST, "fp16"),
        (["--precision", "fp32"], CHANNELS_FIRST, "fp32"),
        (["--vae-precision", "bf16"], CHANNELS_FIRST, "bf16"),
        (["--precision", "fp32", "--layout", CHANNELS_LAST], CHANNELS_LAST, "fp32"),
    ],
)
def test_defaults(chosen, layout, vae_precision):
    options = star.parser().parse_args(["--checkpoint", "a", "--output", "b", *chosen])
    star.complete(options)
    assert (options.layout, options.vae_precision) == (layout, vae_precision)


def test_bf16_cannot_be_channels_last(sources, tmp_path, capsys):
    arguments = [*sources, "--output", str(tmp_path / "bundle"), "--precision", "bf16"]
    assert star.main([*arguments, "--layout", CHANNELS_LAST], STAR) == 1
    assert "channels-first for bf16" in capsys.readouterr().err
    with pytest.raises(ValueError, match="channels-first"):
        star_graphs({}, STAR, "bf16", CHANNELS_LAST)
