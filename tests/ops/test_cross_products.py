from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    STORAGE_DTYPES,
    assert_within,
    edges,
    largest_temporary,
    mentions,
    normal,
    offsets,
    same_bits,
    seeds,
    spaced,
    storage_dtypes,
)
from torch import Tensor

from aadl_ext import ops
from aadl_ext.ops.chunks import CHUNK


def random_rows(count: int, size: int, dtype: torch.dtype, layout: str, seed: int = 0) -> Tensor:
    values = normal(count, size, seed=seed, dtype=dtype)
    if layout == "transposed":
        return values.T.contiguous().T
    return spaced(values, {"contiguous": 0, "spaced": 5}[layout])


def random_vectors(dtypes: Sequence[torch.dtype], size: int, seed: int = 1) -> list[Tensor]:
    return [normal(size, seed=seed + k, dtype=dtype) for k, dtype in enumerate(dtypes)]


def check(rows: Tensor, vectors: Sequence[Tensor], bounds: list[int]) -> Tensor:
    """Products of the entries as stored; float32 sums are off by 1e-8 and more."""
    given_, copies = (rows, *vectors), [tensor.clone() for tensor in (rows, *vectors)]
    found = ops.cross_products(rows, vectors, bounds)
    assert all(map(same_bits, given_, copies))
    assert found.dtype == torch.float64
    assert found.shape == (len(bounds) - 1, len(rows), len(vectors))
    right = torch.stack([vector.double() for vector in vectors])
    for products, (start, stop) in zip(found, pairwise(bounds), strict=True):
        x, y = rows[:, start:stop].double(), right[:, start:stop]
        assert_within(products, x @ y.T, 2e-13 * (x.abs() @ y.abs().T))
    return found


layouts = st.sampled_from(["contiguous", "spaced", "transposed"])
dtype_lists = st.lists(storage_dtypes, min_size=1, max_size=6)


@given(st.integers(0, 6), dtype_lists, offsets(), storage_dtypes, layouts, seeds)
def test_products_in_each_segment_are_those_of_float64(
    count: int, dtypes: list[torch.dtype], bounds: list[int], dtype: torch.dtype, layout: str,
    seed: int,
) -> None:  # fmt: skip
    rows = random_rows(count, bounds[-1], dtype, layout, seed)
    check(rows, random_vectors(dtypes, bounds[-1], seed + 1), bounds)


@given(st.data(), st.integers(1, 6), offsets(), storage_dtypes, layouts, seeds)
def test_vectors_may_be_rows(
    data: st.DataObject, count: int, bounds: list[int], dtype: torch.dtype, layout: str, seed: int
) -> None:
    rows = random_rows(count, bounds[-1], dtype, layout, seed)
    picked = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=count + 1))
    if layout == "transposed":  # a vector has to be contiguous
        rows = rows.contiguous()
    check(rows, [rows[index] for index in picked], bounds)


@pytest.mark.parametrize("dtype", STORAGE_DTYPES, ids=str)
@pytest.mark.parametrize("count", range(1, 10))
def test_products_of_rows_with_themselves_are_symmetric_and_those_with_copies(
    count: int, dtype: torch.dtype
) -> None:
    bounds = [0, 300, 300, 1001]
    rows = random_rows(count, 1001, dtype, "spaced")
    gram = check(rows, list(rows), bounds)
    torch.testing.assert_close(gram, gram.mT, rtol=1e-13, atol=1e-13)
    twins = ops.cross_products(rows, list(rows.clone()), bounds)
    torch.testing.assert_close(gram, twins, rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize("dtype", STORAGE_DTYPES, ids=str)
def test_sizes_around_the_limits_of_kernels(dtype: torch.dtype, backend: str) -> None:
    for size in edges(backend):
        rows = random_rows(5, size, dtype, "spaced")
        vectors = random_vectors([dtype, torch.float32, torch.float64], size)
        check(rows, vectors, [0, size // 3, size // 3, size])


@pytest.mark.parametrize("dtype", STORAGE_DTYPES, ids=str)
def test_aligned_rows_go_with_vectors_of_their_dtype_and_of_the_next_wider(
    dtype: torch.dtype,
) -> None:
    """As at the end of a block. Kernels take them in packs, but for the ends of segments."""
    size, wider = 5120, torch.float32 if dtype.itemsize == 2 else torch.float64
    rows = random_rows(9, size, dtype, "contiguous")
    vectors = [rows[2], *random_vectors([wider, dtype, wider], size), rows[5]]
    check(rows, vectors, [0, 700, 713, 713, 3001, size])


@pytest.mark.parametrize("rows", [0, 1, 4, 9, 65])
def test_any_numbers_of_rows_and_vectors(rows: int) -> None:
    for vectors in (1, 2, 10) if rows > 4 else (1, 2, 10, 65):
        matrix = random_rows(rows, 300, torch.float32, "contiguous")
        check(matrix, random_vectors([torch.float64] * vectors, 300), [0, 100, 300])


@pytest.mark.parametrize("dtype", STORAGE_DTYPES, ids=str)
def test_long_rows_are_multiplied_in_float64(dtype: torch.dtype) -> None:
    bounds = [0, 7, CHUNK + 1, CHUNK + 1, 5 * CHUNK + 3, 200_001]
    rows = random_rows(5, bounds[-1], dtype, "spaced")
    check(rows, random_vectors(STORAGE_DTYPES, bounds[-1]), bounds)
    check(rows, list(rows), bounds)


def test_many_segments_add_up_to_the_whole() -> None:
    bounds = [*range(0, 70_001, 350), 70_001, 70_001]
    rows, vectors = random_rows(3, 70_001, torch.float32, "contiguous"), [normal(70_001, seed=9)]
    parts = check(rows, vectors, bounds)
    whole = ops.cross_products(rows, vectors, [0, 70_001])
    torch.testing.assert_close(parts.sum(dim=0, keepdim=True), whole, rtol=0, atol=1e-9)


@pytest.mark.beyond_float32
@pytest.mark.parametrize("value", [1e-30, 1e30])
def test_products_that_float32_cannot_hold_are_summed(value: float) -> None:
    rows = torch.full((2, 1000), value)
    check(rows, list(rows), [0, 1000])
    check(rows, [torch.full((1000,), -value)], [0, 1000])


@pytest.mark.parametrize("dtype", STORAGE_DTYPES, ids=str)
@pytest.mark.parametrize("place", [0, 299, 300, 1000])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_spoils_the_products_of_its_row_and_segment_only(
    bad: float, place: int, dtype: torch.dtype
) -> None:
    rows = random_rows(5, 1001, dtype, "contiguous")
    rows[3, place] = bad
    vectors = random_vectors([torch.float32] * 3, 1001)
    spoilt = torch.zeros(2, 5, 3, dtype=torch.bool)
    spoilt[int(place >= 300), 3] = True
    found = ops.cross_products(rows, vectors, [0, 300, 1001])
    assert torch.equal(found.isfinite(), ~spoilt)
    spoilt = torch.zeros(2, 5, 5, dtype=torch.bool)
    spoilt[int(place >= 300), 3] = spoilt[int(place >= 300), :, 3] = True
    gram = ops.cross_products(rows, list(rows), [0, 300, 1001])
    assert torch.equal(gram.isfinite(), ~spoilt)


@pytest.mark.long
def test_no_entry_is_lost_or_counted_twice_where_blocks_grow_longer() -> None:
    """Beyond 512 blocks of the CPU, to bound the memory of their sums. Integers add up exactly."""
    size = 512 * 32768 + 12_345
    ones, digits = torch.ones(size).half(), torch.arange(size).remainder(7)
    found = ops.cross_products(ones[None], [digits.half(), ones], [0, 1000, size])
    expected = [[int(digits[:1000].sum()), 1000], [int(digits[1000:].sum()), size - 1000]]
    assert found[:, 0].tolist() == expected


def test_empty_rows_have_zero_products() -> None:
    found = ops.cross_products(torch.zeros(3, 0), [torch.zeros(0), torch.zeros(0).half()], [0, 0])
    assert torch.equal(found, torch.zeros(1, 3, 2, dtype=torch.float64))


def test_products_of_trained_parameters_have_no_graph() -> None:
    vector = torch.ones(5, requires_grad=True)
    found = ops.cross_products(torch.ones(2, 5), [vector.detach()], [0, 5])
    assert found.tolist() == [[[5], [5]]]
    assert not found.requires_grad


@pytest.mark.not_on_cuda("allocates for itself")
def test_no_temporary_has_the_size_of_the_rows() -> None:
    rows = random_rows(8, 16 * CHUNK, torch.bfloat16, "contiguous")
    vectors = random_vectors([torch.float32] * 2, 16 * CHUNK)
    largest = largest_temporary(lambda: ops.cross_products(rows, vectors, [0, 16 * CHUNK]))
    assert largest <= len(rows) * CHUNK


def test_the_same_bits_read_as_another_dtype_are_other_vectors() -> None:
    rows = torch.randn(2, 300, generator=torch.Generator().manual_seed(0)).half()
    other = list(rows.view(torch.bfloat16))
    expected = rows.double() @ torch.stack(other).double().T
    torch.testing.assert_close(ops.cross_products(rows, other, [0, 300])[0], expected)


def test_a_vector_may_be_strided() -> None:
    rows, vector = torch.ones(2, 5), torch.arange(10.0).reshape(5, 2)[:, 1]
    assert ops.cross_products(rows, [vector], [0, 5]).tolist() == [[[25.0], [25.0]]]


MISFITS: list[tuple[dict[str, Any], list[str]]] = [
    ({"rows": torch.zeros(5)}, ["rows", "(5,)"]),
    ({"rows": torch.zeros(1, 3, 5)}, ["rows", "(1, 3, 5)"]),
    ({"rows": torch.zeros(3, 5, dtype=torch.int32)}, ["rows", "int32"]),
    ({"rows": torch.zeros(3, 4)}, ["[0, 2, 5]", "4"]),
    ({"vectors": [torch.zeros(4)]}, ["vector", "(4,)", "(5,)"]),
    ({"vectors": [torch.zeros(5), torch.zeros(5, 1)]}, ["vector", "(5, 1)", "(5,)"]),
    ({"vectors": [torch.zeros(5, dtype=torch.int64)]}, ["vector", "int64", "float32, float64"]),
    ({"vectors": []}, ["no vectors"]),
    ({"rows": torch.tensor(1.0), "vectors": [torch.tensor(1.0)]}, ["rows", "()", "[m, "]),
    ({"offsets": [0, 4]}, ["[0, 4]", "5"]),
    ({"offsets": [1, 5]}, ["[1, 5]", "5"]),
    ({"offsets": [0, 6, 5]}, ["[0, 6, 5]"]),
    ({"offsets": [0]}, ["[0]"]),
    ({"offsets": []}, ["[]"]),
]


@pytest.mark.parametrize(("wrong", "fragments"), MISFITS)
def test_misfit_is_refused_and_named(wrong: dict[str, Any], fragments: list[str]) -> None:
    fitting = {"rows": torch.zeros(3, 5), "vectors": [torch.zeros(5)], "offsets": [0, 2, 5]}
    with pytest.raises(ValueError, match=mentions(*fragments)):
        ops.cross_products(**{**fitting, **wrong})
