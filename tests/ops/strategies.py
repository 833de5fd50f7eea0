"""Random inputs for the ops, and how to compare and watch what they do."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WORKING_DTYPES = (torch.float32, torch.float64)
STORAGE_DTYPES = (*WORKING_DTYPES, torch.bfloat16, torch.float16)
LAYOUTS = ("contiguous", "transposed", "strided", "channels_last")

# (vectors, rows) for which there are kernels.
PAIRS = [
    (torch.float32, torch.float32),
    (torch.float64, torch.float64),
    (torch.float64, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
]
pairs = pytest.mark.parametrize(("dtype", "storage"), PAIRS, ids=str)


def edges(backend: str) -> list[int]:
    """Sizes around the limits of all kernels: slices, chunks, tiles and blocks of entries."""
    limits = [1, 64, 128, 256, 1024, 2048]
    if not backend.startswith("emulated"):
        limits += [8192, 32_768]
    sizes = {size + more for size in limits for more in (-1, 0, 1)}
    return [*sorted(sizes), 5003, *([65_537] if 32_768 in limits else [])]


working_dtypes = st.sampled_from(WORKING_DTYPES)
storage_dtypes = st.sampled_from(STORAGE_DTYPES)
seeds = st.integers(0, 2**32 - 1)
flags = st.none() | st.booleans().map(torch.tensor)  # None is true


@st.composite
def offsets(draw: st.DrawFn, longest: int = 30) -> list[int]:
    """Bounds of one to four segments, some of them empty."""
    lengths = draw(st.lists(st.integers(0, longest), min_size=1, max_size=4))
    return [0, *accumulate(lengths)]


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal entries, rounded to ``dtype``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


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


def in_logical_order(tensors: Sequence[Tensor]) -> np.ndarray:
    """Float64 entries by NumPy, whose ravel is row-major whatever the strides."""
    return np.concatenate([np.zeros(0), *(t.double().numpy().ravel() for t in tensors)])


def per_entry(values: Sequence[float], bounds: Sequence[int]) -> Tensor:
    """[N] float64: the value of the segment that each entry lies in."""
    lengths = torch.tensor([stop - start for start, stop in pairwise(bounds)])
    return torch.tensor(values, dtype=torch.float64).repeat_interleave(lengths)


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Equality that tells signs of zero apart and lets NaN equal itself."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    plain = [t.clone(memory_format=torch.contiguous_format).flatten() for t in (left, right)]
    return torch.equal(*(t.view(torch.uint8) for t in plain))


def assert_within(actual: Tensor, expected: Tensor, bound: Tensor) -> None:
    """Entry by entry; ``bound`` is the rounding that the dtypes allow."""
    error = (actual.double() - expected).abs()
    assert (error <= bound).all(), f"{(error / bound).max():.3g} times the bound"


def spaced(rows: Tensor, gap: int) -> Tensor:
    """A copy with ``gap`` entries between one row and the next."""
    room = rows.new_full((rows.shape[0], rows.shape[1] + gap), 7)
    room[:, : rows.shape[1]] = rows
    return room[:, : rows.shape[1]]


def mentions(*fragments: str) -> str:
    """Pattern of a message that contains every fragment, in any order."""
    return "(?s)" + "".join(f"(?=.*{re.escape(fragment)})" for fragment in fragments)


def largest_temporary(call: Callable[[], object]) -> int:
    """Entries of the largest tensor that ``call`` allocates."""
    with _Allocations() as allocations:
        call()
    return allocations.largest


class _Allocations(TorchDispatchMode):
    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {_address(given) for given in tree_leaves((args, kwargs)) if _is_tensor(given)}
        fresh = [t for t in tree_leaves(result) if _is_tensor(t) and _address(t) not in known]
        self.largest = max([self.largest, *(tensor.numel() for tensor in fresh)])
        return result


def _is_tensor(leaf: object) -> bool:
    return isinstance(leaf, Tensor)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
