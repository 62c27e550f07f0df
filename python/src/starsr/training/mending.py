# SPDX-License-Identifier: MPL-2.0
"""Takes a fixed diagonal pattern out of a student, in closed form.

Training for ST-LPIPS adds lines at 45 degrees with a period of 4 output pixels, as the pattern of
the sixteen pixels that come from one: the metric likes them, people do not. A frame cannot tell
what belongs at this frequency, that of the input's own pixels, so that a local mean of it is
always invented. The last layer is changed so that this mean vanishes and all else stays.
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from starsr.data.media import SCALE
from starsr.models.nano.student import Student, blend

#: Side in input pixels of the square whose mean is a pattern.
BOX = 9
#: Weight of what differs from the mean: more of it changes less, and removes less.
REST = 0.03
#: Shares of the detailed student at which there is to be no pattern.
SHARES = (0.25, 0.5, 0.75, 1.0)
#: Input pixels at the edges of a frame that are left out.
EDGE = 2


def diagonals() -> Tensor:
    """Return an orthonormal basis `[12,48]` of both diagonals in the three colours."""
    y, x = np.mgrid[:SCALE, :SCALE]
    waves = [wave(np.pi / 2 * place) for place in (x + y, x - y) for wave in (np.cos, np.sin)]
    rows = torch.tensor(np.array([w.ravel() / np.linalg.norm(w) for w in waves]))
    return torch.block_diag(*[rows] * 3)


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


def without_pattern(fidelity: Student, detail: Student, clips: Iterable[Tensor]) -> Student:
    """Return the student `detail` without the diagonal pattern that its blends make of `clips`.

    The clips are `[F,3,h,w]`. At a share s the last layer is W, and a change D of the diagonals of
    `detail` has the effect s D. The result has the D with the least sum over `SHARES` of
    `|(P W + s D) m|^2 + REST |s D r|^2`, where P are the diagonals, m is the local mean of the
    layer's inputs and r the rest.
    """
    blends = [(share, blend(fidelity, detail, share)) for share in SHARES]
    basis = diagonals()
    size = detail.leave.weight[0].numel() + 1
    goal = torch.zeros(size, size, dtype=torch.float64)
    found = torch.zeros(len(basis), size, dtype=torch.float64)
    for low in clips:
        for share, student in blends:
            # What the convolutions' padding reaches is no pattern.
            values = inputs_of_last_layer(student, low)[:, :, EDGE:-EDGE, EDGE:-EDGE]
            padded = F.pad(values, (BOX // 2,) * 4, mode="replicate")
            mean = F.avg_pool2d(padded, BOX, 1)
            means, rests = (
                (flat @ flat.T).double()
                for flat in (part.transpose(0, 1).flatten(1) for part in (mean, values - mean))
            )
            goal += share**2 * (means + REST * rests)
            found += share * basis @ last_layer(student) @ means
    goal += 1e-6 * goal.diagonal().mean() * torch.eye(size, dtype=torch.float64)
    change = -torch.linalg.solve(goal, found.T).T
    changed = (last_layer(detail) + basis.T @ change).float()
    result = blend(detail, detail, 0.0)
    with torch.no_grad():
        result.leave.weight.copy_(changed[:, :-1].view_as(result.leave.weight))
        result.leave.bias.copy_(changed[:, -1])
    return result
