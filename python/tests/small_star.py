#!/usr/bin/env python3
# SPDX-License-Identifier: MPL-2.0
"""Small bundles and clips for the tests of the plugin.

They are the networks of the reference folder (`golden_small`, `golden_vae`) as a bundle, the runs
of `golden_e2e`, and longer clips that `starsr.models.star.pipeline` restores, all with their noise.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from small_bundles import INDEX, fingerprint, is_made_of, read_options
from starsr.bundle import writer
from starsr.export.graphs import star_graphs, vae_graphs
from starsr.export.manifest import EMBEDDINGS, manifest
from starsr.models.star import text
from starsr.models.star.network import StarConfig
from starsr.models.star.pipeline import Noise, Pipeline, Sampling, evaluation_points
from starsr.models.star.vae import VaeConfig
from starsr.models.weights import Arrays

#: Frames of the clips made here: more than a window as a single one, and four windows.
CLIPS = {"one_window": 18, "four_windows": 39}
#: Their settings: shorter windows and fewer evaluations than the official ones.
SAMPLING = Sampling("normal", 3, length=16)
#: A random network amplifies rounding from one evaluation to the next, unless its last layer is
#: scaled down.
TAME = 1 / 1024
#: Largest difference of a pixel in [0,1] from the authors' program, and from the pipeline here.
#: Rounding stays below 1e-5, and the wrong prompt gives 1e-3 or more.
LIMITS = {"official": 1e-3, "pipeline": 1e-4}


@dataclass
class Networks:
    """Weights of the small networks and of the small autoencoder in 32 bits, and their sizes."""

    star: dict[str, Tensor]
    vae: dict[str, Tensor]
    config: StarConfig
    vae_config: VaeConfig


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_networks(reference: Path) -> Networks:
    """Read the small networks of the reference folder."""
    sizes = read_json(reference / "golden_small" / "config.json")["constructor_args"]
    config = StarConfig(
        in_dim=sizes["in_dim"],
        out_dim=sizes["out_dim"],
        dim=sizes["dim"],
        dim_mult=tuple(sizes["dim_mult"]),
        num_res_blocks=sizes["num_res_blocks"],
        attention_levels=len(sizes["attn_scales"]),
        head_dim=sizes["head_dim"],
        num_heads=sizes["num_heads"],
        context_dim=sizes["context_dim"],
    )
    vae_config = VaeConfig.of(read_json(reference / "golden_vae" / "config.json")["config"])

    def read(name: str) -> dict[str, Tensor]:
        return {name: tensor.float() for name, tensor in load_file(reference / name).items()}

    star = read("golden_small/state_dict.f16.safetensors")
    return Networks(star, read("golden_vae/vae.f16.safetensors"), config, vae_config)


def scaled(star: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """Return weights whose velocity is `factor` times as large."""
    last = {name: star[name] * factor for name in ("out.2.weight", "out.2.bias")}
    return {**star, **last}


def sampling_of(run: Mapping[str, Any]) -> Sampling:
    """Return the settings of a run of `golden_e2e/index.json`."""
    guidance = (run["guide_scale"], run["guide_rescale"])
    return Sampling(run["mode"], run["steps"], 900, *guidance, run["max_chunk_len"])


def noise_of(tensors: Mapping[str, Tensor]) -> Noise:
    """Return the noise of a run of `golden_e2e`."""
    return Noise(tensors["init_noise"], tensors["solver_noise"], tensors["vae_noise"])


class Folder:
    """The folder to fill with bundles, cases and their index."""

    def __init__(self, path: Path, networks: Networks) -> None:
        self.path, self.networks = path, networks
        self.cases: dict[str, dict[str, Any]] = {}

    def bundle(self, factor: float, minimum: tuple[int, int], y: Tensor, y_neg: Tensor) -> str:
        """Write the networks as a bundle, once for each kind, and return its name.

        `minimum` are height and width of the least canvas.
        """
        name = f"bundle-{factor:g}-{minimum[0]}x{minimum[1]}"
        if (self.path / name).exists():
            return name
        nets = self.networks
        described = manifest(name, "1", "random weights", nets.vae_config, "official")
        canvas = described["canvas"]
        canvas["height"]["minimum"], canvas["width"]["minimum"] = minimum
        graphs = {
            **vae_graphs(Arrays(nets.vae), nets.vae_config, "fp32"),
            **star_graphs(Arrays(scaled(nets.star, factor)), nets.config, "fp32"),
        }
        prompts = (f"{text.DEFAULT} {text.SUFFIX}", text.NEGATIVE)
        tokens = np.stack([text.tokenize(prompt) for prompt in prompts])
        with writer.staged(self.path / name) as work:
            files = {role: graph.save(work / f"{role}.onnx") for role, graph in graphs.items()}
            path = work / EMBEDDINGS
            sha256 = writer.write_embeddings(path, tokens, torch.cat([y, y_neg]).numpy())
            described["prompts"]["embeddings"] = {"file": path.name, "sha256": sha256}
            writer.write_manifest(work, described, files)
        return name

    def add(
        self,
        name: str,
        origin: str,
        factor: float,
        minimum: tuple[int, int],
        sampling: Sampling,
        tensors: Mapping[str, Tensor],
        result: Tensor,
    ) -> None:
        """Add a case: its settings to the index, and its clip, noise and result as a file.

        `result` is `[F,H,W,3]` in [0,1]; `origin` is one of `LIMITS`.
        """
        self.cases[name] = {
            "bundle": self.bundle(factor, minimum, tensors["y"], tensors["y_neg"]),
            "mode": sampling.mode,
            "steps": sampling.steps,
            "noise_level": sampling.noise_levels,
            "guidance_scale": sampling.guidance_scale,
            "guidance_rescale": sampling.guidance_rescale,
            "length": sampling.length,
            "overlap": sampling.length // 2,
            "decode_overlap": 0,
            "posterior": "sample",
            "color_fix": "adain",
            "limit": LIMITS[origin],
        }
        names = ("lr_u8", "y", "y_neg", "vae_noise", "init_noise", "solver_noise")
        kept = {key: tensors[key].contiguous() for key in names}
        save_file({**kept, "result": result.contiguous()}, self.path / f"{name}.safetensors")

    def add_clip(self, name: str, frames: int, y: Tensor, y_neg: Tensor) -> None:
        """Add a clip of smooth moving noise, restored by the pipeline."""
        generator = torch.Generator().manual_seed(frames)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        minimum, sampling = (80, 64), SAMPLING
        points = len(evaluation_points(sampling)[0])
        noise = torch.rand((3, 16, 14 + frames), generator=generator)
        scene = torch.nn.functional.avg_pool2d(noise, 3, 1)
        clip = torch.stack([scene[:, 1:13, f : f + 10] for f in range(frames)])
        tensors = {
            "lr_u8": (clip.permute(0, 2, 3, 1) * 255).to(torch.uint8),
            "y": y,
            "y_neg": y_neg,
            "vae_noise": normal(frames, 4, 10, 8),
            "init_noise": normal(1, 4, frames, 10, 8),
            "solver_noise": normal(points - 1, 1, 4, frames, 10, 8),
        }
        nets = self.networks
        star = scaled(nets.star, TAME)
        pipeline = Pipeline(star, nets.vae, nets.config, nets.vae_config, minimum)
        low = tensors["lr_u8"].numpy()
        result = pipeline.upscale(low, y, y_neg, noise_of(tensors), sampling)
        self.add(name, "pipeline", TAME, minimum, sampling, tensors, result.fixed)


def fill(path: Path, reference: Path, mark: str) -> None:
    """Write everything to the new folder `path`."""
    folder = Folder(path, read_networks(reference))
    tensors: dict[str, Tensor] = {}
    for name, run in read_json(reference / "golden_e2e" / "index.json")["runs"].items():
        if run["out2_scale"] == 1.0:
            # Only its single evaluations are comparable, which the tests of the pipeline do.
            continue
        tensors = load_file(reference / "golden_e2e" / f"{name}.safetensors")
        minimum, result = (run["best_h"], run["best_w"]), tensors["fixed_THWC"] / 255
        sampling = sampling_of(run)
        folder.add(name, "official", run["out2_scale"], minimum, sampling, tensors, result)
    for name, frames in CLIPS.items():
        folder.add_clip(name, frames, tensors["y"], tensors["y_neg"])
        print(f"restored {name}, {frames} frames")
    index = {"fingerprint": mark, "cases": folder.cases}
    (path / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")


def main() -> None:
    options = read_options(__doc__)
    reference = options.reference
    if not reference.is_dir():
        print(f"{reference} is missing: set STARSR_REFERENCE to the reference folder")
        return
    parts = ("golden_small", "golden_vae", "golden_e2e")
    mark = fingerprint(__file__, [reference / part for part in parts])
    if is_made_of(options.output, mark):
        return
    with writer.staged(options.output) as work:
        fill(work, reference, mark)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
