# SPDX-License-Identifier: MPL-2.0
"""Upscalers by name. Each turns `[F,h,w,3]` into `[F,4h,4w,3]`, both uint8 RGB."""

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation

from starsr.bundle.reader import Bundle
from starsr.data.media import SCALE, from_bytes, read_video, to_bytes, write_lossless
from starsr.data.resize import bicubic
from starsr.evaluation import rivals

#: The program that upscales files, as the user calls it.
PROGRAM = "starsr"

#: Scalers of FFmpeg's libswscale.
SWSCALE = (
    "fast_bilinear",
    "bilinear",
    "bicubic",
    "point",
    "area",
    "gauss",
    "sinc",
    "lanczos",
    "spline",
)

HELP = (
    "bicubic: the plain upscale, as the plugin does it before it runs the model; lanczos or "
    "videoscale:METHOD: GStreamer's videoscale; ffmpeg:SCALER: FFmpeg's libswscale, such as "
    "ffmpeg:spline; starsr or 'starsr:OPTIONS': the element, with options of `starsr upscale`; "
    "bundle:FOLDER: a model bundle in Python, one window and one evaluation; rival:NAME: a network "
    f"of another project, one of {', '.join(rivals.RIVALS)}; 'command:LINE': a "
    "shell line with {input} and {output}, both .mkv files. LABEL=NAME sets another label"
)


class UpscalerError(Exception):
    """An upscaler is unknown, missing or failed. The message is one sentence."""


@dataclass(frozen=True)
class Upscaler:
    """`command` describes what runs, `files` are further files on which the result depends."""

    label: str
    command: str
    run: Callable[[np.ndarray, Fraction], np.ndarray]
    files: tuple[Path, ...] = ()

    def __call__(self, clip: np.ndarray, rate: Fraction = Fraction(25)) -> np.ndarray:
        """Upscale a clip and check the size of the result. Raises `UpscalerError`."""
        result = self.run(clip, rate)
        frames, height, width, _ = clip.shape
        expected = (frames, SCALE * height, SCALE * width, 3)
        if result.shape != expected:
            size, wanted = (f"{f} frames of {w}x{h}" for f, h, w, _ in (result.shape, expected))
            raise UpscalerError(
                f"{self.label} made {size} instead of {wanted}; only upscaling by {SCALE} is "
                "compared"
            )
        return result


def plain(clip: np.ndarray) -> np.ndarray:
    """Upscale by bicubic interpolation, rounded to 8 bits."""
    return np.concatenate([to_bytes(bicubic(from_bytes(frame[None]))) for frame in clip])


def swscale(scaler: str, clip: np.ndarray) -> np.ndarray:
    """Upscale with libswscale, each colour plane as a grey picture to avoid conversions."""
    frames, height, width, _ = clip.shape
    flags = Interpolation[scaler.upper()] | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
    size = {"width": SCALE * width, "height": SCALE * height}
    result = np.empty((frames, SCALE * height, SCALE * width, 3), np.uint8)
    for f in range(frames):
        for c in range(3):
            values = np.ascontiguousarray(clip[f, :, :, c])
            plane = av.VideoFrame.from_ndarray(values, format="gray")
            result[f, :, :, c] = plane.reformat(**size, interpolation=flags).to_ndarray()
    return result


def run_on_files(
    label: str, command: Callable[[Path, Path], list[str]], clip: np.ndarray, rate: Fraction
) -> np.ndarray:
    """Give a command the clip as a file and read the file that it writes."""
    with tempfile.TemporaryDirectory(prefix="starsr-eval-") as folder:
        source, target = Path(folder, "input.mkv"), Path(folder, "output.mkv")
        write_lossless(source, clip, rate)
        words = command(source, target)
        result = subprocess.run(words, capture_output=True, text=True, check=False)
        if result.returncode or not target.exists():
            output = result.stderr.strip() or result.stdout.strip() or "no message"
            raise UpscalerError(
                f"{label} failed with status {result.returncode}: {output.splitlines()[-1]}; try "
                f"`{shlex.join(words)}` on a clip"
            )
        return read_video(target)[0]


def gstreamer(method: str, clip: np.ndarray, rate: Fraction) -> np.ndarray:
    """Upscale with GStreamer's videoscale, in RGB."""
    height, width = (SCALE * n for n in clip.shape[1:3])

    def command(source: Path, target: Path) -> list[str]:
        caps = f"video/x-raw,format=BGRx,width={width},height={height}"
        chain = "matroskademux ! avdec_ffv1 ! videoconvert ! "
        chain += f"videoscale method={method} ! {caps} ! avenc_ffv1 ! matroskamux"
        start = ["filesrc", f"location={source}", "!"]
        end = ["!", "filesink", f"location={target}"]
        return ["gst-launch-1.0", "-q", *start, *chain.split(), *end]

    return run_on_files(f"videoscale:{method}", command, clip, rate)


def videoscale(label: str, method: str) -> Upscaler:
    """Return GStreamer's videoscale."""
    if not shutil.which("gst-launch-1.0"):
        raise UpscalerError(
            f"{label} needs gst-launch-1.0, which is missing; run "
            "`apt-get install gstreamer1.0-tools`"
        )
    command = f"videoscale method={method}"
    return Upscaler(label, command, lambda clip, rate: gstreamer(method, clip, rate))


def find_program() -> Path | None:
    """Return the program `starsr`: that of the checkout's build, or the one on the PATH."""
    target = os.environ.get("CARGO_TARGET_DIR") or Path(__file__).resolve().parents[4] / "target"
    built = Path(target) / "release" / PROGRAM
    if built.is_file():
        return built
    installed = shutil.which(PROGRAM)
    return Path(installed) if installed else None


def starsr(label: str, arguments: str, program: Path | None) -> Upscaler:
    """Return the element, through the program `starsr`, lossless on the way in and out."""
    program = program or find_program()
    if program is None or not program.is_file():
        raise UpscalerError(
            f"{label} needs the program {program or PROGRAM}, which is missing; run `make build`, "
            "install it, or give --program"
        )
    options = ["--quiet", "--encoder", "avenc_ffv1", *shlex.split(arguments)]
    # The model that `make build` puts beside the program.
    folder = program.parent / "nano2"
    if "--model" in options:
        folder = Path(options[options.index("--model") + 1])
    manifest = folder / "bundle.toml"
    files = (program, manifest) if manifest.is_file() else (program,)

    def command(source: Path, target: Path) -> list[str]:
        return [str(program), "upscale", *options, str(source), str(target)]

    words = shlex.join([program.name, "upscale", *options])
    return Upscaler(
        label, words, lambda clip, rate: run_on_files(label, command, clip, rate), files
    )


def bundle(label: str, folder: Path) -> Upscaler:
    """Return a model bundle in Python; its noise has the seed 0."""
    manifest = folder / "bundle.toml"
    if not manifest.is_file():
        raise UpscalerError(
            f"{label}: {folder} is no model bundle, as it holds no bundle.toml; name the bundle's "
            "folder"
        )
    model = Bundle(folder)

    def run(clip: np.ndarray, _rate: Fraction) -> np.ndarray:
        return np.rint(model.upscale(clip) * 255).astype(np.uint8)

    return Upscaler(label, f"bundle {folder.name}", run, (manifest,))


def rival(label: str, name: str) -> Upscaler:
    """Return another project's network, which `make rivals` has fetched."""
    try:
        files = rivals.files(name)
    except rivals.RivalError as e:
        raise UpscalerError(str(e)) from e
    runners: list[rivals.Runner] = []

    def run(clip: np.ndarray, _rate: Fraction) -> np.ndarray:
        if not runners:
            runners.append(rivals.Runner(name))
        return runners[0](clip)

    package = rivals.RIVALS[name].package
    return Upscaler(label, f"{name} of {package} in ONNX Runtime", run, files)


def shell(label: str, line: str) -> Upscaler:
    """Return a shell line as an upscaler."""
    if "{input}" not in line or "{output}" not in line:
        raise UpscalerError(
            f"the command `{line}` names no {{input}} or no {{output}}; write both where the file "
            "names go"
        )

    def command(source: Path, target: Path) -> list[str]:
        names = {"{input}": shlex.quote(str(source)), "{output}": shlex.quote(str(target))}
        filled = re.sub(r"\{(?:input|output)\}", lambda found: names[found[0]], line)
        return ["sh", "-c", filled]

    return Upscaler(label, line, lambda clip, rate: run_on_files(label, command, clip, rate))


def make(text: str, program: Path | None = None) -> Upscaler:
    """Return the upscaler that `text` names, see `HELP`. Raises `UpscalerError`."""
    labelled = re.fullmatch(r"([\w .+-]+)=(.+)", text)
    label, name = labelled.groups() if labelled else (text, text)
    kind, _, rest = name.partition(":")
    match kind:
        case "bicubic":
            return Upscaler(label, "bicubic", lambda clip, _rate: plain(clip))
        case "lanczos":
            return videoscale(label, "lanczos")
        case "videoscale" if rest:
            return videoscale(label, rest)
        case "ffmpeg":
            if rest not in SWSCALE:
                known = ", ".join(SWSCALE)
                raise UpscalerError(f"libswscale has no scaler `{rest}`; choose one of {known}")
            return Upscaler(label, f"libswscale {rest}", lambda clip, _rate: swscale(rest, clip))
        case "starsr":
            return starsr(label, rest, program)
        case "bundle" if rest:
            return bundle(label, Path(rest))
        case "rival" if rest:
            return rival(label, rest)
        case "command":
            return shell(label, rest)
    raise UpscalerError(
        f"there is no upscaler {name}; choose bicubic, lanczos, videoscale:METHOD, ffmpeg:SCALER, "
        "starsr, bundle:FOLDER, rival:NAME or command:LINE"
    )
