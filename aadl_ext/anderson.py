"""Stable Anderson acceleration: Algorithm 1 of the paper.

w^k       all accelerated parameters before step k, counted from 0         ``history.pair``
w^k + r^k where the base optimizer's step leads, r^k = G(w^k) - w^k        ``base``
R, W + R  differences of stored r, and of stored w + r (Eq. 2, 3)          ``history`` rows
gamma     coefficients of least |r^k - R gamma| (Eq. 5)
w^{k+1}   (1 - beta) w^k + beta (w^k + r^k - (W + R) gamma) (Eq. 4, 6)     ``next``

Norms and verdicts stay on the device: nothing here reads one. An op writes only where its flag,
``verdicts.when.<name>``, is true.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from . import ops
from .moving_average import MovingAverage
from .options import Anderson
from .parameters import Layout
from .ranks import Ranks
from .safeguards import Candidate, Evaluate, arm
from .secant_history import SecantHistory
from .state import Entries, Scratch

if TYPE_CHECKING:
    from .optimizer_hook import Gradients


@dataclass(eq=False)
class AndersonIteration:
    """``before`` sees w^k, ``step`` sees w^k + r^k and moves the parameters on to w^{k+1}."""

    layout: Scratch[Layout]
    options: Scratch[Anderson]
    verdicts: ops.Verdicts
    history: SecantHistory
    window: MovingAverage | None
    next: Entries[Tensor]  #: where the parameters were left; with a window a spare vector
    fallback: Entries[Tensor]  #: w + r where the pending extrapolation began
    gradient: Scratch[Tensor | None]  #: at w^k, where it judges
    sizes: Tensor  #: [2] of the last extrapolation (``ops.extrapolate_``)
    k: int = 0
    pending: bool = False  #: whether the last step may have extrapolated, so that this one judges
    tracked: bool = False  #: whether the parameters are expected where they were left
    judged: Scratch[bool] = False  #: whether the step under way has shown its gradient
    moved: Scratch[Tensor | None] = None  #: whether something else has moved them since
    solution: Scratch[ops.SecantSolution | None] = None  #: of the last extrapolation

    @classmethod
    def empty(cls, layout: Layout, options: Anderson, verdicts: ops.Verdicts) -> AndersonIteration:
        """Allocate all buffers."""
        verdicts.now.reduction.fill_(math.nan)  # there is none yet
        average = options.averaging
        return cls(
            layout,
            options,
            verdicts,
            history=SecantHistory.empty(layout, options, verdicts),
            window=MovingAverage.empty(layout, average, verdicts) if average else None,
            next=layout.vector(),
            fallback=layout.vector(),
            gradient=layout.vector() if "descent" in options.tests else None,
            sizes=layout.numbers(2),
        )

    # ---- Algorithm 1 ------------------------------------------------------------------------

    def before(self, shown: bool) -> None:
        """Keep w^k, on steps that need it, whether its gradient is ``shown`` next or later."""
        self.judged, self.moved = False, None
        if not self.needs_point:
            return
        w = self.history.pair[0]
        self.layout.read(w)
        if self.tracked:
            self.moved = self.layout.differ(w, self.left_at, self.largest)
        if self.window:
            self.window.start_at(w, self.moved)

    def see_gradient(self, gradients: Gradients) -> Tensor | None:
        """Whether the base step is to be left out: the gradient there rejects a pending one."""
        if self.pending and not self.judged:
            self.judged = True
            figures, moved = self.layout.joint(self._slope_here(gradients), self.moved)
            ops.judge_gradient_(
                *self.verdicts.tensors, figures, moved, math.inf, self.window is not None
            )
            self.moved = None
        return self.verdicts.when.rejected if self.judged else None

    def _slope_here(self, gradients: Gradients) -> Tensor:
        """|g|^2 at w^k and, if that judges, g . w^k and g . fallback, on this rank.

        Of the base step r only tells less: momentum and Adam lag behind.
        """
        g, w, layout = self.gradient, self.history.pair[0], self.layout
        if g is None:
            return gradients.squared_norm(layout)[None]
        gradients.gather(layout, w, g)
        products = ops.cross_products(g[None], (g, w, self.fallback), layout.offsets)[:, 0]
        figures: Tensor = layout.counted(products).sum(dim=0)
        return figures

    def step(self, rates: tuple[float, ...], evaluate: Evaluate | None) -> None:
        """From w^k and w^k + r^k to w^{k+1}; ``rates``: learning rate of each segment."""
        o, h, v = self.options, self.history, self.verdicts
        stores, extrapolates, pending = self.stores, self.extrapolates, self.pending
        needed = self.needs_point
        self.k += 1
        self.tracked = False
        if not needed:
            return
        (w, residual), base = h.pair, self.next
        self.layout.read(base)
        if self.judged:  # a step that was left out measures nothing
            base[:1].masked_fill_(v.when.rejected, math.nan)
        figures = h.push(base, rates, stores, extrapolates)  # Eq. 1 to 3
        if self.layout.ranks:
            figures, self.moved = h.join(figures, self.moved, stores, extrapolates)
        compares, averages = "residual" in o.tests, self.window is not None
        ops.judge_residual_(*v.tensors, figures, self.moved, compares, stores, averages)
        if stores:
            h.keep()
        if pending:  # lines 19 to 24: a rejected extrapolation is as if it had not been
            ops.gather((self.fallback,), base, when=v.when.rejected)
        if extrapolates:  # lines 16 to 18
            self.next, self.fallback = self.fallback, base
            self.pending = self.guarded
            self.solution = h.solve(residual)  # Eq. 5
            self._extrapolate(w, residual, base, self.solution, rates, evaluate)
        if self.window:  # lines 5 to 7 of the next pass: Eq. 11, 15 and 16
            self.next = self.window.push(self.next, pending)
            self.next = self.window.smooth(self.next)
        self.layout.write(self.left_at, when=v.when.write)
        self.pending = extrapolates and self.guarded
        self.tracked = self.pending or averages

    def _extrapolate(
        self,
        w: Tensor,
        residual: Tensor,
        base: Tensor,
        solution: ops.SecantSolution,
        rates: tuple[float, ...],
        evaluate: Evaluate | None,
    ) -> None:
        """w^{k+1} by Eq. 4 and 6; or w^k + r^k, where a safeguard objects."""
        o, h, v = self.options, self.history, self.verdicts
        if o.mixing == "paper":  # (1 - beta) w + beta (w + r - (W + R) gamma)
            gamma = o.relaxation * solution.gamma
        else:  # classic: (w - W gamma) + beta (r - R gamma)
            gamma, rates = solution.gamma, tuple(o.relaxation * rate for rate in rates)
        self.sizes = h.extrapolate_(self.next, w, base, gamma, rates)
        possible = solution.rank.any()
        slope = h.slope(residual, base, self.next, rates) if "descent" in o.tests else None
        if self.layout.ranks:
            self.sizes, slope = self._join(self.layout.ranks, slope)
        ways = (self.sizes[1], h.path)
        candidate = Candidate(
            self.layout, v, base, self.next, self.largest, possible, evaluate, slope, ways
        )
        arm(candidate, o.tests, guarded=self.guarded, patient=True)
        ops.gather((base,), self.next, when=v.when.declined)

    def _join(self, ranks: Ranks, slope: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Sizes of the way and its slope over all ranks; one collective."""
        slopes = self.sizes.new_zeros(0) if slope is None else slope[None]
        sizes, slopes = ranks.gather(self.sizes, slopes)
        return sizes.amax(dim=0).to(self.sizes), None if slope is None else slopes.sum()

    # ---- what is due, and where the parameters are ------------------------------------------

    @property
    def largest(self) -> Tensor:
        """``[]`` entry of the last extrapolation."""
        return self.sizes[0]

    @property
    def guarded(self) -> bool:
        """Whether the next step judges an extrapolation."""
        return "residual" in self.options.tests or "descent" in self.options.tests

    bytes_offloaded = 0  # rows are where passes over them are

    @property
    def wants_gradient(self) -> bool:
        """Whether the gradient has to be seen before the base optimizer uses it."""
        return self.pending

    @property
    def stores(self) -> bool:
        """Whether step k stores a pair."""
        return self.options.history_depth > 0 and self.k % self.options.store_each_nth == 0

    @property
    def extrapolates(self) -> bool:
        """Whether step k extrapolates: it needs a pair to compare with."""
        o = self.options
        return self.history.begun and self.k % o.frequency == 0 and self.k > o.wait_iterations

    @property
    def needs_point(self) -> bool:
        """Whether step k needs w^k."""
        return self.stores or self.extrapolates or self.window is not None or self.pending

    @property
    def left_at(self) -> Tensor:
        """Where the last step has left the parameters."""
        return self.window.newest if self.window else self.next

    def rests(self, rates: tuple[float, ...]) -> bool:
        """Never: whether to do nothing at these learning rates."""
        return False

    def forget_rates(self) -> None:
        """Nothing: it knows no schedule."""

    def clear(self) -> None:
        """Forget all pairs."""
        self.history.clear()

    def forget_place(self) -> None:
        """Forget what refers to the present place of the parameters."""
        self.pending = self.tracked = False
        self.verdicts.when.pending.zero_()
        self.verdicts.when.accepted.zero_()
        if self.window:
            self.window.clear()

    def roll_back(self) -> None:
        """Go back to where the pending extrapolation began."""
        self.layout.write(self.fallback)
        if self.window:
            self.window.newest.copy_(self.fallback)
        self.pending = self.tracked = False
        self.verdicts.when.pending.zero_()
        self.verdicts.when.accepted.zero_()
