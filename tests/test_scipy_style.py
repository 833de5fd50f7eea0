"""Calls of ``scipy.optimize.anderson`` run here and find the same roots."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import optimize

from aadl_ext.scipy_style import anderson

Array = np.ndarray[Any, Any]


def pair(x: Array) -> list[float]:
    """The example of SciPy's documentation."""
    return [x[0] + 0.5 * (x[0] - x[1]) ** 3 - 1.0, 0.5 * (x[1] - x[0]) ** 3 + x[1]]


def bratu(u: Array) -> Array:
    """Jacobi's iteration for -laplace u = exp(u) on a square."""
    near = np.pad(u, 1)
    h = 1 / (len(u) + 1)
    around = near[2:, 1:-1] + near[:-2, 1:-1] + near[1:-1, 2:] + near[1:-1, :-2]
    return (around + h**2 * np.exp(u)) / 4 - u


@pytest.mark.parametrize(("F", "start"), [(pair, [0, 0]), (bratu, np.zeros((9, 9)))])
@pytest.mark.parametrize("options", [{}, {"alpha": 0.8, "w0": 0.0, "M": 3, "f_tol": 1e-9}])
def test_roots_are_those_of_scipy(F: Any, start: Any, options: dict[str, Any]) -> None:
    expected = optimize.anderson(F, start, f_tol=1e-9)
    found = anderson(F, start, **options)
    assert found.shape == np.shape(start)
    assert np.linalg.norm(F(found)) <= options.get("f_tol", 6e-6)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_the_callback_sees_points_and_values() -> None:
    seen: list[tuple[Array, Array]] = []
    anderson(pair, [0.0, 0.0], callback=lambda x, F: seen.append((x.copy(), F)))
    assert len(seen) > 3
    for x, value in seen:
        np.testing.assert_array_equal(value, pair(x))


def test_iter_limits_the_steps_without_an_error() -> None:
    few = anderson(pair, [0.0, 0.0], iter=3)
    assert np.linalg.norm(pair(few)) > 1e-3
    assert np.linalg.norm(pair(few)) < np.linalg.norm(pair(np.zeros(2)))


def test_no_root_is_an_error_with_the_best_point() -> None:
    with pytest.raises(optimize.NoConvergence):
        anderson(lambda x: x * x + 1, [0.3])
    with pytest.raises(optimize.NoConvergence):
        anderson(pair, [0.0, 0.0], maxiter=2)


def test_what_scipy_takes_and_this_does_not_is_refused() -> None:
    with pytest.raises(TypeError, match="line_search"):
        anderson(pair, [0.0, 0.0], line_search="wolfe")  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="shape"):
        anderson(lambda x: x[:1], [0.0, 0.0])
