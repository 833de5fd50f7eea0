from __future__ import annotations

import math
from typing import Any

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

from aadl_ext import ops
from aadl_ext.ops.chunks import CHUNK

PLACES = [0, CHUNK - 1, CHUNK, 2 * CHUNK + 4]  # ends of chunks and of the vector


@given(st.integers(0, 60), working_dtypes, st.booleans(), seeds)
def test_vectors_differ_if_an_entry_does(
    size: int, dtype: torch.dtype, alike: bool, seed: int
) -> None:
    one = normal(size, seed=seed, dtype=dtype)
    other = one.clone()
    if size and not alike:
        place = seed % size
        other[place] = torch.nextafter(other[place], other.new_tensor(math.inf))
    copies = one.clone(), other.clone()
    found = ops.differs(one, other)
    assert found.dtype == torch.bool
    assert found.shape == ()
    assert found.item() is (size > 0 and not alike)
    assert same_bits(one, copies[0])
    assert same_bits(other, copies[1])


@pytest.mark.parametrize("dtype", WORKING_DTYPES, ids=str)
@pytest.mark.parametrize("place", PLACES)
def test_difference_is_found_wherever_it_is(place: int, dtype: torch.dtype) -> None:
    one = normal(PLACES[-1] + 1, seed=0, dtype=dtype)
    other = one.clone()
    assert not ops.differs(one, other)
    other[place] += 1
    assert ops.differs(one, other)
    assert ops.differs(other, one)


@pytest.mark.parametrize("dtype", WORKING_DTYPES, ids=str)
def test_sizes_around_the_limits_of_kernels(dtype: torch.dtype, backend: str) -> None:
    for size in edges(backend):
        one = normal(size, seed=0, dtype=dtype)
        assert not ops.differs(one, one.clone())
        for place in {0, size // 2, size - 1} if size else ():
            other = one.clone()
            other[place] += 1
            assert ops.differs(one, other), (size, place)


@pytest.mark.parametrize("place", PLACES)
def test_nan_differs_from_all_and_from_itself(place: int) -> None:
    one = normal(PLACES[-1] + 1, seed=0, dtype=torch.float32)
    one[place] = math.nan
    assert ops.differs(one, one)
    assert ops.differs(one, one.clone())


def test_infinities_and_zeros_are_compared_as_numbers() -> None:
    one = torch.tensor([math.inf, -math.inf, 0.0, -0.0])
    assert not ops.differs(one, one.clone())
    assert not ops.differs(one, one[[0, 1, 3, 2]])
    assert ops.differs(one, one[[1, 0, 2, 3]])


def test_parts_of_one_vector_may_overlap() -> None:
    vector = torch.arange(9.0)
    assert ops.differs(vector[1:], vector[:-1])
    assert not ops.differs(torch.ones(9)[1:], torch.ones(9)[:-1])


@pytest.mark.not_on_cuda("allocates for itself")
def test_no_temporary_has_the_size_of_the_vectors() -> None:
    vector = torch.ones(8 * CHUNK)
    assert largest_temporary(lambda: ops.differs(vector, vector)) <= CHUNK


@pytest.mark.parametrize(
    ("one", "other", "fragments"),
    [
        (torch.zeros(5), torch.zeros(4), ["other", "(4,)", "(5,)"]),
        (torch.zeros(5), torch.zeros(5).double(), ["other", "float64", "float32"]),
        (torch.zeros(5).half(), torch.zeros(5).half(), ["one", "float16", "float32, float64"]),
        (torch.zeros(5, 1), torch.zeros(5, 1), ["one", "(5, 1)", "(5,)"]),
        (torch.zeros(()), torch.zeros(()), ["one", "()"]),
        (torch.zeros(5), torch.zeros(5, device="meta"), ["other", "on meta", "on cpu"]),
    ],
)
def test_misfit_is_refused_and_named(one: Any, other: Any, fragments: list[str]) -> None:
    with pytest.raises(ValueError, match=mentions(*fragments)):
        ops.differs(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_entries_may_differ_by_a_share_of_the_scale(dtype: torch.dtype) -> None:
    one = normal(5003, seed=0, dtype=dtype)
    scale = one.abs().max()
    for place in (0, 1023, 5002):
        near, far = one.clone(), one.clone()
        near[place] += 0.9e-3 * scale
        far[place] -= 1.1e-3 * scale
        assert not ops.differs(near, one, scale, 1e-3)
        assert ops.differs(far, one, scale, 1e-3)
        far[place] = torch.nan
        assert ops.differs(far, one, scale, 1e3)
        far[place] = torch.inf
        assert ops.differs(far, one, scale, 1e3)
        assert not ops.differs(far, far.clone(), scale, 1e-3)


def test_a_scale_of_another_kind_and_a_negative_tolerance_are_refused() -> None:
    one = torch.ones(3)
    with pytest.raises(ValueError, match=r"expected torch.float32 of shape \(\)"):
        ops.differs(one, one, torch.ones(1), 0.1)
    with pytest.raises(ValueError, match="tolerance is -1"):
        ops.differs(one, one, torch.tensor(1.0), -1.0)
