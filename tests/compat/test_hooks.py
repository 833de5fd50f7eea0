"""Other code that hooks into ``step``, patches it or puts it back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from training import Method, Training, methods, sgd, variants

from aadl_ext import accelerate, remove_acceleration

STEPS = 16


def observed(training: Training, points: list[Tensor]) -> Callable[..., None]:
    return lambda *_: points.append(training.point())


@variants
def test_post_hooks_of_others_see_the_accelerated_weights(options: Method) -> None:
    training, seen = Training(sgd, None), [[], [], []]
    training.optimizer.register_step_post_hook(observed(training, seen[0]))
    accelerate(training.optimizer, options)
    training.optimizer.register_step_post_hook(observed(training, seen[1]))
    handle = register_optimizer_step_post_hook(observed(training, seen[2]))  # of all optimizers
    try:
        points = training.run(STEPS)
    finally:
        handle.remove()
    assert all(torch.equal(torch.stack(views), points) for views in seen)
    assert training.accelerator.stats.extrapolations > 3
    assert torch.equal(points, Training(sgd, options).run(STEPS))


@methods
def test_pre_hooks_of_others_see_the_point_of_the_gradient(options: Method) -> None:
    training, seen = Training(sgd, None), [[], [], []]
    training.optimizer.register_step_pre_hook(observed(training, seen[0]))
    accelerate(training.optimizer, options)
    training.optimizer.register_step_pre_hook(observed(training, seen[1]))
    handle = register_optimizer_step_pre_hook(observed(training, seen[2]))
    start = training.point()
    try:
        points = training.run(STEPS)
    finally:
        handle.remove()
    expected = torch.stack([start, *points[:-1]])
    assert all(torch.equal(torch.stack(views), expected) for views in seen)


@pytest.mark.parametrize("safeguard", ["residual", "loss"])
@methods
def test_a_closure_wrapped_by_the_pre_hook_of_another_is_the_one_that_counts(
    safeguard: str, options: Method
) -> None:
    options = replace(options, safeguard=safeguard)
    wrapped, direct = Training(sgd, None), Training(sgd, options)
    calls = []

    def wrap(optimizer: Any, args: Any, kwargs: Any) -> Any:
        return (args[0], lambda: calls.append(1) or args[1]()), kwargs

    wrapped.optimizer.register_step_pre_hook(wrap)
    accelerate(wrapped.optimizer, options)
    points = wrapped.run(STEPS, lambda: wrapped.optimizer.step(wrapped.closure))
    assert torch.equal(points, direct.run(STEPS, lambda: direct.optimizer.step(direct.closure)))
    evaluations = 2 * wrapped.accelerator.stats.extrapolations if safeguard == "loss" else 0
    assert len(calls) == STEPS + evaluations


class PatchedOptimizer:
    """What HF Accelerate's optimizer wrapper does to the ``step`` of the one inside."""

    def __init__(self, training: Training) -> None:
        self.optimizer = training.optimizer
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
        self.original = training.optimizer.step
        self.called = 0

    def patched(self, *args: Any, **kwargs: Any) -> Any:
        self.called += 1
        return self.original(*args, **kwargs)

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        self.optimizer.step = self.patched
        self.scaler.step(self.optimizer, closure)
        self.scaler.update()
        self.optimizer.step = self.original


@pytest.mark.parametrize("prepared", ["before", "after"])
@pytest.mark.parametrize("safeguard", ["residual", "loss"])
@methods
def test_acceleration_survives_a_step_that_is_patched_and_restored(
    prepared: str, safeguard: str, options: Method
) -> None:
    options = replace(options, safeguard=safeguard)
    training, reference = Training(sgd, None), Training(sgd, options)
    if prepared == "after":
        accelerate(training.optimizer, options)
    wrapper = PatchedOptimizer(training)
    if prepared == "before":
        accelerate(training.optimizer, options)

    def step() -> None:
        training.optimizer.zero_grad()
        wrapper.scaler.scale(training.loss()).backward()
        wrapper.step(training.closure if safeguard == "loss" else None)

    expected = reference.run(STEPS, lambda: reference.optimizer.step(reference.closure))
    assert torch.equal(training.run(STEPS, step), expected)
    assert wrapper.called == STEPS
    assert training.accelerator.stats.extrapolations > 3


@methods
def test_hooks_of_others_stay_when_acceleration_is_removed(options: Method) -> None:
    training, points = Training(sgd, options), []
    training.optimizer.register_step_post_hook(observed(training, points))
    training.run(3)
    remove_acceleration(training.optimizer)
    training.run(3)
    assert len(points) == 6


@methods
def test_a_hook_that_raises_leaves_the_step_done_and_the_training_usable(
    options: Method,
) -> None:
    training, reference = Training(sgd, options), Training(sgd, options)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    for k in range(STEPS):
        if k % 3:
            training.step()
        else:
            handle = training.optimizer.register_step_post_hook(stop)
            with pytest.raises(KeyboardInterrupt):
                training.step()
            handle.remove()
        reference.step()
        assert torch.equal(training.point(), reference.point())
    assert training.accelerator.stats.extrapolations > 3
