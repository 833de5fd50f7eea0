"""The small systems of type I Anderson acceleration, W (r - R gamma) = 0."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import ops
from .ops.solve_secants import FEW
from .secant_history import SecantHistory

DEPENDENT = 1e-7  # singular values of the scaled system at or below this share of the largest


@dataclass(eq=False)
class GalerkinProducts:
    """Products ``W [R | r]`` of each segment, beside the Gram matrices of the history.

    Rows of the history are W + R, so what it has of R is taken from their products.
    """

    history: SecantHistory
    products: Tensor  #: [S, m, m + 1] float64

    @classmethod
    def empty(cls, history: SecantHistory) -> GalerkinProducts:
        """Allocate it; the history must keep Gram matrices."""
        m = history.options.history_depth
        return cls(history, history.layout.matrices(m, m + 1))

    def push(self, slot: int, residual: Tensor) -> None:
        """Take in what the last push has changed: the residual, and row ``slot`` if >= 0."""
        h, offsets, systems = self.history, self.history.layout.offsets, self.history.systems
        assert systems is not None
        new = [residual] if slot < 0 else [residual, h.residual_rows[slot]]
        found = ops.cross_products(h.step_rows, new, offsets)  # [S, m, 1 or 2]
        self.products[:, :, -1] = found[:, :, 0] - systems[:, :-1, -1]
        if slot >= 0:
            self.products[:, :, slot] = found[:, :, 1] - systems[:, :-1, slot]
            row = ops.cross_products(h.residual_rows, [h.step_rows[slot]], offsets)[:, :, 0]
            self.products[:, slot, :-1] = row - systems[:, slot, :-1]

    def solve(self, only: Tensor | None = None) -> Tensor:
        """``[S, m]`` gamma of least norm over R of unit columns, NaN for what is not finite.

        Rows that are hardly more than rounding have no part in it. ``only``: ``[k]`` int64, the
        problems to solve; None for all.
        """
        assert self.history.systems is not None
        products, noise = self.products, self.history.noise
        squares = self.history.systems.diagonal(dim1=1, dim2=2)[:, :-1]
        if only is not None:
            products, noise, squares = products[only], noise[only], squares[only]
        live = squares > FEW**2 * noise
        lengths = torch.where(live, squares, 1.0).sqrt()  # of the columns R
        rows = torch.where(live[:, :, None], products, 0.0)
        matrix = torch.where(live[:, None, :], rows[:, :, :-1], 0.0) / lengths[:, None, :]
        scale = matrix.abs().amax(dim=2, keepdim=True)
        scale = torch.where(scale > 0, scale, 1.0)  # of each equation
        sound = products.sum(dim=(1, 2)).isfinite()
        inverse = torch.linalg.pinv(
            torch.where(sound[:, None, None], matrix / scale, 0.0), rtol=DEPENDENT
        )
        gamma = (inverse @ (rows[:, :, -1:] / scale)).squeeze(-1) / lengths
        return torch.where(sound[:, None], gamma, torch.nan)
