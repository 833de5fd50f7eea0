"""Copies of an accelerated optimizer are plain ones, say so, and leave the original alone."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import StepLR
from training import MakeOptimizer, Method, Training, adam, methods, plain_twin, sgd

from aadl_ext import accelerate, get_accelerator, remove_acceleration, reset_acceleration_history

Copy = Callable[[Any], Any]


def save_and_load(pair: Any) -> Any:
    file = io.BytesIO()
    torch.save(pair, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


copies = pytest.mark.parametrize(
    "make_copy",
    [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair)), save_and_load],
    ids=["deepcopy", "pickle", "torch.save"],
)
optimizers = pytest.mark.parametrize("make", [sgd, adam], ids=["sgd", "adam"])


def copied(training: Training, make_copy: Copy) -> Training:
    other = Training(sgd, None)
    other.model, other.optimizer = make_copy((training.model, training.optimizer))
    return other


@optimizers
@copies
@methods
def test_a_copy_trains_like_a_plain_optimizer(
    make: MakeOptimizer, make_copy: Copy, options: Method
) -> None:
    training = Training(make, options)
    training.run(7)
    other, plain = copied(training, make_copy), plain_twin(training, make)
    assert torch.equal(other.run(8), plain.run(8))


@optimizers
@copies
@methods
def test_the_original_goes_on_as_if_never_copied(
    make: MakeOptimizer, make_copy: Copy, options: Method
) -> None:
    training, reference = Training(make, options), Training(make, options)
    training.run(7)
    reference.run(7)
    other = copied(training, make_copy)
    other.run(3)
    assert torch.equal(training.run(9), reference.run(9))
    assert training.accelerator.stats.extrapolations > 3


@copies
@methods
def test_a_copy_says_that_it_is_not_accelerated(make_copy: Copy, options: Method) -> None:
    training = Training(sgd, options)
    training.run(3)
    other = copied(training, make_copy)
    for function in (get_accelerator, reset_acceleration_history):
        with pytest.raises(ValueError, match=r"not accelerated: call aadl_ext\.accelerate"):
            function(other.optimizer)
    remove_acceleration(other.optimizer)
    assert training.accelerator.stats.steps == 3


@optimizers
@copies
@methods
def test_a_copy_can_be_accelerated_with_a_history_of_its_own(
    make: MakeOptimizer, make_copy: Copy, options: Method
) -> None:
    training = Training(make, options)
    training.run(7)
    other, fresh = copied(training, make_copy), plain_twin(training, make)
    for run in (other, fresh):
        accelerate(run.optimizer, options)
    assert other.accelerator is not training.accelerator
    points = other.run(9)
    assert torch.equal(points, fresh.run(9))
    assert training.accelerator.stats.steps == 7


@methods
def test_a_copy_made_under_a_scheduler_trains_like_a_plain_optimizer(
    options: Method,
) -> None:
    training = Training(sgd, options)
    StepLR(training.optimizer, step_size=100)
    training.run(7)
    other, plain = copied(training, copy.deepcopy), plain_twin(training, sgd)
    assert torch.equal(other.run(4), plain.run(4))


@methods
def test_a_copied_model_takes_nothing_of_the_accelerator_along(options: Method) -> None:
    training = Training(sgd, options)
    training.run(7)
    twin = copy.deepcopy(training.model)
    for mine, its in zip(training.parameters, twin.parameters(), strict=True):
        assert vars(its).keys() == vars(mine).keys() == set()
    assert pickle.dumps(twin.state_dict())
