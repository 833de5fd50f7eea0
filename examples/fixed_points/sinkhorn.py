"""Optimal transport between clouds of points by Sinkhorn's iteration, for four entropies at once.

The fixed point is the potential of one side; the smaller the entropy, the slower plain steps are.
Gradients of the cost by the points come from the potentials, implicitly.

    python examples/fixed_points/sinkhorn.py
"""

from __future__ import annotations

import torch
from picture import draw
from torch import Tensor

from aadl_ext import AndersonMixing, fixed_point

COUNT = 200
ENTROPIES = torch.tensor([0.1, 0.03, 0.01, 0.003], dtype=torch.float64)[:, None, None]


def potentials(cost: Tensor, method: AndersonMixing) -> tuple[Tensor, list[Tensor]]:
    """Fixed points ``[entropies, COUNT]`` in units of the entropy; residuals of all evaluations."""
    residuals: list[Tensor] = []
    scaled = cost / ENTROPIES

    def sinkhorn(u: Tensor) -> Tensor:
        v = -torch.logsumexp(u[:, :, None] - scaled, dim=1)
        new = -torch.logsumexp(v[:, None, :] - scaled, dim=2)
        new = new - new.mean(dim=1, keepdim=True)  # potentials are unique up to a constant
        residuals.append((new - u).detach().norm(dim=1))
        return new

    start = torch.zeros(len(ENTROPIES), COUNT, dtype=torch.float64)
    found = fixed_point(sinkhorn, start, method=method, tol=1e-8, max_steps=3000)
    entropies = ENTROPIES.flatten().tolist()
    for entropy, steps, reason in zip(entropies, found.steps, found.reason, strict=True):
        print(f"  entropy {entropy}: {int(steps)} evaluations, {reason}")
    return found.solution, residuals


def main() -> None:
    """Plain and accelerated; then a gradient."""
    torch.manual_seed(0)
    x = torch.rand(COUNT, 2, dtype=torch.float64, requires_grad=True)
    y = torch.rand(COUNT, 2, dtype=torch.float64) ** 2
    cost = torch.cdist(x, y).square()
    curves = {}
    for label, method in {
        "plain": AndersonMixing(history_depth=0),
        "Anderson, m = 10": AndersonMixing(history_depth=10),
    }.items():
        print(label)
        u, residuals = potentials(cost, method)
        for s in (1, 3):
            values = [float(r[s]) for r in residuals[:400] if r[s] > 0]
            curves[f"{label}, entropy {float(ENTROPIES[s])}"] = values
    (gradient,) = torch.autograd.grad(u.square().sum(), x)
    print(f"implicit gradient of |u|^2 by the points: norm {float(gradient.norm()):.4g}")
    print(draw("sinkhorn", f"Sinkhorn, {COUNT} points", curves))


if __name__ == "__main__":
    main()
