from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    STORAGE_DTYPES,
    largest_temporary,
    mentions,
    normal,
    offsets,
    same_bits,
    seeds,
    storage_dtypes,
    working_dtypes,
)
from torch import Tensor

from aadl_ext import ops
from aadl_ext.ops.reference import CHUNK


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
    for weight, (start, stop) in zip(coefficients.double(), pairwise(bounds), strict=True):
        segment = slice(start, stop)
        low, high = before[segment].double(), after[segment].double()
        terms = weight[:, None] * rows[:, segment].double()
        exact = low + relaxation * (high - low) - terms.sum(dim=0)
        scale = low.abs() + high.abs() + terms.abs().sum(dim=0)
        assert ((found[segment].double() - exact).abs() <= (len(rows) + 4) * eps * scale).all()


@given(
    offsets(),
    st.integers(0, 5),
    working_dtypes,
    storage_dtypes,
    st.sampled_from(STORAGE_DTYPES),
    st.sampled_from([0.1, 0.7, 1.0]),
    seeds,
)
def test_points_are_mixed_and_rows_subtracted_in_each_segment(
    bounds: list[int],
    count: int,
    dtype: torch.dtype,
    storage: torch.dtype,
    given_in: torch.dtype,
    relaxation: float,
    seed: int,
) -> None:
    before, after = normal(2, bounds[-1], seed=seed, dtype=dtype)
    rows = normal(count, bounds[-1], seed=seed + 1, dtype=storage)
    coefficients = normal(len(bounds) - 1, count, seed=seed + 2, dtype=given_in)
    arguments = (before, after, relaxation, rows, coefficients, bounds)
    inputs = [before, after, rows, coefficients]
    copies = [tensor.clone() for tensor in inputs]

    out = torch.full_like(before, torch.nan)
    assert ops.extrapolate_(out, *arguments) is out
    assert_extrapolated(out, *arguments)
    assert all(map(same_bits, inputs, copies))


@pytest.mark.parametrize("place", [0, 1])
def test_out_may_be_one_of_the_points(place: int) -> None:
    points = list(normal(2, 50, seed=0, dtype=torch.float32))
    rest = (0.3, normal(2, 50, seed=1), normal(1, 2, seed=2), [0, 50])
    rest = (rest[0], rest[1].float(), *rest[2:])
    apart = ops.extrapolate_(torch.empty(50), *points, *rest)
    assert same_bits(ops.extrapolate_(points[place], *points, *rest), apart)


def test_full_relaxation_starts_exactly_from_after() -> None:
    before, after = normal(2, 50, seed=0, dtype=torch.float32)
    none = (torch.zeros(0, 50), torch.zeros(1, 0), [0, 50])
    assert same_bits(ops.extrapolate_(torch.empty(50), 1e8 * before, after, 1.0, *none), after)


def test_long_segments_are_extrapolated_to_their_ends() -> None:
    bounds = [0, 3, CHUNK + 3, CHUNK + 3, 3 * CHUNK + 4]
    before, after = normal(2, bounds[-1], seed=0, dtype=torch.float32)
    rows = normal(3, bounds[-1], seed=1, dtype=torch.bfloat16)
    arguments = (before, after, 0.1, rows, normal(4, 3, seed=2), bounds)
    assert_extrapolated(ops.extrapolate_(torch.empty_like(before), *arguments), *arguments)


def test_no_temporary_has_the_size_of_the_history() -> None:
    size = 8 * CHUNK
    point, rows, gamma = torch.ones(size), torch.ones(8, size).bfloat16(), torch.ones(1, 8)
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
    "coefficients": torch.ones(2, 3),
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
        ({"coefficients": torch.ones(2, 2)}, [0, 2, 5], ["(2, 2)", "(2, 3)"]),
        ({"coefficients": torch.ones(3)}, [0, 2, 5], ["(3,)", "(2, 3)"]),
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
