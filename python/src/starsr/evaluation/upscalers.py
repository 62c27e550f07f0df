# SPDX-License-Identifier: MPL-2.0
"""Upscalers by name. Each makes `[F,4h,4w,3]` from `[F,h,w,3]`, both uint8 RGB."""

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

from starsr.data.media import SCALE, from_bytes, read_video, to_bytes, write_lossless
from starsr.bundle.reader import Bundle
from starsr.data.resize import bicubic

#: Where `cargo build` leaves the program that upscales a file, in a checkout.
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", Path(__file__).resolve().parents[4] / "target"))
PROGRAM = TARGET / "release" / "examples" / "upscale"

#: Scalers of FFmpeg's libswscale.
SWSCALE = ("fast_bilinear", "bilinear", "bicubic", "point", "area", "gauss", "sinc", "lanczos", "spline")

HELP = """bicubic: the plain upscale in front of the model; lanczos or videoscale:METHOD: GStreamer's videoscale; ffmpeg:SCALER:
FFmpeg's libswscale, such as ffmpeg:spline; starsr or 'starsr:OPTIONS': the element through its program, with that program's
options; bundle:FOLDER: a model bundle in Python, one window and one evaluation; 'command:LINE': a shell line with {input} and
{output}, both .mkv files. LABEL=NAME gives it another label"""


class UpscalerError(Exception):
    """An upscaler that is unknown, missing or failed, as one sentence."""


@dataclass(frozen=True)
class Upscaler:
    """`command` says what is run, `files` are those on whose content the result depends too."""

    label: str
    command: str
    run: Callable[[np.ndarray, Fraction], np.ndarray]
    files: tuple[Path, ...] = ()

    def __call__(self, clip: np.ndarray, rate: Fraction = Fraction(25)) -> np.ndarray:
        result = self.run(clip, rate)
        frames, height, width, _ = clip.shape
        expected = (frames, SCALE * height, SCALE * width, 3)
        if result.shape != expected:
            size, wanted = (f"{f} frames of {w}x{h}" for f, h, w, _ in (result.shape, expected))
            raise UpscalerError(f"{self.label} made {size} instead of {wanted}; only upscaling by {SCALE} is compared")
        return result


def plain(clip: np.ndarray) -> np.ndarray:
    """Bicubic upscale, rounded to 8 bits."""
    return np.concatenate([to_bytes(bicubic(from_bytes(frame[None]))) for frame in clip])


def swscale(scaler: str, clip: np.ndarray) -> np.ndarray:
    """Each colour plane through libswscale as a grey picture, so that no conversion of colours is in between."""
    frames, height, width, _ = clip.shape
    flags = Interpolation[scaler.upper()] | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
    result = np.empty((frames, SCALE * height, SCALE * width, 3), np.uint8)
    for f in range(frames):
        for c in range(3):
            plane = av.VideoFrame.from_ndarray(np.ascontiguousarray(clip[f, :, :, c]), format="gray")
            scaled = plane.reformat(width=SCALE * width, height=SCALE * height, interpolation=flags)
            result[f, :, :, c] = scaled.to_ndarray()
    return result


def run_on_files(label: str, command: Callable[[Path, Path], list[str]], clip: np.ndarray, rate: Fraction) -> np.ndarray:
    """Gives a command the clip as a file and reads the file that it makes."""
    with tempfile.TemporaryDirectory(prefix="starsr-eval-") as folder:
        source, target = Path(folder, "input.mkv"), Path(folder, "output.mkv")
        write_lossless(source, clip, rate)
        words = command(source, target)
        result = subprocess.run(words, capture_output=True, text=True)
        if result.returncode or not target.exists():
            last = (result.stderr.strip() or result.stdout.strip() or "no message").splitlines()[-1]
            raise UpscalerError(f"{label} failed with status {result.returncode}: {last}; try `{shlex.join(words)}` on a clip")
        return read_video(target)[0]


def gstreamer(method: str, clip: np.ndarray, rate: Fraction) -> np.ndarray:
    """GStreamer's videoscale, in RGB."""
    height, width = (SCALE * n for n in clip.shape[1:3])

    def command(source: Path, target: Path) -> list[str]:
        caps = f"video/x-raw,format=BGRx,width={width},height={height}"
        chain = f"matroskademux ! avdec_ffv1 ! videoconvert ! videoscale method={method} ! {caps} ! avenc_ffv1 ! matroskamux"
        ends = ["filesrc", f"location={source}", "!"], ["!", "filesink", f"location={target}"]
        return ["gst-launch-1.0", "-q", *ends[0], *chain.split(), *ends[1]]

    return run_on_files(f"videoscale:{method}", command, clip, rate)


def videoscale(label: str, method: str) -> Upscaler:
    if not shutil.which("gst-launch-1.0"):
        raise UpscalerError(f"{label} needs gst-launch-1.0, which is missing; run `apt-get install gstreamer1.0-tools`")
    return Upscaler(label, f"videoscale method={method}", lambda clip, rate: gstreamer(method, clip, rate))


def starsr(label: str, arguments: str, program: Path) -> Upscaler:
    """The element, through the program `upscale`, without loss on the way in and out."""
    if not program.is_file():
        raise UpscalerError(f"{label} needs the program {program}, which is missing; run `make build` or give --program")
    options = ["--quiet", "--encoder", "avenc_ffv1", *shlex.split(arguments)]
    folders = [program.parents[1] / "nano"]
    if "--model" in options:
        folders = [Path(options[options.index("--model") + 1])]
    files = (program, *(folder / "bundle.toml" for folder in folders if (folder / "bundle.toml").is_file()))

    def command(source: Path, target: Path) -> list[str]:
        return [str(program), *options, str(source), str(target)]

    words = shlex.join([program.name, *options])
    return Upscaler(label, words, lambda clip, rate: run_on_files(label, command, clip, rate), files)


def bundle(label: str, folder: Path) -> Upscaler:
    """A model bundle in Python; the noise has the seed 0."""
    manifest = folder / "bundle.toml"
    if not manifest.is_file():
        raise UpscalerError(f"{label}: {folder} is no model bundle, as it holds no bundle.toml; name the bundle's folder")
    model = Bundle(folder)

    def run(clip: np.ndarray, _rate: Fraction) -> np.ndarray:
        return np.rint(model.upscale(clip) * 255).astype(np.uint8)

    return Upscaler(label, f"bundle {folder.name}", run, (manifest,))


def shell(label: str, line: str) -> Upscaler:
    if "{input}" not in line or "{output}" not in line:
        raise UpscalerError(f"the command `{line}` names no {{input}} or no {{output}}; write both where the file names go")

    def command(source: Path, target: Path) -> list[str]:
        filled = line.replace("{input}", shlex.quote(str(source))).replace("{output}", shlex.quote(str(target)))
        return ["sh", "-c", filled]

    return Upscaler(label, line, lambda clip, rate: run_on_files(label, command, clip, rate))


def make(text: str, program: Path = PROGRAM) -> Upscaler:
    """The upscaler that `text` names, see HELP."""
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
                raise UpscalerError(f"libswscale has no scaler `{rest}`; choose one of {', '.join(SWSCALE)}")
            return Upscaler(label, f"libswscale {rest}", lambda clip, _rate: swscale(rest, clip))
        case "starsr":
            return starsr(label, rest, program)
        case "bundle" if rest:
            return bundle(label, Path(rest))
        case "command":
            return shell(label, rest)
    known = "bicubic, lanczos, videoscale:METHOD, ffmpeg:SCALER, starsr, bundle:FOLDER or command:LINE"
    raise UpscalerError(f"there is no upscaler {name}; choose {known}")
