"""The small least-squares solve against SciPy in float64."""

from __future__ import annotations

from typing import Any

import lab
import numpy as np
import pytest
import scipy.linalg
from small_problems import FORMS, matrix, system_of

aadl_lab = lab.load()


def solve(rows: np.ndarray, r: np.ndarray, factored: bool, **settings: float) -> dict[str, Any]:
    system = system_of(rows, r, factored)
    return aadl_lab.solve_secants(system, factored=factored, **settings)


@pytest.mark.parametrize(("factored", "accuracy"), FORMS)
@pytest.mark.parametrize("m", [1, 2, 3, 5, 10, 20, 32])
def test_solution_is_that_of_scipy(m: int, factored: bool, accuracy: float) -> None:
    rows, r = matrix(200, m)
    got = solve(rows, r, factored)
    exact = scipy.linalg.lstsq(rows, r)[0]
    np.testing.assert_allclose(got["gamma"], exact, atol=accuracy * np.linalg.norm(exact))
    left_over = np.linalg.norm(r - rows @ exact) / np.linalg.norm(r)
    np.testing.assert_allclose(got["reduction"], left_over, atol=accuracy)
    assert got["rank"] == m
    sigma = np.linalg.svd(rows / np.linalg.norm(rows, axis=0), compute_uv=False)
    np.testing.assert_allclose(got["condition"], sigma[0] / sigma[-1], rtol=1e-6)


@pytest.mark.parametrize(("factored", "accuracy"), FORMS)
@pytest.mark.parametrize("ridge", [1e-4, 1e-2, 1.0])
def test_ridge_weighs_in_column_lengths(ridge: float, factored: bool, accuracy: float) -> None:
    rows, r = matrix(200, 6)
    rows = rows * np.geomspace(1e-3, 1e3, 6)
    got = solve(rows, r, factored, ridge=ridge)["gamma"]
    lengths = np.linalg.norm(rows, axis=0)
    longer = np.vstack([rows / lengths, ridge**0.5 * np.eye(6)])
    exact = scipy.linalg.lstsq(longer, np.concatenate([r, np.zeros(6)]))[0]
    np.testing.assert_allclose(got * lengths, exact, atol=accuracy * np.linalg.norm(exact))


@pytest.mark.parametrize(("factored", "accuracy"), FORMS)
def test_tolerance_drops_directions(factored: bool, accuracy: float) -> None:
    rows, r = matrix(200, 6, condition=1e4)
    rows /= np.linalg.norm(rows, axis=0)
    got = solve(rows, r, factored, tolerance=1e-2)
    exact, _, rank, _ = scipy.linalg.lstsq(rows, r, cond=1e-2)
    assert got["rank"] == rank
    assert rank < 6
    np.testing.assert_allclose(got["gamma"], exact, atol=accuracy * np.linalg.norm(exact))


@pytest.mark.parametrize(("factored", "accuracy"), FORMS)
def test_columns_of_any_length(factored: bool, accuracy: float) -> None:
    rows, r = matrix(200, 5)
    scales = np.geomspace(1e-12, 1e12, 5)
    plain = solve(rows, r, factored)["gamma"]
    scaled = solve(rows * scales, r, factored)["gamma"] * scales
    np.testing.assert_allclose(scaled, plain, atol=accuracy * np.linalg.norm(plain))


@pytest.mark.parametrize("factored", [False, True])
def test_zero_and_repeated_columns(factored: bool) -> None:
    rows, r = matrix(200, 4)
    padded = np.column_stack([np.zeros(200), rows, rows[:, 0]])
    got = solve(padded, r, factored, tolerance=1e-6)
    exact = scipy.linalg.lstsq(rows, r)[0]
    assert got["rank"] == 4
    assert got["gamma"][0] == 0
    folded = got["gamma"][1:5].copy()
    folded[0] += got["gamma"][5]
    np.testing.assert_allclose(folded, exact, atol=1e-6 * np.linalg.norm(exact))
    np.testing.assert_allclose(got["gamma"][1], got["gamma"][5], atol=1e-6 * np.linalg.norm(exact))


@pytest.mark.parametrize("factored", [False, True])
def test_nothing_to_solve(factored: bool) -> None:
    got = aadl_lab.solve_secants(np.zeros((4, 4)), factored=factored)
    assert not got["gamma"].any()
    assert got["rank"] == 0
    rows, _ = matrix(50, 3)
    assert not solve(rows, np.zeros(50), factored)["gamma"].any()


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_makes_nan(bad: float, factored: bool) -> None:
    system = np.eye(4)
    system[1, 2] = bad
    got = aadl_lab.solve_secants(system, factored=factored)
    assert np.isnan(got["gamma"]).all()
    assert np.isnan(got["reduction"])
    assert got["rank"] == 0
