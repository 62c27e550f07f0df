# SPDX-License-Identifier: MPL-2.0
"""`starsr-eval`: compares upscalers on clips and writes a report."""

import argparse
import contextlib
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from starsr.data.media import VideoError
from starsr.evaluation import blind, optional, report, rivals, sources, study, upscalers
from starsr.evaluation.blind import BlindError
from starsr.evaluation.metrics import FIGURES
from starsr.evaluation.sources import Source, SourceError
from starsr.evaluation.study import Row
from starsr.evaluation.upscalers import Upscaler, UpscalerError

#: Packages whose version may influence a figure.
PACKAGES = ("starsr", "numpy", "torch", "scikit-image", "av", "pillow", "onnxruntime")
#: Figures for the terminal.
SHOWN = ("psnr", "gain", "ssim", "warp", "sharpness", "seam", "grid4", "grid8")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    result = argparse.ArgumentParser(
        prog="starsr-eval",
        description="Compares upscalers on clips, with or without ground truth, and writes a "
        "report in JSON and HTML.",
        epilog=f"Upscalers: {upscalers.HELP}.",
    )
    add = result.add_argument
    add(
        "input",
        type=Path,
        nargs="*",
        help="a folder with gt and lq, a folder of videos, or a video",
    )
    add(
        "--report",
        type=Path,
        required=True,
        help="folder of the report: index.html, report.json and images",
    )
    add(
        "--upscaler",
        action="append",
        metavar="NAME",
        help="an upscaler to compare; may be repeated (default: bicubic, lanczos, starsr)",
    )
    add(
        "--rival",
        type=lambda text: text.split(","),
        default=[],
        metavar="NAME,...",
        help=f"further upscalers, which `make rivals` fetches: {', '.join(rivals.RIVALS)}",
    )
    add(
        "--degrade",
        action="append",
        default=[],
        metavar="PRESET",
        choices=sources.DEGRADATIONS,
        help="also degrade held-out clips of --media: "
        f"{', '.join(sources.DEGRADATIONS)}; may be repeated",
    )
    add(
        "--media",
        type=Path,
        help="folder of photographs for --degrade, of which the held-out ones are used",
    )
    add(
        "--video",
        type=Path,
        nargs="*",
        default=[],
        help="clean videos for --degrade that were not used for training",
    )
    add("--clips", type=int, help="greatest number of clips for each --degrade")
    add(
        "--draws",
        type=int,
        default=1,
        help="number of draws of each random degradation for each clip (%(default)s)",
    )
    add("--frames", type=int, help="frames of each clip (default: all; 8 with --degrade)")
    add("--seed", type=int, default=0, help="seed of the degradations (%(default)s)")
    add(
        "--window",
        type=int,
        nargs=2,
        default=(6, 1),
        metavar=("LENGTH", "OVERLAP"),
        help="windows of the seam index (default: nano2's 6 1)",
    )
    add(
        "--metric",
        action="append",
        choices=[*optional.METRICS, "none"],
        metavar="NAME",
        help=f"outside metrics to use: {', '.join(optional.METRICS)}, or none; may be repeated "
        "(default: all that work)",
    )
    add(
        "--program",
        type=Path,
        help="the program starsr (default: that of the build, or the one on the PATH)",
    )
    add(
        "--results",
        type=Path,
        help="folder of the upscaled clips, which are used again (default: results in the report)",
    )
    add(
        "--blind",
        action="store_true",
        help="measure nothing, but serve a page that shows the first upscaler beside each other "
        "one without names and keeps votes in the report; without clips it goes on with its pairs",
    )
    add("--votes", action="store_true", help="count the votes of --blind by upscaler")
    add("--port", type=int, default=0, help="port of the page of --blind (default: a free one)")
    add("--title", default="Upscalers compared", help="heading of the report")
    return result


def gather(options: argparse.Namespace) -> list[Source]:
    """Return all clips that the options name. Raises `SourceError`."""
    found = [source for path in options.input for source in sources.from_path(path, options.frames)]
    if options.degrade:
        if options.media is None:
            raise SourceError(
                "--degrade has nothing to degrade; name a folder of photographs with --media"
            )
        found += sources.degraded(
            options.degrade,
            options.media,
            options.video,
            options.clips,
            options.frames or 8,
            options.seed,
            options.draws,
        )
    if not found:
        raise SourceError("there is nothing to evaluate; name clips, or use --degrade with --media")
    names = [(s.group, study.slug(s.name)) for s in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise SourceError(f"two clips of {twice[0]} are called {twice[1]}; rename one")
    return found


def versions() -> dict[str, str]:
    """Return the versions of everything that may influence the figures."""
    system = f"{platform.system()} {platform.machine()}"
    found = {"Python": platform.python_version(), "system": system}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    if shutil.which("gst-launch-1.0"):
        command = ["gst-launch-1.0", "--version"]
        text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        first = text.splitlines()[0] if text else "unknown"
        found["GStreamer"] = first.removeprefix("gst-launch-1.0 version ")
    return found


class Measured(Protocol):
    """A clip of the report, as far as the summary needs it."""

    group: str
    figures: dict[str, Row]


def summary(pages: Sequence[Measured]) -> str:
    """Return a few columns of the tables, for the terminal."""
    lines = []
    for group in dict.fromkeys(page.group for page in pages):
        clips = [page.figures for page in pages if page.group == group]
        for label, row in study.means(clips).items():
            cells = {}
            for name in SHOWN:
                if (value := row.get(name)) is not None:
                    figure = FIGURES[name]
                    cells[name] = f"{figure.title} {value:.{figure.digits}f}"
            rows = (clip.get(label, {}) for clip in clips)
            gains = [gain for figures in rows if (gain := figures.get("gain")) is not None]
            if gains:
                # The standard error: how much another choice of clips may change the mean.
                cells["gain"] += f" ±{np.std(gains) / len(gains) ** 0.5:.2f}"
                cells["least"] = f"least gain {min(gains):.2f}"
            lines.append(f"{group:10} {label[:32]:32} " + "  ".join(cells.values()))
    return "\n".join(lines)


def manifest_of(
    options: argparse.Namespace,
    command: str,
    window: study.Window,
    runners: Sequence[Upscaler],
    seconds_per_frame: dict[str, float],
) -> dict[str, Any]:
    """Return a record of how a report was made."""
    return {
        "command": command,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "seed": options.seed,
        "window": {"length": window.length, "overlap": window.overlap},
        "versions": versions(),
        "upscalers": [
            {
                "label": runner.label,
                "command": runner.command,
                "files": {path.name: study.file_hash(path) for path in runner.files},
                "seconds_per_frame": seconds_per_frame[runner.label],
            }
            for runner in runners
        ],
    }


def upscalers_of(options: argparse.Namespace) -> list[Upscaler]:
    """Return all upscalers that the options name. Raises `UpscalerError`."""
    chosen = options.upscaler or ["bicubic", "lanczos", "starsr"]
    chosen = [*chosen, *(f"{name}=rival:{name}" for name in options.rival)]
    runners = [upscalers.make(name, options.program) for name in chosen]
    labels = [runner.label for runner in runners]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice:
        raise UpscalerError(f"two upscalers are called {twice}; name one LABEL={twice}")
    return runners


def pairs_of(options: argparse.Namespace) -> Iterator[blind.Entry]:
    """Yield the first upscaler's result of each clip beside that of each other one."""
    clips, (ours, *others) = gather(options), upscalers_of(options)
    kept = options.results or options.report / "results"
    for source in tqdm(clips, unit="clip", disable=None):
        clip = source.load()
        first, _ = study.upscale(ours, clip, kept)
        for other in others:
            second, _ = study.upscale(other, clip, kept)
            name = f"{clip.group}: {clip.name}"
            yield blind.Entry(name, (ours.label, other.label), (first, second), clip.rate)


def judge(options: argparse.Namespace) -> None:
    """Serve the page of --blind until it is interrupted, or count its votes."""
    folder = options.report / "blind"
    if options.votes:
        print(blind.result(blind.read_key(folder), blind.read_votes(folder)))
        return
    if options.input or options.degrade:
        # Nobody is to guess the sides, so there is no seed.
        blind.prepare(folder, pairs_of(options), np.random.default_rng())
    with blind.Server(folder, options.port) as server, contextlib.suppress(KeyboardInterrupt):
        print(f"open {server.url}, and press Ctrl-C when all pairs are judged", flush=True)
        server.serve_forever()
    judged = len(blind.read_votes(folder))
    print(f"{judged} of {server.count} pairs are judged; --votes says for whom")


def evaluate(options: argparse.Namespace, command: str) -> None:
    """Do what the options ask for.

    Raises `SourceError`, `UpscalerError`, `BlindError`, `VideoError`, `ValueError`, `RuntimeError`
    and `OSError`.
    """
    if options.blind or options.votes:
        judge(options)
        return
    if options.frames is not None and options.frames < 2:
        raise SourceError(
            f"{options.frames} frame is not enough to measure change; give --frames 2 or more"
        )
    window = study.Window(*options.window)
    names = [n for n in options.metric or optional.METRICS if n != "none"]
    clips = gather(options)
    runners = upscalers_of(options)
    labels = [runner.label for runner in runners]
    scorers, missing = optional.load(names)
    for line in missing.values():
        print(line, file=sys.stderr)
    kept = options.results or options.report / "results"
    pages, seconds, frames = [], dict.fromkeys(labels, 0.0), 0
    with tqdm(total=len(clips) * (len(runners) + 1), unit="step", disable=None) as progress:
        for source in clips:
            clip = source.load()
            results = {}
            for runner in runners:
                progress.set_description(f"{clip.name}: {runner.label[:24]}")
                results[runner.label], taken = study.upscale(runner, clip, kept)
                seconds[runner.label] += taken
                progress.update()
            progress.set_description(f"{clip.name}: metrics")
            measured = study.measure(clip, results, window, scorers)
            pages.append(report.page(clip, results, measured, options.report))
            frames += len(clip.low)
            progress.update()
    per_frame = {label: total / frames for label, total in seconds.items()}
    manifest = manifest_of(options, command, window, runners, per_frame)
    report.write(options.report, pages, manifest, missing, options.title)
    print(summary(pages))
    print(f"wrote {options.report / 'index.html'}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(arguments)

    def refuse(reason: str, status: int = 1) -> int:
        print(f"starsr-eval: {reason}", file=sys.stderr)
        return status

    try:
        evaluate(options, shlex.join(["starsr-eval", *arguments]))
    except (SourceError, UpscalerError, BlindError, VideoError, ValueError, RuntimeError) as e:
        return refuse(str(e))
    except OSError as e:
        place = e.filename or options.report
        return refuse(f"{place} could not be read or written: {e.strerror or e}; check it")
    except KeyboardInterrupt:
        return refuse("interrupted; results that are complete are used again", 130)
    return 0


if __name__ == "__main__":
    sys.exit(main())
