"""When a schedule holds the learning rate near its peak."""

from __future__ import annotations

import pytest

from aadl_ext.schedule import Schedule


def near_peak(*rates: float) -> list[bool]:
    schedule = Schedule()
    return [schedule.near_peak(rate, 0.5) for rate in rates]


def test_a_constant_rate_is_no_schedule() -> None:
    assert near_peak(0.1, 0.1, 0.1) == [False, False, False]


def test_warm_up_is_near_the_peak_though_the_rate_is_low() -> None:
    assert near_peak(0.1, 0.2, 0.3, 0.3) == [False, True, True, True]


@pytest.mark.parametrize("peak", [1e-8, 0.3, 1.0])
def test_half_of_the_peak_is_far_from_it(peak: float) -> None:
    rates = [peak * share for share in (1, 0.9, 0.51, 0.5, 0.1)]
    assert near_peak(*rates) == [False, True, True, False, False]


def test_a_rate_that_rises_again_comes_near_the_peak_again() -> None:
    assert near_peak(1.0, 0.1, 1.0, 2.0, 1.0) == [False, False, True, True, False]


def test_a_rate_of_zero_or_one_that_is_no_number_is_never_near() -> None:
    assert near_peak(1.0, 0.0, float("nan")) == [False, False, False]


@pytest.mark.parametrize(
    ("rates", "gradual"),
    [
        ((1.0, 1.0), False),  # no change
        ((0.1, 0.2, 0.3), True),  # warm-up
        ((1.0, 0.9, 0.8, 0.7), True),
        ((1.0, 0.9, 0.9, 0.9), True),  # once in an epoch
        ((1.0, 0.1, 0.1), False),  # a drop, and then for long
        ((1.0, 0.1, 0.09), True),
        ((0.2, 0.0, 0.0, 0.1), False),
    ],
)
def test_whether_more_of_a_decay_will_follow(rates: tuple[float, ...], gradual: bool) -> None:
    schedule = Schedule()
    for rate in rates:
        schedule.near_peak(rate, 0.5)
    assert schedule.gradual == gradual
