from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import STORAGE_DTYPES, mentions, normal, same_bits, seeds, storage_dtypes
from torch import Tensor

from aadl_ext import ops

LAYOUTS = ("contiguous", "transposed", "strided", "channels_last")


def parameter(shape: tuple[int, ...], layout: str, dtype: torch.dtype, seed: int) -> Tensor:
    """Random entries in a layout; channels_last falls back to contiguous unless 4-d."""
    if layout == "transposed":
        return normal(*shape[::-1], seed=seed, dtype=dtype).permute(tuple(range(len(shape)))[::-1])
    if layout == "strided":
        return normal(*shape, 2, seed=seed, dtype=dtype)[..., 1]
    tensor = normal(*shape, seed=seed, dtype=dtype)
    if layout == "channels_last" and len(shape) == 4:
        return tensor.to(memory_format=torch.channels_last)
    return tensor


sizes = st.integers(0, 4)
shapes = st.one_of(st.lists(sizes, max_size=3).map(tuple), st.tuples(sizes, sizes, sizes, sizes))
parameters = st.builds(parameter, shapes, st.sampled_from(LAYOUTS), storage_dtypes, seeds)
parameter_lists = st.lists(parameters, max_size=5)


def in_logical_order(tensors: list[Tensor]) -> np.ndarray:
    """Float64 entries by NumPy, whose ravel is row-major whatever the strides."""
    return np.concatenate([np.zeros(0), *(t.double().numpy().ravel() for t in tensors)])


@given(parameter_lists, st.sampled_from(STORAGE_DTYPES), st.integers(0, 3))
@example([], torch.float32, 2)
@example([], torch.float32, 0)
def test_gather_reads_in_logical_order_and_leaves_the_tail(
    tensors: list[Tensor], dtype: torch.dtype, tail: int
) -> None:
    expected = torch.from_numpy(in_logical_order(tensors)).to(dtype)
    out = torch.full((len(expected) + tail,), 7.0, dtype=dtype)

    assert ops.gather(tensors, out) is out
    assert same_bits(out[: len(expected)], expected)
    assert (out[len(expected) :] == 7).all()


@given(parameter_lists, st.integers(0, 3))
@example([], 2)
def test_scatter_undoes_gather_in_place_and_in_layout(tensors: list[Tensor], tail: int) -> None:
    flat = torch.full((sum(t.numel() for t in tensors) + tail,), 7.0, dtype=torch.float64)
    ops.gather(tensors, flat)
    given, flat_before = [t.clone() for t in tensors], flat.clone()
    layout = [(t.data_ptr(), t.stride()) for t in tensors]
    for tensor in tensors:
        tensor.fill_(-3)

    ops.scatter_(tensors, flat)
    assert all(map(same_bits, tensors, given))
    assert [(t.data_ptr(), t.stride()) for t in tensors] == layout
    assert same_bits(flat, flat_before)


def test_scatter_writes_only_the_entries_of_the_tensors() -> None:
    base = torch.zeros(3, 4)
    ops.scatter_([base[:, ::2]], torch.arange(1.0, 7.0))
    assert base.tolist() == [[1, 0, 2, 0], [3, 0, 4, 0], [5, 0, 6, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scatter_rounds_to_nearest_even(dtype: torch.dtype) -> None:
    ulp = torch.finfo(dtype).eps  # spacing of the numbers from 1 on
    flat = 1 + ulp * torch.tensor([0.5, 1.5, 0.75, 1.25], dtype=torch.float64)
    tensor = torch.zeros(4, dtype=dtype)
    ops.scatter_([tensor], flat)
    assert tensor.double().tolist() == [1, 1 + 2 * ulp, 1 + ulp, 1 + ulp]


def test_mixed_dtypes_are_each_rounded_on_their_own() -> None:
    flat = torch.full((3,), 1 + 2.0**-9)  # representable from float16 on
    tensors = [torch.zeros((), dtype=d) for d in (torch.bfloat16, torch.float16, torch.float64)]
    ops.scatter_(tensors, flat)
    assert [float(t) for t in tensors] == [1, 1 + 2.0**-9, 1 + 2.0**-9]


def test_trained_parameters_go_both_ways_and_nothing_is_differentiable() -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    flat = ops.gather([parameter], torch.zeros(2))
    assert not flat.requires_grad
    ops.scatter_([parameter], flat + 1)
    assert parameter.tolist() == [2, 3]
    assert parameter.is_leaf


@pytest.mark.parametrize("op", [ops.gather, ops.scatter_])
@pytest.mark.parametrize("shape", [(6,), (7, 1), ()])
def test_unfit_flat_vector_is_refused(
    op: Callable[[list[Tensor], Tensor], object], shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=mentions(str(shape), "7 entries")):
        op([torch.zeros(2, 3), torch.zeros(())], torch.zeros(shape))


@pytest.mark.parametrize("op", [ops.gather, ops.scatter_])
def test_empty_list_still_needs_a_vector(op: Callable[[list[Tensor], Tensor], object]) -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        op([], torch.zeros(2, 2))
