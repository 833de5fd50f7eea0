"""The window of the last iterates, and when their mean takes the place of the newest."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from training import JUMPY, Training, adam, as_if_exact, same

from aadl_ext import Averaging
from aadl_ext.moving_average import MovingAverage
from aadl_ext.ops import Verdicts

CPU = torch.device("cpu")


def points(*values: float) -> list[Tensor]:
    return [torch.tensor([value, 1.0]) for value in values]


def window_of(iterates: list[Tensor], threshold: float = 0.1) -> MovingAverage:
    window = MovingAverage(Averaging(len(iterates), threshold), Verdicts.on(CPU), list(iterates))
    window.pushed = len(iterates)
    window.verdicts.now.known.fill_(len(iterates))
    return window


def test_the_last_iterates_are_held_as_they_are_newest_last() -> None:
    held, given = points(7, 8, 9), points(1, 2, 3, 4)
    window = window_of(held)
    for count, point in enumerate(given, start=1):
        left = window.push(point, maybe_rejected=False)
        last = [*held, *given[:count]][-4:]
        assert list(map(id, [left, *window.iterates])) == list(map(id, last))
    assert same([*held, *given], points(7, 8, 9, 1, 2, 3, 4))


@pytest.mark.parametrize("rejected", [True, False])
def test_an_iterate_takes_the_place_of_a_newest_that_is_rejected(rejected: bool) -> None:
    window, (point,) = window_of(points(1, 2, 3)), points(4)
    window.verdicts.when.rejected.fill_(rejected)
    window.push(point, maybe_rejected=True)
    assert same(window.iterates, points(1, 2, 4) if rejected else points(2, 3, 4))
    assert window.newest is point


def test_it_begins_with_the_first_point_and_anew_with_one_that_was_moved() -> None:
    window, (first, other) = window_of(points(0, 0, 0)), points(1, 2)
    window.clear()
    assert (window.pushed, window.verdicts.now.known.item()) == (0, 0)
    window.start_at(first, None)
    assert (window.pushed, window.verdicts.now.known.item()) == (1, 1)
    assert same(window.newest, first)
    window.start_at(other, torch.tensor(False))
    assert same(window.newest, first)
    window.start_at(other, torch.tensor(True))
    assert same(window.newest, other)


# The standard deviation of 1, -1, 1, -1 is 1.
@pytest.mark.parametrize(
    ("threshold", "max_step", "smooths"),
    [(0.1, 9.9, True), (0.1, 10.1, False), (0.5, 1.9, True), (0.5, 2.1, False), (0.5, 2, False)],
)
def test_oscillating_iterates_are_smoothed_against_the_step(
    threshold: float, max_step: float, smooths: bool
) -> None:
    iterates, spare = points(1, -1, 1, -1), torch.full((2,), 7.0)
    window = window_of(iterates, threshold)
    window.verdicts.now.max_step.fill_(max_step)
    left = window.smooth(spare)
    assert window.newest.tolist() == ([0, 1] if smooths else [-1, 1])
    assert same(window.iterates[:-1], points(1, -1, 1))
    assert {id(left), id(window.newest)} == {id(spare), id(iterates[-1])}
    assert bool(window.verdicts.when.write) == smooths
    assert window.verdicts.number.averaged == smooths


@pytest.mark.parametrize(("pushed", "known"), [(3, 3), (4, 3), (4, 0)])
def test_it_averages_no_points_that_it_does_not_know(pushed: int, known: int) -> None:
    window = window_of(points(1, -1, 1, -1))
    window.pushed = pushed
    window.verdicts.now.known.fill_(known)
    window.smooth(torch.empty(2))
    assert same(window.iterates, points(1, -1, 1, -1))
    assert window.verdicts.number.averaged == 0


@pytest.mark.parametrize(
    ("entry", "max_step"), [(math.nan, 1e-3), (math.inf, 1e-3), (-1.0, math.nan), (-1.0, math.inf)]
)
def test_numbers_that_are_not_finite_do_not_switch_it(entry: float, max_step: float) -> None:
    window = window_of(points(1, -1, entry))
    window.verdicts.now.max_step.fill_(max_step)
    window.smooth(torch.empty(2))
    torch.testing.assert_close(window.newest, *points(entry), equal_nan=True)
    assert window.verdicts.number.averaged == 0


@pytest.mark.parametrize("safeguard", ["residual", "loss", None])
@pytest.mark.parametrize("length", [2, 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_in_training_the_window_holds_where_the_parameters_have_been(
    dtype: torch.dtype, length: int, safeguard: str | None
) -> None:
    options = replace(JUMPY, average=Averaging(length), safeguard=safeguard)
    training = Training(adam, options, dtype)
    as_if_exact(training.optimizer)
    accelerator = training.accelerator
    expected = [training.point()]
    for _ in range(20):
        rejected = accelerator.stats.rejected["residual"]
        training.optimizer.step(training.closure)
        if accelerator.stats.rejected["residual"] > rejected:
            expected.pop()  # what was left again
        expected = [*expected, training.point()][-length:]
        iterates = accelerator.iteration.window.iterates[-len(expected) :]
        assert same([x[: len(expected[0])].to(dtype) for x in iterates], expected)
    assert accelerator.stats.extrapolations > 3
    assert accelerator.stats.averaged > 0
