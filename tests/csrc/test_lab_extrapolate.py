"""The extrapolation kernel against its definition in float64."""

from __future__ import annotations

import lab
import numpy as np
import pytest

aadl_lab = lab.load()


def check(
    offsets: list[int],
    vector: str = "float32",
    storage: str = "float32",
    count: int = 3,
    beta: float = 1.0,
    into: str = "out",
    shift: int = 0,
    threads: int = 1,
) -> np.ndarray:
    rng = np.random.default_rng(offsets[-1] + count)
    size = offsets[-1]
    point = {name: rng.standard_normal(size).astype(vector) for name in ("before", "after")}
    point["out"] = np.full(size, np.nan, vector)
    point = {name: lab.unaligned(values, shift) for name, values in point.items()}
    values = rng.standard_normal((count, size)).astype(np.float32)
    rows = lab.unaligned(lab.store(values, storage), shift)
    coefficients = rng.standard_normal((len(offsets) - 1, count))

    before, after = (point[name].astype(np.float64) for name in ("before", "after"))
    base = before + beta * (after - before) if beta != 1 else after
    expected = base.copy()
    scale = np.abs(before) + np.abs(beta) * (np.abs(after) + np.abs(before))
    for weights, part in zip(coefficients, lab.segments(offsets), strict=True):
        expected[part] -= weights @ lab.wide(rows[:, part])
        scale[part] += np.abs(weights) @ np.abs(lab.wide(rows[:, part]))
    then = {name: values.copy() for name, values in point.items()}
    peak = aadl_lab.extrapolate(
        before=point["before"],
        after=point["after"],
        beta=beta,
        rows=rows,
        coefficients=coefficients,
        offsets=offsets,
        out=point[into],
        threads=threads,
    )
    assert peak == np.abs(point[into]).max(initial=0)
    error = np.abs(point[into] - expected)
    assert (error <= (count + 3) * np.finfo(vector).eps * scale).all()
    assert all(lab.same_bits(point[name], then[name]) for name in point if name != into)
    return point[into]


@pytest.mark.parametrize(("vector", "storage"), lab.PAIRS)
@pytest.mark.parametrize("size", lab.EDGES)
def test_sizes_around_the_limits_of_the_kernel(size: int, vector: str, storage: str) -> None:
    check([0, size], vector, storage)
    check([0, size], vector, storage, beta=0.5)


@pytest.mark.parametrize("offsets", lab.SEGMENTS, ids=len)
@pytest.mark.parametrize("into", ["before", "after", "out"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 1.7])
def test_segments_and_places(offsets: list[int], into: str, beta: float) -> None:
    check(offsets, beta=beta, into=into, threads=2)


@pytest.mark.parametrize("count", range(11))
def test_any_number_of_rows(count: int) -> None:
    check([0, 100, 1500], count=count, beta=0.7)


@pytest.mark.parametrize(("vector", "storage"), lab.PAIRS)
@pytest.mark.parametrize("shift", [0, 1, 3, 4])
@pytest.mark.parametrize("into", ["before", "out"])
def test_large_and_unaligned(shift: int, into: str, vector: str, storage: str) -> None:
    check([0, 1001, 2_500_021], vector, storage, beta=0.5, into=into, shift=shift, threads=2)


@pytest.mark.parametrize("offsets", [[0, 200_000], [0, 5, 70_000, 2_000_000]], ids=len)
def test_threads_do_not_change_a_bit(offsets: list[int]) -> None:
    first, *others = (check(offsets, count=5, threads=threads) for threads in (1, 2, 3))
    assert all(lab.same_bits(first, other) for other in others)


def extrapolate(
    after: np.ndarray, rows: np.ndarray, weights: list[float], **point
) -> tuple[np.ndarray, float]:
    out = np.empty_like(after)
    peak = aadl_lab.extrapolate(
        before=point.get("before", np.full_like(after, np.nan)),
        after=after,
        beta=point.get("beta", 1.0),
        rows=rows,
        coefficients=np.array([weights]),
        offsets=[0, len(after)],
        out=out,
        threads=2,
    )
    return out, peak


def test_rows_of_zero_coefficients_are_not_read() -> None:
    after = np.linspace(-1, 1, 1000, dtype=np.float32)
    rows = np.full((6, 1000), np.nan, np.float32)
    rows[4] = 1
    got, peak = extrapolate(after, rows, [0.0] * 6)
    assert lab.same_bits(got, after)
    assert peak == 1
    got, peak = extrapolate(after, rows, [0, 0, 0, -0.0, 0.5, 0])
    assert lab.same_bits(got, after - np.float32(0.5))
    assert peak == 1.5


def test_unit_beta_does_not_read_the_point_before() -> None:
    after = np.linspace(-1, 1, 1000, dtype=np.float32)
    rows = np.zeros((1, 1000), np.float32)
    assert lab.same_bits(extrapolate(after, rows, [1.0])[0], after)


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 17, 32_768, 69_999])
@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_what_is_not_finite_passes_through(beta: float, place: int, bad: float) -> None:
    after, rows = np.zeros(70_000, np.float32), np.ones((2, 70_000), np.float32)
    rows[1, place] = bad
    settings = {"beta": beta, "before": after}
    got, peak = extrapolate(after, rows, [1.0, 1.0], **settings)
    assert list(np.flatnonzero(~np.isfinite(got))) == [place]
    np.testing.assert_equal(peak, abs(bad))
    got, peak = extrapolate(after, rows, [np.nan, 1.0], **settings)
    assert np.isnan(got).all()
    assert np.isnan(peak)


def test_nan_outweighs_infinity() -> None:
    for order in ([np.nan, np.inf], [-np.inf, np.nan]):
        after = np.zeros(70_000, np.float32)
        after[[3, 60_000]] = order
        assert np.isnan(extrapolate(after, np.ones((1, 70_000), np.float32), [1.0])[1])
