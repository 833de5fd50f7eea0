from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    assert_within,
    edges,
    flags,
    largest_temporary,
    mentions,
    normal,
    pairs,
    same_bits,
    seeds,
    spaced,
    storage_dtypes,
    working_dtypes,
)
from torch import Tensor

from aadl_ext import ops
from aadl_ext.ops.chunks import CHUNK

RINGS = ("step_rows", "gradient_rows", "noise_rows")
SUMS = ("point_sum", "gradient_sum", "noise_sum")


@dataclass
class Block:
    """The arguments of one call, the sums by name."""

    point_sum: Tensor
    gradient_sum: Tensor
    noise_sum: Tensor | None
    count: int
    last_point: Tensor
    last_gradient: Tensor
    step_rows: Tensor
    gradient_rows: Tensor
    noise_rows: Tensor
    slot: int
    noise_slot: int
    paired: Tensor | None = None
    accept: Tensor | None = None

    def __call__(self) -> None:
        named = {**vars(self)}
        sums = [named.pop(name) for name in SUMS]
        ops.push_block([x for x in sums if x is not None], named.pop("count"), **named)

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def copy(self) -> Block:
        return replace(self, **{name: tensor.clone() for name, tensor in self.tensors.items()})

    def changed(self, then: Block) -> set[str]:
        """Names of the tensors that are not what they were."""
        return {n for n, tensor in self.tensors.items() if not same_bits(tensor, then.tensors[n])}


def random_block(
    size: int,
    *,
    rows: int = 3,
    noises: int = 2,
    slot: int = 1,
    noise_slot: int = 1,
    count: int = 3,
    gap: int = 0,
    dtype: torch.dtype = torch.float32,
    storage: torch.dtype | None = None,
    seed: int = 0,
    paired: Tensor | None = None,
    accept: Tensor | None = None,
) -> Block:
    """Sums of a few samples beside rings of rubbish, ``gap`` entries between their rows."""
    vectors = normal(5, size, seed=seed, dtype=dtype).clone()
    rings = normal(2 * rows + noises, size, seed=seed + 1, dtype=storage or dtype)
    return Block(
        point_sum=vectors[0].clone(),
        gradient_sum=vectors[1].clone(),
        noise_sum=None if noise_slot < 0 else vectors[2].clone(),
        count=count,
        last_point=vectors[3].clone(),
        last_gradient=vectors[4].clone(),
        step_rows=spaced(rings[:rows], gap),
        gradient_rows=spaced(rings[rows : 2 * rows], gap),
        noise_rows=spaced(rings[2 * rows :], gap),
        slot=slot,
        noise_slot=noise_slot,
        paired=paired,
        accept=accept,
    )


@st.composite
def blocks(draw: st.DrawFn) -> Block:
    rows, noises = draw(st.integers(0, 4)), draw(st.integers(0, 3))
    return random_block(
        draw(st.integers(0, 40)),
        rows=rows,
        noises=noises,
        slot=draw(st.integers(-1, rows - 1)),
        noise_slot=draw(st.integers(-1, noises - 1)),
        count=draw(st.integers(1, 9)),
        gap=draw(st.sampled_from([0, 1, 5])),
        dtype=draw(working_dtypes),
        storage=draw(storage_dtypes),
        seed=draw(seeds),
        paired=draw(flags),
        accept=draw(flags),
    )


def check(block: Block) -> None:
    """Call and compare with the definition in float64."""
    old = block.copy()
    block()
    sums = [old.tensors[name].double() for name in SUMS if name in old.tensors]
    accepted = old.accept is None or bool(old.accept)
    paired = accepted and (old.paired is None or bool(old.paired))
    p, g, *a = [total / old.count * accepted for total in sums]
    last_gradient = old.last_gradient.double() * accepted
    expected = {"step_rows": p * paired, "gradient_rows": (g - last_gradient) * paired}
    eps = torch.finfo(block.last_point.dtype).eps
    if a:
        expected["noise_rows"] = a[0]
    for name, slot in zip(RINGS, (block.slot, block.slot, block.noise_slot), strict=True):
        ring, before = block.tensors[name], old.tensors[name]
        if slot >= 0:
            stored = torch.finfo(ring.dtype)
            scale = g.abs() + last_gradient.abs()
            scale = scale if name == "gradient_rows" else expected[name].abs()
            bound = (eps + stored.eps) * scale + stored.smallest_normal * stored.eps
            assert_within(ring[slot], expected[name], bound)
        others = [index for index in range(len(ring)) if index != slot]
        assert same_bits(ring[others], before[others]), name
    if accepted:
        last = old.last_point.double()
        assert_within(block.last_point, last + p, eps * (last.abs() + p.abs()))
        assert_within(block.last_gradient, g, eps * g.abs())
    else:
        assert same_bits(block.last_point, old.last_point)
        assert same_bits(block.last_gradient, old.last_gradient)
    for name in {*SUMS} & block.tensors.keys():
        assert same_bits(block.tensors[name], torch.zeros_like(block.tensors[name]))


@given(blocks())
def test_means_and_their_changes_are_stored_as_in_float64(block: Block) -> None:
    check(block)


@pairs
def test_sizes_around_the_limits_of_kernels(
    dtype: torch.dtype, storage: torch.dtype, backend: str
) -> None:
    for size in edges(backend):
        check(random_block(size, dtype=dtype, storage=storage))


@pytest.mark.parametrize("gap", [0, 5])
@pytest.mark.parametrize(
    ("dtype", "storage"),
    [
        (torch.float32, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float64, torch.float32),
        (torch.float64, torch.float16),
    ],
    ids=str,
)
@pytest.mark.parametrize("accept", [False, True])
def test_long_blocks_are_stored_in_full(
    accept: bool, dtype: torch.dtype, storage: torch.dtype, gap: int
) -> None:
    flag = torch.tensor(accept)
    check(random_block(5 * CHUNK + 3, dtype=dtype, storage=storage, gap=gap, accept=flag))


@pytest.mark.long
@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16])
def test_blocks_larger_than_the_caches_are_stored_in_full(storage: torch.dtype) -> None:
    check(random_block(1_300_021, rows=1, noises=1, slot=0, noise_slot=0, storage=storage))


def whole_storage(rows: Tensor) -> Tensor:
    return rows.as_strided((rows.untyped_storage().size() // rows.itemsize,), (1,), 0)


@given(blocks())
def test_entries_between_rows_are_left_alone(block: Block) -> None:
    rooms = {name: whole_storage(block.tensors[name]) for name in RINGS}
    old = {name: room.clone() for name, room in rooms.items()}
    block()
    for name, slot in zip(RINGS, (block.slot, block.slot, block.noise_slot), strict=True):
        ring = block.tensors[name]
        expected = old[name]
        if slot >= 0:
            start, size = slot * ring.stride(0), ring.shape[1]
            expected[start : start + size] = ring[slot]
        assert same_bits(rooms[name], expected), name


def test_run_of_blocks_leaves_mean_points_and_changes_of_mean_gradients() -> None:
    size, count, depth = 50, 4, 3
    samples = normal(2, 6, count, size, seed=5)  # points and gradients of six blocks
    points, gradients = samples
    block = random_block(size, rows=depth, slot=-1, dtype=torch.float64)
    for total in (block.point_sum, block.gradient_sum, block.noise_sum):
        total.zero_()
    block.count = count
    block.last_point = points[0, 0].clone()
    for k in range(6):
        block.slot, block.noise_slot = (k - 1) % depth if k else -1, k % 2
        sums = [block.point_sum, block.gradient_sum, block.noise_sum]
        for point, gradient, sign in zip(points[k], gradients[k], (1, -1, 1, -1), strict=True):
            ops.add_sample_(sums, [point], block.last_point, [gradient], sign=sign)
        block()
    mean_points, mean_gradients = samples.mean(dim=2)
    torch.testing.assert_close(block.last_point, mean_points[5])
    torch.testing.assert_close(block.last_gradient, mean_gradients[5])
    order = [(k - 1) % depth for k in (3, 4, 5)]
    torch.testing.assert_close(block.step_rows[order], mean_points.diff(dim=0)[2:])
    torch.testing.assert_close(block.gradient_rows[order], mean_gradients.diff(dim=0)[2:])
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    noise = (gradients * signs[:, None]).mean(dim=1)
    torch.testing.assert_close(block.noise_rows, noise[[4, 5]])


@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 3, 299])
def test_sums_that_are_not_finite_are_stored_and_then_zero(
    place: int, bad: float, storage: torch.dtype
) -> None:
    block = random_block(300, storage=storage)
    sums = [block.point_sum, block.gradient_sum, block.noise_sum]
    for total in sums:
        total[place] = bad
    block()
    for name in RINGS:
        row = block.tensors[name][1]
        assert row[place].isnan() if math.isnan(bad) else row[place] == bad
        assert (~row.isfinite()).nonzero().flatten().tolist() == [place]
    assert not any(total.any() for total in sums)


@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_block_that_is_not_accepted_leaves_no_trace_of_its_sums(
    bad: float, storage: torch.dtype
) -> None:
    block = random_block(300, storage=storage, accept=torch.tensor(False))
    old = block.copy()
    for total in (block.point_sum, block.gradient_sum, block.noise_sum):
        total[7] = bad
    block()
    assert not any(block.tensors[name].any() for name in SUMS)
    assert not any(block.tensors[name][1].any() for name in RINGS)
    assert block.changed(old) == {*SUMS, *RINGS}


def test_mean_that_its_storage_cannot_hold_becomes_infinite_in_the_row_only() -> None:
    block = random_block(10, storage=torch.float16, count=2)
    block.point_sum[4] = 2e5
    block()
    assert block.step_rows[1, 4] == math.inf
    assert block.last_point.isfinite().all()
    assert block.last_point[4] > 9e4


@pytest.mark.not_on_cuda("allocates for itself")
def test_no_temporary_has_the_size_of_the_vectors() -> None:
    assert largest_temporary(random_block(8 * CHUNK)) <= CHUNK


MISFITS: list[tuple[dict[str, Any], list[str]]] = [
    ({"count": 0}, ["count is 0"]),
    ({"count": -2}, ["count is -2"]),
    ({"point_sum": torch.zeros(4)}, ["sums", "(4,)", "(5,)"]),
    ({"noise_sum": torch.zeros(5).double()}, ["sums", "float64", "float32"]),
    ({"last_gradient": torch.zeros(4)}, ["last_gradient", "(4,)", "(5,)"]),
    ({"last_gradient": torch.zeros(5).double()}, ["last_gradient", "float64", "float32"]),
    ({"last_point": torch.zeros(5).half()}, ["last_point", "float16", "float32, float64"]),
    ({"last_point": torch.zeros(1, 5)}, ["last_point", "(1, 5)"]),
    ({"step_rows": torch.zeros(3, 4)}, ["step_rows", "(3, 4)", "5"]),
    ({"step_rows": torch.zeros(2, 5)}, ["(2, 5)", "(3, 5)"]),
    ({"gradient_rows": torch.zeros(5)}, ["gradient_rows", "(5,)"]),
    ({"noise_rows": torch.zeros(2, 5, dtype=torch.int32)}, ["noise_rows", "int32"]),
    ({"slot": 3}, ["slot is 3", "(3, 5)"]),
    ({"slot": -2}, ["slot is -2"]),
    ({"slot": True}, ["slot is True", "integer"]),
    ({"slot": 1.0}, ["slot is 1.0", "integer"]),
    ({"count": 3.0}, ["count is 3.0", "integer"]),
    ({"noise_slot": 2}, ["noise_slot is 2", "2 noise rows"]),
    ({"noise_slot": -2}, ["noise_slot is -2"]),
    ({"noise_slot": False}, ["noise_slot is False", "integer"]),
    ({"noise_slot": -1}, ["noise_slot is -1", "3 sums"]),
    ({"noise_sum": None}, ["noise_slot is 1", "2 sums"]),
]


@pytest.mark.parametrize(("wrong", "fragments"), MISFITS)
def test_misfit_is_refused_and_named(wrong: dict[str, Any], fragments: list[str]) -> None:
    block = replace(random_block(5), **wrong)
    old = block.copy()
    with pytest.raises(ValueError, match=mentions(*fragments)):
        block()
    assert not block.changed(old)


@pytest.mark.parametrize("count", [0, 1, 4])
def test_numbers_of_sums_but_two_and_three_are_refused(count: int) -> None:
    named = {**vars(random_block(5, noise_slot=-1))}
    vector, *_ = [named.pop(name) for name in SUMS]
    sums = [vector.clone() for _ in range(count)]
    with pytest.raises(ValueError, match=mentions(f"{count} sums", "2 to 3")):
        ops.push_block(sums, named.pop("count"), **named)
