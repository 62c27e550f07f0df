# SPDX-License-Identifier: MPL-2.0
"""`starsr-train`: trains nano on photographs and video, or the full network on pairs.

A run can be stopped and resumed at any time: one checkpoint file holds everything, a CSV file
beside it the figures, and a folder beside it sample pictures.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch

from starsr.export.sources import TEXT_ENCODER, VAE, load_text_encoder, load_vae
from starsr.models import weights
from starsr.models.liem import POSITIONS
from starsr.models.nano.network import NANO, Nano, NanoConfig
from starsr.models.nano.weights import load, read
from starsr.models.star.network import STAR, StarConfig
from starsr.models.weights import WeightsError
from starsr.training.loop import OPTIMIZERS, Options, Schedule, Task, TrainingError, run
from starsr.training.losses import SEPARATIONS, DfConfig
from starsr.training.nano import NanoOptions, NanoTask
from starsr.training.star import StarOptions, StarTask, initialise

DESCRIPTION = (
    "Trains nano on a folder of photographs and video, or the full network on pairs. A run can be "
    "stopped and resumed at any time: one checkpoint file holds everything, a CSV file beside it "
    "the figures, and a folder beside it sample pictures."
)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    result = argparse.ArgumentParser(prog="starsr-train", description=DESCRIPTION)
    result.add_argument(
        "network",
        choices=["nano", "star"],
        help="nano from scratch, or the full network from a checkpoint",
    )
    add = result.add_argument_group("run").add_argument
    add(
        "--data",
        type=Path,
        required=True,
        help="nano: folder of photographs and video; star: folder of pairs (gt, lq, text)",
    )
    add("--checkpoint", type=Path, required=True, help="file to save to and to resume from")
    add(
        "--init",
        type=Path,
        help="start of the training; nano: folder of a bundle, or a checkpoint (default: random); "
        "star: checkpoint of VEnhancer or STAR (required)",
    )
    add("--iterations", type=int, default=10000, help="total number (%(default)s)")
    add(
        "--rate",
        type=float,
        help="learning rate: peak of a cycle for nano (8e-4), constant for star (5e-5)",
    )
    add("--optimizer", choices=OPTIMIZERS, help="default: muon for nano, adamw for star")
    add("--batch", type=int, help="clips in a batch (nano 8, star 1)")
    add("--frames", type=int, help="frames of a clip (nano 3, star 32)")
    add("--average", type=float, default=0.999, help="decay of averaged weights (%(default)s)")
    add(
        "--save-every",
        type=int,
        default=200,
        help="iterations between checkpoints, 0: only at the end (%(default)s)",
    )
    add(
        "--sample-every",
        type=int,
        default=500,
        help="iterations between sample pictures, 0: no pictures (%(default)s)",
    )
    add("--workers", type=int, default=1, help="processes that prepare clips (%(default)s)")
    add(
        "--threads",
        type=int,
        default=torch.get_num_threads(),
        help="threads for computing (%(default)s)",
    )
    add(
        "--precision",
        choices=["no", "fp16", "bf16"],
        default="no",
        help="mixed precision (%(default)s)",
    )
    add("--cpu", action="store_true", help="do not use a GPU")
    add("--seed", type=int, default=0, help="seed of all random numbers (%(default)s)")
    add = result.add_argument_group("loss").add_argument
    add("--df", choices=SEPARATIONS, default="direct", help="kind of DF loss (%(default)s)")
    add("--alpha", type=float, default=2.0, help="exponent of c(t) (%(default)s)")
    add(
        "--beta",
        type=float,
        default=1.0,
        help="weight of the DF loss, larger for fidelity (%(default)s)",
    )
    add("--constant-b", action="store_true", help="weigh the DF loss alike at all timesteps")
    add = result.add_argument_group("LIEM").add_argument
    add(
        "--liem",
        choices=["none", "spatial", "temporal", "both"],
        default="both",
        help="attentions that have it (%(default)s)",
    )
    add("--liem-position", choices=POSITIONS, default="i", help="its position (%(default)s)")
    add = result.add_argument_group("nano").add_argument
    add("--side", type=int, default=32, help="side of a crop in low-quality pixels (%(default)s)")
    add("--pool", type=int, default=400, help="clips that crops are taken from (%(default)s)")
    add("--fresh", type=float, default=0.25, help="new clips for each iteration (%(default)s)")
    add(
        "--flicker",
        type=float,
        default=0.2,
        help="weight of the loss on flicker, larger for steadier video (%(default)s)",
    )
    add = result.add_argument_group("star").add_argument
    add("--vae", default=VAE, help="autoencoder: a folder or a hub repository (%(default)s)")
    add(
        "--text-encoder",
        default=TEXT_ENCODER,
        help="text encoder: a file, a folder or a hub repository (%(default)s)",
    )
    add("--height", type=int, default=720, help="of a crop, 16 modulo 64 (%(default)s)")
    add("--width", type=int, default=1280, help="of a crop, a multiple of 64 (%(default)s)")
    add(
        "--null-text",
        type=float,
        default=0.5,
        help="share of clips that are trained without text (%(default)s)",
    )
    return result


def given(**values: Any) -> dict[str, Any]:
    """Return the values that are set."""
    return {name: value for name, value in values.items() if value is not None}


def task_of(
    options: argparse.Namespace, device: torch.device, star_config: StarConfig
) -> Task[Any]:
    """Return the task that the options describe."""
    df = DfConfig(options.df, options.alpha, options.beta, not options.constant_b)
    liem = {
        "liem_position": options.liem_position,
        "spatial_liem": options.liem in ("spatial", "both"),
        "temporal_liem": options.liem in ("temporal", "both"),
    }
    common = given(batch=options.batch, frames=options.frames, workers=options.workers, df=df)
    if options.network == "nano":
        return nano_task(options, device, NanoConfig(**liem), common)
    return star_task(options, device, dataclasses.replace(star_config, **liem), common)


def nano_task(
    options: argparse.Namespace, device: torch.device, config: NanoConfig, common: dict[str, Any]
) -> NanoTask:
    """Return the task of training nano."""
    chosen = NanoOptions(
        **common,
        side=options.side,
        pool=options.pool,
        fresh=options.fresh,
        flicker_weight=options.flicker,
    )
    init = None
    if options.checkpoint.is_file():
        # What it begins with does not matter: `run` loads the checkpoint.
        init = Nano(config)
    elif options.init is not None:
        if config != NANO:
            raise TrainingError(
                "the network that --init names has LIEM at position i in both transformers: leave "
                "out --liem and --liem-position, or --init"
            )
        init = load(options.init) if options.init.is_file() else read(options.init)
    return NanoTask(options.data, config, chosen, options.seed, device, init)


def star_task(
    options: argparse.Namespace, device: torch.device, config: StarConfig, common: dict[str, Any]
) -> StarTask:
    """Return the task of training the full network."""
    if options.init is None:
        raise TrainingError(
            "the full network is trained from a checkpoint: name VEnhancer's or STAR's with --init"
        )
    chosen = StarOptions(
        **common, height=options.height, width=options.width, null_text=options.null_text
    )
    star = initialise(config, weights.read(options.init))
    model, vae_config = load_vae(options.vae)
    frozen = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    tower = load_text_encoder(options.text_encoder)
    return StarTask(options.data, star, frozen, vae_config, tower, chosen, options.seed, device)


def main(arguments: list[str] | None = None, star_config: StarConfig = STAR) -> int:
    """Run the command and return its exit status."""
    options = parser().parse_args(arguments)
    # Imported late because it looks for GPUs.
    from accelerate import Accelerator

    torch.set_num_threads(max(options.threads, 1))
    torch.manual_seed(options.seed)
    nano = options.network == "nano"
    rate = options.rate or (8e-4 if nano else 5e-5)
    how = Options(
        options.checkpoint,
        Schedule(options.iterations, rate, constant=not nano),
        seed=options.seed,
        average=options.average,
        weight_decay=1e-4 if nano else 1e-2,
        optimizer=options.optimizer or ("muon" if nano else "adamw"),
        save_every=options.save_every,
        sample_every=options.sample_every,
    )
    try:
        accelerator = Accelerator(cpu=options.cpu, mixed_precision=options.precision)
        run(task_of(options, accelerator.device, star_config), how, accelerator)
    except (TrainingError, WeightsError, ValueError, OSError) as e:
        print(f"starsr-train: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f"starsr-train: interrupted; the same command continues from {options.checkpoint}",
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
