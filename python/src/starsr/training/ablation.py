# SPDX-License-Identifier: MPL-2.0
"""The paper's ablations (its tables 4 and 5) on a small nano: one short training for each variant and seed, with equal budgets,
measured on held-out clips. Finished runs are kept, so that it stops and resumes at any time; the tables are in Markdown."""

import argparse
import dataclasses
import json
import math
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from starsr.data.clips import is_held_out, pan
from starsr.data.media import PHOTO_SUFFIXES, find, from_bytes, read_photo
from starsr.training.dataset import MIX, SHRINK, Clips
from starsr.degradation import second_order
from starsr.degradation.second_order import PRESETS
from starsr.evaluation.metrics import Motion, as_float, motion, psnr, sharpness, ssim, warping_errors
from starsr.models.nano.network import CORE, LEVEL_CORE, Nano, NanoConfig, declared_parameters
from starsr.data.resize import bicubic
from starsr.models.star.pipeline import Noise, Sampling, Trace, sample
from starsr.training.checkpoint import save
from starsr.training.loop import Options, Schedule, generator_of, run
from starsr.training.losses import DfConfig
from starsr.training.nano import NanoOptions, NanoTask, Pool, coefficient_deviation, to_latents, to_pixels

#: The network of the runs, a quarter of nano's.
SMALL = NanoConfig(widths=(24, 32, 48), time=32, head=16)
#: The paper's objective, L_v + b(t) L_DF, without nano's other losses. The DF loss of these pixels is a hundredth of L_v.
BETA = 100.0
DF = DfConfig(beta=BETA)


@dataclass(frozen=True)
class Variant:
    """What a run changes."""

    config: NanoConfig = SMALL
    df: DfConfig = DF


def liem(**values) -> Variant:
    return Variant(config=dataclasses.replace(SMALL, **values))


def df(**values) -> Variant:
    return Variant(df=dataclasses.replace(DF, **values))


PAPER = Variant()
BOTH = "spatial and temporal, position (i)"
DIRECT = "direct, α = 2, b(t) falling, β = 100"


@dataclass(frozen=True)
class Table:
    """Variants by name, and the numbers of evaluations that they are measured with."""

    title: str
    variants: dict[str, Variant]
    evaluations: tuple[int, ...] = (1, 4)


TABLES = [
    Table(
        "LIEM",
        {
            "none": liem(spatial_liem=False, temporal_liem=False),
            "spatial": liem(temporal_liem=False),
            "temporal": liem(spatial_liem=False),
            BOTH: PAPER,
            "spatial and temporal, position (ii)": liem(liem_position="ii"),
            "spatial and temporal, position (iii)": liem(liem_position="iii"),
        },
    ),
    Table(
        "DF loss",
        {
            "none": df(separation="none"),
            "unseparated": df(separation="unseparated"),
            "inverse": df(separation="inverse"),
            "as released (by magnitude)": df(separation="released"),
            DIRECT: PAPER,
        },
    ),
    Table(
        "α and b(t)",
        {
            "α = 1": df(alpha=1.0),
            DIRECT: PAPER,
            "α = 4": df(alpha=4.0),
            "b(t) constant": df(falling=False),
        },
    ),
    Table("β", {"β = 10": df(beta=0.1 * BETA), DIRECT: PAPER, "β = 1000": df(beta=10 * BETA)}),
    Table("Number of evaluations", {DIRECT: PAPER}, (1, 2, 4, 14)),
]


#: The paper's objective alone.
OPTIONS = NanoOptions(batch=4, start_share=0.7, fidelity_weight=0.0, v_weight=1.0, grid_weight=0.0, workers=0)


class SharedClips(NanoTask):
    """Nano's training on crops of clips that were made once for all runs."""

    def __init__(self, pool: list[tuple[Tensor, Tensor]], variant: Variant, media: Path, seed: int) -> None:
        options = dataclasses.replace(OPTIONS, df=variant.df)
        torch.manual_seed(seed)
        init = Nano(variant.config)
        init.deviation.copy_(coefficient_deviation(high for _, high in pool[:32]))
        super().__init__(media, variant.config, options, seed, torch.device("cpu"), init)
        self.pool = Pool(len(pool), self.clips, self.device)
        for index, pair in enumerate(pool):
            self.pool.put(index, *pair)

    def batches(self, start: int, end: int) -> Iterator[tuple[Tensor, Tensor]]:
        return (self.batch_of(self.pool, iteration) for iteration in range(start, end))


@dataclass
class Judge:
    """Held-out clips, degraded lightly and heavily, and what is measured on them."""

    media: Path
    frames: int = 5
    side: int = 128
    photos: int = 8
    cases: list[tuple[np.ndarray, np.ndarray, Tensor, list[Motion]]] = field(default_factory=list)

    def prepare(self) -> None:
        """Makes the clips: true, bicubic and low ones, and the true one's motion."""
        paths = [path for path in find(self.media, PHOTO_SUFFIXES) if is_held_out(path)]
        rng = np.random.default_rng(7)
        for index, path in enumerate(paths[:: max(1, len(paths) // self.photos)][: self.photos]):
            high = pan(read_photo(path), self.frames, (self.side, self.side), rng, shrink=1.4)
            motions = motion(high)
            for preset in ("light", "heavy"):
                degraded = second_order.degrade(
                    from_bytes(np.ascontiguousarray(high)), PRESETS[preset], np.random.default_rng(index)
                )
                plain = bicubic(from_bytes(degraded)).clamp(0, 1)
                self.cases.append((as_float(high), plain.permute(0, 2, 3, 1).numpy(), plain, motions))

    @torch.no_grad()
    def measure(self, module: Nano, evaluations: int) -> dict[str, float]:
        """Means over the clips: PSNR in dB and SSIM above bicubic's, E*_warp over bicubic's, sharpness over the truth's."""
        deviation = module.deviation.double().numpy()
        sampling = Sampling("normal", evaluations, guidance_scale=1.0, length=self.frames)
        figures = []
        for index, (high, base, plain, motions) in enumerate(self.cases):
            hint = to_latents(plain[None], deviation)
            generator = generator_of(0, index)
            start = torch.randn(hint.shape, generator=generator)
            steps = torch.randn((evaluations - 1, *hint.shape), generator=generator)

            def velocity(x: Tensor, t: int, low: Tensor, _: bool) -> Tensor:
                return module(x.float(), torch.tensor([t]), low)

            latents = sample(velocity, hint, Noise(start, steps), sampling, Trace())
            result = to_pixels(latents.float(), deviation)[0].clamp(0, 1).permute(0, 2, 3, 1).numpy()
            figures.append(
                {
                    "psnr": psnr(result, high) - psnr(base, high),
                    "ssim": ssim(result, high) - ssim(base, high),
                    "warp": np.nanmean(warping_errors(result, motions)),
                    "warp_base": np.nanmean(warping_errors(base, motions)),
                    "sharpness": sharpness(result, high),
                }
            )
        means = {name: float(np.mean([row[name] for row in figures])) for name in figures[0]}
        return {**means, "warp": means["warp"] / means.pop("warp_base")}


@dataclass
class Study:
    """The runs, made in `folder`; what was measured is kept in `results_file`."""

    media: Path
    folder: Path
    results_file: Path
    iterations: int
    seeds: int
    clips: int

    @cached_property
    def pool(self) -> list[tuple[Tensor, Tensor]]:
        """Training clips, the same for all runs; made once for each way to degrade them."""
        made = zlib.crc32(repr((self.clips, MIX, SHRINK, PRESETS)).encode())
        path = self.folder / f"clips-{made:08x}.pt"
        if not path.is_file():
            clips = Clips(self.media, length=self.clips, seed=1)
            loader = DataLoader(Subset(clips, range(self.clips)), batch_size=None, num_workers=1)
            save(path, {"clips": list(tqdm(loader, desc="clips", unit="clip"))})
        return torch.load(path, weights_only=True)["clips"]

    @cached_property
    def judge(self) -> Judge:
        judge = Judge(self.media)
        judge.prepare()
        return judge

    def results(self) -> dict:
        """Figures of the finished runs, by variant, seed and number of evaluations."""
        return json.loads(self.results_file.read_text(encoding="utf-8")) if self.results_file.is_file() else {}

    def key(self, variant: Variant, seed: int) -> str:
        size = sum(math.prod(parameter.shape) for parameter in declared_parameters(variant.config).values())
        network = {**dataclasses.asdict(variant.config), "parameters": size, "core": [CORE, LEVEL_CORE]}
        options = dataclasses.asdict(dataclasses.replace(OPTIONS, df=variant.df))
        values = {"network": network, "options": options, "seed": seed, "iterations": self.iterations}
        return json.dumps(values, sort_keys=True)

    def train(self, variant: Variant, seed: int) -> Nano:
        """The averaged network of one run."""
        from accelerate import Accelerator

        checkpoint = self.folder / "run.pt"
        checkpoint.unlink(missing_ok=True)
        checkpoint.with_suffix(".csv").unlink(missing_ok=True)
        task = SharedClips(self.pool, variant, self.media, seed)
        schedule = Schedule(self.iterations, 2e-3, constant=False)
        options = Options(checkpoint, schedule, seed=seed, average=0.98, save_every=self.iterations, sample_every=0)
        run(task, options, Accelerator(cpu=True), report=lambda _: None)
        module = Nano(variant.config)
        module.load_state_dict(torch.load(checkpoint, weights_only=True)["average"])
        return module.eval()

    def fill(self) -> None:
        """Makes all runs that are missing."""
        wanted: dict[str, tuple[Variant, int, set[int]]] = {}
        for seed in range(self.seeds):
            for table in TABLES:
                for variant in table.variants.values():
                    entry = wanted.setdefault(self.key(variant, seed), (variant, seed, set()))
                    entry[2].update(table.evaluations)
        for number, (key, (variant, seed, evaluations)) in enumerate(wanted.items()):
            results = self.results()
            if key in results:
                continue
            print(f"run {number + 1} of {len(wanted)}: {variant}, seed {seed}", file=sys.stderr, flush=True)
            module = self.train(variant, seed)
            results[key] = {str(n): self.judge.measure(module, n) for n in sorted(evaluations)}
            part = self.results_file.with_suffix(".part")
            part.write_text(json.dumps(results, indent=1, sort_keys=True), encoding="utf-8")
            part.replace(self.results_file)

    def tables(self) -> str:
        """The tables as Markdown: mean over the seeds, and in brackets the spread, half of what lies between the extremes. Raises
        `LookupError` where there is nothing for them."""
        results, parts = self.results(), []
        if self.key(PAPER, 0) not in results:
            raise LookupError(f"{self.results_file} has no runs of this network with these options: leave --tables-only out")
        for table in TABLES:
            lines = [
                f"## {table.title}",
                "",
                "| variant | evaluations | seeds | PSNR - bicubic's, dB | SSIM - bicubic's | E\\*warp / bicubic's | sharpness / truth's |",
                "| --- | --- | --- | --- | --- | --- | --- |",
            ]
            for name, variant in table.variants.items():
                rows = [results.get(self.key(variant, seed)) for seed in range(self.seeds)]
                for evaluations in table.evaluations:
                    found = [row[str(evaluations)] for row in rows if row is not None]
                    cells = [cell([row[figure] for row in found], form) for figure, form in FORMS.items()]
                    lines.append(f"| {name} | {evaluations} | {len(found)} | {' | '.join(cells)} |")
            parts.append("\n".join(lines))
        return "\n\n".join(parts) + "\n"


FORMS = {"psnr": "{:+.3f}", "ssim": "{:+.4f}", "warp": "{:.3f}", "sharpness": "{:.3f}"}


def cell(values: list[float], form: str) -> str:
    if not values:
        return "not run"
    spread = (max(values) - min(values)) / 2
    return f"{form.format(np.mean(values))} (±{form.replace('+', '').format(spread)})"


def main() -> None:
    parser = argparse.ArgumentParser(prog="starsr-ablations", description=__doc__)
    parser.add_argument("--media", type=Path, required=True, help="folder with photographs and video")
    parser.add_argument("--folder", type=Path, required=True, help="where runs are made")
    parser.add_argument(
        "--results", type=Path, required=True, help="JSON file of what was measured; runs that it has are not made again"
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="Markdown file: its tables are replaced, what is above them stays"
    )
    parser.add_argument("--iterations", type=int, default=500, help="of each run (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant (%(default)s)")
    parser.add_argument("--clips", type=int, default=240, help="training clips (%(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="to compute with (%(default)s)")
    parser.add_argument("--tables-only", action="store_true", help="write the tables of what has been run")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)
    study = Study(options.media, options.folder, options.results, options.iterations, options.seeds, options.clips)
    if not options.tables_only:
        study.fill()
    above = options.output.read_text(encoding="utf-8") if options.output.is_file() else "# Ablations\n\n"
    above = above.split(f"## {TABLES[0].title}\n")[0]
    try:
        options.output.write_text(above + study.tables(), encoding="utf-8")
    except LookupError as e:
        parser.exit(1, f"{parser.prog}: {e.args[0]}\n")


if __name__ == "__main__":
    main()
