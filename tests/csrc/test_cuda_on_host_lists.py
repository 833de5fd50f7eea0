"""CUDA kernels over lists of pieces, on the host: copies and squared norms."""

from __future__ import annotations

import cuda_on_host
import lab
import numpy as np
import pytest
from cuda_on_host import cuda

schedule = cuda_on_host.schedule
STORAGES = ["float32", "float64", "uint16", "float16"]
COPIES = [
    ("float32", "float32"),
    ("float64", "float64"),
    ("uint16", "uint16"),
    ("float16", "float16"),
    ("float32", "float64"),
    ("float64", "float32"),
    ("float32", "uint16"),
    ("uint16", "float32"),
    ("float32", "float16"),
    ("float16", "float32"),
]
SIZES = [0, 1, 3, 8191, 8192, 8193, 20_000]  # a tile has 8192 entries


def values(size: int, dtype: str, seed: int = 0, shift: int = 0) -> np.ndarray:
    drawn = np.random.default_rng([size, seed]).standard_normal(size)
    wide = drawn if dtype == "float64" else drawn.astype(np.float32)
    return lab.unaligned(lab.store(wide, dtype), shift)


def untouched(array: np.ndarray) -> int:
    """Entries of the room around an unaligned array that are not zero any more."""
    return 0 if array.base is None else int((array.base != 0).sum() - (array != 0).sum())


@pytest.mark.parametrize(("source", "target"), COPIES)
@pytest.mark.parametrize("shift", [0, 1])
def test_pieces_of_any_length_are_copied_and_rounded(source: str, target: str, shift: int) -> None:
    pieces = [values(size, source, shift=shift) for size in SIZES]
    copies = [values(size, target, seed=1, shift=shift) for size in SIZES]
    cuda.copy(pieces, copies)
    for piece, copy in zip(pieces, copies, strict=True):
        expected = piece if source == target else lab.wide(piece)
        assert lab.same_bits(copy, lab.store(expected, target) if source != target else piece)
        assert untouched(copy) == 0


@pytest.mark.parametrize(("source", "target"), COPIES)
@pytest.mark.parametrize("when", [False, True])
def test_a_flag_on_the_device_decides_about_the_copy(when: bool, source: str, target: str) -> None:
    pieces = [values(size, source) for size in SIZES]
    copies, expected = ([values(size, target, seed=1) for size in SIZES] for _ in range(2))
    if when:
        cuda.copy(pieces, expected)
    cuda.copy(pieces, copies, when=when)
    assert all(map(lab.same_bits, copies, expected))


@pytest.mark.parametrize("dtype", STORAGES)
def test_not_a_number_and_infinities_are_copied(dtype: str) -> None:
    special = lab.store(np.array([np.nan, np.inf, -np.inf, -0.0, 0.0] * 7, np.float32), dtype)
    for target in [b for a, b in COPIES if a == dtype]:
        copy = values(35, target)
        cuda.copy([special], [copy])
        np.testing.assert_equal(lab.wide(copy), lab.wide(special))


def test_more_pieces_than_a_launch_holds() -> None:
    pieces = [values(size % 5, "float32", seed=size) for size in range(500)]
    copies = [np.zeros_like(piece) for piece in pieces]
    cuda.copy(pieces, copies)
    assert all(map(lab.same_bits, pieces, copies))
    total = sum(float(piece.astype(np.float64) @ piece) for piece in pieces)
    assert cuda.squared_norm(pieces) == pytest.approx(total, rel=1e-14)


def test_an_empty_list_is_legal() -> None:
    cuda.copy([], [])
    assert cuda.squared_norm([]) == 0
    assert cuda.squared_norm([np.zeros(0)]) == 0


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("dtype", STORAGES)
@pytest.mark.parametrize("compensated", [False, True])
def test_squared_norm_is_as_accurate_as_float64(
    compensated: bool, dtype: str, shift: int, schedule: int
) -> None:
    pieces = [values(size, dtype, shift=shift) for size in SIZES]
    wide = [lab.wide(piece).astype(np.longdouble) for piece in pieces]
    total = float(sum(piece @ piece for piece in wide))
    assert cuda.squared_norm(pieces, compensated=compensated) == pytest.approx(total, rel=1e-13)


@pytest.mark.parametrize("compensated", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_squared_norm_that_is_not_finite(bad: float, compensated: bool) -> None:
    piece = values(9000, "float32")
    piece[8500] = bad
    np.testing.assert_equal(cuda.squared_norm([piece], compensated=compensated), bad * bad)


def test_a_schedule_does_not_change_a_bit() -> None:
    pieces = [values(size, "float32") for size in SIZES]
    found = []
    for seed in (0, 1, 2):
        cuda.set_schedule(seed)
        found.append(cuda.squared_norm(pieces))
    cuda.set_schedule(0)
    assert len(set(found)) == 1
