"""The CUDA kernels for TSQR and steps in a subspace, emulated on the host, against float64 NumPy.

Nearly everything runs in the natural and in a shuffled schedule, which must agree bit by bit: a
missing barrier shows as a difference.
"""

from __future__ import annotations

from typing import Any

import lab
import numpy as np
import pytest
from cuda_on_host import cuda, in_both_schedules
from small_problems import check_factors, tall

# ---- TSQR -------------------------------------------------------------------------


def check(
    offsets: list[int],
    vector: str = "float32",
    storage: str = "float32",
    count: int = 4,
    append: bool = True,
    shift: int = 0,
    scales: np.ndarray | None = None,
    **settings: int,
) -> np.ndarray:
    rows, last = tall(offsets, vector, storage, count, append, shift, scales)
    factors: np.ndarray = in_both_schedules(
        lambda: cuda.tsqr(rows, append=last, offsets=offsets, working=vector, **settings)
    )
    k = count + append
    check_factors(factors, rows, last, offsets, vector, 10 + k, 10 * k)
    return factors


# By a thread, a warp, a block: one fold and its edges, one tile (1024 rows), several.
@pytest.mark.parametrize(("vector", "storage"), lab.WIDE_PAIRS)
@pytest.mark.parametrize("size", [0, 1, 3, 255, 256, 257, 1025, 3003])
def test_sizes_of_few_columns(size: int, vector: str, storage: str) -> None:
    check([0, size], vector, storage)


@pytest.mark.parametrize(("vector", "storage"), lab.WIDE_PAIRS)
@pytest.mark.parametrize("size", [0, 1, 13, 127, 128, 129, 513, 1503])
def test_sizes_of_many_columns(size: int, vector: str, storage: str) -> None:
    check([0, size], vector, storage, count=12)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 7, 8, 10, 11, 15, 16, 17, 20, 24, 25, 32, 33, 39])
def test_any_number_of_columns(count: int) -> None:
    check([0, 30, 300], count=count)
    check([0, 200], "float64", "float64", count=count, append=count < 39)


def test_more_columns_than_there_are_kernels_for_are_refused() -> None:
    assert check([0, 5], count=40, append=False).shape == (1, 40, 40)
    with pytest.raises(ValueError, match="columns"):
        check([0, 5], count=40)


@pytest.mark.parametrize("vector", ["float32", "float64"])
def test_only_the_appended_column(vector: str) -> None:
    check([0, 3000], vector, count=0)


@pytest.mark.parametrize("count", [4, 12])
@pytest.mark.parametrize(
    "offsets",
    [[0], [0, 0], [0, 1], [0, 0, 0], [0, 300, 300, 301, 2000], [0, 0, 2500, 2500]],
    ids=str,
)
def test_segments(offsets: list[int], count: int) -> None:
    check(offsets, count=count)


@pytest.mark.parametrize("count", [2, 12])
def test_more_segments_than_a_launch_takes(count: int) -> None:
    """The last two, of several tiles and of one entry, are in the second launch."""
    short = list(range(0, 128 * 3 + 1, 3))
    check([*short, short[-1] + 2500, short[-1] + 2501], count=count)


@pytest.mark.parametrize("count", [5, 12, 20])
def test_repeated_call_gives_the_same_bits(count: int) -> None:
    rows = np.random.default_rng(0).standard_normal((count, 1500)).astype(np.float32)
    first, *others = (cuda.tsqr(rows, offsets=[0, 1500], working="float32") for _ in range(3))
    assert all(lab.same_bits(first, other) for other in others)
    shuffled = in_both_schedules(lambda: cuda.tsqr(rows, offsets=[0, 1500], working="float32"), 5)
    assert lab.same_bits(first, shuffled)


def test_batch_is_factored_as_its_matrices_alone() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((5, 3 * 512)).astype(np.float32)
    together = cuda.tsqr(rows, offsets=[0, 512, 1024, 1536], working="float32")
    for index, factor in enumerate(together):
        alone = rows[:, 512 * index : 512 * (index + 1)]
        assert lab.same_bits(factor, cuda.tsqr(alone, offsets=[0, 512], working="float32")[0])


@pytest.mark.parametrize("shift", [1, 3])
@pytest.mark.parametrize("count", [4, 12])
@pytest.mark.parametrize(("vector", "storage"), lab.WIDE_PAIRS)
def test_unaligned(shift: int, count: int, vector: str, storage: str) -> None:
    check([0, 5, 1501], vector, storage, count, shift=shift)


def test_alignment_does_not_change_a_bit() -> None:
    for count in (3, 12):
        first, *others = (check([0, 1501], count=count, shift=shift) for shift in (0, 1, 3))
        assert all(lab.same_bits(first, other) for other in others)


@pytest.mark.parametrize(("count", "size"), [(32, 4200), (5, 40_000)])
def test_triangles_of_triangles(count: int, size: int) -> None:
    check([0, size], count=count)


@pytest.mark.parametrize(("count", "size"), [(3, 40_000), (20, 9000)])
def test_long_tiles(count: int, size: int) -> None:
    """As they are in matrices of millions of rows; roundings add up over up to 64 folds."""
    check([0, size], count=count, most_tiles=1)


@pytest.mark.parametrize("count", [4, 12])
def test_columns_of_very_different_lengths(count: int) -> None:
    scales = np.resize([1e-18, 1.0, 1e15, 1e-8], count)
    check([0, 2100], count=count, scales=scales)


@pytest.mark.parametrize("count", [4, 12])
@pytest.mark.parametrize("large_first", [False, True])
def test_entries_that_grow_or_shrink_beyond_the_range_of_squares(
    large_first: bool, count: int
) -> None:
    sizes = np.geomspace(1e-30, 1e30, 2100, dtype=np.float32)[:: -1 if large_first else 1]
    rows = np.random.default_rng(0).standard_normal((count, 2100)).astype(np.float32) * sizes
    factor = in_both_schedules(lambda: cuda.tsqr(rows, offsets=[0, 2100], working="float32"))[0]
    exact = np.linalg.qr(rows.T.astype(np.float64), mode="r")
    exact *= np.sign(np.diagonal(exact))[:, None]
    np.testing.assert_allclose(factor / exact.max(), exact / exact.max(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("count", [4, 12])
@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
def test_float64_entries_whose_squares_leave_the_range(scale: float, count: int) -> None:
    rows = np.random.default_rng(0).standard_normal((count, 700))
    plain = cuda.tsqr(rows, offsets=[0, 700], working="float64")
    scaled = cuda.tsqr(rows * scale, offsets=[0, 700], working="float64") / scale
    np.testing.assert_allclose(scaled, plain, rtol=0, atol=1e-12 * np.abs(plain).max())


@pytest.mark.parametrize("count", [4, 12])
def test_subnormal_float32_are_seen(count: int) -> None:
    values = np.random.default_rng(0).standard_normal((count, 600))
    rows = (values * np.resize([1.0, 1e-41], count)[:, None]).astype(np.float32)
    factor = cuda.tsqr(rows, offsets=[0, 600], working="float32")[0]
    exact = np.abs(np.linalg.qr(rows.T.astype(np.float64), mode="r"))
    spacing = np.maximum(1e-5 * np.linalg.norm(exact, axis=0), 2e-45)  # of subnormal numbers
    assert (np.abs(np.abs(factor) - exact) <= spacing).all()


def test_zero_columns_stay_zero() -> None:
    for count in (4, 12):
        scales = np.resize([1.0, 0.0], count)
        factor = check([0, 1500], count=count, scales=scales)[0]
        assert not factor[:, 1:count:2].any()
        assert not check([0, 1500], count=count, scales=np.zeros(count), append=False).any()


@pytest.mark.parametrize("count", [2, 10])
def test_nearly_dependent_columns_keep_what_is_left(count: int) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((count, 3000))
    rows[-1] = rows[0] + 1e-7 * rows[-1]
    factor = cuda.tsqr(rows, offsets=[0, 3000], working="float64")[0]
    exact = np.abs(np.linalg.qr(rows.T, mode="r"))
    np.testing.assert_allclose(factor[-1, -1], exact[-1, -1], rtol=1e-7)


@pytest.mark.parametrize("count", [3, 12])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 1100, 2999])
def test_what_is_not_finite_is_seen_in_its_segment_only(bad: float, place: int, count: int) -> None:
    rows = np.random.default_rng(0).standard_normal((count, 4000)).astype(np.float32)
    rows[1, place] = bad
    factor = cuda.tsqr(rows, offsets=[0, 3000, 4000], working="float32")
    assert not np.isfinite(factor[0, :, 1]).all()
    assert np.isfinite(factor[1]).all()


# ---- Newton step in a subspace ----------------------------------------------------


def products(m: int, samples: int = 3, definite: bool = True, seed: int = 0) -> list[np.ndarray]:
    """Metric, curvature, right side, noise of displacements of a quadratic."""
    rng = np.random.default_rng(seed + m)
    size = m + 5
    turn = np.linalg.qr(rng.standard_normal((size, size)))[0]
    values = np.linspace(1, 10, size)
    if not definite:
        values[::2] *= -1
    w, noise = rng.standard_normal((m, size)), 0.1 * rng.standard_normal((samples, size))
    changes = w @ ((turn * values) @ turn.T)
    return [w @ w.T, w @ changes.T, w @ rng.standard_normal(size), w @ noise.T]


def newton(
    metric: np.ndarray, curvature: np.ndarray, right: np.ndarray, noise: np.ndarray, radius: float,
    ridge: float = 1e-4, floor: float = 0.01, shrinkage: float = 4.0,
) -> dict[str, Any]:  # fmt: skip
    """The docstring of ops.solve_subspace, in an orthonormal basis of the directions kept."""
    m, lengths = len(right), np.sqrt(np.diag(metric))
    units = np.divide(1, lengths, out=np.zeros(m), where=lengths > 0)
    values, vectors = np.linalg.eigh(units[:, None] * metric * units)
    kept = values > ridge * values[-1]
    basis = units[:, None] * vectors[:, kept] / np.sqrt(values[kept])
    e, turn = np.linalg.eigh(basis.T @ (curvature + curvature.T) @ basis / 2)
    basis = basis @ turn
    c = basis.T @ right
    v = np.mean((basis.T @ noise) ** 2, axis=1) if noise.shape[1] else np.zeros(len(c))
    reduced = c * np.maximum(0, 1 - shrinkage * v / c**2)
    step = -reduced / np.maximum(abs(e), floor * abs(e).max(initial=0))
    length = float(np.linalg.norm(step))
    if length > radius:
        step, length = step * (radius / length), radius
    return {
        "coefficients": -basis @ step,
        "slope": step @ c,
        "length": length,
        "rank": kept.sum(),
        "curvature": np.sort([*e, *np.zeros(m - len(e))]),
        "reduction": np.linalg.norm(c + e * step) / np.linalg.norm(c),
    }


def step_of(parts: list[np.ndarray], radius: float, **settings: float) -> dict[str, Any]:
    stacked = [np.ascontiguousarray(part[None]) for part in parts]
    found = in_both_schedules(
        lambda: cuda.solve_subspace(*stacked, radius=np.array([radius]), **settings)
    )
    return {name: value[0] for name, value in found.items()}


@pytest.mark.parametrize("definite", [True, False])
@pytest.mark.parametrize("radius", [np.inf, 0.1])
@pytest.mark.parametrize("m", [1, 2, 3, 5, 8, 15, 32, 39])  # 39: more than shared memory
def test_newton_step_is_that_of_the_definition(m: int, radius: float, definite: bool) -> None:
    parts = products(m, definite=definite)
    got, expected = step_of(parts, radius), newton(*parts, radius)
    assert got["rank"] == expected["rank"]
    for name, value in expected.items():
        error = np.linalg.norm(got[name] - value)
        assert error <= 1e-9 * np.linalg.norm(value), name


@pytest.mark.parametrize("samples", [0, 1, 9])
def test_any_number_of_noise_samples(samples: int) -> None:
    parts = products(6, samples)
    got, expected = step_of(parts, 1.0, shrinkage=2.0), newton(*parts, 1.0, shrinkage=2.0)
    np.testing.assert_allclose(got["coefficients"], expected["coefficients"], rtol=1e-9)


def test_dropped_directions_of_a_subspace() -> None:
    metric, curvature, right, noise = products(5)
    order = [0, 1, 2, 3, 4, 0, 2]  # twice the same displacement
    wide = [metric[np.ix_(order, order)], curvature[np.ix_(order, order)], right[order]]
    got = step_of([*wide, noise[order]], np.inf, ridge=1e-6)
    assert got["rank"] == 5
    folded = got["coefficients"][:5].copy()
    folded[[0, 2]] += got["coefficients"][5:]
    exact = newton(metric, curvature, right, noise, np.inf, ridge=1e-6)["coefficients"]
    np.testing.assert_allclose(folded, exact, rtol=1e-7)
    assert not step_of([0 * part for part in [metric, curvature, right, noise]], 1.0)["rank"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("part", range(5))
def test_subspace_that_is_not_finite_leaves_the_others_alone(part: int, bad: float) -> None:
    parts = [np.stack(x) for x in zip(*(products(6, seed=k) for k in range(3)), strict=True)]
    parts.append(np.ones(3))
    clean = cuda.solve_subspace(*parts[:4], radius=parts[4])
    parts[part][1].reshape(-1)[-1:] = bad
    if part == 4:
        parts[4][1] = -1 if bad == np.inf else bad  # any length may be infinite
    got = in_both_schedules(lambda: cuda.solve_subspace(*parts[:4], radius=parts[4]))
    for name, value in got.items():
        assert lab.same_bits(value[[0, 2]], clean[name][[0, 2]])
    for name in ("coefficients", "slope", "length", "reduction"):
        assert np.isnan(got[name][1]).all(), name


def test_no_subspace_at_all() -> None:
    shapes = [(0, 3, 3), (0, 3, 3), (0, 3), (0, 3, 2)]
    got = cuda.solve_subspace(*map(np.zeros, shapes), radius=np.zeros(0))
    assert got["coefficients"].shape == (0, 3)
