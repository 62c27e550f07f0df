# SPDX-License-Identifier: MPL-2.0
"""Trains nano on a folder of photographs and video, or the full network on pairs. Stops and resumes at any time: one
checkpoint file holds everything, a CSV file beside it the figures, a folder beside it sample pictures."""

import argparse
import dataclasses
import os
import sys
from pathlib import Path

import torch

from starsr.models.liem import POSITIONS
from starsr.models.nano.weights import load, read as read_bundle
from starsr.models.nano.network import NanoConfig
from starsr.models.star.network import StarConfig
from starsr.export.sources import TEXT_ENCODER, VAE, load_text_encoder, load_vae
from starsr.models.weights import WeightsError, read
from starsr.training.losses import SEPARATIONS, DfConfig
from starsr.training.loop import OPTIMIZERS, Options, Schedule, TrainingError, run
from starsr.training.nano import NanoOptions, NanoTask
from starsr.training.star import StarOptions, StarTask, initialise


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="starsr-train", description=__doc__)
    result.add_argument("network", choices=["nano", "star"], help="nano from scratch, or the full network from a checkpoint")
    add = result.add_argument_group("run").add_argument
    add(
        "--data", type=Path, required=True, help="nano: folder with photographs and video; star: folder of pairs (gt, lq, text)"
    )
    add("--checkpoint", type=Path, required=True, help="file to save to and to resume from")
    add(
        "--init",
        type=Path,
        help="to start from; nano: folder of a bundle, or a checkpoint (none); star: checkpoint of VEnhancer or STAR (required)",
    )
    add("--iterations", type=int, default=10000, help="in all (%(default)s)")
    add("--rate", type=float, help="learning rate: peak of a cycle for nano (8e-4), constant for star (5e-5)")
    add("--optimizer", choices=OPTIMIZERS, help="nano: muon; star: adamw")
    add("--batch", type=int, help="clips in a batch (nano 8, star 1)")
    add("--frames", type=int, help="frames of a clip (nano 3, star 32)")
    add("--average", type=float, default=0.999, help="decay of the averaged weights (%(default)s)")
    add("--save-every", type=int, default=200, help="iterations between checkpoints, 0: only at the end (%(default)s)")
    add("--sample-every", type=int, default=500, help="iterations between sample pictures, 0: none (%(default)s)")
    add("--workers", type=int, default=1, help="processes that make or read clips (%(default)s)")
    add("--threads", type=int, default=os.cpu_count(), help="threads to compute with (%(default)s)")
    add("--precision", choices=["no", "fp16", "bf16"], default="no", help="mixed precision (%(default)s)")
    add("--cpu", action="store_true", help="do not use a GPU")
    add("--seed", type=int, default=0)
    add = result.add_argument_group("loss").add_argument
    add("--df", choices=SEPARATIONS, default="direct", help="kind of the DF loss (%(default)s)")
    add("--alpha", type=float, default=2.0, help="exponent of c(t) (%(default)s)")
    add("--beta", type=float, default=1.0, help="weight of the DF loss, larger for fidelity (%(default)s)")
    add("--constant-b", action="store_true", help="the DF loss weighs the same at all timesteps")
    add = result.add_argument_group("LIEM").add_argument
    add("--liem", choices=["none", "spatial", "temporal", "both"], default="both", help="(%(default)s)")
    add("--liem-position", choices=POSITIONS, default="i", help="(%(default)s)")
    add = result.add_argument_group("nano").add_argument
    add("--side", type=int, default=32, help="side of a crop in low-resolution pixels (%(default)s)")
    add("--pool", type=int, default=400, help="clips kept for crops (%(default)s)")
    add("--fresh", type=float, default=0.25, help="new clips for each iteration (%(default)s)")
    add("--flicker", type=float, default=0.2, help="weight of the loss on flicker, larger for steadier video (%(default)s)")
    add = result.add_argument_group("star").add_argument
    add("--vae", default=VAE, help="autoencoder: a folder or a repository of the hub (%(default)s)")
    add("--text-encoder", default=TEXT_ENCODER, help="a file, folder or repository (%(default)s)")
    add("--height", type=int, default=720, help="of a crop, 16 modulo 64 (%(default)s)")
    add("--width", type=int, default=1280, help="of a crop, a multiple of 64 (%(default)s)")
    add("--null-text", type=float, default=0.5, help="share of the clips trained without text (%(default)s)")
    return result


def given(**values) -> dict:
    """The values that are set."""
    return {name: value for name, value in values.items() if value is not None}


def task_of(options: argparse.Namespace, device: torch.device, star_config: StarConfig):
    """The task that the options describe."""
    df = DfConfig(options.df, options.alpha, options.beta, not options.constant_b)
    liem = {
        "liem_position": options.liem_position,
        "spatial_liem": options.liem in ("spatial", "both"),
        "temporal_liem": options.liem in ("temporal", "both"),
    }
    common = given(batch=options.batch, frames=options.frames, workers=options.workers, df=df)
    if options.network == "nano":
        own = {"side": options.side, "pool": options.pool, "fresh": options.fresh, "flicker_weight": options.flicker}
        chosen = NanoOptions(**common, **own)
        if options.init is not None and NanoConfig(**liem) != NanoConfig():
            raise TrainingError("what --init names has LIEM at position i in both transformers: leave --liem out, or --init")
        init = None
        if options.init is not None:
            init = load(options.init) if options.init.is_file() else read_bundle(options.init)
        return NanoTask(options.data, NanoConfig(**liem), chosen, options.seed, device, init)
    if options.init is None:
        raise TrainingError("the full network is trained from a checkpoint: name VEnhancer's or STAR's with --init")
    sizes = {"height": options.height, "width": options.width, "null_text": options.null_text}
    chosen = StarOptions(**common, **sizes)
    star = initialise(dataclasses.replace(star_config, **liem), read(options.init))
    model, vae_config = load_vae(options.vae)
    frozen = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    tower = load_text_encoder(options.text_encoder)
    return StarTask(options.data, star, frozen, vae_config, tower, chosen, options.seed, device)


def main(arguments: list[str] | None = None, star_config: StarConfig = StarConfig()) -> int:
    """Runs the command and gives its exit status."""
    options = parser().parse_args(arguments)
    # Imported late: it looks for GPUs.
    from accelerate import Accelerator

    torch.set_num_threads(options.threads or 1)
    torch.manual_seed(options.seed)
    nano = options.network == "nano"
    schedule = Schedule(options.iterations, options.rate or (8e-4 if nano else 5e-5), constant=not nano)
    how = Options(
        options.checkpoint,
        schedule,
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
        print(f"starsr-train: interrupted; the same command goes on from {options.checkpoint}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
