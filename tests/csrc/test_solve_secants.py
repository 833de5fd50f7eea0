"""The kernels of the small least-squares solve, of CPU and CUDA, against SciPy in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lab
import numpy as np
import pytest
import scipy.linalg
from cuda_on_host import cuda, in_both_schedules
from small_problems import FORMS, matrix, system_of

aadl_lab = lab.load()
Fields = dict[str, Any]
Solve = Callable[..., Fields]


def on_cpu(system: np.ndarray, **settings: float) -> Fields:
    fields: Fields = aadl_lab.solve_secants(system, **settings)
    return fields


def on_cuda(system: np.ndarray, **settings: float) -> Fields:
    found = in_both_schedules(lambda: cuda.solve_secants(system[None], **settings))
    return {name: value[0] for name, value in found.items()}


@pytest.fixture(params=[on_cpu, on_cuda])
def solve(request: pytest.FixtureRequest) -> Solve:
    return lambda rows, r, factored, **settings: request.param(
        system_of(rows, r, factored), factored=factored, **settings
    )


@pytest.mark.parametrize(("factored", "accuracy"), FORMS)
@pytest.mark.parametrize("m", [1, 2, 3, 5, 10, 20, 31, 32])
def test_solution_is_that_of_scipy(solve: Solve, m: int, factored: bool, accuracy: float) -> None:
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
def test_ridge_weighs_in_column_lengths(
    solve: Solve, ridge: float, factored: bool, accuracy: float
) -> None:
    rows, r = matrix(200, 6)
    rows = rows * np.geomspace(1e-3, 1e3, 6)
    got = solve(rows, r, factored, ridge=ridge)["gamma"]
    lengths = np.linalg.norm(rows, axis=0)
    longer = np.vstack([rows / lengths, ridge**0.5 * np.eye(6)])
    exact = scipy.linalg.lstsq(longer, np.concatenate([r, np.zeros(6)]))[0]
    np.testing.assert_allclose(got * lengths, exact, atol=accuracy * np.linalg.norm(exact))


@pytest.mark.parametrize(("factored", "accuracy"), FORMS)
def test_tolerance_drops_directions(solve: Solve, factored: bool, accuracy: float) -> None:
    rows, r = matrix(200, 6, condition=1e4)
    rows /= np.linalg.norm(rows, axis=0)
    got = solve(rows, r, factored, tolerance=1e-2)
    exact, _, rank, _ = scipy.linalg.lstsq(rows, r, cond=1e-2)
    assert got["rank"] == rank
    assert rank < 6
    np.testing.assert_allclose(got["gamma"], exact, atol=accuracy * np.linalg.norm(exact))


@pytest.mark.parametrize(("factored", "accuracy"), FORMS)
def test_columns_of_any_length(solve: Solve, factored: bool, accuracy: float) -> None:
    rows, r = matrix(200, 5)
    scales = np.geomspace(1e-12, 1e12, 5)
    plain = solve(rows, r, factored)["gamma"]
    scaled = solve(rows * scales, r, factored)["gamma"] * scales
    np.testing.assert_allclose(scaled, plain, atol=accuracy * np.linalg.norm(plain))


@pytest.mark.parametrize("factored", [False, True])
def test_zero_and_repeated_columns(solve: Solve, factored: bool) -> None:
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
def test_nothing_to_solve(solve: Solve, factored: bool) -> None:
    got = solve(np.zeros((4, 3)), np.zeros(4), factored)
    assert not got["gamma"].any()
    assert got["rank"] == 0
    rows, _ = matrix(50, 3)
    assert not solve(rows, np.zeros(50), factored)["gamma"].any()
    assert cuda.solve_secants(np.zeros((0, 4, 4)), factored=factored)["gamma"].shape == (0, 3)


@pytest.mark.parametrize("solver", [on_cpu, on_cuda])
@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_makes_nan(bad: float, factored: bool, solver: Solve) -> None:
    system = np.eye(4)
    system[1, 2] = bad
    got = solver(system, factored=factored)
    assert np.isnan(got["gamma"]).all()
    assert np.isnan(got["reduction"])
    assert got["rank"] == 0


@pytest.mark.parametrize("factored", [False, True])
def test_problem_too_large_for_shared_memory(factored: bool) -> None:
    rows, r = matrix(100, 54)
    system = np.stack([system_of(rows, r, factored)] * 2)
    for gamma in cuda.solve_secants(system, factored=factored)["gamma"]:
        np.testing.assert_allclose(gamma, scipy.linalg.lstsq(rows, r)[0], rtol=1e-9)


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("condition", [1e2, 1e5, 1e9])
@pytest.mark.parametrize("m", [7, 10])
def test_block_finds_what_one_thread_finds(m: int, condition: float, factored: bool) -> None:
    rows, r = matrix(200, m, condition)
    settings = {"ridge": 1e-9, "tolerance": 1e-7}
    system = system_of(rows, r, factored)
    got, alone = (run(system, factored=factored, **settings) for run in (on_cuda, on_cpu))
    assert got["rank"] == alone["rank"]
    # Directions are as accurate as the data: to a rounding times the condition that is kept.
    for name in ("gamma", "condition", "reduction"):
        error = np.linalg.norm(got[name] - alone[name])
        assert error <= (1e-13 if factored else 1e-15) * 1e7**1.5 * np.linalg.norm(alone[name])


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_system_that_is_not_finite_leaves_the_others_alone(bad: float, factored: bool) -> None:
    systems = np.stack([system_of(*matrix(50, 9, seed=seed), factored) for seed in range(3)])
    clean = cuda.solve_secants(systems, factored=factored)
    systems[1, 2, 7] = bad
    got = in_both_schedules(lambda: cuda.solve_secants(systems, factored=factored))
    for name, value in got.items():
        assert lab.same_bits(value[[0, 2]], clean[name][[0, 2]])
