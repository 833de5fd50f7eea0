"""The ops alone: Anderson acceleration of a fixed-point map, on vectors, without an optimizer."""

from __future__ import annotations

from itertools import pairwise

import picture
import torch
from torch import Tensor

from aadl_ext import ops

SIZE, DEPTH = picture.steps(100_000, quick=1_000), 5
ITERATIONS = 16


def step(x: Tensor) -> Tensor:
    """A contraction: slow along some coordinates, with a bend."""
    rates = torch.linspace(0.1, 0.95, len(x))
    return rates * torch.tanh(x) + 0.1


def iterate(accelerated: bool) -> list[float]:
    """Norms of the residual step(x) - x."""
    x = torch.ones(SIZE)
    points: list[Tensor] = []
    residuals: list[Tensor] = []
    norms = []
    for _ in range(ITERATIONS):
        residual = step(x) - x
        norms.append(float(ops.squared_norm([residual]).sqrt()))
        points, residuals = [*points, x][-DEPTH - 1 :], [*residuals, residual][-DEPTH - 1 :]
        if not accelerated or len(points) < 2:
            x = x + residual
            continue
        rows = torch.stack([b - a for a, b in pairwise(residuals)])
        moves = torch.stack([b - a for a, b in pairwise(points)])
        # Least squares min |r - rows^T gamma| by the triangular factor of [rows | r].
        factor = ops.tsqr(rows.T, append=residual)
        gamma = torch.linalg.lstsq(factor[:, :-1], factor[:, -1:], driver="gelsd").solution
        x = x + residual - (moves + rows).T @ gamma[:, 0].float()
    return norms


curves = {"plain iteration": iterate(False), "Anderson, 5 columns": iterate(True)}
picture.draw(curves, "norm of the residual", "iteration")
