"""The call of ``scipy.optimize.anderson``, on the kernels here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import NoConvergence

from .fixed_point import fixed_point
from .options import AndersonMixing

Array = np.ndarray[Any, Any]


def anderson(
    F: Callable[[Array], Any],
    xin: Any,
    iter: int | None = None,
    alpha: float | None = None,
    w0: float = 0.01,
    M: int = 5,
    *,
    maxiter: int | None = None,
    f_tol: float | None = None,
    callback: Callable[[Array, Array], object] | None = None,
) -> Array:
    """Find a root of F, as the fixed point of x + alpha F(x).

    Differences to SciPy's: there is no line search, so a good ``alpha`` counts for more; it gives
    up where nothing is gained in 100 evaluations; the best point is returned, not the last; the
    tolerance is of the Euclidean norm, which the maximum norm never exceeds. SciPy's other
    arguments are not taken.

    Args:
        F: of an array like ``xin``, which it cannot write to.
        xin: first point, an array or numbers; computed in float64.
        iter: make at most so many steps, and return what they lead to.
        alpha: the inverse of the first Jacobian is guessed to be ``-alpha``; None: so that the
            first step has half the length of ``xin`` or 1/2, but at most 1. Where F rises with x
            it must be negative.
        w0: its square is a ridge, in units of the squared column lengths.
        M: columns of the least-squares problem.
        maxiter: most evaluations of F; None: 100 (size + 1).
        f_tol: tolerance; None: 6e-6.
        callback: called with x and F(x) at every point.

    Returns:
        The root, in the shape of ``xin``.

    Raises:
        scipy.optimize.NoConvergence: there is none within the tolerance, and no ``iter``.
        ValueError: F changes the shape, or an argument is out of range.
    """
    start = np.array(xin, dtype=np.float64)
    if alpha is None:
        length = np.linalg.norm(np.asarray(F(start.copy()), dtype=np.float64))
        alpha = min(1.0, 0.5 * max(float(np.linalg.norm(start)), 1.0) / max(float(length), 0.5))

    def f(x: Array) -> Array:
        value = np.asarray(F(x), dtype=np.float64)
        if value.shape != x.shape:
            raise ValueError(f"F returns shape {value.shape} for a point of shape {x.shape}")
        if callback:
            callback(x, value)
        return x + alpha * value

    found = fixed_point(
        f,
        start,
        method=AndersonMixing(history_depth=M, reg_acc=w0**2),
        tol=0.0,
        abs_tol=abs(alpha) * (6e-6 if f_tol is None else f_tol),
        max_steps=iter or maxiter or 100 * (start.size + 1),
        batch_dims=0,
    )
    if iter is None and not found.converged:
        raise NoConvergence(found.solution)
    solution: Array = found.solution
    return solution
