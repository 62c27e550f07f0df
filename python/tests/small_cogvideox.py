# SPDX-License-Identifier: MPL-2.0
"""The reference's small networks of STAR on CogVideoX."""

import json

from safetensors.torch import load_file

from starsr.models.cogvideox.vae import VaeConfig, diffusers_names
from starsr.models.cogvideox.weights import merged
from starsr.models.weights import Weights

FOLDER = "golden_cogvideox"
KINDS = {"rope": "rotary", "sincos": "sincos"}


def read_config(reference):
    return json.loads((reference / FOLDER / "config.json").read_text(encoding="utf-8"))


def read_network(reference, kind):
    """Return weights and sizes of the small network with positions of a `kind`."""
    listed = read_config(reference)["net_small"]
    tensors = load_file(reference / FOLDER / listed["file"])
    weights = Weights({name: t.float() for name, t in tensors.items()}, listed["file"])
    return merged(weights, KINDS[kind], listed["text_length"])


def read_case(reference, name):
    """Return the inputs and results of a case of `net_cases`."""
    listed = read_config(reference)["net_cases"][name]
    case = load_file(reference / FOLDER / f"{name}.safetensors")
    if "x" in case:
        x, hint = case["x"].split(16, 2)
    else:
        x, hint = (
            case[part].expand(listed["b"], -1, -1, -1, -1) for part in ("noisy", "lr_latent")
        )
    assert x.shape == (listed["b"], listed["t"], 16, listed["h"], listed["w"])
    assert case["t"].tolist() == listed["timestep"]
    inputs = {
        "x": x.contiguous(),
        "hint": hint.contiguous(),
        "t": case["t"].long(),
        "embedding": case["context"],
    }
    return listed, inputs, case


def read_vae(reference):
    """Return weights by diffusers' names and sizes of the small autoencoder."""
    listed = read_config(reference)["vae_small"]
    channels = tuple(listed["ch"] * m for m in listed["ch_mult"])
    config = VaeConfig(channels, listed["num_res_blocks"], listed["z_channels"])
    tensors = load_file(reference / FOLDER / listed["files"][0])
    names = diffusers_names(tensors)
    return {new: tensors[old].float() for old, new in names.items()}, config
