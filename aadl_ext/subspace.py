"""Jumps from gradients: Newton steps (or type-II Anderson) in the span of block displacements."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import ops
from .blocks import BlockHistory
from .decisions import (
    Flag,
    Number,
    add_scaled_,
    any_of,
    choose,
    choose_vector,
    finite,
    larger,
    negate,
    number,
    possible,
    smaller,
    told,
)
from .gradients import Gradients
from .machine import Evaluate, Groups, Machine
from .pace import Pace
from .safeguards import ask_for_closure

LEAST_TRUST, MOST_TRUST = 0.25, 1e6


@dataclass(frozen=True)
class SubspaceJump:
    """A jump along ``direction`` that waits for the next gradient."""

    plain: Tensor  #: [N] the point to go back to
    direction: Tensor  #: [N] what was added to it
    slope: Number  #: product of the direction with the mean gradient before, < 0
    limited: Flag  #: whether it would have been longer but for the trust
    made: Flag  #: whether it was made after all

    @property
    def figures(self) -> tuple[float, bool, bool]:
        """Slope and flags, on the host."""
        return told(self.slope), bool(self.limited), bool(self.made)


class Line(NamedTuple):
    """The way of a jump that was made, while the block after it is under way."""

    direction: Tensor  #: [N]
    slope: Number  #: before the jump
    made: Flag


class SubspaceAccelerator(Machine):
    """Jumps at the ends of blocks of steps, each judged by the next training gradient.

    It learns from gradients, not from steps, so it does not matter what the base optimizer
    makes of them.
    """

    history: BlockHistory
    jump: SubspaceJump | None
    trust: Number  # largest jump, in units of the last way between block means
    pace: Pace
    _line: Line | None  # of the jump after which the block under way began
    _slopes: Number  # sum over the block of the slopes along it
    _reference: Number  # recent norm of the gradient
    _gradient: Tensor | None  # of the step under way, and what is wrong with it at a jump
    _faults: dict[str, Flag]

    # ---- the method -----------------------------------------------------------------------

    def before_step(
        self, param_groups: Groups, has_closure: bool = False, skip: str | None = None
    ) -> None:
        """Keep w^k; ``skip`` names why this step does not count."""
        self._gradient, self._faults = None, {}
        self._skip = skip or self._follow(param_groups)
        if not self.wants_gradient:
            return
        ask_for_closure(self.options, has_closure)
        self._before = self.layout.gather(self._spare())
        self._notice_moves(self._before)

    @property
    def wants_gradient(self) -> bool:
        """Whether the gradient at w^k has to be seen before the base optimizer uses it."""
        return not self.skips and bool(self.layout.parameters)

    def see_gradient(self, gradients: Gradients) -> Flag:
        """Keep the gradient at w^k; whether it shows that the base step is to be held back."""
        if self._gradient is not None:  # a closure that is called again, at another point
            return self._held_back
        gradient = self._spare(self._before)
        if not gradients.gather(self.layout, self._before, gradient):
            return False
        self._gradient = gradient
        if self.jump is None:
            return False
        norm = number(ops.squared_norm([gradient])) ** 0.5
        guard = self.options.gradient_guard if "residual" in self.options.safeguards else math.inf
        usable, large = finite(norm), norm > guard * self._reference
        self._faults["nonfinite"] = self.jump.made & negate(usable)
        self._faults["residual"] = self.jump.made & usable & large
        return self._held_back

    @property
    def _held_back(self) -> Flag:
        return any_of(*self._faults.values())

    def after_step(self, evaluate: Evaluate | None = None) -> None:
        """Add the sample (w^k, gradient), judge a pending jump; at the end of a block, jump."""
        if self._skip:
            self._stats.count("skipped", cause=self._skip)
            return
        self.k += 1
        self._stats.count("steps")
        if self._gradient is None:
            self._stats.count("skipped", cause="no_gradient")
            return
        jump, self.jump, self._left_at = self.jump, None, None
        undone = self._held_back
        if jump is not None:
            self._count_verdict(accepted=jump.made & negate(undone), **self._faults)
            self._undo(jump, undone)
        if undone is True:
            return
        if jump is not None:
            self._line, self._slopes = Line(jump.direction, jump.slope, jump.made), 0.0
        slope = self._add_sample(self._gradient, undone)
        if jump is not None and slope is not None:
            self._judge(jump, slope, jump.made & negate(undone))
        if self.history.samples >= self.pace.block_length:
            line, self._line = self._line, None
            if line is not None:
                self.pace.learn(line.slope, self._slopes / self.history.samples, line.made)
            complete = self.history.close_block()
            self._stats.count("pairs", complete)
            if self.options.adapt_blocks:
                self.pace.adapt_block(self.history.noise_ratio)
            if self._due():
                self._try_jump(complete, evaluate)

    def _add_sample(self, gradient: Tensor, undone: Flag) -> Number | None:
        """The slope along the last jump; None if the sample was not finite."""
        direction = None if self._line is None else self._line.direction
        squared_norm, slope = self.history.add(self._before, gradient, direction)
        sound = finite(squared_norm)
        self._stats.count("skipped", negate(sound | undone), "nonfinite")
        spoilt = negate(sound) | undone
        self._drop_block(spoilt)
        if spoilt is True:
            return None
        self._slopes = choose(spoilt, math.nan, self._slopes + slope)
        reference = larger(squared_norm**0.5, 0.9 * self._reference)
        self._reference = choose(spoilt, self._reference, reference)
        return slope

    def _undo(self, jump: SubspaceJump, when: Flag) -> None:
        self.layout.scatter_(jump.plain, when=when)
        self.trust = choose(when, larger(self.trust / 4, LEAST_TRUST), self.trust)
        self._drop_block(when)

    def _judge(self, jump: SubspaceJump, after: Number, stands: Flag) -> None:
        """Compare the slopes along the jump at its ends; come back from beyond the minimum."""
        before = jump.slope
        beyond = stands & (before < 0) & (after > -before)
        longer = stands & negate(beyond) & (after < -before / 2) & jump.limited
        if possible(beyond):
            point = self.layout.gather(self._spare(jump.direction))
            add_scaled_(point, jump.direction, before / (before - after) - 1)
            self.layout.scatter_(point, when=beyond)
            self.trust = choose(beyond, larger(self.trust / 2, LEAST_TRUST), self.trust)
            self._stats.count("shortened", beyond)
        self.trust = choose(longer, smaller(2 * self.trust, MOST_TRUST), self.trust)

    def _due(self) -> bool:
        options = self.options
        rested = self.k - self._last_jump >= options.frequency
        known = self.history.count >= min(2, options.history_depth)
        return rested and known and self.k - 1 > options.wait_iterations

    def _try_jump(self, due: Flag, evaluate: Evaluate | None) -> None:
        safeguards, stats = self.options.safeguards, self._stats
        limits = (self.trust, self.pace.damping) if "limits" in safeguards else (math.inf, 1.0)
        coefficients, slope, rank, reduction, limited = self.history.solve(*limits)
        size = number(coefficients.abs().sum())
        due = due & (size != 0)  # 0: there is nothing but noise
        if not possible(due):
            return
        stats.count("jumps", due)
        self._last_jump = self.k
        stats.gamma, stats.rank, stats.predicted_reduction = coefficients, rank, reduction
        stats.trust, stats.damping = self.trust, self.pace.damping

        large = size > (self.options.coefficient_limit if self._limits_coefficients else math.inf)
        uphill = (slope >= 0) & ("descent" in safeguards)
        faults = {
            "nonfinite": due & negate(finite(slope)),
            "descent": due & uphill,
            "limits": due & large & negate(uphill) & finite(slope),
        }
        made = due & negate(any_of(*faults.values()))
        if not possible(made):
            return self._count_verdict(accepted=False, **faults)
        plain = self.layout.gather(self._spare())
        candidate = self._spare(plain)
        largest = self.history.move_(candidate, plain, coefficients, made)
        outside = made & negate(largest <= self.layout.limit)
        faults["nonfinite"] |= outside
        made = made & negate(outside)
        if "loss" in safeguards and made:  # it waits for losses anyway
            faults["loss"] = not self._lowers_loss(plain, candidate, evaluate)
            made = negate(faults["loss"])
        self._count_verdict(accepted=False, **faults)
        if not possible(made):
            return
        candidate = choose_vector(negate(made), plain, candidate)
        self.layout.scatter_(candidate, when=made)
        direction = torch.sub(candidate, plain, out=self._spare(plain, candidate))
        self.jump = SubspaceJump(plain, direction, slope, limited, made)
        self._left_at, self._watched = candidate, made
        self._rescale_momentum(reduction, made)

    @property
    def _limits_coefficients(self) -> bool:
        """A Newton step is limited by its length alone: its rows are not equally long."""
        return "limits" in self.options.safeguards and not self.options.newton

    def _drop_block(self, when: Flag) -> None:
        self.history.drop_block(when)
        if when is True:
            self._line = None

    # ---- its history and state --------------------------------------------------------------

    def _start(self) -> None:
        self.history = BlockHistory(self.layout, self.options)
        self.trust, self.pace = self.options.trust, Pace(self.options.store_each_nth)
        self._line, self._slopes = None, 0.0
        self._reference, self._last_jump = 0.0, -self.options.frequency

    def _clear_history(self, when: Flag) -> None:
        self.history.clear()
        self._line = None

    def _held(self) -> list[Tensor | None]:
        ways = [way.direction for way in (self.jump, self._line) if way is not None]
        return [*super()._held(), *ways]

    def _tensors(self) -> list[Tensor]:
        return self.history.tensors

    _SCALARS = ("trust", "_slopes", "_reference", "_last_jump")

    def _state(self) -> dict[str, Any]:
        jump, line = self.jump, self._line
        return {
            "history": self.history.state_dict(),
            "jump": jump and (jump.plain.clone(), jump.direction.clone(), *jump.figures),
            "line": line and (line.direction.clone(), told(line.slope), bool(line.made)),
            "pace": self.pace.state_dict(),
            **{name: told(getattr(self, name)) for name in self._SCALARS},
        }

    def _take_state(self, state: dict[str, Any]) -> None:
        self.history.load_state_dict(state["history"])
        jump, line = state["jump"], state["line"]
        self.jump = jump and SubspaceJump(self._copy(jump[0]), self._copy(jump[1]), *jump[2:])
        self._line = line and Line(self._copy(line[0]), *line[1:])
        self.pace.load_state_dict(state["pace"])
        for name in self._SCALARS:
            setattr(self, name, state[name])
