from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    assert_within,
    edges,
    largest_temporary,
    mentions,
    normal,
    offsets,
    pairs,
    per_entry,
    same_bits,
    seeds,
    storage_dtypes,
    working_dtypes,
)
from torch import Tensor

from aadl_ext import ops
from aadl_ext.ops.chunks import CHUNK


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
    slot: int
    systems: Tensor | None
    paired: Tensor | None = None

    def __call__(self) -> Tensor:
        return ops.push_secant(**vars(self))

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
    slot: int = 1,
    spare: int = 1,
    dtype: torch.dtype = torch.float32,
    storage: torch.dtype | None = None,
    seed: int = 0,
) -> Push:
    """A step of about ``rate`` from a point of about 1, in the middle of a run.

    The systems are rubbish, with room for ``spare`` rows that are not there yet.
    """
    size, rates = bounds[-1], rates or [0.5] * (len(bounds) - 1)
    before, move, last_point, last_residual = normal(4, size, seed=seed)
    history = normal(2, rows, size, seed=seed + 1, dtype=storage or dtype)
    width = rows + spare + 1
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
        systems=normal(len(rates), width, width, seed=seed + 2),
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
        slot=draw(st.integers(0, rows - 1)) if store else -1,
        spare=draw(st.integers(0, 2)),
        dtype=draw(working_dtypes),
        storage=draw(storage_dtypes),
        seed=draw(seeds),
    )


def assert_figures(figures: Tensor, push: Push, old: Push) -> None:
    """The largest step, sums of squares with float64 accumulation, the largest way."""
    assert figures.dtype == torch.float64
    assert figures.shape == (4,)
    step = (old.after - old.before).double().abs()
    assert figures[0] == (step.max() if len(step) else 0)
    slot = slice(0) if push.slot < 0 else slice(push.slot, push.slot + 1)
    rows = torch.stack([push.residual_rows[slot], push.step_rows[slot]])
    exact = torch.stack([values.double().square().sum() for values in (push.residual, rows)])
    assert_within(figures[1:3], exact, 1e-13 * exact)
    way = push.step_rows[slot].double().abs()
    assert figures[3] == (way.max() if way.numel() else 0)


def assert_systems(push: Push, old: Push) -> None:
    """Float64 products of the rows as stored: float32 sums are off by 1e-8 and more.

    Only those with the residual and with the new row are entered, by rows and by columns.
    """
    assert push.systems is not None
    assert old.systems is not None
    vectors = torch.cat([push.residual_rows.double(), push.residual[None].double()])
    places = torch.tensor([*range(len(push.residual_rows)), push.systems.shape[-1] - 1])
    fresh = torch.zeros(push.systems.shape[1:], dtype=torch.bool)
    for place in {-1, push.slot}:
        fresh[places, place] = fresh[place, places] = True
    assert same_bits(push.systems[:, ~fresh], old.systems[:, ~fresh])
    assert same_bits(push.systems[:, fresh], push.systems.mT[:, fresh])
    for system, (start, stop) in zip(push.systems, pairwise(push.offsets), strict=True):
        part = vectors[:, start:stop]
        exact, bound = torch.zeros_like(system), torch.zeros_like(system)
        exact[places[:, None], places] = part @ part.T
        bound[places[:, None], places] = 1e-13 * part.abs() @ part.abs().T
        assert_within(system[fresh], exact[fresh], bound[fresh])


def check(push: Push) -> None:
    """Call and compare with float64."""
    old = push.copy()
    figures = push()
    before, after = old.before.double(), old.after.double()
    last_point, last_residual = old.last_point.double(), old.last_residual.double()
    rate = per_entry(old.rates, old.offsets)
    rho = (after - before) / rate
    drho = rho - last_residual

    eps = torch.finfo(push.before.dtype).eps
    stored = torch.finfo(push.step_rows.dtype)
    # Three roundings of at most eps / 2: the difference, the rate, the quotient.
    assert_within(push.residual, rho, 2 * eps * rho.abs())
    assert_figures(figures, push, old)

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
    assert push.changed(old) <= {"residual", "step_rows", "residual_rows", "systems"}
    assert_systems(push, old)


@given(pushes(store=True))
def test_pair_is_stored_as_in_float64(push: Push) -> None:
    check(push)


@pairs
def test_sizes_around_the_limits_of_kernels(
    dtype: torch.dtype, storage: torch.dtype, backend: str
) -> None:
    for size in edges(backend):
        check(random_push([0, size // 3, size // 3, size], dtype=dtype, storage=storage))


@pytest.mark.parametrize("rows", [1, 2, 5, 7, 8, 9, 20, 129])
def test_any_number_of_rows(rows: int) -> None:
    for slot in {0, rows - 1}:
        check(random_push([0, 100, 2500 if rows < 100 else 200], rows=rows, slot=slot))


def test_more_segments_than_a_launch_holds() -> None:
    check(random_push(list(range(0, 301, 2))))


@given(st.one_of(pushes(store=True), pushes(store=False)))
def test_systems_take_the_products_of_the_rows_as_stored(push: Push) -> None:
    old = push.copy()
    push()
    assert_systems(push, old)


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float16])
def test_products_use_the_new_row_as_rounded(storage: torch.dtype) -> None:
    push = random_push([0, 50], storage=storage)
    exact = push.copy()
    exact.residual_rows, exact.step_rows = push.residual_rows.double(), push.step_rows.double()
    old = push.copy()
    rounded, unrounded = push(), exact()
    assert_systems(push, old)
    assert_figures(rounded, push, old)
    # Without the rounding of the row they would be far off.
    assert (push.systems - exact.systems)[0, [0, 1, 2, -1], 1].abs().min() > 1e-6
    assert (rounded - unrounded)[2].abs() > 1e-6


@pytest.mark.long
@pytest.mark.parametrize("slot", [-1, 3])
def test_long_vectors_are_summed_in_float64(slot: int) -> None:
    bounds = [0, 7, CHUNK + 1, CHUNK + 1, 5 * CHUNK + 3, 200_001]
    push = random_push(bounds, [0.1, 0.2, 0.3, 0.4, 0.5], rows=4, slot=slot)
    old = push.copy()
    assert_figures(push(), push, old)
    assert_systems(push, old)


def test_ring_that_fills_and_turns_has_the_gram_matrices_of_its_rows() -> None:
    bounds, depth = [0, 7, 7, 30], 3
    run = random_push(bounds, rows=depth, spare=0)
    for tensor in (run.step_rows, run.residual_rows, run.systems):
        tensor.zero_()
    for k in range(3 * depth):
        used = min(k + 1, depth)
        push = replace(
            random_push(bounds, rows=depth, slot=k % depth, seed=k),
            step_rows=run.step_rows[:used],
            residual_rows=run.residual_rows[:used],
            systems=run.systems,
        )
        if k == 5:
            push.after[10] = torch.nan
        if push()[1].isfinite():  # else the systems stay with the residual before
            run.residual = push.residual
        rows = torch.cat([run.residual_rows, run.residual[None]]).double()
        for system, (start, stop) in zip(run.systems, pairwise(bounds), strict=True):
            part = rows[:, start:stop]
            torch.testing.assert_close(system, part @ part.T, rtol=1e-12, atol=1e-12)


@given(pushes(store=False))
def test_without_a_slot_the_step_is_only_measured(push: Push) -> None:
    old, storing = push.copy(), push.copy()
    figures = push()
    assert_figures(figures, push, old)
    assert push.changed(old) <= {"residual", "systems"}
    if len(push.step_rows):
        storing.slot = 0
        stored = storing()
        assert same_bits(push.residual, storing.residual)
        assert same_bits(figures[:2], stored[:2])


@given(pushes(store=True))
def test_row_without_a_pair_before_it_is_zero(push: Push) -> None:
    twin, old = push.copy(), push.copy()
    push.paired = torch.tensor(False)
    figures, expected = push(), twin()
    push.paired = None
    assert same_bits(figures[:2], expected[:2])
    twin.step_rows[push.slot] = twin.residual_rows[push.slot] = 0
    assert twin.systems is not None
    twin.systems[:, push.slot] = twin.systems[:, :, push.slot] = 0
    assert not push.changed(twin)
    assert push.changed(old) <= {"residual", "step_rows", "residual_rows", "systems"}


@pytest.mark.parametrize("slot", [-1, 0])
@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16])
def test_without_systems_all_else_is_the_same(storage: torch.dtype, slot: int) -> None:
    push = random_push([0, 4, 9], slot=slot, storage=storage)
    twin = push.copy()
    push.systems = None
    assert same_bits(push(), twin())
    assert not push.changed(twin)


def test_residual_counts_as_zero_where_the_rate_is_zero() -> None:
    push = random_push([0, 3, 5], [0.5, 1.0], dtype=torch.float64)
    push.rates[1] = 0.0
    old = push.copy()
    figures = push()
    assert push.residual[3:].tolist() == [0, 0]
    assert push.residual[:3].abs().min() > 0
    assert figures[0] == (old.after - old.before).abs().max()
    assert_within(figures[1], push.residual[:3].square().sum(), 1e-13 * figures[1])
    assert push.systems[1, [0, 1, 2, -1], -1].tolist() == [0, 0, 0, 0]
    torch.testing.assert_close(push.residual_rows[1, 3:], -old.last_residual[3:])
    torch.testing.assert_close(push.step_rows[1, 3:], (old.before - old.last_point)[3:])


systems_or_none = pytest.mark.parametrize("with_systems", [True, False], ids=["systems", "none"])


def assert_row_is_discarded(push: Push, old: Push) -> None:
    """The row is zero in the ring and in the systems; all else but the residual is as before."""
    expected = old.copy()
    expected.residual = push.residual
    if push.slot >= 0:
        expected.step_rows[push.slot] = expected.residual_rows[push.slot] = 0
        if expected.systems is not None:
            expected.systems[:, push.slot] = expected.systems[:, :, push.slot] = 0
    assert not push.changed(expected)


@pytest.mark.parametrize(
    ("bad", "place"),
    [*((math.nan, place) for place in (0, 2, 4)), (math.inf, 4), (-math.inf, 0)],
)
@pytest.mark.parametrize("rates", [[0.5, 0.5, 0.5], [0.5, 0.5, 0.0]])
@pytest.mark.parametrize("of", ["before", "after"])
@pytest.mark.parametrize("slot", [-1, 2])
@systems_or_none
def test_step_that_is_not_finite_is_seen_and_discarded(
    bad: float, place: int, rates: list[float], of: str, slot: int, with_systems: bool
) -> None:
    push = random_push([0, 1, 1, 5], rates, slot=slot)
    getattr(push, of)[place] = bad
    if not with_systems:
        push.systems = None
    old = push.copy()
    figures = push()
    assert not figures[:2].isfinite().any()
    assert_row_is_discarded(push, old)


@pytest.mark.parametrize("order", [[torch.nan, torch.inf], [torch.inf, torch.nan]])
def test_nan_beats_infinity_in_the_largest_step(order: list[float]) -> None:
    push = random_push([0, 70_000])
    push.after[[3, 60_000]] = torch.tensor(order)
    assert push()[0].isnan()


def test_infinite_parameters_that_do_not_move_are_seen() -> None:
    push = random_push([0, 10])
    push.before[4] = push.after[4] = torch.inf
    assert push()[:2].isnan().all()


OVERFLOWS = [
    pytest.param([1e38, 0.0], 1e-5, id="one of two entries"),
    pytest.param([1e38], 1e-5, id="single entry"),
    pytest.param([-1e38, -1e38], 1e-5, id="equal entries"),
    pytest.param([1e-10, -1e-10], 1e-50, id="rate below the range of float32"),
]


@pytest.mark.parametrize(("step", "rate"), OVERFLOWS)
def test_residual_that_overflows_is_seen_and_discarded(step: list[float], rate: float) -> None:
    push = random_push([0, len(step)], [1.0])
    push.before.zero_()
    push.after.copy_(torch.tensor(step))
    push.rates = [rate]
    old = push.copy()
    figures = push()
    assert not push.residual.isfinite().all()
    assert not figures[1].isfinite()
    assert_row_is_discarded(push, old)


def test_residual_whose_squares_overflow_float64_is_seen_and_discarded() -> None:
    push = random_push([0, 2, 5], dtype=torch.float64)
    push.after[3] = 1e200
    old = push.copy()
    assert push()[1] == float("inf")
    assert_row_is_discarded(push, old)


# The step is finite; its difference to the last one is not, in the storage dtype or squared.
TOO_LARGE = [
    (torch.float32, torch.float16, 7e4),
    (torch.float32, torch.bfloat16, 3.4e38),
    (torch.float32, torch.float32, 6e38),
    (torch.float64, torch.float32, 4e38),
    (torch.float64, torch.float64, 2e154),
    (torch.float64, torch.float16, -7e4),
]


@pytest.mark.beyond_float32
@pytest.mark.parametrize(("dtype", "storage", "value"), TOO_LARGE)
@pytest.mark.parametrize("place", [0, 2, 4])
@systems_or_none
def test_row_that_its_storage_cannot_hold_is_discarded_and_the_residual_kept(
    dtype: torch.dtype, storage: torch.dtype, value: float, place: int, with_systems: bool
) -> None:
    push = random_push([0, 1, 1, 5], [1.0, 1.0, 1.0], dtype=dtype, storage=storage)
    push.before[place] = push.last_point[place] = 0
    push.after[place], push.last_residual[place] = value / 2, -value / 2
    if not with_systems:
        push.systems = None
    old = push.copy()
    figures = push()
    step = old.after - old.before
    assert same_bits(push.residual, step)
    assert figures[0] == step.double().abs().max()
    squared = step.double().square().sum()
    assert_within(figures[1], squared, 1e-13 * squared)
    assert figures[2] == float("inf")
    assert figures[3] == 0

    old.residual, systems = push.residual, push.systems
    if systems is not None:  # the row, zero by now, is one of those that met the residual
        zeroed = old.copy()
        zeroed.systems[:, 1] = zeroed.systems[:, :, 1] = 0
        assert_systems(replace(push, slot=-1), zeroed)
        old.systems = systems
    assert_row_is_discarded(push, old)


@systems_or_none
def test_row_is_discarded_where_only_the_way_does_not_fit(with_systems: bool) -> None:
    push = random_push([0, 1, 5], [1.0, 1.0], storage=torch.float16)
    push.before[0], push.after[0], push.last_point[0] = 1e5, 1e5 + 1, 0
    if not with_systems:
        push.systems = None
    figures = push()
    assert figures[:2].isfinite().all()
    assert figures[2] == float("inf")
    assert figures[3] == 0
    assert not push.step_rows[1].any()
    assert not push.residual_rows[1].any()


def test_figures_that_are_finite_each_keep_the_row() -> None:
    push = random_push([0, 1], [1.0], dtype=torch.float64)
    for tensor in (push.before, push.last_point, push.last_residual):
        tensor.zero_()
    push.after.fill_(9e153)  # squares of 0.8e308 and 1.6e308: their sum is infinite
    assert push().isfinite().all()
    assert push.residual_rows[1] == 9e153


# Squares have to be finite as well.
@pytest.mark.beyond_float32
@pytest.mark.parametrize(("dtype", "large"), [(torch.float32, 2.4e38), (torch.float64, 5e153)])
def test_finite_step_is_stored_however_large(dtype: torch.dtype, large: float) -> None:
    push = random_push([0, 2], [1.0], dtype=dtype)
    for tensor in (push.before, push.last_point, push.last_residual):
        tensor.zero_()
    push.after.copy_(torch.tensor([large, -large], dtype=dtype))
    old = push.copy()
    figures = push()
    assert figures[0] == push.after[0]
    assert push.residual_rows[1].tolist() == push.after.tolist()
    assert_figures(figures, push, old)
    assert_systems(push, old)


def test_rate_that_is_no_number_is_seen() -> None:
    push = random_push([0, 5], [float("nan")])
    assert not push()[1:3].isfinite().any()


@pytest.mark.parametrize("slot", [np.int64(1), np.int32(1)])
def test_numbers_of_numpy_are_taken(slot: Any) -> None:
    push, twin = random_push([0, 2, 5]), random_push([0, 2, 5])
    push.slot, push.rates = slot, [np.float32(rate) for rate in push.rates]
    assert same_bits(push(), twin())
    assert not push.changed(twin)


def test_one_rate_and_one_rounding_are_those_of_all_segments() -> None:
    pushes = [random_push([0, 2, 5, 9], [0.3] * 3) for _ in range(2)]
    pushes[1].rates = [0.3]
    noises = torch.zeros(2, 3, 3, dtype=torch.float64)
    for push, noise, rounding in zip(pushes, noises, ([1e-8] * 3, [1e-8]), strict=True):
        ops.push_secant(**vars(push), noise=noise, rounding=rounding)
    assert not pushes[0].changed(pushes[1])
    assert noises.any()
    assert same_bits(*noises)


@pytest.mark.not_on_cuda("allocates for itself")
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
    ({"rates": [0.1] * 3}, ["3 rates", "2 segments"]),
    ({"offsets": [0, 4, 6]}, ["[0, 4, 6]", "5"]),
    ({"offsets": [1, 4, 5]}, ["[1, 4, 5]"]),
    ({"offsets": [0, 6, 5]}, ["[0, 6, 5]"]),
    ({"offsets": [0]}, ["[0]"]),
    ({"step_rows": torch.zeros(3, 4)}, ["step_rows", "(3, 4)"]),
    ({"step_rows": torch.zeros(2, 5)}, ["(2, 5)", "(3, 5)"]),
    ({"residual_rows": torch.zeros(5)}, ["residual_rows", "(5,)"]),
    ({"residual_rows": torch.zeros(3, 5, dtype=torch.int32)}, ["residual_rows", "int32"]),
    ({"slot": 3}, ["slot is 3", "0 to 2"]),
    ({"slot": -2}, ["slot is -2", "0 to 2"]),
    ({"slot": True}, ["slot is True", "integer"]),
    ({"slot": 0.0}, ["slot is 0.0", "integer"]),
    ({"systems": torch.zeros(2, 3, 3).double()}, ["systems", "(2, 3, 3)", "3 rows", "k > 3"]),
    ({"systems": torch.zeros(1, 5, 5).double()}, ["systems", "(1, 5, 5)", "2 segments"]),
    ({"systems": torch.zeros(2, 5, 4).double()}, ["systems", "(2, 5, 4)", "[2, k, k]"]),
    ({"systems": torch.zeros(5, 5).double()}, ["systems", "(5, 5)", "[2, k, k]"]),
    ({"systems": torch.zeros(2, 5, 5)}, ["systems", "float32 (2, 5, 5)", "float64"]),
    ({"systems": torch.zeros(2, 5, 10).double()[..., ::2]}, ["systems", "(2, 5, 5)", "contiguous"]),
]


@pytest.mark.parametrize(("wrong", "fragments"), MISFITS)
def test_misfit_is_refused_and_named(wrong: dict[str, Any], fragments: list[str]) -> None:
    push = replace(random_push([0, 2, 5]), **wrong)
    old = push.copy()
    with pytest.raises(ValueError, match=mentions(*fragments)):
        push()
    assert not push.changed(old)
