"""Mixed-precision loss scaling: a step with infinite gradients leaves no trace."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam
from training import (
    AVERAGED,
    METHODS,
    MakeOptimizer,
    Method,
    Training,
    adam,
    methods,
    same,
    sgd,
    watch_base_steps,
)

from aadl_ext import Averaging

SCALED = {
    "sgd": sgd,
    "adam": adam,
    "fused sgd": partial(SGD, lr=0.3, fused=True),
    "fused adam": partial(Adam, lr=0.02, fused=True),
}
# Infinite gradients before the first pair, at a pending extrapolation, in a row, and in between.
INFINITE = {0, 4, 8, 9, 12}
STEPS = 22

scalers = pytest.mark.parametrize("make", SCALED.values(), ids=SCALED)
VARIANTS = {**METHODS, "average": replace(AVERAGED, average=Averaging(window=3))}
variants = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)


def power_of_two_scaler() -> torch.amp.GradScaler:
    """Its scale stays a power of two, so that scaling and unscaling are exact."""
    return torch.amp.GradScaler("cpu", init_scale=2.0**10, backoff_factor=0.5)


def scaled_step(training: Training, scaler: torch.amp.GradScaler, factor: float = 1.0) -> None:
    training.optimizer.zero_grad()
    scaler.scale(training.loss() * factor).backward()
    scaler.step(training.optimizer)
    scaler.update()


def trace(training: Training) -> list[Any]:
    """All that may not change; counts of skipped steps may."""
    state = training.accelerator.state_dict()
    del state["counts"]["skipped"]
    return [state, training.point()]


@scalers
@variants
def test_infinite_steps_change_nothing_and_the_rest_equals_an_unscaled_run(
    make: MakeOptimizer, options: Method
) -> None:
    scaled, unscaled = Training(make, options), Training(make, options)
    scaler = power_of_two_scaler()
    points: list[Tensor] = []
    pending = set()
    for k in range(STEPS):
        if k in INFINITE:
            pending.add(scaled.accelerator.pending)
            before = trace(scaled)
            scaled_step(scaled, scaler, torch.inf)
            assert same(trace(scaled), before)
        else:
            scaled_step(scaled, scaler)
            points.append(scaled.point())
    assert pending == {False, True}
    assert scaler.get_scale() == 2.0 ** (10 - len(INFINITE))
    assert torch.equal(torch.stack(points), unscaled.run(len(points)))
    assert scaled.accelerator.stats.extrapolations > 3


@scalers
@methods
def test_skipped_steps_are_counted_where_the_optimizer_is_told(
    make: MakeOptimizer, options: Method
) -> None:
    training = Training(make, options)
    scaler = power_of_two_scaler()
    for k in range(STEPS):
        scaled_step(training, scaler, torch.inf if k in INFINITE else 1.0)
    stats = training.accelerator.stats
    assert stats.steps == STEPS - len(INFINITE)
    # Without fusing the scaler does not call step() at all.
    fused = training.optimizer.defaults.get("fused")
    assert stats.skipped == ({"found_inf": len(INFINITE)} if fused else {})


@variants
def test_nan_gradients_are_skipped_like_infinite_ones(options: Method) -> None:
    training = Training(sgd, options)
    scaler = power_of_two_scaler()
    for _ in range(5):
        scaled_step(training, scaler)
    before = trace(training)
    scaled_step(training, scaler, torch.nan)
    assert same(trace(training), before)


@pytest.mark.parametrize("fused", [False, True])
@variants
def test_an_extrapolation_after_which_every_gradient_is_infinite_can_be_taken_back_without_a_step(
    options: Method, fused: bool
) -> None:
    training = Training(partial(SGD, lr=0.3, fused=fused), options)
    accelerator, scaler = training.accelerator, power_of_two_scaler()
    plain: list[Tensor] = []
    watch_base_steps(training.optimizer, lambda *_: plain.append(training.point()))
    while not accelerator.pending:
        scaled_step(training, scaler)
    start, steps = plain[-1], accelerator.stats.steps
    for _ in range(3):  # the extrapolation stays, for the optimizer is never called
        scaled_step(training, scaler, torch.inf)
    assert accelerator.pending
    assert accelerator.roll_back()
    assert torch.equal(training.point(), start)
    assert accelerator.stats.rejected["request"] == 1
    assert not accelerator.roll_back()
    scaled_step(training, scaler)
    assert accelerator.stats.steps == steps + 1


@variants
def test_an_extrapolation_is_not_taken_back_from_where_somebody_else_has_put_the_parameters(
    options: Method,
) -> None:
    training = Training(sgd, options)
    while not training.accelerator.pending:
        training.step()
    with torch.no_grad():
        training.parameters[0].add_(1)
    point = training.point()
    assert not training.accelerator.roll_back()
    assert torch.equal(training.point(), point)


@methods
def test_unscaling_by_hand_before_clipping_works(options: Method) -> None:
    by_hand, automatic = Training(sgd, options), Training(sgd, options)
    scaler = power_of_two_scaler()

    def step() -> None:
        by_hand.optimizer.zero_grad()
        scaler.scale(by_hand.loss()).backward()
        scaler.unscale_(by_hand.optimizer)
        torch.nn.utils.clip_grad_norm_(by_hand.parameters, 1e6)  # far above: clips nothing
        scaler.step(by_hand.optimizer)
        scaler.update()

    assert torch.equal(by_hand.run(STEPS, step), automatic.run(STEPS))


class Seen(Tensor):
    """Counts how often the host reads it, for which it waits where a device has it."""

    reads = 0

    def __bool__(self) -> bool:
        type(self).reads += 1
        return False


@methods
def test_what_a_scaler_has_found_is_read_once_a_step(options: Method) -> None:
    training = Training(partial(SGD, lr=0.3, fused=True), options)
    training.run(12)
    Seen.reads = 0
    for k in range(1, 12):
        training.optimizer.found_inf = torch.zeros(()).as_subclass(Seen)  # type: ignore[attr-defined]
        training.step()
        assert Seen.reads == k
