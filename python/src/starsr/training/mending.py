# SPDX-License-Identifier: MPL-2.0
"""Takes flaws of a trained student out of its last layer, in closed form.

The last layer makes the sixteen output pixels of each input pixel. Two parts of what it adds are
always invented, and training for ST-LPIPS adds both: a pattern that repeats from one such block of
pixels to the next, since a frame cannot tell what belongs at the frequencies of its own pixels; and
a tint of the whole frame. The layer is changed so that these means vanish and all else stays.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from starsr.data.media import SCALE
from starsr.models.nano.student import Student, blend

#: Shares of the detailed student at which there are to be no flaws.
SHARES = (0.25, 0.5, 0.75, 1.0)
#: Input pixels at the edges of a frame that are left out.
EDGE = 2


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
        padded = F.pad(values, (self.box // 2,) * 4, mode="replicate")
        return F.avg_pool2d(padded, self.box, 1)

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


def moments(values: Tensor) -> Tensor:
    """Return the sum of the outer products `[C,C]` of values `[F,C,h,w]`."""
    flat = values.transpose(0, 1).flatten(1)
    return (flat @ flat.T).double()


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
        goal += 1e-6 * goal.diagonal().mean() * torch.eye(size, dtype=torch.float64)
        changed -= basis.T @ torch.linalg.solve(goal, toward.T).T
    result = blend(detail, detail, 0.0)
    with torch.no_grad():
        result.leave.weight.copy_(changed[:, :-1].view_as(result.leave.weight))
        result.leave.bias.copy_(changed[:, -1])
    return result


def mended(fidelity: Student, detail: Student, clips: Sequence[Tensor]) -> tuple[Student, Student]:
    """Return `fidelity` without its tint, and `detail` without tint and pattern."""
    fidelity = without([tint()], fidelity, fidelity, clips, (1.0,))
    return fidelity, without([tint(), pattern()], fidelity, detail, clips)
