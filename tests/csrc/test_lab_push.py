"""The push kernel against its definition in NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lab
import numpy as np
import pytest

aadl_lab = lab.load()


@dataclass
class Problem:
    """The arguments of one call, whose outputs start as rubbish."""

    offsets: list[int]
    rates: list[float]
    before: np.ndarray
    after: np.ndarray
    last_point: np.ndarray
    last_residual: np.ndarray
    residual: np.ndarray
    step_rows: np.ndarray
    residual_rows: np.ndarray
    slot: int

    def __call__(self, products: bool = True, threads: int = 1) -> dict[str, Any]:
        """Figures, and what is new in the systems, which start as NaN."""
        segments, rows = len(self.rates), len(self.residual_rows)
        systems = np.full((segments, rows + 1, rows + 1), np.nan) if products else None
        max_step, squared_norm, row_norm = aadl_lab.push(
            **vars(self), systems=systems, threads=threads
        )
        got = {"max_step": max_step, "squared_norm": squared_norm, "row_norm": row_norm}
        if systems is not None:
            assert lab.same_bits(systems, systems.transpose(0, 2, 1))
            got |= {"right_side": systems[:, :rows, rows], "norms": systems[:, rows, rows]}
            got["gram_row"] = systems[:, :rows, self.slot]
            old = np.delete(systems, [self.slot, rows] if self.slot >= 0 else [rows], axis=1)
            old = np.delete(old, [self.slot, rows] if self.slot >= 0 else [rows], axis=2)
            assert np.isnan(old).all()
        return got

    def copy(self) -> Problem:
        copies = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in vars(self).items()}
        return Problem(**copies)

    def outputs(self) -> list[np.ndarray]:
        return [self.residual, self.step_rows, self.residual_rows]


def problem(
    offsets: list[int],
    vector: str = "float32",
    storage: str = "float32",
    rows: int = 3,
    slot: int = 1,
    shift: int = 0,
    rates: list[float] | None = None,
) -> Problem:
    rng = np.random.default_rng(len(offsets) + offsets[-1] + rows)
    size = offsets[-1]

    def normal(scale: float) -> np.ndarray:
        return lab.unaligned((scale * rng.standard_normal(size)).astype(vector), shift)

    def ring() -> np.ndarray:
        values = rng.standard_normal((rows, size)).astype(np.float32)
        return lab.unaligned(lab.store(values, storage), shift)

    before = normal(1.0)
    after = lab.unaligned(before + normal(0.01), shift)
    if rates is None:
        rates = [(0.1, 0.25, 3e-3)[s % 3] for s in range(len(offsets) - 1)]
    junk = lab.unaligned(np.full(size, np.nan, vector), shift)
    return Problem(
        offsets, rates, before, after, normal(1.0), normal(0.1), junk, ring(), ring(), slot
    )


def check(args: Problem, products: bool = True, threads: int = 1) -> None:
    """Call and compare with the definition."""
    storage = args.residual_rows.dtype.name
    vector = args.before.dtype.type
    then = args.copy()
    got = args(products, threads)
    step = then.after - then.before
    assert got["max_step"] == np.abs(step).max(initial=0)
    new = slice(args.slot, args.slot + 1) if args.slot >= 0 else slice(0)
    norm = sum((lab.wide(ring[new]) ** 2).sum() for ring in (args.step_rows, args.residual_rows))
    np.testing.assert_allclose(got["row_norm"], norm, rtol=1e-13)

    total = 0.0
    for s, part in enumerate(lab.segments(args.offsets)):
        rate = vector(args.rates[s])
        rho = step[part] / rate if rate else np.zeros_like(step[part])
        np.testing.assert_array_equal(args.residual[part], rho)
        rho = rho.astype(np.float64)
        total += rho @ rho
        if args.slot >= 0:
            difference = args.residual[part] - then.last_residual[part]
            stored = args.residual_rows[args.slot, part]
            np.testing.assert_array_equal(
                lab.wide(stored), lab.wide(lab.store(difference, storage))
            )
            way = then.before[part].astype(np.float64) - then.last_point[part]
            bend = float(rate) * difference.astype(np.float64)
            error = np.abs(lab.wide(args.step_rows[args.slot, part]) - (way + bend))
            eps = max(lab.spacing(storage), float(np.finfo(vector).eps))
            tiny = 2.0**-24 if storage == "float16" else 0.0
            assert (error <= 1.01 * eps * (np.abs(way) + np.abs(bend)) + tiny).all()
        if not products:
            continue
        np.testing.assert_allclose(got["norms"][s], rho @ rho, rtol=1e-13)
        rows = lab.wide(args.residual_rows[:, part])
        size = np.abs(rows) @ np.abs(rho)
        np.testing.assert_array_less(
            np.abs(got["right_side"][s] - rows @ rho), 1e-14 * size + 1e-300
        )
        if args.slot >= 0:
            size = np.abs(rows) @ np.abs(rows[args.slot])
            error = np.abs(got["gram_row"][s] - rows @ rows[args.slot])
            np.testing.assert_array_less(error, 1e-14 * size + 1e-300)
    np.testing.assert_allclose(got["squared_norm"], total, rtol=1e-13)
    others = [k for k in range(len(args.step_rows)) if k != args.slot]
    assert lab.same_bits(args.step_rows[others], then.step_rows[others])
    assert lab.same_bits(args.residual_rows[others], then.residual_rows[others])
    for name in ("before", "after", "last_point", "last_residual"):
        assert lab.same_bits(getattr(args, name), getattr(then, name)), name


@pytest.mark.parametrize(("vector", "storage"), lab.PAIRS)
@pytest.mark.parametrize("size", lab.EDGES)
def test_sizes_around_the_limits_of_the_kernel(size: int, vector: str, storage: str) -> None:
    check(problem([0, size], vector, storage))


@pytest.mark.parametrize("offsets", lab.SEGMENTS, ids=len)
@pytest.mark.parametrize("slot", [-1, 2])
def test_segments(offsets: list[int], slot: int) -> None:
    check(problem(offsets, slot=slot), threads=2)


@pytest.mark.parametrize(("vector", "storage"), lab.PAIRS)
@pytest.mark.parametrize("rows", range(1, 11))
def test_any_number_of_rows(rows: int, vector: str, storage: str) -> None:
    for slot in (-1, 0, rows - 1):
        check(problem([0, 100, 1500], vector, storage, rows=rows, slot=slot))


@pytest.mark.parametrize("products", [False, True])
def test_no_rows(products: bool) -> None:
    args = problem([0, 100, 1500], rows=0, slot=-1)
    check(args, products)
    figures = aadl_lab.push(**{**vars(args), "last_point": None, "last_residual": None})
    assert np.isfinite(figures).all()


def test_without_products() -> None:
    check(problem([0, 100, 1500]), products=False)
    check(problem([0, 100, 1500], slot=-1), products=False)


@pytest.mark.parametrize(("vector", "storage"), lab.PAIRS)
@pytest.mark.parametrize("shift", [0, 1, 3, 4])
def test_large_and_unaligned(shift: int, vector: str, storage: str) -> None:
    size = 1_300_021 if storage in ("float32", "float64") else 2_000_021
    check(problem([0, 1001, 1001, size], vector, storage, rows=2, shift=shift), threads=2)


@pytest.mark.parametrize(
    "offsets", [[0, 200_000], [0, 5, 70_000, 200_000], [0, 1_500_000]], ids=len
)
def test_threads_do_not_change_a_bit(offsets: list[int]) -> None:
    first = problem(offsets, rows=4)
    expected = first.copy()
    want = expected(threads=1)
    for threads in (2, 3, 8):
        args = first.copy()
        got = args(threads=threads)
        assert all(lab.same_bits(got[name], want[name]) for name in want)
        assert all(map(lab.same_bits, args.outputs(), expected.outputs()))


def test_zero_rate_gives_a_zero_residual() -> None:
    check(problem([0, 100, 1500], rates=[0.0, 0.1]))
    args = problem([0, 100], rates=[0.0])
    assert args()["squared_norm"] == 0
    assert not args.residual.any()


@pytest.mark.parametrize(("vector", "storage"), lab.PAIRS)
@pytest.mark.parametrize("place", [0, 70, 1030, 1499])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_seen(bad: float, place: int, vector: str, storage: str) -> None:
    args = problem([0, 1000, 1500], vector, storage)
    args.after[place] = bad
    got = args()
    assert not np.isfinite(got["squared_norm"])
    assert not args.step_rows[1].any()  # the new row is dropped
    assert not args.residual_rows[1].any()
    assert not got["gram_row"].any()
    assert np.isnan(got["norms"]).all()  # the rest stays as it was
    assert np.isnan(got["max_step"]) if np.isnan(bad) else got["max_step"] == np.inf


def test_nan_beats_infinity_in_the_largest_step() -> None:
    for order in ([np.nan, np.inf], [np.inf, np.nan]):
        args = problem([0, 70_000])
        args.after[[3, 60_000]] = order
        assert np.isnan(args(threads=2)["max_step"])


def test_infinite_parameters_that_do_not_move_are_seen() -> None:
    args = problem([0, 10])
    args.before[4] = args.after[4] = np.inf
    got = args()
    assert np.isnan(got["max_step"])
    assert np.isnan(got["squared_norm"])


def test_residual_rows_round_once() -> None:
    """Products are those of the row as stored."""
    args = problem([0, 4096], storage="uint16")
    got = args()
    row = lab.wide(args.residual_rows[1])
    np.testing.assert_allclose(got["gram_row"][0, 1], row @ row, rtol=1e-13)
    step = lab.wide(args.step_rows[1])
    np.testing.assert_allclose(got["row_norm"], row @ row + step @ step, rtol=1e-13)


# The step is finite; its difference to the last one is not, in the storage type.
OVERFLOWS = [
    pytest.param("float32", "float16", 7e4, id="float16"),
    pytest.param("float32", "uint16", 3.4e38, id="bfloat16"),
    pytest.param("float32", "float32", 6e38, id="float32"),
    pytest.param("float64", "float32", 4e38, id="float64-float32"),
]


@pytest.mark.parametrize(("vector", "storage", "value"), OVERFLOWS)
@pytest.mark.parametrize("place", [0, 70, 1030, 1499])
@pytest.mark.parametrize("products", [False, True])
def test_a_row_that_overflows_its_storage_is_seen_in_its_norm(
    products: bool, place: int, vector: str, storage: str, value: float
) -> None:
    args = problem([0, 1000, 1500], vector, storage, rates=[1.0, 1.0])
    args.before[place], args.after[place], args.last_residual[place] = 0, value / 2, -value / 2
    got = args(products)
    assert got["row_norm"] == np.inf
    assert np.isfinite(got["squared_norm"])
    assert not args.step_rows[1].any()
    assert not args.residual_rows[1].any()
    assert not products or (not got["right_side"][:, 1].any() and (got["norms"] > 0).all())
    assert got["max_step"] == args.after[place]


@pytest.mark.parametrize("place", [0, 70, 1499])
def test_a_way_that_overflows_its_storage_is_seen_too(place: int) -> None:
    args = problem([0, 1500], "float32", "float16", rates=[1.0])
    args.before[place], args.last_point[place] = 1e5, 0
    args.after[place] = 1e5 + 1
    assert args()["row_norm"] == np.inf
