# SPDX-License-Identifier: MPL-2.0
"""Learned and other outside metrics, used where their packages and weights are there. Nothing is downloaded here."""

import contextlib
import importlib
import importlib.util
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from starsr.degradation.codecs import to_yuv420
from starsr.data.media import from_bytes, write_lossless
from starsr.evaluation.metrics import Figure

#: A figure of a result `[F,H,W,3]` uint8, with its ground truth for metrics that need one.
Scorer = Callable[[np.ndarray, np.ndarray | None], float]


class Missing(Exception):
    """What a metric lacks."""


@dataclass(frozen=True)
class Metric:
    """`load` gives the scorer or raises `Missing`; `get` is the command that gets what is missing."""

    figure: Figure
    load: Callable[[], Scorer]
    get: str
    needs_truth: bool = False


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Every attempt to reach another machine fails, so that weights which are not there are not fetched."""

    def refuse(*_args, **_kwargs):
        raise OSError("downloads are off")

    with patch.object(socket, "getaddrinfo", refuse), contextlib.redirect_stdout(io.StringIO()):
        yield


def pyiqa_scorer(name: str, needs_truth: bool) -> Scorer:
    """A metric of pyiqa, mean over frames, on the CPU."""
    if importlib.util.find_spec("pyiqa") is None:
        raise Missing("the package pyiqa is not installed")
    try:
        with offline():
            metric = importlib.import_module("pyiqa").create_metric(name, device="cpu")
    except Exception as e:
        # Each of pyiqa's networks fails in its own way without its weights.
        reason = (str(e).splitlines() or ["no message"])[0]
        raise Missing(f"pyiqa could not load {name}, most likely for want of its weights ({type(e).__name__}: {reason})") from e

    def score(result: np.ndarray, target: np.ndarray | None) -> float:
        clips = [result, target] if needs_truth else [result]
        with torch.no_grad():
            scores = [metric(*(from_bytes(frame[None]) for frame in frames)) for frames in zip(*clips, strict=True)]
        return float(np.mean([float(s) for s in scores]))

    return score


def dover_scorer() -> Scorer:
    """DOVER's fused score in [0,1] by its own program, in the checkout that the variable DOVER names."""
    folder = Path(os.environ.get("DOVER", "DOVER"))
    for name in ("evaluate_one_video.py", "pretrained_weights/DOVER.pth"):
        if not (folder / name).is_file():
            raise Missing(f"{folder / name} is not there (the variable DOVER names the folder)")

    def score(result: np.ndarray, _target: np.ndarray | None) -> float:
        with tempfile.TemporaryDirectory(prefix="starsr-eval-") as temporary:
            path = Path(temporary, "clip.mkv")
            write_lossless(path, result)
            command = [sys.executable, "evaluate_one_video.py", "--video_path", str(path), "--device", "cpu", "--fusion"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        found = re.search(r"fused overall score.*:\s*([0-9.eE+-]+)", done.stdout)
        if done.returncode or not found:
            last = (done.stderr.strip() or "no message").splitlines()[-1]
            raise RuntimeError(f"DOVER failed with status {done.returncode}: {last}; try its evaluate_one_video.py alone")
        return float(found[1])

    return score


def write_y4m(path: Path, clip: np.ndarray) -> None:
    """`[F,H,W,3]` uint8 as YUV4MPEG2 in 4:2:0; the last row or column of odd sizes is left out."""
    height, width = (n // 2 * 2 for n in clip.shape[1:3])
    with path.open("wb") as file:
        file.write(f"YUV4MPEG2 W{width} H{height} F25:1 Ip A1:1 C420jpeg\n".encode())
        for frame in to_yuv420(np.ascontiguousarray(clip[:, :height, :width]), full_range=False):
            file.write(b"FRAME\n" + frame.tobytes())


def vmaf_scorer() -> Scorer:
    """VMAF by libvmaf's program, with the NEG model that does not reward sharpening."""
    program = shutil.which("vmaf")
    if not program:
        raise Missing("the program vmaf is not on the PATH")

    def score(result: np.ndarray, target: np.ndarray | None) -> float:
        with tempfile.TemporaryDirectory(prefix="starsr-eval-") as temporary:
            paths = [Path(temporary, name) for name in ("reference.y4m", "distorted.y4m", "scores.json")]
            write_y4m(paths[0], target)
            write_y4m(paths[1], result)
            command = [program, "--reference", paths[0], "--distorted", paths[1], "--output", paths[2], "--json", "--quiet"]
            command += ["--model", "version=vmaf_v0.6.1neg:name=vmaf"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                last = (done.stderr.strip() or "no message").splitlines()[-1]
                raise RuntimeError(f"vmaf failed with status {done.returncode}: {last}; it must be libvmaf 2 or newer")
            return float(json.loads(paths[2].read_text())["pooled_metrics"]["vmaf"]["mean"])

    return score


def from_pyiqa(name: str, title: str, best: str, digits: int, meaning: str, needs_truth: bool = False) -> Metric:
    get = f"pip install pyiqa && python -c \"import pyiqa; pyiqa.create_metric('{name}')\""
    return Metric(Figure(title, best, digits, meaning), partial(pyiqa_scorer, name, needs_truth), get, needs_truth)


METRICS = {
    "lpips": from_pyiqa("lpips", "LPIPS", "min", 4, "Distance of deep features to the ground truth's (AlexNet).", True),
    "dists": from_pyiqa("dists", "DISTS", "min", 4, "Distance of structure and texture to the ground truth's.", True),
    "niqe": from_pyiqa("niqe", "NIQE", "min", 3, "Distance from the statistics of natural pictures."),
    "ilniqe": from_pyiqa("ilniqe", "ILNIQE", "min", 2, "The same with more statistics."),
    "musiq": from_pyiqa("musiq", "MUSIQ", "max", 2, "Learned opinion of single frames, 0 to 100."),
    "clipiqa": from_pyiqa("clipiqa", "CLIPIQA", "max", 4, "CLIP's opinion of single frames, 0 to 1."),
    "dover": Metric(
        Figure("DOVER", "max", 4, "Learned opinion of the video, technical and aesthetic fused, 0 to 1."),
        dover_scorer,
        "git clone https://github.com/VQAssessment/DOVER && pip install -e DOVER && wget -P DOVER/pretrained_weights "
        "https://github.com/QualityAssessment/DOVER/releases/download/v0.1.0/DOVER.pth && export DOVER=$PWD/DOVER",
    ),
    "vmaf": Metric(
        Figure("VMAF NEG", "max", 2, "Netflix's fusion of fidelity and detail, model v0.6.1 NEG, 0 to 100."),
        vmaf_scorer,
        "git clone https://github.com/Netflix/vmaf && meson setup vmaf/build vmaf/libvmaf --buildtype release "
        "&& ninja -C vmaf/build install",
        True,
    ),
}


def load(names: list[str]) -> tuple[dict[str, Scorer], dict[str, str]]:
    """Scorers of the metrics that work here, and for each other one a line that says why not and what gets it."""
    scorers, missing = {}, {}
    for name in names:
        metric = METRICS[name]
        try:
            scorers[name] = metric.load()
        except Missing as e:
            missing[name] = f"{metric.figure.title} is not measured: {e}; to get it: {metric.get}"
    return scorers, missing
