# SPDX-License-Identifier: MPL-2.0
"""Converts a STAR checkpoint, its autoencoder and its text encoder into a model bundle."""

import argparse
import errno
import re
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from starsr.bundle import writer as bundle
from starsr.bundle.writer import BundleError
from starsr.ops.onnx_graph import PRECISIONS
from starsr.models.schedule import MANIFEST
from starsr.models.star import text
from starsr.export.graphs import Graph, star_graphs, text_graphs, vae_graphs
from starsr.models.star.network import StarConfig
from starsr.export.sources import TEXT_ENCODER, VAE, TextTower, load_star, load_text_encoder, load_vae
from starsr.models.star.vae import VaeConfig
from starsr.export.verify import LIMITS, Verifier
from starsr.models.weights import Arrays, WeightsError

EMBEDDINGS = "embeddings.safetensors"
#: Space beside the weights: graphs, embeddings, manifest.
OVERHEAD = 16 << 20
LICENCE = "STAR: MIT; autoencoder: Stability AI's licence of Stable Video Diffusion; text encoder: MIT"


def canvas(kind: str) -> dict:
    """Legal sizes, which the networks' down- and upsampling sets (SPEC A.1, A.6). `official` fills up to 1280x720 with white as
    the authors' program does; `compact` takes the smallest legal size and repeats the edge."""
    official = kind == "official"
    return {
        "upscale": "bilinear",
        "padding": "official" if official else "edge",
        "height": {"multiple": 64, "offset": 16, "minimum": 720 if official else 80},
        "width": {"multiple": 64, "offset": 0, "minimum": 1280 if official else 64},
    }


def manifest(name: str, version: str, provenance: str, vae: VaeConfig, canvas_kind: str) -> dict:
    """The manifest of a STAR bundle without its files; the sampler's defaults are the authors' (SPEC A.0, A.5)."""
    return {
        "format": 1,
        "name": name,
        "version": version,
        "licence": LICENCE,
        "provenance": provenance,
        "training_data": "I2VGen-XL's and VEnhancer's; STAR: OpenVid-1M, degraded (arXiv 2501.02976, section 4.1)",
        "scale": {"default": 4, "minimum": 1, "maximum": 8},
        "latent": {
            "channels": vae.latent_channels,
            "spatial_factor": vae.spatial_factor,
            "scaling_factor": vae.scaling_factor,
        },
        "canvas": canvas(canvas_kind),
        "window": {"mode": "blend", "length": 32, "overlap": 8, "minimum": 1, "maximum": 64},
        "schedule": MANIFEST,
        "sampler": {
            "mode": "fast",
            "steps": 15,
            "guidance_scale": 7.5,
            "guidance_rescale": 0.2,
            "color_fix": "adain",
            "strength": 1.0,
        },
        "vae": {"frames_per_encode": 1, "frames_per_decode": 3, "decode_overlap": 1},
        "prompts": {"default": text.DEFAULT, "suffix": text.SUFFIX, "negative": text.NEGATIVE},
    }


def prompts() -> list[str]:
    """The texts whose embeddings a bundle brings: the default prompt in each way it can be joined with the suffix, and the
    negative prompt."""
    return [f"{text.DEFAULT} {text.SUFFIX}", text.DEFAULT + text.SUFFIX, text.DEFAULT, text.SUFFIX, text.NEGATIVE]


def write_embeddings(path: Path, tower: TextTower) -> str:
    """Writes tokens and embeddings of `prompts` and gives the file's SHA-256."""
    tokens = np.stack([text.tokenize(prompt) for prompt in prompts()])
    return bundle.write_embeddings(path, tokens, tower.embed(torch.from_numpy(tokens)).numpy())


def check_space(folder: Path, needed: int) -> None:
    """Raises `BundleError` unless the file system of `folder` has `needed` bytes left."""
    place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise BundleError(
            f"{place} has {free / 1e9:.1f} GB left, but the bundle needs {needed / 1e9:.1f} GB: free some space, or choose "
            "another --output"
        )


def check_output(folder: Path, force: bool) -> None:
    """Raises `BundleError` where writing `folder` would replace something else than asked for."""
    if not folder.exists():
        return
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / bundle.MANIFEST).is_file()):
        raise BundleError(f"{folder} exists and is no model bundle: choose another --output")
    if any(folder.iterdir()) and not force:
        raise BundleError(f"{folder} exists: choose another --output, or --force to replace it")


def write_graphs(work: Path, graphs: dict[str, Graph]) -> dict[str, dict[str, str]]:
    """Writes all graphs, under a progress bar on a terminal; the files of each with their SHA-256."""
    files = {}
    with tqdm(total=sum(g.data_size() for g in graphs.values()), unit="B", unit_scale=True, disable=None) as bar:
        for role, graph in graphs.items():
            bar.set_description(role)
            files[role] = graph.save(work / f"{role}.onnx", bar.update)
            attentions = sum(node.op_type == "MultiHeadAttention" for node in graph.ops.nodes)
            sizes = " + ".join(f"{(work / name).stat().st_size / 1e6:,.1f} MB" for name in files[role])
            tqdm.write(f"{role}: {len(graph.ops.nodes)} nodes, {attentions} of them attention, {sizes}")
    return files


def verify(work: Path, precision: str, vae_precision: str, star, config, vae, vae_config, tower, with_text: bool) -> None:
    """Compares every graph with PyTorch, prints the differences and raises `BundleError` for one that is too large."""

    def all_of():
        yield from ((precision, d) for d in Verifier(work, precision).star(star, config))
        yield from ((vae_precision, d) for d in Verifier(work, vae_precision).vae(vae, vae_config))
        if with_text:
            yield from ((precision, d) for d in Verifier(work, precision).text(tower, prompts()))

    for used, d in all_of():
        shape = "x".join(map(str, d.shape))
        print(f"{d.role} {shape}: differs from PyTorch by {d.largest:.1e} at most, {d.relative:.1e} relative")
        if not d.relative <= LIMITS[used]:
            raise BundleError(f"{d.role} differs from PyTorch by more than {LIMITS[used]:.0e}: the bundle is not written")


def export(options: argparse.Namespace, config: StarConfig = StarConfig()) -> None:
    """Does what the command's options ask for. Raises `WeightsError` and `BundleError`."""
    check_output(options.output, options.force)
    star = load_star(options.checkpoint, config)
    vae, vae_config = load_vae(options.vae)
    tower = load_text_encoder(options.text_encoder)
    if tower.config.width != config.context_dim:
        raise WeightsError(
            f"{options.text_encoder} gives embeddings of width {tower.config.width}, but {options.checkpoint} takes "
            f"{config.context_dim}: take the text encoder {TEXT_ENCODER}"
        )
    graphs = {
        **vae_graphs(Arrays(vae.state_dict()), vae_config, options.vae_precision),
        **star_graphs(Arrays(star), config, options.precision),
    }
    if not options.no_text_encoder:
        graphs.update(text_graphs(Arrays(tower.weights), tower.config, options.precision))
    check_space(options.output, sum(graph.data_size() for graph in graphs.values()) + OVERHEAD)
    name = options.name or options.output.absolute().name
    sources = [Path(s).name if Path(s).exists() else s for s in (options.checkpoint, options.vae, options.text_encoder)]
    provenance = f"converted from {sources[0]}, {sources[1]} and {sources[2]} in {options.precision}"
    described = manifest(name, options.version, provenance, vae_config, options.canvas)
    with bundle.staged(options.output) as work:
        files = write_graphs(work, graphs)
        described["prompts"]["embeddings"] = {
            "file": EMBEDDINGS,
            "sha256": write_embeddings(work / EMBEDDINGS, tower),
        }
        bundle.write_manifest(work, described, files)
        if options.verify:
            with_text = not options.no_text_encoder
            verify(work, options.precision, options.vae_precision, star, config, vae, vae_config, tower, with_text)


def peak_memory() -> float:
    """Most memory this process has had resident, mapped files included, in GB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024 / 1e9


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    result = argparse.ArgumentParser(prog="starsr-export", description=__doc__)
    add = result.add_argument
    add("--checkpoint", type=Path, required=True, help="STAR's checkpoint on I2VGen-XL, light_deg.pt or heavy_deg.pt")
    add("--vae", default=VAE, help="autoencoder: a local folder or a repository of the hub (%(default)s)")
    add(
        "--text-encoder",
        default=TEXT_ENCODER,
        help="text encoder: a local file or folder, or a repository of the hub (%(default)s)",
    )
    add("--output", type=Path, required=True, help="folder of the bundle, which appears when it is complete")
    add(
        "--precision",
        choices=PRECISIONS,
        default="fp16",
        help="of networks and text encoder: fp16 and bf16 for GPUs, fp32 for the CPU (%(default)s)",
    )
    add("--vae-precision", choices=PRECISIONS, default="fp32", help="of the autoencoder, which fp16 may overflow (%(default)s)")
    add(
        "--canvas",
        choices=["official", "compact"],
        default="official",
        help="official: frames are padded with white to 1280x720 at least, as by the authors; compact: as little as possible, "
        "which saves time on small frames (%(default)s)",
    )
    add("--no-text-encoder", action="store_true", help="leave the text encoder out: only the default prompts work")
    add("--name", help="name in the manifest (the output folder's)")
    add("--version", default="1", help="version in the manifest (%(default)s)")
    add("--verify", action="store_true", help="compare every graph with PyTorch before the bundle is put in place")
    add("--force", action="store_true", help="replace a bundle that is there")
    return result


def main(arguments: list[str] | None = None, config: StarConfig = StarConfig()) -> int:
    """Runs the command and gives its exit status."""
    options, start = parser().parse_args(arguments), time.monotonic()
    try:
        export(options, config)
    except (WeightsError, BundleError, ValueError) as e:
        print(f"starsr-export: {e}", file=sys.stderr)
        return 1
    except OSError as e:
        remedy = (
            "free some space, or choose another --output"
            if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            else "check the folder"
        )
        print(f"starsr-export: {options.output} could not be written: {e.strerror or e}; {remedy}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"starsr-export: interrupted, {options.output} is as it was", file=sys.stderr)
        return 130
    print(f"wrote {options.output} in {time.monotonic() - start:.0f} s, peak memory {peak_memory():.1f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
