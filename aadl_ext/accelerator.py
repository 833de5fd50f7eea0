"""The iteration: Algorithm 1 of the paper as a small state machine around ``step()``."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from . import safeguards
from .averaging import MovingAverage
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
    _norm_before_jump: float | None

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
        self._ask_for_closure(has_closure)
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

    def see_gradient(self, gradients: Gradients) -> bool:
        """Hold back (false) a base step from a pending jump whose gradient is not finite."""
        usable = gradients.usable()
        self._vetoed = self._vetoed or not usable
        return usable

    def after_step(self, evaluate: Evaluate | None = None) -> None:
        """Store the pair (w^k, r^k), jump, guard and average; the parameters become w^{k+1}.

        ``evaluate`` returns the loss at the present parameters (``safeguard="loss"``).
        """
        if self._skip:
            self.stats.skipped[self._skip] += 1
            return
        self.k += 1
        self.stats.steps += 1
        before, self._before, self._left_at = self._before, None, None
        if before is None:
            self._norm_before_jump = None
            return
        plain = self.layout.gather(self._spare(before))  # w^k + r^k
        seen = self._observe(before, plain)
        fault = self._judge(seen)
        pending, self.jump = self.jump, None

        if fault is None:
            point, max_step = plain, seen.max_step
            if self._extrapolate and self.history.count and seen.residual_norm > 0:
                point = self._try_jump(before, plain, seen, evaluate)
            self.window.push(point)
        elif pending is not None:  # lines 22 to 24: as if the jump had not been
            point, max_step = pending.plain, pending.max_step
            self.window.replace_newest(point)
        else:  # the base optimizer's own step is not finite: leave it, store nothing
            self.stats.skipped[fault] += 1
            self._forget_place()
            return

        if self.window.full:  # lines 5 to 7 of the next pass
            mean = self._spare(point, plain)
            if self.window.smooth(max_step, mean):
                self.stats.averaged += 1
                point = mean
        if point is not plain:
            self.layout.scatter_(point)
        self._left_at = point if self.jump or self.options.average else None

    def _observe(self, before: Tensor, plain: Tensor) -> Observation:
        """Measure r^k and store the pair; a vetoed step was held back and measures nothing."""
        if self._vetoed:
            return Observation(False, math.nan, math.nan)
        seen = self.history.observe(before, plain, self.rates, self._store)
        self.stats.pairs += self._store and seen.finite
        return seen

    def _judge(self, seen: Observation) -> str | None:
        """What is wrong with the step just measured, or with the jump it started from."""
        reference, self._norm_before_jump = self._norm_before_jump, None
        if seen.finite and reference:
            self.stats.actual_reduction = seen.residual_norm / reference
        fault = None if seen.finite else "nonfinite"
        if self.jump is not None:
            if fault is None and not safeguards.residual_decreased(self.jump, seen.residual_norm):
                fault = "residual"
            self._count_verdict(fault)
        return fault

    def _undo(self, jump: Jump) -> None:
        self.layout.scatter_(jump.plain)
        self.window.replace_newest(jump.plain)
        self._norm_before_jump = None

    def _try_jump(
        self,
        before: Tensor,
        plain: Tensor,
        seen: Observation,
        evaluate: Evaluate | None,
    ) -> Tensor:
        """Lines 16 to 18: the extrapolated point, or ``plain``."""
        options, stats = self.options, self.stats
        solution = self.history.solve()
        stats.jumps += 1
        stats.gamma, stats.rank, stats.condition, stats.predicted_reduction = solution

        size = float(solution.gamma.abs().sum())
        if "limits" in options.safeguards and size > options.coefficient_limit:
            self._count_verdict("limits")
            return plain
        beta, candidate = options.relaxation, self._spare(before, plain)
        if options.mixing == "paper":  # Eq. 6: (1 - beta) w + beta (w + r - (W + R) gamma)
            gamma, rates = beta * solution.gamma, self.rates
        else:  # classic: (w - W gamma) + beta (r - R gamma)
            gamma, rates = solution.gamma, tuple(beta * rate for rate in self.rates)
        largest = self.history.extrapolate_(candidate, before, plain, beta, gamma, rates)

        if not float(largest) <= self.layout.limit:  # NaN is not either
            self._count_verdict("nonfinite")
            return plain
        if "loss" in options.safeguards and not self._lowers_loss(plain, candidate, evaluate):
            self._count_verdict("loss")
            return plain
        self._rescale_momentum(float(solution.reduction.max()))
        if "residual" in options.safeguards:
            self.jump = Jump(plain, seen.residual_norm, seen.max_step)
        else:
            self._count_verdict(None)
        self._norm_before_jump = seen.residual_norm
        return candidate

    # ---- its history and state ----------------------------------------------------------

    def _notice_moves(self, before: Tensor) -> None:
        super()._notice_moves(before)
        if not self.window.iterates:
            self.window.push(before)

    def _forget_place(self) -> None:
        super()._forget_place()
        self._norm_before_jump = None
        self.window.clear()

    def _clear_history(self) -> None:
        self.history.clear()

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
            "jump": self.jump and (self.jump.plain.clone(), *self.jump.norms),
            "norm_before_jump": self._norm_before_jump,
        }

    def _take_state(self, state: dict[str, Any]) -> None:
        self.history.load_state_dict(state["history"])
        self._vectors += [v for v in [self.history.last_point] if v is not None]
        self.window.iterates = [self._copy(iterate) for iterate in state["iterates"]]
        jump = state["jump"]
        self.jump = jump and Jump(self._copy(jump[0]), *jump[1:])
        self._norm_before_jump = state["norm_before_jump"]
