# SPDX-License-Identifier: MPL-2.0
"""`starsr-export` on small random weights, and its graphs against the official results."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file

from conftest import reference_cases
from starsr.bundle import writer
from starsr.export import star
from starsr.export.graphs import star_graphs, vae_graphs
from starsr.export.rehearse import CHECKPOINT, write_random_sources
from starsr.models.star import network, text
from starsr.models.star.network import StarConfig
from starsr.models.star.text import TextConfig
from starsr.models.star.vae import VaeConfig
from starsr.models.weights import Arrays

STAR = StarConfig(dim=32, head_dim=16, context_dim=32)
VAE = VaeConfig((32, 32, 64, 64))
TEXT = TextConfig(32, 4, 3)
ROLES = ["vae_encoder", "vae_decoder", "controlnet", "denoiser", "text_encoder"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Options of the command that name random weights."""
    return write_random_sources(tmp_path_factory.mktemp("sources"), STAR, VAE, TEXT)


@pytest.fixture(scope="module")
def exported(sources, tmp_path_factory):
    """A channels-first bundle in each precision."""
    folders = {}
    for precision in ("fp32", "fp16", "bf16"):
        folders[precision] = tmp_path_factory.mktemp("bundles") / f"star-{precision}"
        both = ["--precision", precision, "--vae-precision", precision]
        both += ["--layout", "channels-first"]
        assert star.main([*sources, "--output", str(folders[precision]), *both], STAR) == 0
    return folders


def replaced(sources, option, value):
    """Return the options with another value for one of them."""
    at = sources.index(option)
    return [*sources[: at + 1], str(value), *sources[at + 2 :]]


def refused(arguments, output, capsys, *words):
    """Run the command, which must fail with one sentence that holds `words`, without a trace."""
    before = sorted(output.parent.iterdir())
    assert star.main([*arguments, "--output", str(output)], STAR) == 1
    message = capsys.readouterr().err.strip()
    print(message)
    assert (
        message.startswith("starsr-export: ") and "\n" not in message and "Traceback" not in message
    )
    for word in words:
        assert word in message, message
    assert sorted(output.parent.iterdir()) == before
    return message


def session(path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", reference_cases("golden_small/config.json", "cases"))
def test_golden_small_in_onnx_runtime(reference, golden_star, tmp_path_factory, name):
    config, weights = golden_star
    folder = tmp_path_factory.getbasetemp() / "golden-graphs"
    if not folder.exists():
        folder.mkdir()
        for role, graph in star_graphs(Arrays(weights), config, "fp32").items():
            graph.save(folder / f"{role}.onnx")
    case = {
        key: t.numpy()
        for key, t in load_file(reference / "golden_small" / f"case{name}.safetensors").items()
    }
    common = {"x": case["x"], "t": case["t"], "embedding": case["y"]}
    controls = session(folder / "controlnet.onnx").run(None, {**common, "hint": case["hint"]})
    named = {f"control_{i}": control for i, control in enumerate(controls)}
    (v,) = session(folder / "denoiser.onnx").run(None, {**common, **named})
    difference = float(np.abs(v - case["v"]).max())
    print(f"golden_small case {name} in ONNX Runtime: v differs by {difference:.1e}")
    assert difference <= 2e-4


def test_golden_vae_in_onnx_runtime(reference, golden_vae, tmp_path):
    config, weights = golden_vae
    for role, graph in vae_graphs(Arrays(weights), config, "fp32").items():
        graph.save(tmp_path / f"{role}.onnx")
    io = load_arrays(reference / "golden_vae" / "io.safetensors")
    latents, std = session(tmp_path / "vae_encoder.onnx").run(None, {"pixels": io["img"]})
    np.testing.assert_allclose(latents / config.scaling_factor, io["mean"], atol=1e-4)
    np.testing.assert_allclose(std / config.scaling_factor, io["std"], atol=1e-4)
    decoder = session(tmp_path / "vae_decoder.onnx")
    for frames in (1, 2, 3):
        (pixels,) = decoder.run(
            None, {"latents": io["z"][:frames] * np.float32(config.scaling_factor)}
        )
        np.testing.assert_allclose(pixels, io[f"dec{frames}"], atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_verify_compares_every_graph(exported, sources, precision, capsys, tmp_path):
    output = tmp_path / "bundle"
    both = ["--precision", precision, "--vae-precision", precision, "--layout", "channels-first"]
    assert star.main([*sources, "--output", str(output), *both, "--verify"], STAR) == 0
    printed = capsys.readouterr().out
    print(printed)
    assert all(f"{role} " in printed and "differs from PyTorch by" in printed for role in ROLES)
    assert (output / "denoiser.data").read_bytes() == (
        exported[precision] / "denoiser.data"
    ).read_bytes()


def test_verify_notices_a_wrong_weight(sources, monkeypatch, tmp_path, capsys):
    original = star.write_graphs

    def broken(work, graphs):
        files = original(work, graphs)
        path = work / "denoiser.onnx"
        model = onnx.load(path, load_external_data=False)
        bias = next(i for i in model.graph.initializer if i.name == "out.2.bias")
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 1, bias.name))
        path.write_bytes(model.SerializeToString())
        return files

    monkeypatch.setattr(star, "write_graphs", broken)
    arguments = [*sources, "--verify", "--precision", "fp32"]
    refused(
        arguments,
        tmp_path / "bundle",
        capsys,
        "denoiser differs from PyTorch by more than",
        "not written",
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_graph_audit(exported, precision):
    """Each attention of the networks is one fused node, and nothing looks like a traced model."""
    blocks = {
        "controlnet": network.declared_parameters(STAR),
        "denoiser": network.declared_parameters(STAR),
        "text_encoder": text.declared_parameters(TEXT),
    }
    for role in ROLES:
        path = exported[precision] / f"{role}.onnx"
        model = onnx.load(path, load_external_data=False)
        kinds = [node.op_type for node in model.graph.node]
        if role.startswith("vae"):
            attentions = 1
        elif role == "text_encoder":
            attentions = TEXT.layers - 1
        else:
            inside = role == "controlnet"
            names = [n for n in blocks[role] if n.startswith(network.CONTROLNET) == inside]
            attentions = sum(n.endswith(("attn1.to_q.weight", "attn2.to_q.weight")) for n in names)
        size = sum(f.stat().st_size for f in (path, path.with_suffix(".data")))
        print(
            f"{precision} {role}: {len(kinds)} nodes, {attentions} attentions, {size / 1e6:.1f} MB"
        )
        assert kinds.count("MultiHeadAttention") == attentions
        assert not {"Softmax", "Attention", "Einsum", "Loop", "If", "SequenceAt", "Constant"} & set(
            kinds
        )
        # Without external data a graph is small: it holds no weights.
        assert path.stat().st_size < 2e6


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_types_and_free_dimensions(exported, precision):
    element = {"fp32": 1, "fp16": 10, "bf16": 16}[precision]
    for role in ROLES:
        model = onnx.load(exported[precision] / f"{role}.onnx", load_external_data=False)
        for value in [*model.graph.input, *model.graph.output]:
            tensor = value.type.tensor_type
            fixed = [d.dim_value for d in tensor.shape.dim if d.HasField("dim_value")]
            inside = value.name.startswith("control_")
            whole = value.name in ("t", "tokens")
            assert tensor.elem_type == (element if inside else 7 if whole else 1), value.name
            # Only channels, tokens and the width of the embedding are fixed.
            assert set(fixed) <= {3, 4, 32, 64, 77, 128}, f"{role} {value.name} {fixed}"


def test_islands_stay_in_32_bits(exported):
    model = onnx.load(exported["fp16"] / "denoiser.onnx", load_external_data=False)
    types = {i.name: i.data_type for i in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("LayerNormalization", "InstanceNormalization"):
            assert types[node.input[1]] == onnx.TensorProto.FLOAT
    assert types["time_embed.0.weight.T.fp32"] == onnx.TensorProto.FLOAT
    assert types["out.2.weight"] == onnx.TensorProto.FLOAT16


def test_bundle_is_complete_and_hashed(exported):
    folder = exported["fp16"]
    manifest = tomllib.loads((folder / "bundle.toml").read_text(encoding="utf-8"))
    assert list(manifest["graphs"]) == ROLES and "layout" not in manifest
    assert manifest["name"] == "star-fp16" and manifest["vae"]["decode_overlap"] == 1
    listed = [manifest["prompts"]["embeddings"]]
    for entry in manifest["graphs"].values():
        listed += [entry, *entry["data"]]
    for entry in listed:
        assert (
            hashlib.sha256((folder / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]
        ), entry["file"]
    assert {p.name for p in folder.iterdir()} == {entry["file"] for entry in listed} | {
        "bundle.toml"
    }
    assert not [p for p in folder.parent.iterdir() if p.name.startswith(".")]


def test_embeddings_are_the_text_encoders(exported):
    found = load_arrays(exported["fp32"] / "embeddings.safetensors")
    assert found["tokens"].shape == (5, 77) and found["embeddings"].shape == (5, 77, TEXT.width)
    assert found["tokens"][0].tolist() == text.tokenize("a good video " + text.SUFFIX).tolist()
    (embedding,) = session(exported["fp32"] / "text_encoder.onnx").run(
        None, {"tokens": found["tokens"]}
    )
    np.testing.assert_allclose(embedding, found["embeddings"], atol=1e-4)


def test_without_text_encoder(sources, tmp_path):
    output = tmp_path / "bundle"
    assert star.main([*sources, "--output", str(output), "--no-text-encoder"], STAR) == 0
    manifest = tomllib.loads((output / "bundle.toml").read_text(encoding="utf-8"))
    assert "text_encoder" not in manifest["graphs"] and not (output / "text_encoder.onnx").exists()
    assert manifest["prompts"]["embeddings"]["file"] == "embeddings.safetensors"


def test_replaces_only_bundles_and_only_when_forced(sources, tmp_path, capsys):
    output = tmp_path / "bundle"
    arguments = [*sources, "--output", str(output), "--no-text-encoder"]
    assert star.main(arguments, STAR) == 0
    (output / "note").write_text("mine", encoding="utf-8")
    refused(sources, output, capsys, "exists", "--force")
    assert (output / "note").exists()
    assert star.main([*arguments, "--force"], STAR) == 0
    assert not (output / "note").exists()
    other = tmp_path / "pictures"
    other.mkdir()
    (other / "photo").write_text("mine", encoding="utf-8")
    refused([*sources, "--force"], other, capsys, "is no model bundle")


def test_a_killed_export_leaves_no_bundle_and_the_next_one_succeeds(sources, tmp_path):
    output = tmp_path / "bundle"
    partial = tmp_path / ".bundle.partial"
    code = (
        "import signal, sys, test_star_export as t\n"
        "from starsr.export import star\n"
        "star.write_embeddings = lambda *_: (print('written', flush=True), signal.pause())\n"
        "star.main(sys.argv[1:], t.STAR)\n"
    )
    arguments = [*sources, "--output", str(output)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    child = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert child.stdout is not None
    while "written" not in (line := child.stdout.readline()):
        assert line, "the export ended early"
    try:
        with pytest.raises(writer.BundleError, match="another process"), writer.staged(output):
            pass
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert partial.is_dir() and not output.exists()
    assert star.main(arguments, STAR) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def save(path, tensors):
    torch.save(tensors, path)
    return path


def test_wrong_checkpoints(sources, tmp_path, capsys):
    real = Path(sources[sources.index("--checkpoint") + 1])
    state = torch.load(real, weights_only=True)["state_dict"]
    without_liem = {name: t for name, t in state.items() if ".local" not in name}
    unet_only = {name: t for name, t in state.items() if not name.startswith("VideoControlNet.")}
    cases = {
        "venhancer.pt": (
            lambda p: save(p, {"state_dict": without_liem}),
            ["VEnhancer", "LIEM", "73 missing"],
        ),
        "cogvideox.pt": (
            lambda p: save(
                p, {"model.diffusion_model.transformer.layers.0.weight": torch.zeros(2)}
            ),
            ["CogVideoX", "I2VGen-XL"],
        ),
        "unet.pt": (lambda p: save(p, unet_only), ["no ControlNet"]),
        "wrapped.pt": (
            lambda p: save(p, {f"module.{n}": t for n, t in state.items()}),
            ["training wrapper"],
        ),
        "list.pt": (lambda p: save(p, [1, 2, 3]), ["no state dict"]),
        "truncated.pt": (
            lambda p: p.write_bytes(real.read_bytes()[:100_000]),
            ["incomplete", "download it again"],
        ),
        "page.pt": (lambda p: p.write_text("\n<!DOCTYPE html><html>404"), ["web page"]),
        "pointer.pt": (
            lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid"),
            ["git lfs pull"],
        ),
        "noise.pt": (
            lambda p: p.write_bytes(bytes(range(1, 255))),
            ["not a PyTorch checkpoint", "download it again"],
        ),
        "empty.pt": (lambda p: p.write_bytes(b""), ["is empty"]),
        "cut.safetensors": (
            lambda p: p.write_bytes(b"\xff\x00\x00\x00\x00\x00\x00\x00{"),
            ["no complete safetensors"],
        ),
        "missing.pt": (lambda p: None, ["cannot be read", "No such file"]),
    }
    for name, (make, words) in cases.items():
        path = tmp_path / name
        make(path)
        refused(replaced(sources, "--checkpoint", path), tmp_path / "bundle", capsys, name, *words)


def test_wrong_autoencoders_and_text_encoders(sources, tmp_path, capsys):
    output = tmp_path / "bundle"
    empty = tmp_path / "empty"
    empty.mkdir()
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(
        json.dumps({"_class_name": "AutoencoderKL"}), encoding="utf-8"
    )
    file = tmp_path / "file"
    file.write_text("x")
    unknown = "nobody/has-this-repository"
    refused(
        replaced(sources, "--vae", empty), output, capsys, "neither config.json nor vae/config.json"
    )
    refused(
        replaced(sources, "--vae", other),
        output,
        capsys,
        "AutoencoderKL",
        "AutoencoderKLTemporalDecoder",
    )
    refused(replaced(sources, "--vae", file), output, capsys, "is a file")
    refused(
        replaced(sources, "--vae", unknown), output, capsys, unknown, "local folder", "hf download"
    )
    refused(
        replaced(sources, "--text-encoder", empty), output, capsys, "open_clip_model.safetensors"
    )
    refused(
        replaced(sources, "--text-encoder", unknown),
        output,
        capsys,
        unknown,
        "local folder",
        "hf download",
    )
    wrong = sources[sources.index("--checkpoint") + 1]
    refused(replaced(sources, "--text-encoder", wrong), output, capsys, "ViT-H-14", "missing")
    wide = tmp_path / "wide"
    wide.mkdir()
    options = write_random_sources(wide, STAR, VAE, TextConfig(64, 4, 2))
    refused(replaced(sources, "--text-encoder", options[-1]), output, capsys, "width 64", "32")


def test_values_beyond_half_precision(sources, tmp_path, capsys):
    state = torch.load(Path(sources[sources.index("--checkpoint") + 1]), weights_only=True)[
        "state_dict"
    ]
    state["out.2.weight"] = state["out.2.weight"].float() + 1e5
    path = save(tmp_path / "large.pt", state)
    refused(
        replaced(sources, "--checkpoint", path),
        tmp_path / "bundle",
        capsys,
        "out.2.weight",
        "bf16 or fp32",
    )


def test_bf16_is_not_verified_without_a_gpu(sources, tmp_path, capsys):
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("ONNX Runtime has a GPU, which runs bf16")
    refused(
        [*sources, "--precision", "bf16", "--verify"], tmp_path / "bundle", capsys, "bf16", "GPU"
    )


def test_too_little_space_is_noticed_before_writing(sources, tmp_path, capsys, monkeypatch):
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    refused(sources, tmp_path / "bundle", capsys, "0.0 GB left", "needs 0.1 GB", "--output")


def test_a_full_disk_is_reported_and_cleaned_up(sources, tmp_path):
    code = (
        "import resource, signal, sys, test_star_export as t\n"
        "from starsr.export import star\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000))\n"
        "sys.exit(star.main(sys.argv[1:], t.STAR))\n"
    )
    arguments = [*sources, "--output", str(tmp_path / "bundle")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    child = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment
    )
    assert child.returncode == 1
    assert child.stderr.count("\n") == 1 and "free some space" in child.stderr
    assert not list(tmp_path.iterdir())


def test_random_sources_are_what_users_download(sources):
    folder = Path(sources[sources.index("--checkpoint") + 1]).parent
    assert (folder / CHECKPOINT).is_file()
    assert (folder / "vae" / "config.json").is_file() and list(
        (folder / "vae").glob("*.fp16.safetensors")
    )
    assert (folder / "text_encoder" / "open_clip_model.safetensors").is_file()
