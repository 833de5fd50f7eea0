"""What the ops return: named tuples of tensors, so that nothing waits for a device."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class SecantProducts(NamedTuple):
    """Reductions made while a step is recorded; S segments, m rows."""

    max_step: Tensor  #: [] largest ``|after - before|``, in the vectors' dtype
    squared_norm: Tensor  #: [S] float64, ``|r / rate|^2``
    right_side: Tensor  #: [S, m] float64, products of the residual rows with ``r / rate``
    gram_row: Tensor | None  #: [S, m] float64, products with the new row; None if none was stored


class SecantSolution(NamedTuple):
    """Solution of S small least-squares problems; every tensor float64 but ``rank``."""

    gamma: Tensor  #: [S, m] coefficients, of least norm where columns are dependent
    rank: Tensor  #: [S] int64, independent directions
    condition: Tensor  #: [S] condition number of the scaled columns over the directions kept
    reduction: Tensor  #: [S] predicted ``|r - R gamma| / |r|``, 0 where r = 0


class WindowStatistics(NamedTuple):
    """Eq. 11 and the left side of Eq. 16 over a window of iterates."""

    max_std: Tensor  #: [] largest entry of the standard deviation, window's dtype
    mean: Tensor  #: [N] mean over the window
