# SPDX-License-Identifier: MPL-2.0
"""Writes the nano bundle from a training checkpoint, or from the mean of some, and verifies it against PyTorch."""

import argparse
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto

from starsr.bundle import writer as bundle
from starsr.models.nano.network import (
    BLOCK,
    CHANNELS,
    CONTROLS,
    WINDOW,
    Nano,
    NanoConfig,
    controlnet,
    decode,
    denoiser,
    encode,
)
from starsr.ops.onnx_ops import OnnxOps
from starsr.ops.torch_ops import TorchOps
from starsr.models.schedule import MANIFEST, T_START
from starsr.models.nano.weights import load, mean, read

FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64
LATENTS = (FLOAT, ["B", CHANNELS, "F", "h", "w"])
PIXELS = (FLOAT, ["F", 3, "H", "W"])
FRAME_LATENTS = (FLOAT, ["F", CHANNELS, "h", "w"])
#: A canvas side must hold whole attention windows of the coarsest scale.
MULTIPLE = WINDOW * 4 * BLOCK
#: Tiles of this side, in output pixels, keep the memory for a window at about 2 GB; what they share hides their seams.
TILE, TILE_OVERLAP = 1024, 128
#: Bytes that ONNX Runtime needs for each pixel of a tile and frame of a window, measured on CPU.
TILE_MEMORY = 256
#: On held-out clips of all kinds PSNR, its mean and its least, is higher than with the full effect.
STRENGTH = 0.85


def control_specs(config: NanoConfig) -> dict[str, tuple]:
    """Names, types and shapes of the tensors between ControlNet and denoiser."""
    channels = [*config.widths, CHANNELS]
    return {f"control_{i}": (FLOAT, [f"BF_{i}", c, f"h_{i}", f"w_{i}"]) for i, c in enumerate(channels)}


def graphs(model: Nano) -> dict[str, onnx.ModelProto]:
    """The graphs of a bundle by role."""
    config, deviation = model.config, model.deviation.cpu().numpy().astype(np.float64)
    weights = {name: p.detach().cpu().numpy() for name, p in model.named_weights().items()}
    clip, time = {"x": LATENTS}, {"t": (INT, ["B"])}
    controls = control_specs(config)

    encoder, decoder, control, denoise = (OnnxOps(weights) for _ in range(4))
    names = list(controls)
    return {
        "vae_encoder": encoder.model({"pixels": PIXELS}, {"latents": FRAME_LATENTS}, [encode(encoder, "pixels", deviation)]),
        "vae_decoder": decoder.model({"latents": FRAME_LATENTS}, {"pixels": PIXELS}, [decode(decoder, "latents", deviation)]),
        "controlnet": control.model({**clip, **time, "hint": LATENTS}, controls, controlnet(control, "x", "t", "hint", config)),
        "denoiser": denoise.model({**clip, **time, **controls}, {"v": LATENTS}, [denoiser(denoise, "x", "t", names, config)]),
    }


def manifest(version: str) -> dict:
    """The manifest of nano without its graphs."""
    side = {"multiple": MULTIPLE, "offset": 0, "minimum": MULTIPLE}
    return {
        "format": 1,
        "name": "nano",
        "version": version,
        "licence": "MPL-2.0",
        "provenance": "trained from scratch by the starsr project, see README.md in this folder",
        "training_data": "Kodak, scikit-image, Urban100 and SunHays80 photographs, Intel IoT sample videos",
        "scale": {"default": BLOCK, "minimum": BLOCK, "maximum": BLOCK},
        "latent": {"channels": CHANNELS, "spatial_factor": BLOCK, "scaling_factor": 1.0},
        "canvas": {
            "upscale": "bicubic",
            "padding": "edge",
            "tile": TILE,
            "tile_overlap": TILE_OVERLAP,
            "tile_memory": TILE_MEMORY,
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


def run_onnx(graph: onnx.ModelProto, feeds: dict) -> list[np.ndarray]:
    """Outputs of one graph in ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {name: value.numpy() for name, value in feeds.items()})


def verify(model: Nano, built: dict[str, onnx.ModelProto]) -> dict[str, float]:
    """Largest absolute difference between PyTorch and ONNX Runtime by role, over shapes of several kinds."""
    generator = torch.Generator().manual_seed(0)
    config, deviation = model.config, model.deviation.cpu().numpy().astype(np.float64)
    ops = TorchOps({name: p.detach().cpu() for name, p in model.named_weights().items()})
    worst = dict.fromkeys(built, 0.0)

    def compare(role, feeds, expected):
        for actual, reference in zip(run_onnx(built[role], feeds), expected, strict=True):
            worst[role] = max(worst[role], float(np.abs(actual - reference.detach().numpy()).max()))

    for batch, frames, height, width, times in [(1, 3, 32, 64, [T_START]), (2, 1, 64, 32, [T_START, 90])]:
        shape = (batch, CHANNELS, frames, height, width)
        x, hint = (torch.randn(shape, generator=generator) for _ in range(2))
        t = torch.tensor(times)
        controls = controlnet(ops, x, t, hint, config)
        names = [f"control_{i}" for i in range(CONTROLS)]
        compare("controlnet", {"x": x, "t": t, "hint": hint}, controls)
        feeds = {"x": x, "t": t, **{n: c.detach() for n, c in zip(names, controls)}}
        compare("denoiser", feeds, [denoiser(ops, x, t, controls, config)])
        pixels = torch.rand((frames, 3, height * BLOCK, width * BLOCK), generator=generator) * 2 - 1
        latents = encode(ops, pixels, deviation)
        compare("vae_encoder", {"pixels": pixels}, [latents])
        compare("vae_decoder", {"latents": latents}, [decode(ops, latents, deviation)])
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(prog="starsr-export-nano", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint of starsr-train")
    parser.add_argument("--with", dest="others", type=Path, action="append", default=[], metavar="BUNDLE",
                        help="bundle whose weights are averaged with the checkpoint's; may be repeated")  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, help="folder of the bundle, replaced when complete")
    parser.add_argument("--version", default="1.3.0", help="version written into the manifest")
    options = parser.parse_args()
    try:
        model = mean([load(options.checkpoint), *map(read, options.others)])
    except (ValueError, OSError) as e:
        raise SystemExit(str(e)) from e
    built = graphs(model)
    for role, difference in verify(model, built).items():
        print(f"{role}: {len(built[role].graph.node)} nodes, differs from PyTorch by {difference:.1e}")
        if not difference <= 1e-4:
            raise SystemExit(f"{role}: ONNX Runtime differs from PyTorch by more than 1e-4; the bundle is not written")
    keep = {p.name: p.read_text(encoding="utf-8") for p in options.output.glob("*.md")}
    bundle.write(options.output, manifest(options.version), built, keep)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
