from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    LAYOUTS,
    STORAGE_DTYPES,
    edges,
    in_logical_order,
    mentions,
    normal,
    parameter,
    parameters,
    same_bits,
)
from torch import Tensor

from aadl_ext import ops

SIZES = [1, 3, 256, 1000, 1024, 1025, 5000]
MASK = 2**32 - 1


def sign(i: int) -> int:
    """The hash of entry i, in Python's integers."""
    x = (i & MASK) ^ ((i >> 32) * 0x9E3779B9 & MASK)
    x = (x ^ (x >> 16)) * 0x7FEB352D & MASK
    x = (x ^ (x >> 15)) * 0x846CA68B & MASK
    return -1 if (x ^ (x >> 16)) & 1 else 1


def folded(tensors: list[Tensor], size: int, weights: list[float]) -> Tensor:
    """Entry by entry, summed up without rounding."""
    columns: list[list[float]] = [[] for _ in range(size)]
    i = 0
    for tensor, weight in zip(tensors, weights, strict=True):
        for x in in_logical_order([tensor]):
            columns[i % size].append(sign(i) * weight * x)
            i += 1
    return torch.tensor([math.fsum(column) for column in columns], dtype=torch.float64)


@given(st.lists(parameters, min_size=1, max_size=5), st.sampled_from(SIZES[:4]), st.booleans())
def test_entries_are_folded_with_the_signs_of_their_hashes(
    tensors: list[Tensor], size: int, weighted: bool
) -> None:
    copies = [tensor.clone() for tensor in tensors]
    weights = [0.5 - i for i in range(len(tensors))] if weighted else []
    found = ops.sketch(tensors, size, weights)
    assert found.dtype == torch.float64
    expected = folded(tensors, size, weights or [1.0] * len(tensors))
    largest = sum(float(x.double().abs().sum()) for x in tensors) * 5
    assert (found - expected).abs().max() <= 1e-15 * largest
    assert all(map(same_bits, tensors, copies))


@pytest.mark.parametrize("size", SIZES)
def test_sizes_around_the_limits_of_kernels(size: int, backend: str) -> None:
    lengths = edges(backend)
    for tensors in [*([n] for n in lengths), lengths]:
        given = [normal(n, seed=n, dtype=torch.float32) for n in tensors]
        found = ops.sketch(given, size)
        with ops.library.definitions_only():
            expected = ops.sketch(given, size)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * sum(tensors) ** 0.5)


@pytest.mark.parametrize("count", [72, 73, 601])  # 72 or 600 fit (cuda/pieces.h)
def test_more_tensors_than_a_launch_holds(count: int) -> None:
    tensors = [normal(n % 5, seed=n, dtype=torch.float32) for n in range(count)]
    found = ops.sketch(tensors, 7)
    expected = folded(tensors, 7, [1.0] * count)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", STORAGE_DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_and_dtype(layout: str, dtype: torch.dtype) -> None:
    tensor = parameter((3, 40, 5, 7), layout, dtype, seed=1)
    found, expected = ops.sketch([tensor], 64), folded([tensor], 64, [1.0])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_it_is_linear_and_exact_where_there_is_room() -> None:
    x, y = normal(2, 5000, seed=0, dtype=torch.float64)
    both = ops.sketch([2 * x - y], 700)
    torch.testing.assert_close(both, 2 * ops.sketch([x], 700) - ops.sketch([y], 700))
    torch.testing.assert_close(ops.sketch([x[:4000], x[4000:]], 700), ops.sketch([x], 700))
    assert float(ops.sketch([x], 5000) @ ops.sketch([y], 5000)) == pytest.approx(float(x @ y))


def test_products_are_right_in_the_mean_and_nearly_in_each_case() -> None:
    """Errors have mean 0 and about 1 over the root of D; over 4096 parts of a long vector."""
    size = 1024
    x, y = normal(2, 64 * 4096, seed=3, dtype=torch.float64).view(2, 64, 4096)
    moved = torch.zeros(2, 64, 64 * 4096, dtype=torch.float64)
    for part in range(64):  # other signs for each
        moved[:, part, part * 4096 : (part + 1) * 4096] = torch.stack([x[part], y[part]])
    sketches = [torch.stack([ops.sketch([row], size) for row in rows]) for rows in moved]
    errors = (sketches[0] * sketches[1]).sum(dim=1) - (x * y).sum(dim=1)
    errors /= x.norm(dim=1) * y.norm(dim=1)
    assert errors.square().mean().sqrt() < 1.5 / size**0.5
    assert errors.mean().abs() < 3 / (64 * size) ** 0.5


def test_what_is_not_finite_is_seen() -> None:
    for odd in (math.nan, math.inf):
        x = normal(100, seed=0, dtype=torch.float32)
        x[37] = odd
        found = ops.sketch([x], 10)
        assert not found[7].isfinite()
        assert found.isfinite().sum() == 9


@pytest.mark.parametrize(
    ("given", "fragments"),
    [
        (([], 3), ["empty"]),
        (([torch.ones(3)], 0), ["size is 0"]),
        (([torch.ones(3)], 3, [1.0, 2.0]), ["2 weights", "1 tensors"]),
        (([torch.ones(3).long()], 3), ["int64", "real"]),
        (([torch.ones(3), torch.ones(2, device="meta")], 3), ["on meta", "on cpu"]),
    ],
)
def test_misfit_is_refused_and_named(given: Any, fragments: list[str]) -> None:
    with pytest.raises(ValueError, match=mentions(*fragments)):
        ops.sketch(*given)
