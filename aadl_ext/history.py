"""Ring of secant rows, and the least-squares problem over it (Eq. 2, 3 and 5)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import ops
from .decisions import (
    Flag,
    Number,
    choose_vector,
    finite,
    negate,
    number,
    numbers,
    possible,
    readable,
    table,
)
from .flat import Layout
from .options import Options


class Observation(NamedTuple):
    """What one step of the base optimizer measured."""

    finite: Flag
    residual_norm: Number  #: |r / lr| over all parameters
    max_step: Number  #: max |r|


class SecantHistory:
    """The last m differences of pairs (w, r / lr); slots rotate, data never moves.

    A pair is a point and the residual evaluated at it, so it stays true whatever moved
    the parameters in between. Residuals are kept per unit of learning rate, so it stays
    true under a schedule too. Rows are columns of R and of W + R (``ops.push_secant``).

    Where the host cannot see whether a row is usable, the ring goes on in any case, and the row
    is not ``live``.
    """

    paired: Flag  # whether the last pair is one

    def __init__(self, layout: Layout, options: Options) -> None:
        depth = options.history_depth if options.accelerates else 0
        storage = options.history_dtype or layout.dtype
        self.offsets = layout.offsets
        self.joint = options.scope == "all"  # one least-squares problem over all segments
        self.ridge = options.reg_acc
        self.tolerance = 8 * torch.finfo(storage).eps
        self.compute_device = options.compute_device or layout.device
        self._residuals = (layout.vector(), layout.vector())  # they take turns as:
        self.residual = self._residuals[0]  # r / lr of the step observed last
        self.last_residual = self._residuals[1]  # r / lr of the last stored pair,
        self.last_point: Tensor | None = None  # and its w, a vector of the caller's
        self.step_rows = layout.vector(depth, storage)
        self.residual_rows = layout.vector(depth, storage)
        # Gram matrices of [R | r], one a segment; TSQR makes its factors anew
        self.systems: Tensor | None = None
        if options.solver_for(storage) == "gram":
            shape = (len(layout.groups), depth + 1, depth + 1)
            self.systems = torch.zeros(shape, dtype=torch.float64, device=layout.device)
        seen = readable(self.residual)
        self.live = None if seen else torch.zeros(depth, dtype=torch.bool, device=layout.device)
        self.clear()

    @property
    def has_pair(self) -> bool:
        """Whether there is a pair that the next one can be compared with."""
        return self.last_point is not None

    @property
    def solvable(self) -> Flag:
        """Whether there is a usable row."""
        return self.count > 0 if self.live is None else self.live.any()

    def clear(self, when: Flag = True) -> None:
        """Forget all pairs."""
        if isinstance(when, Tensor) and self.live is not None:
            self.live.masked_fill_(when, False)
            self.paired = self.paired & negate(when)
        elif when:
            self._clear()

    def _clear(self) -> None:
        self.paired = False
        self.last_point = None
        self.slot = 0  # the next row to write
        self.count = 0  # rows in use: 0 .. count - 1
        self.row_rates: list[tuple[float, ...]] = []  # learning rates that each row was made with
        if self.systems is not None:
            self.systems.zero_()
        if self.live is not None:
            self.live.zero_()

    def observe(
        self, before: Tensor, after: Tensor, rates: tuple[float, ...], store: bool
    ) -> Observation:
        """Measure the step from ``before`` to ``after``; with ``store`` keep the pair.

        A stored ``before`` is kept as it is, as ``last_point``: do not change it.
        """
        slot = self.slot if store and self.last_point is not None else None
        used = self.count if slot is None else max(self.count, slot + 1)
        if self.residual is self.last_residual:  # it belongs to the last pair now
            self.residual = next(v for v in self._residuals if v is not self.last_residual)
        figures = ops.push_secant(
            before,
            after,
            rates=rates,
            offsets=self.offsets,
            residual=self.residual,
            last_point=before if self.last_point is None else self.last_point,
            last_residual=self.last_residual,
            step_rows=self.step_rows[:used],
            residual_rows=self.residual_rows[:used],
            slot=slot,
            systems=self.systems,
        )
        max_step, squared_norm, row_norm = numbers(figures)
        sound = finite(squared_norm)
        usable = sound & finite(row_norm) & self.paired
        if slot is not None and possible(usable):
            self.row_rates[slot : slot + 1] = [rates]
            self.slot, self.count = (slot + 1) % self.step_rows.shape[0], used
            if self.live is not None:
                self.live[slot] = usable
        if store and possible(sound):
            unsound, last = negate(sound), self.last_point
            self.last_point = before if last is None else choose_vector(unsound, last, before)
            self.last_residual = choose_vector(unsound, self.last_residual, self.residual)
            self.paired = self.paired | sound
        return Observation(sound, squared_norm**0.5, max_step)

    def solve(self) -> ops.SecantSolution:
        """Coefficients for the residual observed last, one problem per scope; needs a row."""
        if self.systems is None:
            bounds = (0, self.offsets[-1]) if self.joint else self.offsets
            rows = self.residual_rows[: self.count].T
            systems = ops.tsqr(rows, append=self.residual, offsets=bounds)
        else:
            systems = bordered(self.systems, self.count)
            if self.joint and systems.shape[0] > 1:
                systems = systems.sum(dim=0, keepdim=True)
        if self.live is not None:  # columns that are not count as zero
            live = torch.nn.functional.pad(self.live[: self.count], (0, 1), value=True)
            systems = systems * live
            systems = systems if self.systems is None else systems * live.unsqueeze(1)
        return ops.solve_secants(
            systems.to(self.compute_device),
            factored=self.systems is None,
            ridge=self.ridge,
            tolerance=self.tolerance,
        )

    def extrapolate_(
        self,
        out: Tensor,
        before: Tensor,
        after: Tensor,
        relaxation: float,
        gamma: Tensor,
        rates: tuple[float, ...],
        accept: Flag,
    ) -> Number:
        """``out = before + relaxation (after - before) - (W + rate * R / lr) gamma``.

        ``rates`` holds the rate of each segment. Returns the largest ``|out|``. Where it is not
        to ``accept`` it, ``out = after``.
        """
        gamma = gamma.to(out.device)
        rows = self.step_rows[: self.count]
        largest = ops.extrapolate_(
            out, before, after, relaxation, rows, gamma, self.offsets, accept=accept
        )
        # Rows hold W + R at the rate of their own step: correct those made at another one.
        if any(row != rates for row in self.row_rates):
            made_at = zip(*self.row_rates, strict=True)
            excess = [[now - x for x in made] for now, made in zip(rates, made_at, strict=True)]
            rows = self.residual_rows[: self.count]
            gamma = gamma * table(excess, gamma)
            largest = ops.extrapolate_(out, out, out, 1.0, rows, gamma, self.offsets, accept=accept)
        return number(largest)

    def state_dict(self) -> dict[str, Any]:
        """Rows in use and counters; tensors are copies."""
        return {
            "step_rows": self.step_rows[: self.count].clone(),
            "residual_rows": self.residual_rows[: self.count].clone(),
            "systems": None if self.systems is None else self.systems.clone(),
            "last_point": None if self.last_point is None else self.last_point.clone(),
            "last_residual": self.last_residual.clone(),
            "paired": bool(self.paired),
            "live": torch.ones(self.count, dtype=torch.bool)
            if self.live is None
            else self.live[: self.count].clone(),
            "slot": self.slot,
            "row_rates": [list(row) for row in self.row_rates],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.count = len(state["step_rows"])
        self.step_rows[: self.count].copy_(state["step_rows"])
        self.residual_rows[: self.count].copy_(state["residual_rows"])
        if self.systems is not None:
            self.systems.copy_(state["systems"])
        point = state["last_point"]
        self.last_point = None if point is None else torch.empty_like(self.residual).copy_(point)
        self.paired = state["paired"]
        if self.live is not None:
            self.live[: self.count].copy_(state["live"])
        self.last_residual = self._residuals[1].copy_(state["last_residual"])
        self.residual, self.slot = self._residuals[0], state["slot"]
        self.row_rates = [tuple(row) for row in state["row_rates"]]

    @property
    def tensors(self) -> list[Tensor]:
        """All buffers of its own."""
        systems = [] if self.systems is None else [self.systems]
        return [*self._residuals, self.step_rows, self.residual_rows, *systems]


def bordered(systems: Tensor, count: int) -> Tensor:
    """The first ``count`` rows and columns of square matrices, and the last ones."""
    if count + 1 < systems.shape[-1]:
        for dim in (1, 2):
            last = systems.narrow(dim, systems.shape[dim] - 1, 1)
            systems = torch.cat((systems.narrow(dim, 0, count), last), dim)
    return systems
