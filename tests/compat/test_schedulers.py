"""Learning-rate schedulers wrap ``step`` and change the rate of an accelerated optimizer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)
from training import NEWTON, MakeOptimizer, Method, Training, adam, methods, momentum, sgd

from aadl_ext import accelerate, remove_acceleration, reset_acceleration_history

STEPS = 16

# Every call is guarded by ``filterwarnings = error``: a scheduler that finds ``step``
# overridden would fail these tests with its warning.
SCHEDULERS: dict[str, Callable[..., Any]] = {
    "step": partial(StepLR, step_size=3, gamma=0.7),
    "cosine": partial(CosineAnnealingLR, T_max=STEPS + 1),
    "one cycle": partial(OneCycleLR, max_lr=0.4, total_steps=STEPS + 1),
    "plateau": partial(ReduceLROnPlateau, patience=0, factor=0.5, threshold=0.05),
}


def advance(scheduler: Any, training: Training) -> None:
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step(training.loss().detach())
    else:
        scheduler.step()


@pytest.mark.parametrize("make", [sgd, momentum, adam], ids=["sgd", "momentum", "adam"])
@pytest.mark.parametrize("schedule", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("first", ["scheduler", "accelerate"])
@methods
def test_scheduled_run_equals_a_run_with_the_same_rates_set_by_hand(
    schedule: Callable[..., Any], first: str, make: MakeOptimizer, options: Method
) -> None:
    scheduled = Training(make, None)
    if first == "accelerate":
        accelerate(scheduled.optimizer, options)
    scheduler = schedule(scheduled.optimizer)
    if first == "scheduler":
        accelerate(scheduled.optimizer, options)
    by_hand = Training(make, options)
    settings = []

    def scheduled_step() -> None:
        group = scheduled.optimizer.param_groups[0]
        settings.append({x: group[x] for x in ("lr", "momentum", "betas") if x in group})
        scheduled.step()
        advance(scheduler, scheduled)

    def step_by_hand() -> None:
        by_hand.optimizer.param_groups[0].update(settings.pop(0))
        by_hand.step()

    points = scheduled.run(STEPS, scheduled_step)
    assert len({setting["lr"] for setting in settings}) > 1
    assert torch.equal(points, by_hand.run(STEPS, step_by_hand))
    assert scheduled.accelerator.stats.extrapolations > 2


@pytest.mark.parametrize("make", [sgd, momentum, adam], ids=["sgd", "momentum", "adam"])
@methods
def test_a_scheduler_counts_the_calls_of_step_also_those_held_back(
    make: MakeOptimizer, options: Method
) -> None:
    training = Training(make, options)
    scheduler = StepLR(training.optimizer, step_size=5, gamma=0.9)
    rate = training.optimizer.param_groups[0]["lr"]
    for k in range(1, 3 * STEPS + 1):
        training.closure()
        if training.accelerator.pending and k % 3 == 0:
            training.parameters[0].grad.fill_(torch.inf)
        training.optimizer.step()
        scheduler.step()
        assert scheduler.last_epoch == k == training.accelerator.stats.steps
        assert training.optimizer.param_groups[0]["lr"] == pytest.approx(rate * 0.9 ** (k // 5))
        assert training.point().isfinite().all()
    assert training.accelerator.stats.rejected["nonfinite"] > 1


@methods
def test_class_and_step_stay_those_of_the_optimizer(options: Method) -> None:
    training = Training(sgd, options)
    assert type(training.optimizer) is SGD
    assert "step" not in vars(training.optimizer)
    assert training.optimizer.step.__func__ is SGD.step


@methods
def test_the_step_that_a_scheduler_wrapped_survives_accelerate_and_remove(
    options: Method,
) -> None:
    training = Training(sgd, None)
    StepLR(training.optimizer, step_size=1)
    wrapped = training.optimizer.step
    accelerate(training.optimizer, options)
    assert training.optimizer.step is wrapped
    remove_acceleration(training.optimizer)
    assert training.optimizer.step is wrapped


@methods
def test_steps_at_rate_zero_move_nothing_but_a_pending_step_and_do_not_count(
    options: Method,
) -> None:
    training = Training(sgd, options)
    scheduler: LRScheduler = LambdaLR(training.optimizer, lambda k: float(k < 5))
    points = training.run(5, lambda: (training.step(), scheduler.step()))
    pending = training.accelerator.pending
    still = training.run(3, lambda: (training.step(), scheduler.step()))
    assert torch.equal(still[0], points[4]) != pending
    assert torch.equal(still[2], still[0])
    assert training.accelerator.stats.steps == 5
    assert training.accelerator.stats.skipped == {"zero_lr": 3}


@pytest.mark.parametrize("begins", ["load", "reset"])
def test_after_a_search_for_the_rate_the_schedule_is_a_new_one(begins: str) -> None:
    training = Training(adam, replace(NEWTON, rest_above=0.25))
    start = copy.deepcopy((training.model.state_dict(), training.optimizer.state_dict()))
    for k in range(20):
        training.optimizer.param_groups[0]["lr"] = 1e-3 * 1.2**k
        training.step()
    training.model.load_state_dict(start[0])
    if begins == "load":
        training.optimizer.load_state_dict(start[1])
    else:
        training.optimizer.param_groups[0]["lr"] = 0.02
        reset_acceleration_history(training.optimizer)
    before = training.accelerator.stats
    training.run(20)
    after = training.accelerator.stats
    assert before.skipped["high_rate"] > 0
    assert after.skipped == before.skipped
    assert after.extrapolations > before.extrapolations
