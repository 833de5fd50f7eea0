from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    edges,
    largest_temporary,
    mentions,
    normal,
    offsets,
    same_bits,
    seeds,
    storage_dtypes,
)
from torch import Tensor

from aadl_ext import ops
from aadl_ext.ops.chunks import CHUNK
from aadl_ext.ops.tsqr import TILE

HEIGHTS = [4, TILE - 1, TILE, TILE + 1, 3 * TILE, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + TILE + 5]


def assert_factor(factor: Tensor, matrix: Tensor) -> None:
    """Triangular with diagonal >= 0 and R^T R = A^T A, relative to the lengths of the columns."""
    columns = matrix.shape[-1]
    assert factor.shape == (*matrix.shape[:-2], columns, columns)
    assert factor.dtype == (torch.float64 if matrix.dtype == torch.float64 else torch.float32)
    assert factor.isfinite().all()
    assert torch.equal(factor, factor.triu())
    assert (factor.diagonal(dim1=-2, dim2=-1) >= 0).all()
    tall, small = matrix.double(), factor.double()
    lengths = torch.linalg.vector_norm(tall, dim=-2)
    error = (small.mT @ small - tall.mT @ tall).abs()
    # Householder QR is backward stable column by column; errors grow with the columns.
    bound = 10 * (columns + 2) * torch.finfo(factor.dtype).eps
    assert (error <= bound * lengths[..., :, None] * lengths[..., None, :]).all()


def numpy_factor(matrix: Tensor) -> Tensor:
    """R with diagonal >= 0, by one QR of the whole matrix in float64."""
    factor = np.linalg.qr(matrix.double().numpy(), mode="r")
    return torch.from_numpy(factor * np.where(np.diagonal(factor) < 0, -1.0, 1.0)[:, None])


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    """Any batch, dtype and strides; n from 0, k above n too, zero and repeated columns."""
    batch = draw(st.lists(st.integers(0, 3), max_size=2))
    rows = draw(st.one_of(st.integers(0, 12), st.integers(2 * TILE - 3, 2 * TILE + 3)))
    columns = draw(st.integers(1, 8))
    seed, dtype = draw(seeds), draw(storage_dtypes)
    if draw(st.booleans()):
        matrix = normal(*batch, columns, rows, seed=seed, dtype=dtype).mT
    else:
        matrix = normal(*batch, rows, 2 * columns, seed=seed, dtype=dtype)[..., ::2]
    for column in range(columns):
        kind = draw(st.sampled_from(["keep", "keep", "zero", "repeat", "shrink"]))
        if kind == "zero":
            matrix[..., column] = 0
        elif kind == "repeat":
            matrix[..., column] = matrix[..., column - 1]
        elif kind == "shrink":
            matrix[..., column] *= 2.0**-7
    return matrix


@given(matrices(), st.booleans())
def test_factor_has_the_products_of_the_columns(matrix: Tensor, append: bool) -> None:
    old = matrix.clone()
    if append and matrix.shape[-1] > 1:
        factor = ops.tsqr(matrix[..., :-1], append=matrix[..., -1])
    else:
        factor = ops.tsqr(matrix)
    assert_factor(factor, matrix)
    assert same_bits(matrix, old)


@pytest.mark.parametrize("rows", HEIGHTS)
@pytest.mark.parametrize("columns", [1, 4])
def test_factor_agrees_with_one_large_qr(rows: int, columns: int) -> None:
    matrix = normal(rows, columns, seed=rows)
    expected = numpy_factor(matrix)
    with_gaps = torch.cat([matrix, matrix], dim=1).repeat_interleave(2, dim=0)[::2, :columns]
    for strided in (matrix, matrix.T.contiguous().T, with_gaps):
        factor = ops.tsqr(strided)
        torch.testing.assert_close(factor, expected, rtol=0, atol=1e-13 * rows**0.5)
        appended = ops.tsqr(strided, append=strided.sum(dim=1))
        torch.testing.assert_close(appended[:columns, :columns], factor, rtol=0, atol=1e-12)
        torch.testing.assert_close(appended[:, columns], appended[:, :columns].sum(dim=1))


@pytest.mark.parametrize("columns", [1, 2, 3, 5, 6, 7, 8, 9, 11, 12, 16, 17, 20, 25, 32, 33, 40])
def test_any_number_of_columns(columns: int) -> None:
    for dtype in (torch.float32, torch.float64):
        matrix = normal(columns, 300, seed=columns, dtype=dtype).T
        factors = ops.tsqr(matrix, offsets=[0, 0, 30, 300])
        for factor, part in zip(factors, [slice(0), slice(30), slice(30, 300)], strict=True):
            assert_factor(factor, matrix[part])


@pytest.mark.parametrize("columns", [5, 13])
def test_sizes_around_the_limits_of_kernels(columns: int, backend: str) -> None:
    for size in edges(backend):
        matrix = normal(columns, size, seed=size, dtype=torch.float32).T
        assert_factor(ops.tsqr(matrix[:, :-1], append=matrix[:, -1]), matrix)


@pytest.mark.parametrize(("columns", "rows"), [(33, 4200), (21, 9000), (6, 40_000)])
def test_triangles_of_triangles_and_long_tiles(columns: int, rows: int) -> None:
    matrix = normal(columns, rows, seed=0, dtype=torch.float32).T
    assert_factor(ops.tsqr(matrix), matrix)


@pytest.mark.parametrize("columns", [2, 12])
def test_more_segments_than_a_launch_takes(columns: int) -> None:
    bounds = [*range(0, 128 * 3 + 1, 3), 2900, 2901]
    matrix = normal(columns, bounds[-1], seed=0, dtype=torch.float32).T
    factors = ops.tsqr(matrix, offsets=bounds)
    for factor, (start, stop) in zip(factors, pairwise(bounds), strict=True):
        assert_factor(factor, matrix[start:stop])


@pytest.mark.parametrize("columns", [4, 12])
@pytest.mark.parametrize("large_first", [False, True])
def test_entries_that_grow_or_shrink_beyond_the_range_of_squares(
    large_first: bool, columns: int
) -> None:
    sizes = torch.logspace(-30, 30, 2100, dtype=torch.float64)
    sizes = sizes.flip(0) if large_first else sizes
    matrix = (normal(2100, columns, seed=0) * sizes[:, None]).float()
    exact = numpy_factor(matrix)
    largest = float(exact.abs().max())
    torch.testing.assert_close(
        ops.tsqr(matrix).double() / largest, exact / largest, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("columns", [4, 12])
@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
def test_float64_entries_whose_squares_leave_the_range(scale: float, columns: int) -> None:
    matrix = normal(700, columns, seed=0)
    plain = ops.tsqr(matrix)
    torch.testing.assert_close(ops.tsqr(matrix * scale) / scale, plain, rtol=0, atol=1e-10)


@pytest.mark.parametrize("columns", [4, 12])
def test_kernels_see_subnormal_columns(columns: int, backend: str) -> None:
    if backend == "definition":
        return
    scales = torch.tensor([1.0, 1e-41], dtype=torch.float64).repeat(columns // 2)
    matrix = (normal(600, columns, seed=0) * scales).float()
    exact = numpy_factor(matrix).abs()
    spacing = (1e-5 * exact.norm(dim=0)).clamp(min=2e-45)
    assert ((ops.tsqr(matrix).double().abs() - exact).abs() <= spacing).all()


@pytest.mark.parametrize("columns", [3, 12])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 1100, 2999])
def test_what_is_not_finite_is_seen_in_its_segment_only(
    bad: float, place: int, columns: int
) -> None:
    matrix = normal(columns, 4000, seed=0, dtype=torch.float32).clone().T
    matrix[place, 1] = bad
    factors = ops.tsqr(matrix, offsets=[0, 3000, 4000])
    assert not factors[0, :, 1].isfinite().all()
    assert factors[1].isfinite().all()


@pytest.mark.not_on_cuda("at most 40 columns")
def test_more_columns_than_a_tile_is_high() -> None:
    matrix = normal(CHUNK // 16, TILE + 3, seed=1)
    assert_factor(ops.tsqr(matrix), matrix)


def test_nearly_dependent_columns_keep_digits_that_a_gram_matrix_loses() -> None:
    matrix = normal(5 * TILE, 3, seed=2)
    matrix[:, 2] = matrix[:, 0] - matrix[:, 1] + 1e-10 * matrix[:, 2]
    factor = ops.tsqr(matrix)
    # Condition 1e10: QR loses 10 of 16 digits of the last entry, a Gram matrix all of them.
    torch.testing.assert_close(factor[2, 2], numpy_factor(matrix)[2, 2], rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_columns_of_wildly_different_scale_stay_accurate(dtype: torch.dtype) -> None:
    # Squares of the extremes are not representable.
    exponents = [-30, 0, 30] if dtype == torch.float32 else [-200, 0, 200]
    scales = torch.tensor([10.0**e for e in exponents], dtype=torch.float64)
    matrix = (normal(3 * TILE + 1, 3, seed=3) * scales).to(dtype)
    factor = ops.tsqr(matrix).double() / scales
    assert_factor(factor.to(dtype), (matrix.double() / scales).to(dtype))


@given(offsets(longest=TILE + 9), seeds, st.booleans())
@settings(max_examples=30)
def test_blocks_of_rows_are_factored_on_their_own(
    bounds: list[int], seed: int, append: bool
) -> None:
    matrix = normal(bounds[-1], 3, seed=seed, dtype=torch.float32)
    column = normal(bounds[-1], seed=seed + 1, dtype=torch.float32) if append else None
    factors = ops.tsqr(matrix, append=column, offsets=bounds)
    whole = matrix if column is None else torch.cat([matrix, column[:, None]], dim=1)
    assert len(factors) == len(bounds) - 1
    for index, factor in enumerate(factors):
        assert_factor(factor, whole[bounds[index] : bounds[index + 1]])


@pytest.mark.not_on_cuda("tiles begin at multiples of their size in the whole batch")
@pytest.mark.parametrize("rows", [0, 3, 5 * TILE + 7, CHUNK + 7])
def test_bits_repeat_and_do_not_depend_on_the_rest_of_the_batch(rows: int) -> None:
    batch = normal(3, rows, 6, seed=4, dtype=torch.float32)
    column = normal(3, rows, seed=5, dtype=torch.float32)
    factors = ops.tsqr(batch, append=column)
    assert same_bits(ops.tsqr(batch.clone(), append=column.clone()), factors)
    for alone, rest, factor in zip(batch, column, factors, strict=True):
        assert same_bits(ops.tsqr(alone.clone(), append=rest), factor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_float64_column_makes_the_factor_float64(dtype: torch.dtype) -> None:
    matrix, column = normal(600, 3, seed=0, dtype=dtype), normal(600, seed=1)
    whole = torch.cat([matrix.double(), column[:, None]], dim=1)
    torch.testing.assert_close(ops.tsqr(matrix, append=column), numpy_factor(whole))


def test_low_precision_is_factored_in_float32() -> None:
    matrix = normal(2 * TILE + 1, 4, seed=6, dtype=torch.bfloat16)
    torch.testing.assert_close(ops.tsqr(matrix), ops.tsqr(matrix.float()))


@pytest.mark.not_on_cuda("allocates for itself")
def test_no_qr_and_no_temporary_has_the_full_number_of_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heights: list[int] = []
    plain_qr = torch.linalg.qr

    def spy(tall: Tensor, *args: Any, **kwargs: Any) -> Any:
        heights.append(tall.shape[-2])
        return plain_qr(tall, *args, **kwargs)

    monkeypatch.setattr(torch.linalg, "qr", spy)
    rows = torch.ones(5, 6 * CHUNK + 1)
    for matrix in (rows.T, rows.T.contiguous(), rows.T.contiguous().unsqueeze(0)):
        append = torch.ones(matrix.shape[:-1])
        largest = largest_temporary(functools.partial(ops.tsqr, matrix, append=append))
        assert max(heights, default=0) <= TILE
        assert largest <= rows.numel() / 4


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (0, 3)])
def test_factors_of_nothing_are_zero(shape: tuple[int, ...]) -> None:
    expected = torch.zeros(*shape[:-2], 3, 3)
    assert same_bits(ops.tsqr(torch.ones(shape)), expected)


MISFITS: list[tuple[tuple[int, ...], torch.dtype, tuple[int, ...] | None, Any, list[str]]] = [
    ((5,), torch.float32, None, None, ["(5,)", "[..., n, k >= 1]"]),
    ((5, 0), torch.float32, None, None, ["(5, 0)"]),
    ((5, 2), torch.int64, None, None, ["int64", "float32, float64, bfloat16, float16"]),
    ((5, 2), torch.float32, (4,), None, ["(4,)", "(5,)"]),
    ((3, 5, 2), torch.float32, (5,), None, ["(5,)", "(3, 5)"]),
    ((3, 5, 2), torch.float32, None, [0, 5], ["(3, 5, 2)"]),
    ((5, 2), torch.float32, None, [0, 4], ["[0, 4]", "5"]),
    ((5, 2), torch.float32, None, [0, 3, 2, 5], ["[0, 3, 2, 5]"]),
]


@pytest.mark.parametrize(("shape", "dtype", "append", "bounds", "fragments"), MISFITS)
def test_misfit_is_refused_and_named(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    append: tuple[int, ...] | None,
    bounds: Sequence[int] | None,
    fragments: list[str],
) -> None:
    column = None if append is None else torch.ones(append)
    with pytest.raises(ValueError, match=mentions(*fragments)):
        ops.tsqr(torch.ones(shape, dtype=dtype), append=column, offsets=bounds)


def test_column_of_integers_is_refused() -> None:
    with pytest.raises(ValueError, match="int64"):
        ops.tsqr(torch.ones(5, 2), append=torch.arange(5))
