"""Rates and gradients of an optimizer, as its hook sees them."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from aadl_ext.optimizer_hook import Gradients, Rates
from aadl_ext.parameters import Layout


def optimizer_of(make: type[Optimizer] = SGD, **second_group: Any) -> tuple[Optimizer, Layout]:
    """Three parameters of 2, the second without a gradient; the third in a group of its own."""
    parameters = [nn.Parameter(torch.full((n,), 2.0)) for n in (2, 1, 3)]
    for parameter in parameters[::2]:
        parameter.grad = torch.ones_like(parameter)
    groups = [{"params": parameters[:2]}, {"params": parameters[2:], **second_group}]
    optimizer = make(groups, lr=0.1)  # type: ignore[call-arg]
    return optimizer, Layout.build(optimizer.param_groups, "all", None)


def gathered(optimizer: Optimizer, layout: Layout) -> list[float]:
    point, out = layout.vector(), layout.vector()
    layout.read(point)
    assert Gradients(optimizer).gather(layout, point, out)
    return out[: layout.size].tolist()


@pytest.mark.parametrize(
    ("make", "group", "expected"),
    [
        (SGD, {}, 1.0),
        (SGD, {"weight_decay": 0.25}, 1.5),
        (SGD, {"maximize": True}, -1.0),
        (SGD, {"maximize": True, "weight_decay": 0.25}, -0.5),
        (Adam, {"weight_decay": 0.25}, 1.5),
        (AdamW, {"weight_decay": 0.25}, 1.0),
    ],
)
def test_gradients_are_those_of_what_is_minimized(
    make: type[Optimizer], group: dict[str, Any], expected: float
) -> None:
    assert gathered(*optimizer_of(make, **group)) == [1, 1, 0, *[expected] * 3]


def test_the_norm_is_over_all_gradients_dense_or_sparse() -> None:
    optimizer, layout = optimizer_of()
    assert Gradients(optimizer).squared_norm(layout) == 5
    parameter = optimizer.param_groups[0]["params"][0]
    parameter.grad = torch.sparse_coo_tensor([[0, 0]], [2.0, 1.0], (2,), check_invariants=False)
    assert Gradients(optimizer).squared_norm(layout) == 3**2 + 3


def test_gradients_are_taken_away_and_given_back() -> None:
    optimizer, layout = optimizer_of()
    gradients = Gradients(optimizer)
    gradients.take_away()
    assert Gradients(optimizer).absent
    assert not Gradients(optimizer).gather(layout, layout.vector(), layout.vector())
    assert Gradients(optimizer).squared_norm(layout) == 0
    gradients.give_back()
    assert gathered(optimizer, layout) == [1, 1, 0, 1, 1, 1]


@pytest.mark.parametrize("when", [False, True])
def test_gradients_are_made_zero_where_a_flag_is_true(when: bool) -> None:
    optimizer, layout = optimizer_of()
    Gradients(optimizer).clear_(torch.tensor(when))
    assert gathered(optimizer, layout) == [1 - when, 1 - when, 0, *[1 - when] * 3]


@pytest.mark.parametrize("rate", [0.5, torch.tensor(0.5)])
def test_a_rate_is_a_number(rate: float | Tensor) -> None:
    assert Rates().read(0, rate) == 0.5


def test_rates_of_earlier_steps_are_not_kept() -> None:
    rates, read = Rates(), []
    for _ in range(3):
        rate = torch.tensor(0.5, device="meta")
        rates.read(0, rate)
        read.append(weakref.ref(rate))
        del rate
    assert [x() is None for x in read] == [True, True, False]
