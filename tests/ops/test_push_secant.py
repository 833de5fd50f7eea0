from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    largest_temporary,
    mentions,
    normal,
    offsets,
    per_entry,
    same_bits,
    seeds,
    storage_dtypes,
    working_dtypes,
)
from torch import Tensor

from aadl_ext import ops
from aadl_ext.ops.reference import CHUNK


@dataclass
class Push:
    """The arguments of one call."""

    before: Tensor
    after: Tensor
    rates: list[float]
    offsets: list[int]
    residual: Tensor
    last_point: Tensor
    last_residual: Tensor
    step_rows: Tensor
    residual_rows: Tensor
    slot: int | None

    def __call__(self, *, products: bool = True) -> ops.SecantProducts:
        return ops.push_secant(**vars(self), products=products)

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def copy(self) -> Push:
        return replace(self, **{name: tensor.clone() for name, tensor in self.tensors.items()})

    def changed(self, then: Push) -> set[str]:
        """Names of the tensors that are not what they were."""
        return {n for n, tensor in self.tensors.items() if not same_bits(tensor, then.tensors[n])}


def random_push(
    bounds: list[int],
    rates: list[float] | None = None,
    *,
    rows: int = 3,
    slot: int | None = 1,
    dtype: torch.dtype = torch.float32,
    storage: torch.dtype | None = None,
    seed: int = 0,
) -> Push:
    """A step of about ``rate`` from a point of about 1, in the middle of a run."""
    size, rates = bounds[-1], rates or [0.5] * (len(bounds) - 1)
    before, move, last_point, last_residual = normal(4, size, seed=seed)
    history = normal(2, rows, size, seed=seed + 1, dtype=storage or dtype)
    return Push(
        before=before.to(dtype),
        after=(before + per_entry(rates, bounds) * move).to(dtype),
        rates=rates,
        offsets=bounds,
        residual=torch.full((size,), 7.0, dtype=dtype),
        last_point=last_point.to(dtype),
        last_residual=last_residual.to(dtype),
        step_rows=history[0].clone(),
        residual_rows=history[1].clone(),
        slot=slot,
    )


@st.composite
def pushes(draw: st.DrawFn, store: bool) -> Push:
    bounds = draw(offsets())
    # Not so small a rate that a residual leaves the range of float16.
    rate = st.floats(1e-2, 10)
    rates = draw(st.lists(rate, min_size=len(bounds) - 1, max_size=len(bounds) - 1))
    rows = draw(st.integers(1 if store else 0, 4))
    return random_push(
        bounds,
        rates,
        rows=rows,
        slot=draw(st.integers(0, rows - 1)) if store else None,
        dtype=draw(working_dtypes),
        storage=draw(storage_dtypes),
        seed=draw(seeds),
    )


def assert_within(actual: Tensor, expected: Tensor, bound: Tensor) -> None:
    """Entry by entry; ``bound`` is the rounding that the dtypes allow."""
    error = (actual.double() - expected).abs()
    assert (error <= bound).all(), f"{(error / bound).max():.3g} times the bound"


def assert_products(actual: Tensor, rows: Tensor, vector: Tensor, bounds: list[int]) -> None:
    """Products per segment with float64 accumulation: float32 sums are off by 1e-8 and more."""
    rows, vector = rows.double(), vector.double()
    assert actual.dtype == torch.float64
    assert actual.shape == (len(bounds) - 1, len(rows))
    for found, (start, stop) in zip(actual, pairwise(bounds), strict=True):
        terms = rows[:, start:stop] * vector[start:stop]
        assert_within(found, terms.sum(dim=1), 1e-13 * terms.abs().sum(dim=1))


@given(pushes(store=True))
def test_pair_is_stored_as_in_float64(push: Push) -> None:
    old = push.copy()
    out = push()
    before, after = old.before.double(), old.after.double()
    last_point, last_residual = old.last_point.double(), old.last_residual.double()
    rate = per_entry(old.rates, old.offsets)
    rho = (after - before) / rate
    drho = rho - last_residual

    eps = torch.finfo(push.before.dtype).eps
    stored = torch.finfo(push.step_rows.dtype)
    # Three roundings of at most eps / 2: the difference, the rate, the quotient.
    assert_within(push.residual, rho, 2 * eps * rho.abs())
    exact_max = (after - before).abs().amax() if len(rho) else torch.zeros(())
    assert same_bits(out.max_step, exact_max.to(push.before.dtype))

    assert push.slot is not None
    scale = rho.abs() + last_residual.abs()
    row = push.residual_rows[push.slot]
    assert_within(row, drho, (4 * eps + stored.eps) * scale + stored.smallest_normal)
    step = before - last_point + rate * drho
    scale = before.abs() + last_point.abs() + rate * scale
    row = push.step_rows[push.slot]
    assert_within(row, step, (6 * eps + stored.eps) * scale + stored.smallest_normal)

    others = [index for index in range(len(push.step_rows)) if index != push.slot]
    assert same_bits(push.step_rows[others], old.step_rows[others])
    assert same_bits(push.residual_rows[others], old.residual_rows[others])
    assert push.changed(old) <= {"residual", "step_rows", "residual_rows"}


@given(st.one_of(pushes(store=True), pushes(store=False)))
def test_products_are_those_of_the_rows_as_stored(push: Push) -> None:
    out = push()
    rows, bounds = push.residual_rows, push.offsets
    assert_products(out.squared_norm[:, None], push.residual[None], push.residual, bounds)
    assert_products(out.right_side, rows, push.residual, bounds)
    if push.slot is None:
        assert out.gram_row is None
    else:
        assert out.gram_row is not None
        assert_products(out.gram_row, rows, rows[push.slot], bounds)


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float16])
def test_products_use_the_new_row_as_rounded(storage: torch.dtype) -> None:
    push = random_push([0, 50], storage=storage)
    exact = push.copy()
    exact.residual_rows = push.residual_rows.double()
    rounded, unrounded = push(), exact()
    assert rounded.gram_row is not None
    assert_products(rounded.gram_row, push.residual_rows, push.residual_rows[1], [0, 50])
    # Without the rounding of the row they would be far off.
    assert (rounded.gram_row - unrounded.gram_row).abs().min() > 1e-6
    assert (rounded.right_side - unrounded.right_side)[0, 1].abs() > 1e-6


def test_long_vectors_are_summed_in_float64() -> None:
    bounds = [0, 7, CHUNK + 1, CHUNK + 1, 5 * CHUNK + 3, 200_001]
    push = random_push(bounds, [0.1, 0.2, 0.3, 0.4, 0.5], rows=4, slot=3)
    out = push()
    assert_products(out.squared_norm[:, None], push.residual[None], push.residual, bounds)
    assert_products(out.right_side, push.residual_rows, push.residual, bounds)
    assert_products(out.gram_row, push.residual_rows, push.residual_rows[3], bounds)


@given(pushes(store=False))
def test_without_a_slot_the_step_is_only_measured(push: Push) -> None:
    old, storing = push.copy(), push.copy()
    out = push()
    assert out.gram_row is None
    assert push.changed(old) <= {"residual"}
    if len(push.step_rows):
        storing.slot = 0
        stored = storing()
        assert same_bits(push.residual, storing.residual)
        assert same_bits(out.max_step, stored.max_step)


@pytest.mark.parametrize("slot", [None, 0])
def test_without_products_all_else_is_the_same(slot: int | None) -> None:
    push = random_push([0, 4, 9], slot=slot)
    twin = push.copy()
    out, full = push(products=False), twin()
    assert out.right_side.shape == (2, 0)
    assert out.gram_row is None
    assert same_bits(out.squared_norm, full.squared_norm)
    assert same_bits(out.max_step, full.max_step)
    assert not push.changed(twin)


def test_residual_counts_as_zero_where_the_rate_is_zero() -> None:
    push = random_push([0, 3, 5], [0.5, 1.0], dtype=torch.float64)
    push.rates[1] = 0.0
    old = push.copy()
    out = push()
    assert push.residual[3:].tolist() == [0, 0]
    assert out.squared_norm[1] == 0
    assert out.max_step == (old.after - old.before).abs().max()
    torch.testing.assert_close(push.residual_rows[1, 3:], -old.last_residual[3:])
    torch.testing.assert_close(push.step_rows[1, 3:], (old.before - old.last_point)[3:])
    assert push.residual[:3].abs().min() > 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 2, 4])
@pytest.mark.parametrize("rates", [[0.5, 0.5, 0.5], [0.5, 0.5, 0.0]])
@pytest.mark.parametrize("of", ["before", "after"])
def test_step_that_is_not_finite_is_seen_and_spoils_only_its_own_row(
    bad: float, place: int, rates: list[float], of: str
) -> None:
    push = random_push([0, 1, 1, 5], rates)
    getattr(push, of)[place] = bad
    old = push.copy()
    out = push()
    assert not out.max_step.isfinite()
    assert not out.squared_norm.isfinite().all()
    assert_only_its_row_is_spoilt(push, old)


OVERFLOWS = [
    pytest.param([1e38, 0.0], 1e-5, id="one of two entries"),
    pytest.param([1e38], 1e-5, id="single entry"),
    pytest.param([-1e38, -1e38], 1e-5, id="equal entries"),
    pytest.param([1e-10, -1e-10], 1e-50, id="rate below the range of float32"),
]


@pytest.mark.parametrize(("step", "rate"), OVERFLOWS)
def test_residual_that_overflows_is_seen_and_spoils_only_its_own_row(
    step: list[float], rate: float
) -> None:
    push = random_push([0, len(step)], [1.0])
    push.before.zero_()
    push.after.copy_(torch.tensor(step))
    push.rates = [rate]
    old = push.copy()
    out = push()
    assert not push.residual.isfinite().all()
    assert not out.squared_norm.isfinite()
    assert_only_its_row_is_spoilt(push, old)


def assert_only_its_row_is_spoilt(push: Push, old: Push) -> None:
    assert push.changed(old) <= {"residual", "step_rows", "residual_rows"}
    others = [index for index in range(len(push.step_rows)) if index != push.slot]
    assert same_bits(push.step_rows[others], old.step_rows[others])
    assert same_bits(push.residual_rows[others], old.residual_rows[others])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_step_is_stored_however_large(dtype: torch.dtype) -> None:
    push = random_push([0, 2], [1.0], dtype=dtype)
    large = 0.7 * torch.finfo(dtype).max
    for tensor in (push.before, push.last_point, push.last_residual):
        tensor.zero_()
    push.after.copy_(torch.tensor([large, -large], dtype=dtype))
    out = push()
    assert out.max_step == push.after[0]
    assert push.residual_rows[1].tolist() == push.after.tolist()


def test_no_temporary_has_the_size_of_the_history() -> None:
    push = random_push([0, 8 * CHUNK], rows=8)
    assert largest_temporary(push) <= push.step_rows.numel() / 4


MISFITS: list[tuple[dict[str, Any], list[str]]] = [
    ({"after": torch.zeros(4)}, ["after", "(4,)", "(5,)"]),
    ({"before": torch.zeros(5, 1)}, ["before", "(5, 1)"]),
    ({"residual": torch.zeros(6)}, ["residual", "(6,)"]),
    ({"last_point": torch.zeros(5).double()}, ["last_point", "float64", "float32"]),
    ({"last_residual": torch.zeros(1)}, ["last_residual", "(1,)"]),
    ({"before": torch.zeros(5).half()}, ["before", "float16", "float32, float64"]),
    ({"rates": [0.1]}, ["1 rates", "2 segments"]),
    ({"offsets": [0, 4, 6]}, ["[0, 4, 6]", "5"]),
    ({"offsets": [1, 4, 5]}, ["[1, 4, 5]"]),
    ({"offsets": [0, 6, 5]}, ["[0, 6, 5]"]),
    ({"offsets": [0]}, ["[0]"]),
    ({"step_rows": torch.zeros(3, 4)}, ["step_rows", "(3, 4)"]),
    ({"step_rows": torch.zeros(2, 5)}, ["(2, 5)", "(3, 5)"]),
    ({"residual_rows": torch.zeros(5)}, ["residual_rows", "(5,)"]),
    ({"residual_rows": torch.zeros(3, 5, dtype=torch.int32)}, ["residual_rows", "int32"]),
    ({"slot": 3}, ["slot is 3", "0 to 2"]),
    ({"slot": -1}, ["slot is -1", "0 to 2"]),
]


@pytest.mark.parametrize(("wrong", "fragments"), MISFITS)
def test_misfit_is_refused_and_named(wrong: dict[str, Any], fragments: list[str]) -> None:
    push = replace(random_push([0, 2, 5]), **wrong)
    old = push.copy()
    with pytest.raises(ValueError, match=mentions(*fragments)):
        push()
    assert not push.changed(old)
