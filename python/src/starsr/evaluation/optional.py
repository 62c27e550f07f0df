# SPDX-License-Identifier: MPL-2.0
"""Learned and other outside metrics, used if their packages and weights are installed.

Nothing is downloaded here.
"""

import contextlib
import importlib
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image

from starsr.data.media import from_bytes, write_lossless
from starsr.degradation.codecs import to_yuv420
from starsr.evaluation.metrics import Figure

#: A figure of a result `[F,H,W,3]` uint8, with its ground truth for metrics that need one.
Scorer = Callable[[np.ndarray, np.ndarray | None], float]


class MissingError(Exception):
    """Something that a metric needs is missing."""


@dataclass(frozen=True)
class Metric:
    """A metric.

    `load` returns its scorer or raises `MissingError`; `get` is the command that installs it.
    """

    figure: Figure
    load: Callable[[], Scorer]
    get: str
    needs_truth: bool = False


_is_offline: ContextVar[bool] = ContextVar("is_offline", default=False)


@cache
def _watch_network() -> None:
    """Install the guard of `offline`. Python keeps audit hooks until it ends."""

    def refuse(event: str, _arguments: tuple[object, ...]) -> None:
        if event == "socket.getaddrinfo" and _is_offline.get():
            raise OSError("downloads are off")

    sys.addaudithook(refuse)


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Refuse to look up other machines, so that missing weights are not downloaded.

    An audit hook stops every library; `HF_HUB_OFFLINE` would stop that of the hub only.
    """
    _watch_network()
    token = _is_offline.set(True)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        _is_offline.reset(token)


def pyiqa_scorer(name: str, needs_truth: bool) -> Scorer:
    """Return a metric of pyiqa, the mean over frames, on the CPU."""
    if importlib.util.find_spec("pyiqa") is None:
        raise MissingError("the package pyiqa is not installed")
    try:
        with offline():
            metric = importlib.import_module("pyiqa").create_metric(name, device="cpu")
    except Exception as e:
        # Each of pyiqa's networks fails in its own way without its weights.
        reason = (str(e).splitlines() or ["no message"])[0]
        raise MissingError(
            f"pyiqa could not load {name}, most likely because its weights are missing "
            f"({type(e).__name__}: {reason})"
        ) from e

    def score(result: np.ndarray, target: np.ndarray | None) -> float:
        clips = [result] if target is None or not needs_truth else [result, target]
        with torch.no_grad():
            scores = [
                metric(*(from_bytes(frame[None]) for frame in frames))
                for frames in zip(*clips, strict=True)
            ]
        return float(np.mean([float(s) for s in scores]))

    return score


def dover_scorer() -> Scorer:
    """Return DOVER's fused score in [0,1] by its own program.

    The variable DOVER names its checkout.
    """
    folder = Path(os.environ.get("DOVER", "DOVER"))
    for name in ("evaluate_one_video.py", "pretrained_weights/DOVER.pth"):
        if not (folder / name).is_file():
            raise MissingError(f"{folder / name} is missing (the variable DOVER names the folder)")

    def score(result: np.ndarray, _target: np.ndarray | None) -> float:
        with tempfile.TemporaryDirectory(prefix="starsr-eval-") as temporary:
            path = Path(temporary, "clip.mkv")
            write_lossless(path, result)
            command = [sys.executable, "evaluate_one_video.py", "--video_path", str(path)]
            command += ["--device", "cpu", "--fusion"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        found = re.search(r"fused overall score.*:\s*([0-9.eE+-]+)", done.stdout)
        if done.returncode or not found:
            last = (done.stderr.strip() or "no message").splitlines()[-1]
            raise RuntimeError(
                f"DOVER failed with status {done.returncode}: {last}; try its "
                "evaluate_one_video.py alone"
            )
        return float(found[1])

    return score


def write_y4m(path: Path, clip: np.ndarray) -> None:
    """Write `[F,H,W,3]` uint8 as YUV4MPEG2 in 4:2:0; odd sizes lose their last row or column."""
    height, width = (n // 2 * 2 for n in clip.shape[1:3])
    even = np.ascontiguousarray(clip[:, :height, :width])
    with path.open("wb") as file:
        file.write(f"YUV4MPEG2 W{width} H{height} F25:1 Ip A1:1 C420jpeg\n".encode())
        for frame in to_yuv420(even, full_range=False):
            file.write(b"FRAME\n" + frame.tobytes())


def vmaf_command() -> Callable[[Path, Path, Path], list[str]]:
    """Return what makes the command that compares a reference with a result and writes JSON.

    It is libvmaf's program or the FFmpeg of the package imageio-ffmpeg, which has libvmaf.
    """
    if program := shutil.which("vmaf"):

        def plain(reference: Path, distorted: Path, output: Path) -> list[str]:
            command = [program, "--reference", str(reference), "--distorted", str(distorted)]
            command += ["--model", "version=vmaf_v0.6.1neg:name=vmaf"]
            return [*command, "--output", str(output), "--json", "--quiet"]

        return plain
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        raise MissingError(
            "the program vmaf is not on the PATH, and the package imageio-ffmpeg is not installed"
        )
    ffmpeg = importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe()

    def filtered(reference: Path, distorted: Path, output: Path) -> list[str]:
        model = r"model=version=vmaf_v0.6.1neg\\:name=vmaf"
        graph = f"libvmaf={model}:log_fmt=json:log_path={output.name}"
        inputs = ["-i", str(distorted), "-i", str(reference)]
        return [ffmpeg, "-v", "error", *inputs, "-lavfi", graph, "-f", "null", "-"]

    return filtered


def vmaf_scorer() -> Scorer:
    """Return VMAF by libvmaf, with the NEG model that does not reward sharpening."""
    make = vmaf_command()

    def score(result: np.ndarray, target: np.ndarray | None) -> float:
        if target is None:
            raise ValueError("VMAF needs a ground truth")
        with tempfile.TemporaryDirectory(prefix="starsr-eval-") as temporary:
            reference, distorted = (Path(temporary, f"{n}.y4m") for n in ("reference", "distorted"))
            output = Path(temporary, "scores.json")
            write_y4m(reference, target)
            write_y4m(distorted, result)
            command = make(reference, distorted, output)
            done = subprocess.run(
                command, cwd=temporary, capture_output=True, text=True, check=False
            )
            if done.returncode:
                last = (done.stderr.strip() or "no message").splitlines()[-1]
                raise RuntimeError(
                    f"{Path(command[0]).name} failed with status {done.returncode}: {last}; it "
                    "must have libvmaf 2 or newer"
                )
            scores = json.loads(output.read_text(encoding="utf-8"))
            return float(scores["pooled_metrics"]["vmaf"]["mean"])

    return score


def stlpips_scorer(network: str) -> Scorer:
    """Return ST-LPIPS, the mean over every fourth frame, with the weights of its package."""
    if importlib.util.find_spec("stlpips_pytorch") is None:
        raise MissingError("the package stlpips-pytorch is not installed")
    # The package imports these two and does not need them.
    for name, needed in (("torchsummary", "summary"), ("IPython", "embed")):
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = ModuleType(name)
            setattr(sys.modules[name], needed, None)
    with contextlib.redirect_stdout(io.StringIO()):
        module = importlib.import_module("stlpips_pytorch.stlpips")
        metric = module.LPIPS(net=network, variant="shift_tolerant", verbose=False).eval()

    def score(result: np.ndarray, target: np.ndarray | None) -> float:
        if target is None:
            raise ValueError("ST-LPIPS needs a ground truth")
        with torch.no_grad():
            scores = [
                float(metric(*(from_bytes(frame[None]) * 2 - 1 for frame in frames)))
                for frames in zip(result[::4], target[::4], strict=True)
            ]
        return float(np.mean(scores))

    return score


def ssimulacra2_scorer() -> Scorer:
    """Return SSIMULACRA2, the mean over every fourth frame."""
    if importlib.util.find_spec("ssimulacra2") is None:
        raise MissingError("the package ssimulacra2 is not installed")
    compute = importlib.import_module("ssimulacra2").compute_ssimulacra2

    def file(frame: np.ndarray) -> io.BytesIO:
        # The package takes whatever Pillow opens.
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(frame)).save(buffer, "PNG", compress_level=1)
        buffer.seek(0)
        return buffer

    def score(result: np.ndarray, target: np.ndarray | None) -> float:
        if target is None:
            raise ValueError("SSIMULACRA2 needs a ground truth")
        pairs = zip(target[::4], result[::4], strict=True)
        return float(np.mean([compute(file(truth), file(frame)) for truth, frame in pairs]))

    return score


def brisque_scorer() -> Scorer:
    """Return BRISQUE, the mean over every fourth frame, with the model of its package."""
    for name, package in (("brisque", "brisque"), ("libsvm", "libsvm-official"), ("cv2", "OpenCV")):
        if importlib.util.find_spec(name) is None:
            raise MissingError(f"the package {package} is not installed")
    metric = importlib.import_module("brisque").BRISQUE(url=False)
    scale = metric.scale_features
    # Version 0.2.0 calls float() on arrays of one number, which NumPy 2.4 refuses.
    metric.scale_features = lambda features: scale([np.ravel(feature)[0] for feature in features])

    def score(result: np.ndarray, _target: np.ndarray | None) -> float:
        return float(np.mean([metric.score(frame) for frame in result[::4]]))

    return score


def from_pyiqa(
    name: str, title: str, best: str, digits: int, meaning: str, needs_truth: bool = False
) -> Metric:
    """Return a metric of pyiqa."""
    get = f"pip install pyiqa && python -c \"import pyiqa; pyiqa.create_metric('{name}')\""
    load = partial(pyiqa_scorer, name, needs_truth)
    return Metric(Figure(title, best, digits, meaning), load, get, needs_truth)


def from_stlpips(network: str, title: str) -> Metric:
    """Return ST-LPIPS with one of its networks, `vgg` or `alex`."""
    meaning = f"Distance of deep features to the ground truth's, blind to small shifts ({title})."
    figure = Figure(f"ST-LPIPS {title}", "min", 3, meaning)
    get = "pip install --no-deps stlpips-pytorch"
    return Metric(figure, partial(stlpips_scorer, network), get, needs_truth=True)


METRICS = {
    "stlpips": from_stlpips("vgg", "VGG"),
    "stlpips-alex": from_stlpips("alex", "AlexNet"),
    "ssimulacra2": Metric(
        Figure(
            "SSIMULACRA2",
            "max",
            2,
            "Structural similarity in an opponent colour space, for compression; 100 is equal.",
        ),
        ssimulacra2_scorer,
        "pip install ssimulacra2",
        needs_truth=True,
    ),
    "brisque": Metric(
        Figure(
            "BRISQUE",
            "min",
            2,
            "Distance from the statistics of natural pictures, as learned from opinions, 0 to 100.",
        ),
        brisque_scorer,
        "pip install brisque libsvm-official opencv-python-headless",
    ),
    "lpips": from_pyiqa(
        "lpips",
        "LPIPS",
        "min",
        4,
        "Distance of deep features to the ground truth's (AlexNet).",
        needs_truth=True,
    ),
    "dists": from_pyiqa(
        "dists",
        "DISTS",
        "min",
        4,
        "Distance of structure and texture to the ground truth's.",
        needs_truth=True,
    ),
    "niqe": from_pyiqa(
        "niqe", "NIQE", "min", 3, "Distance from the statistics of natural pictures."
    ),
    "ilniqe": from_pyiqa("ilniqe", "ILNIQE", "min", 2, "The same with more statistics."),
    "musiq": from_pyiqa("musiq", "MUSIQ", "max", 2, "Learned opinion of single frames, 0 to 100."),
    "clipiqa": from_pyiqa(
        "clipiqa", "CLIPIQA", "max", 4, "CLIP's opinion of single frames, 0 to 1."
    ),
    "dover": Metric(
        Figure(
            "DOVER",
            "max",
            4,
            "Learned opinion of the video, technical and aesthetic fused, 0 to 1.",
        ),
        dover_scorer,
        "git clone https://github.com/VQAssessment/DOVER && pip install -e DOVER && "
        "wget -P DOVER/pretrained_weights "
        "https://github.com/QualityAssessment/DOVER/releases/download/v0.1.0/DOVER.pth && "
        "export DOVER=$PWD/DOVER",
    ),
    "vmaf": Metric(
        Figure(
            "VMAF NEG",
            "max",
            2,
            "Netflix's fusion of fidelity and detail, model v0.6.1 NEG, 0 to 100.",
        ),
        vmaf_scorer,
        "pip install imageio-ffmpeg",
        needs_truth=True,
    ),
}


def load(names: list[str]) -> tuple[dict[str, Scorer], dict[str, str]]:
    """Return the scorers of the metrics that work here, and why the others do not.

    The reason is a line that also says how to get the metric.
    """
    scorers, missing = {}, {}
    for name in names:
        metric = METRICS[name]
        try:
            scorers[name] = metric.load()
        except MissingError as e:
            missing[name] = f"{metric.figure.title} is not measured: {e}; to get it: {metric.get}"
    return scorers, missing
