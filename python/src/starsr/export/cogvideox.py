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
from starsr.export.cogvideox_graphs import network_graphs, text_graph, vae_graphs
from starsr.export.cogvideox_manifest import TEXT_LICENCE, manifest, text_memory
from starsr.export.cogvideox_sources import (
    SIZES,
    VAE,
    embed_prompt,
    find_text_encoder,
    find_tokenizer,
    load_embedding,
    load_network,
    load_text_encoder,
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
    if options.text_encoder is None:
        if options.embedding is None and options.prompt:
            raise BundleError("--prompt needs its --embedding, or a --text-encoder that embeds it")
        if options.any_prompt:
            raise BundleError("--any-prompt needs a --text-encoder to put into the bundle")
    network, config = load_network(options.checkpoint, options.size, text_length)
    vae, vae_config = load_vae(options.vae, config.positions)
    tokenizer, encoder = options.tokenizer, None
    if options.text_encoder is not None:
        place = find_text_encoder(options.text_encoder)
        encoder = load_text_encoder(place, config)
        tokenizer = tokenizer or (place if options.any_prompt else find_tokenizer(place))
    pieces = None if tokenizer is None else read_tokenizer(tokenizer)
    embedding = None
    if options.embedding is not None:
        embedding = load_embedding(options.embedding, config)
    elif encoder is not None:
        embedding = embed_prompt(options.prompt, encoder, pieces, config)
    vae_precision = options.vae_precision or options.precision
    graphs = {
        **vae_graphs(Arrays(vae), vae_config, vae_precision),
        **network_graphs(Arrays(network), config, options.precision),
    }
    inside = encoder if options.any_prompt else None
    if inside is not None:
        arrays = Arrays(inside.weights)
        graphs |= text_graph(arrays, inside.config, config.text_length, options.precision)
    needed = sum(graph.data_size() for graph in graphs.values()) + star.OVERHEAD
    star.check_space(options.output, needed)
    sources = [options.checkpoint.name, options.vae.name]
    if inside is not None:
        sources.append(Path(options.text_encoder).name)
    described = manifest(
        options.name or options.output.absolute().name,
        options.version,
        f"converted from {', '.join(sources[:-1])} and {sources[-1]} in {options.precision}",
        config,
        vae_config,
        (options.precision, vae_precision),
        None if embedding is None else options.prompt,
    )
    if inside is not None:
        described["licence"] += TEXT_LICENCE
        described["prompts"]["memory"] = text_memory(graphs["text_encoder"])

    def differences(work: Path) -> Iterator[tuple[str, Difference]]:
        networks = CogVideoXVerifier(work, options.precision).networks(network, config)
        yield from ((options.precision, d) for d in networks)
        autoencoder = CogVideoXVerifier(work, vae_precision).autoencoder(vae, vae_config)
        yield from ((vae_precision, d) for d in autoencoder)
        if inside is not None:
            texts = CogVideoXVerifier(work, options.precision).text(inside, config.text_length)
            yield from ((options.precision, d) for d in texts)

    with writer.staged(options.output) as work:
        files = star.write_graphs(work, graphs)
        if embedding is not None:
            data = save({"embeddings": embedding})
            (work / EMBEDDINGS).write_bytes(data)
            described["prompts"]["embeddings"] = {
                "file": EMBEDDINGS,
                "sha256": hashlib.sha256(data).hexdigest(),
            }
        if pieces is not None and embedding is not None:
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
        help="T5 v1.1 XXL's encoder, which embeds the prompt here: a folder in transformers' "
        f"layout, or a hub repository that has it in `text_encoder` ({VAE})",
    )
    prompt.add_argument(
        "--embedding",
        type=Path,
        help="safetensors file with the embedding of another prompt (default: none, then the "
        "bundle has no prompt and needs no guidance)",
    )
    add(
        "--any-prompt",
        action="store_true",
        help="also put the text encoder into the bundle, 9.5 GB in 16 bits, so that any prompt "
        "works",
    )
    add(
        "--tokenizer",
        type=Path,
        help="T5's spiece.model, or a folder that has it (default: beside the text encoder, if it "
        "is there); with it, texts with the same tokens are the same prompt",
    )
    add(
        "--prompt",
        default="",
        help="the default prompt, which the embedding or the text encoder is for (default: empty)",
    )
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
        help="precision of network and text encoder: fp16 or bf16 for GPUs, fp32 for the CPU "
        "(%(default)s)",
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
