"""The R factor of the TSQR kernel against float64."""

from __future__ import annotations

import lab
import numpy as np
import pytest
from small_problems import check_factors, tall

aadl_lab = lab.load()
SIZES = [0, 1, 5, 63, 64, 65, 255, 256, 257, 511, 512, 1025, 20_000]


def check(
    offsets: list[int],
    vector: str = "float32",
    storage: str = "float32",
    count: int = 4,
    append: bool = True,
    shift: int = 0,
    scales: np.ndarray | None = None,
    threads: int = 1,
) -> np.ndarray:
    rows, last = tall(offsets, vector, storage, count, append, shift, scales)
    factors = aadl_lab.tsqr(rows, append=last, offsets=offsets, working=vector, threads=threads)
    k = count + append
    check_factors(factors, rows, last, offsets, vector, 30 * k, 200 * k)
    return factors


@pytest.mark.parametrize(("vector", "storage"), lab.WIDE_PAIRS)
@pytest.mark.parametrize("size", SIZES)
def test_sizes(size: int, vector: str, storage: str) -> None:
    check([0, size], vector, storage)


@pytest.mark.parametrize("offsets", lab.SEGMENTS, ids=len)
def test_segments(offsets: list[int]) -> None:
    check(offsets, threads=2)


@pytest.mark.parametrize("append", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 10, 20, 33])
def test_any_number_of_columns(count: int, append: bool) -> None:
    check([0, 30, 3000], count=count, append=append)
    check([0, 3000], "float64", "float64", count=count, append=append)


def test_only_the_appended_column() -> None:
    check([0, 3000], count=0)


@pytest.mark.parametrize("storage", ["uint16", "float16"])
def test_low_precision_has_no_kernel(storage: str) -> None:
    with pytest.raises(ValueError, match="dtypes"):
        check([0, 5], storage=storage)


@pytest.mark.parametrize("shift", [1, 3])
@pytest.mark.parametrize(("vector", "storage"), lab.WIDE_PAIRS)
def test_unaligned(shift: int, vector: str, storage: str) -> None:
    check([0, 5, 70_001], vector, storage, shift=shift)


@pytest.mark.parametrize("offsets", [[0, 200_000], [0, 5, 70_000, 200_000]], ids=len)
def test_threads_do_not_change_a_bit(offsets: list[int]) -> None:
    first, *others = (check(offsets, count=6, threads=threads) for threads in (1, 2, 3))
    assert all(lab.same_bits(first, other) for other in others)


def test_columns_of_very_different_lengths() -> None:
    check([0, 70_000], scales=np.array([1e-18, 1.0, 1e15, 1e-8]))


def test_zero_columns_stay_zero() -> None:
    factor = check([0, 3000], scales=np.array([1.0, 0.0, 1.0, 0.0]))[0]
    assert not factor[:, [1, 3]].any()
    assert not check([0, 3000], scales=np.zeros(4), append=False).any()


def test_nearly_dependent_columns_keep_what_is_left() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((2, 50_000))
    rows[1] = rows[0] + 1e-7 * rows[1]
    factor = aadl_lab.tsqr(rows, offsets=[0, 50_000], working="float64")[0]
    exact = np.abs(np.linalg.qr(rows.T, mode="r"))
    np.testing.assert_allclose(factor[1, 1], exact[1, 1], rtol=1e-7)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 1500, 69_999])
def test_what_is_not_finite_is_seen(bad: float, place: int) -> None:
    rows = np.random.default_rng(0).standard_normal((3, 70_000)).astype(np.float32)
    rows[1, place] = bad
    factor = aadl_lab.tsqr(rows, offsets=[0, 70_000], working="float32")[0]
    assert not np.isfinite(factor[:, 1]).all()
