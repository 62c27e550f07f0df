# SPDX-License-Identifier: MPL-2.0
"""The options of `starsr-distill`."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from starsr.training.moving import MIX
from starsr.training.supply import CLEAN


@dataclass(frozen=True)
class Options:
    """Settings of a run.

    `fidelity`, `detail` and `contrast` are the minutes of the three stages; `batches`, `sides` and
    `rates` have a value for the first stage and one for the others: clips of a batch, the side of a
    crop in low-resolution pixels, and the learning rate. A share is the size of a loss's gradient
    at the output, in units of that of the pixels' error, after the first stage. `judged_by_loss`
    and `steady_by_loss` are factors of such gradients, for clips that lost nothing but pixels and
    for clips that lost most, see `severity`.
    """

    media: Path
    output: Path
    features: Path | None = None
    start: Path | None = None
    fidelity: float = 4.0
    detail: float = 4.0
    contrast: float = 0.0
    batches: tuple[int, int] = (64, 12)
    sides: tuple[int, int] = (48, 40)
    frames: int = 6
    clip_side: int = 64
    clip_frames: int = 8
    pool: int = 2500
    clips: int = 0
    heavy: float = MIX["heavy"]
    clean: float = CLEAN
    workers: int = 14
    rates: tuple[float, float] = (1.5e-3, 3e-4)
    seed: int = 1
    frequency_weight: float = 4.0
    steady_weight: float = 0.1
    grid_weight: float = 10.0
    perceptual_share: float = 1.2
    realism_share: float = 0.5
    steady_share: float = 0.6
    judged_frames: int = 4
    judged_by_loss: tuple[float, float] = (1.0, 1.0)
    steady_by_loss: tuple[float, float] = (1.0, 1.0)
    contrast_gain: float = 4.0
    colour_share: float = 0.5
    grid_share: float = 0.1
    save_every: float = 60.0
    precision: str = "auto"
    compile: bool = False


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    result = argparse.ArgumentParser(
        prog="starsr-distill",
        description="Trains the student of nano on photographs and video for fidelity, then for "
        "detail and, if asked to, for contrast, each for some minutes.",
    )
    add = result.add_argument
    add(
        "--data",
        dest="media",
        type=Path,
        required=True,
        help="folder with photographs, and perhaps video",
    )
    add(
        "--output",
        type=Path,
        required=True,
        help="folder of checkpoints, weights and figures; a run that is in it goes on",
    )
    add(
        "--features",
        type=Path,
        help="perceptual network, as `python -m starsr.training.perceptual` writes it",
    )
    add(
        "--start",
        type=Path,
        metavar="FOLDER",
        help="begin with the weights in this folder: fidelity.safetensors, or, with --fidelity 0, "
        "detail.safetensors (without the second stage, too, with --detail 0)",
    )
    defaults = Options.__dataclass_fields__
    for name, kind, text in (
        ("fidelity", float, "minutes of the first stage"),
        ("detail", float, "minutes of the second stage"),
        ("contrast", float, "minutes of the third stage"),
        ("contrast_gain", float, "how much contrast the third stage adds where most is lost"),
        ("frames", int, "frames of a crop"),
        ("clip_side", int, "side of a clip in low-resolution pixels"),
        ("pool", int, "clips kept for crops"),
        ("clips", int, "clips that are made in all; 0: no limit"),
        ("heavy", float, "share of clips with heavy degradation"),
        ("clean", float, "share of crops whose low frames are a clean shrink"),
        ("workers", int, "processes that make clips"),
        ("seed", int, "seed"),
        ("steady_weight", float, "weight of steadiness in the first stage"),
        ("perceptual_share", float, "size of the perceptual gradient"),
        ("realism_share", float, "size of the discriminators' gradient"),
        ("steady_share", float, "size of the gradient of steadiness"),
        ("judged_frames", int, "frames of a crop that the perceptual network sees"),
        ("colour_share", float, "size of the gradient of the colour of large areas"),
        ("grid_share", float, "size of the gradient of grids"),
        ("save_every", float, "seconds between checkpoints"),
    ):
        option = "--" + name.replace("_", "-")
        add(option, type=kind, default=defaults[name].default, help=f"{text} (%(default)s)")
    for name, kind, text in (
        ("batches", int, "clips of a batch"),
        ("sides", int, "side of a crop in low-resolution pixels, a multiple of 8"),
        ("rates", float, "learning rates"),
    ):
        add(
            f"--{name}",
            type=kind,
            nargs=2,
            default=defaults[name].default,
            metavar=("ONE", "TWO"),
            help=f"{text} (%(default)s)",
        )
    for name, text in (
        ("judged_by_loss", "the perceptual and the discriminators' gradient"),
        ("steady_by_loss", "the gradient of steadiness"),
    ):
        add(
            "--" + name.replace("_", "-"),
            type=float,
            nargs=2,
            default=defaults[name].default,
            metavar=("NOTHING", "MOST"),
            help=f"factors of {text} on clips that lost nothing but pixels, and that lost most "
            "(%(default)s)",
        )
    add(
        "--precision",
        choices=("auto", "bf16", "fp32"),
        default="auto",
        help="what networks compute in; auto: bf16 on GPUs and processors with AMX (%(default)s)",
    )
    add("--compile", action="store_true", help="compile the perceptual network")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=device, help="cpu or cuda (%(default)s)")
    return result


def options_of(arguments: list[str] | None) -> tuple[Options, torch.device]:
    """Return the settings of a command line, or of the program's, and the device."""
    values = vars(parser().parse_args(arguments))
    device = torch.device(values.pop("device"))
    values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return Options(**values), device
