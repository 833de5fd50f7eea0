"""The CUDA kernel for new secant pairs, on the host, against float64."""

from __future__ import annotations

from typing import Any

import cuda_on_host
import lab
import numpy as np
import pytest
from cuda_on_host import cuda

schedule, tiles = cuda_on_host.schedule, cuda_on_host.tiles
SEGMENTS = [[0, 0], [0, 0, 0], [0, 5, 5, 2048, 2050, 5000]]
Arrays = dict[str, np.ndarray]


def inputs(size: int, rows: int, vector: str, storage: str, shift: int = 0) -> Arrays:
    random = np.random.default_rng([size, rows])
    wide = {"float64": np.float64}.get(vector, np.float32)
    names = ("before", "after", "last_point", "last_residual", "residual")
    args = {name: lab.unaligned(random.standard_normal(size).astype(wide), shift) for name in names}
    for name in ("step_rows", "residual_rows"):
        stored = lab.store(random.standard_normal((rows, size)).astype(wide), storage)
        args[name] = lab.unaligned(stored, shift)
    return args


def gram_matrices(args: Arrays, offsets: list[int], spare: int) -> np.ndarray:
    """[S, k, k] with zeros for the spare rows."""
    rows = [lab.wide(args["residual_rows"]), np.zeros((spare, args["residual"].size))]
    stacked = np.concatenate([*rows, args["residual"][None].astype(np.float64)])
    return np.stack([stacked[:, part] @ stacked[:, part].T for part in lab.segments(offsets)])


def check(
    args: Arrays,
    offsets: list[int],
    slot: int,
    rates: list[float] | None = None,
    spare: int = 0,
    **options: Any,
) -> np.ndarray:
    """Runs a push into filled systems and compares all that it defines."""
    segments = lab.segments(offsets)
    rates = [0.5 + 0.25 * (s % 3) for s in range(len(segments))] if rates is None else rates
    systems = gram_matrices(args, offsets, spare)
    old = {name: array.copy() for name, array in args.items()}
    figures = cuda.push(**args, rates=rates, offsets=offsets, slot=slot, systems=systems, **options)

    eps = float(np.finfo(args["before"].dtype).eps)
    wide = {name: lab.wide(array) for name, array in old.items()}
    step = wide["after"] - wide["before"]
    rate = np.repeat(rates, [part.stop - part.start for part in segments])
    rho = np.divide(step, rate, out=np.zeros_like(step), where=rate != 0)
    size = abs(wide["after"]) + abs(wide["before"])
    scale = np.divide(size, rate, out=np.zeros_like(step), where=rate != 0)
    assert (abs(args["residual"] - rho) <= 2 * eps * scale).all()
    for name in ("before", "after", "last_point", "last_residual"):
        assert lab.same_bits(args[name], old[name])

    if slot >= 0:  # from here on with what was stored
        change = lab.wide(args["residual"]) - wide["last_residual"]
        storage = lab.spacing(args["step_rows"].dtype.name)
        row = lab.wide(args["residual_rows"][slot])
        assert (abs(row - change) <= (eps + storage) * abs(change) + 1e-7).all()
        move = wide["before"] - wide["last_point"] + rate * change
        bound = (4 * eps + storage) * (
            abs(move) + abs(wide["before"]) + abs(wide["last_point"]) + rate * abs(change)
        ) + 1e-7
        assert (abs(lab.wide(args["step_rows"][slot]) - move) <= bound).all()
    for name in ("step_rows", "residual_rows"):
        others = [i for i in range(len(args[name])) if i != slot]
        assert lab.same_bits(args[name][others], old[name][others])

    expected = gram_matrices(args, offsets, spare)
    lengths = np.sqrt(expected.diagonal(axis1=1, axis2=2))
    assert (abs(systems - expected) <= 1e-13 * lengths[:, :, None] * lengths[:, None]).all()
    np.testing.assert_equal(systems, systems.transpose(0, 2, 1))
    new = [lab.wide(args[name][slot]) for name in ("step_rows", "residual_rows") if slot >= 0]
    assert figures[0] == abs(old["after"] - old["before"]).max(initial=0)
    squared = float(np.square(lab.wide(args["residual"])).sum())
    assert figures[1] == pytest.approx(squared, rel=1e-13)
    assert figures[2] == pytest.approx(sum(float(r @ r) for r in new), rel=1e-13)
    return systems


@pytest.mark.parametrize(("vector", "storage"), lab.PAIRS)
@pytest.mark.parametrize("size", cuda_on_host.EDGES)
def test_sizes_around_the_limits_of_the_kernel(size: int, vector: str, storage: str) -> None:
    check(inputs(size, 3, vector, storage), [0, size], slot=1)


@pytest.mark.parametrize(("vector", "storage"), lab.PAIRS)
@pytest.mark.parametrize("offsets", SEGMENTS, ids=len)
@pytest.mark.parametrize("slot", [-1, 0])
def test_segments(
    slot: int, offsets: list[int], vector: str, storage: str, schedule: int, tiles: int
) -> None:
    check(inputs(offsets[-1], 2, vector, storage), offsets, slot)


def test_more_segments_than_a_launch_holds() -> None:
    check(inputs(300, 1, "float32", "float32"), list(range(0, 301, 2)), slot=0)


@pytest.mark.parametrize("shift", [1, 8])
@pytest.mark.parametrize(("vector", "storage"), lab.PAIRS)
def test_unaligned_vectors_and_rows(shift: int, vector: str, storage: str, tiles: int) -> None:
    args = inputs(5003, 3, vector, storage, shift)
    check(args, [0, 2100, 5003], slot=2)
    assert all((array.base == 0).sum() >= 64 for array in args.values())


@pytest.mark.parametrize("rows", [1, 8, 9, 20, 129])
@pytest.mark.parametrize("slot", [-1, 0])
def test_any_number_of_rows(slot: int, rows: int, schedule: int) -> None:
    size = 2500 if rows < 100 else 200
    check(inputs(size, rows, "float32", "float32"), [0, 100, size], rows - 1 if slot == 0 else slot)


@pytest.mark.parametrize("spare", [1, 3])
@pytest.mark.parametrize("slot", [-1, 1])
def test_entries_of_rows_that_are_not_given_stay(spare: int, slot: int) -> None:
    check(inputs(700, 3, "float32", "float32"), [0, 700], slot, spare=spare)


@pytest.mark.parametrize(("vector", "storage"), lab.PAIRS)
@pytest.mark.parametrize("slot", [-1, 1])
def test_compensated_sums(slot: int, vector: str, storage: str) -> None:
    check(inputs(5003, 3, vector, storage), [0, 1000, 5003], slot, compensated=True)


def test_compensated_sums_of_rows_that_cancel() -> None:
    args = inputs(4096, 4, "float32", "float32")
    rows = args["residual_rows"]
    rows[2] = rows[1] * np.float32(1 + 2**-12) + np.float32(1e-4) * rows[3]
    args["residual_rows"][:] = rows * np.float32(1e3)
    for compensated in (False, True):
        again = {name: array.copy() for name, array in args.items()}
        check(again, [0, 4096], slot=0, compensated=compensated)


def test_without_systems_the_rows_are_not_multiplied() -> None:
    args = inputs(3000, 3, "float32", "uint16")
    args["residual_rows"][0] = 0x7F80  # infinite: would be seen in a product
    figures = cuda.push(**args, rates=[0.1], offsets=[0, 3000], slot=2)
    assert np.isfinite(figures).all()
    assert figures[2] > 0


def test_at_rate_zero_the_residual_is_zero_but_not_finite_steps_are_seen() -> None:
    args = inputs(3000, 2, "float32", "float32")
    check(args, [0, 1000, 3000], slot=1, rates=[0.0, 0.5])
    args["after"][7] = np.inf
    figures = cuda.push(**args, rates=[0.0, 0.5], offsets=[0, 1000, 3000], slot=1)
    assert not np.isfinite(figures[:2]).any()


@pytest.mark.parametrize(("vector", "storage"), lab.PAIRS)
@pytest.mark.parametrize("compensated", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("slot", [-1, 1])
def test_after_a_step_that_is_not_finite_products_stay_and_the_row_is_zero(
    slot: int, bad: float, compensated: bool, vector: str, storage: str
) -> None:
    args = inputs(3000, 3, vector, storage)
    systems = gram_matrices(args, [0, 1000, 3000], spare=1)
    old, rows = systems.copy(), args["residual_rows"].copy()
    args["after"][1234] = bad
    figures = cuda.push(
        **args, rates=[0.1, 0.2], offsets=[0, 1000, 3000], slot=slot, systems=systems,
        compensated=compensated,
    )  # fmt: skip
    np.testing.assert_equal(figures[0], abs(bad))
    assert not np.isfinite(figures[1])
    if slot >= 0:
        assert not np.isfinite(figures[2])
        old[:, slot], old[:, :, slot], rows[slot] = 0, 0, 0
        assert not args["step_rows"][slot].any()
    np.testing.assert_equal(systems, old)
    assert lab.same_bits(args["residual_rows"], rows)


def test_a_row_that_overflows_its_storage_is_zero_and_the_right_side_is_up_to_date() -> None:
    args = inputs(3000, 3, "float32", "float16")
    args["last_residual"][2000] = 1e6
    systems = gram_matrices(args, [0, 3000], spare=0)
    figures = cuda.push(**args, rates=[0.1], offsets=[0, 3000], slot=1, systems=systems)
    assert np.isfinite(figures[:2]).all()
    assert figures[2] == np.inf
    assert not args["step_rows"][1].any()
    assert not args["residual_rows"][1].any()
    np.testing.assert_allclose(systems, gram_matrices(args, [0, 3000], spare=0), rtol=1e-11)


def test_schedules_do_not_change_a_bit(tiles: int) -> None:
    found = []
    for seed in (0, 1, 2):
        cuda.set_schedule(seed)
        args = inputs(9000, 9, "float32", "uint16")
        found.append(check(args, [0, 4000, 9000], slot=4))
    cuda.set_schedule(0)
    assert all(lab.same_bits(other, found[0]) for other in found[1:])


@pytest.mark.parametrize(("vector", "storage"), lab.PAIRS)
def test_without_a_pair_before_it_a_row_is_zero(vector: str, storage: str) -> None:
    args = inputs(3000, 3, vector, storage)
    systems = gram_matrices(args, [0, 3000], 0)
    once = {name: array.copy() for name, array in args.items()}
    given = {"rates": [0.1], "offsets": [0, 3000], "slot": 1}
    figures = cuda.push(**once, **given)
    assert cuda.push(**args, **given, systems=systems, paired=False) == figures
    for name in ("step_rows", "residual_rows"):
        assert not lab.wide(args[name][1]).any()
    assert not systems[0, 1].any()
    assert not systems[0, :, 1].any()
    assert lab.same_bits(args["residual"], once["residual"])
