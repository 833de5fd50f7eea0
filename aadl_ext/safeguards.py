"""Tests that a jump must pass, and what is kept to take it back.

Each test compares a figure of the plain alternative with one of the jump and tells
whether the jump may stand. Comparisons are written so that NaN never passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .decisions import Flag, Number, told
from .flat import Layout
from .options import Options


@dataclass(frozen=True)
class Jump:
    """A jump away from w that waits for its verdict, which the next training step brings."""

    plain: Tensor  #: [N] w + r, the point to go back to
    residual_norm: Number  #: |r / lr| at w
    max_step: Number  #: max |r| at w
    made: Flag  #: whether it was made after all

    @property
    def figures(self) -> tuple[float, float, bool]:
        """The figures at w and the flag, on the host."""
        return told(self.residual_norm), told(self.max_step), bool(self.made)


def residual_decreased(jump: Jump, residual_norm: Number) -> Flag:
    """Algorithm 1, lines 19 to 21: the residual at the jump is smaller than where it began."""
    return residual_norm < jump.residual_norm


def ask_for_closure(options: Options, has_closure: bool) -> None:
    """Raise RuntimeError if losses are to be compared and there is nothing to evaluate them."""
    if "loss" in options.safeguards and options.accelerates and not has_closure:
        raise RuntimeError(
            'safeguard="loss" compares losses, but step() was called without a closure: '
            'call step(closure), or accelerate with safeguard="residual"'
        )


def loss_decreases(
    layout: Layout, plain: Tensor, candidate: Tensor, evaluate: Callable[[], float]
) -> bool:
    """The loss of the same batch is smaller than after the plain step (the test of AADL).

    The parameters are at ``plain`` before; they end at the candidate if it is better, else at
    ``plain`` again, also if ``evaluate`` raises.
    """
    lower = False
    try:
        before = evaluate()
        layout.scatter_(candidate)
        after = evaluate()
        lower = after < before and math.isfinite(after)
    finally:
        if not lower:
            layout.scatter_(plain)
    return lower
