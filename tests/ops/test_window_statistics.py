from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import largest_temporary, mentions, normal, same_bits, seeds, working_dtypes
from torch import Tensor

from aadl_ext import ops
from aadl_ext.ops.reference import CHUNK

PLACES = [0, CHUNK - 1, CHUNK, 2 * CHUNK + 4]  # ends of chunks and of the vector


def statistics(window: Tensor, newest: int = -1) -> ops.WindowStatistics:
    return ops.window_statistics(window, newest, torch.full((window.shape[1],), 7.0).to(window))


def max_std(window: Tensor) -> float:
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
    old, out = window.clone(), torch.full((size,), 7.0, dtype=dtype)
    # The newest iterate is at most sqrt(t) standard deviations from the mean, so that a
    # square loses at most a factor t + 1, of the roundings of a sum of t squares.
    tolerance = (count + 1) * (count + 4) * torch.finfo(dtype).eps
    for newest in range(-count, count):
        found = ops.window_statistics(window, newest, out)
        assert found.mean.data_ptr() == out.data_ptr()
        assert found.max_std.dtype == dtype
        assert found.max_std.shape == ()
        assert float(found.max_std) == pytest.approx(max_std(window), rel=tolerance, abs=0)
        assert_mean(found.mean, window)
    assert same_bits(window, old)


@pytest.mark.parametrize("count", [5, 10])
def test_small_changes_of_drifting_weights_keep_their_digits(count: int) -> None:
    weights = 0.1 * (1 + normal(64, seed=0).abs())
    ring = torch.empty(count, 64)
    for k, noise in enumerate(normal(2000, 64, seed=1)):
        ring[k % count] = weights + 1e-6 * k + 1e-5 * noise
        if k >= count - 1:
            found = statistics(ring, k % count)
            # Squares of float32 weights would be wrong in the first digit here.
            assert float(found.max_std) == pytest.approx(max_std(ring), rel=1e-4)
            assert_mean(found.mean, ring)


@pytest.mark.parametrize("place", PLACES)
def test_largest_deviation_is_found_wherever_it_is(place: int) -> None:
    window = 0.1 + 1e-5 * normal(4, PLACES[-1] + 1, seed=2, dtype=torch.float32)
    window[2, place] += 1
    found = statistics(window)
    assert float(found.max_std) == pytest.approx(max_std(window), rel=1e-5)
    assert float(found.max_std) > 0.4
    assert_mean(found.mean, window)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("row", [0, 1], ids=["newest", "older"])
def test_nan_and_infinity_reach_the_result(place: int, row: int) -> None:
    window = normal(3, PLACES[-1] + 1, seed=3, dtype=torch.float32)
    window[row, place] = float("nan")
    assert statistics(window, 0).max_std.isnan()
    for infinity in (float("inf"), float("-inf")):
        window[row, place] = infinity
        assert not statistics(window, 0).max_std.isfinite()
    window[:, place] = float("inf")  # no finite difference at all
    assert not statistics(window, 0).max_std.isfinite()


def test_order_of_the_rows_does_not_matter() -> None:
    window = 0.1 + 1e-3 * normal(5, 40, seed=4, dtype=torch.float32)
    expected = statistics(window, 4)
    for turn in range(5):
        found = statistics(window.roll(turn, dims=0), (4 + turn) % 5)
        torch.testing.assert_close(found.max_std, expected.max_std, rtol=1e-6, atol=0)
        torch.testing.assert_close(found.mean, expected.mean, rtol=1e-6, atol=0)


@pytest.mark.parametrize("count", [1, 3, 7])
def test_window_of_equal_rows_deviates_by_exactly_zero(count: int) -> None:
    row = normal(20, seed=5, dtype=torch.float32)
    found = statistics(row.repeat(count, 1))
    assert found.max_std == 0
    assert same_bits(found.mean, row)


def test_no_temporary_has_the_size_of_the_window() -> None:
    window = torch.ones(8, 8 * CHUNK)
    out = torch.empty(8 * CHUNK)
    assert largest_temporary(lambda: ops.window_statistics(window, 0, out)) <= window.numel() / 4


@pytest.mark.parametrize(
    ("window", "newest", "out", "fragments"),
    [
        (torch.ones(5), 0, torch.ones(5), ["window", "(5,)"]),
        (torch.ones(0, 5), 0, torch.ones(5), ["window", "(0, 5)"]),
        (torch.ones(3, 5), 3, torch.ones(5), ["newest is 3", "3 rows"]),
        (torch.ones(3, 5), -4, torch.ones(5), ["newest is -4", "3 rows"]),
        (torch.ones(3, 5), 0, torch.ones(4), ["out", "(4,)", "(5,)"]),
        (torch.ones(3, 5), 0, torch.ones(5).double(), ["out", "float64", "float32"]),
        (torch.ones(3, 5).half(), 0, torch.ones(5).half(), ["float16", "float32, float64"]),
        (torch.ones(3, 5).bfloat16(), 0, torch.ones(5), ["window", "bfloat16"]),
    ],
)
def test_misfit_is_refused_and_named(
    window: Tensor, newest: int, out: Tensor, fragments: list[str]
) -> None:
    with pytest.raises(ValueError, match=mentions(*fragments)):
        ops.window_statistics(window, newest, out)
