"""Jumps from gradients: Newton steps (or type-II Anderson) in the span of block displacements."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import ops
from .blocks import BlockHistory
from .gradients import Gradients
from .machine import Evaluate, Groups, Machine

LEAST_TRUST, MOST_TRUST = 0.25, 1e6
LEAST_DAMPING, DAMPING_GAIN, FORGETTING = 0.02, 0.3, 0.7
LONGEST_BLOCK = 4  # in units of the shortest


@dataclass(frozen=True)
class SubspaceJump:
    """A jump along ``direction`` that waits for the next gradient."""

    plain: Tensor  #: [N] the point to go back to
    direction: Tensor  #: [N] what was added to it
    slope: float  #: product of the direction with the mean gradient before, < 0
    limited: bool  #: whether it would have been longer but for the trust


class Line(NamedTuple):
    """The way of a jump that was made, while the block after it is under way."""

    direction: Tensor  #: [N]
    slope: float  #: before the jump


class SubspaceAccelerator(Machine):
    """Jumps at the ends of blocks of steps, each judged by the next training gradient.

    It learns from gradients, not from steps, so it does not matter what the base optimizer
    makes of them.
    """

    history: BlockHistory
    jump: SubspaceJump | None
    trust: float  # largest jump, in units of the last way between block means
    damping: float  # share of a jump that is made
    block: int  # samples of a block
    _line: Line | None  # of the jump after which the block under way began
    _slopes: float  # sum over the block of the slopes along it
    _excess: float  # recent slopes after jumps, and their sizes before; sums that fade
    _expected: float
    _reference: float  # recent norm of the gradient
    _gradient: Tensor | None  # of the step under way, and what is wrong with it at a jump
    _fault: str | None

    # ---- the method -----------------------------------------------------------------------

    def before_step(
        self, param_groups: Groups, has_closure: bool = False, skip: str | None = None
    ) -> None:
        """Keep w^k; ``skip`` names why this step does not count."""
        self._gradient = self._fault = None
        self._skip = skip or self._follow(param_groups)
        if not self.wants_gradient:
            return
        self._ask_for_closure(has_closure)
        self._before = self.layout.gather(self._spare())
        self._notice_moves(self._before)

    @property
    def wants_gradient(self) -> bool:
        """Whether the gradient at w^k has to be seen before the base optimizer uses it."""
        return not self.skips and bool(self.layout.parameters)

    def see_gradient(self, gradients: Gradients) -> bool:
        """Keep the gradient at w^k; false if it shows that the base step is to be skipped."""
        if self._gradient is not None:  # a closure that is called again, at another point
            return self._fault is None
        gradient = self._spare(self._before)
        if not gradients.gather(self.layout, self._before, gradient):
            return True
        self._gradient = gradient
        if self.jump is None:
            return True
        norm = math.sqrt(float(ops.squared_norm([gradient])))
        guard = self.options.gradient_guard if "residual" in self.options.safeguards else math.inf
        if not math.isfinite(norm):
            self._fault = "nonfinite"
        elif norm > guard * self._reference:
            self._fault = "residual"
        return self._fault is None

    def after_step(self, evaluate: Evaluate | None = None) -> None:
        """Add the sample (w^k, gradient), judge a pending jump; at the end of a block, jump."""
        if self._skip:
            self.stats.skipped[self._skip] += 1
            return
        self.k += 1
        self.stats.steps += 1
        if self._gradient is None:
            self.stats.skipped["no_gradient"] += 1
            return
        jump, self.jump, self._left_at = self.jump, None, None
        if jump is not None and self._fault:  # the base step has been held back
            self._undo(jump)
            self._count_verdict(self._fault)
            return
        if jump is not None:
            self._line, self._slopes = Line(jump.direction, jump.slope), 0.0
        direction = None if self._line is None else self._line.direction
        squared_norm, slope = self.history.add(self._before, self._gradient, direction)
        if not math.isfinite(squared_norm):
            self.stats.skipped["nonfinite"] += 1
            self._drop_block()
            return
        self._slopes += slope
        self._reference = max(math.sqrt(squared_norm), 0.9 * self._reference)
        if jump is not None:
            self._judge(jump, slope)
        if self.history.samples >= self.block:
            self._adapt_damping()
            self.history.close_block()
            self.stats.pairs += 1
            self._adapt_block()
            if self._due():
                self._try_jump(evaluate)

    def _undo(self, jump: SubspaceJump) -> None:
        self.layout.scatter_(jump.plain)
        self.trust = max(self.trust / 4, LEAST_TRUST)
        self._drop_block()

    def _judge(self, jump: SubspaceJump, after: float) -> None:
        """Compare the slopes along the jump at its ends; come back from beyond the minimum."""
        before = jump.slope
        if after > -before > 0:
            point = self.layout.gather(self._spare(jump.direction))
            point.add_(jump.direction, alpha=before / (before - after) - 1)
            self.layout.scatter_(point)
            self.trust = max(self.trust / 2, LEAST_TRUST)
            self.stats.shortened += 1
        elif after < -before / 2 and jump.limited:
            self.trust = min(2 * self.trust, MOST_TRUST)
        self._count_verdict(None)

    def _due(self) -> bool:
        options = self.options
        rested = self.k - self._last_jump >= options.frequency
        known = self.history.count >= min(2, options.history_depth)
        return rested and known and self.k - 1 > options.wait_iterations

    def _try_jump(self, evaluate: Evaluate | None) -> None:
        safeguards, stats = self.options.safeguards, self.stats
        limits = (self.trust, self.damping) if "limits" in safeguards else (math.inf, 1.0)
        coefficients, slope, stats.rank, reduction, limited = self.history.solve(*limits)
        size = float(coefficients.abs().sum())
        if size == 0:  # nothing but noise
            return
        stats.jumps += 1
        self._last_jump = self.k
        stats.gamma, stats.trust, stats.damping = coefficients, self.trust, self.damping
        stats.predicted_reduction = reduction
        if not math.isfinite(slope):
            return self._count_verdict("nonfinite")
        if slope >= 0 and "descent" in safeguards:
            return self._count_verdict("descent")
        if size > self.options.coefficient_limit and self._limits_coefficients:
            return self._count_verdict("limits")
        plain = self.layout.gather(self._spare())
        candidate = self._spare(plain)
        largest = self.history.move_(candidate, plain, coefficients)
        if not float(largest) <= self.layout.limit:
            return self._count_verdict("nonfinite")
        if "loss" not in safeguards:
            self.layout.scatter_(candidate)
        elif not self._lowers_loss(plain, candidate, evaluate):
            return self._count_verdict("loss")
        direction = torch.sub(candidate, plain, out=self._spare(plain, candidate))
        self.jump = SubspaceJump(plain, direction, slope, limited)
        self._left_at = candidate
        self._rescale_momentum(reduction)

    @property
    def _limits_coefficients(self) -> bool:
        """A Newton step is limited by its length alone: its rows are not equally long."""
        return "limits" in self.options.safeguards and not self.options.newton

    def _adapt_damping(self) -> None:
        """Shorter jumps while they end, on average, beyond the minimum along them.

        The slope before a jump is what noise and the choice of the direction make of it; that
        over the block after it is measured with new samples. Where jumps go uphill, as they do
        at the noise floor, it is positive, and where they could be longer it is negative.
        """
        line, self._line = self._line, None
        if line is None or not (line.slope < 0 and math.isfinite(self._slopes)):
            return
        after = min(self._slopes / self.history.samples, -3 * line.slope)
        self._excess = FORGETTING * self._excess + after
        self._expected = FORGETTING * self._expected - line.slope
        ratio = max(self._excess / self._expected, -1.0)
        self.damping *= math.exp(-DAMPING_GAIN * ratio)
        self.damping = min(max(self.damping, LEAST_DAMPING), 1.0)

    def _adapt_block(self) -> None:
        """Longer blocks while jumps go too far because of noise.

        There is much of it where it makes .3 of the changes of mean gradients (1/2 is all); but
        what looks like noise may be an oscillation, which does no harm.
        """
        ratio, shortest = self.history.noise_ratio, self.options.store_each_nth
        if not self.options.adapt_blocks:
            return
        if ratio > 0.3 and self.damping < 0.7:
            self.block = min(2 * self.block, LONGEST_BLOCK * shortest)
        elif ratio < 0.1 or self.damping > 0.95:
            self.block = max(self.block // 2, shortest)

    def _drop_block(self) -> None:
        self.history.drop_block()
        self._line = None

    # ---- its history and state --------------------------------------------------------------

    def _start(self) -> None:
        self.history = BlockHistory(self.layout, self.options)
        self.trust, self.damping = self.options.trust, 1.0
        self._line = None
        self._slopes = self._excess = self._expected = 0.0
        self.block = self.options.store_each_nth
        self._reference, self._last_jump = 0.0, -self.options.frequency

    def _clear_history(self) -> None:
        self.history.clear()
        self._line = None

    def _held(self) -> list[Tensor | None]:
        ways = [way.direction for way in (self.jump, self._line) if way is not None]
        return [*super()._held(), *ways]

    def _tensors(self) -> list[Tensor]:
        return self.history.tensors

    _SCALARS = (
        "trust", "damping", "block", "_slopes", "_excess", "_expected", "_reference", "_last_jump",
    )  # fmt: skip

    def _state(self) -> dict[str, Any]:
        jump, line = self.jump, self._line
        return {
            "history": self.history.state_dict(),
            "jump": jump and (jump.plain.clone(), jump.direction.clone(), jump.slope, jump.limited),
            "line": line and (line.direction.clone(), line.slope),
            **{name: getattr(self, name) for name in self._SCALARS},
        }

    def _take_state(self, state: dict[str, Any]) -> None:
        self.history.load_state_dict(state["history"])
        jump, line = state["jump"], state["line"]
        self.jump = jump and SubspaceJump(self._copy(jump[0]), self._copy(jump[1]), *jump[2:])
        self._line = line and Line(self._copy(line[0]), line[1])
        for name in self._SCALARS:
            setattr(self, name, state[name])
