"""What the ops return: named tuples of tensors, so that nothing waits for a device."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class SecantSolution(NamedTuple):
    """Solution of S small least-squares problems; every tensor float64 but ``rank``."""

    gamma: Tensor  #: [S, m] coefficients, of least norm where columns are dependent
    rank: Tensor  #: [S] int64, independent directions
    condition: Tensor  #: [S] condition number of the scaled columns over the directions kept
    reduction: Tensor  #: [S] predicted ``|r - R gamma| / |r|``, 0 where r = 0
