"""Ring of secant rows, and the least-squares problem over it (Eq. 2, 3 and 5)."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from . import buffers, ops
from .buffers import zeros
from .ops.registry import asked
from .ops.solve_secants import FEW
from .options import Anderson
from .parameters import Layout
from .state import Entries, Figures, Scratch


@dataclass(eq=False)
class SecantHistory:
    """The last m differences of pairs (w, r / lr); slots rotate, data never moves.

    A pair is a point and the residual evaluated at it, so it stays true whatever moved
    the parameters in between. Residuals are kept per unit of learning rate, so it stays
    true under a schedule too. Rows are columns of R and of W + R (``ops.push_secant``).
    A row that cannot be used is zero, and has no part in a solution.
    """

    layout: Scratch[Layout]
    options: Scratch[Anderson]
    verdicts: Scratch[ops.Verdicts]
    pair: Scratch[Tensor]  #: [2, N] w and r / lr of the step under way
    last_pair: Entries[Tensor]  #: those of the last stored pair
    step_rows: Entries[Tensor]  #: [m, N]
    residual_rows: Entries[Tensor]  #: [m, N]
    systems: Figures[Tensor | None]  #: [S, m + 1, m + 1] Gram matrices of [R | r]; TSQR needs none
    noise: Figures[Tensor]  #: [S, m] |error|^2 of each row of residuals: rounding
    lengths: Tensor  #: [m + 1] float64, largest entry of each step row, 0 once forgotten; 1 for r
    row_rates: Figures[list[tuple[float, ...]]]  #: [m] rates of each row
    last_rates: Figures[tuple[float, ...]]  #: those of the last stored pair; infinite for none
    factor: Scratch[Tensor | None] = None  #: of several ranks, that of the last solution by TSQR
    slot: int = 0  #: the next row to write
    filled: int = 0  #: rows that were written since all were forgotten; others are left alone
    written: Scratch[int] = -1  #: the row that the step under way has written, or none
    begun: bool = False  #: whether there is a pair

    @classmethod
    def empty(cls, layout: Layout, options: Anderson, verdicts: ops.Verdicts) -> SecantHistory:
        """Allocate it."""
        m, dtype = options.history_depth, options.storage.dtype or layout.dtype
        gram = options.solver_for(dtype) == "gram"
        lengths = zeros((m + 1,), torch.float64, layout.device)
        lengths[m:] = 1
        none = (math.inf,) * len(layout.groups)
        return cls(
            layout,
            options,
            verdicts,
            pair=layout.vector(2),
            last_pair=layout.vector(2),
            step_rows=layout.vector(m, dtype),
            residual_rows=layout.vector(m, dtype),
            systems=layout.matrices(m + 1, m + 1) if gram else None,
            noise=layout.matrices(m),
            lengths=lengths,
            row_rates=[none] * m,
            last_rates=none,
        )

    def clear(self) -> None:
        """Forget all pairs."""
        self.slot, self.filled, self.begun = 0, 0, False
        self.verdicts.when.paired.zero_()
        self.verdicts.when.restart.fill_(True)
        self._clear_if_asked()

    def _clear_if_asked(self) -> None:
        if not asked(self.verdicts.when.restart):
            return
        for figures in (self.lengths[:-1], self.systems):
            if figures is not None:
                figures.masked_fill_(self.verdicts.when.restart, 0)

    def push(self, after: Tensor, rates: tuple[float, ...], store: bool, solve: bool) -> Tensor:
        """Measure the step from w, the first of ``pair``, to ``after``; ``store`` makes it a row.

        Without either nor ``solve``, that a solution is to follow, no row is read. Returns the
        figures of ``ops.push_secant``.
        """
        self._clear_if_asked()
        slot = self.written = self.slot if store and self.begun else -1
        self.filled = max(self.filled, slot + 1)
        rows = self.live_rows
        (point, residual), (last_point, last_residual) = self.pair, self.last_pair
        figures = ops.push_secant(
            point,
            after,
            rates=rates,
            offsets=self.layout.offsets,
            residual=residual,
            last_point=last_point,
            last_residual=last_residual,
            step_rows=self.step_rows[:rows],
            residual_rows=self.residual_rows[:rows],
            slot=slot,
            paired=self.verdicts.when.paired,
            systems=self.systems if store or solve else None,
            rounding=_per_unit(self.layout.rounding, rates, self.last_rates),
            noise=self.noise,
        )
        if store:
            self.last_rates = rates
            if not self.begun:  # no row is at another rate
                self.row_rates = [rates] * self.options.history_depth
        if slot >= 0:
            self.row_rates[slot] = rates
            self.slot = (slot + 1) % self.options.history_depth
            self.lengths[slot].copy_(figures[3])
        return figures

    def join(
        self,
        figures: Tensor,
        moved: Tensor | None,
        store: bool,
        solve: bool,
    ) -> tuple[Tensor, Tensor]:
        """Make of what ``push`` has measured on this rank that of all; one collective.

        Returns the figures, and whether something else has moved the parameters anywhere.
        """
        layout, slot, residual = self.layout, self.written, self.pair[1]
        assert layout.ranks is not None
        away = torch.zeros_like(self.verdicts.when.pending) if moved is None else moved
        maxima = torch.stack([figures[0], figures[3], away.double()])
        squares = figures[1:3].clone()
        if layout.has_copies:
            squares[:1] = layout.products(residual, residual)
        errors = self.noise[:, slot] if slot >= 0 else self.noise[:, :0]
        factors, systems = self.systems is None and solve, self.systems if store or solve else None
        small = []
        if systems is not None:  # [S, 2, m + 1]
            small = [torch.stack([systems[:, :, -1], systems[:, :, slot]], dim=1)]
        if factors:
            small = [ops.tsqr(self.residual_rows.T, append=residual, offsets=layout.offsets)]
        told = layout.ranks.gather(maxima, squares, *map(layout.counted, [errors, *small]))
        max_step, length, away = told[0].amax(dim=0)
        squares, errors = told[1].sum(dim=0), layout.without_copies(told[2].sum(dim=0))
        useless = ~squares.sum().isfinite()
        if slot >= 0:
            self.noise[:, slot] = errors.masked_fill(useless, 0)
            self.lengths[slot] = length.masked_fill(useless, 0)
        if systems is not None:
            of_residual, of_row = layout.without_copies(told[3].sum(dim=0)).unbind(dim=1)
            systems[:, :, -1] = systems[:, -1] = of_residual
            if slot >= 0:
                of_row = of_row.masked_fill(useless, 0)
                systems[:, :, slot] = systems[:, slot] = of_row
        if factors:  # one upon the other they have the products of all rows
            self.factor = ops.tsqr(told[3].transpose(0, 1).flatten(1, 2))
        figures = torch.stack([max_step, *squares, length])
        return figures, away > 0

    @property
    def live_rows(self) -> int:
        """How many rows, from the first on, steps need; a CUDA graph will need them all."""
        captured = buffers.captured(self.layout.device)
        return len(self.step_rows) if captured else self.filled

    @property
    def path(self) -> Tensor:
        """``[]`` length of the way that the rows have seen, in the largest entry of each step."""
        return self.lengths[:-1].sum()

    def slope(
        self, residual: Tensor, start: Tensor, end: Tensor, rates: tuple[float, ...]
    ) -> Tensor:
        """``[]`` with the sign of -r . (end - start): < 0 where the way leads on, as r does."""
        ends = ops.cross_products(residual[None], (start, end), self.layout.offsets)[:, 0]
        slopes = ends[:, 0] - ends[:, 1]
        if len(set(rates)) > 1:  # the residual is per unit of them
            slopes = slopes * _beside(slopes, [list(rates)])[0]
        slope: Tensor = self.layout.counted(slopes).sum()
        return slope

    @property
    def unresolved(self) -> Tensor:
        """How many rows are hardly more than rounding, or underflow in their dtype."""
        noise = self.noise.sum(dim=0)
        if self.layout.ranks and self.systems is None:
            if self.factor is None:
                return torch.zeros_like(noise).sum()
            squares = self.factor[..., :-1].square().sum(dim=(0, 1))
        elif self.systems is None:
            squares = torch.zeros_like(noise)
            for square, row in zip(squares, self.residual_rows, strict=True):
                square.copy_(ops.squared_norm([row]))
        else:
            squares = self.systems.diagonal(dim1=1, dim2=2)[:, :-1].sum(dim=0)
        return ((noise > 0) & (squares <= FEW**2 * noise)).sum()

    def keep(self) -> None:
        """Make the pair under way the last one, unless it cannot be used."""
        unsound = self.verdicts.when.unsound
        ops.gather((self.last_pair,), self.pair.view(-1), when=unsound)
        self.pair, self.last_pair = self.last_pair, self.pair
        self.begun = True

    def solve(
        self, residual: Tensor, *, only: Tensor | None = None, condition: bool = True
    ) -> ops.SecantSolution:
        """Coefficients for the residual observed last, one problem per scope (Eq. 5).

        ``only``: ``[k]`` int64, the problems to solve; None for all. ``condition``: whether its
        number is asked for.
        """
        joint, offsets = self.options.scope == "all", self.layout.offsets
        if self.systems is None and self.layout.ranks is None:
            bounds = (0, offsets[-1]) if joint else offsets
            systems = ops.tsqr(self.residual_rows.T, append=residual, offsets=bounds)
            systems = systems * (self.lengths > 0)
        elif self.systems is None:
            assert self.factor is not None
            factor = self.factor.flatten(0, 1)[None] if joint else self.factor
            systems = ops.tsqr(factor) * (self.lengths > 0)
        else:
            systems = self.layout.counted(self.systems)
            if joint and len(systems) > 1:
                systems = systems.sum(dim=0, keepdim=True)
        noise = self.layout.counted(self.noise)
        if len(systems) < len(noise):
            noise = noise.sum(dim=0, keepdim=True)
        if only is not None:
            systems, noise = systems[only], noise[only]
        elsewhere = self.options.storage.compute_device
        solution = ops.solve_secants(
            systems.to(elsewhere) if elsewhere else systems,
            factored=self.systems is None,
            ridge=self.options.reg_acc,
            tolerance=8 * torch.finfo(self.step_rows.dtype).eps,
            noise=noise.to(elsewhere) if elsewhere else noise,
            condition=condition,
        )
        if not elsewhere:
            return solution
        return ops.SecantSolution(*(x.to(self.layout.device) for x in solution))

    def extrapolate_(
        self, out: Tensor, before: Tensor, after: Tensor, gamma: Tensor, rates: tuple[float, ...]
    ) -> Tensor:
        """``out = before + relaxation (after - before) - (W + rate * R / lr) gamma`` (Eq. 4, 6).

        ``rates`` holds the rate of each segment. Returns ``[2]`` the largest ``|out|``, and the
        largest ``|out - after|`` or more. Where nothing is to be extrapolated, ``out = after``.
        """
        offsets, ready = self.layout.offsets, self.verdicts.when.ready
        live = slice(self.live_rows)
        gamma = self.layout.each(gamma)[:, live].contiguous()
        relaxation, rows = self.options.relaxation, self.step_rows[live]
        sizes = ops.extrapolate_(out, before, after, relaxation, rows, gamma, offsets, accept=ready)
        # Rows hold W + R at the rate of their own step: correct those made at another one.
        if any(row is not rates and row != rates for row in self.row_rates[live]):
            made_at = zip(*self.row_rates[live], strict=True)
            excess = [[now - x for x in made] for now, made in zip(rates, made_at, strict=True)]
            gamma = gamma * _beside(gamma, excess)
            rows = self.residual_rows[live]
            more = ops.extrapolate_(out, out, out, 1.0, rows, gamma, offsets, accept=ready)
            sizes = torch.stack([more[0], sizes[1] + more[1]])
        return sizes


@functools.lru_cache(maxsize=8)
def _per_unit(
    rounding: tuple[float, ...], rates: tuple[float, ...], last_rates: tuple[float, ...]
) -> list[float]:
    """Half the last digit of a parameter, per unit of the smaller rate of the two pairs."""
    smaller = map(min, rates, last_rates)
    return [error / rate if rate else 0.0 for error, rate in zip(rounding, smaller, strict=True)]


def _beside(like: Tensor, rows: list[list[float]]) -> Tensor:
    """A matrix of these numbers on the device of ``like``, copied there without waiting.

    Raises:
        RuntimeError: within a CUDA graph, which would copy from where something else lies by then.
    """
    if buffers.captured(like.device):
        raise RuntimeError(
            "a CUDA graph cannot hold learning rates that differ between rows of the history and "
            "this step, or between parameters; before the capture take steps at one rate until "
            "all history_depth rows are at that, or call reset_acceleration_history(optimizer)"
        )
    host = torch.tensor(rows, dtype=like.dtype, device="cpu", pin_memory=like.is_cuda)
    return host.to(like.device, non_blocking=True)
