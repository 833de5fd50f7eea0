"""Subspace Newton on block secants.

w, g      a sample: the parameters, and the gradient that the base optimizer is about to use
W, G, A   changes of the block means of w and of g, and noise samples of g      ``history`` rows
d         -W^T y, y of the small problem (``ops.solve_subspace``), damped       ``fallback``
s0, s1    products of d with the gradients before it and after it

A step d is taken at the end of a block of samples, on top of the base optimizer's own steps, and
judged by the next training gradient. Norms and verdicts stay on the device: nothing here reads one.
An op writes only where its flag, ``verdicts.when.<name>``, is true.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import ops
from .block_history import BlockHistory
from .ops.verdicts import LEAST_TRUST
from .options import SubspaceNewton
from .parameters import Layout, Room
from .quasi_newton import QuasiNewton
from .safeguards import Candidate, Evaluate, arm
from .schedule import Schedule
from .sketched_history import SketchedHistory
from .state import Entries, Scratch
from .trust_region import BlockLength

if TYPE_CHECKING:
    from .optimizer_hook import Gradients


#: Under a schedule noise counts so much more: the decay to come will remove it without a step.
SCHEDULED = 4.0


def doubt(samples: int) -> float:
    """What to multiply a variance with that was estimated from so many samples, at least 1.

    Nine times in ten that is no less than what it is (chi^2, by Wilson and Hilferty 1931).
    """
    spread = 2 / (9 * samples)
    return 1 / math.pow(1 - spread - 1.28 * math.sqrt(spread), 3)


@dataclass(eq=False)
class NewtonIteration:
    """``before`` sees w, ``see_gradient`` sees g, ``step`` moves the parameters on."""

    layout: Scratch[Layout]
    options: Scratch[SubspaceNewton]
    verdicts: ops.Verdicts
    history: BlockHistory
    block_length: BlockLength
    quasi_newton: QuasiNewton
    schedule: Schedule
    room: Scratch[Room]  #: w, g
    fallback: Entries[Tensor]  #: where it began; once it is judged the way between, d
    sizes: Tensor  #: [2] of the last step (``ops.extrapolate_``)
    k: int = 0
    pending: bool = False  #: whether the last step may have been one, so that this one judges
    on_line: bool = False  #: whether the block under way began with one
    rates: Scratch[tuple[float, ...]] = ()  #: of the segments
    near_peak: Scratch[bool] = False  #: of a schedule: no time for steps of blocks
    judged: Scratch[bool] = False  #: whether the step under way has shown its gradient
    may_ask: Scratch[bool] = False  #: whether (w, g) is kept and may be asked about
    at_once: Scratch[bool] = False  #: whether (w, g) need not be kept to become a sample
    figures: Scratch[Tensor | None] = None  #: of one taken at once; kept if its step raises
    reach: Scratch[float] = math.inf  #: largest entry that weight decay leaves
    joined: Scratch[Tensor] = field(default_factory=lambda: torch.empty(0))  #: figures of all ranks
    solution: Scratch[ops.SubspaceSolution | None] = None  #: of the last step

    @classmethod
    def empty(
        cls, layout: Layout, options: SubspaceNewton, verdicts: ops.Verdicts
    ) -> NewtonIteration:
        """Allocate all buffers."""
        verdicts.now.trust_radius.fill_(options.trust_radius)
        verdicts.now.damping.fill_(1)
        history = (SketchedHistory if options.sketch else BlockHistory).empty(
            layout, options, verdicts
        )
        room, fallback = Room(layout), layout.vector()
        return cls(
            layout,
            options,
            verdicts,
            history,
            block_length=BlockLength(options.block_length, options.adaptive_blocks),
            quasi_newton=QuasiNewton.empty(layout, verdicts, history, room, fallback),
            schedule=Schedule(),
            room=room,
            fallback=fallback,
            sizes=layout.numbers(2),
        )

    # ---- the method -------------------------------------------------------------------------

    def rests(self, rates: tuple[float, ...]) -> bool:
        """Whether to do nothing: near a schedule's peak what a step gains is lost in the decay."""
        self.rates = tuple(rates[group] for group in self.layout.groups)
        self.near_peak = self.schedule.near_peak(max(rates), self.options.rest_above)
        asks = self.options.uses_quasi_newton and self.quasi_newton.asks
        rests = self.near_peak and not self.pending and not asks
        if rests and (self.history.blocks or self.history.samples):
            self.clear()
        return rests

    def before(self, shown: bool) -> None:
        """Keep w; on most steps the sample is taken at once, if g is ``shown`` before w changes."""
        self.judged = False
        self.may_ask = self.options.uses_quasi_newton and self.quasi_newton.compares
        waits = self.pending or self.may_ask or self.layout.has_copies
        self.at_once = shown and not waits
        if not self.at_once:
            self.layout.read(self.room.point)

    def see_gradient(self, gradients: Gradients) -> Tensor | None:
        """Keep g; whether the base step is to be left out, since g rejects a pending step."""
        if self.judged:  # a closure that is called again, at another point
            if self.quasi_newton.active:
                return self.quasi_newton.left_out
            return self._rejected if self.pending else None
        if self.at_once:
            listed, decays = gradients.listed(self.layout)
            if listed:
                self.judged = self.history.present = True
                points = self.layout.ordered(self.layout.local)
                self.figures = self.history.add(
                    points, listed, self._direction, decays, of=self.block_length.samples
                )
                return None
            self.layout.read(self.room.point)
        present = gradients.gather(self.layout, self.room.point, self.room.gradient)
        self.judged = present or self.layout.ranks is not None  # others may have gradients
        self.history.present = present
        if self.judged and self.quasi_newton.active:
            self.reach = gradients.reach
            return self._judge_exact_step()
        if not self.pending or not self.judged:
            return None
        o, v = self.options, self.verdicts
        growth = o.max_gradient_growth if "residual" in o.tests else math.inf
        moved = self.layout.differ(self.room.point, self.left_at, self.largest)
        if self.layout.ranks:
            squared_norm, moved = self._join(moved)
        else:
            squared_norm = ops.squared_norm([self.room.gradient])
        ops.judge_gradient_(*v.tensors, squared_norm, moved, growth, False)
        return self._rejected

    def step(self, rates: tuple[float, ...], evaluate: Evaluate | None) -> None:
        """Take in the sample (w, g), judge a pending step; at the end of a block, take one."""
        self.k += 1
        if not self.judged:
            self.verdicts.number.skipped_no_gradient += 1
        elif self.quasi_newton.active:
            self._take_exact_step()
        else:
            self._take_in(evaluate)
        if not self.quasi_newton.active:
            self.room.free()

    def _take_in(self, evaluate: Evaluate | None) -> None:
        """Do so with gradients that have noise."""
        o, h, v = self.options, self.history, self.verdicts
        if pending := self.pending:  # a rejected step is as if it had not been
            self.layout.write(self.fallback, when=v.when.rejected)
            self.pending = False
            torch.sub(self.next, self.fallback, out=self.fallback)
            self.next.zero_()
        answered = self.quasi_newton.asked == 2
        self.quasi_newton.compare()
        direction, figures, self.figures = self._direction, self.figures, None
        if figures is None:
            figures = h.add(  # |g|^2, s1
                [self.room.point], [self.room.gradient], direction, of=self.block_length.samples
            )
        if self.layout.ranks:
            h.waiting += [] if pending else [h.of_rank(self.room, direction, figures)]
            figures = self.joined if pending else figures
        if pending or not self.layout.ranks:
            ops.judge_slope_(*v.tensors, figures, pending)
        if pending:  # beyond the minimum along d: back to it
            w = self.room.point
            self.layout.read(w)
            rows, share = self.fallback[None], v.now.share.reshape(1, 1)
            ops.extrapolate_(w, w, w, 1.0, rows, share, (0, self.layout.padded))
            self.layout.write(w, when=v.when.beyond)
        if o.uses_quasi_newton:
            if h.samples == 1 and h.blocks:
                self.quasi_newton.hear()
            self.quasi_newton.watch(answered)
        if closes := h.samples >= self.block_length.samples:
            samples, (change, noise_slot) = h.samples, h.close_block()
            level = self.block_length.level
            ops.learn_(*v.tensors, samples, change, h.noise_norms, noise_slot, level)
            self.block_length.follow(v.now.level_change)
            if o.uses_quasi_newton:
                self.quasi_newton.tell()
        asks = o.uses_quasi_newton and self.quasi_newton.due
        if asks and not pending and self.may_ask:
            h.drop_samples()
            self.quasi_newton.ask()
        if closes:
            self.on_line = h.solvable and not asks and not self.near_peak
            if self.on_line:
                self._take_step(evaluate)

    def _take_step(self, evaluate: Evaluate | None) -> None:
        """Take d, where no safeguard objects."""
        o, h, v = self.options, self.history, self.verdicts
        self.solution, limited = h.solve(self._caution)
        damping = v.now.damping if "limits" in o.tests else 1.0
        y, slope = self.solution.coefficients * damping, (self.solution.slope * damping).sum()
        self.layout.read(self.fallback)
        self.pending = True
        weights = self.layout.each(y)
        sizes = [
            ops.extrapolate_(
                self.next[part],
                self.fallback[part],
                self.fallback[part],
                relaxation=1.0,
                rows=rows,
                coefficients=weights,
                offsets=self.layout.within(part),
                accept=v.when.ready,
            )
            for part, rows in h.directions()
        ]
        self.sizes = functools.reduce(torch.maximum, sizes)  # NaN passes through
        if self.layout.ranks and "loss" in o.tests:  # else the next step is told
            self.sizes = self.layout.ranks.gather(self.sizes)[0].amax(dim=0).to(self.sizes)
        possible = y.any()  # else there is nothing but noise
        candidate = Candidate(
            self.layout, v, self.fallback, self.next, self.largest, possible, evaluate, slope
        )
        candidate.late = self.layout.ranks is not None and "loss" not in o.tests
        tests = tuple(name for name in o.tests if name != "limits")  # the radius is one
        arm(candidate, tests, guarded=True, patient=False)
        ops.gather((self.fallback,), self.next, when=v.when.declined)
        self.layout.write(self.next, when=v.when.accepted)
        v.now.slope.copy_(slope)
        v.when.limited.copy_(limited)

    @property
    def _caution(self) -> float:
        """Weight of the noise, in units of that at a constant rate."""
        if not self.schedule.moved:
            return 1.0
        blocks, o = self.history.blocks, self.options
        if o.rest_above == 1:
            return SCHEDULED
        means = min(blocks, o.history_depth + 1)  # a fit takes off no more than so many times
        caution = SCHEDULED * means
        if self.schedule.gradual:
            caution *= doubt(max(1, min(blocks, o.noise_samples)))
        return caution

    def _judge_exact_step(self) -> Tensor:
        """Whether the base optimizer is not to see the gradient, where gradients repeat."""
        moved = None
        if self.pending:
            moved = self.layout.differ(self.room.point, self.left_at, self.largest)
        for rate, start, stop in zip(self.rates, *self.layout.bounds, strict=True):
            if not rate:  # what the base optimizer does not move stays where it is
                self.room.gradient[start:stop].zero_()
        return self.quasi_newton.judge(moved)

    def _take_exact_step(self) -> None:
        """Gradients repeat: a quasi-Newton step in place of the base step."""
        self.sizes = self.quasi_newton.step(min(self.reach, self.layout.limit))
        self.pending, self.on_line = self.quasi_newton.active, False

    def _join(self, moved: Tensor) -> tuple[Tensor, Tensor]:
        """|g|^2, and whether something has moved the parameters, of all ranks; one collective.

        |g|^2 is NaN where some rank cannot hold the pending point, or none has a gradient.
        """
        layout, h = self.layout, self.history
        assert layout.ranks is not None
        figures = h.of_rank(self.room, self.next - self.fallback)
        unfit = ~(self.largest <= layout.limit)
        figures, moved, unfit = layout.ranks.total(figures, moved, unfit)
        self.joined = h.of_ranks(figures)
        self.joined[0].masked_fill_(self.verdicts.when.pending & unfit, math.nan)
        return self.joined[0], moved

    @property
    def largest(self) -> Tensor:
        """``[]`` entry of where the last step has led."""
        return self.sizes[0]

    @property
    def _direction(self) -> Tensor | None:
        """The last step, d, while slopes along it are measured."""
        return self.fallback if self.on_line else None

    @property
    def _rejected(self) -> Tensor:
        rejected: Tensor = self.verdicts.when.rejected
        return rejected

    # ---- between steps ----------------------------------------------------------------------

    wants_gradient = True  # before the base optimizer uses it

    @property
    def bytes_offloaded(self) -> int:
        """Memory of rows that are not on the device."""
        return self.history.bytes_offloaded

    @property
    def next(self) -> Tensor:
        """``[N]`` where the last step has led, while it is pending."""
        return self.history.spare

    @property
    def left_at(self) -> Tensor:
        """Where the last step has left the parameters, if it is pending."""
        return self.next

    def forget_rates(self) -> None:
        """Forget the schedule: another begins."""
        self.schedule = Schedule()

    def clear(self) -> None:
        """Forget all blocks."""
        if self.quasi_newton.active:
            self.quasi_newton.end()
        self.history.clear(spare=not (self.pending or self.quasi_newton.asked == 1))
        self.on_line, self.figures = False, None
        self.verdicts.when.on_line.zero_()

    def forget_place(self) -> None:
        """Forget what refers to the present place of the parameters."""
        if self.pending:
            self.next.zero_()
        self.pending = False
        self.verdicts.when.pending.zero_()
        self.verdicts.when.exact.zero_()

    def roll_back(self) -> None:
        """Go back to where the pending step began."""
        self.layout.write(self.fallback)
        radius = self.verdicts.now.trust_radius
        radius.copy_((radius / 4).clamp_min(LEAST_TRUST))
        self.forget_place()
        self.on_line = False
