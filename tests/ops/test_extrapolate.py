from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    edges,
    flags,
    largest_temporary,
    mentions,
    normal,
    offsets,
    pairs,
    same_bits,
    seeds,
    storage_dtypes,
    working_dtypes,
)
from torch import Tensor

from aadl_ext import ops
from aadl_ext.ops.chunks import CHUNK


def assert_extrapolated(
    found: Tensor,
    before: Tensor,
    after: Tensor,
    relaxation: float,
    rows: Tensor,
    coefficients: Tensor,
    bounds: list[int],
) -> None:
    """Against float64 arithmetic, with one rounding per product and per sum."""
    eps = torch.finfo(found.dtype).eps
    weights = coefficients.double().expand(len(bounds) - 1, -1)
    for weight, (start, stop) in zip(weights, pairwise(bounds), strict=True):
        segment = slice(start, stop)
        low, high = before[segment].double(), after[segment].double()
        terms = weight[:, None] * rows[:, segment].double()
        exact = low + relaxation * (high - low) - terms.sum(dim=0)
        scale = low.abs() + high.abs() + terms.abs().sum(dim=0)
        assert ((found[segment].double() - exact).abs() <= (len(rows) + 4) * eps * scale).all()


def assert_sizes(found: Tensor, out: Tensor, after: Tensor) -> None:
    """Exactly, as one of the entries, and as one of the differences."""
    sizes = torch.stack([out.abs(), (out - after).abs()], dim=1)
    assert same_bits(found, torch.cat([sizes, sizes.new_zeros(1, 2)]).amax(dim=0))


@given(
    offsets(),
    st.integers(0, 5),
    st.booleans(),
    working_dtypes,
    storage_dtypes,
    st.sampled_from([0.1, 0.7, 1.0]),
    seeds,
)
def test_points_are_mixed_and_rows_subtracted_in_each_segment(
    bounds: list[int],
    count: int,
    alike: bool,
    dtype: torch.dtype,
    storage: torch.dtype,
    relaxation: float,
    seed: int,
) -> None:
    check(bounds, count, alike, dtype, storage, relaxation, seed)


def check(
    bounds: list[int],
    count: int,
    alike: bool = False,
    dtype: torch.dtype = torch.float32,
    storage: torch.dtype = torch.float32,
    relaxation: float = 0.3,
    seed: int = 0,
) -> None:
    before, after = normal(2, bounds[-1], seed=seed, dtype=dtype)
    rows = normal(count, bounds[-1], seed=seed + 1, dtype=storage)
    sets = 1 if alike else len(bounds) - 1
    coefficients = normal(sets, count, seed=seed + 2)
    arguments = (before, after, relaxation, rows, coefficients, bounds)
    inputs = [before, after, rows, coefficients]
    copies = [tensor.clone() for tensor in inputs]

    out = torch.full_like(before, torch.nan)
    assert_sizes(ops.extrapolate_(out, *arguments), out, after)
    assert_extrapolated(out, *arguments)
    assert all(map(same_bits, inputs, copies))


@pairs
@pytest.mark.parametrize("relaxation", [0.3, 1.0])
def test_sizes_around_the_limits_of_kernels(
    relaxation: float, dtype: torch.dtype, storage: torch.dtype, backend: str
) -> None:
    for size in edges(backend):
        check([0, size // 3, size // 3, size], 3, False, dtype, storage, relaxation)


@pytest.mark.parametrize("rows", [1, 2, 4, 7, 8, 9, 20, 300])
def test_any_number_of_rows(rows: int) -> None:
    check([0, 100, 1500], rows)


def test_more_segments_than_a_launch_holds() -> None:
    check(list(range(0, 301, 2)), 3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_kernels_do_not_read_rows_of_weight_zero(bad: float, backend: str) -> None:
    if backend == "definition":
        return
    point, rows = normal(50, seed=0, dtype=torch.float32), torch.full((6, 50), bad)
    rows[4], out = 1, torch.empty(50)
    gamma = torch.tensor([[0, 0, 0, -0.0, 0.5, 0]], dtype=torch.float64)
    ops.extrapolate_(out, point, point, 0.3, rows, gamma, [0, 50])
    torch.testing.assert_close(out, point - 0.5)


def test_one_set_of_coefficients_serves_all_segments() -> None:
    before, after = normal(2, 50, seed=0, dtype=torch.float32)
    rows, gamma = normal(3, 50, seed=1, dtype=torch.float32), normal(1, 3, seed=2)
    bounds, apart, together = [0, 7, 7, 40, 50], torch.empty(50), torch.empty(50)
    ops.extrapolate_(apart, before, after, 0.3, rows, gamma.repeat(4, 1), bounds)
    ops.extrapolate_(together, before, after, 0.3, rows, gamma, bounds)
    assert same_bits(together, apart)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("relaxation", [0.3, 1.0])
def test_out_may_be_one_of_the_points(place: int, relaxation: float) -> None:
    points, apart = list(normal(2, 50, seed=0, dtype=torch.float32)), torch.empty(50)
    rest = (relaxation, normal(2, 50, seed=1).float(), normal(1, 2, seed=2), [0, 50])
    sizes = ops.extrapolate_(apart, *points, *rest)
    assert same_bits(ops.extrapolate_(points[place], *points, *rest), sizes)
    assert same_bits(points[place], apart)


@given(offsets(), st.integers(0, 5), storage_dtypes, flags, st.sampled_from([0, 1, 2]))
def test_point_after_the_step_is_taken_where_the_other_is_not_accepted(
    bounds: list[int], count: int, storage: torch.dtype, accept: Tensor | None, place: int
) -> None:
    points = list(normal(3, bounds[-1], seed=0, dtype=torch.float32))
    rows = normal(count, bounds[-1], seed=1, dtype=storage)
    rest = (0.3, rows, normal(1, count, seed=2), bounds)
    after = points[1].clone()
    expected = after.clone()
    if accept is None or accept:
        ops.extrapolate_(expected, *points[:2], *rest)
    sizes = ops.extrapolate_(points[place], *points[:2], *rest, accept=accept)
    assert_sizes(sizes, expected, after)
    assert same_bits(points[place], expected)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_is_not_finite_does_not_spoil_a_point_that_is_not_accepted(bad: float) -> None:
    after, out = normal(2, 50, seed=0, dtype=torch.float32)
    no = torch.tensor(False)
    gamma = torch.full((1, 2), bad, dtype=torch.float64)
    spoilt = (torch.full((50,), bad), after, 0.3, torch.full((2, 50), bad), gamma)
    assert_sizes(ops.extrapolate_(out, *spoilt, [0, 50], accept=no), after, after)
    assert same_bits(out, after)


def test_full_relaxation_starts_exactly_from_after() -> None:
    before, after = normal(2, 50, seed=0, dtype=torch.float32)
    none, out = (torch.zeros(0, 50), torch.zeros(1, 0).double(), [0, 50]), torch.empty(50)
    assert_sizes(ops.extrapolate_(out, 1e8 * before, after, 1.0, *none), after, after)
    assert same_bits(out, after)


def test_long_segments_are_extrapolated_to_their_ends() -> None:
    bounds = [0, 3, CHUNK + 3, CHUNK + 3, 3 * CHUNK + 4]
    before, after = normal(2, bounds[-1], seed=0, dtype=torch.float32)
    rows = normal(3, bounds[-1], seed=1, dtype=torch.bfloat16)
    arguments = (before, after, 0.1, rows, normal(4, 3, seed=2), bounds)
    out = torch.empty_like(before)
    assert_sizes(ops.extrapolate_(out, *arguments), out, after)
    assert_extrapolated(out, *arguments)


PLACES = [0, 2, 3, CHUNK + 2, CHUNK + 3, 3 * CHUNK + 3]  # ends of segments and of chunks


def extrapolated(after: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """Sizes and point after a step back along a row, in three segments."""
    out, bounds = torch.empty_like(after), [0, 3, CHUNK + 3, len(after)]
    gamma = torch.ones(3, 1, dtype=torch.float64)
    return ops.extrapolate_(out, after, after, 1.0, row[None], gamma, bounds), out


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("value", [9.0, -9.0, float("inf"), float("-inf")])
def test_largest_entry_is_found_wherever_it_is(value: float, place: int) -> None:
    after, row = normal(2, PLACES[-1] + 1, seed=0, dtype=torch.float32).clamp(-4, 4)
    after[place], row[place] = 1, 1 - value
    sizes, out = extrapolated(after, row)
    assert out[place] == value
    assert sizes[0] == abs(value)
    assert sizes[1] == (out - after).abs().max()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("beside", [0.0, float("inf"), float("-inf")])
def test_nan_outweighs_all_other_entries(place: int, beside: float) -> None:
    after, row = normal(2, PLACES[-1] + 1, seed=0, dtype=torch.float32)
    after[[1, -2]] = beside
    row[place] = torch.nan
    assert extrapolated(after, row)[0].isnan().all()


@pytest.mark.not_on_cuda("allocates for itself")
def test_no_temporary_has_the_size_of_the_history() -> None:
    size = 8 * CHUNK
    point, rows, gamma = torch.ones(size), torch.ones(8, size).bfloat16(), torch.ones(1, 8).double()
    out = torch.empty(size)
    largest = largest_temporary(
        lambda: ops.extrapolate_(out, point, point, 1.0, rows, gamma, [0, size])
    )
    assert largest <= rows.numel() / 4


FIT = {
    "out": torch.ones(5),
    "before": torch.ones(5),
    "after": torch.ones(5),
    "relaxation": 0.5,
    "rows": torch.ones(3, 5),
    "coefficients": torch.ones(2, 3).double(),
}


@pytest.mark.parametrize(
    ("wrong", "bounds", "fragments"),
    [
        ({"out": torch.ones(5, 1)}, [0, 2, 5], ["out", "(5, 1)"]),
        ({"before": torch.ones(4)}, [0, 2, 5], ["before", "(4,)", "(5,)"]),
        ({"after": torch.ones(5).double()}, [0, 2, 5], ["after", "float64", "float32"]),
        ({"out": torch.ones(5).half()}, [0, 2, 5], ["out", "float16", "float32, float64"]),
        ({"rows": torch.ones(3, 4)}, [0, 2, 5], ["rows", "(3, 4)", "5"]),
        ({"rows": torch.ones(5)}, [0, 2, 5], ["rows", "(5,)"]),
        ({"rows": torch.ones(3, 5).int()}, [0, 2, 5], ["rows", "int32"]),
        ({"coefficients": torch.ones(2, 2).double()}, [0, 2, 5], ["(2, 2)", "(2, 3)", "(1, 3)"]),
        ({"coefficients": torch.ones(1, 2).double()}, [0, 2, 5], ["(1, 2)", "(2, 3)", "(1, 3)"]),
        ({"coefficients": torch.ones(2, 3).double()}, [0, 2, 3, 5], ["(2, 3)", "(3, 3)", "(1, 3)"]),
        ({"coefficients": torch.ones(3).double()}, [0, 2, 5], ["(3,)", "(2, 3)"]),
        ({"coefficients": torch.ones(2, 3)}, [0, 2, 5], ["float32", "float64"]),
        ({"relaxation": math.nan}, [0, 2, 5], ["relaxation", "nan", "finite"]),
        ({"relaxation": math.inf}, [0, 2, 5], ["relaxation", "inf", "finite"]),
        ({}, [0, 5], ["(2, 3)", "(1, 3)"]),
        ({}, [0, 2, 4], ["[0, 2, 4]", "5"]),
        ({}, [0, 6, 5], ["[0, 6, 5]"]),
        ({}, [-1, 2, 5], ["[-1, 2, 5]"]),
    ],
)
def test_misfit_is_refused_and_named(
    wrong: dict[str, Tensor], bounds: list[int], fragments: list[str]
) -> None:
    with pytest.raises(ValueError, match=mentions(*fragments)):
        ops.extrapolate_(**{**FIT, **wrong}, offsets=bounds)
