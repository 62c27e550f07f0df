# SPDX-License-Identifier: MPL-2.0
"""STAR's autoencoder and text encoder in PyTorch against the official names and results."""

import json

import torch
from safetensors.torch import load_file

from starsr.models.star import text, vae
from starsr.models.star.text import TextConfig, encode_text, tokenize
from starsr.ops.torch_ops import TorchOps


def test_full_size_vae_has_the_official_names_and_shapes(reference):
    official = json.loads((reference / "vae_keys.json").read_text(encoding="utf-8"))
    assert {name: list(p.shape) for name, p in vae.declared_parameters().items()} == official


def test_full_size_text_encoder_has_the_official_names_and_shapes(reference):
    official = json.loads((reference / "text_encoder_keys.json").read_text(encoding="utf-8"))
    declared = {name: list(p.shape) for name, p in text.declared_parameters().items()}
    unused = official.keys() - declared.keys()
    assert declared == {name: shape for name, shape in official.items() if name not in unused}
    # The last block and the projection have no influence on the penultimate features.
    assert all(name in ("text_projection", "logit_scale") or ".23." in name for name in unused)


@torch.no_grad()
def test_golden_vae(reference, golden_vae):
    config, weights = golden_vae
    io, ops = load_file(reference / "golden_vae" / "io.safetensors"), TorchOps(weights)
    mean, std = vae.encode(ops, io["img"], config)
    torch.testing.assert_close(mean / config.scaling_factor, io["mean"], atol=1e-4, rtol=0)
    torch.testing.assert_close(std / config.scaling_factor, io["std"], atol=1e-4, rtol=0)
    decoded = [name for name in io if name.startswith("dec")]
    assert decoded
    for name in decoded:
        latents = io["z"][: int(name.removeprefix("dec"))] * config.scaling_factor
        torch.testing.assert_close(vae.decode(ops, latents, config), io[name], atol=1e-4, rtol=0)


@torch.no_grad()
def test_golden_text_embedding(reference):
    folder = reference / "golden_text"
    sizes = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = TextConfig(sizes["width"], sizes["heads"], sizes["layers"])
    weights = {
        name: t.float() for name, t in load_file(folder / "tiny_text.f16.safetensors").items()
    }
    io = load_file(folder / "tiny_text_io.safetensors")
    torch.testing.assert_close(
        encode_text(TorchOps(weights), io["tokens"], config), io["penultimate"], atol=1e-4, rtol=0
    )


def test_golden_text_tokens(reference):
    cases = json.loads((reference / "golden_text" / "tokens.json").read_text(encoding="utf-8"))
    assert {name: tokenize(c["text"]).tolist() for name, c in cases.items()} == {
        name: c["ids"] for name, c in cases.items()
    }


def test_official_prompts(reference):
    cases = json.loads((reference / "golden_text" / "tokens.json").read_text(encoding="utf-8"))
    assert cases["negative"]["text"] == text.NEGATIVE
    assert cases["default_cli+pos"]["text"] == text.DEFAULT + text.SUFFIX


@torch.no_grad()
def test_overlapped_groups_leave_no_seam(golden_vae):
    """A still clip flickers in the official groups of 3, but not if each frame is in the centre.

    In the official groups the frames have different neighbours.
    """
    config, weights = golden_vae
    ops, frames = TorchOps(weights), 12
    latents = torch.randn((1, 4, 5, 8), generator=torch.Generator().manual_seed(0)).expand(
        frames, -1, -1, -1
    )

    def decode(start, end):
        return vae.decode(ops, latents[max(start, 0) : end], config)

    official = torch.cat([decode(i, i + 3) for i in range(0, frames, 3)])
    centred = torch.cat([decode(i - 1, i + 2)[min(i, 1) :][:1] for i in range(frames)])
    flicker = [
        float(clip.diff(dim=0).abs().mean((1, 2, 3))[1:-1].max()) for clip in (official, centred)
    ]
    print(f"flicker of official groups {flicker[0]:.1e}, of centred groups {flicker[1]:.1e}")
    assert flicker[0] > 1e-3 > 1e-5 > flicker[1]
