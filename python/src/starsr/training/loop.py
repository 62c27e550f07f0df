# SPDX-License-Identifier: MPL-2.0
"""The training loop, the same for every network.

Each iteration is a function of the seed, its number and the weights before it. A run that was
killed and resumed therefore ends with the same weights as one that was not.
"""

import csv
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from starsr.models.weights import MISFITS, reason
from starsr.training.checkpoint import Average, save, trained
from starsr.training.muon import Muon


def adamw(module: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW for the trained parameters of `module`."""
    parameters = trained(module).values()
    return torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.999), weight_decay=weight_decay)


#: Optimizers by name; each takes a module, a learning rate and a weight decay.
OPTIMIZERS: dict[str, Callable[[nn.Module, float, float], torch.optim.AdamW]] = {
    "adamw": adamw,
    "muon": Muon,
}


class TrainingError(Exception):
    """Training cannot start or continue. The message says why and what to do."""


B = TypeVar("B")


class Task(Protocol[B]):
    """A module to train, its batches `B` and their loss."""

    module: nn.Module

    def batches(self, start: int, end: int) -> Iterator[B]:
        """Yield the batches of iterations `start` to `end` (exclusive)."""
        ...

    def loss(
        self, module: nn.Module, batch: B, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch through `module`, and figures for the log."""
        ...

    def sample(self, module: nn.Module) -> Tensor | None:
        """Return a picture `[3,H,W]` in [0,1] that shows the progress of training, if any."""
        ...


@dataclass(frozen=True)
class Schedule:
    """Number of iterations and learning rate.

    The rate is constant, as in the paper, or follows one cycle with the peak `rate`: a linear
    warm-up over a twentieth of the iterations, then a cosine to a hundredth of the peak.
    """

    iterations: int
    rate: float
    constant: bool = False

    def rate_at(self, iteration: int) -> float:
        """Return the learning rate of an iteration."""
        progress = iteration / max(self.iterations, 1)
        if self.constant:
            return self.rate
        if progress < 0.05:
            return self.rate * (0.1 + 0.9 * progress / 0.05)
        cosine = 0.5 * (1 + math.cos(math.pi * (progress - 0.05) / 0.95))
        return self.rate * (0.01 + 0.99 * cosine)


@dataclass(frozen=True)
class Options:
    """Settings of a run. `average` is the decay of the averaged weights.

    `save_every`, `log_every` and `sample_every` count iterations; 0 means never, except that the
    end is always saved.
    """

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
    """Figures in a CSV file. Rows after `iteration`, which a killed run left, are dropped."""

    def __init__(self, path: Path, iteration: int) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                rows = csv.DictReader(file)
                self.rows = [row for row in rows if int(row["iteration"]) <= iteration]

    def add(self, row: dict[str, float]) -> None:
        """Add a row and write the file."""
        self.rows.append(
            {name: f"{v:.6g}" if isinstance(v, float) else v for name, v in row.items()}
        )
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        with self.path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)


def generator_of(seed: int, iteration: int) -> torch.Generator:
    """Return the source of an iteration's random numbers."""
    return torch.Generator().manual_seed((seed << 32) + iteration)


def run(
    task: Task[Any],
    options: Options,
    accelerator: Accelerator,
    report: Callable[[str], object] = tqdm.write,
) -> None:
    """Train to the end, from the checkpoint if there is one. Raises `TrainingError`."""
    torch.manual_seed(options.seed)
    module = task.module
    parameters = list(trained(module).values())
    if not parameters:
        raise TrainingError("the module has no parameter to train")
    average = Average(module, options.average)
    make = OPTIMIZERS[options.optimizer]
    optimizer: torch.optim.Optimizer = make(module, options.schedule.rate, options.weight_decay)
    iteration = 0
    if options.checkpoint.is_file():
        iteration = resume(options.checkpoint, module, average, optimizer)
    prepared, optimizer = accelerator.prepare(module, optimizer)
    average.weights = {name: w.to(accelerator.device) for name, w in average.weights.items()}
    first = accelerator.is_main_process
    log = Log(options.checkpoint.with_suffix(".csv"), iteration) if first else None

    def keep() -> None:
        if first:
            save(options.checkpoint, state_of(module, average, optimizer, iteration))

    end = options.schedule.iterations

    def due(every: int) -> bool:
        return first and every > 0 and (iteration % every == 0 or iteration == end)

    bar = tqdm(total=end, initial=iteration, unit="it", disable=None if first else True)
    for batch in task.batches(iteration, end):
        for group in optimizer.param_groups:
            group["lr"] = options.schedule.rate_at(iteration)
        with accelerator.autocast():
            generator = generator_of(options.seed + accelerator.process_index, iteration)
            loss, figures = task.loss(prepared, batch, generator)
        optimizer.zero_grad(set_to_none=True)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(parameters, options.max_norm)
        # A gradient that overflowed counts as zero. Checking for it would wait for the device.
        for p in parameters:
            if p.grad is not None:
                p.grad.nan_to_num_(0.0, 0.0, 0.0)
        optimizer.step()
        iteration += 1
        average.update(module, iteration)
        bar.update()
        if log is not None and due(options.log_every):
            values = {"loss": float(loss.detach()), "norm": float(norm)}
            values |= {name: float(value) for name, value in figures.items()}
            log.add({"iteration": iteration, **values})
            bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()})
        if due(options.sample_every):
            pictures = options.checkpoint.with_suffix(".samples")
            show(task, module, average, pictures / f"{iteration:06}.png")
        if options.save_every and iteration % options.save_every == 0:
            keep()
    keep()
    bar.close()
    if first:
        report(f"{options.checkpoint} holds iteration {iteration} of {end}")


def state_of(
    module: nn.Module, average: Average, optimizer: torch.optim.Optimizer, iteration: int
) -> dict[str, Any]:
    """Return the contents of a checkpoint.

    They are the buffers and trained weights of the module, the average and the optimizer's state.
    """
    weights = {name: p.detach() for name, p in trained(module).items()}
    return {
        "iteration": iteration,
        "model": {**dict(module.named_buffers()), **weights},
        "average": {**dict(module.named_buffers()), **average.weights},
        "optimizer": optimizer.state_dict(),
    }


def resume(
    path: Path, module: nn.Module, average: Average, optimizer: torch.optim.Optimizer
) -> int:
    """Load a checkpoint and return its iteration. Raises `TrainingError`."""
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
            f"{path} is no checkpoint of this network ({reason(e)}): name another file, or remove "
            "it to begin anew"
        ) from e


@torch.no_grad()
def show(task: Task[Any], module: nn.Module, average: Average, path: Path) -> None:
    """Write a sample picture of the averaged weights."""
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
