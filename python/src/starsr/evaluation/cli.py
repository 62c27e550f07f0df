# SPDX-License-Identifier: MPL-2.0
"""`starsr-eval`: compares upscalers on clips and writes a report."""

import argparse
import platform
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from tqdm import tqdm

from starsr.evaluation import optional, report, sources, study, upscalers
from starsr.evaluation.metrics import FIGURES
from starsr.evaluation.sources import Source, SourceError
from starsr.evaluation.upscalers import UpscalerError
from starsr.data.media import VideoError

#: Packages whose version a figure may depend on.
PACKAGES = ("starsr", "numpy", "torch", "scikit-image", "av", "pillow", "onnxruntime")
#: Figures for the terminal.
SHOWN = ("psnr", "gain", "ssim", "warp", "sharpness", "seam", "grid4", "grid8")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="starsr-eval",
        description="Compares upscalers on clips, with or without ground truth, and writes a report in JSON and HTML.",
        epilog=f"Upscalers: {' '.join(upscalers.HELP.split())}.",
    )
    p.add_argument("input", type=Path, nargs="*", help="a folder with gt and lq, a folder of videos, or a video")
    p.add_argument("--report", type=Path, required=True, help="folder of the report: index.html, report.json and images")
    p.add_argument("--upscaler", action="append", metavar="NAME", help="may be repeated (default: bicubic, lanczos, starsr)")
    known = ", ".join(sources.DEGRADATIONS)
    p.add_argument("--degrade", action="append", default=[], metavar="PRESET", choices=sources.DEGRADATIONS,
                   help=f"also degrade held-out clips of --media: {known}; may be repeated")  # fmt: skip
    p.add_argument("--media", type=Path, help="folder with the photographs for --degrade, of which the held-out ones are used")
    p.add_argument("--video", type=Path, nargs="*", default=[], help="clean videos for --degrade that were not trained on")
    p.add_argument("--clips", type=int, help="at most this many clips for each --degrade")
    p.add_argument("--draws", type=int, default=1, help="degrade each clip so many times in each random way (default: 1)")
    p.add_argument("--frames", type=int, help="frames of each clip (default: all; 8 with --degrade)")
    p.add_argument("--seed", type=int, default=0, help="seed of the degradations (default: 0)")
    p.add_argument("--window", type=int, nargs=2, default=(8, 3), metavar=("LENGTH", "OVERLAP"),
                   help="windows of the seam index (default: nano's 8 3)")  # fmt: skip
    outside = ", ".join(optional.METRICS)
    p.add_argument("--metric", action="append", choices=[*optional.METRICS, "none"], metavar="NAME",
                   help=f"which outside metrics to use: {outside}, or none (default: all that work)")  # fmt: skip
    p.add_argument("--program", type=Path, default=upscalers.PROGRAM, help="the program upscale (default: the build's)")
    p.add_argument("--results", type=Path, help="folder of the upscaled clips, used again (default: results in the report)")
    p.add_argument("--title", default="Upscalers compared", help="heading of the report")
    return p


def gather(options: argparse.Namespace) -> list[Source]:
    """All clips that the options name."""
    found = [source for path in options.input for source in sources.from_path(path, options.frames)]
    if options.degrade:
        if options.media is None:
            raise SourceError("--degrade has nothing to degrade; name a folder of photographs with --media")
        found += sources.degraded(
            options.degrade, options.media, options.video, options.clips, options.frames or 8, options.seed, options.draws
        )
    if not found:
        raise SourceError("there is nothing to evaluate; name clips, or use --degrade with --media")
    names = [(s.group, study.slug(s.name)) for s in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise SourceError(f"two clips of {twice[0]} are called {twice[1]}; rename one")
    return found


def versions() -> dict[str, str]:
    """What the figures depend on."""
    found = {"Python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    if shutil.which("gst-launch-1.0"):
        text = subprocess.run(["gst-launch-1.0", "--version"], capture_output=True, text=True).stdout
        found["GStreamer"] = text.splitlines()[0].removeprefix("gst-launch-1.0 version ") if text else "unknown"
    return found


def summary(pages: list[report.Page]) -> str:
    """A few columns of the tables, for the terminal."""
    lines = []
    for group in dict.fromkeys(page.group for page in pages):
        clips = [page.figures for page in pages if page.group == group]
        for label, row in study.means(clips).items():
            cells = {
                name: f"{FIGURES[name].title} {row[name]:.{FIGURES[name].digits}f}"
                for name in SHOWN
                if row.get(name) is not None
            }
            if row.get("gain") is not None:
                gains = [figures[label]["gain"] for figures in clips if "gain" in figures[label]]
                # The standard error: by how much another choice of clips may change the mean.
                cells["gain"] += f" ±{np.std(gains) / len(gains) ** 0.5:.2f}"
                cells["least"] = f"least gain {min(gains):.2f}"
            lines.append(f"{group:10} {label[:32]:32} " + "  ".join(cells.values()))
    return "\n".join(lines)


def evaluate(options: argparse.Namespace, command: str) -> None:
    if options.frames is not None and options.frames < 2:
        raise SourceError(f"{options.frames} frame is not enough to measure what changes; give --frames 2 or more")
    window = study.Window(*options.window)
    names = [n for n in options.metric or optional.METRICS if n != "none"]
    clips = gather(options)
    runners = [upscalers.make(name, options.program) for name in options.upscaler or ["bicubic", "lanczos", "starsr"]]
    labels = [runner.label for runner in runners]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice:
        raise UpscalerError(f"two upscalers are called {twice}; name one LABEL={twice}")
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
            pages.append(report.page(clip, results, study.measure(clip, results, window, scorers), options.report))
            frames += len(clip.low)
            progress.update()
    manifest = {
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
                "seconds_per_frame": seconds[runner.label] / frames,
            }
            for runner in runners
        ],
    }
    report.write(options.report, pages, manifest, missing, options.title)
    print(summary(pages))
    print(f"wrote {options.report / 'index.html'}")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and gives its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(arguments)
    try:
        evaluate(options, shlex.join(["starsr-eval", *arguments]))
    except (SourceError, UpscalerError, VideoError, ValueError, RuntimeError) as e:
        print(f"starsr-eval: {e}", file=sys.stderr)
        return 1
    except OSError as e:
        place = e.filename or options.report
        print(f"starsr-eval: {place} could not be read or written: {e.strerror or e}; check it", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("starsr-eval: interrupted; results that are complete are used again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
