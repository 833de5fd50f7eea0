from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    WORKING_DTYPES,
    edges,
    largest_temporary,
    mentions,
    normal,
    same_bits,
    seeds,
    working_dtypes,
)
from torch import Tensor

from aadl_ext import ops
from aadl_ext.ops.chunks import CHUNK

PLACES = [0, CHUNK - 1, CHUNK, 2 * CHUNK + 4]  # ends of chunks and of the vector


def statistics(window: Tensor) -> tuple[Tensor, Tensor]:
    """Largest deviation and mean of rows, the newest last, each in a place of its own."""
    iterates, out = [row.clone() for row in window], torch.full_like(window[0], 7)
    max_std = ops.window_statistics(iterates, out)
    assert all(map(same_bits, iterates, window))
    return max_std, out


def exact_std(window: Tensor) -> float:
    """Left side of Eq. 16 in float64."""
    return float(window.double().numpy().std(axis=0).max(initial=0))


def assert_mean(found: Tensor, window: Tensor) -> None:
    eps = torch.finfo(window.dtype).eps
    bound = (len(window) + 2) * eps * float(window.abs().max()) if window.numel() else 0
    np.testing.assert_allclose(found.numpy(), window.double().numpy().mean(axis=0), 0, bound)


@given(st.integers(1, 8), st.integers(0, 50), working_dtypes, st.floats(1e-8, 1e3), seeds)
def test_statistics_are_those_of_float64(
    count: int, size: int, dtype: torch.dtype, spread: float, seed: int
) -> None:
    center, noise = normal(size, seed=seed), normal(count, size, seed=seed + 1)
    window = (center + spread * noise).to(dtype)
    # The newest iterate is at most sqrt(t) standard deviations from the mean, so that a
    # square loses at most a factor t + 1, of the roundings of a sum of t squares.
    tolerance = (count + 1) * (count + 4) * torch.finfo(dtype).eps
    for turn in range(count):  # any of them may be the newest
        max_std, mean = statistics(window.roll(turn, dims=0))
        assert max_std.dtype == dtype
        assert max_std.shape == ()
        assert float(max_std) == pytest.approx(exact_std(window), rel=tolerance, abs=0)
        assert_mean(mean, window)


@pytest.mark.parametrize("dtype", WORKING_DTYPES, ids=str)
def test_sizes_around_the_limits_of_kernels(dtype: torch.dtype, backend: str) -> None:
    for size in edges(backend):
        window = (normal(size, seed=0) + 1e-3 * normal(5, size, seed=1)).to(dtype)
        max_std, mean = statistics(window)
        eps = torch.finfo(dtype).eps
        assert float(max_std) == pytest.approx(exact_std(window), rel=50 * eps, abs=0)
        assert_mean(mean, window)


@pytest.mark.parametrize("count", [2, 11, 256])
def test_windows_of_any_length(count: int) -> None:
    window = normal(count, 2500, seed=1, dtype=torch.float32)
    max_std, mean = statistics(window)
    assert float(max_std) == pytest.approx(exact_std(window), rel=1e-4)
    assert_mean(mean, window)


@pytest.mark.parametrize("count", [5, 10])
def test_small_changes_of_drifting_weights_keep_their_digits(count: int) -> None:
    weights = 0.1 * (1 + normal(64, seed=0).abs())
    steps = torch.arange(2000)[:, None]
    points = (weights + 1e-6 * steps + 1e-5 * normal(2000, 64, seed=1)).float()
    for window in points.unfold(0, count, 40).movedim(-1, 1):
        max_std, mean = statistics(window)
        # Squares of float32 weights would be wrong in the first digit here.
        assert float(max_std) == pytest.approx(exact_std(window), rel=1e-4)
        assert_mean(mean, window)


@pytest.mark.parametrize("place", PLACES)
def test_largest_deviation_is_found_wherever_it_is(place: int) -> None:
    window = 0.1 + 1e-5 * normal(4, PLACES[-1] + 1, seed=2, dtype=torch.float32)
    window[2, place] += 1
    max_std, mean = statistics(window)
    assert float(max_std) == pytest.approx(exact_std(window), rel=1e-5)
    assert float(max_std) > 0.4
    assert_mean(mean, window)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("row", [-1, 1], ids=["newest", "older"])
def test_nan_and_infinity_reach_the_result(place: int, row: int) -> None:
    window = normal(3, PLACES[-1] + 1, seed=3, dtype=torch.float32)
    for bad in (float("nan"), float("inf"), float("-inf")):
        window[row, place] = bad
        assert statistics(window)[0].isnan()
    window[:, place] = float("inf")  # no finite difference at all
    assert statistics(window)[0].isnan()


def test_order_of_the_iterates_does_not_matter() -> None:
    window = 0.1 + 1e-3 * normal(5, 40, seed=4, dtype=torch.float32)
    max_std, mean = statistics(window)
    for turn in range(1, 5):
        found = statistics(window.roll(turn, dims=0))
        torch.testing.assert_close(found, (max_std, mean), rtol=1e-6, atol=0)


def test_mean_does_not_overflow_where_differences_to_the_newest_do_not() -> None:
    far = torch.full((20,), 2e38)
    mean = torch.empty(20)
    ops.window_statistics([far, -far, torch.zeros(20)], mean)
    assert mean.tolist() == [0] * 20


def test_an_iterate_may_be_in_the_window_twice() -> None:
    points = normal(2, 40, seed=6, dtype=torch.float32)
    out = torch.empty(40)
    max_std = ops.window_statistics([points[0], points[1], points[0]], out)
    assert float(max_std) == pytest.approx(exact_std(points[[0, 1, 0]]), rel=1e-5)
    assert_mean(out, points[[0, 1, 0]])


@pytest.mark.parametrize("count", [1, 3, 7])
def test_window_of_equal_rows_deviates_by_exactly_zero(count: int) -> None:
    row = normal(20, seed=5, dtype=torch.float32)
    max_std, mean = statistics(row.repeat(count, 1))
    assert max_std == 0
    assert same_bits(mean, row)


@pytest.mark.not_on_cuda("allocates for itself")
def test_no_temporary_has_the_size_of_the_window() -> None:
    window = torch.ones(8, 8 * CHUNK)
    out, iterates = torch.empty(8 * CHUNK), list(window)
    assert largest_temporary(lambda: ops.window_statistics(iterates, out)) <= window.numel() / 4


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(ValueError, match="window is empty"):
        ops.window_statistics([], torch.ones(5))


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(
    ("odd", "fragments"),
    [
        (torch.ones(4), ["window", "(4,)", "(5,)"]),
        (torch.ones(5, 1), ["window", "(5, 1)", "(5,)"]),
        (torch.ones(5).double(), ["window", "float64", "float32"]),
        (torch.ones(5).bfloat16(), ["window", "bfloat16", "float32"]),
    ],
)
def test_iterate_that_does_not_fit_is_refused_and_named(
    odd: Tensor, fragments: list[str], place: int
) -> None:
    window = [torch.ones(5), torch.ones(5), torch.ones(5)]
    window[place] = odd
    with pytest.raises(ValueError, match=mentions(*fragments)):
        ops.window_statistics(window, torch.ones(5))


@pytest.mark.parametrize(
    ("out", "fragments"),
    [
        (torch.ones(4), ["(4,)", "(5,)"]),
        (torch.ones(5, 1), ["out", "(5, 1)"]),
        (torch.ones(5).double(), ["float64", "float32"]),
        (torch.ones(5).half(), ["out", "float16", "float32, float64"]),
    ],
)
def test_out_that_does_not_fit_is_refused_and_named(out: Tensor, fragments: list[str]) -> None:
    with pytest.raises(ValueError, match=mentions(*fragments)):
        ops.window_statistics([torch.ones(5)], out)
