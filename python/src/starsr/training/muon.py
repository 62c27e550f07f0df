# SPDX-License-Identifier: MPL-2.0
"""The optimizer Muon (K. Jordan and others, 2024) for networks of convolutions; PyTorch's own takes matrices only."""

from collections import defaultdict

import torch
from torch import Tensor, nn

from starsr.training.checkpoint import trained

#: Coefficients of the quintic iteration, which drives singular values to about 1, and its number of steps.
QUINTIC = (3.4445, -4.7750, 2.0315)
STEPS = 5
#: RMS of AdamW's updates in units of the learning rate, which those of Muon are given, so that one rate suits both (J. Liu and
#: others, arXiv 2502.16982, section 2.2).
ADAMW_RMS = 0.2
#: Matrices narrower than this hold scales, positions or gates, and are left to AdamW.
NARROW = 16


def orthogonal(matrices: Tensor) -> Tensor:
    """About the nearest matrices `[B,M,N]` with orthonormal rows or columns, by the Newton-Schulz iteration."""
    a, b, c = QUINTIC
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide is matrices else x.mT


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon trains a parameter: the weight of a convolution or a linear layer, but none of the timestep's embedding."""
    if parameter.ndim < 2 or "time_embed" in name:
        return False
    return min(parameter.shape[0], parameter[0].numel()) > NARROW


class Muon(torch.optim.AdamW):
    """Momentum with orthogonalised updates for the matrices of `module`, each convolution's kernel `[O,I,...]` being a matrix
    `[O,I*...]`; AdamW for its other parameters. Weight decay is AdamW's for all."""

    def __init__(self, module: nn.Module, lr: float, weight_decay: float, momentum: float = 0.95, betas=(0.9, 0.999)) -> None:
        named = trained(module).items()
        groups = [{"params": [p for n, p in named if is_matrix(n, p) == matrix], "matrix": matrix} for matrix in (True, False)]
        super().__init__([group for group in groups if group["params"]], lr=lr, weight_decay=weight_decay, betas=betas)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One update from the gradients, of which those of matrices are used up. `closure` is not supported."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            alike = defaultdict(list)
            for p in group["params"] if group["matrix"] else []:
                if p.grad is not None:
                    alike[p.shape].append(p)
            for matrices in alike.values():
                directions = torch.stack([self._direction(p) for p in matrices])
                scale = ADAMW_RMS * max(directions.shape[1:]) ** 0.5
                for p, update in zip(matrices, orthogonal(directions), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update.reshape(p.shape), alpha=-group["lr"] * scale)
                    # AdamW leaves out what has no gradient.
                    p.grad = None
        super().step()

    def _direction(self, p: Tensor) -> Tensor:
        """Nesterov's momentum of a parameter, as a matrix."""
        state = self.state[p]
        if not state:
            # AdamW's names: it expects them when a state is loaded.
            state.update(step=torch.zeros(()), exp_avg=torch.zeros_like(p))
        state["step"] += 1
        state["exp_avg"].lerp_(p.grad, 1 - self.momentum)
        return p.grad.lerp(state["exp_avg"], self.momentum).flatten(1)
