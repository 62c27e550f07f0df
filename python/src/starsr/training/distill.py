# SPDX-License-Identifier: MPL-2.0
"""`starsr-distill`: trains the student of nano within a given time.

The first stage trains for fidelity, the second for detail and steadiness, and the third gives
contrast back. Each starts from the averaged weights of the one before, so that those of the first
and of the last can be blended. Each stage lasts a number of minutes rather than of iterations. A
run that was stopped goes on from its last checkpoint for the time that is left.
"""

import csv
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from starsr.data.resize import bicubic
from starsr.models.nano import student as networks
from starsr.models.nano.student import Student
from starsr.models.weights import MISFITS, reason
from starsr.training import checkpoint, perceptual
from starsr.training.checkpoint import Average, trained
from starsr.training.contrast import by_loss, lost_contrast, severity
from starsr.training.critic import Critic, critic_loss, realism_loss
from starsr.training.distill_options import Options, options_of
from starsr.training.moving import MovingClips, mix_with
from starsr.training.muon import Muon
from starsr.training.perceptual import Perceptual
from starsr.training.student_losses import (
    Balance,
    charbonnier,
    fidelity_loss,
    frequency_loss,
    grid_losses,
    mean_of,
    plain_losses,
    unsteadiness,
)
from starsr.training.supply import Supply

#: Offsets in pixels at which the perceptual network sees crops.
PHASES = 8

#: The file of weights that each stage writes, and that of the student before the third.
WEIGHTS, SOFT = (
    ("fidelity.safetensors", "detail.safetensors", "detail.safetensors"),
    "soft.safetensors",
)

#: Low frames, high frames and moves.
Batch = tuple[Tensor, Tensor, Tensor]


@dataclass
class Adversary:
    """The discriminators of the second stage and their optimizer."""

    critic: Critic
    optimizer: torch.optim.Optimizer


@dataclass
class Run:
    """The state of a run: the stage, its seconds so far, networks, averages and optimizers."""

    stage: int
    seconds: float
    iteration: int
    student: Student
    average: Average
    optimizer: torch.optim.Optimizer
    adversary: Adversary | None = None
    balance: Balance = field(default_factory=Balance)


#: Takes a step of training and returns figures for the log; its last argument is the progress of
#: the stage, from 0 to 1.
Step = Callable[[Run, Batch, float], Mapping[str, Tensor]]


def rate_at(progress: float, rate: float) -> float:
    """Return the learning rate at `progress`, from 0 to 1, where `rate` is the peak.

    A warm-up over a fiftieth is followed by a cosine to a hundredth.
    """
    if progress < 0.02:
        return rate * (0.1 + 0.9 * progress / 0.02)
    cosine = 0.5 * (1 + math.cos(math.pi * min((progress - 0.02) / 0.98, 1.0)))
    return rate * (0.01 + 0.99 * cosine)


def new_run(stage: int, student: Student, options: Options, device: torch.device) -> Run:
    """Return the start of a stage from the given weights."""
    student = student.to(device=device, memory_format=torch.channels_last).train()
    average = Average(student, 0.998)
    if stage == 0:
        return Run(0, 0.0, 0, student, average, Muon(student, options.rates[0], 1e-4))
    parameters = trained(student).values()
    optimizer = torch.optim.Adam(parameters, options.rates[1], (0.9, 0.99), foreach=True)
    if stage == 2:
        return Run(2, 0.0, 0, student, average, optimizer)
    critic = Critic().to(device=device, memory_format=torch.channels_last).train()
    opponent = torch.optim.Adam(critic.parameters(), 2e-4, (0.5, 0.99), foreach=True)
    return Run(1, 0.0, 0, student, average, optimizer, Adversary(critic, opponent))


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Compute in bfloat16, by default on GPUs and on processors with instructions for it."""
    # Older versions of PyTorch do not tell what the processor has.
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    fast = device.type == "cuda" or capabilities.get("amx_bf16", False)
    enabled = fast if precision == "auto" else precision == "bf16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def finish(run: Run) -> None:
    """Clip the gradient, take the step and average. A gradient that overflowed counts as zero."""
    parameters = list(trained(run.student).values())
    norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
    for p in parameters:
        if p.grad is not None:
            p.grad = torch.where(norm.isfinite(), p.grad, torch.zeros_like(p.grad))
    run.optimizer.step()
    run.iteration += 1
    run.average.update(run.student, run.iteration)


def fidelity_step(
    run: Run, batch: Batch, options: Options, device: torch.device
) -> dict[str, Tensor]:
    """Take a step of the first stage and return figures for the log."""
    low, high, moves = batch
    with autocast(device, options.precision):
        predicted = run.student(low)
    loss, figures = fidelity_loss(
        predicted,
        high,
        moves,
        frequency_weight=options.frequency_weight,
        steady_weight=options.steady_weight,
        grid_weight=options.grid_weight,
    )
    run.optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    finish(run)
    return {"loss": loss.detach(), **figures}


def detail_step(
    run: Run,
    adversary: Adversary,
    batch: Batch,
    options: Options,
    device: torch.device,
    features: Perceptual,
    progress: float,
) -> dict[str, Tensor]:
    """Take a step of the second stage and return figures for the log.

    It updates the discriminators, and then the student with gradients of given sizes.
    """
    low, high, moves = batch
    critic = adversary.critic
    with torch.no_grad():
        plain = bicubic(low)
        lost = severity(plain, high)
    with autocast(device, options.precision):
        predicted = run.student(low)
    leaf = predicted.detach().requires_grad_()
    side = high.shape[-1]
    rows, columns = (torch.randint(side, (6,), device=device) for _ in range(2))
    with autocast(device, options.precision):
        real, fake = (critic(clips, plain, rows, columns) for clips in (high, leaf.detach()))
        judged = critic_loss(real, fake)
    adversary.optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(judged)
    torch.nn.utils.clip_grad_norm_(critic.parameters(), 10.0, foreach=True)
    adversary.optimizer.step()

    losses = plain_losses(leaf, high, moves)
    chosen = torch.randperm(low.shape[1], device=device)[: options.judged_frames]
    # Crops begin at multiples of the scale. Seen always from there, the perceptual network rewards
    # a pattern with that period.
    top, left = torch.randint(PHASES, (2,)).tolist()
    end = side - PHASES
    with autocast(device, options.precision):
        ours, theirs = (
            clips[:, chosen, :, top : top + end, left : left + end]
            .flatten(0, 1)
            .contiguous(memory_format=torch.channels_last)
            for clips in (leaf, high)
        )
        losses["perceptual"] = features(ours, theirs).mean()
        losses["realism"] = realism_loss(critic(leaf, plain, rows, columns))
    gradients = {name: torch.autograd.grad(loss, leaf)[0] for name, loss in losses.items()}
    factors = {
        "perceptual": options.judged_by_loss,
        "realism": options.judged_by_loss,
        "steady": options.steady_by_loss,
    }
    for name, ends in factors.items():
        gradients[name] *= by_loss(ends, lost)
    # New discriminators are no guide, so their share begins at 0.
    start = min(1.0, max(0.0, (progress - 0.05) / 0.15))
    shares = {
        "perceptual": options.perceptual_share,
        "realism": options.realism_share * start,
        "steady": options.steady_share,
        "colour": options.colour_share,
        "grid": options.grid_share,
    }
    total = run.balance.total("pixel", gradients, shares)
    run.optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(predicted, total)
    finish(run)
    error = (leaf.detach() - high).square().mean((1, 2, 3, 4))
    figures = {name: loss.detach() for name, loss in losses.items()}
    return {"psnr": -10 * (error + 1e-9).log10().mean(), "critic": judged.detach(), **figures}


def contrast_step(
    run: Run, soft: Student, batch: Batch, options: Options, device: torch.device
) -> dict[str, Tensor]:
    """Take a step of the third stage and return figures for the log.

    The student learns what `soft`, its state before the stage, gives with more contrast, and to be
    steady.
    """
    low, high, moves = batch
    with torch.no_grad():
        lost = severity(bicubic(low), high)
        wanted = soft(low)
        wanted += lost_contrast(wanted, lost, options.contrast_gain)
    with autocast(device, options.precision):
        predicted = run.student(low)
    leaf = predicted.detach().requires_grad_()
    change, same = unsteadiness(leaf, high, moves)
    losses = {
        "pixel": charbonnier(leaf - wanted).mean() + frequency_loss(leaf, wanted).mean(),
        "steady": mean_of(charbonnier(change), same, len(low)).mean(),
        "grid": grid_losses(leaf, wanted),
    }
    gradients = {name: torch.autograd.grad(loss, leaf)[0] for name, loss in losses.items()}
    gradients["steady"] *= by_loss(options.steady_by_loss, lost)
    shares = {"steady": options.steady_share, "grid": options.grid_share}
    total = run.balance.total("pixel", gradients, shares)
    run.optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(predicted, total)
    finish(run)
    return {"lost": lost.mean(), **{name: loss.detach() for name, loss in losses.items()}}


# Checkpoints


def averaged(run: Run) -> Student:
    """Return the student with the averaged weights."""
    result = Student(run.student.config)
    state = {name: w.detach().cpu() for name, w in run.student.state_dict().items()}
    result.load_state_dict(state | {name: w.cpu() for name, w in run.average.weights.items()})
    return result.eval()


def halved(value: Any) -> Any:
    """Convert the moments in an optimizer's state to 16 bits, so that its file stays small."""
    if isinstance(value, dict):
        return {name: halved(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(halved(part) for part in value)
    if isinstance(value, Tensor) and value.is_floating_point() and value.ndim:
        return value.bfloat16()
    return value


def keep(run: Run, options: Options) -> None:
    """Write the averaged weights and all that a run needs to go on."""
    networks.save(options.output / WEIGHTS[run.stage], averaged(run))
    state = {
        "stage": run.stage,
        "seconds": run.seconds,
        "iteration": run.iteration,
        "student": run.student.state_dict(),
        "average": {name: w.half() for name, w in run.average.weights.items()},
        "norms": run.balance.norms,
    }
    checkpoint.save(options.output / "student.pt", state)
    checkpoint.save(options.output / "optimizer.pt", halved(run.optimizer.state_dict()))
    if run.adversary is not None:
        states = {
            "critic": run.adversary.critic.state_dict(),
            "optimizer": run.adversary.optimizer.state_dict(),
        }
        checkpoint.save(options.output / "critic.pt", halved(states))


def resume(options: Options, device: torch.device) -> Run | None:
    """Return the run that `keep` wrote, if there is one. Raises `ValueError`."""

    def read(name: str) -> dict[str, Any]:
        state: dict[str, Any] = torch.load(
            options.output / name, map_location=device, weights_only=True
        )
        return state

    if not (options.output / "student.pt").is_file():
        return None
    try:
        state = read("student.pt")
        student = Student()
        student.load_state_dict(state["student"])
        run = new_run(state["stage"], student, options, device)
        run.seconds, run.iteration = state["seconds"], state["iteration"]
        run.balance.norms = state["norms"]
        run.average.weights = {name: state["average"][name].float() for name in run.average.weights}
        run.optimizer.load_state_dict(read("optimizer.pt"))
        if run.adversary is not None:
            states = read("critic.pt")
            run.adversary.critic.load_state_dict(states["critic"])
            run.adversary.optimizer.load_state_dict(states["optimizer"])
    except MISFITS as e:
        raise ValueError(
            f"{options.output} holds no checkpoint of a student ({reason(e)}): name another "
            "folder, or remove it to begin anew"
        ) from e
    return run


def begin(options: Options, device: torch.device) -> Run:
    """Return a new run. Raises `ValueError`.

    It starts from the weights in `start` where given, with the first stage that takes time: from
    those for fidelity, or in later stages from those for detail.
    """
    if options.start is None:
        return new_run(0, Student(), options, device)
    minutes = (options.fidelity, options.detail, options.contrast)
    stage = next((stage for stage, time in enumerate(minutes) if time > 0), 0)
    student = networks.load(options.start / WEIGHTS[stage])
    return new_run(stage, student, options, device)


def before_contrast(run: Run, options: Options, device: torch.device) -> Student:
    """Return the student before the third stage, and keep it for a run that goes on.

    Raises `ValueError`.
    """
    path = options.output / SOFT
    if run.iteration == 0:
        networks.save(path, averaged(run))
    return networks.load(path).to(device=device, memory_format=torch.channels_last)


# The training


class Figures:
    """CSV files of figures, one for each stage. The first row of a stage gives the columns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, row: Mapping[str, float]) -> None:
        """Append a row."""
        name = self.path.with_name(f"{self.path.stem}-{row['stage']}.csv")
        fresh = not name.is_file()
        with name.open("a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if fresh:
                writer.writeheader()
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})


def go_on(run: Run, minutes: float, step: Step, supply: Supply, options: Options) -> None:
    """Take steps until the stage has lasted its time."""
    limit, log = 60 * minutes, Figures(options.output / "log.csv")
    first = options.clips or (200 if options.workers else 8)
    supply.take(min(options.pool, first))
    later = min(run.stage, 1)
    begun, before = time.monotonic(), run.seconds
    saved = shown = before
    while run.seconds < limit:
        progress = run.seconds / limit
        for group in run.optimizer.param_groups:
            group["lr"] = rate_at(progress, options.rates[later])
        batch = supply.batch(options.batches[later], options.sides[later])
        figures = step(run, batch, progress)
        run.seconds = before + time.monotonic() - begun
        if run.seconds - shown >= 5 or run.seconds >= limit:
            # The figures wait for the device.
            values = {name: float(value.detach()) for name, value in figures.items()}
            run.seconds = before + time.monotonic() - begun
            shown = run.seconds
            row = {
                "stage": run.stage,
                "seconds": run.seconds,
                "iteration": run.iteration,
                "clips": supply.reel.made,
                **values,
            }
            log.add(row)
            words = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
            print(*words, flush=True)
        if run.seconds - saved >= options.save_every:
            keep(run, options)
            saved = run.seconds
    keep(run, options)


def detailing(adversary: Adversary, options: Options, device: torch.device) -> Step:
    """Return the step of the second stage. Raises `ValueError`."""
    if options.features is None:
        raise ValueError("the second stage needs the perceptual network: give --features")
    features = perceptual.load(options.features, device)
    if options.compile:
        features.compile()

    def detailed(run: Run, batch: Batch, progress: float) -> dict[str, Tensor]:
        return detail_step(run, adversary, batch, options, device, features, progress)

    return detailed


def train(options: Options, device: torch.device) -> None:
    """Run all stages, from where the last run stopped. Raises `ValueError`."""
    torch.manual_seed(options.seed)
    torch.backends.cudnn.benchmark = True
    # The bicubic upscale must be exact; all else runs in 16 bits.
    torch.backends.cudnn.allow_tf32 = False
    if options.workers and device.type != "cpu":
        # The other processors make clips.
        torch.set_num_threads(1)
    count = options.clips or 1 << 40
    clips = MovingClips(
        options.media,
        count,
        options.clip_frames,
        options.clip_side,
        options.seed,
        mix_with(options.heavy),
    )
    supply = Supply(clips, device, options.pool, options.frames, options.workers, options.clean)

    def faithful(run: Run, batch: Batch, _progress: float) -> dict[str, Tensor]:
        return fidelity_step(run, batch, options, device)

    try:
        run = resume(options, device) or begin(options, device)
        if run.stage == 0:
            go_on(run, options.fidelity, faithful, supply, options)
            run = new_run(1, averaged(run), options, device)
        if run.adversary is not None and options.detail > 0:
            go_on(run, options.detail, detailing(run.adversary, options, device), supply, options)
            run = new_run(2, averaged(run), options, device)
        if run.stage == 2 and options.contrast > 0:
            soft = before_contrast(run, options, device)

            def contrasting(run: Run, batch: Batch, _progress: float) -> dict[str, Tensor]:
                return contrast_step(run, soft, batch, options, device)

            go_on(run, options.contrast, contrasting, supply, options)
    finally:
        supply.close()


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options, device = options_of(arguments)
    try:
        train(options, device)
    except (OSError, ValueError) as e:
        print(f"starsr-distill: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
