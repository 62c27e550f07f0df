# SPDX-License-Identifier: MPL-2.0
"""`starsr-export cogvideox` on small random weights."""

import hashlib
import json
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from starsr.export import cli, cogvideox, rehearse, star
from starsr.export.cogvideox_sources import TextEncoder
from starsr.export.cogvideox_verify import tables
from starsr.export.rehearse import random_feeds
from starsr.models.cogvideox import network, text
from starsr.models.cogvideox.network import CogVideoXConfig
from starsr.models.cogvideox.vae import VaeConfig, cache_shapes, declared_parameters
from starsr.models.cogvideox.weights import checkpoint_shapes
from starsr.models.weights import Weights
from starsr.ops.torch_ops import parameters_of

ROPE = CogVideoXConfig(64, 2, 16, 32, 48, 12)
SINCOS = replace(ROPE, positions="sincos")
VAE = VaeConfig((32, 32, 32, 64), 1)
TOKENIZER = Path(__file__).parents[2] / "crates/starsr-testkit/fixtures/t5/spiece.model"
ROLES = ["vae_encoder", "vae_decoder", "modulation", "denoiser"]


def checkpoint(config, rank=4):
    """Random weights as a checkpoint has them, with tables and low-rank updates."""
    torch.manual_seed(0)
    declared = network.declared_parameters(config)
    plain = parameters_of(declared)
    present: dict[str, tuple[int, ...]] = {}
    for name in plain:
        base, _, kind = name.rpartition(".")
        present[f"{base}.matrix_A.0"] = (rank, config.width)
        present[f"{base}.original.{kind}"] = ()
    if config.positions == "rotary":
        present["mixins.pos_embed.freqs_cos"] = (60, config.head_dim)
    else:
        present["mixins.pos_embed.pos_embedding"] = (1, 72, config.width)
    tensors = {}
    for name, shape in checkpoint_shapes(config, present).items():
        known = plain.get(name.replace(".original", ""))
        value = torch.randn(shape) * 0.05 if known is None else known
        tensors[f"model.diffusion_model.{name}"] = value.half()
    return tensors


def write_vae(folder, factor):
    folder.mkdir()
    torch.manual_seed(1)
    tensors = {n: t.half() for n, t in parameters_of(declared_parameters(VAE)).items()}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    described = {
        "_class_name": "AutoencoderKLCogVideoX",
        "block_out_channels": VAE.block_out_channels,
        "layers_per_block": VAE.layers_per_block,
        "latent_channels": VAE.latent_channels,
        "scaling_factor": factor,
    }
    (folder / "config.json").write_text(json.dumps(described), encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints, autoencoders and an embedding."""
    place = tmp_path_factory.mktemp("cogvideox")
    for config in (ROPE, SINCOS):
        torch.save({"module": checkpoint(config)}, place / f"{config.positions}.pt")
    write_vae(place / "vae_rotary", 0.7)
    write_vae(place / "vae_sincos", 1.15258426)
    save_file({"prompt": torch.randn(1, 12, 48)}, place / "embedding.safetensors")
    return place


def options(folder, kind="rotary", **other):
    given = {
        "checkpoint": folder / f"{kind}.pt",
        "vae": folder / f"vae_{kind}",
        "embedding": folder / "embedding.safetensors",
        **other,
    }
    return [part for name, value in given.items() for part in (f"--{name}", str(value))]


def run(arguments, output, *more):
    return cogvideox.main([*arguments, "--output", str(output), *more], 12)


def refused(arguments, output, capsys, *words):
    """Run the command, which must fail with one sentence that holds `words`, without a trace."""
    before = sorted(output.parent.iterdir())
    assert run(arguments, output) == 1
    message = capsys.readouterr().err.strip()
    print(message)
    assert message.startswith("starsr-export: ")
    assert "\n" not in message and "Traceback" not in message
    for word in words:
        assert word in message, message
    assert sorted(output.parent.iterdir()) == before


@pytest.mark.parametrize("kind", ["rotary", "sincos"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_verify_compares_every_graph(folder, kind, precision, tmp_path, capsys):
    output = tmp_path / "bundle"
    assert run(options(folder, kind, precision=precision), output, "--verify") == 0
    printed = capsys.readouterr().out
    print(printed)
    assert all(f"{role} " in printed and "differs from PyTorch by" in printed for role in ROLES)
    manifest = tomllib.loads((output / "bundle.toml").read_text(encoding="utf-8"))
    assert (manifest["format"], manifest["kind"]) == (2, "cogvideox")
    rotary = kind == "rotary"
    assert manifest["latent"]["scaling_factor"] == pytest.approx(0.7 if rotary else 1.15258426)
    assert manifest["schedule"]["shift_scale"] == (1.0 if rotary else 3.0)
    assert manifest["sampler"]["guidance"] == "wave"
    assert manifest["positions"]["kind"] == kind
    memory = (manifest["canvas"]["tile_memory"], manifest["vae"]["encode_memory"])
    assert memory == ((6, 1440) if precision == "fp32" else (4, 384))
    assert set(manifest["graphs"]) == set(ROLES)
    named = [manifest["prompts"]["embeddings"]]
    for entry in manifest["graphs"].values():
        named += [entry, *entry.get("data", [])]
    for entry in named:
        content = (output / entry["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
    listed = {entry["file"] for entry in named} | {"bundle.toml"}
    assert {path.name for path in output.iterdir()} == listed
    given = load_file(folder / "embedding.safetensors")["prompt"]
    assert torch.equal(load_file(output / "embeddings.safetensors")["embeddings"], given)


def test_graphs_have_the_inputs_that_the_format_describes(folder, tmp_path):
    output = tmp_path / "bundle"
    assert run(options(folder, precision="fp32"), output) == 0
    found = {}
    for role in ROLES:
        session = onnxruntime.InferenceSession(output / f"{role}.onnx")
        found[role] = (
            [i.name for i in session.get_inputs()],
            [o.name for o in session.get_outputs()],
        )
    count = len(cache_shapes(VAE))
    assert found["modulation"] == (["t"], ["modulation"])
    inputs = ["x", "hint", "modulation", "embedding", "cos", "sin"]
    assert found["denoiser"] == (inputs, ["v"])
    assert found["vae_encoder"] == (["pixels"], ["latents", "std"])
    assert found["vae_decoder"] == (
        ["latents", *(f"cache_{i}" for i in range(count))],
        ["pixels", *(f"next_{i}" for i in range(count))],
    )
    # One modulation serves both predictions of guidance.
    session = onnxruntime.InferenceSession(output / "denoiser.onnx")
    sizes = {"B": 2, "M": 1, "T": 3, "h": 4, "w": 6, "N": 18}
    feeds = random_feeds(session, sizes)
    feeds |= {name: table.numpy() for name, table in tables(ROPE, 3, 4, 6).items()}
    (v,) = session.run(None, feeds)
    assert v.shape == (2, 3, 16, 4, 6) and np.isfinite(v).all()


def test_a_bundle_without_a_prompt_needs_no_guidance(folder, tmp_path):
    assert run(without_embedding(folder), tmp_path / "bundle") == 0
    written = (tmp_path / "bundle" / "bundle.toml").read_text(encoding="utf-8")
    manifest = tomllib.loads(written)
    assert "prompts" not in manifest and manifest["sampler"]["guidance"] == 1.0


def test_the_command_has_a_subcommand(folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["cogvideox", "--help"])
    assert stopped.value.code == 0
    assert "starsr-export cogvideox" in capsys.readouterr().out


def test_a_folder_of_a_checkpoint(folder, tmp_path):
    place = tmp_path / "sat"
    (place / "1000").mkdir(parents=True)
    (place / "latest").write_text("1000\n", encoding="utf-8")
    shutil.copy(folder / "rotary.pt", place / "1000" / "mp_rank_00_model_states.pt")
    assert run(options(folder, checkpoint=place), tmp_path / "bundle") == 0
    (place / "latest").unlink()
    assert run(options(folder, checkpoint=place), tmp_path / "other") == 1


def test_verify_notices_a_wrong_weight(folder, monkeypatch, tmp_path, capsys):
    original = star.write_graphs

    def broken(work, graphs):
        files = original(work, graphs)
        path = work / "denoiser.onnx"
        model = onnx.load(path, load_external_data=False)
        name = "mixins.final_layer.linear.bias"
        bias = next(i for i in model.graph.initializer if i.name == name)
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 1, name))
        path.write_bytes(model.SerializeToString())
        return files

    monkeypatch.setattr(star, "write_graphs", broken)
    arguments = [*options(folder, precision="fp32"), "--verify"]
    refused(arguments, tmp_path / "bundle", capsys, "denoiser differs from PyTorch")


def saved(tensors, path):
    torch.save(tensors, path)
    return path


def test_wrong_checkpoints_are_explained(folder, tmp_path, capsys):
    own, sources = checkpoint(ROPE), tmp_path / "sources"
    sources.mkdir()
    first = "model.diffusion_model."
    plain = {n: t for n, t in own.items() if "_local" not in n}
    patch = f"{first}mixins.patch_embed."
    for part in ("weight", "bias"):
        moved = plain.pop(f"{patch}proj_sr.{part}")
        plain[f"{patch}proj.{part}"] = moved[:, :16] if part == "weight" else moved
    no_gates = {n: t for n, t in own.items() if "_local" not in n}
    cases = {
        "i2vgen": (
            {"VideoControlNet.x": torch.zeros(1), "input_blocks.y": torch.zeros(1)},
            "I2VGen",
        ),
        "plain": (plain, "plain CogVideoX"),
        "gateless": (no_gates, "transformer.layers.0.spa_local.conv1.weight"),
        "diffusers": ({"transformer_blocks.0.norm1.norm.weight": torch.zeros(1)}, "diffusers"),
    }
    for name, (tensors, word) in cases.items():
        path = saved(tensors, sources / f"{name}.pt")
        refused(options(folder, checkpoint=path), tmp_path / "bundle", capsys, str(path), word)
    extra = {**own, f"{first}other": torch.zeros(1)}
    path = saved(extra, sources / "extra.pt")
    refused(options(folder, checkpoint=path), tmp_path / "bundle", capsys, "1 unknown: other")


def test_broken_and_missing_files_are_explained(folder, tmp_path, capsys):
    whole, sources = (folder / "rotary.pt").read_bytes(), tmp_path / "sources"
    sources.mkdir()
    for name, content, word in (
        ("cut.pt", whole[: len(whole) // 2], "incomplete"),
        ("empty.pt", b"", "empty"),
        ("page.pt", b"<!DOCTYPE html>", "web page"),
    ):
        (sources / name).write_bytes(content)
        refused(options(folder, checkpoint=sources / name), tmp_path / "bundle", capsys, word)
    nowhere = options(folder, checkpoint=sources / "nowhere.pt")
    refused(nowhere, tmp_path / "bundle", capsys, "cannot be read")


def test_a_checkpoint_of_another_size_is_explained(folder, tmp_path, capsys):
    wide = replace(ROPE, width=1920, head_dim=64, layers=1, positions="sincos")
    path = saved(checkpoint(wide), tmp_path / "wide.pt")
    words = ("CogVideoX-5B has 3072", "choose --size 2b")
    refused(options(folder, checkpoint=path, size="5b"), tmp_path / "bundle", capsys, *words)


def test_wrong_autoencoders_are_explained(folder, tmp_path, capsys):
    output = tmp_path / "bundle"
    words = ("scales latents by 1.15258", "needs 0.7")
    refused(options(folder, vae=folder / "vae_sincos"), output, capsys, *words)
    words = ("scales latents by 0.7", "CogVideoX-2B")
    refused(options(folder, "sincos", vae=folder / "vae_rotary"), output, capsys, *words)
    other = tmp_path / "other"
    other.mkdir()
    refused(options(folder, vae=other), output, capsys, "is no autoencoder")
    described = {"_class_name": "AutoencoderKLTemporalDecoder"}
    (other / "config.json").write_text(json.dumps(described), encoding="utf-8")
    refused(options(folder, vae=other), output, capsys, "holds a AutoencoderKLTemporalDecoder")
    cut = tmp_path / "cut"
    shutil.copytree(folder / "vae_rotary", cut)
    weights = cut / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    del tensors["encoder.conv_in.conv.bias"]
    save_file(tensors, weights)
    refused(options(folder, vae=cut), output, capsys, "encoder.conv_in.conv.bias")


def test_wrong_embeddings_are_explained(folder, tmp_path, capsys):
    path = tmp_path / "clip.safetensors"
    save_file({"embedding": torch.zeros(1, 77, 1024)}, path)
    words = ("[1, 77, 1024]", "T5 v1.1 XXL")
    refused(options(folder, embedding=path), tmp_path / "bundle", capsys, *words)
    save_file({"embedding": torch.full((12, 48), torch.nan)}, path)
    refused(options(folder, embedding=path), tmp_path / "bundle", capsys, "not finite")


def test_a_full_disk_is_noticed_beforehand(folder, monkeypatch, tmp_path, capsys):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    refused(options(folder), tmp_path / "bundle", capsys, "free some space")


def test_the_output_is_complete_or_unchanged(folder, monkeypatch, tmp_path, capsys):
    output = tmp_path / "bundle"
    assert run(options(folder), output) == 0
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    refused(options(folder), output, capsys, "--force")

    def full(work, graphs):
        (work / "half.data").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(star, "write_graphs", full)
    assert run(options(folder), output, "--force") == 1
    assert "free some space" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def write_text_encoder(folder, config):
    """T5's encoder with weights that a formula gives, in two files."""
    folder.mkdir()
    tensors = wavy_weights(config)
    names = sorted(tensors)
    for i, part in enumerate((names[::2], names[1::2])):
        kept = {name: tensors[name] for name in part}
        save_file(kept, folder / f"model-0000{i}-of-00002.safetensors")
    return tensors


def waves(name, shape):
    phases = torch.arange(int(np.prod(shape)), dtype=torch.float64) * 1.7 + sum(map(ord, name))
    return phases.sin().float().reshape(shape) * 0.3 + ("layer_norm" in name)


def wavy_weights(config):
    declared = text.declared_parameters(config)
    return {name: waves(name, parameter.shape) for name, parameter in declared.items()}


def without_embedding(folder):
    arguments = options(folder)
    at = arguments.index("--embedding")
    return arguments[:at] + arguments[at + 2 :]


def embedded_by(tensors, tokens, config):
    return TextEncoder(Weights(tensors, "waves"), config).embed(tokens)


def test_a_text_encoder_embeds_the_empty_prompt(folder, tmp_path, capsys):
    config = text.T5Config(48, 4, 8, 40, 2, 32, 32)
    tensors = write_text_encoder(tmp_path / "t5", config)
    arguments = [*without_embedding(folder), "--text-encoder", str(tmp_path / "t5")]
    assert run(arguments, tmp_path / "bundle") == 0
    embedded = load_file(tmp_path / "bundle" / "embeddings.safetensors")["embeddings"]
    expected = embedded_by(tensors, torch.tensor([[1] + [0] * 11]), config)
    torch.testing.assert_close(embedded, expected, atol=1e-5, rtol=0)
    refused([*arguments, "--prompt", "a cat"], tmp_path / "other", capsys, "--tokenizer")
    word = "--any-prompt needs a --text-encoder"
    refused([*options(folder), "--any-prompt"], tmp_path / "other", capsys, word)
    words = ("has no tokenizer", "spiece.model")
    refused([*arguments, "--any-prompt"], tmp_path / "other", capsys, *words)


def test_a_text_encoder_from_the_hub(folder, monkeypatch, tmp_path, capsys):
    config = text.T5Config(48, 4, 8, 40, 2, 32, 32)
    (tmp_path / "cache").mkdir()
    write_text_encoder(tmp_path / "cache" / "text_encoder", config)
    asked = []

    def download(repository, allow_patterns):
        asked.append((repository, allow_patterns))
        if repository == "no/where":
            raise OSError("no such repository")
        return str(tmp_path / "cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    arguments = [*without_embedding(folder), "--text-encoder"]
    assert run([*arguments, "some/where"], tmp_path / "bundle") == 0
    assert asked == [("some/where", ["text_encoder/*", "tokenizer/spiece.model"])]
    words = ("no/where", "no such repository", "hf download")
    refused([*arguments, "no/where"], tmp_path / "other", capsys, *words)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_text_encoder_becomes_a_graph(folder, precision, tmp_path, capsys):
    """In the layout of CogVideoX's repository, with `--verify`."""
    place, output = tmp_path / "t5", tmp_path / "bundle"
    (place / "tokenizer").mkdir(parents=True)
    shutil.copy(TOKENIZER, place / "tokenizer")
    config = text.T5Config(48, 4, 8, 40, 2, 1300, 32)
    tensors = write_text_encoder(place / "text_encoder", config)
    arguments = [*without_embedding(folder), "--text-encoder", str(place), "--any-prompt"]
    assert run([*arguments, "--precision", precision], output, "--verify") == 0
    printed = capsys.readouterr().out
    print(printed)
    assert "text_encoder 2x12: differs from PyTorch by" in printed
    assert "text_encoder: " in printed and ", 2 of them attention" in printed
    manifest = tomllib.loads((output / "bundle.toml").read_text(encoding="utf-8"))
    assert set(manifest["graphs"]) == {*ROLES, "text_encoder"}
    assert manifest["prompts"]["tokenizer"]["file"] == "spiece.model"
    weights = (output / "text_encoder.data").stat().st_size
    assert weights < manifest["prompts"]["memory"] < 3 * weights
    assert manifest["licence"].endswith("text encoder: Apache-2.0")
    assert manifest["provenance"].endswith(f"and t5 in {precision}")
    session = onnxruntime.InferenceSession(output / "text_encoder.onnx")
    (tokens,), (embedding,) = session.get_inputs(), session.get_outputs()
    assert (tokens.type, tokens.shape[1:]) == ("tensor(int64)", [12])
    assert (embedding.type, embedding.shape[1:]) == ("tensor(float)", [12, 48])
    limit = 1e-4 if precision == "fp32" else 3e-2
    for ids in ([1] + [0] * 11, [14, 343, 68, 223, 3, 660, 3, 46, 53, 217, 1, 0]):
        (found,) = session.run(None, {"tokens": np.array([ids])})
        expected = embedded_by(tensors, torch.tensor([ids]), config)
        torch.testing.assert_close(torch.from_numpy(found), expected, atol=limit, rtol=0)
    empty = load_file(output / "embeddings.safetensors")["embeddings"]
    expected = embedded_by(tensors, torch.tensor([[1] + [0] * 11]), config)
    torch.testing.assert_close(empty, expected, atol=1e-5, rtol=0)


def test_a_prompt_is_embedded(folder, tmp_path, capsys):
    config = text.T5Config(48, 4, 8, 40, 2, 1300, 32)
    tensors = write_text_encoder(tmp_path / "t5", config)
    arguments = [*without_embedding(folder), "--text-encoder", str(tmp_path / "t5")]
    arguments += ["--tokenizer", str(TOKENIZER)]
    assert run([*arguments, "--prompt", "a  dog runs fast home"], tmp_path / "bundle") == 0
    embedded = load_file(tmp_path / "bundle" / "embeddings.safetensors")["embeddings"]
    ids = [14, 343, 68, 223, 3, 660, 3, 46, 53, 217, 1, 0]
    expected = embedded_by(tensors, torch.tensor([ids]), config)
    torch.testing.assert_close(embedded, expected, atol=1e-5, rtol=0)
    manifest = tomllib.loads((tmp_path / "bundle" / "bundle.toml").read_text(encoding="utf-8"))
    assert manifest["prompts"]["default"] == "a  dog runs fast home"
    long = [*arguments, "--prompt", "the lake " * 6]
    refused(long, tmp_path / "other", capsys, "too long by 1 tokens")


def test_wrong_text_encoders_are_explained(folder, tmp_path, capsys):
    arguments = without_embedding(folder)
    narrow = tmp_path / "narrow"
    write_text_encoder(narrow, text.T5Config(32, 4, 8, 40, 2, 32, 32))
    words = ("width 32", "takes 48", "T5 v1.1 XXL")
    refused([*arguments, "--text-encoder", str(narrow)], tmp_path / "bundle", capsys, *words)
    clip = tmp_path / "clip"
    clip.mkdir()
    save_file({"text_model.x": torch.zeros(1)}, clip / "model.safetensors")
    words = ("shared.weight", "is missing", "T5 v1.1 XXL")
    refused([*arguments, "--text-encoder", str(clip)], tmp_path / "bundle", capsys, *words)
    (clip / "model.safetensors").unlink()
    refused([*arguments, "--text-encoder", str(clip)], tmp_path / "bundle", capsys, "no weights")


@pytest.mark.parametrize("config", [ROPE, SINCOS], ids=["rotary", "sincos"])
def test_a_rehearsal_runs_every_graph(config, tmp_path, capsys):
    factor = 0.7 if config is ROPE else 1.15258426
    vae = replace(VAE, scaling_factor=factor)
    sources = rehearse.write_random_cogvideox(tmp_path, config, vae, rank=8)
    # The width does not tell the positions of so small a network.
    kinds = {config.width: config.positions}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("starsr.models.cogvideox.weights.KINDS", kinds)
        assert run(sources, tmp_path / "bundle") == 0
    for role in rehearse.COGVIDEOX_ROLES:
        rehearse.run_once(tmp_path / "bundle" / f"{role}.onnx", rehearse.COGVIDEOX_RUN)
    printed = capsys.readouterr().out
    print(printed)
    assert printed.count(" finite") == 4 and "NOT FINITE" not in printed


def test_the_tokenizer_is_part_of_the_bundle(folder, tmp_path, capsys):
    nested = tmp_path / "t5"
    (nested / "tokenizer").mkdir(parents=True)
    shutil.copy(TOKENIZER, nested / "tokenizer")
    for i, place in enumerate((TOKENIZER, TOKENIZER.parent, nested)):
        output = tmp_path / f"bundle{i}"
        assert run(options(folder, tokenizer=place), output) == 0
        prompts = tomllib.loads((output / "bundle.toml").read_text(encoding="utf-8"))["prompts"]
        listed = prompts["tokenizer"]
        data = (output / listed["file"]).read_bytes()
        assert data == TOKENIZER.read_bytes()
        assert listed["sha256"] == hashlib.sha256(data).hexdigest()
        assert prompts["length"] == ROPE.text_length
    words = ("has no tokenizer", "spiece.model")
    refused(options(folder, tokenizer=tmp_path / "none"), tmp_path / "other", capsys, *words)
    wrong = tmp_path / "tokenizer.json"
    wrong.write_text('{"model": {"vocab": ["<pad>", "</s>"]}}', encoding="utf-8")
    refused(options(folder, tokenizer=wrong), tmp_path / "other", capsys, "not T5's tokenizer")
