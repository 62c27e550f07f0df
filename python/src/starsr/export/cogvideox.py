# SPDX-License-Identifier: MPL-2.0
"""`starsr-export cogvideox`: converts STAR on CogVideoX and its autoencoder to a bundle."""

import argparse
import hashlib
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import save

from starsr.bundle import writer
from starsr.bundle.writer import BundleError
from starsr.export import star
from starsr.export.cogvideox_graphs import network_graphs, vae_graphs
from starsr.export.cogvideox_manifest import manifest
from starsr.export.cogvideox_sources import (
    SIZES,
    VAE,
    embed_empty_prompt,
    find_tokenizer,
    load_embedding,
    load_network,
    load_vae,
    read_tokenizer,
)
from starsr.export.cogvideox_verify import CogVideoXVerifier
from starsr.export.manifest import EMBEDDINGS, TOKENIZER
from starsr.export.verify import LIMITS, Difference
from starsr.models.cogvideox.weights import TEXT_LENGTH
from starsr.models.weights import Arrays
from starsr.ops.onnx_graph import PRECISIONS


def export(options: argparse.Namespace, text_length: int = TEXT_LENGTH) -> None:
    """Do what the options ask for. Raises `WeightsError` and `BundleError`."""
    star.check_output(options.output, options.force)
    if options.embedding is None and options.prompt:
        raise BundleError(
            "--prompt needs its --embedding: --text-encoder embeds the empty prompt only"
        )
    network, config = load_network(options.checkpoint, options.size, text_length)
    vae, vae_config = load_vae(options.vae, config.positions)
    embedding = None
    if options.embedding is not None:
        embedding = load_embedding(options.embedding, config)
    elif options.text_encoder is not None:
        embedding = embed_empty_prompt(options.text_encoder, config)
    tokenizer = options.tokenizer
    if tokenizer is None and options.text_encoder is not None:
        tokenizer = find_tokenizer(options.text_encoder)
    pieces = None if tokenizer is None or embedding is None else read_tokenizer(tokenizer)
    vae_precision = options.vae_precision or options.precision
    graphs = {
        **vae_graphs(Arrays(vae), vae_config, vae_precision),
        **network_graphs(Arrays(network), config, options.precision),
    }
    needed = sum(graph.data_size() for graph in graphs.values()) + star.OVERHEAD
    star.check_space(options.output, needed)
    described = manifest(
        options.name or options.output.absolute().name,
        options.version,
        f"converted from {options.checkpoint.name} and {options.vae.name} in {options.precision}",
        config,
        vae_config,
        None if embedding is None else options.prompt,
    )

    def differences(work: Path) -> Iterator[tuple[str, Difference]]:
        networks = CogVideoXVerifier(work, options.precision).networks(network, config)
        yield from ((options.precision, d) for d in networks)
        autoencoder = CogVideoXVerifier(work, vae_precision).autoencoder(vae, vae_config)
        yield from ((vae_precision, d) for d in autoencoder)

    with writer.staged(options.output) as work:
        files = star.write_graphs(work, graphs)
        if embedding is not None:
            data = save({"embeddings": embedding})
            (work / EMBEDDINGS).write_bytes(data)
            described["prompts"]["embeddings"] = {
                "file": EMBEDDINGS,
                "sha256": hashlib.sha256(data).hexdigest(),
            }
        if pieces is not None:
            (work / TOKENIZER).write_bytes(pieces)
            described["prompts"]["tokenizer"] = {
                "file": TOKENIZER,
                "sha256": hashlib.sha256(pieces).hexdigest(),
            }
        writer.write_manifest(work, described, files)
        if options.verify:
            star.check_differences(differences(work), LIMITS)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    result = argparse.ArgumentParser(
        prog="starsr-export cogvideox",
        description="Converts a checkpoint of STAR on CogVideoX and its autoencoder into a model "
        "bundle.",
    )
    add = result.add_argument
    add(
        "--checkpoint",
        type=Path,
        required=True,
        help="STAR's checkpoint on CogVideoX: a file, or the folder with its file `latest`",
    )
    add(
        "--vae",
        type=Path,
        required=True,
        help=f"autoencoder: the authors' 3d-vae.pt, or a folder in diffusers' layout ({VAE})",
    )
    prompt = result.add_mutually_exclusive_group()
    prompt.add_argument(
        "--text-encoder",
        type=Path,
        help="folder with T5 v1.1 XXL's encoder in transformers' layout, which embeds the empty "
        "prompt here",
    )
    prompt.add_argument(
        "--embedding",
        type=Path,
        help="safetensors file with the embedding of another prompt (default: none, then the "
        "bundle has no prompt and needs no guidance)",
    )
    add(
        "--tokenizer",
        type=Path,
        help="T5's spiece.model, or a folder that has it (default: beside the text encoder, if it "
        "is there); with it, texts with the same tokens are the same prompt",
    )
    add("--prompt", default="", help="the text of the embedding (default: empty)")
    add(
        "--output",
        type=Path,
        required=True,
        help="folder of the bundle, which appears once it is complete",
    )
    add("--size", choices=SIZES, help="size that the checkpoint must have (default: any)")
    add(
        "--precision",
        choices=PRECISIONS,
        default="fp16",
        help="precision of the network: fp16 or bf16 for GPUs, fp32 for the CPU (%(default)s)",
    )
    add(
        "--vae-precision",
        choices=PRECISIONS,
        help="precision of the autoencoder (default: that of the network)",
    )
    star.add_common(result)
    return result


def main(arguments: list[str], text_length: int = TEXT_LENGTH) -> int:
    """Run the command and return its exit status."""
    options = parser().parse_args(arguments)
    return star.run(options.output, lambda: export(options, text_length))
