# SPDX-License-Identifier: MPL-2.0
"""The optimizer Muon (K. Jordan and others, 2024) for networks of convolutions.

PyTorch's own takes matrices only, and PyTorch's and timm's round the iteration to bfloat16.
"""

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from starsr.training.checkpoint import trained

#: Coefficients of the quintic iteration, which drives singular values to about 1, and its steps.
QUINTIC = (3.4445, -4.7750, 2.0315)
STEPS = 5
#: RMS of AdamW's updates in units of the learning rate. Muon's are scaled to it, so that one rate
#: suits both (J. Liu and others, arXiv 2502.16982, section 2.2).
ADAMW_RMS = 0.2
#: Narrower matrices hold scales, positions or gates, and are left to AdamW.
NARROW = 16


def orthogonal(matrices: Tensor) -> Tensor:
    """Return approximately the nearest matrices `[B,M,N]` with orthonormal rows or columns.

    Computed by the Newton-Schulz iteration.
    """
    a, b, c = QUINTIC
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide is matrices else x.mT


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Return whether Muon trains a parameter.

    It trains the weights of convolutions and linear layers, except the timestep embedding's.
    """
    if parameter.ndim < 2 or "time_embed" in name:
        return False
    return min(parameter.shape[0], parameter[0].numel()) > NARROW


class Muon(torch.optim.AdamW):
    """Momentum with orthogonalised updates for matrices, and AdamW for all other parameters.

    The kernel `[O,I,...]` of a convolution counts as a matrix `[O,I*...]`. Weight decay is AdamW's
    for all parameters.
    """

    def __init__(
        self,
        module: nn.Module,
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        named = trained(module).items()
        groups = [
            {"params": [p for n, p in named if is_matrix(n, p) == matrix], "matrix": matrix}
            for matrix in (True, False)
        ]
        groups = [group for group in groups if group["params"]]
        super().__init__(groups, lr=lr, weight_decay=weight_decay, betas=betas)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters and drop the gradients of the matrices.

        `closure` is not supported.
        """
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            alike: defaultdict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"] if group["matrix"] else []:
                if p.grad is not None:
                    alike[p.shape].append(p)
            for matrices in alike.values():
                directions = torch.stack([self._direction(p, p.grad) for p in matrices])
                scale = ADAMW_RMS * max(directions.shape[1:]) ** 0.5
                for p, update in zip(matrices, orthogonal(directions), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update.reshape(p.shape), alpha=-group["lr"] * scale)
                    # AdamW leaves out what has no gradient.
                    p.grad = None
        super().step()

    def _direction(self, p: Tensor, gradient: Tensor) -> Tensor:
        """Return Nesterov's momentum of a parameter as a matrix."""
        state = self.state[p]
        if not state:
            # AdamW expects these names when it loads a state.
            state.update(step=torch.zeros(()), exp_avg=torch.zeros_like(p))
        state["step"] += 1
        state["exp_avg"].lerp_(gradient, 1 - self.momentum)
        return gradient.lerp(state["exp_avg"], self.momentum).flatten(1)
