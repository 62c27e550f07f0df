# SPDX-License-Identifier: MPL-2.0
"""The student of nano: one network that upscales frames four times in one evaluation.

All convolutions work at the size of the input or below it. Each scale mixes neighbouring frames.
The output is a residual on the bicubic upscale, written as sixteen pixels for each pixel of the
input.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from starsr.data.media import SCALE
from starsr.data.resize import bicubic_matrix

#: The sides of the input are multiples of this.
MULTIPLE = 4
#: Slope of the activations below zero.
SLOPE = 0.1


@dataclass(frozen=True)
class StudentConfig:
    """Sizes of the network.

    `widths` and `blocks` are the channels and the residual blocks at full, half and quarter size of
    the input. The blocks at full size follow those at the coarser scales; those at half size are
    split evenly before and after the quarter scale. The first layer sees `reach` frames on either
    side.
    """

    widths: tuple[int, int, int] = (48, 96, 128)
    blocks: tuple[int, int, int] = (2, 2, 3)
    reach: int = 2


STUDENT = StudentConfig()


def bicubic_kernel() -> Tensor:
    """Return the weights `[48,3,5,5]` of a convolution that upscales by bicubic interpolation.

    The input is padded by 2 pixels, and the output goes through a pixel shuffle.
    """
    rows = bicubic_matrix(5, SCALE)[2 * SCALE : 3 * SCALE]
    phases = torch.einsum("ai,bj->abij", rows, rows).flatten(0, 1)
    return torch.einsum("oc,pij->opcij", torch.eye(3), phases).flatten(0, 1).contiguous()


def neighbourhood(features: Tensor, clips: int, reach: int = 1) -> Tensor:
    """Stack the features `[clips*F,C,h,w]` of each frame with those of the frames around it.

    Returns `[clips*F,(2*reach+1)*C,h,w]` in the order of time. The frames at the ends of a clip
    are repeated beyond them.
    """
    # Copies between memory layouts would cost more than the convolutions.
    last = features.is_contiguous(memory_format=torch.channels_last) and features.shape[1] > 1
    frames = (features.permute(0, 2, 3, 1) if last else features).unflatten(0, (clips, -1))
    for _ in range(reach):
        frames = torch.cat([frames[:, :1], frames, frames[:, -1:]], 1)
    count = frames.shape[1] - 2 * reach
    shifted = [frames[:, start : start + count] for start in range(2 * reach + 1)]
    around = torch.cat(shifted, -1 if last else 2).flatten(0, 1)
    return around.permute(0, 3, 1, 2) if last else around


def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    """Return a convolution that keeps the size, or divides it by the stride."""
    return nn.Conv2d(inputs, outputs, size, stride, size // 2 if stride == 1 else 0)


def to_zero(layer: nn.Conv2d) -> None:
    """Set weights and bias to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class Block(nn.Module):
    """Two convolutions beside an identity. The second one starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = conv(width, width), conv(width, width)
        to_zero(self.second)

    def forward(self, x: Tensor) -> Tensor:
        """Map features `[N,C,h,w]` to features of the same shape."""
        return F.leaky_relu(x + self.second(F.leaky_relu(self.first(x), SLOPE)), SLOPE)


class Mix(nn.Module):
    """Adds to each frame a projection of the frames before, at and after it. It starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = conv(3 * width, width, 1)
        to_zero(self.project)

    def forward(self, x: Tensor, clips: int) -> Tensor:
        """Map features `[clips*F,C,h,w]` to features of the same shape."""
        mixed: Tensor = self.project(neighbourhood(x, clips))
        return x + mixed


class Stage(nn.Module):
    """Blocks at one scale. A mix of frames precedes each block."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.mixes = nn.ModuleList(Mix(width) for _ in range(count))
        self.blocks = nn.ModuleList(Block(width) for _ in range(count))

    def forward(self, x: Tensor, clips: int) -> Tensor:
        """Map features `[clips*F,C,h,w]` to features of the same shape."""
        for mix, block in zip(self.mixes, self.blocks, strict=True):
            x = block(mix(x, clips))
        return x


class Student(nn.Module):
    """Frames `[N,F,3,h,w]` in [0,1] to `[N,F,3,4h,4w]`, which may overshoot.

    The sides are multiples of `MULTIPLE`. An untrained network is the bicubic upscale.
    """

    enlarge: Tensor

    def __init__(self, config: StudentConfig = STUDENT) -> None:
        super().__init__()
        self.config = config
        fine, half, quarter = config.widths
        fine_blocks, half_blocks, quarter_blocks = config.blocks
        self.enter, self.widen = conv(3 * (2 * config.reach + 1), fine), conv(fine, fine)
        self.down1, self.down2 = conv(fine, half, 2, 2), conv(half, quarter, 2, 2)
        self.before = Stage(half, half_blocks // 2)
        self.middle = Stage(quarter, quarter_blocks)
        self.after = Stage(half, half_blocks - half_blocks // 2)
        self.up2, self.up1 = conv(quarter, half, 1), conv(half, fine, 1)
        self.finish = nn.Sequential(*(Block(fine) for _ in range(fine_blocks)))
        self.leave = conv(fine, 3 * SCALE**2)
        to_zero(self.leave)
        self.register_buffer("enlarge", bicubic_kernel(), persistent=False)

    def forward(self, low: Tensor) -> Tensor:
        """Upscale a batch of clips `[N,F,3,h,w]` to `[N,F,3,4h,4w]`."""
        clips, frames = low.shape[:2]
        return self.upscale(low.flatten(0, 1), clips).unflatten(0, (clips, frames))

    def upscale(self, low: Tensor, clips: int = 1) -> Tensor:
        """Upscale the frames `[clips*F,3,h,w]` of some clips to `[clips*F,3,4h,4w]`."""
        fine = F.leaky_relu(self.enter(neighbourhood(low, clips, self.config.reach)), SLOPE)
        fine = F.leaky_relu(self.widen(fine), SLOPE)
        half = self.before(F.leaky_relu(self.down1(fine), SLOPE), clips)
        quarter = self.middle(F.leaky_relu(self.down2(half), SLOPE), clips)
        half = self.after(half + F.interpolate(self.up2(quarter), scale_factor=2.0), clips)
        fine = self.finish(fine + F.interpolate(self.up1(half), scale_factor=2.0))
        with torch.autocast(low.device.type, enabled=False):
            plain = self.bicubic_phases(low)
        return F.pixel_shuffle(plain + self.leave(fine).to(plain.dtype), SCALE)

    def bicubic_phases(self, low: Tensor) -> Tensor:
        """Return the bicubic upscale of `[N,3,h,w]` before its pixel shuffle, `[N,48,h,w]`."""
        return F.conv2d(F.pad(low, (2, 2, 2, 2), mode="replicate"), self.enlarge)


def operations(config: StudentConfig, height: int, width: int) -> int:
    """Count the floating-point operations of the convolutions for one frame.

    The input has `height` x `width` pixels. A product and its sum are two operations.
    """
    student, total = Student(config), 0

    def count(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d)
        total += 2 * output.shape[2] * output.shape[3] * module.weight.numel()

    for module in student.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        student(torch.zeros(1, 1, 3, height, width))
    return total + 2 * height * width * student.enlarge.numel()


def save(path: Path, student: Student, note: Mapping[str, str] | None = None) -> None:
    """Write the weights in half precision, with the configuration and `note` as metadata."""
    weights = {
        name: w.detach().half().cpu().contiguous() for name, w in student.state_dict().items()
    }
    config = {
        name: ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for name, value in asdict(student.config).items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, str(path), config | dict(note or {}))


def load(path: Path) -> Student:
    """Return the student whose weights `save` wrote. Raises `ValueError`."""
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
        (fine, half, quarter), blocks = (
            [int(n) for n in metadata[name].split(",")] for name in ("widths", "blocks")
        )
        first, second, third = blocks
        widths = (fine, half, quarter)
        student = Student(StudentConfig(widths, (first, second, third), int(metadata["reach"])))
        student.load_state_dict({name: w.float() for name, w in load_file(str(path)).items()})
    except (KeyError, ValueError, RuntimeError, SafetensorError) as e:
        raise ValueError(f"{path} holds no weights of a student ({e}): name another file") from e
    return student.eval()


def blend(fidelity: Student, detail: Student, share: float) -> Student:
    """Interpolate linearly between the weights of two students.

    `share` (0 to 1) is that of `detail`. Raises `ValueError` if their configurations differ.
    """
    if fidelity.config != detail.config:
        raise ValueError(
            "the two students differ in their configuration; blend two of one training"
        )
    result = Student(fidelity.config)
    first, second = fidelity.state_dict(), detail.state_dict()
    result.load_state_dict({name: torch.lerp(w, second[name], share) for name, w in first.items()})
    return result.eval()
