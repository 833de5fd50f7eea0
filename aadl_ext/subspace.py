"""Jumps from gradients: Newton steps (or type-II Anderson) in the span of block displacements."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import ops
from .blocks import BlockHistory
from .gradients import Gradients
from .machine import Evaluate, Groups, Machine

LEAST_TRUST, MOST_TRUST = 0.25, 1e6
SHORTEST_BLOCK, LONGEST_BLOCK = 2, 32


@dataclass(frozen=True)
class SubspaceJump:
    """A jump along ``direction`` that waits for the next gradient."""

    plain: Tensor  #: [N] the point to go back to
    direction: Tensor  #: [N] what was added to it
    slope: float  #: product of the direction with the mean gradient before, < 0


class SubspaceAccelerator(Machine):
    """Jumps at the ends of blocks of steps, each judged by the next training gradient.

    It learns from gradients, not from steps, so it does not matter what the base optimizer
    makes of them.
    """

    history: BlockHistory
    jump: SubspaceJump | None
    trust: float  # largest jump, in units of the last way between block means
    block: int  # samples of a block
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
            self.layout.scatter_(jump.plain)
            self.trust = max(self.trust / 4, LEAST_TRUST)
            self.history.drop_block()
            self._count_verdict(self._fault)
            return
        direction = None if jump is None else jump.direction
        squared_norm, slope = self.history.add(self._before, self._gradient, direction)
        if not math.isfinite(squared_norm):
            self.stats.skipped["nonfinite"] += 1
            self.history.drop_block()
            return
        self._reference = max(math.sqrt(squared_norm), 0.9 * self._reference)
        if jump is not None:
            self._judge(jump, slope)
        if self.history.samples >= self.block:
            self.history.close_block()
            self.stats.pairs += 1
            self._adapt_block()
            if self._due():
                self._try_jump(evaluate)

    def _judge(self, jump: SubspaceJump, after: float) -> None:
        """Compare the slopes along the jump at its ends; come back from beyond the minimum."""
        before = jump.slope
        if after > -before > 0:
            point = self.layout.gather(self._spare(jump.direction))
            point.add_(jump.direction, alpha=before / (before - after) - 1)
            self.layout.scatter_(point)
            self.trust = max(self.trust / 2, LEAST_TRUST)
            self.stats.shortened += 1
        elif after < -before / 2:
            self.trust = min(2 * self.trust, MOST_TRUST)
        self._count_verdict(None)

    def _due(self) -> bool:
        options = self.options
        rested = self.k - self._last_jump >= options.frequency
        known = self.history.count >= min(2, options.history_depth)
        return rested and known and self.k - 1 > options.wait_iterations

    def _try_jump(self, evaluate: Evaluate | None) -> None:
        safeguards, stats = self.options.safeguards, self.stats
        trust = self.trust if "limits" in safeguards else math.inf
        coefficients, slope, stats.rank, reduction = self.history.solve(trust)
        size = float(coefficients.abs().sum())
        if size == 0:  # nothing but noise
            return
        stats.jumps += 1
        self._last_jump = self.k
        stats.gamma, stats.trust = coefficients, self.trust
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
        self.jump = SubspaceJump(plain, direction, slope)
        self._left_at = candidate
        self._rescale_momentum(reduction)

    @property
    def _limits_coefficients(self) -> bool:
        """A Newton step is limited by its length alone: its rows are not equally long."""
        return "limits" in self.options.safeguards and not self.options.newton

    def _adapt_block(self) -> None:
        """Longer blocks while the noise in their means is of the size of their changes."""
        ratio = self.history.noise_ratio
        if self.options.adapt_blocks and ratio > 0.2:
            self.block = min(2 * self.block, LONGEST_BLOCK)
        elif self.options.adapt_blocks and ratio < 0.05:
            self.block = max(self.block // 2, SHORTEST_BLOCK)

    # ---- its history and state --------------------------------------------------------------

    def _start(self) -> None:
        self.history = BlockHistory(self.layout, self.options)
        self.trust = self.options.trust
        self.block = self.options.store_each_nth
        self._reference, self._last_jump = 0.0, -self.options.frequency

    def _clear_history(self) -> None:
        self.history.clear()

    def _held(self) -> list[Tensor | None]:
        return [*super()._held(), None if self.jump is None else self.jump.direction]

    def _tensors(self) -> list[Tensor]:
        return self.history.tensors

    def _state(self) -> dict[str, Any]:
        jump = self.jump
        return {
            "history": self.history.state_dict(),
            "jump": jump and (jump.plain.clone(), jump.direction.clone(), jump.slope),
            "trust": self.trust,
            "block": self.block,
            "reference": self._reference,
            "last_jump": self._last_jump,
        }

    def _take_state(self, state: dict[str, Any]) -> None:
        self.history.load_state_dict(state["history"])
        jump = state["jump"]
        self.jump = jump and SubspaceJump(self._copy(jump[0]), self._copy(jump[1]), jump[2])
        self.trust, self.block = state["trust"], state["block"]
        self._reference, self._last_jump = state["reference"], state["last_jump"]
