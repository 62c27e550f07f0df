# SPDX-License-Identifier: MPL-2.0
"""Small bundles and clips for the plugin's own tests: the networks of the reference folder (`golden_small`, `golden_vae`) as a
bundle, the runs of `golden_e2e`, and longer clips restored by `starsr.models.star.pipeline`, all with their noise."""

import argparse
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import starsr
from starsr.bundle import writer as bundle
from starsr.export import star as export
from starsr.models.star import text
from starsr.export.graphs import star_graphs, vae_graphs
from starsr.models.star.network import StarConfig
from starsr.models.star.pipeline import Noise, Pipeline, Sampling, evaluation_points
from starsr.models.star.vae import VaeConfig
from starsr.models.weights import Arrays

INDEX = "index.json"
#: Frames of the clips made here: more than a window in one, and four windows.
CLIPS = {"one_window": 36, "four_windows": 78}
#: A random network amplifies rounding to the whole range in 14 evaluations; with its last layer scaled down it does not.
TAME = 1 / 1024
#: Largest difference of a pixel in [0,1] from the authors' program, and from the pipeline here, where rounding stays near 1e-6
#: and the wrong prompt gives 1e-3.
LIMITS = {"official": 1e-3, "pipeline": 1e-4}


def read_networks(reference: Path) -> tuple[dict, dict, StarConfig, VaeConfig]:
    """Weights of the small networks and of the small autoencoder in 32 bits, and their sizes."""
    sizes = json.loads((reference / "golden_small" / "config.json").read_text(encoding="utf-8"))["constructor_args"]
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
    star = load_file(reference / "golden_small" / "state_dict.f16.safetensors")
    vae_config = json.loads((reference / "golden_vae" / "config.json").read_text(encoding="utf-8"))["config"]
    vae = load_file(reference / "golden_vae" / "vae.f16.safetensors")
    floats = [{name: tensor.float() for name, tensor in weights.items()} for weights in (star, vae)]
    return floats[0], floats[1], config, VaeConfig.of(vae_config)


def scaled(star: dict, factor: float) -> dict:
    """Weights whose velocity is `factor` times as large."""
    last = {name: star[name] * factor for name in ("out.2.weight", "out.2.bias")}
    return {**star, **last}


def sampling_of(run: dict) -> Sampling:
    """The settings of a run of `golden_e2e/index.json`."""
    return Sampling(run["mode"], run["steps"], 900, run["guide_scale"], run["guide_rescale"], run["max_chunk_len"])


def noise_of(tensors: dict) -> Noise:
    """The noise of a run of `golden_e2e`."""
    return Noise(tensors["init_noise"], tensors["solver_noise"], tensors["vae_noise"])


class Folder:
    """The folder that is being filled: bundles, cases and their index."""

    def __init__(self, path: Path, reference: Path) -> None:
        self.path = path
        self.star, self.vae, self.config, self.vae_config = read_networks(reference)
        self.cases: dict[str, dict] = {}

    def bundle(self, factor: float, minimum: tuple[int, int], y: torch.Tensor, y_neg: torch.Tensor) -> str:
        """Writes the networks as a bundle, once for each kind, and gives its name. `minimum` are height and width of the least
        canvas."""
        name = f"bundle-{factor:g}-{minimum[0]}x{minimum[1]}"
        if (self.path / name).exists():
            return name
        described = export.manifest(name, "1", "random weights", self.vae_config, "official")
        described["canvas"]["height"]["minimum"], described["canvas"]["width"]["minimum"] = minimum
        graphs = {
            **vae_graphs(Arrays(self.vae), self.vae_config, "fp32"),
            **star_graphs(Arrays(scaled(self.star, factor)), self.config, "fp32"),
        }
        with bundle.staged(self.path / name) as work:
            files = {role: graph.save(work / f"{role}.onnx") for role, graph in graphs.items()}
            tokens = np.stack([text.tokenize(f"{text.DEFAULT} {text.SUFFIX}"), text.tokenize(text.NEGATIVE)])
            path = work / export.EMBEDDINGS
            sha256 = bundle.write_embeddings(path, tokens, torch.cat([y, y_neg]).numpy())
            described["prompts"]["embeddings"] = {"file": path.name, "sha256": sha256}
            bundle.write_manifest(work, described, files)
        return name

    def add(
        self, name: str, origin: str, factor: float, minimum, sampling: Sampling, tensors: dict, result: torch.Tensor
    ) -> None:
        """Adds a case: its settings to the index, its clip, noise and `result` `[F,H,W,3]` in [0,1] as a file. `origin` of the
        result is one of `LIMITS`."""
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

    def add_clip(self, name: str, frames: int, y: torch.Tensor, y_neg: torch.Tensor) -> None:
        """Adds a clip of smooth moving noise, restored by the reference pipeline with the official settings."""
        generator = torch.Generator().manual_seed(frames)

        def normal(*shape):
            return torch.randn(shape, generator=generator)

        minimum, sampling = (80, 64), Sampling()
        points = len(evaluation_points(sampling)[0])
        scene = torch.nn.functional.avg_pool2d(torch.rand((3, 16, 14 + frames), generator=generator), 3, 1)
        clip = torch.stack([scene[:, 1:13, f : f + 10] for f in range(frames)]).permute(0, 2, 3, 1)
        tensors = {
            "lr_u8": (clip * 255).to(torch.uint8),
            "y": y,
            "y_neg": y_neg,
            "vae_noise": normal(frames, 4, 10, 8),
            "init_noise": normal(1, 4, frames, 10, 8),
            "solver_noise": normal(points - 1, 1, 4, frames, 10, 8),
        }
        pipeline = Pipeline(scaled(self.star, TAME), self.vae, self.config, self.vae_config, minimum)
        result = pipeline.upscale(tensors["lr_u8"].numpy(), y, y_neg, noise_of(tensors), sampling)
        self.add(name, "pipeline", TAME, minimum, sampling, tensors, result.fixed)


def fingerprint(reference: Path) -> str:
    """A hash of all that the folder is made of: the references and the code."""
    package, digest = Path(starsr.__path__[0]), hashlib.sha256()
    golden = [reference / part for part in ("golden_small", "golden_vae", "golden_e2e")]
    code = [package / part for part in ("bundle", "export", "models", "ops")]
    files = [p for folder in (*golden, *code) for p in folder.rglob("*") if p.suffix != ".pyc"]
    for path in [*sorted(files), Path(__file__)]:
        if path.is_file():
            digest.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def fill(path: Path, reference: Path) -> None:
    """Writes everything to the new folder `path`."""
    folder = Folder(path, reference)
    runs = json.loads((reference / "golden_e2e" / "index.json").read_text(encoding="utf-8"))["runs"]
    for name, run in runs.items():
        if run["out2_scale"] == 1.0:
            # Comparable evaluation by evaluation only, which the tests of the pipeline do.
            continue
        tensors = load_file(reference / "golden_e2e" / f"{name}.safetensors")
        minimum = (run["best_h"], run["best_w"])
        folder.add(name, "official", run["out2_scale"], minimum, sampling_of(run), tensors, tensors["fixed_THWC"] / 255)
    y, y_neg = tensors["y"], tensors["y_neg"]
    for name, frames in CLIPS.items():
        folder.add_clip(name, frames, y, y_neg)
        print(f"restored {name}, {frames} frames")
    (path / INDEX).write_text(
        json.dumps({"fingerprint": fingerprint(reference), "cases": folder.cases}, indent=1), encoding="utf-8"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="small_star.py", description=__doc__)
    default = os.environ.get("STARSR_REFERENCE", "../shared/star")
    parser.add_argument("--reference", type=Path, default=Path(default), help="reference folder (%(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="folder to write, replaced when complete")
    options = parser.parse_args()
    index = options.output / INDEX
    if not options.reference.is_dir():
        print(f"{options.reference} is missing: set STARSR_REFERENCE to the folder with the reference files")
        return
    if index.is_file() and json.loads(index.read_text(encoding="utf-8")).get("fingerprint") == fingerprint(options.reference):
        return
    with bundle.staged(options.output) as work:
        fill(work, options.reference)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
