"""Quasi-Newton steps (L-BFGS) while gradients repeat, as they do on full batches.

w, g      a sample: the parameters, and the gradient that the base optimizer is about to use
w0, g0    that where a step began                            ``fallback``, ``last_gradient``
S, Y      changes of w and g along steps                     ``step_rows``, ``gradient_rows``
d         -H g0, H from S and Y (``solve_quasi_newton``)     ``direction``
r         what the base optimizer would do

Each step is judged by the next training gradient (``ops.judge_line_``): no closure, no loss. A
point that is not good is left for one nearer to w0 on the same line. The base optimizer steps
along at points that stand, so that its state is that of the present gradients, and its move is
undone. Now and then it has a trial (``Race``). Nothing here waits for a device: ``active``, what
the host knows, follows ``verdicts.when.exact`` some steps late, and where that is false already the
moves of the base optimizer stand.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import ops
from .block_history import BlockHistory
from .buffers import zeros
from .parameters import Layout, Room
from .race import Race
from .state import Scratch
from .trust_region import Delayed

logger = logging.getLogger("aadl_ext")

SMOOTH = 1e-3  # noise of a gradient, relative, below which gradients may repeat
FIRST = 500  # the step that asks, whatever the noise
HEARS = 5  # blocks at least, also where a schedule lets the method rest
WAIT, LONGER = 16, 32  # steps until one asks again; how many times as many after each "no"
HOLD = 32  # steps between two that ask again
FOLLOW = 4  # steps between two looks of the host
GROWTH = 4.0  # longest step, in units of the last one
STEEPER = 10.0  # growth of the gradient in a step that is good


@dataclass(eq=False)
class QuasiNewton:
    """``ask``, ``compare`` and ``watch`` tell whether gradients repeat; ``step`` moves w then."""

    layout: Scratch[Layout]
    verdicts: Scratch[ops.Verdicts]
    history: Scratch[BlockHistory]  #: lends its rows
    room: Scratch[Room]  #: w, g
    fallback: Scratch[Tensor]  #: w0
    direction: Scratch[Tensor]  #: d, in a sum of the history, which has none meanwhile
    step_rows: Scratch[Tensor]  #: [m, N] S
    gradient_rows: Scratch[Tensor]  #: [m, N] Y
    squared_norm: Tensor  #: [] float64 |g0|^2
    metric: Tensor  #: [m, m] S S^T
    curvature: Tensor  #: [m, m] S Y^T
    gradient_metric: Tensor  #: [m, m] Y Y^T
    race: Race
    active: bool = False  #: whether the host knows that gradients repeat
    age: int = 0  #: steps since then
    until: int = field(default_factory=lambda: FIRST)  #: steps until one asks
    wait: int = WAIT  #: and until the next one does
    listens: bool = True  #: whether no step has asked yet
    heard: int = 0  #: blocks
    hinted: bool = False  #: whether a block without noise says that it is worth a step
    asked: int = 0  #: 1: the last step has asked; 2: the answer is on its way to the host
    known: Delayed = field(default_factory=Delayed)
    here: Scratch[Tensor] = field(default_factory=lambda: torch.empty(0))  #: [] |g|^2
    products: Scratch[Tensor] = field(default_factory=lambda: torch.empty(0))  #: [2 m, k] of rows

    @classmethod
    def empty(
        cls,
        layout: Layout,
        verdicts: ops.Verdicts,
        history: BlockHistory,
        room: Room,
        fallback: Tensor,
    ) -> QuasiNewton:
        """Allocate what the history does not have."""
        m = len(history.rows) // 2
        return cls(
            layout,
            verdicts,
            history,
            room,
            fallback,
            direction=history.sums[0],
            step_rows=history.rows[:m],
            gradient_rows=history.rows[m : 2 * m],
            squared_norm=zeros((), torch.float64, layout.device),
            metric=zeros((m, m), torch.float64, layout.device),
            curvature=zeros((m, m), torch.float64, layout.device),
            gradient_metric=zeros((m, m), torch.float64, layout.device),
            race=Race.empty(layout, start=history.last_point, gradient=history.sums[1]),
        )

    @property
    def next(self) -> Tensor:
        """``[N]`` where the last step has led; free until the next is taken."""
        return self.history.spare

    @property
    def asks(self) -> bool:
        """Whether the first answer is to come, or steps are taken: no time to rest."""
        return self.active or self.asked > 0 or (self.listens and self.heard < HEARS)

    @property
    def due(self) -> bool:
        """Whether the next step that is free to do so asks."""
        return self.asked == 0 and (self.until <= 0 or self.hinted)

    @property
    def compares(self) -> bool:
        """Whether this step's point and gradient may be needed."""
        return self.active or self.asked == 1 or self.until <= 1 or self.hinted

    @property
    def slot(self) -> int:
        """Row of the newest pair."""
        return self.age % len(self.step_rows)

    @property
    def left_out(self) -> Tensor:
        """``[]`` bool, whether the base optimizer is not to see g: w does not stand."""
        left_out: Tensor = self.verdicts.when.exact & ~self.verdicts.when.ready
        return left_out

    # ---- do gradients repeat? -----------------------------------------------------------------

    def tell(self) -> None:
        """At the end of a block: send the host how much noise it had."""
        if self.listens:
            self.known.exchange(self.verdicts.now.roughness)

    def hear(self) -> None:
        """A step later: whether there was none (0: nothing is known)."""
        if self.listens:
            self.heard += 1
            self.hinted = 0 < self.known.exchange(self.verdicts.now.roughness) < SMOOTH

    def compare(self) -> None:
        """A step after one has asked: send the host whether its gradient is there again."""
        if self.asked != 1:
            return
        change = torch.sub(self.room.gradient, self.next, out=self.next)
        norms = [self.layout.products(x, x)[0] for x in (self.room.gradient, change)]
        ops.compare_(*self.verdicts.tensors, *self.layout.joint(*norms))
        self.known.exchange(self.verdicts.when.exact.double())
        self.next.zero_()
        self.asked = 2

    def watch(self, answered: bool) -> None:
        """In every step; a step after one has compared, hear what it has found, and begin."""
        self.until -= 1
        if not answered:
            return
        self.asked = 0
        if self.known.exchange(self.verdicts.when.exact.double()):
            logger.info(
                "gradients repeat, as on full batches: quasi-Newton steps from now on, which "
                "fit the training data far closer; watch the validation loss "
                "(SubspaceNewton(quasi_newton=False) takes none)"
            )
            self.begin()
        else:
            self.wait = self.until = LONGER * self.wait

    def ask(self) -> None:
        """Undo the base step, for another gradient there, which is seen before the next block."""
        self.next.copy_(self.room.gradient)
        self.layout.write(self.room.point)
        self.asked, self.listens, self.hinted = 1, False, False

    def begin(self) -> None:
        """Gradients repeat: take steps."""
        self.active, self.age = True, 0
        self.history.judge_waiting()
        self.history.clear()
        self.race.begin()
        self.verdicts.now.tries.zero_()
        for matrix in (self.metric, self.curvature, self.gradient_metric):
            matrix.zero_()

    def end(self) -> None:
        """Leave the parameters to the base optimizer; ask again after some time."""
        logger.info("quasi-Newton steps end; the base optimizer goes on")
        if self.race.decided(self.age):  # the base optimizer is the faster one
            self.wait *= LONGER
        self.active, self.asked, self.until, self.wait = False, 0, self.wait, 2 * self.wait
        when = self.verdicts.when
        for flag in (when.exact, when.held):
            flag.zero_()

    # ---- steps while they do ------------------------------------------------------------------

    def judge(self, moved: Tensor | None) -> Tensor:
        """Take in (w, g), and judge the step that led here; one collective.

        ``moved``: ``[]`` bool, whether something else has moved the parameters. Returns
        ``left_out``.
        """
        v, when, layout, h = self.verdicts, self.verdicts.when, self.layout, self.history
        self.age += 1
        next, new = self.next, [self.step_rows[self.slot], self.gradient_rows[self.slot]]
        new[1].copy_(torch.sub(self.room.gradient, h.last_gradient, out=next))
        change = layout.products(next, next)
        new[0].copy_(torch.sub(self.room.point, self.fallback, out=next))
        new += [self.room.gradient, self.race.gradient][: 1 + self.race.may_go_back(self.age)]
        figures, change, self.products, moved = layout.joint(
            h.of_rank(self.room, self.direction),
            change[0],
            layout.products(h.rows[: 2 * len(self.step_rows)], *new),
            moved,
        )
        figures = h.of_ranks(figures)
        self.here = figures[0]
        hold = self.age % HOLD == 0 and not self.race.tries(self.age)
        pending = when.pending & ~when.held
        ops.judge_line_(*v.tensors, figures, change, moved, self.race.by_base, STEEPER, hold)
        self.race.follow(v, pending, figures[1])
        return self.left_out

    def step(self, reach: float) -> Tensor:
        """Take the next step; one collective.

        ``reach``: the largest entry that the parameters of this rank may have. Returns the ``[2]``
        sizes of ``ops.extrapolate_`` on it.
        """
        v, when, ends = self.verdicts, self.verdicts.when, (0, self.layout.padded)
        last_gradient, direction, next = self.history.last_gradient, self.direction, self.next
        ops.gather((self.room.point,), self.fallback, when=when.ready)
        ops.gather((self.room.gradient,), last_gradient, when=when.ready)
        self.squared_norm.copy_(torch.where(when.ready, self.here, self.squared_norm))
        back = self.race.look(
            self.age, v, self.fallback, last_gradient, self.squared_norm, way=next
        )
        solution = self._solve(back)
        direction.mul_(v.now.share)
        for rows, coefficients in (
            (last_gradient[None], solution.gradient),
            (self.step_rows, solution.steps),
            (self.gradient_rows, solution.changes),
        ):
            ops.extrapolate_(
                direction, direction, direction, 1.0, rows, coefficients, ends, accept=when.anew
            )
        blind = when.anew & (solution.gradient == 0).squeeze()  # there is no step to learn from
        by_base = self.race.whose(self.age, when.anew)
        ops.gather((self._base_step(),), direction, when=blind | by_base & when.anew)
        sizes = ops.extrapolate_(
            next,
            self.fallback,
            self.fallback,
            relaxation=1.0,
            rows=direction[None],
            coefficients=-torch.ones_like(solution.gradient),
            offsets=ends,
            accept=when.exact & ~when.held,
        )
        (slope,) = self.layout.products(last_gradient, direction)
        slope, moves, unfit = self.layout.joint(slope, sizes[1] > 0, ~(sizes[0] <= reach))
        ops.take_line_(*v.tensors, slope, moves, ~unfit, by_base)
        ops.gather((self.fallback,), next, when=when.declined)
        self.layout.write(next, when=when.write)
        if self.age % FOLLOW == 0 and not self.known.exchange(when.exact.double()):
            self.end()
            self.history.clear()
        return sizes

    def _base_step(self) -> Tensor:
        self.layout.read(self.next)
        return torch.sub(self.next, self.room.point, out=self.next)

    def _solve(self, back: Tensor) -> ops.QuasiNewtonSolution:
        """The direction from (w0, g0), with the new pair if it can be used.

        ``back``: ``[]`` bool, whether that is where a trial of the base optimizer began. Where it
        is where another step began no product with g0 is needed.
        """
        slot, when, products = self.slot, self.verdicts.when, self.products
        for new in (self.step_rows[slot], self.gradient_rows[slot], products[:, :2]):
            new.masked_fill_(~when.complete, 0)
        step_slopes, gradient_slopes = torch.where(back, products[:, -1], products[:, 2]).chunk(2)
        of_steps, of_gradients = products.chunk(2)
        self.metric[slot] = self.metric[:, slot] = of_steps[:, 0]
        self.curvature[:, slot], self.curvature[slot] = of_steps[:, 1], of_gradients[:, 0]
        self.curvature.masked_fill_(when.rejected, 0)  # what they say has led nowhere
        self.gradient_metric[slot] = self.gradient_metric[:, slot] = of_gradients[:, 1]
        return ops.solve_quasi_newton(
            self.metric,
            self.curvature,
            self.gradient_metric,
            step_slopes,
            gradient_slopes,
            self.squared_norm,
            newest=slot,
            growth=GROWTH,
        )
