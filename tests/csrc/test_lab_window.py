"""The window kernel against mean and variance in float64."""

from __future__ import annotations

import lab
import numpy as np
import pytest

aadl_lab = lab.load()


def window(size: int, count: int, vector: str, shift: int = 0) -> np.ndarray:
    rng = np.random.default_rng(size + count)
    centre = rng.standard_normal(size)
    return lab.unaligned((centre + 1e-3 * rng.standard_normal((count, size))).astype(vector), shift)


def check(rows: np.ndarray, newest: int, shift: int = 0, threads: int = 1) -> tuple:
    mean = lab.unaligned(np.full(rows.shape[1], np.nan, rows.dtype), shift)
    then = rows.copy()
    peak = aadl_lab.window_statistics(rows, newest=newest, mean=mean, threads=threads)
    assert lab.same_bits(rows, then)
    exact = then.astype(np.float64) if rows.dtype == np.float32 else then.astype(np.longdouble)
    eps = float(np.finfo(rows.dtype).eps)
    largest = float(exact.std(axis=0).max(initial=0))
    np.testing.assert_allclose(peak, largest, rtol=10 * len(rows) * eps, atol=0)
    deviation = float(np.abs(exact - exact[newest]).max(initial=0))
    np.testing.assert_allclose(mean, exact.mean(axis=0), rtol=eps, atol=len(rows) * eps * deviation)
    return peak, mean


@pytest.mark.parametrize("vector", ["float32", "float64"])
@pytest.mark.parametrize("size", lab.EDGES)
def test_sizes_around_the_limits_of_the_kernel(size: int, vector: str) -> None:
    check(window(size, 5, vector), 2)


@pytest.mark.parametrize("count", range(1, 12))
def test_any_count_and_any_newest(count: int) -> None:
    for newest in range(count):
        check(window(1500, count, "float32"), newest)


@pytest.mark.parametrize("vector", ["float32", "float64"])
@pytest.mark.parametrize("shift", [0, 1, 3])
def test_large_and_unaligned(shift: int, vector: str) -> None:
    check(window(2_900_021, 2, vector, shift), 0, shift, threads=2)


@pytest.mark.parametrize("size", [200_000, 2_000_000])
def test_threads_do_not_change_a_bit(size: int) -> None:
    rows = window(size, 4, "float32")
    first, *others = (check(rows, 1, threads=threads) for threads in (1, 2, 3))
    assert all(all(map(lab.same_bits, first, other)) for other in others)


def test_one_iterate_is_its_mean() -> None:
    rows = window(1000, 1, "float32")
    mean = np.empty(1000, np.float32)
    assert aadl_lab.window_statistics(rows, newest=0, mean=mean) == 0
    assert lab.same_bits(mean, rows[0])


def test_equal_iterates_have_no_deviation() -> None:
    rows = np.repeat(window(1000, 1, "float32"), 7, axis=0)
    mean = np.empty(1000, np.float32)
    assert aadl_lab.window_statistics(rows, newest=3, mean=mean) == 0
    assert lab.same_bits(mean, rows[0])


def test_small_changes_of_large_weights_keep_their_digits() -> None:
    rng = np.random.default_rng(0)
    rows = (0.1 + 1e-5 * rng.standard_normal((10, 5000))).astype(np.float32)
    check(rows, 9)


@pytest.mark.parametrize("vector", ["float32", "float64"])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("count", [1, 2, 6])
def test_what_is_not_finite_makes_nan(count: int, bad: float, vector: str) -> None:
    for row in range(count):
        for place in (0, 300, 69_999):
            rows = window(70_000, count, vector)
            rows[row, place] = bad
            mean = np.empty(70_000, vector)
            assert np.isnan(
                aadl_lab.window_statistics(rows, newest=count - 1, mean=mean, threads=2)
            )


def test_infinite_everywhere_makes_nan() -> None:
    rows = np.full((3, 10), np.inf, np.float32)
    assert np.isnan(aadl_lab.window_statistics(rows, newest=0, mean=np.empty(10, np.float32)))
