# SPDX-License-Identifier: MPL-2.0
"""`starsr-export-nano`: writes the nano bundle from training checkpoints and verifies it."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto
from torch import Tensor

from starsr.bundle import writer
from starsr.export.operations import of_nano
from starsr.models.nano.network import (
    BLOCK,
    CHANNELS,
    CONTROLS,
    NANO,
    WINDOW,
    Nano,
    NanoConfig,
    controlnet,
    decode,
    denoiser,
    encode,
)
from starsr.models.nano.weights import load, mean, read
from starsr.models.schedule import MANIFEST, T_START
from starsr.ops.onnx_graph import Spec
from starsr.ops.onnx_ops import OnnxOps
from starsr.ops.torch_ops import TorchOps

#: What the manifests of the project's own models say of their origin.
OURS = {
    "licence": "MPL-2.0",
    "provenance": "trained from scratch by the starsr project, see README.md in this folder",
    "training_data": "Kodak, scikit-image, Urban100 and SunHays80 photographs, "
    "Intel IoT sample videos",
}

FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64
LATENTS: Spec = (FLOAT, ["B", CHANNELS, "F", "h", "w"])
PIXELS: Spec = (FLOAT, ["F", 3, "H", "W"])
FRAME_LATENTS: Spec = (FLOAT, ["F", CHANNELS, "h", "w"])
TIMESTEPS: Spec = (INT, ["B"])
#: Each side of a canvas holds whole attention windows of the coarsest scale.
MULTIPLE = WINDOW * 4 * BLOCK
#: Side of a tile in output pixels, which keeps the memory for a window at about 2 GB, and the
#: overlap that hides the seams of the tiles.
TILE, TILE_OVERLAP = 1024, 128
#: Bytes that ONNX Runtime needs for each pixel of a tile and frame of a window, measured on CPU.
TILE_MEMORY = 256
#: On held-out clips of all kinds, mean and least PSNR are higher than at full strength.
STRENGTH = 0.85
#: Largest absolute difference between ONNX Runtime and PyTorch.
LIMIT = 1e-4


def control_specs(config: NanoConfig) -> dict[str, Spec]:
    """Return names, types and shapes of the tensors between ControlNet and denoiser."""
    channels = [*config.widths, CHANNELS]
    return {
        f"control_{i}": (FLOAT, [f"BF_{i}", c, f"h_{i}", f"w_{i}"]) for i, c in enumerate(channels)
    }


def graphs(model: Nano) -> dict[str, onnx.ModelProto]:
    """Return the graphs of a bundle by role."""
    config, std = model.config, model.std()
    weights = {name: p.detach().cpu().numpy() for name, p in model.named_weights().items()}
    noisy = {"x": LATENTS, "t": TIMESTEPS}
    controls = control_specs(config)

    encoder, decoder, control, denoise = (OnnxOps(weights) for _ in range(4))
    return {
        "vae_encoder": encoder.model(
            {"pixels": PIXELS}, {"latents": FRAME_LATENTS}, [encode(encoder, "pixels", std)]
        ),
        "vae_decoder": decoder.model(
            {"latents": FRAME_LATENTS}, {"pixels": PIXELS}, [decode(decoder, "latents", std)]
        ),
        "controlnet": control.model(
            {**noisy, "hint": LATENTS}, controls, controlnet(control, "x", "t", "hint", config)
        ),
        "denoiser": denoise.model(
            {**noisy, **controls},
            {"v": LATENTS},
            [denoiser(denoise, "x", "t", list(controls), config)],
        ),
    }


def manifest(version: str) -> dict[str, Any]:
    """Return the manifest of nano without its graphs."""
    side = {"multiple": MULTIPLE, "offset": 0, "minimum": MULTIPLE}
    return {
        "format": 1,
        "name": "nano",
        "version": version,
        **OURS,
        "scale": {"default": BLOCK, "minimum": BLOCK, "maximum": BLOCK},
        "latent": {"channels": CHANNELS, "spatial_factor": BLOCK, "scaling_factor": 1.0},
        "canvas": {
            "upscale": "bicubic",
            "padding": "edge",
            "tile": TILE,
            "tile_overlap": TILE_OVERLAP,
            "tile_memory": TILE_MEMORY,
            "operations": of_nano(NANO, BLOCK, 8),
            "height": side,
            "width": side,
        },
        "window": {"mode": "blend", "length": 8, "overlap": 3, "minimum": 1, "maximum": 64},
        "schedule": MANIFEST,
        "sampler": {
            "mode": "normal",
            "steps": 1,
            "guidance_scale": 1.0,
            "guidance_rescale": 0.2,
            "color_fix": "none",
            "strength": STRENGTH,
        },
        "vae": {"frames_per_encode": 8, "frames_per_decode": 8},
    }


def run_onnx(graph: onnx.ModelProto, feeds: Mapping[str, Tensor]) -> list[np.ndarray]:
    """Run one graph in ONNX Runtime on the CPU and return its outputs."""
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, {name: value.numpy() for name, value in feeds.items()}))


@torch.no_grad()
def verify(model: Nano, built: Mapping[str, onnx.ModelProto]) -> dict[str, float]:
    """Return the largest absolute difference between PyTorch and ONNX Runtime by role.

    The graphs run on batches of several shapes.
    """
    generator = torch.Generator().manual_seed(0)
    config, std = model.config, model.std()
    ops = TorchOps({name: p.cpu() for name, p in model.named_weights().items()})
    worst = dict.fromkeys(built, 0.0)

    def compare(role: str, feeds: Mapping[str, Tensor], expected: Sequence[Tensor]) -> None:
        for actual, reference in zip(run_onnx(built[role], feeds), expected, strict=True):
            difference = float(np.abs(actual - reference.numpy()).max())
            worst[role] = max(worst[role], difference)

    cases = [(1, 3, 32, 64, [T_START]), (2, 1, 64, 32, [T_START, 90])]
    for batch, frames, height, width, times in cases:
        shape = (batch, CHANNELS, frames, height, width)
        x, hint = (torch.randn(shape, generator=generator) for _ in range(2))
        t = torch.tensor(times)
        controls = controlnet(ops, x, t, hint, config)
        names = [f"control_{i}" for i in range(CONTROLS)]
        compare("controlnet", {"x": x, "t": t, "hint": hint}, controls)
        feeds = {"x": x, "t": t, **dict(zip(names, controls, strict=True))}
        compare("denoiser", feeds, [denoiser(ops, x, t, controls, config)])
        size = (frames, 3, height * BLOCK, width * BLOCK)
        pixels = torch.rand(size, generator=generator) * 2 - 1
        latents = encode(ops, pixels, std)
        compare("vae_encoder", {"pixels": pixels}, [latents])
        compare("vae_decoder", {"latents": latents}, [decode(ops, latents, std)])
    return worst


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    result = argparse.ArgumentParser(
        prog="starsr-export-nano",
        description="Writes the nano bundle from a training checkpoint, or from the mean of "
        "several networks, and verifies it against PyTorch.",
    )
    add = result.add_argument
    add("--checkpoint", type=Path, required=True, help="checkpoint of starsr-train")
    add(
        "--with",
        dest="others",
        type=Path,
        action="append",
        default=[],
        metavar="BUNDLE",
        help="bundle whose weights are averaged with the checkpoint's; may be repeated",
    )
    add(
        "--output",
        type=Path,
        required=True,
        help="folder of the bundle, replaced once the new one is complete",
    )
    add("--version", default="1.3.0", help="version in the manifest (%(default)s)")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = parser().parse_args(arguments)
    try:
        model = mean([load(options.checkpoint), *map(read, options.others)])
    except (ValueError, OSError) as e:
        print(f"starsr-export-nano: {e}", file=sys.stderr)
        return 1
    built = graphs(model)
    for role, difference in verify(model, built).items():
        nodes = len(built[role].graph.node)
        print(f"{role}: {nodes} nodes, differs from PyTorch by {difference:.1e}")
        if not difference <= LIMIT:
            print(
                f"starsr-export-nano: {role} differs from PyTorch by more than {LIMIT:.0e} in ONNX "
                "Runtime: the bundle is not written",
                file=sys.stderr,
            )
            return 1
    keep = {p.name: p.read_text(encoding="utf-8") for p in options.output.glob("*.md")}
    writer.write(options.output, manifest(options.version), built, keep)
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
