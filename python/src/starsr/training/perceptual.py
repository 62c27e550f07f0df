# SPDX-License-Identifier: MPL-2.0
"""Perceptual distance: VGG16 features with smoothed pooling, weighted per channel.

It is ST-LPIPS (A. Ghildyal and F. Liu, ECCV 2022) and serves training only. Its weights come from
the package `stlpips-pytorch` and are part of no bundle.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

#: Channels of the convolutions between poolings.
GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class Layer(nn.Conv2d):
    """A 3x3 convolution and its activation."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map features `[N,inputs,h,w]` to `[N,outputs,h,w]`."""
        return F.relu(super().forward(x))


class Perceptual(nn.Module):
    """Distance `[N]` between pictures `[N,3,H,W]` in [0,1].

    It is the squared difference of normalised features, weighted and averaged over places, and
    summed over five depths.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        inputs, groups = 3, []
        for widths in GROUPS:
            sizes = zip((inputs, *widths), widths, strict=False)
            groups.append(nn.Sequential(*(Layer(before, after) for before, after in sizes)))
            inputs = widths[-1]
        self.groups = nn.ModuleList(groups)
        self.weights = nn.ParameterList(nn.Parameter(torch.ones(widths[-1])) for widths in GROUPS)
        shift, scale = [-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]
        for name, values in (("shift", shift), ("scale", scale)):
            self.register_buffer(name, torch.tensor(values).reshape(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)

    def features(self, pictures: Tensor) -> list[Tensor]:
        """Return the features of pictures `[N,3,H,W]` at five depths."""
        x, found = (pictures * 2 - 1 - self.shift) / self.scale, []
        for index, group in enumerate(self.groups):
            if index:
                # The averages make a binomial filter of three taps, at every second place; borders
                # are not mirrored.
                x = F.avg_pool2d(F.avg_pool2d(F.max_pool2d(x, 2, 1), 2, 1), 2, 2)
            x = group(x)
            found.append(x)
        return found

    def forward(self, pictures: Tensor, truth: Tensor) -> Tensor:
        """Return the distance `[N]` of pictures from the truth. Only `pictures` get a gradient."""
        with torch.no_grad():
            wanted = [normalised(f) for f in self.features(truth)]
        total = pictures.new_zeros(len(pictures), dtype=torch.float32)
        for ours, theirs, weights in zip(
            self.features(pictures), wanted, self.weights, strict=True
        ):
            difference = (normalised(ours) - theirs).square()
            total = total + (difference * weights[:, None, None]).sum(1).mean((1, 2))
        return total


def normalised(features: Tensor) -> Tensor:
    """Scale the features of each place to a vector of length 1, in 32 bits."""
    features = features.float()
    return features / (features.square().sum(1, keepdim=True) + 1e-10).sqrt()


def from_package(path: Path) -> dict[str, Tensor]:
    """Read the state of `Perceptual` from `vgg_shift_tolerant.pth` of `stlpips-pytorch`."""
    weights = torch.load(path, map_location="cpu", weights_only=True)
    convolutions = sorted(
        {
            name.rsplit(".", 1)[0]
            for name in weights
            if name.startswith("net.slice") and name.endswith(".bias")
        },
        key=lambda name: [int(part) for part in name.removeprefix("net.slice").split(".")],
    )
    state, names = {}, iter(convolutions)
    for group, widths in enumerate(GROUPS):
        for layer in range(len(widths)):
            source = next(names)
            for kind in ("weight", "bias"):
                state[f"groups.{group}.{layer}.{kind}"] = weights[f"{source}.{kind}"].float()
        state[f"weights.{group}"] = weights[f"lin{group}.model.1.weight"].float().flatten()
    return state


def packed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Store the kernels of a state in 8 bits with one scale for each output channel.

    The result is about a quarter as large.
    """
    result = {}
    for name, value in state.items():
        if value.ndim < 2:
            result[name] = value
            continue
        scale = value.abs().amax((1, 2, 3)) / 127
        result[name] = (value / scale[:, None, None, None]).round().to(torch.int8)
        result[f"{name}.scale"] = scale
    return result


def load(path: Path, device: torch.device) -> Perceptual:
    """Read a state that `packed` made."""
    state = load_file(str(path))
    names = [name for name in state if name.endswith(".scale")]
    scales = {name.removesuffix(".scale"): state.pop(name) for name in names}
    for name, scale in scales.items():
        state[name] = state[name].float() * scale[:, None, None, None]
    network = Perceptual()
    network.load_state_dict(state)
    return network.to(device=device, memory_format=torch.channels_last).eval()


def main(arguments: list[str]) -> int:
    """Write the packed state of the package's weights and return the exit status."""
    if len(arguments) != 2:
        print(
            "usage: python -m starsr.training.perceptual vgg_shift_tolerant.pth OUTPUT",
            file=sys.stderr,
        )
        return 2
    save_file(packed(from_package(Path(arguments[0]))), arguments[1])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
