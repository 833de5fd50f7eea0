"""The kernels over lists of pieces: copies, bit for bit, and squared norms."""

from __future__ import annotations

import math
from itertools import product

import lab
import numpy as np
import pytest

aadl_lab = lab.load()
DTYPES = ["float32", "float64", "uint16", "float16"]
COPIES = [(x, y) for x, y in product(DTYPES, DTYPES) if x == y or "float32" in (x, y)]
REFUSED = [pair for pair in product(DTYPES, DTYPES) if pair not in COPIES]
PIECES = [5, 70_000, 0, 1, 33_000, 64, 200_000]
# Both sides together exceed 32 MiB, from where stores go past the caches.
HUGE = {"float32": 4_300_021, "float64": 2_200_021, "uint16": 8_500_021, "float16": 8_500_021}
SPECIAL = [math.inf, -math.inf, 0.0, -0.0, 1e-45, -6e-8, 65519.0, 65520.0, -1e5, 3.4e38]


def numbers(size: int, dtype: str, shift: int = 0) -> np.ndarray:
    """Normal entries with more digits than narrower types hold, some of them special."""
    values = np.random.default_rng(size).standard_normal(size)
    count = min(len(SPECIAL), size // 2)
    values[: 2 * count : 2] = SPECIAL[:count]
    return lab.unaligned(converted(values, dtype), shift)


def converted(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "float64":
        return lab.wide(values)
    with np.errstate(over="ignore", under="ignore"):
        return lab.store(lab.wide(values).astype(np.float32), dtype)


def junk(size: int, dtype: str, shift: int = 0) -> np.ndarray:
    return lab.unaligned(np.full(size, 7, dtype), shift)


def check_copy(
    sizes: list[int], source: str, target: str, shift: int = 0, threads: int = 1
) -> None:
    pieces = [numbers(size, source, shift) for size in sizes]
    # Shifted against each other, so that not both sides of a piece lie alike.
    places = [junk(size, target, shift and shift + 1) for size in sizes]
    then = [piece.copy() for piece in pieces]
    aadl_lab.copy(pieces, places, threads=threads)
    for piece, place, old in zip(pieces, places, then, strict=True):
        assert lab.same_bits(place, converted(old, target) if source != target else old)
        assert lab.same_bits(piece, old)
        if shift:
            room = place.base
            assert (room != 0).sum() == (place != 0).sum()  # nothing is written beside it


@pytest.mark.parametrize(("source", "target"), COPIES)
@pytest.mark.parametrize("size", lab.EDGES)
def test_sizes_around_the_limits_of_the_kernel(size: int, source: str, target: str) -> None:
    check_copy([size], source, target)


@pytest.mark.parametrize(("source", "target"), COPIES)
@pytest.mark.parametrize("shift", [0, 1, 3])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_pieces_of_any_length_and_place(threads: int, shift: int, source: str, target: str) -> None:
    check_copy(PIECES, source, target, shift, threads)


@pytest.mark.parametrize(("source", "target"), COPIES)
@pytest.mark.parametrize("shift", [0, 1, 3])
def test_pieces_that_go_past_the_caches(shift: int, source: str, target: str) -> None:
    check_copy([3, 40_000, HUGE[source], 70], source, target, shift, threads=2)


def test_pieces_of_several_dtypes_are_copied_at_once() -> None:
    pieces = [numbers(size, dtype) for size, dtype in zip(PIECES, 2 * DTYPES, strict=False)]
    places = [junk(len(piece), "float32") for piece in pieces]
    aadl_lab.copy(pieces, places, threads=2)
    for piece, place in zip(pieces, places, strict=True):
        assert lab.same_bits(place, converted(piece, "float32"))


def test_single_arrays_are_copied_as_lists_of_one() -> None:
    values, place = numbers(1000, "float16"), junk(1000, "float32")
    aadl_lab.copy(values, place)
    assert lab.same_bits(place, values.astype(np.float32))


def test_no_pieces_are_no_work() -> None:
    aadl_lab.copy([], [])
    assert aadl_lab.squared_norm([]) == 0


@pytest.mark.parametrize(("source", "target"), COPIES)
def test_nan_stays_nan(source: str, target: str) -> None:
    values = numbers(300, source)
    values[[0, 17, 299]] = converted(np.full(3, np.nan), source)
    place = junk(300, target)
    aadl_lab.copy(values, place)
    assert list(np.flatnonzero(np.isnan(lab.wide(place)))) == [0, 17, 299]


@pytest.mark.parametrize(("source", "target"), REFUSED)
def test_pairs_that_would_round_twice_are_refused(source: str, target: str) -> None:
    place = junk(5, target)
    with pytest.raises(ValueError, match="dtypes"):
        aadl_lab.copy(numbers(5, source), place)
    assert lab.same_bits(place, junk(5, target))


@pytest.mark.parametrize(
    ("pieces", "places"),
    [
        ([junk(5, "float32")], [junk(6, "float32")]),
        ([junk(5, "float32")], []),
        ([junk(5, "int32")], [junk(5, "int32")]),
        ([junk(6, "float32")[::2]], [junk(3, "float32")]),
        ([junk(6, "float32").reshape(2, 3)], [junk(6, "float32")]),
    ],
    ids=["lengths", "counts", "dtype", "strides", "dimensions"],
)
def test_misfits_are_refused(pieces: list[np.ndarray], places: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="array"):
        aadl_lab.copy(pieces, places)


def plain(size: int, dtype: str, shift: int = 0) -> np.ndarray:
    values = np.random.default_rng(size + 1).standard_normal(size)
    return lab.unaligned(converted(values, dtype), shift)


def check_norm(arrays: list[np.ndarray], threads: int = 1) -> float:
    then = [array.copy() for array in arrays]
    got = aadl_lab.squared_norm(arrays, threads=threads)
    exact = math.fsum(float((lab.wide(array).astype(np.longdouble) ** 2).sum()) for array in then)
    assert got == pytest.approx(exact, rel=1e-12, abs=0)
    assert all(map(lab.same_bits, arrays, then))
    return got


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", lab.EDGES)
def test_squares_of_any_number_of_entries(size: int, dtype: str) -> None:
    check_norm([plain(size, dtype)])


@pytest.mark.parametrize("shift", [0, 1, 3])
def test_squares_of_pieces_of_several_dtypes(shift: int) -> None:
    dtypes = zip(PIECES, 2 * DTYPES, strict=False)
    check_norm([plain(size, dtype, shift) for size, dtype in dtypes], threads=2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_do_not_change_a_bit_of_a_norm(dtype: str) -> None:
    arrays = [plain(size, dtype) for size in [*PIECES, 1_000_003]]
    first, *others = (check_norm(arrays, threads) for threads in (1, 2, 3, 8))
    assert all(lab.same_bits(first, other) for other in others)


def test_squares_beyond_the_range_of_the_dtype_are_summed() -> None:
    small, large = np.full(1000, 1e-30, np.float32), np.full(1000, 1e30, np.float32)
    check_norm([small])
    check_norm([large])
    check_norm([np.full(1000, 65504, np.float16)])
    assert aadl_lab.squared_norm([np.array([1e200])]) == math.inf


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", [0, 32_768, 69_999])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_seen(bad: float, place: int, dtype: str) -> None:
    values = plain(70_000, dtype)
    values[place] = converted(np.array([bad]), dtype)[0]
    got = aadl_lab.squared_norm([plain(100, "float32"), values], threads=2)
    np.testing.assert_equal(got, bad * bad)
