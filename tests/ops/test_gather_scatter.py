from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import (
    LAYOUTS,
    STORAGE_DTYPES,
    edges,
    flags,
    in_logical_order,
    mentions,
    normal,
    parameter,
    parameters,
    same_bits,
)
from torch import Tensor

from aadl_ext import ops

parameter_lists = st.lists(parameters, max_size=5)


@given(parameter_lists, st.sampled_from(STORAGE_DTYPES), st.integers(0, 3))
@example([], torch.float32, 2)
@example([], torch.float32, 0)
def test_gather_reads_in_logical_order_and_fills_the_tail_with_zeros(
    tensors: list[Tensor], dtype: torch.dtype, tail: int
) -> None:
    entries = torch.from_numpy(in_logical_order(tensors)).to(dtype)
    expected = torch.cat([entries, torch.zeros(tail, dtype=dtype)])
    copies = [tensor.clone() for tensor in tensors]
    room = torch.full((len(expected) + 2,), 7.0, dtype=dtype)
    out = room[1:-1].fill_(torch.nan)

    ops.gather(tensors, out)
    assert same_bits(out, expected)
    assert room[[0, -1]].tolist() == [7, 7]
    assert all(map(same_bits, tensors, copies))


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


@given(parameter_lists, st.sampled_from(STORAGE_DTYPES), st.integers(0, 3))
def test_scatter_rounds_to_the_dtype_of_each_tensor(
    tensors: list[Tensor], dtype: torch.dtype, tail: int
) -> None:
    flat = normal(sum(t.numel() for t in tensors) + tail, seed=0, dtype=dtype)
    ops.scatter_(tensors, flat)
    places = flat[: len(flat) - tail].split([t.numel() for t in tensors])
    for tensor, place in zip(tensors, places, strict=True):
        assert same_bits(tensor, place.reshape(tensor.shape).to(tensor.dtype))


@given(parameter_lists, st.integers(0, 3), st.sampled_from(STORAGE_DTYPES), flags)
@example([], 2, torch.float32, torch.tensor(False))
def test_nothing_is_written_where_the_flag_is_false(
    tensors: list[Tensor], tail: int, dtype: torch.dtype, when: Tensor | None
) -> None:
    size = sum(t.numel() for t in tensors) + tail
    flat, other = normal(size, seed=1, dtype=dtype), normal(size, seed=2, dtype=dtype)
    gathered, targets = flat.clone(), [t.clone() for t in tensors]
    ops.gather(tensors, gathered, when=when)
    ops.scatter_(targets, other, when=when)
    if when is None or when:
        ops.gather(tensors, flat)
        ops.scatter_(tensors, other)
    assert same_bits(gathered, flat)
    assert all(map(same_bits, targets, tensors))


@pytest.mark.parametrize("flat_dtype", STORAGE_DTYPES, ids=str)
@pytest.mark.parametrize("dtype", STORAGE_DTYPES, ids=str)
def test_sizes_around_the_limits_of_kernels(
    dtype: torch.dtype, flat_dtype: torch.dtype, backend: str
) -> None:
    sizes = edges(backend)
    tensors = [normal(size, seed=size, dtype=dtype) for size in sizes]
    flat = torch.full((sum(sizes),), torch.nan, dtype=flat_dtype)
    ops.gather(tensors, flat)
    assert same_bits(flat, torch.cat(tensors).to(flat_dtype))
    back = [torch.full_like(tensor, torch.nan) for tensor in tensors]
    ops.scatter_(back, flat)
    assert same_bits(torch.cat(back), flat.to(dtype))


@pytest.mark.parametrize("count", [72, 73, 601])  # 72 or 600 fit (cuda/pieces.h)
@pytest.mark.parametrize("op", [ops.gather, ops.scatter_])
def test_more_tensors_than_a_launch_holds(
    op: Callable[[list[Tensor], Tensor], object], count: int
) -> None:
    tensors = [normal(size % 5, seed=size, dtype=torch.float32) for size in range(count)]
    flat = normal(sum(map(len, tensors)), seed=1, dtype=torch.float32)
    op(tensors, flat)
    assert same_bits(torch.cat(tensors), flat)


@pytest.mark.parametrize("when", [False, True])
def test_long_vectors_are_copied_or_left_whole(when: bool) -> None:
    source, target = normal(2, 100_000, seed=0, dtype=torch.float32)
    before = target.clone()
    ops.gather((source,), target, when=torch.tensor(when))
    assert same_bits(target, source if when else before)


# Cut into blocks, shared among threads, and in some dtypes written past the caches.
LONG = [(3,), (2500, 2500), (), (70_000, 2), (0, 4), (4, 9, 1000)]


def counted(shape: Sequence[int], layout: str, dtype: torch.dtype) -> Tensor:
    """Entries that differ from their neighbours, and that any dtype can hold."""
    values = torch.arange(math.prod(shape)).remainder(251).to(dtype).reshape(shape)
    return values.T.contiguous().T if layout == "transposed" and len(shape) == 2 else values


@pytest.mark.parametrize("dtype", STORAGE_DTYPES, ids=str)
@pytest.mark.parametrize("flat_dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_long_tensors_go_both_ways_whole(
    layout: str, flat_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    tensors = [counted(shape, layout, dtype) for shape in LONG]
    expected = torch.cat([t.reshape(-1) for t in tensors])
    flat = torch.full((len(expected) + 5,), torch.nan, dtype=flat_dtype)
    ops.gather(tensors, flat)
    assert torch.equal(flat[:-5], expected.to(flat_dtype))
    assert torch.equal(flat[-5:], torch.zeros(5, dtype=flat_dtype))
    back = [torch.full_like(tensor, -1) for tensor in tensors]
    ops.scatter_(back, flat)
    assert all(map(torch.equal, back, tensors))


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


NARROW = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def all_of(dtype: torch.dtype) -> Tensor:
    """Every number of two bytes, NaN among them."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)


@NARROW
@pytest.mark.parametrize("flushed", [False, True], ids=["", "subnormals flushed"])
def test_every_narrow_number_is_widened_and_back(flushed: bool, dtype: torch.dtype) -> None:
    narrow, back = all_of(dtype), torch.zeros(2**16, dtype=dtype)
    flat, expected = torch.full((2**16,), 7.0), narrow.float()
    torch.set_flush_denormal(flushed)
    try:
        ops.gather([narrow], flat)
        ops.scatter_([back], flat)
    finally:
        torch.set_flush_denormal(False)
    number = ~narrow.isnan()
    assert torch.equal(flat.isnan(), ~number)
    if dtype == torch.float16 or not flushed:  # float32 subnormals are those of bfloat16
        assert same_bits(flat[number], expected[number])
        assert same_bits(back[number], narrow[number])


@NARROW
def test_numbers_between_narrow_ones_are_rounded_to_nearest_even(dtype: torch.dtype) -> None:
    values = all_of(dtype).float()
    values = values[values.isfinite()].unique()
    ties = (values[1:].double() + values[:-1]).div(2).float()
    centres = torch.cat([values, ties])
    infinity = torch.tensor(math.inf)
    flat = torch.cat([centres, *(centres.nextafter(x) for x in (infinity, -infinity))])
    rounded = torch.zeros(len(flat), dtype=dtype)
    ops.scatter_([rounded], flat)
    assert same_bits(rounded, flat.to(dtype))


@NARROW
def test_nan_of_any_bits_stays_nan(dtype: torch.dtype) -> None:
    # Also those whose bits are all below what is cut off, or would carry into the sign.
    bits = [0x7F800001, 0xFF800001 - 2**32, 0x7FFFFFFF, -1, 0x7FC00000]
    flat, rounded = torch.tensor(bits, dtype=torch.int32).view(torch.float32), torch.zeros(5)
    narrow = rounded.to(dtype)
    ops.scatter_([narrow], flat)
    ops.gather([narrow], rounded)
    assert narrow.isnan().all()
    assert rounded.isnan().all()


def test_mixed_dtypes_are_each_rounded_on_their_own() -> None:
    flat = torch.full((3,), 1 + 2.0**-9)  # representable from float16 on
    tensors = [torch.zeros((), dtype=d) for d in (torch.bfloat16, torch.float16, torch.float64)]
    ops.scatter_(tensors, flat)
    assert [float(t) for t in tensors] == [1, 1 + 2.0**-9, 1 + 2.0**-9]


@pytest.mark.parametrize("dtype", STORAGE_DTYPES, ids=str)
def test_values_that_are_not_finite_go_both_ways(dtype: torch.dtype) -> None:
    values = [math.nan, math.inf, -math.inf, -0.0]
    tensor = torch.tensor(values, dtype=dtype)
    flat = torch.zeros(4)
    ops.gather([tensor], flat)
    assert same_bits(flat[1:], torch.tensor(values[1:]))
    assert flat[0].isnan()
    back = torch.zeros(4, dtype=dtype)
    ops.scatter_([back], flat)
    assert same_bits(back[1:], tensor[1:])
    assert back[0].isnan()


def test_trained_parameters_go_both_ways_and_nothing_is_differentiable() -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    flat = torch.zeros(2)
    ops.gather([parameter], flat)
    assert not flat.requires_grad
    ops.scatter_([parameter], flat + 1)
    assert parameter.tolist() == [2, 3]
    assert parameter.is_leaf


@pytest.mark.parametrize("dtype", STORAGE_DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_scatter_counts_as_a_change_of_every_tensor(layout: str, dtype: torch.dtype) -> None:
    tensors = [parameter(shape, layout, dtype, 0) for shape in [(2, 3), (4,), (2, 3, 4, 5), ()]]
    versions = [tensor._version for tensor in tensors]
    ops.scatter_(tensors, torch.zeros(sum(t.numel() for t in tensors)))
    assert all(t._version > v for t, v in zip(tensors, versions, strict=True))


@pytest.mark.parametrize("sequence", [list, tuple])
def test_autograd_notices_that_scatter_has_changed_what_it_needs(
    sequence: Callable[[list[Tensor]], Sequence[Tensor]],
) -> None:
    weight = torch.ones(3, requires_grad=True)
    loss = weight.square().sum()
    ops.scatter_(sequence([weight]), torch.zeros(3))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("op", [ops.gather, ops.scatter_])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_other_numbers_than_real_floating_ones_are_refused(
    dtype: torch.dtype, op: Callable[[list[Tensor], Tensor], object]
) -> None:
    with pytest.raises(ValueError, match=mentions(str(dtype), "real floating")):
        op([torch.ones(3), torch.ones(3, dtype=dtype)], torch.zeros(6))


def test_parts_of_conjugated_numbers_are_copied_with_their_sign() -> None:
    numbers = torch.tensor([1 + 2j, 3 - 4j])
    part, flat = numbers.conj().imag, torch.zeros(2)
    ops.gather([part], flat)
    assert flat.tolist() == [-2, 4]
    try:
        ops.scatter_([part], torch.tensor([7.0, -8.0]))
    except RuntimeError:  # of torch, which does not write to such lists
        return
    assert numbers.tolist() == [1 - 7j, 3 + 8j]


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
