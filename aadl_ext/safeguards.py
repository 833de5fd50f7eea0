"""Tests that a jump must pass, and what is kept to take it back.

Each test compares a figure of the plain alternative with one of the jump and tells
whether the jump may stand. Comparisons are written so that NaN never passes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Jump:
    """A jump away from w that waits for its verdict, which the next training step brings."""

    plain: Tensor  #: [N] w + r, the point to go back to
    residual_norm: float  #: |r / lr| at w
    max_step: float  #: max |r| at w

    @property
    def norms(self) -> tuple[float, float]:
        """The two figures at w."""
        return self.residual_norm, self.max_step


def residual_decreased(jump: Jump, residual_norm: float) -> bool:
    """Algorithm 1, lines 19 to 21: the residual at the jump is smaller than where it began."""
    return residual_norm < jump.residual_norm


def loss_decreased(plain: float, candidate: float) -> bool:
    """The loss of the same batch is smaller than after the plain step (the test of AADL)."""
    return candidate < plain and math.isfinite(candidate)
