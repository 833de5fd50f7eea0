"""The iteration: Algorithm 1 of the paper as a small state machine around ``step()``."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import safeguards
from .averaging import MovingAverage
from .flat import Layout
from .history import Observation, SecantHistory
from .options import Options
from .safeguards import Jump
from .stats import Stats

logger = logging.getLogger("aadl_ext")

Groups = list[dict[str, Any]]


class Accelerator:
    """Accelerates the optimizer whose steps it is told of.

    ``before_step`` sees w^k, ``after_step`` sees w^k + r^k and moves the parameters on to
    w^{k+1}. Obtained with :func:`aadl_ext.get_accelerator`: ``stats`` tells what was done,
    ``state_dict`` and ``load_state_dict`` carry it over a restart.
    """

    layout: Layout
    history: SecantHistory
    window: MovingAverage
    rates: tuple[float, ...]  # learning rate of each segment
    jump: Jump | None  # pending until the next step judges it
    _before: Tensor | None  # w^k, between the two hooks of a step that needs it
    _left_at: Tensor | None  # where the parameters were left, if it matters
    _norm_before_jump: float | None

    def __init__(self, param_groups: Groups, options: Options) -> None:
        self.options = options
        self.stats = Stats()
        self.k = 0
        self._lay_out(param_groups)

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
        if options.safeguard == "loss" and options.accelerates and not has_closure:
            raise RuntimeError(
                'safeguard="loss" compares losses, but step() was called without a closure: '
                'call step(closure), or accelerate with safeguard="residual"'
            )
        self._store = options.accelerates and k % options.store_each_nth == 0
        self._extrapolate = (
            options.accelerates and k % options.frequency == 0 and k > options.wait_iterations
        )
        if self._store or self._extrapolate or options.average or self.jump:
            self._before = self.layout.gather(self._spare())
            self._notice_moves(self._before)

    def after_step(self, evaluate: Callable[[], float] | None = None) -> None:
        """Store the pair (w^k, r^k), jump, guard and average; the parameters become w^{k+1}.

        ``evaluate`` returns the loss at the present parameters (``safeguard="loss"``).
        """
        if self._skip:
            self.stats.skipped[self._skip] += 1
            return
        self.k += 1
        self.stats.steps += 1
        before, self._before = self._before, None
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
            self._forget_iterates()
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

    def _try_jump(
        self,
        before: Tensor,
        plain: Tensor,
        seen: Observation,
        evaluate: Callable[[], float] | None,
    ) -> Tensor:
        """Lines 16 to 18: the extrapolated point, or ``plain``."""
        options, stats = self.options, self.stats
        solution = self.history.solve()
        stats.jumps += 1
        stats.gamma, stats.rank, stats.condition, stats.predicted_reduction = solution

        beta, candidate = options.relaxation, self._spare(before, plain)
        if options.mixing == "paper":  # Eq. 6: (1 - beta) w + beta (w + r - (W + R) gamma)
            gamma, rates = beta * solution.gamma, self.rates
        else:  # classic: (w - W gamma) + beta (r - R gamma)
            gamma, rates = solution.gamma, tuple(beta * rate for rate in self.rates)
        largest = self.history.extrapolate_(candidate, before, plain, beta, gamma, rates)

        if not float(largest) <= self.layout.limit:  # NaN is not either
            self._count_verdict("nonfinite")
            return plain
        if options.safeguard == "loss" and not self._lowers_loss(plain, candidate, evaluate):
            self._count_verdict("loss")
            return plain
        if options.safeguard == "residual":
            self.jump = Jump(plain, seen.residual_norm, seen.max_step)
        else:
            self._count_verdict(None)
        self._norm_before_jump = seen.residual_norm
        return candidate

    def _lowers_loss(
        self, plain: Tensor, candidate: Tensor, evaluate: Callable[[], float] | None
    ) -> bool:
        assert evaluate is not None  # before_step has asked for it
        before = evaluate()
        lower = False
        self.layout.scatter_(candidate)
        try:
            lower = safeguards.loss_decreased(before, evaluate())
        finally:
            if not lower:
                self.layout.scatter_(plain)
        return lower

    def _count_verdict(self, fault: str | None) -> None:
        if fault is None:
            self.stats.accepted += 1
            self._rejections_in_a_row = 0
            return
        self.stats.rejected[fault] += 1
        self._rejections_in_a_row += 1
        if self._rejections_in_a_row == 2:
            self._restart("rejections")

    # ---- what happens between steps -------------------------------------------------

    @property
    def skips(self) -> bool:
        """Whether the step under way does not count."""
        return self._skip is not None

    @property
    def jump_pending(self) -> bool:
        """Whether the parameters are at a jump that the next step may take back."""
        return self.jump is not None

    def veto(self) -> None:
        """The gradient at a pending jump is not finite: the base step is held back."""
        self._vetoed = True

    def reset(self) -> None:
        """Forget pairs, iterates and a pending jump; the parameters stay where they are."""
        self._restart("request")
        self._drop_jump()
        self._forget_iterates()

    def _restart(self, cause: str) -> None:
        self.stats.restarts[cause] += 1
        self._rejections_in_a_row = 0
        self.history.clear()

    def _follow(self, param_groups: Groups) -> str | None:
        """Notice changed parameters and learning rates; returns why this step cannot count."""
        if not self.layout.fits(param_groups):
            logger.info("parameters were added, (un)frozen or moved: the history starts anew")
            self.stats.restarts["parameters"] += 1
            self._drop_jump()
            self._lay_out(param_groups)
        rates = tuple(float(param_groups[index].get("lr", 1.0)) for index in self.layout.groups)
        if rates and not any(rates):
            return "zero_lr"
        if self.rates and [not rate for rate in rates] != [not rate for rate in self.rates]:
            self._restart("learning_rate")
        self.rates = rates
        return None

    def _notice_moves(self, before: Tensor) -> None:
        """Whoever moved the parameters since the last step wants them there: do not undo it."""
        left_at, self._left_at = self._left_at, None
        if left_at is not None and not torch.equal(left_at, before):
            self.stats.restarts["moved_outside"] += 1
            self._drop_jump()
            self._forget_iterates()
        if not self.window.iterates:
            self.window.push(before)

    def _drop_jump(self) -> None:
        self.stats.dropped += self.jump is not None
        self.jump = None

    def _forget_iterates(self) -> None:
        self._left_at = self._norm_before_jump = None
        self.window.clear()

    # ---- buffers and checkpoints ----------------------------------------------------

    def _lay_out(self, param_groups: Groups) -> None:
        options = self.options
        self.layout = Layout.build(param_groups, options.scope, options.history_device)
        self.history = SecantHistory(self.layout, options)
        iterates = options.average_window if options.average else 0
        self.window = MovingAverage(iterates, options.average_threshold)
        self.rates = ()
        self.jump = self._before = self._left_at = self._norm_before_jump = None
        self._rejections_in_a_row = 0
        self._vectors: list[Tensor] = []
        self._count_bytes()

    def _spare(self, *busy: Tensor) -> Tensor:
        """A working vector that nobody needs; four are enough besides those of the window."""
        held = [
            *busy,
            self._left_at,
            self.jump and self.jump.plain,
            self.history.last_point,
            *self.window.iterates,
        ]
        for vector in self._vectors:
            if all(vector is not other for other in held):
                return vector
        self._vectors.append(self.layout.vector())
        self._count_bytes()
        return self._vectors[-1]

    def _count_bytes(self) -> None:
        self.stats.bytes_held = sum(x.nbytes for x in (*self.history.tensors, *self._vectors))

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on bit for bit; tensors are copies."""
        return {
            "version": 1,
            "options": self.options.as_dict(),
            "offsets": self.layout.offsets,
            "dtype": self.layout.dtype,
            "k": self.k,
            "rates": self.rates,
            "history": self.history.state_dict(),
            "iterates": [iterate.clone() for iterate in self.window.iterates],
            "jump": self.jump and (self.jump.plain.clone(), *self.jump.norms),
            "left_at": None if self._left_at is None else self._left_at.clone(),
            "norm_before_jump": self._norm_before_jump,
            "rejections_in_a_row": self._rejections_in_a_row,
            "stats": self.stats.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave; load model and optimizer as well.

        Raises:
            ValueError: the state belongs to other parameters or other options.
        """
        mine = {"options": self.options.as_dict(), "offsets": self.layout.offsets}
        for name, own in {"version": 1, "dtype": self.layout.dtype, **mine}.items():
            if state.get(name) != own:
                raise ValueError(
                    f"the accelerator state was saved with {name} = {state.get(name)!r}, but "
                    f"here it is {own!r}; accelerate with the same options and parameters, or "
                    "go on without the state: the history then starts anew"
                )
        self.k, self.rates = state["k"], tuple(state["rates"])
        self.history.load_state_dict(state["history"])
        self._vectors = [v for v in [self.history.last_point] if v is not None]
        self.window.iterates = [self._copy(iterate) for iterate in state["iterates"]]
        self.jump = state["jump"] and Jump(self._copy(state["jump"][0]), *state["jump"][1:])
        left_at = state["left_at"]
        self._left_at = None if left_at is None else self._copy(left_at)
        self._norm_before_jump = state["norm_before_jump"]
        self._rejections_in_a_row = state["rejections_in_a_row"]
        self.stats.load_state_dict(state["stats"])
        self._count_bytes()

    def _copy(self, vector: Tensor) -> Tensor:
        self._vectors.append(self.layout.vector().copy_(vector))
        return self._vectors[-1]
