"""The iteration: Algorithm 1 of the paper as a small state machine around ``step()``."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from . import safeguards
from .averaging import MovingAverage
from .decisions import (
    Flag,
    Number,
    choose,
    choose_vector,
    negate,
    number,
    possible,
    spoil,
    told,
)
from .gradients import Gradients
from .history import Observation, SecantHistory
from .machine import Evaluate, Groups, Machine
from .safeguards import Jump


class Accelerator(Machine):
    """Algorithm 1 of the paper; ``after_step`` moves the parameters on to w^{k+1}."""

    patience = 2
    history: SecantHistory
    window: MovingAverage
    jump: Jump | None
    _before: Tensor | None  # w^k, between the two hooks of a step that needs it
    _vetoed: Flag  # whether the base step was held back
    _norm_before_jump: Number | None

    # ---- Algorithm 1 --------------------------------------------------------------

    def before_step(
        self, param_groups: Groups, has_closure: bool = False, skip: str | None = None
    ) -> None:
        """Keep w^k, on steps that need it; ``skip`` names why this step does not count.

        Raises:
            RuntimeError: ``safeguard="loss"`` and there is no closure.
        """
        k, options = self.k, self.options
        self._before, self._vetoed = None, False
        self._skip = skip or self._follow(param_groups)
        if self._skip or not self.layout.parameters:
            return
        safeguards.ask_for_closure(self.options, has_closure)
        self._store = options.accelerates and k % options.store_each_nth == 0
        self._extrapolate = (
            options.accelerates and k % options.frequency == 0 and k > options.wait_iterations
        )
        if self._store or self._extrapolate or options.average or self.jump:
            self._before = self.layout.gather(self._spare())
            self._notice_moves(self._before)

    @property
    def wants_gradient(self) -> bool:
        """Whether the parameters are at a jump that the next gradient may show to be useless."""
        return self.jump_pending and not self.skips

    def see_gradient(self, gradients: Gradients) -> Flag:
        """Hold back a base step from a pending jump whose gradient is not finite."""
        if self.jump is None:
            return False
        useless = self.jump.made & negate(gradients.usable(self.layout.device))
        self._vetoed = self._vetoed | useless
        return useless

    def after_step(self, evaluate: Evaluate | None = None) -> None:
        """Store the pair (w^k, r^k), jump, guard and average; the parameters become w^{k+1}.

        ``evaluate`` returns the loss at the present parameters (``safeguard="loss"``).
        """
        if self._skip:
            self._stats.count("skipped", cause=self._skip)
            return
        self.k += 1
        self._stats.count("steps")
        before, self._before, self._left_at = self._before, None, None
        if before is None:
            self._norm_before_jump = None
            return
        plain = self.layout.gather(self._spare(before))  # w^k + r^k
        seen = self._observe(before, plain)
        pending, self.jump = self.jump, None
        undone = self._judge(pending, seen)
        sound, max_step = seen.finite & negate(undone), seen.max_step
        if pending is not None:  # lines 22 to 24: an undone jump is as if it had not been
            plain = choose_vector(undone, pending.plain, plain)
            max_step = choose(undone, pending.max_step, max_step)
        point, made = plain, self._extrapolate and sound
        if possible(made):
            point, made = self._try_jump(before, plain, seen, made, evaluate)
        self.window.push(point, instead=undone)

        lost = negate(seen.finite | undone)  # by the base optimizer's own step: leave it
        if possible(lost):
            self._stats.count("skipped", lost, "nonfinite")
            self._forget_place(lost)
        averaged: Flag = False
        if self.window.full:  # lines 5 to 7 of the next pass
            averaged = self.window.smooth(max_step, self._spare(point, plain))
            point = self.window.iterates[-1]
            self._stats.count("averaged", averaged)
        self.layout.scatter_(point, when=undone | made | averaged)
        self._left_at = point if self.jump or self.window.iterates else None
        self._watched = negate(lost) & (bool(self.window.iterates) or made)

    def _observe(self, before: Tensor, plain: Tensor) -> Observation:
        """Measure r^k and store the pair; a step that was held back measures nothing."""
        if self._vetoed is True:
            return Observation(False, math.nan, math.nan)
        spoil(plain, self._vetoed)
        seen = self.history.observe(before, plain, self.rates, self._store)
        self._stats.count("pairs", self._store & seen.finite)
        return seen

    def _judge(self, jump: Jump | None, seen: Observation) -> Flag:
        """Whether the jump that the step has started from is to be undone."""
        norm, self._norm_before_jump = self._norm_before_jump, None
        if norm is not None and possible(seen.finite):
            self._stats.actual_reduction = seen.residual_norm / norm
        if jump is None:
            return False
        decreased = safeguards.residual_decreased(jump, seen.residual_norm)
        nonfinite = jump.made & negate(seen.finite)
        residual = jump.made & seen.finite & negate(decreased)
        undone = nonfinite | residual
        accepted = jump.made & negate(undone)
        self._count_verdict(accepted=accepted, nonfinite=nonfinite, residual=residual)
        return undone

    def _try_jump(
        self, before: Tensor, plain: Tensor, seen: Observation, due: Flag, evaluate: Evaluate | None
    ) -> tuple[Tensor, Flag]:
        """Lines 16 to 18, if ``due``: the extrapolated point, or ``plain``; and whether it is."""
        options, stats = self.options, self._stats
        due = due & self.history.solvable & (seen.residual_norm > 0)
        if not possible(due):
            return plain, False
        solution = self.history.solve()
        stats.count("jumps", due)
        stats.gamma, stats.rank, stats.condition, stats.predicted_reduction = solution

        limits: Flag = False
        if "limits" in options.safeguards:
            size = number(solution.gamma.abs().sum().to(plain.device))
            limits = due & (size > options.coefficient_limit)
        if options.mixing == "paper":  # Eq. 6: (1 - beta) w + beta (w + r - (W + R) gamma)
            gamma, rates = options.relaxation * solution.gamma, self.rates
        else:  # classic: (w - W gamma) + beta (r - R gamma)
            gamma, rates = solution.gamma, tuple(options.relaxation * x for x in self.rates)
        made = due & negate(limits)
        candidate = self._spare(before, plain)
        largest = self.history.extrapolate_(
            candidate, before, plain, options.relaxation, gamma, rates, made
        )
        nonfinite = made & negate(largest <= self.layout.limit)  # NaN is not either
        made = made & negate(nonfinite)
        loss = "loss" in options.safeguards and bool(made)  # it waits for losses anyway
        loss = loss and not self._lowers_loss(plain, candidate, evaluate)
        made = made & negate(loss)

        waits = "residual" in options.safeguards
        accepted = made & (not waits)
        self._count_verdict(accepted=accepted, limits=limits, nonfinite=nonfinite, loss=loss)
        if waits and possible(made):
            self.jump = Jump(plain, seen.residual_norm, seen.max_step, made)
        if possible(made):
            self._norm_before_jump = seen.residual_norm
        self._rescale_momentum(solution.reduction, made)
        return choose_vector(negate(made), plain, candidate), made

    # ---- its history and state ----------------------------------------------------------

    def _undo(self, jump: Jump, when: Flag) -> None:
        self.layout.scatter_(jump.plain, when=when)
        self.window.push(jump.plain, instead=when)
        self._norm_before_jump = None

    def _notice_moves(self, before: Tensor) -> Flag:
        moved = super()._notice_moves(before)
        self.window.start_at(before, moved)
        return moved

    def _forget_place(self, when: Flag = True) -> None:
        super()._forget_place(when)
        self.window.forget(when)
        if when is True:
            self._norm_before_jump = None

    def _clear_history(self, when: Flag) -> None:
        self.history.clear(when)

    def _start(self) -> None:
        options = self.options
        self.history = SecantHistory(self.layout, options)
        iterates = options.average_window if options.average else 0
        self.window = MovingAverage(iterates, options.average_threshold)
        self._before = self._norm_before_jump = None

    def _held(self) -> list[Tensor | None]:
        return [*super()._held(), self.history.last_point, *self.window.iterates]

    def _tensors(self) -> list[Tensor]:
        return self.history.tensors

    def _state(self) -> dict[str, Any]:
        return {
            "history": self.history.state_dict(),
            "iterates": [iterate.clone() for iterate in self.window.iterates],
            "known_iterates": told(self.window.known),
            "jump": self.jump and (self.jump.plain.clone(), *self.jump.figures),
            "norm_before_jump": self._norm_before_jump and told(self._norm_before_jump),
        }

    def _take_state(self, state: dict[str, Any]) -> None:
        self.history.load_state_dict(state["history"])
        self._vectors += [v for v in [self.history.last_point] if v is not None]
        self.window.iterates = [self._copy(iterate) for iterate in state["iterates"]]
        self.window.known = state["known_iterates"]
        jump = state["jump"]
        self.jump = jump and Jump(self._copy(jump[0]), *jump[1:])
        self._norm_before_jump = state["norm_before_jump"]
