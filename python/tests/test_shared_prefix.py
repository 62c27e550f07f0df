# SPDX-License-Identifier: MPL-2.0
"""Latents that all texts of a batch share, against latents that are repeated for each text."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from starsr.export import graphs
from starsr.export.emulate import open_session, walk
from starsr.export.graphs import CHANNELS_FIRST, CHANNELS_LAST, star_graphs
from starsr.models.star import network
from starsr.models.star.network import StarConfig
from starsr.models.weights import Arrays
from starsr.ops.torch_ops import TorchOps, parameters_of

STAR = StarConfig(dim=32, head_dim=16, num_heads=2, context_dim=32)
#: A network whose first text is that of the middle block.
LATE = StarConfig(dim=32, dim_mult=(1, 2), head_dim=16, context_dim=32, attention_levels=0)
BOTH = (CHANNELS_FIRST, CHANNELS_LAST)
#: Largest difference. On the processors tried the graphs of `STAR` give the same bits.
LIMIT = 1e-6
#: The same where kernels add in another order for another number of rows.
ROUNDING = 1e-4


def weights_of(config):
    """Return random weights, without zeros."""
    torch.manual_seed(0)
    weights = parameters_of(network.declared_parameters(config))
    for tensor in weights.values():
        tensor += 0.05 * torch.randn(tensor.shape)
    return weights


def unshared(layout):
    """Return a back-end that repeats nothing, so that all inputs must have one batch size."""
    same = {
        "repeat_clip": lambda ops, clip, like: clip,
        "repeat_batch": lambda ops, x, axes, clip, like: x,
    }
    return type("Unshared", (graphs.LAYOUTS[layout],), same)


def feeds_of(config, texts, frames, height, width):
    """Return `x`, `hint` and `t` of batch size 1, and so many embeddings."""
    generator = np.random.default_rng(frames)
    latents = (1, config.in_dim, frames, height, width)
    return {
        "x": generator.standard_normal(latents, np.float32),
        "hint": generator.standard_normal(latents, np.float32),
        "t": np.array([899 - frames]),
        "embedding": generator.standard_normal((texts, 77, config.context_dim), np.float32),
    }


def repeated(feeds):
    """Return the inputs with all latents and timesteps repeated for each text."""
    texts = len(feeds["embedding"])
    return {k: v if k == "embedding" else np.concatenate([v] * texts) for k, v in feeds.items()}


def run(sessions, feeds):
    """Return controls and velocity."""

    def only(role, values):
        names = {value.name for value in sessions[role].get_inputs()}
        return {name: value for name, value in values.items() if name in names}

    controls = sessions["controlnet"].run(None, only("controlnet", feeds))
    named = {f"control_{i}": control for i, control in enumerate(controls)}
    (v,) = sessions["denoiser"].run(None, only("denoiser", {**feeds, **named}))
    return controls, v


def same(a, b, limit):
    """Return the difference of two tensors, which must be small."""
    assert a.shape == b.shape and np.isfinite(a).all()
    difference = float(np.abs(a - b).max())
    assert difference <= limit * max(1.0, float(np.abs(b).max()))
    return difference


def sessions_of(folder, config, layout):
    """Write the graphs of random weights and open them."""
    folder.mkdir()
    sessions = {}
    for role, graph in star_graphs(Arrays(weights_of(config)), config, "fp32", layout).items():
        path = folder / f"{role}.onnx"
        graph.save(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        sessions[role] = (
            open_session(path, ["CPUExecutionProvider"])
            if layout == CHANNELS_LAST
            else onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        )
    return sessions


@pytest.mark.parametrize("config", [STAR, LATE], ids=["star", "late"])
@pytest.mark.parametrize("layout", BOTH)
def test_shared_latents_are_exact(layout, config, monkeypatch, tmp_path):
    """At several sizes, for one and two texts, also where the latents are repeated after all."""
    shared = sessions_of(tmp_path / "shared", config, layout)
    monkeypatch.setitem(graphs.LAYOUTS, layout, unshared(layout))
    plain = sessions_of(tmp_path / "plain", config, layout)
    limit = LIMIT if config is STAR else ROUNDING
    for texts, frames, height, width in [(2, 3, 10, 16), (1, 2, 10, 8), (2, 1, 18, 24)]:
        feeds = feeds_of(config, texts, frames, height, width)
        expected, v = run(plain, repeated(feeds))
        controls, found = run(shared, feeds)
        worst = same(found, v, limit)
        if texts > 1:
            assert np.abs(v[0] - v[1]).max() > 1e-3, "the texts are too alike"
        for i, (a, b) in enumerate(zip(controls, expected, strict=True)):
            if i < config.textless:
                assert len(a) == frames
                a = np.concatenate([a] * texts)
            worst = max(worst, same(a, b, limit))
        print(f"{layout}, {texts} texts, {frames}x{height}x{width}: {worst:.1e} at most")
        again, same_v = run(shared, repeated(feeds))
        assert len(again[0]) == texts * frames
        same(same_v, v, limit)


@pytest.mark.parametrize("config", [STAR, LATE], ids=["star", "late"])
def test_shared_latents_in_pytorch(config):
    ops = TorchOps(weights_of(config))

    def velocity(feeds):
        x, hint, t, text = (torch.from_numpy(feeds[k]) for k in ("x", "hint", "t", "embedding"))
        with torch.no_grad():
            controls = network.controlnet(ops, x, t, hint, text, config)
            return controls, network.denoiser(ops, x, t, text, controls, config)

    feeds = feeds_of(config, 2, 3, 10, 8)
    controls, v = velocity(feeds)
    assert [len(c) for c in controls] == [
        3 if i < config.textless else 6 for i in range(len(controls))
    ]
    same(v.numpy(), velocity(repeated(feeds))[1].numpy(), ROUNDING)


@pytest.mark.parametrize("layout", BOTH)
def test_sharing_costs_few_nodes(layout, monkeypatch):
    """A copy of each value that outlives the first text, and sizes; no Cast and no Transpose."""

    def kinds():
        return {
            role: Counter(node.op_type for node in graph.ops.nodes)
            for role, graph in star_graphs({}, StarConfig(), "fp16", layout).items()
        }

    shared = kinds()
    monkeypatch.setitem(graphs.LAYOUTS, layout, unshared(layout))
    for role, plain in kinds().items():
        more = shared[role] - plain
        print(f"{layout} {role}: {sum(plain.values())} nodes and {dict(more)}")
        # The time embedding, queries, tokens and features, and in the denoiser a skip connection.
        assert more["Tile"] == 4 + (role == "denoiser")
        assert set(more) <= {"Tile", "Concat", "Div", "Mul", "Shape"} and not plain - shared[role]


@pytest.mark.parametrize("layout", BOTH)
def test_everything_before_the_first_text_is_shared(layout, tmp_path):
    """No matrix product or convolution of the prefix comes after a repetition."""
    graph = star_graphs(Arrays(weights_of(STAR)), STAR, "fp32", layout)["denoiser"]
    graph.save(tmp_path / "denoiser.onnx")
    model = onnx.load(tmp_path / "denoiser.onnx", load_external_data=False)
    after: set[str] = set()
    block = "input_blocks.1.1.transformer_blocks.0."
    early = (
        *("input_blocks.0.", "input_blocks.1.0.", "input_blocks.1.1.norm"),
        *(block + name for name in ("attn1", "local1", "norm2", "attn2.to_q")),
    )
    for node in walk(model.graph):
        if node.op_type == "Tile" or after & set(node.input):
            after |= set(node.output)
            assert not [name for name in node.input if name.startswith(early)], node
    assert after
