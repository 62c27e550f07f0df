# SPDX-License-Identifier: MPL-2.0
"""`starsr-ablations`: the paper's ablations (its tables 4 and 5) on a small nano.

There is one short training for each variant and seed, all with the same budget, measured on
held-out clips. Finished runs are kept, so the program can be stopped and resumed at any time. The
tables are in Markdown.
"""

import argparse
import dataclasses
import json
import math
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from starsr.data.clips import is_held_out, pan
from starsr.data.media import PHOTO_SUFFIXES, find, from_bytes, read_photo
from starsr.data.resize import bicubic
from starsr.degradation import second_order
from starsr.degradation.second_order import PRESETS
from starsr.evaluation.metrics import (
    Motion,
    as_float,
    motion,
    psnr,
    sharpness,
    ssim,
    warping_errors,
)
from starsr.models.nano.network import CORE, LEVEL_CORE, Nano, NanoConfig, declared_parameters
from starsr.models.star.pipeline import Noise, Sampling, Trace, sample
from starsr.training.checkpoint import save
from starsr.training.dataset import MIX, SHRINK, Clips
from starsr.training.loop import Options, Schedule, generator_of, run
from starsr.training.losses import DfConfig
from starsr.training.nano import (
    Batch,
    NanoOptions,
    NanoTask,
    Pool,
    coefficient_std,
    to_latents,
    to_pixels,
)

#: The network of the runs, a quarter of nano's.
SMALL = NanoConfig(widths=(24, 32, 48), time=32, head=16)
#: Weight in the paper's objective, L_v + b(t) L_DF, without nano's other losses. The DF loss of
#: these pixels is a hundredth of L_v.
BETA = 100.0
DF = DfConfig(beta=BETA)


@dataclass(frozen=True)
class Variant:
    """The settings of a run that differ from the others."""

    config: NanoConfig = SMALL
    df: DfConfig = DF


def liem(**values: Any) -> Variant:
    """Return a variant with other settings of LIEM."""
    return Variant(config=dataclasses.replace(SMALL, **values))


def df(**values: Any) -> Variant:
    """Return a variant with other settings of the DF loss."""
    return Variant(df=dataclasses.replace(DF, **values))


PAPER = Variant()
BOTH = "spatial and temporal, position (i)"
DIRECT = "direct, α = 2, b(t) falling, β = 100"


@dataclass(frozen=True)
class Table:
    """Variants by name, and the numbers of evaluations with which they are measured."""

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
OPTIONS = NanoOptions(
    batch=4, start_share=0.7, fidelity_weight=0.0, v_weight=1.0, grid_weight=0.0, workers=0
)


class SharedClips(NanoTask):
    """Training of nano on crops of clips that were made once for all runs."""

    def __init__(
        self, pool: Sequence[tuple[Tensor, Tensor]], variant: Variant, media: Path, seed: int
    ) -> None:
        options = dataclasses.replace(OPTIONS, df=variant.df)
        torch.manual_seed(seed)
        init = Nano(variant.config)
        init.deviation.copy_(coefficient_std(high for _, high in pool[:32]))
        super().__init__(media, variant.config, options, seed, torch.device("cpu"), init)
        self.pool = Pool(len(pool), self.clips, self.device)
        for index, pair in enumerate(pool):
            self.pool.put(index, *pair)

    def batches(self, start: int, end: int) -> Iterator[Batch]:
        """Yield the batches of the iterations."""
        return (self.batch_of(self.pool, iteration) for iteration in range(start, end))


@dataclass
class Judge:
    """Held-out clips, degraded lightly and heavily, and the figures measured on them."""

    media: Path
    frames: int = 5
    side: int = 128
    photos: int = 8
    #: True and bicubic clips `[F,H,W,3]`, the bicubic one as `[F,3,H,W]`, and the true motion.
    cases: list[tuple[np.ndarray, np.ndarray, Tensor, list[Motion]]] = field(default_factory=list)

    def prepare(self) -> None:
        """Make the clips."""
        paths = [path for path in find(self.media, PHOTO_SUFFIXES) if is_held_out(path)]
        chosen = paths[:: max(1, len(paths) // self.photos)][: self.photos]
        rng = np.random.default_rng(7)
        for index, path in enumerate(chosen):
            high = pan(read_photo(path), self.frames, (self.side, self.side), rng, shrink=1.4)
            clean = from_bytes(np.ascontiguousarray(high))
            motions = motion(high)
            for preset in ("light", "heavy"):
                draws = np.random.default_rng(index)
                low = from_bytes(second_order.degrade(clean, PRESETS[preset], draws))
                plain = bicubic(low).clamp(0, 1)
                base = plain.permute(0, 2, 3, 1).numpy()
                self.cases.append((as_float(high), base, plain, motions))

    @torch.no_grad()
    def measure(self, module: Nano, evaluations: int) -> dict[str, float]:
        """Return the means over the clips.

        They are PSNR in dB and SSIM above bicubic's, E*_warp over bicubic's and sharpness over the
        truth's.
        """
        std = module.std()
        sampling = Sampling("normal", evaluations, guidance_scale=1.0, length=self.frames)

        def velocity(x: Tensor, t: int, low: Tensor, _: bool) -> Tensor:
            v: Tensor = module(x.float(), torch.tensor([t]), low)
            return v

        figures = []
        for index, (high, base, plain, motions) in enumerate(self.cases):
            hint = to_latents(plain[None], std)
            generator = generator_of(0, index)
            start = torch.randn(hint.shape, generator=generator)
            steps = torch.randn((evaluations - 1, *hint.shape), generator=generator)
            latents = sample(velocity, hint, Noise(start, steps), sampling, Trace())
            pixels = to_pixels(latents.float(), std)[0].clamp(0, 1)
            result = pixels.permute(0, 2, 3, 1).numpy()
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
    """The runs, which are made in `folder`. `results_file` keeps their figures."""

    media: Path
    folder: Path
    results_file: Path
    iterations: int
    seeds: int
    clips: int

    @cached_property
    def pool(self) -> list[tuple[Tensor, Tensor]]:
        """Training clips, the same for all runs; made once for each setting of degradations."""
        made = zlib.crc32(repr((self.clips, MIX, SHRINK, PRESETS)).encode())
        path = self.folder / f"clips-{made:08x}.pt"
        if not path.is_file():
            clips = Clips(self.media, length=self.clips, seed=1)
            loader = DataLoader(Subset(clips, range(self.clips)), batch_size=None, num_workers=1)
            save(path, {"clips": list(tqdm(loader, desc="clips", unit="clip"))})
        pairs: list[tuple[Tensor, Tensor]] = torch.load(path, weights_only=True)["clips"]
        return pairs

    @cached_property
    def judge(self) -> Judge:
        """The held-out clips."""
        judge = Judge(self.media)
        judge.prepare()
        return judge

    def results(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return the figures of the finished runs, by `key` and number of evaluations."""
        if not self.results_file.is_file():
            return {}
        found: dict[str, dict[str, dict[str, float]]] = json.loads(
            self.results_file.read_text(encoding="utf-8")
        )
        return found

    def key(self, variant: Variant, seed: int) -> str:
        """Return all settings on which a run depends, as JSON."""
        parameters = declared_parameters(variant.config).values()
        network = {
            **dataclasses.asdict(variant.config),
            "parameters": sum(math.prod(parameter.shape) for parameter in parameters),
            "core": [CORE, LEVEL_CORE],
        }
        options = dataclasses.asdict(dataclasses.replace(OPTIONS, df=variant.df))
        run = {"seed": seed, "iterations": self.iterations}
        return json.dumps({"network": network, "options": options, **run}, sort_keys=True)

    def train(self, variant: Variant, seed: int) -> Nano:
        """Make one run and return its averaged network."""
        from accelerate import Accelerator

        checkpoint = self.folder / "run.pt"
        checkpoint.unlink(missing_ok=True)
        checkpoint.with_suffix(".csv").unlink(missing_ok=True)
        task = SharedClips(self.pool, variant, self.media, seed)
        schedule = Schedule(self.iterations, 2e-3, constant=False)
        options = Options(
            checkpoint,
            schedule,
            seed=seed,
            average=0.98,
            save_every=self.iterations,
            sample_every=0,
        )
        run(task, options, Accelerator(cpu=True), report=lambda _: None)
        module = Nano(variant.config)
        module.load_state_dict(torch.load(checkpoint, weights_only=True)["average"])
        return module.eval()

    def fill(self) -> None:
        """Make all runs that are missing."""
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
            progress = f"run {number + 1} of {len(wanted)}: {variant}, seed {seed}"
            print(progress, file=sys.stderr, flush=True)
            module = self.train(variant, seed)
            results[key] = {str(n): self.judge.measure(module, n) for n in sorted(evaluations)}
            part = self.results_file.with_suffix(".part")
            part.write_text(json.dumps(results, indent=1, sort_keys=True), encoding="utf-8")
            part.replace(self.results_file)

    def tables(self) -> str:
        """Return the tables as Markdown.

        Each cell holds the mean over the seeds and, in brackets, half the distance between the
        extremes. Raises `LookupError` if there are no runs.
        """
        results, parts = self.results(), []
        if self.key(PAPER, 0) not in results:
            raise LookupError(
                f"{self.results_file} has no runs of this network with these options: leave "
                "--tables-only out"
            )
        for table in TABLES:
            lines = [
                f"## {table.title}",
                "",
                f"| variant | evaluations | seeds | {' | '.join(HEADINGS)} |",
                "| --- | --- | --- | --- | --- | --- | --- |",
            ]
            for name, variant in table.variants.items():
                rows = [results.get(self.key(variant, seed)) for seed in range(self.seeds)]
                for evaluations in table.evaluations:
                    found = [row[str(evaluations)] for row in rows if row is not None]
                    cells = [
                        cell([row[figure] for row in found], form) for figure, form in FORMS.items()
                    ]
                    lines.append(f"| {name} | {evaluations} | {len(found)} | {' | '.join(cells)} |")
            parts.append("\n".join(lines))
        return "\n\n".join(parts) + "\n"


#: Headings of the figures in the tables, and their formats.
HEADINGS = (
    "PSNR - bicubic's, dB",
    "SSIM - bicubic's",
    "E\\*warp / bicubic's",
    "sharpness / truth's",
)
FORMS = {"psnr": "{:+.3f}", "ssim": "{:+.4f}", "warp": "{:.3f}", "sharpness": "{:.3f}"}


def cell(values: list[float], form: str) -> str:
    """Return the text of a cell."""
    if not values:
        return "not run"
    spread = (max(values) - min(values)) / 2
    return f"{form.format(np.mean(values))} (±{form.replace('+', '').format(spread)})"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    result = argparse.ArgumentParser(
        prog="starsr-ablations",
        description="Trains a small nano for each of the paper's ablations (its tables 4 and 5), "
        "measures it on held-out clips and writes tables in Markdown. Can be stopped and resumed "
        "at any time.",
    )
    add = result.add_argument
    add("--media", type=Path, required=True, help="folder with photographs and video")
    add("--folder", type=Path, required=True, help="working folder of the runs")
    add(
        "--results",
        type=Path,
        required=True,
        help="JSON file of the figures; runs that it holds are not made again",
    )
    add(
        "--output",
        type=Path,
        required=True,
        help="Markdown file: its tables are replaced, the text above them stays",
    )
    add("--iterations", type=int, default=500, help="iterations of each run (%(default)s)")
    add("--seeds", type=int, default=3, help="runs of each variant (%(default)s)")
    add("--clips", type=int, default=240, help="training clips (%(default)s)")
    add(
        "--threads",
        type=int,
        default=torch.get_num_threads(),
        help="threads for computing (%(default)s)",
    )
    add("--tables-only", action="store_true", help="only write the tables of the finished runs")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)
    study = Study(
        options.media,
        options.folder,
        options.results,
        options.iterations,
        options.seeds,
        options.clips,
    )
    if not options.tables_only:
        study.fill()
    above = "# Ablations\n\n"
    if options.output.is_file():
        above = options.output.read_text(encoding="utf-8")
    above = above.split(f"## {TABLES[0].title}\n")[0]
    try:
        options.output.write_text(above + study.tables(), encoding="utf-8")
    except LookupError as e:
        print(f"starsr-ablations: {e.args[0]}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
