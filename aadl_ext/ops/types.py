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


class SubspaceSolution(NamedTuple):
    """Newton step in the span of m displacements, for each of S problems; float64 but ``rank``."""

    coefficients: Tensor  #: [S, m] y of the displacement -W^T y
    slope: Tensor  #: [S] its product with the gradient
    length: Tensor  #: [S] its norm
    rank: Tensor  #: [S] int64, independent directions
    curvature: Tensor  #: [S, m] eigenvalues of the projected Hessian, ascending; 0 for dropped ones
    reduction: Tensor  #: [S] predicted norm of the projected gradient over the one before
