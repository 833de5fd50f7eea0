"""How CUDA kernels cut a long dimension up."""

from __future__ import annotations

import lab
import pytest

folds_of_tile = lab.load().folds_of_tile
LEAST, MOST, END = 4, 64, 8  # of tiles.h: folds of a tile, and what its end takes


def time(folds: int, slots: int, each: int) -> int:
    """Of tiles of so many folds, in folds; a wave takes as long with one block as with all."""
    return -(-folds // (each * slots)) * (each + END)


@pytest.mark.parametrize("slots", [1, 528, 1056, 1584, 2112, 3168])
@pytest.mark.parametrize("folds", [1, 500, 3000, 9765, 20_000, 100_000, 1_000_000])
def test_no_other_tile_ends_sooner(folds: int, slots: int) -> None:
    each = folds_of_tile(folds, slots)
    assert LEAST <= each <= MOST
    assert time(folds, slots, each) == min(time(folds, slots, x) for x in range(LEAST, MOST + 1))


@pytest.mark.parametrize("slots", [528, 1056, 1584, 2112])
def test_long_matrices_fill_the_device(slots: int) -> None:
    for folds in range(50_000, 100_000, 777):
        waves = folds / (folds_of_tile(folds, slots) * slots)
        assert waves / -(-waves // 1) > 0.9
