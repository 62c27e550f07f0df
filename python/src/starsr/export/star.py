# SPDX-License-Identifier: MPL-2.0
"""`starsr-export`: converts a STAR checkpoint, its autoencoder and its text encoder to a bundle."""

import argparse
import errno
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from starsr.bundle import writer
from starsr.bundle.writer import BundleError
from starsr.export.graphs import (
    CHANNELS_FIRST,
    CHANNELS_LAST,
    LAYOUTS,
    Graph,
    star_graphs,
    text_graphs,
    vae_graphs,
)
from starsr.export.manifest import EMBEDDINGS, manifest, prompts
from starsr.export.operations import of_star
from starsr.export.sources import (
    TEXT_ENCODER,
    VAE,
    TextTower,
    load_star,
    load_text_encoder,
    load_vae,
)
from starsr.export.verify import LIMITS, Difference, Verifier
from starsr.models.star import text
from starsr.models.star.network import STAR, StarConfig
from starsr.models.star.vae import VaeConfig
from starsr.models.weights import Arrays, Weights, WeightsError
from starsr.ops.onnx_graph import PRECISIONS

#: Space for everything but the weights: graphs, embeddings, manifest.
OVERHEAD = 16 << 20


def write_embeddings(path: Path, tower: TextTower) -> str:
    """Write tokens and embeddings of `prompts` and return the file's SHA-256."""
    tokens = np.stack([text.tokenize(prompt) for prompt in prompts()])
    embeddings = tower.embed(torch.from_numpy(tokens)).numpy()
    return writer.write_embeddings(path, tokens, embeddings)


def check_space(folder: Path, needed: int) -> None:
    """Raise `BundleError` unless the file system of `folder` has `needed` bytes left."""
    place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise BundleError(
            f"{place} has {free / 1e9:.1f} GB left, but the bundle needs {needed / 1e9:.1f} GB: "
            "free some space, or choose another --output"
        )


def check_output(folder: Path, force: bool) -> None:
    """Raise `BundleError` if writing `folder` would replace something by mistake."""
    if not folder.exists():
        return
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / writer.MANIFEST).is_file()):
        raise BundleError(f"{folder} exists and is no model bundle: choose another --output")
    if any(folder.iterdir()) and not force:
        raise BundleError(f"{folder} exists: choose another --output, or --force to replace it")


def write_graphs(work: Path, graphs: dict[str, Graph]) -> dict[str, dict[str, str]]:
    """Write all graphs and return the files of each with their SHA-256.

    Shows a progress bar on a terminal.
    """
    files = {}
    total = sum(g.data_size() for g in graphs.values())
    with tqdm(total=total, unit="B", unit_scale=True, disable=None) as bar:
        for role, graph in graphs.items():
            bar.set_description(role)
            files[role] = graph.save(work / f"{role}.onnx", bar.update)
            nodes = graph.ops.nodes
            attentions = sum(node.op_type == "MultiHeadAttention" for node in nodes)
            bytes_of = [(work / name).stat().st_size for name in files[role]]
            sizes = " + ".join(f"{size / 1e6:,.1f} MB" for size in bytes_of)
            tqdm.write(f"{role}: {len(nodes)} nodes, {attentions} of them attention, {sizes}")
    return files


def complete(options: argparse.Namespace) -> None:
    """Choose precision of the autoencoder and layout where the user did not.

    Raises `BundleError` for a layout that the precision excludes.
    """
    if options.vae_precision is None:
        options.vae_precision = "fp32" if options.precision == "fp32" else "fp16"
    bf16 = "bf16" in (options.precision, options.vae_precision)
    if options.layout is None:
        fast = options.precision == "fp16" and not bf16
        options.layout = CHANNELS_LAST if fast else CHANNELS_FIRST
    if options.layout == CHANNELS_LAST and bf16:
        raise BundleError(
            "ONNX Runtime runs channels-last graphs in fp16 and fp32 only: choose --layout "
            "channels-first for bf16"
        )


def verify(
    work: Path,
    precision: str,
    vae_precision: str,
    layout: str,
    star: Weights,
    config: StarConfig,
    vae: nn.Module,
    vae_config: VaeConfig,
    tower: TextTower | None,
) -> None:
    """Compare every graph with PyTorch and print the differences.

    Raises `BundleError` if one is too large.
    """

    def differences() -> Iterator[tuple[str, Difference]]:
        networks = Verifier(work, precision, layout).star(star, config)
        yield from ((precision, d) for d in networks)
        yield from ((vae_precision, d) for d in Verifier(work, vae_precision).vae(vae, vae_config))
        if tower is not None:
            yield from ((precision, d) for d in Verifier(work, precision).text(tower, prompts()))

    check_differences(differences(), LIMITS)


def check_differences(
    differences: Iterable[tuple[str, Difference]], limits: Mapping[str, float]
) -> None:
    """Print the differences, each with its precision.

    Raises `BundleError` if one exceeds the limit of the precision.
    """
    for used, d in differences:
        shape = "x".join(map(str, d.shape))
        print(
            f"{d.role} {shape}: differs from PyTorch by {d.largest:.1e} at most, "
            f"{d.relative:.1e} relative"
        )
        if not d.relative <= limits[used]:
            raise BundleError(
                f"{d.role} differs from PyTorch by more than {limits[used]:.0e}: the bundle is "
                "not written"
            )


def export(options: argparse.Namespace, config: StarConfig = STAR) -> None:
    """Do what the options ask for. Raises `WeightsError` and `BundleError`."""
    complete(options)
    check_output(options.output, options.force)
    star = load_star(options.checkpoint, config)
    vae, vae_config = load_vae(options.vae)
    tower = load_text_encoder(options.text_encoder)
    if tower.config.width != config.context_dim:
        raise WeightsError(
            f"{options.text_encoder} gives embeddings of width {tower.config.width}, but "
            f"{options.checkpoint} takes {config.context_dim}: take the text encoder {TEXT_ENCODER}"
        )
    graphs = {
        **vae_graphs(Arrays(vae.state_dict()), vae_config, options.vae_precision, options.layout),
        **star_graphs(Arrays(star), config, options.precision, options.layout),
    }
    if not options.no_text_encoder:
        graphs.update(text_graphs(Arrays(tower.weights), tower.config, options.precision))
    check_space(options.output, sum(graph.data_size() for graph in graphs.values()) + OVERHEAD)
    name = options.name or options.output.absolute().name
    given = (options.checkpoint, options.vae, options.text_encoder)
    sources = [Path(s).name if Path(s).exists() else s for s in given]
    provenance = (
        f"converted from {sources[0]}, {sources[1]} and {sources[2]} in {options.precision}"
    )
    described = manifest(
        name, options.version, provenance, vae_config, options.canvas, options.layout
    )
    frames = described["window"]["length"]
    described["canvas"]["operations"] = of_star(config, vae_config.spatial_factor, frames)
    with writer.staged(options.output) as work:
        files = write_graphs(work, graphs)
        described["prompts"]["embeddings"] = {
            "file": EMBEDDINGS,
            "sha256": write_embeddings(work / EMBEDDINGS, tower),
        }
        writer.write_manifest(work, described, files)
        if options.verify:
            verify(
                work,
                options.precision,
                options.vae_precision,
                options.layout,
                star,
                config,
                vae,
                vae_config,
                None if options.no_text_encoder else tower,
            )


def peak_memory() -> float:
    """Return the peak of this process's resident memory, mapped files included, in GB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = re.search(r"VmHWM:\s*(\d+) kB", status)
    return int(peak[1]) * 1024 / 1e9 if peak else float("nan")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    result = argparse.ArgumentParser(
        prog="starsr-export",
        description="Converts a STAR checkpoint, its autoencoder and its text encoder into a "
        "model bundle.",
        epilog="`starsr-export cogvideox --help` describes the conversion of STAR on CogVideoX.",
    )
    add = result.add_argument
    add(
        "--checkpoint",
        type=Path,
        required=True,
        help="STAR's checkpoint on I2VGen-XL, light_deg.pt or heavy_deg.pt",
    )
    add("--vae", default=VAE, help="autoencoder: a local folder or a hub repository (%(default)s)")
    add(
        "--text-encoder",
        default=TEXT_ENCODER,
        help="text encoder: a local file or folder, or a hub repository (%(default)s)",
    )
    add(
        "--output",
        type=Path,
        required=True,
        help="folder of the bundle, which appears once it is complete",
    )
    add(
        "--precision",
        choices=PRECISIONS,
        default="fp16",
        help="precision of networks and text encoder: fp16 or bf16 for GPUs, fp32 for the CPU "
        "(%(default)s)",
    )
    add(
        "--vae-precision",
        choices=PRECISIONS,
        help="precision of the autoencoder (default: fp16 for GPUs, fp32 for the CPU)",
    )
    add(
        "--layout",
        choices=LAYOUTS,
        help="order of the axes inside the graphs: channels-last is the fastest on NVIDIA GPUs and "
        "runs nowhere else, channels-first runs everywhere and repeats to the bit (default: "
        "channels-last for fp16)",
    )
    add(
        "--canvas",
        choices=["official", "compact"],
        default="official",
        help="official: pad frames with white to at least 1280x720, as the authors do; compact: "
        "pad as little as possible, which saves time on small frames (%(default)s)",
    )
    add(
        "--no-text-encoder",
        action="store_true",
        help="leave out the text encoder, so that only the default prompts work",
    )
    add_common(result)
    return result


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the options that every conversion has."""
    add = parser.add_argument
    add("--name", help="name in the manifest (default: that of the output folder)")
    add("--version", default="1", help="version in the manifest (%(default)s)")
    add(
        "--verify",
        action="store_true",
        help="compare every graph with PyTorch before the bundle is put in place",
    )
    add("--force", action="store_true", help="replace an existing bundle")


def run(output: Path, export: Callable[[], None]) -> int:
    """Run `export`, which writes `output`, and return the exit status of the command.

    Prints what happened; an error is one sentence.
    """
    start = time.monotonic()
    try:
        export()
    except (WeightsError, BundleError, ValueError) as e:
        print(f"starsr-export: {e}", file=sys.stderr)
        return 1
    except OSError as e:
        full = e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "free some space, or choose another --output" if full else "check the folder"
        print(
            f"starsr-export: {output} could not be written: {e.strerror or e}; {remedy}",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print(f"starsr-export: interrupted, {output} is unchanged", file=sys.stderr)
        return 130
    seconds = time.monotonic() - start
    print(f"wrote {output} in {seconds:.0f} s, peak memory {peak_memory():.1f} GB")
    return 0


def main(arguments: list[str] | None = None, config: StarConfig = STAR) -> int:
    """Run the command and return its exit status."""
    options = parser().parse_args(arguments)
    return run(options.output, lambda: export(options, config))


if __name__ == "__main__":
    sys.exit(main())
