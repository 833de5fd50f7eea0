from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import (
    LAYOUTS,
    STORAGE_DTYPES,
    edges,
    in_logical_order,
    largest_temporary,
    mentions,
    normal,
    parameter,
    parameters,
    same_bits,
)
from torch import Tensor

from aadl_ext import ops
from aadl_ext.ops.chunks import CHUNK


def assert_sum_of_squares(found: Tensor, tensors: list[Tensor]) -> None:
    """Float64 accumulation: float32 sums are off by 1e-8 and more."""
    assert found.dtype == torch.float64
    assert found.shape == ()
    exact = math.fsum(x * x for x in in_logical_order(tensors))
    assert float(found) == pytest.approx(exact, rel=1e-12, abs=0)


@given(st.lists(parameters, min_size=1, max_size=5))
@example([torch.zeros(0)])
@example([torch.zeros(0, 3), torch.zeros(0).half()])
def test_squares_of_all_entries_are_summed(tensors: list[Tensor]) -> None:
    copies = [tensor.clone() for tensor in tensors]
    assert_sum_of_squares(ops.squared_norm(tensors), tensors)
    assert all(map(same_bits, tensors, copies))


@pytest.mark.parametrize("dtype", STORAGE_DTYPES, ids=str)
def test_sizes_around_the_limits_of_kernels(dtype: torch.dtype, backend: str) -> None:
    tensors = [normal(size, seed=size, dtype=dtype) for size in edges(backend)]
    for tensor in tensors:
        assert_sum_of_squares(ops.squared_norm([tensor]), [tensor])
    assert_sum_of_squares(ops.squared_norm(tensors), tensors)


@pytest.mark.parametrize("count", [72, 73, 601])  # 72 or 600 fit (cuda/pieces.h)
def test_more_tensors_than_a_launch_holds(count: int) -> None:
    tensors = [normal(size % 5, seed=size, dtype=torch.float32) for size in range(count)]
    assert_sum_of_squares(ops.squared_norm(tensors), tensors)


@pytest.mark.parametrize("dtype", STORAGE_DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_long_tensors_are_summed_in_float64(layout: str, dtype: torch.dtype) -> None:
    shapes = [(3,), (257, 1031), (0, 5), (), (3, 2, 41, 43), (CHUNK + 1,)]
    tensors = [parameter(shape, layout, dtype, 0) for shape in shapes]
    assert_sum_of_squares(ops.squared_norm(tensors), tensors)


@pytest.mark.beyond_float32
@pytest.mark.parametrize(
    ("dtype", "value"),
    [(torch.float32, 1e-30), (torch.float32, 3e38), (torch.float16, 6e4), (torch.bfloat16, 3e38)],
    ids=str,
)
def test_squares_that_the_dtype_cannot_hold_are_summed(dtype: torch.dtype, value: float) -> None:
    tensor = torch.full((1000,), value, dtype=dtype)
    assert_sum_of_squares(ops.squared_norm([tensor]), [tensor])


@pytest.mark.parametrize("dtype", STORAGE_DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("place", [0, CHUNK, -1])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_seen(
    bad: float, place: int, layout: str, dtype: torch.dtype
) -> None:
    tensor = parameter((5, 3, 79, 97), layout, dtype, 0)
    tensor[torch.unravel_index(torch.tensor(place % tensor.numel()), tensor.shape)] = bad
    found = ops.squared_norm([torch.ones(3), tensor, torch.ones(2, 2)])
    assert found.isnan() if math.isnan(bad) else found == math.inf


def test_squares_beyond_float64_are_infinite() -> None:
    assert ops.squared_norm([torch.tensor([1e200], dtype=torch.float64)]) == math.inf


def test_gradients_of_trained_parameters_are_measured_without_a_graph() -> None:
    weight = torch.ones(3, requires_grad=True)
    found = ops.squared_norm((weight, 2 * weight))
    assert found == 15
    assert not found.requires_grad


@pytest.mark.not_on_cuda("allocates for itself")
def test_no_temporary_has_the_size_of_the_tensors() -> None:
    tensors = [normal(8 * CHUNK, seed=0, dtype=dtype) for dtype in STORAGE_DTYPES]
    assert largest_temporary(lambda: ops.squared_norm(tensors)) <= 2 * CHUNK


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_other_numbers_than_real_floating_ones_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=mentions(str(dtype), "real floating")):
        ops.squared_norm([torch.ones(3), torch.ones(3, dtype=dtype)])


def test_parts_of_conjugated_numbers_are_read_with_their_sign() -> None:
    one, two = (torch.tensor(z).conj().imag for z in ([1 + 2j], [1 + 2j, 3 - 4j]))
    assert ops.squared_norm([one, two]) == 24


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(ValueError, match="list of tensors is empty"):
        ops.squared_norm([])
