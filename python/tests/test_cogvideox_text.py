# SPDX-License-Identifier: MPL-2.0
"""T5's encoder and tokens against transformers and sentencepiece."""

import json
from collections import Counter

import onnxruntime
import pytest
import torch

from starsr.export.cogvideox_graphs import text_graph
from starsr.export.cogvideox_sources import TextEncoder, load_text_encoder
from starsr.export.verify import LIMITS
from starsr.models.cogvideox import text
from starsr.models.cogvideox.network import CogVideoXConfig
from starsr.models.weights import Arrays, Weights
from starsr.ops.video_ops import VideoTorchOps
from test_cogvideox_export import TOKENIZER, wavy_weights

LENGTH = 226
#: The largest value of fp16.
FP16 = 65504
SMALL = text.T5Config(32, 4, 8, 48, 3, 64, 32)


@pytest.fixture
def tokens():
    """A text that fills its length, and a short one whose padding is attended."""
    return torch.stack([torch.arange(LENGTH) * 7 % 64, torch.tensor([9, 5, 1] + [0] * 223)])


def encoder(config=SMALL, weights=None):
    return TextEncoder(Weights(weights or wavy_weights(config), "waves"), config)


def graph_of(encoder, tmp_path, precision):
    """The encoder's graph, and a session that runs it."""
    graphs = text_graph(Arrays(encoder.weights), encoder.config, LENGTH, precision)
    graph = graphs["text_encoder"]
    graph.save(tmp_path / "text_encoder.onnx")
    return graph, onnxruntime.InferenceSession(tmp_path / "text_encoder.onnx")


def test_text_encoder_agrees_with_transformers(tokens):
    # The expected values are those of `T5EncoderModel` 5.24 with the same weights.
    found = encoder().embed(tokens)[0, [0, 100, 225]]
    first, second = [-0.20839, 0.38262, -1.80959], [-1.27945, 1.34442, -1.77476]
    torch.testing.assert_close(found[:, 5], torch.tensor(first), atol=2e-5, rtol=0)
    torch.testing.assert_close(found[:, 20], torch.tensor(second), atol=2e-5, rtol=0)


@torch.no_grad()
def test_graph_agrees_with_transformers(tokens, tmp_path):
    """With the files that transformers writes, on random weights of its own."""
    transformers = pytest.importorskip("transformers")
    described = transformers.T5Config(
        vocab_size=64,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=3,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    torch.manual_seed(0)
    model = transformers.T5EncoderModel(described).eval()
    for name, parameter in model.named_parameters():
        if "layer_norm" in name or "relative_attention" in name:
            parameter.copy_(torch.randn(parameter.shape))
    model.save_pretrained(tmp_path / "t5")
    loaded = load_text_encoder(tmp_path / "t5", CogVideoXConfig(text_dim=32))
    assert loaded.config == SMALL
    expected = model(tokens).last_hidden_state
    torch.testing.assert_close(loaded.embed(tokens), expected, atol=1e-4, rtol=0)
    _, session = graph_of(loaded, tmp_path, "fp32")
    (found,) = session.run(None, {"tokens": tokens.numpy()})
    print(float((torch.from_numpy(found) - expected).abs().max()))
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-4, rtol=0)


def test_graph_agrees_with_pytorch(tokens, tmp_path):
    graph, session = graph_of(encoder(), tmp_path, "fp32")
    expected = encoder().embed(tokens)
    for batch in (tokens, tokens[:1]):
        (found,) = session.run(None, {"tokens": batch.numpy()})
        difference = (torch.from_numpy(found) - expected[: len(batch)]).abs().max()
        assert difference < 1e-4, difference
    kinds = Counter(node.op_type for node in graph.ops.nodes)
    assert kinds["MultiHeadAttention"] == SMALL.layers
    assert not kinds.keys() & {"Softmax", "Loop", "If"}


def test_16_bits_hold_what_the_gated_layers_compute(tokens, tmp_path):
    """Values of the gated layers and of the stream that are too large for fp16."""
    weights = wavy_weights(SMALL)
    for name in weights:
        if "wi_" in name:
            weights[name] *= 200
    loud = encoder(weights=weights)
    largest = 0.0

    class Watched(VideoTorchOps):
        def wide_linear(self, x, name, cin, cout):
            nonlocal largest
            y = super().wide_linear(x, name, cin, cout)
            largest = max(largest, float(x.abs().max()), float(y.abs().max()))
            return y

    expected = text.encode_text(Watched(loud.weights), tokens, LENGTH, SMALL)
    assert largest > 4 * FP16
    _, session = graph_of(loud, tmp_path, "fp16")
    (found,) = session.run(None, {"tokens": tokens.numpy()})
    difference = torch.from_numpy(found) - expected
    assert difference.norm() / expected.norm() < LIMITS["fp16"]


def test_tokens_are_those_of_the_slow_tokenizer():
    cases = json.loads((TOKENIZER.parent / "tokens.json").read_text(encoding="utf-8"))
    assert len(cases) > 20
    model = TOKENIZER.read_bytes()
    for name, case in cases.items():
        found, truncated = text.tokenize(case["text"], model, LENGTH)
        assert (found.tolist(), truncated) == ([case["ids"]], case["truncated"]), name
