# SPDX-License-Identifier: MPL-2.0
"""STAR on CogVideoX in PyTorch and ONNX Runtime against the authors' names and results."""

import json
from collections import Counter

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from conftest import reference_cases
from small_cogvideox import FOLDER, read_case, read_network
from starsr.export.cogvideox_graphs import network_graphs
from starsr.export.cogvideox_verify import tables
from starsr.export.graphs import FLOAT
from starsr.models.cogvideox import positions
from starsr.models.cogvideox.network import (
    COGVIDEOX_2B,
    COGVIDEOX_5B,
    ROTARY,
    SINCOS,
    CogVideoXConfig,
    declared_parameters,
    denoiser,
    modulation,
)
from starsr.models.cogvideox.weights import (
    CheckpointError,
    check_names,
    checkpoint_shapes,
    config_of,
    merged,
)
from starsr.models.weights import Arrays, Weights
from starsr.ops.torch_ops import parameters_of
from starsr.ops.video_onnx_ops import VideoOnnxOps
from starsr.ops.video_ops import VideoTorchOps

INDEX = f"{FOLDER}/config.json"
TINY = CogVideoXConfig(64, 2, 16, 32, 48, 12)
#: Taps that the reference lacks: LIEM's gates, and parts of its taps.
GATES = {"L0.spatial_gate": "L0.spa_out", "L0.gate": "L0.temp_out"}


def by_channel(maps):
    """Maps `[T,C,h,w]` as tokens `[1,T*h*w,C]`."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)[None]


class Reference:
    """The reference's taps under the names of the network here, and what they compare."""

    def __init__(self, taps, length, heads):
        self.taps, self.length = taps, length
        self.seen = set()
        gates_in = by_channel(taps["L0.spa_in"])
        # [h*w,T,C] to tokens that are ordered by frame.
        temporal = taps["L0.temp_out"].transpose(0, 1).flatten(0, 1)[None]
        self.gated = {
            "L0.spatial_gate": (gates_in, by_channel(taps["L0.spa_out"])),
            "L0.gate": (gates_in, temporal),
        }
        self.heads = heads

    def expected(self, name, x):
        """Return own and expected values of a tap, and what to continue with; or nothing."""
        if name in GATES:
            self.seen.add(GATES[name])
            before, after = self.gated[name]
            return x * before, after, x
        kind = name.rpartition(".")[2]
        if name == "L0.query":
            self.seen.add("L0.q_rope")
            tap = self.taps["L0.q_rope"].transpose(1, 2).flatten(2)
        elif name == "L0.spa_in":
            self.seen.add(name)
            tap = by_channel(self.taps[name])
        elif kind in ("text", "image"):
            whole = name.removesuffix(f".{kind}")
            self.seen.add(whole)
            parts = self.taps[whole][:, : self.length], self.taps[whole][:, self.length :]
            tap = parts[kind == "image"]
        elif name in self.taps:
            self.seen.add(name)
            tap = self.taps[name]
            if name == "final_layernorm":
                tap = tap[:, self.length :]
        else:
            return None
        return x, tap, tap


class Corrected(VideoTorchOps):
    """Compares each tap with the reference and continues from the reference."""

    def __init__(self, parameters, reference):
        super().__init__(parameters)
        self.reference, self.differences = reference, {}

    def tap(self, name, x):
        found = self.reference.expected(name, x)
        if found is None:
            return x
        own, expected, onwards = found
        self.differences[name] = relative(own, expected)
        return onwards


class Tapped(VideoOnnxOps):
    """Notes the values of all taps, so that the graph can return them."""

    def __init__(self, parameters, precision="fp32"):
        super().__init__(parameters, precision)
        self.tapped = {}

    def tap(self, name, x):
        self.tapped[name] = x
        return x


def relative(x, expected):
    return float((x - expected).abs().max() / expected.abs().max())


def tables_of(config, x):
    return tables(config, x.shape[1], *x.shape[3:])


def evaluate(ops, inputs, config):
    modulations = modulation(ops, inputs["t"], config)
    places = list(tables_of(config, inputs["x"]).values())
    return denoiser(
        ops, inputs["x"], inputs["hint"], modulations, inputs["embedding"], places, config
    )


def session(graph, folder, role):
    path = folder / f"{role}.onnx"
    graph.save(path)
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def arrays(tensors):
    return {name: tensor.numpy() for name, tensor in tensors.items()}


@pytest.mark.parametrize("name", reference_cases(INDEX, "net_cases"))
@torch.no_grad()
def test_golden_cogvideox(reference, name):
    listed, inputs, case = read_case(reference, name)
    weights, config = read_network(reference, listed["kind"])
    v = evaluate(VideoTorchOps(weights), inputs, config)
    difference = relative(v, case["v"])
    print(f"golden_cogvideox {name} {tuple(inputs['x'].shape)}: v {difference:.1e} relative")
    assert difference <= 1e-4


@pytest.mark.parametrize("name", reference_cases(INDEX, "net_cases", having="taps"))
@torch.no_grad()
def test_golden_cogvideox_taps(reference, name):
    listed, inputs, case = read_case(reference, name)
    weights, config = read_network(reference, listed["kind"])
    taps = load_file(reference / FOLDER / listed["taps"])
    ops = Corrected(weights, Reference(taps, config.text_length, config.heads))
    v = evaluate(ops, inputs, config)
    worst = max(ops.differences, key=ops.differences.__getitem__)
    print(
        f"golden_cogvideox {name}: {len(taps)} taps, worst {worst} {ops.differences[worst]:.1e}, "
        f"v {relative(v, case['v']):.1e}"
    )
    assert ops.reference.seen == taps.keys()
    assert ops.differences[worst] <= 2e-5
    assert relative(v, case["v"]) <= 2e-5


@pytest.mark.parametrize("name", reference_cases(INDEX, "net_cases"))
def test_golden_cogvideox_in_onnx_runtime(reference, tmp_path, name):
    listed, inputs, case = read_case(reference, name)
    weights, config = read_network(reference, listed["kind"])
    graphs = network_graphs(Arrays(weights), config, "fp32")
    feeds = arrays(inputs)
    (rows,) = session(graphs["modulation"], tmp_path, "modulation").run(None, {"t": feeds.pop("t")})
    feeds |= {"modulation": rows, **arrays(tables_of(config, inputs["x"]))}
    (v,) = session(graphs["denoiser"], tmp_path, "denoiser").run(None, feeds)
    difference = relative(torch.from_numpy(v), case["v"])
    print(f"golden_cogvideox {name} in ONNX Runtime: v {difference:.1e} relative")
    assert difference <= 1e-4


@pytest.mark.parametrize("name", reference_cases(INDEX, "net_cases", having="taps"))
def test_golden_cogvideox_taps_in_onnx_runtime(reference, tmp_path, name):
    listed, inputs, _ = read_case(reference, name)
    weights, config = read_network(reference, listed["kind"])
    expected = Reference(load_file(reference / FOLDER / listed["taps"]), config.text_length, 4)
    feeds, differences = arrays(inputs), {}
    graphs = network_graphs(Arrays(weights), config, "fp32", Tapped)
    for role in ("modulation", "denoiser"):
        graph = graphs[role]
        assert isinstance(graph.ops, Tapped)
        tapped = graph.ops.tapped
        for tap, value in tapped.items():
            rank = 2 if role == "modulation" else 3
            graph.outputs[f"tap {tap}"] = (FLOAT, [f"{tap} {axis}" for axis in range(rank)])
            graph.results.append(value)
        if role == "denoiser":
            feeds |= arrays(tables_of(config, inputs["x"]))
        run = session(graph, tmp_path, role)
        taken = {i.name: feeds[i.name] for i in run.get_inputs()}
        result, *values = run.run(None, taken)
        feeds[role] = result
        for tap, value in zip(tapped, values, strict=True):
            found = expected.expected(tap, torch.from_numpy(value))
            if found is not None:
                differences[tap] = relative(*found[:2])
    worst = max(differences, key=differences.__getitem__)
    print(f"golden_cogvideox {name} in ONNX Runtime: worst tap {worst} {differences[worst]:.1e}")
    assert expected.seen == expected.taps.keys()
    assert differences[worst] <= 2e-5


def test_full_size_has_the_official_names_and_shapes(reference):
    text = (reference / "cogvideox_state_dict_keys.json").read_text(encoding="utf-8")
    official = json.loads(text)
    shapes = {name: tuple(shape) for name, shape in official["shapes"].items()}
    assert config_of(shapes) == COGVIDEOX_5B
    assert checkpoint_shapes(COGVIDEOX_5B, shapes) == shapes
    assert len(shapes) == official["n_tensors"]
    check_names(COGVIDEOX_5B, shapes)
    count = sum(int(np.prod(p.shape)) for p in declared_parameters(COGVIDEOX_5B).values())
    assert count == official["n_params_merged"] == 5_570_483_880


def sized(shape):
    """A shape of the 5B network as one of the 2B network."""
    multiples = {3072 * n: 1920 * n for n in (1, 2, 3, 4, 12)}
    return tuple(multiples.get(size, size) for size in shape)


def test_2b_has_the_names_of_5b_and_its_own_shapes(reference):
    text = (reference / "cogvideox_state_dict_keys.json").read_text(encoding="utf-8")
    late = [f".{i}." for i in range(30, 42)]
    shapes = {
        name: sized(shape)
        for name, shape in json.loads(text)["shapes"].items()
        if "freqs" not in name and not any(part in name for part in late)
    }
    shapes["mixins.pos_embed.pos_embedding"] = (1, 226 + 13 * 30 * 45, 1920)
    assert config_of(shapes) == COGVIDEOX_2B
    check_names(COGVIDEOX_2B, shapes)
    # Without a table the width tells the kind of positions.
    del shapes["mixins.pos_embed.pos_embedding"]
    assert config_of(shapes).positions == SINCOS
    assert (COGVIDEOX_2B.heads, COGVIDEOX_5B.heads) == (30, 48)


def state(config=TINY, rank=4):
    """Random weights with low-rank updates."""
    torch.manual_seed(0)
    plain = parameters_of(declared_parameters(config))
    chosen: dict[str, tuple[int, ...]] = {}
    for name in plain:
        base, _, kind = name.rpartition(".")
        chosen[f"{base}.matrix_A.0"] = (rank, config.width)
        chosen[f"{base}.original.{kind}"] = ()
    return {n: torch.randn(s) for n, s in checkpoint_shapes(config, chosen).items()}


def test_low_rank_updates_are_merged_in_32_bits():
    tensors = {name: t.half() for name, t in state().items()}
    weights, config = merged(Weights(tensors, "test"), None, TINY.text_length)
    assert config == TINY
    base = "transformer.layers.1.attention.query_key_value"
    merged_weight = weights[f"{base}.weight"]
    assert merged_weight.dtype == torch.float32
    for part in range(3):
        rows = slice(64 * part, 64 * part + 64)
        a, b = (tensors[f"{base}.matrix_{m}.{part}"].double() for m in "AB")
        expected = tensors[f"{base}.original.weight"].double()[rows] + b @ a / 4
        torch.testing.assert_close(merged_weight[rows].double(), expected, atol=1e-5, rtol=0)
    assert torch.equal(weights[f"{base}.bias"], tensors[f"{base}.original.bias"])


def test_prefixes_and_other_networks_in_a_checkpoint():
    tensors = state()
    whole = {f"model.diffusion_model.{name}": t for name, t in tensors.items()}
    whole |= {"first_stage_model.encoder.x": torch.zeros(1), "conditioner.y": torch.zeros(1)}
    bare, _ = merged(Weights(tensors, "bare"), None, TINY.text_length)
    prefixed, _ = merged(Weights(whole, "whole"), None, TINY.text_length)
    assert all(torch.equal(bare[name], prefixed[name]) for name in bare)
    whole["model.other.z"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"1 unknown: model\.other\.z"):
        merged(Weights(whole, "whole"), None, TINY.text_length)


def test_plain_weights_need_no_updates():
    plain = parameters_of(declared_parameters(TINY))
    weights, config = merged(Weights(plain, "plain"), None, TINY.text_length)
    assert config == TINY and set(weights) == set(plain)
    assert all(torch.equal(weights[name], plain[name]) for name in plain)


@pytest.mark.parametrize(
    "name",
    [
        "transformer.layers.1.spa_local.conv1.weight",
        "transformer.layers.0.attention.dense.matrix_B.0",
        "transformer.layers.0.attention.query_key_value.matrix_A.2",
        "transformer.layers.1.attention.dense.original.bias",
        "mixins.patch_embed.proj_sr.weight",
        "mixins.adaln_layer.query_layernorm_list.0.weight",
    ],
)
def test_a_missing_tensor_is_named(name):
    tensors = state()
    del tensors[name]
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        merged(Weights(tensors, "cut"), None, TINY.text_length)


def test_positions_agree_with_the_reference(reference):
    expected = load_file(reference / FOLDER / "pos_tables.safetensors")
    cos, sin = positions.rotary(13, 30, 45)
    rows = expected["rope5b.rows"].numpy()
    # The reference has each pair's entry twice.
    for table, kind in ((cos, "cos"), (sin, "sin")):
        np.testing.assert_allclose(
            table[rows].repeat(2, 1), expected[f"rope5b.{kind}_rows"], atol=5e-6
        )
    small = positions.rotary(3, 4, 6, 16)
    for table, kind in zip(small, ("cos", "sin"), strict=True):
        np.testing.assert_allclose(table.repeat(2, 1), expected[f"rope_small.{kind}"], atol=5e-6)
    added = positions.sincos(13, 30, 45)[expected["sincos2b.rows"].numpy() - 226]
    np.testing.assert_allclose(added, expected["sincos2b.rows_val"], atol=1e-6)
    small_table = positions.sincos(3, 4, 6, 64)
    np.testing.assert_allclose(small_table, expected["sincos_small"][12:], atol=1e-6)


def test_rotation_agrees_with_the_reference(reference):
    expected = load_file(reference / FOLDER / "pos_tables.safetensors")
    rows = expected["rope5b.apply_rows"].numpy()
    cos, sin = (torch.from_numpy(table[rows]) for table in positions.rotary(13, 30, 45))
    turned = VideoTorchOps({}).rotate(expected["rope5b.apply_in"][None], cos, sin, 1)
    torch.testing.assert_close(turned[0], expected["rope5b.apply_out"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", [ROTARY, SINCOS])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_each_layer_has_one_attention_and_no_branch(kind, precision):
    config = CogVideoXConfig(64, 3, 16, 32, 48, 12, positions=kind)
    weights = Arrays(parameters_of(declared_parameters(config)))
    graphs = network_graphs(weights, config, precision)
    nodes = graphs["denoiser"].ops.nodes
    kinds = Counter(node.op_type for node in nodes)
    print(f"denoiser, {kind}, {precision}: {len(nodes)} nodes for 3 layers; {dict(kinds)}")
    assert kinds["MultiHeadAttention"] == config.layers
    assert kinds["RotaryEmbedding"] == (2 * config.layers if kind == ROTARY else 0)
    assert not kinds.keys() & {"Loop", "If", "Scan", "Softmax", "Attention"}
    # Only linear layers multiply matrices: there is no matrix of scores.
    initializers = graphs["denoiser"].ops.initializers
    assert all(n.input[1] in initializers for n in nodes if n.op_type == "MatMul")
    held = "".join(initializers)
    assert "adaLN" not in held and "time_embed" not in held
