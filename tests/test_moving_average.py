"""The window of the last iterates, and when their mean takes the place of the newest."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from training import JUMPY, Training, adam, same

from aadl_ext.averaging import MovingAverage


def points(*values: float) -> list[Tensor]:
    return [torch.tensor([value, 1.0]) for value in values]


def window_of(iterates: list[Tensor], threshold: float = 0.1) -> MovingAverage:
    window = MovingAverage(len(iterates), threshold)
    for point in iterates:
        window.push(point)
    return window


def test_the_last_iterates_are_held_as_they_are_newest_last() -> None:
    window, given = MovingAverage(3, 0.1), points(0, 1, 2, 3, 4)
    for count, point in enumerate(given, start=1):
        window.push(point)
        assert list(map(id, window.iterates)) == list(map(id, given[max(count - 3, 0) : count]))
        assert window.full == (count >= 3)
    window.clear()
    assert window.iterates == []
    assert not window.full


def test_an_iterate_takes_the_place_of_the_newest() -> None:
    window, (first, second, other) = MovingAverage(3, 0.1), points(1, 2, 3)
    window.push(first)
    window.push(second)
    window.push(other, instead=True)
    assert list(map(id, window.iterates)) == [id(first), id(other)]


def test_a_window_of_no_length_stays_empty_and_is_never_full() -> None:
    window = MovingAverage(0, 0.1)
    window.push(torch.ones(2))
    window.push(torch.ones(2), instead=True)
    assert window.iterates == []
    assert not window.full


# The standard deviation of 1, -1, 1, -1 is 1.
@pytest.mark.parametrize(
    ("threshold", "max_step", "smooths"),
    [(0.1, 9.9, True), (0.1, 10.1, False), (0.5, 1.9, True), (0.5, 2.1, False), (0.5, 2, False)],
)
def test_oscillating_iterates_are_smoothed_against_the_step(
    threshold: float, max_step: float, smooths: bool
) -> None:
    iterates, mean = points(1, -1, 1, -1), torch.full((2,), 7.0)
    copies = [point.clone() for point in iterates]
    window = window_of(iterates, threshold)
    assert window.smooth(max_step, mean) == smooths
    assert mean.tolist() == [0, 1]
    newest = mean if smooths else iterates[-1]
    assert list(map(id, window.iterates)) == [*map(id, iterates[:-1]), id(newest)]
    assert same(iterates, copies)


@pytest.mark.parametrize(
    ("entry", "max_step"), [(math.nan, 1e-3), (math.inf, 1e-3), (-1.0, math.nan), (-1.0, math.inf)]
)
def test_numbers_that_are_not_finite_do_not_switch_it(entry: float, max_step: float) -> None:
    iterates = points(1, -1, entry)
    window = window_of(iterates)
    assert window.smooth(max_step, torch.empty(2)) is False
    assert window.iterates[-1] is iterates[-1]


@pytest.mark.parametrize("safeguard", ["residual", "loss", None])
@pytest.mark.parametrize("window", [2, 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_in_training_the_window_holds_where_the_parameters_have_been(
    dtype: torch.dtype, window: int, safeguard: str | None
) -> None:
    options: dict[str, Any] = {**JUMPY, "average": True, "average_window": window}
    training = Training(adam, {**options, "safeguard": safeguard}, dtype)
    expected = [training.point()]
    for _ in range(20):
        rejected = training.accelerator.stats.rejected["residual"]
        training.optimizer.step(training.closure)
        if training.accelerator.stats.rejected["residual"] > rejected:
            expected.pop()  # what was left again
        expected = [*expected, training.point()][-window:]
        found = [x[: len(expected[0])].to(dtype) for x in training.accelerator.window.iterates]
        assert same(found, expected)
    stats = training.accelerator.stats
    assert stats.jumps > 3
    assert stats.averaged > 0
