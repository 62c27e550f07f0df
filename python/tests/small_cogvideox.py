#!/usr/bin/env python3
# SPDX-License-Identifier: MPL-2.0
"""Small bundles of STAR on CogVideoX for the tests of the plugin.

`random` has random weights and works at any multiple of 16 from 48x32 on; `half` has the same in 16
bits, and `guided` a prompt. `text` has a text encoder too, and `embedded` another prompt that the
same encoder embedded. The others hold the reference's small networks (`golden_cogvideox`):
`rope` and `sincos` as they are, and `tame` with the last layer that the reference's whole run has.
"""

import hashlib
import json

import torch
from safetensors.torch import load_file, save

from small_bundles import INDEX, ROOT, fingerprint, is_made_of, read_options
from starsr.bundle import writer
from starsr.export.cogvideox_graphs import network_graphs, text_graph, vae_graphs
from starsr.export.cogvideox_manifest import manifest
from starsr.export.cogvideox_sources import TextEncoder
from starsr.export.manifest import EMBEDDINGS
from starsr.models.cogvideox import network, text
from starsr.models.cogvideox.network import CogVideoXConfig
from starsr.models.cogvideox.text import T5Config
from starsr.models.cogvideox.vae import VaeConfig, declared_parameters, diffusers_names
from starsr.models.cogvideox.weights import merged
from starsr.models.weights import Arrays, Weights
from starsr.ops.torch_ops import parameters_of

FOLDER = "golden_cogvideox"
TOKENIZER = ROOT / "crates/starsr-testkit/fixtures/t5/spiece.model"
KINDS = {"rope": "rotary", "sincos": "sincos"}
#: Height and width that the bundles call trained, a whole canvas of theirs.
TRAINED = (32, 48)
#: Factor of the last layer in the reference's run of the whole sampler.
TAME = 1 / 8


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


def random_networks():
    """Return random weights and sizes of a small network, and those of an autoencoder."""
    config = CogVideoXConfig(64, 2, 16, 32, 48, 12)
    vae_config = VaeConfig((8, 8, 8, 8), 1, groups=8)
    torch.manual_seed(0)
    weights = parameters_of(network.declared_parameters(config))
    vae = parameters_of(declared_parameters(vae_config))
    return (weights, config), (vae, vae_config)


def scaled(weights, factor):
    """Return weights whose velocity is `factor` times as large."""
    last = [f"mixins.final_layer.linear.{kind}" for kind in ("weight", "bias")]
    return {**weights, **{name: weights[name] * factor for name in last}}


def random_text_encoder(config):
    """Return a small text encoder for a network, which knows the tokens of `TOKENIZER`."""
    size = T5Config(config.text_dim, 4, 8, 40, 2, 1300, 32)
    torch.manual_seed(3)
    return TextEncoder(Weights(parameters_of(text.declared_parameters(size)), "random"), size)


def read_tokens(case, length):
    """Return text and tokens `[1,length]` of a case of the tokenizer, which fit."""
    cases = json.loads((TOKENIZER.parent / "tokens.json").read_text(encoding="utf-8"))
    ids = cases[case]["ids"]
    assert not any(ids[length:])
    return cases[case]["text"], torch.tensor([ids[:length]])


def write(folder, precision, network, autoencoder, prompt=None, encoder=None, tokens=None):
    """Write a bundle, without a prompt or with the embedding of one.

    The embedding is random, or that which `encoder` gives for `tokens`. The encoder is part of the
    bundle if the prompt is empty.
    """
    (weights, config), (vae, vae_config) = network, autoencoder
    described = manifest(
        folder.name, "1", "random", config, vae_config, (precision,) * 2, prompt, TRAINED
    )
    graphs = {
        **vae_graphs(Arrays(vae), vae_config, precision),
        **network_graphs(Arrays(weights), config, precision),
    }
    if prompt == "":
        arrays = Arrays(encoder.weights)
        graphs |= text_graph(arrays, encoder.config, config.text_length, precision)
    folder.mkdir()
    files = {role: graph.save(folder / f"{role}.onnx") for role, graph in graphs.items()}
    parts = {}
    if prompt is not None:
        shape = (1, config.text_length, config.text_dim)
        embedding = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        if encoder is not None:
            embedding = encoder.embed(tokens)
            parts["tokenizer"] = (TOKENIZER.name, TOKENIZER.read_bytes())
        parts["embeddings"] = (EMBEDDINGS, save({"embeddings": embedding}))
    for key, (name, data) in parts.items():
        (folder / name).write_bytes(data)
        sha256 = hashlib.sha256(data).hexdigest()
        described["prompts"][key] = {"file": name, "sha256": sha256}
    writer.write_manifest(folder, described, files)


def main():
    options = read_options(__doc__)
    reference = options.reference
    mark = fingerprint(__file__, [reference / FOLDER, TOKENIZER.parent])
    if is_made_of(options.output, mark):
        return
    with writer.staged(options.output) as work:
        for name, precision in (("random", "fp32"), ("half", "fp16")):
            write(work / name, precision, *random_networks())
        network, autoencoder = random_networks()
        write(work / "guided", "fp32", network, autoencoder, "a lake")
        encoder = random_text_encoder(network[1])
        for name, case in (("text", "empty"), ("embedded", "white space")):
            prompt, tokens = read_tokens(case, network[1].text_length)
            write(work / name, "fp32", network, autoencoder, prompt, encoder, tokens)
        if (reference / FOLDER).is_dir():
            vae = read_vae(reference)
            for kind in KINDS:
                write(work / kind, "fp32", read_network(reference, kind), vae)
            weights, config = read_network(reference, "rope")
            write(work / "tame", "fp32", (scaled(weights, TAME), config), vae)
        else:
            print(f"{reference / FOLDER} is missing: set STARSR_REFERENCE to the reference folder")
        index = {"fingerprint": mark}
        (work / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
