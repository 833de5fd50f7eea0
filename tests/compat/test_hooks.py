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
from training import Method, Training, methods, same, sgd, variants

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


# ---- hooks that change the gradients -----------------------------------------------------------


def clip(optimizer: Any, *_: Any) -> None:
    (group,) = optimizer.param_groups
    torch.nn.utils.clip_grad_norm_(group["params"], 0.2)


def clean(optimizer: Any, *_: Any) -> None:
    for p in optimizer.param_groups[0]["params"]:
        p.grad.nan_to_num_(0.0, 0.0, 0.0)


def spoilt_step(training: Training) -> Callable[[], None]:
    """Its gradients have a NaN somewhere."""

    def step() -> None:
        training.closure()
        training.parameters[0].grad[0, 0] = torch.nan
        training.optimizer.step()

    return step


def once(training: Training) -> Callable[[], None]:
    return training.step


def with_closure(training: Training) -> Callable[[], None]:
    return lambda: training.optimizer.step(training.closure)


def scaled(training: Training) -> Callable[[], None]:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def step() -> None:
        training.optimizer.zero_grad()
        scaler.scale(training.loss()).backward()
        scaler.step(training.optimizer)
        scaler.update()

    return step


CHANGES = {
    "clip": (clip, once),
    "clean": (clean, spoilt_step),
    "clip scaled": (clip, scaled),
}


@pytest.mark.parametrize(("hook", "make_step"), CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("when", ["after", "globally", "before a later step", "anew at every step"])
@variants
def test_gradients_are_seen_as_hooks_that_come_later_leave_them(
    hook: Callable[..., None], make_step: Any, when: str, options: Method
) -> None:
    late, early = Training(sgd, None), Training(sgd, None)
    early.optimizer.register_step_pre_hook(hook)
    accelerate(early.optimizer, options)
    expected = early.run(24, make_step(early))
    step = make_step(late)
    if when == "before a later step":
        first = late.optimizer.register_step_pre_hook(hook)
    accelerate(late.optimizer, options)
    handles = []
    try:
        if when == "globally":
            handles.append(register_optimizer_step_pre_hook(hook))
        elif when == "after":
            late.optimizer.register_step_pre_hook(hook)
        for k, point in enumerate(expected):
            if when == "anew at every step":
                handles = [x.remove() for x in handles] and []
                handles.append(late.optimizer.register_step_pre_hook(hook))
            if when == "before a later step" and k == 7:
                first.remove()
                late.optimizer.register_step_pre_hook(hook)
            step()
            assert torch.equal(late.point(), point)
    finally:
        for handle in handles:
            handle.remove()
    stats = late.accelerator.stats
    assert same(stats.as_dict(), early.accelerator.stats.as_dict())
    assert stats.extrapolations > 2
    assert stats.skipped.total() == 0


@methods
def test_later_hooks_run_once_a_step_in_their_order_and_ours_after_them(options: Method) -> None:
    training, calls = Training(sgd, options), []
    begin = training.accelerator.before_step

    def note(*args: Any) -> None:
        calls.append("ours")
        begin(*args)

    training.accelerator.before_step = note
    for k in range(4):
        training.optimizer.register_step_pre_hook(lambda *_, k=k: calls.append(k))
        training.step()
        assert calls == [*range(k + 1), "ours"]
        calls.clear()


@methods
def test_a_later_hook_that_removes_itself_runs_once(options: Method) -> None:
    training, reference, calls = Training(sgd, options), Training(sgd, options), []
    training.run(3)

    def hook(*_: Any) -> None:
        calls.append(1)
        handle.remove()

    handle = training.optimizer.register_step_pre_hook(hook)
    points = training.run(STEPS - 3)
    assert torch.equal(points, reference.run(STEPS)[3:])
    assert calls == [1]


@methods
def test_a_closure_that_a_later_hook_wraps_is_the_one_that_counts(options: Method) -> None:
    late, early = Training(sgd, options), Training(sgd, None)

    def wrap(optimizer: Any, args: Any, kwargs: Any) -> Any:
        def clipped() -> Tensor:
            loss = args[1]()
            clip(optimizer)
            return loss

        return (args[0], clipped), kwargs

    for training in (late, early):
        training.optimizer.register_step_pre_hook(wrap)
    accelerate(early.optimizer, options)
    assert torch.equal(late.run(STEPS, with_closure(late)), early.run(STEPS, with_closure(early)))


@methods
def test_what_a_later_hook_returns_is_checked_by_torch(options: Method) -> None:
    training = Training(sgd, options)
    handle = training.optimizer.register_step_pre_hook(lambda *_: 3)
    with pytest.raises(RuntimeError, match="must return None or a tuple"):
        training.step()
    handle.remove()
    assert torch.equal(training.run(STEPS), Training(sgd, options).run(STEPS))


@methods
@pytest.mark.parametrize("broken", [0, 1])
def test_a_later_hook_that_raises_leaves_the_hooks_of_others_as_they_were(
    options: Method, broken: int
) -> None:
    training, reference = Training(sgd, options), Training(sgd, None)
    raising = []

    def hook(k: int) -> Callable[..., None]:
        def run(*args: Any) -> None:
            if raising and k == broken:
                raise KeyboardInterrupt
            clip(*args)

        return run

    hooks = [hook(0), hook(1)]
    for x in hooks:
        training.optimizer.register_step_pre_hook(x)
    raising.append(1)
    with pytest.raises(KeyboardInterrupt):
        training.step()
    del raising[:]
    training.step()
    assert [x for x in training.optimizer._optimizer_step_pre_hooks.values() if x in hooks] == hooks
    for x in hooks:
        reference.optimizer.register_step_pre_hook(x)
    accelerate(reference.optimizer, options)
    points = reference.run(STEPS)
    assert torch.equal(training.run(STEPS - 1), points[1:])
    late = training.optimizer.register_step_pre_hook(hooks[broken])
    raising.append(1)
    with pytest.raises(KeyboardInterrupt):
        training.step()
    remove_acceleration(training.optimizer)
    late.remove()
    assert [*training.optimizer._optimizer_step_pre_hooks.values()] == hooks


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
@methods
def test_a_compiled_step_runs_hooks_that_come_later(options: Method) -> None:
    late, early = Training(sgd, options), Training(sgd, None)
    early.optimizer.register_step_pre_hook(clip)
    accelerate(early.optimizer, options)
    late.optimizer.register_step_pre_hook(clip)
    step = torch.compile(late.optimizer.step, backend="eager")

    def compiled() -> None:
        late.closure()
        step()

    assert torch.equal(late.run(STEPS, compiled), early.run(STEPS))
