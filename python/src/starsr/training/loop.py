# SPDX-License-Identifier: MPL-2.0
"""The training loop, the same for every network.

All that an iteration does is a function of the seed, its number and the weights before it, so a run that was killed and resumed
goes on as if nothing had happened.
"""

import csv
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from starsr.models.weights import MISFITS, reason
from starsr.training.checkpoint import Average, save, trained
from starsr.training.muon import Muon


def adamw(module: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW for the trained parameters of `module`."""
    return torch.optim.AdamW(trained(module).values(), lr=lr, betas=(0.9, 0.999), weight_decay=weight_decay)


#: Optimizers by name, from a module, a learning rate and a weight decay.
OPTIMIZERS = {"adamw": adamw, "muon": Muon}


class TrainingError(Exception):
    """Training cannot start or go on; the message says why and what to do."""


class Task(Protocol):
    """What is trained: a module, and how a batch of an iteration and its loss come about."""

    module: nn.Module

    def batches(self, start: int, end: int) -> Iterator:
        """Batches of the iterations `start..end`."""

    def loss(self, module: nn.Module, batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and figures for the log, through `module`."""

    def sample(self, module: nn.Module) -> Tensor | None:
        """A picture `[3,H,W]` in [0,1] that shows how far the module is."""


@dataclass(frozen=True)
class Schedule:
    """Iterations in all, peak learning rate, and whether it is constant (as in the paper) or one cycle: a linear warm-up over a
    twentieth, then a cosine to a hundredth."""

    iterations: int
    rate: float
    constant: bool = False

    def rate_at(self, iteration: int) -> float:
        """Learning rate of an iteration."""
        progress = iteration / max(self.iterations, 1)
        if self.constant:
            return self.rate
        if progress < 0.05:
            return self.rate * (0.1 + 0.9 * progress / 0.05)
        return self.rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (progress - 0.05) / 0.95)))


@dataclass(frozen=True)
class Options:
    """Where the run is kept and how often it is looked at, in iterations; 0 is never."""

    checkpoint: Path
    schedule: Schedule
    seed: int = 0
    average: float = 0.999
    weight_decay: float = 1e-4
    optimizer: str = "adamw"
    save_every: int = 200
    log_every: int = 20
    sample_every: int = 500
    max_norm: float = 1.0


class Log:
    """Figures as a CSV file beside the checkpoint. Rows from `iteration` on, which a killed run left, are dropped."""

    def __init__(self, path: Path, iteration: int) -> None:
        self.path, self.rows = path, []
        if path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["iteration"]) <= iteration]

    def add(self, row: dict) -> None:
        self.rows.append({name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()})
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        with self.path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)


def generator_of(seed: int, iteration: int) -> torch.Generator:
    """The source of an iteration's random numbers."""
    return torch.Generator().manual_seed((seed << 32) + iteration)


def run(task: Task, options: Options, accelerator: Accelerator, report: Callable[[str], None] = tqdm.write) -> None:
    """Trains to the end, from the checkpoint where there is one."""
    torch.manual_seed(options.seed)
    module = task.module
    parameters = list(trained(module).values())
    if not parameters:
        raise TrainingError("the module has no parameter to train")
    average = Average(module, options.average)
    optimizer = OPTIMIZERS[options.optimizer](module, options.schedule.rate, options.weight_decay)
    iteration = resume(options.checkpoint, module, average, optimizer) if options.checkpoint.is_file() else 0
    prepared, optimizer = accelerator.prepare(module, optimizer)
    average.weights = {name: w.to(accelerator.device) for name, w in average.weights.items()}
    first = accelerator.is_main_process
    log = Log(options.checkpoint.with_suffix(".csv"), iteration) if first else None

    def keep() -> None:
        if first:
            save(options.checkpoint, state_of(module, average, optimizer, iteration))

    end = options.schedule.iterations
    bar = tqdm(total=end, initial=iteration, unit="it", disable=None if first else True)
    for batch in task.batches(iteration, end):
        for group in optimizer.param_groups:
            group["lr"] = options.schedule.rate_at(iteration)
        with accelerator.autocast():
            loss, figures = task.loss(prepared, batch, generator_of(options.seed + accelerator.process_index, iteration))
        optimizer.zero_grad(set_to_none=True)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(parameters, options.max_norm)
        # A gradient that overflowed counts as none; to look whether it did would be to wait for the device.
        for p in parameters:
            if p.grad is not None:
                p.grad.nan_to_num_(0.0, 0.0, 0.0)
        optimizer.step()
        iteration += 1
        average.update(module, iteration)
        bar.update()
        if first and options.log_every and (iteration % options.log_every == 0 or iteration == end):
            row = {
                "iteration": iteration,
                "loss": float(loss.detach()),
                "norm": float(norm),
                **{k: v.item() for k, v in figures.items()},
            }
            log.add(row)
            bar.set_postfix({name: f"{value:.4g}" for name, value in row.items() if name != "iteration"})
        if first and options.sample_every and (iteration % options.sample_every == 0 or iteration == end):
            show(task, module, average, options.checkpoint.with_suffix(".samples") / f"{iteration:06}.png")
        if options.save_every and iteration % options.save_every == 0:
            keep()
    keep()
    bar.close()
    if first:
        report(f"{options.checkpoint} holds iteration {iteration} of {end}")


def state_of(module: nn.Module, average: Average, optimizer, iteration: int) -> dict:
    """What a checkpoint holds: buffers and trained weights of the module, the average, the optimizer."""
    weights = {name: p.detach() for name, p in trained(module).items()}
    return {
        "iteration": iteration,
        "model": {**dict(module.named_buffers()), **weights},
        "average": {**dict(module.named_buffers()), **average.weights},
        "optimizer": optimizer.state_dict(),
    }


def resume(path: Path, module: nn.Module, average: Average, optimizer) -> int:
    """Loads a checkpoint and gives its iteration. Raises `TrainingError`."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        unknown = module.load_state_dict(state["model"], strict=False).unexpected_keys
        missing = trained(module).keys() - state["model"].keys()
        if unknown or missing:
            raise KeyError(f"{len(unknown)} unknown and {len(missing)} missing weights")
        average.weights = {name: state["average"][name] for name in average.weights}
        optimizer.load_state_dict(state["optimizer"])
        return int(state["iteration"])
    except (*MISFITS, OSError) as e:
        raise TrainingError(
            f"{path} is no checkpoint of this network ({reason(e)}): name another file, or remove it to begin anew"
        ) from e


@torch.no_grad()
def show(task: Task, module: nn.Module, average: Average, path: Path) -> None:
    """Writes a sample picture of the averaged weights."""
    average.swap(module)
    try:
        picture = task.sample(module)
    finally:
        average.swap(module)
    if picture is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (picture.float().clamp(0, 1) * 255).round().to(torch.uint8)
    Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy()).save(path)
