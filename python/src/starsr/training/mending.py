# SPDX-License-Identifier: MPL-2.0
"""Takes flaws of a trained student out of its last layer, in closed form.

The last layer makes the sixteen output pixels of each input pixel. Two parts of what it adds are
always invented, and training for ST-LPIPS adds both: a pattern that repeats from one such block of
pixels to the next, since a frame cannot tell what belongs at the frequencies of its own pixels; and
a tint of the whole frame. The layer is changed so that these means vanish and all else stays.

A third flaw is what changes along the motion of a scene, where only noise does. The layer is
changed so that less of it remains.

Contrast that training takes from heavily degraded clips is given back in the same way, without
these flaws.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from starsr.data.media import SCALE
from starsr.models.nano.student import Student, blend
from starsr.training.contrast import MILD, lost_contrast

#: Shares of the detailed student at which there are to be no flaws.
SHARES = (0.25, 0.5, 0.75, 1.0)
#: Input pixels at the edges of a frame that are left out.
EDGE = 2
#: Contrast that is given back to clips that lost most, and weight of those that are to keep theirs.
GAIN, KEPT = 4.5, 4.0
#: Weights of a change along the motion, where those of a change of the picture are 1: to take
#: flicker out, and to let no more in with contrast.
STEADINESS, STILL = 1.0, 15.0
#: Weight of a tint where contrast is given back.
NEUTRAL = 20.0
#: A variance of a clip that counts as none.
SILENT = 1e-3

#: A clip `[F,3,h,w]` and the move of its camera, see `moved`.
Pan = tuple[Tensor, tuple[int, int]]


def around(values: Tensor, box: int) -> Tensor:
    """Return the mean over a square of `box` places around each of values `[F,C,h,w]`."""
    return F.avg_pool2d(F.pad(values, (box // 2,) * 4, mode="replicate"), box, 1)


@dataclass(frozen=True)
class Flaw:
    """A component of each block of output pixels whose mean over a place is invented.

    `basis` `[n,16]` is orthonormal. The place is a square of `box` input pixels, or a whole clip.
    A larger weight `rest` of what differs from the mean changes less, and removes less.
    """

    basis: Tensor
    box: int | None
    rest: float

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean at the place around each input pixel of values `[F,C,h,w]`."""
        if self.box is None:
            return values.mean((0, 2, 3), keepdim=True).expand_as(values)
        return around(values, self.box)

    def colours(self) -> Tensor:
        """Return the basis `[3*n,48]` in all colours."""
        return torch.block_diag(*[self.basis] * 3)


def tint() -> Flaw:
    """Return the mean of a block as a flaw where it stays over a whole clip."""
    return Flaw(torch.full((1, SCALE**2), 1 / SCALE, dtype=torch.float64), None, 0.1)


def pattern() -> Flaw:
    """Return what varies along both sides of a block as a flaw where it repeats.

    What varies along one side alone is none: a slope looks the same in each block.
    """
    constant = torch.full((SCALE, SCALE), 1 / SCALE, dtype=torch.float64)
    along = torch.linalg.svd(torch.eye(SCALE, dtype=torch.float64) - constant).Vh[:-1]
    return Flaw(torch.kron(along, along), 5, 0.01)


def inputs_of_last_layer(student: Student, low: Tensor) -> Tensor:
    """Return what each output of the last layer is a sum of, `[F,C*9+1,h,w]`, for `[F,3,h,w]`.

    The last channel is 1, for the bias.
    """
    features: list[Tensor] = []
    hook = student.leave.register_forward_pre_hook(lambda _, given: features.append(given[0]))
    with torch.no_grad():
        student(low[None])
    hook.remove()
    patches = F.unfold(features[0], 3, padding=1).unflatten(2, features[0].shape[2:])
    return torch.cat([patches, torch.ones_like(patches[:, :1])], 1)


def last_layer(student: Student) -> Tensor:
    """Return the weights of the last layer `[48,C*9+1]`, the bias in its last column."""
    layer = student.leave
    return torch.cat([layer.weight.flatten(1), layer.bias[:, None]], 1).detach().double()


def with_last_layer(student: Student, weights: Tensor) -> Student:
    """Return the student with these weights `[48,C*9+1]` of its last layer."""
    result = blend(student, student, 0.0)
    with torch.no_grad():
        result.leave.weight.copy_(weights[:, :-1].view_as(result.leave.weight))
        result.leave.bias.copy_(weights[:, -1])
    return result


def moments(values: Tensor, others: Tensor | None = None) -> Tensor:
    """Return the sum of the outer products `[C,D]` of values `[F,C,h,w]` and others `[F,D,h,w]`.

    Without others, they are those of the values with themselves.
    """
    flat = values.transpose(0, 1).flatten(1)
    other = flat if others is None else others.transpose(0, 1).flatten(1)
    return (flat @ other.T).double()


def solved(goal: Tensor, found: Tensor) -> Tensor:
    """Return the X `[n,C]` with `X goal = found`, for a `goal` `[C,C]` that may be singular."""
    ridge = 1e-6 * goal.diagonal().mean() * torch.eye(len(goal), dtype=torch.float64)
    return torch.linalg.solve(goal + ridge, found.T).T


def without(
    flaws: Sequence[Flaw],
    fidelity: Student,
    detail: Student,
    clips: Iterable[Tensor],
    shares: Sequence[float] = SHARES,
) -> Student:
    """Return the student `detail` without the flaws of its blends with `fidelity` on `clips`.

    The clips are `[F,3,h,w]`; the flaws are orthogonal to each other. At a share s the last layer
    is W, and a change D of the component P of `detail` has the effect s D. The result has the D
    with the least sum over `shares` of `|(P W + s D) m|^2 + rest |s D r|^2`, where m is the mean of
    the layer's inputs at a place and r what differs from it.
    """
    blends = [(share, blend(fidelity, detail, share)) for share in shares]
    bases = [flaw.colours() for flaw in flaws]
    size = last_layer(detail).shape[1]
    goals = [torch.zeros(size, size, dtype=torch.float64) for _ in flaws]
    found = [torch.zeros(len(basis), size, dtype=torch.float64) for basis in bases]
    for low in clips:
        for share, student in blends:
            # What the convolutions' padding reaches is no flaw.
            values = inputs_of_last_layer(student, low)[:, :, EDGE:-EDGE, EDGE:-EDGE]
            for index, (flaw, basis) in enumerate(zip(flaws, bases, strict=True)):
                mean = flaw.mean(values)
                means, rests = moments(mean), moments(values - mean)
                goals[index] += share**2 * (means + flaw.rest * rests)
                found[index] += share * basis @ last_layer(student) @ means
    changed = last_layer(detail)
    for basis, goal, toward in zip(bases, goals, found, strict=True):
        changed -= basis.T @ solved(goal, toward)
    return with_last_layer(detail, changed)


def moved(values: Tensor, move: tuple[int, int]) -> Tensor:
    """Return how values `[F,C,h,w]` change from each frame to the next, where both show the same.

    The camera moves down and right by `move` input pixels a frame.
    """

    def inside(frames: Tensor, down: int, right: int) -> Tensor:
        height, width = frames.shape[2:]
        rows = slice(max(down, 0), height + min(down, 0))
        return frames[:, :, rows, max(right, 0) : width + min(right, 0)]

    down, right = move
    return inside(values[:-1], down, right) - inside(values[1:], -down, -right)


@dataclass(frozen=True)
class Flicker:
    """What changes along the motion of a pan, in a blend of two students.

    The last layer is W and its inputs are x, of which d is the change along the motion, and b that
    of the bicubic upscale. `inputs` `[F,C,h,w]` is x, and `still` `[C,C]` and `total` `[48,C]` are
    the means of `d d'` and `(W d + b) d'`; `variance` is that of the bicubic upscale.
    """

    share: float
    inputs: Tensor
    still: Tensor
    total: Tensor
    variance: float


def flickers(fidelity: Student, detail: Student, pans: Iterable[Pan]) -> Iterator[Flicker]:
    """Yield the flicker of each pan for blends at all of `SHARES`."""
    blends = [(share, blend(fidelity, detail, share)) for share in SHARES]
    for low, move in pans:
        for share, student in blends:
            values, plain = (
                whole[:, :, EDGE:-EDGE, EDGE:-EDGE]
                for whole in (inputs_of_last_layer(student, low), student.bicubic_phases(low))
            )
            change, plain_change = moved(values, move), moved(plain, move)
            places = change[:, 0].numel()
            still = moments(change) / places
            total = last_layer(student) @ still + moments(plain_change, change) / places
            yield Flicker(share, values, still, total, float(plain.var()))


def steadied(fidelity: Student, detail: Student, pans: Iterable[Pan]) -> Student:
    """Return the student `detail` so that its blends with `fidelity` flicker less on `pans`.

    The result has the change D of the last layer W with the least sum over `SHARES` s of
    `STEADINESS |(W + s D) d + b|^2 + |s D x|^2`, see `Flicker`.
    """
    size = last_layer(detail).shape[1]
    goal = torch.zeros(size, size, dtype=torch.float64)
    found = torch.zeros(len(last_layer(detail)), size, dtype=torch.float64)
    for flicker in flickers(fidelity, detail, pans):
        picture = moments(flicker.inputs) / flicker.inputs[:, 0].numel()
        goal += flicker.share**2 * (STEADINESS * flicker.still + picture)
        found += flicker.share * STEADINESS * flicker.total
    return with_last_layer(detail, last_layer(detail) - solved(goal, found))


def mended(
    fidelity: Student,
    detail: Student,
    clips: Sequence[Tensor],
    pans: Iterable[Pan],
) -> tuple[Student, Student]:
    """Return `fidelity` without its tint, and `detail` steadier and without tint and pattern."""
    fidelity = without([tint()], fidelity, fidelity, clips, (1.0,))
    detail = steadied(fidelity, detail, pans)
    return fidelity, without([tint(), pattern()], fidelity, detail, clips)


def with_contrast(
    fidelity: Student,
    student: Student,
    soft: Student,
    clips: Iterable[tuple[Tensor, float]],
    pans: Iterable[Pan],
) -> Student:
    """Return the student whose contrast on clips is that of `soft` and what that lost.

    The clips are `[F,3,h,w]`, each with its `severity`. The last layer is W and its inputs are x,
    of which m is the mean of a clip. The result has the change D of W with the least sum of
    `|D x - d|^2` and, of the tint, of `NEUTRAL |(W + D) m|^2`, in units of a clip's variance. For
    clips that lost contrast, d is the difference of what `soft` makes, with its contrast, from what
    the student makes; for others, whose weight is `KEPT`, it is 0. `STILL` is the weight of what
    flickers on `pans` in blends with `fidelity`, see `steadied`.
    """
    size = last_layer(student).shape[1]
    goal, means = (torch.zeros(size, size, dtype=torch.float64) for _ in range(2))
    found = torch.zeros(len(last_layer(student)), size, dtype=torch.float64)
    for low, lost in clips:
        with torch.no_grad():
            made, wanted = (network(low[None])[0] for network in (student, soft))
        added = lost_contrast(wanted[None], wanted.new_tensor([lost]), GAIN)[0]
        change = F.pixel_unshuffle(added, SCALE)
        # What repeats from block to block is the pattern, not contrast.
        change = change - around(change, 9) + F.pixel_unshuffle(wanted - made, SCALE)
        weight = unit = 1 / (float(wanted.var()) + SILENT)
        if lost <= MILD:
            change, weight = torch.zeros_like(change), KEPT * unit
        values, change = (
            whole[:, :, EDGE:-EDGE, EDGE:-EDGE]
            for whole in (inputs_of_last_layer(student, low), change)
        )
        places = values[:, 0].numel()
        goal += weight / places * moments(values)
        found += weight / places * moments(change, values)
        means += unit * moments(values.mean((0, 2, 3), keepdim=True))
    for flicker in flickers(fidelity, student, pans):
        weight = STILL / len(SHARES) / (flicker.variance + SILENT)
        goal += weight * flicker.share**2 * flicker.still
        found -= weight * flicker.share * flicker.total
    before, change = last_layer(student), solved(goal, found)
    colours = tint().colours()
    neutral = solved(goal + NEUTRAL * means, colours @ (found - NEUTRAL * before @ means))
    change += colours.T @ (neutral - colours @ change)
    return with_last_layer(student, before + change)
