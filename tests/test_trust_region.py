"""How long blocks are: powers of two of their usual length, a block late."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from aadl_ext.trust_region import BlockLength, Delayed


def number(x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


@pytest.mark.parametrize(
    ("usual", "expected"),
    [
        (1, [1, 1, 1, 2, 4]),
        (2, [2, 2, 2, 4, 8]),
        (3, [2, 2, 3, 6, 12]),
        (10, [2, 4, 10, 20, 40]),
        (16, [4, 8, 16, 32, 64]),
    ],
)
def test_short_blocks_are_even_and_no_longer_than_usual(usual: int, expected: list[int]) -> None:
    assert [BlockLength(usual, True, level).samples for level in range(-2, 3)] == expected


def test_a_number_is_told_the_next_time_that_one_asks() -> None:
    delayed, told = Delayed(), []
    for x in (1.0, 2.0, 3.0):
        sent = number(x)
        told.append(delayed.exchange(sent))
        sent.fill_(9.0)  # it was sent, so it cannot be changed
    assert told == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("change", [1, -1])
def test_the_length_follows_a_block_late_between_a_quarter_and_four_times(change: int) -> None:
    length, levels = BlockLength(8, True), []
    for _ in range(5):
        length.follow(number(change))
        levels.append(length.level * change)
    assert levels == [0, 1, 2, 2, 2]


def test_a_length_that_is_not_adaptive_stays() -> None:
    length = BlockLength(8, False)
    for _ in range(3):
        length.follow(number(1))
    assert length.samples == 8
