# SPDX-License-Identifier: MPL-2.0
"""`starsr-rehearse`: rehearses a conversion without the real weights.

Writes random weights of the official names and sizes, exports them, then loads each graph in ONNX
Runtime and runs it once on a small canvas. Prints times, sizes and peak memory.
"""

import argparse
import json
import math
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from safetensors.torch import save_file
from torch import Tensor

from starsr.export import cli, star
from starsr.export.cogvideox_manifest import SCALING_FACTORS
from starsr.export.emulate import open_session
from starsr.models.cogvideox import network as network_of_cogvideox
from starsr.models.cogvideox import vae as cogvideox_vae
from starsr.models.cogvideox.network import COGVIDEOX_2B, COGVIDEOX_5B, CogVideoXConfig
from starsr.models.cogvideox.weights import checkpoint_shapes
from starsr.models.star import network, text
from starsr.models.star.network import STAR, StarConfig
from starsr.models.star.text import VIT_H_14, TextConfig
from starsr.models.star.vae import SVD, VaeConfig
from starsr.ops import Parameter
from starsr.ops.onnx_graph import PRECISIONS
from starsr.ops.torch_ops import parameters_of

CHECKPOINT, VAE, TEXT_ENCODER = "star.pt", "vae", "text_encoder"
#: Graphs to run, and the sizes of their free dimensions: 2 frames of 80x64 pixels. The ControlNet's
#: scales determine the levels of the controls.
ROLES = ("vae_encoder", "controlnet", "denoiser", "vae_decoder", "text_encoder")
LEVELS = {
    f"{axis}_{level}": size
    for level, sizes in enumerate([(10, 8), (6, 4), (4, 2), (3, 1)])
    for axis, size in zip("hw", sizes, strict=True)
}
SIZES = {"B": 1, "F": 2, "BF": 2, "H": 80, "W": 64, "h": 10, "w": 8, **LEVELS}
#: The same for CogVideoX: 9 frames of 64x64 pixels, which are 3 latents, and empty caches.
COGVIDEOX_ROLES = ("vae_encoder", "modulation", "denoiser", "vae_decoder")
COGVIDEOX_LEVELS = {f"{axis}_{level}": 8 << level for axis in "hw" for level in range(4)}
COGVIDEOX_RUN = {
    "B": 1,
    "M": 1,
    "T": 3,
    "N": 48,
    "F": 9,
    "H": 64,
    "W": 64,
    "h": 8,
    "w": 8,
    "P": 0,
    **COGVIDEOX_LEVELS,
}
COGVIDEOX = "cogvideox.safetensors"
#: Networks on CogVideoX that can be rehearsed.
COGVIDEOX_SIZES = {"cogvideox-5b": COGVIDEOX_5B, "cogvideox-2b": COGVIDEOX_2B}


def write_random_sources(
    folder: Path, config: StarConfig, vae: VaeConfig, tower: TextConfig, seed: int = 0
) -> list[str]:
    """Write random 16-bit weights in the layout of the released ones.

    Returns the options of `starsr-export` that name them.
    """
    from diffusers import AutoencoderKLTemporalDecoder
    from open_clip.constants import HF_CONFIG_NAME, HF_SAFE_WEIGHTS_NAME

    torch.manual_seed(seed)
    state = random_halves(network.declared_parameters(config))
    torch.save({"state_dict": state}, folder / CHECKPOINT)
    AutoencoderKLTemporalDecoder(
        block_out_channels=vae.block_out_channels,
        down_block_types=("DownEncoderBlock2D",) * len(vae.block_out_channels),
        layers_per_block=vae.layers_per_block,
        latent_channels=vae.latent_channels,
        scaling_factor=vae.scaling_factor,
    ).half().save_pretrained(folder / VAE, variant="fp16")
    place = folder / TEXT_ENCODER
    place.mkdir(exist_ok=True)
    save_file(random_halves(text.declared_parameters(tower)), place / HF_SAFE_WEIGHTS_NAME)
    sizes = {"width": tower.width, "heads": tower.heads, "layers": tower.layers}
    described = json.dumps({"model_cfg": {"text_cfg": sizes}})
    (place / HF_CONFIG_NAME).write_text(described, encoding="utf-8")
    sources = [("--checkpoint", CHECKPOINT), ("--vae", VAE), ("--text-encoder", TEXT_ENCODER)]
    return [part for option, name in sources for part in (option, str(folder / name))]


def write_random_cogvideox(
    folder: Path, config: CogVideoXConfig, vae: cogvideox_vae.VaeConfig, rank: int = 512
) -> list[str]:
    """Write random 16-bit weights of STAR on CogVideoX, in the layout of the released ones.

    They have low-rank updates of a `rank`. Returns the options of `starsr-export cogvideox` that
    name them.
    """
    plain = network_of_cogvideox.declared_parameters(config)
    present: dict[str, tuple[int, ...]] = {}
    for name in plain:
        base, _, kind = name.rpartition(".")
        present |= {f"{base}.matrix_A.0": (rank, config.width), f"{base}.original.{kind}": ()}
    shapes = checkpoint_shapes(config, present)
    declared = {
        name: plain.get(name.replace(".original.", "."), Parameter(shape))
        for name, shape in shapes.items()
    }
    write_random_halves(folder / COGVIDEOX, declared)
    place = folder / VAE
    place.mkdir(exist_ok=True)
    described = {
        "_class_name": "AutoencoderKLCogVideoX",
        "block_out_channels": vae.block_out_channels,
        "layers_per_block": vae.layers_per_block,
        "latent_channels": vae.latent_channels,
        "norm_num_groups": vae.groups,
        "scaling_factor": vae.scaling_factor,
        "temporal_compression_ratio": vae.temporal_factor,
    }
    (place / "config.json").write_text(json.dumps(described), encoding="utf-8")
    weights = place / "diffusion_pytorch_model.safetensors"
    write_random_halves(weights, cogvideox_vae.declared_parameters(vae))
    return ["--checkpoint", str(folder / COGVIDEOX), "--vae", str(place)]


def write_random_halves(path: Path, declared: Mapping[str, Parameter]) -> None:
    """Write a safetensors file of 16-bit tensors for declared parameters, one by one."""
    header, end = {}, 0
    for name, parameter in declared.items():
        start, end = end, end + 2 * math.prod(parameter.shape)
        header[name] = {"dtype": "F16", "shape": parameter.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, parameter in declared.items():
            tensor = parameters_of({name: parameter})[name].half()
            file.write(tensor.numpy().tobytes())


def random_halves(declared: Mapping[str, Parameter]) -> dict[str, Tensor]:
    """Return 16-bit tensors for declared parameters, made one by one."""
    return {
        name: parameters_of({name: parameter})[name].half() for name, parameter in declared.items()
    }


def random_feeds(
    session: onnxruntime.InferenceSession, sizes: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Return random inputs of a graph; `sizes` are those of its free dimensions."""
    generator = np.random.default_rng(0)
    result: dict[str, np.ndarray] = {}
    for value in session.get_inputs():
        shape = [sizes[d] if isinstance(d, str) else d for d in value.shape]
        if value.type == "tensor(int64)":
            result[value.name] = generator.integers(0, 900, shape)
        else:
            number = np.float16 if value.type == "tensor(float16)" else np.float32
            result[value.name] = generator.standard_normal(shape, np.float32).astype(number)
    return result


def run_once(path: Path, sizes: Mapping[str, int]) -> None:
    """Load the graph `path`, run it once, and print times and the process's peak memory."""
    start = time.monotonic()
    session = open_session(path, ["CPUExecutionProvider"])
    loaded = time.monotonic()
    results = session.run(None, random_feeds(session, sizes))
    ran = time.monotonic()
    finite = all(np.isfinite(r).all() for r in results)
    print(
        f"{path.stem}: loaded in {loaded - start:.1f} s, ran in {ran - loaded:.1f} s, peak memory "
        f"{star.peak_memory():.1f} GB, {len(results)} results, "
        f"{'finite' if finite else 'NOT FINITE'}"
    )
    if not finite:
        sys.exit(1)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    result = argparse.ArgumentParser(
        prog="starsr-rehearse",
        description="Rehearses a conversion without the real weights: exports random ones of the "
        "official names and sizes, then runs each graph once. Prints times, sizes and peak memory.",
    )
    add = result.add_argument
    add(
        "--folder",
        type=Path,
        help="folder for weights and bundle, some 12 GB or 24 GB for CogVideoX-5B, which stay "
        "there (default: a temporary folder)",
    )
    add(
        "--precision",
        choices=PRECISIONS,
        default="fp16",
        help="precision of the exported networks (%(default)s)",
    )
    add(
        "--model",
        choices=["i2vgen", *COGVIDEOX_SIZES],
        default="i2vgen",
        help="the network: STAR on I2VGen-XL or on a size of CogVideoX (%(default)s)",
    )
    add("--verify", action="store_true", help="also compare every graph with PyTorch")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = parser().parse_args(arguments)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="starsr-rehearsal-"))
    folder.mkdir(parents=True, exist_ok=True)
    spawn = multiprocessing.get_context("spawn")
    try:
        start = time.monotonic()
        if options.model == "i2vgen":
            sources = write_random_sources(folder, STAR, SVD, VIT_H_14)
            roles, sizes = list(ROLES), SIZES
        else:
            config = COGVIDEOX_SIZES[options.model]
            factor = SCALING_FACTORS[config.positions]
            vae = cogvideox_vae.VaeConfig(scaling_factor=factor)
            sources = ["cogvideox", *write_random_cogvideox(folder, config, vae)]
            roles, sizes = list(COGVIDEOX_ROLES), COGVIDEOX_RUN
        print(f"wrote random weights in {time.monotonic() - start:.0f} s", flush=True)
        target = str(folder / "bundle")
        command = [*sources, "--output", target, "--precision", options.precision, "--force"]
        command += ["--verify"] * options.verify
        # Each step runs in a process of its own, so that its peak memory is its own.
        steps = [spawn.Process(target=_export, args=(command,))]
        for role in roles:
            path = folder / "bundle" / f"{role}.onnx"
            steps.append(spawn.Process(target=run_once, args=(path, sizes)))
        for step in steps:
            step.start()
            step.join()
            if step.exitcode != 0:
                return 1
        return 0
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


def _export(command: list[str]) -> None:
    sys.exit(cli.main(command))


if __name__ == "__main__":
    sys.exit(main())
