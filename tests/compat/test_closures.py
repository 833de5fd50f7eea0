"""Closures reach the safeguard in both calling styles and run exactly as often as asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import LBFGS
from training import JUMPY, NEWTON, Method, Training, methods, same, sgd

from aadl_ext import Anderson

STEPS = 16
guards = pytest.mark.parametrize("safeguard", ["residual", "loss", None])


def guarded(safeguard: str | None, options: Method = JUMPY) -> Training:
    return Training(sgd, replace(options, safeguard=safeguard))


class Recorder:
    """The closure of a training: zero gradients, forward, backward. Notes what it sees."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.losses: list[Tensor] = []
        self.gradients: list[list[Tensor]] = []
        self.grad_modes: list[bool] = []

    def __call__(self) -> Tensor:
        self.grad_modes.append(torch.is_grad_enabled())
        loss = self.training.closure()
        self.losses.append(loss.detach().clone())
        self.gradients.append([p.grad.clone() for p in self.training.parameters])
        return loss


@guards
@methods
def test_both_calling_styles_of_a_closure_walk_the_same_way(
    safeguard: str | None, options: Method
) -> None:
    by_position, by_name = guarded(safeguard, options), guarded(safeguard, options)
    a = by_position.run(STEPS, lambda: by_position.optimizer.step(by_position.closure))
    b = by_name.run(STEPS, lambda: by_name.optimizer.step(closure=by_name.closure))
    assert torch.equal(a, b)
    assert same(by_position.accelerator.state_dict(), by_name.accelerator.state_dict())
    assert by_position.accelerator.stats.extrapolations > 3


@pytest.mark.parametrize("safeguard", ["residual", None])
@methods
def test_step_without_a_closure_walks_the_same_way(safeguard: str | None, options: Method) -> None:
    without, within = guarded(safeguard, options), guarded(safeguard, options)
    points = within.run(STEPS, lambda: within.optimizer.step(within.closure))
    assert torch.equal(points, without.run(STEPS))
    assert without.accelerator.stats.extrapolations > 3


@methods
def test_the_default_safeguard_takes_extrapolations_back_without_any_closure(
    options: Method,
) -> None:
    training = Training(sgd, options)
    training.run(STEPS)
    assert training.accelerator.stats.accepted > 0
    assert training.accelerator.stats.rejected["residual"] > 0


@guards
@methods
@pytest.mark.parametrize("outside", [torch.no_grad, torch.enable_grad])
def test_closure_runs_once_and_twice_more_for_a_judged_loss(
    safeguard: str | None, options: Method, outside: type
) -> None:
    training = guarded(safeguard, options)
    closure = Recorder(training)
    extra = 2 if safeguard == "loss" else 0
    for _ in range(STEPS):
        extrapolations, calls = training.accelerator.stats.extrapolations, len(closure.losses)
        with outside():
            training.optimizer.step(closure)
        extrapolationed = training.accelerator.stats.extrapolations - extrapolations
        assert len(closure.losses) - calls == 1 + extra * extrapolationed
    assert training.accelerator.stats.extrapolations > 3
    assert all(closure.grad_modes)


@guards
@methods
def test_step_returns_the_loss_of_the_point_it_started_from(
    safeguard: str | None, options: Method
) -> None:
    training = guarded(safeguard, options)
    for _ in range(STEPS):
        expected = training.loss().detach()
        assert torch.equal(training.optimizer.step(training.closure).detach(), expected)


def test_the_loss_safeguard_compares_the_plain_point_with_the_extrapolation() -> None:
    training, plain = guarded("loss"), Training(sgd, None)
    closure = Recorder(training)
    verdicts = set()
    for _ in range(60):
        plain.model.load_state_dict(training.model.state_dict())
        plain.step()
        del closure.losses[:]
        accepted = training.accelerator.stats.accepted
        training.optimizer.step(closure)
        if len(closure.losses) == 1:
            continue
        _, at_plain, at_extrapolation = closure.losses
        stands = training.accelerator.stats.accepted > accepted
        verdicts.add(stands)
        assert stands == bool(at_extrapolation < at_plain)
        assert torch.equal(at_plain, plain.loss())
        assert torch.equal(training.loss(), at_extrapolation if stands else at_plain)
        assert torch.equal(training.point(), plain.point()) == (not stands)
    assert verdicts == {False, True}


@pytest.mark.parametrize("set_to_none", [True, False])
@guards
@methods
def test_every_safeguard_leaves_the_gradients_of_the_base_step(
    safeguard: str | None, options: Method, set_to_none: bool
) -> None:
    training = guarded(safeguard, options)

    def closure() -> Tensor:
        training.optimizer.zero_grad(set_to_none=set_to_none)
        loss = training.loss()
        loss.backward()
        first.append([p.grad.clone() for p in training.parameters])
        return loss

    for _ in range(STEPS):
        first: list[list[Tensor]] = []
        training.optimizer.step(closure)
        assert same([p.grad for p in training.parameters], first[0])
    assert training.accelerator.stats.extrapolations > 3


@guards
@methods
def test_a_closure_that_accumulates_adds_its_gradient_once(
    safeguard: str | None, options: Method
) -> None:
    training, reference = guarded(safeguard, options), guarded(safeguard, options)

    def accumulate() -> Tensor:
        loss = training.loss()
        loss.backward()
        return loss

    for _ in range(STEPS):
        training.optimizer.zero_grad()
        training.optimizer.step(accumulate)
        reference.optimizer.step(reference.closure)
        assert torch.equal(training.point(), reference.point())
        gradients = ([p.grad for p in t.parameters] for t in (training, reference))
        assert same(*gradients)


@pytest.mark.parametrize("number", [float, torch.Tensor.detach])
@methods
def test_a_closure_may_return_any_number(number: Any, options: Method) -> None:
    numbers, tensors = guarded("loss", options), guarded("loss", options)
    points = numbers.run(
        STEPS, lambda: numbers.optimizer.step(lambda: number(numbers.closure().detach()))
    )
    expected = tensors.run(STEPS, lambda: tensors.optimizer.step(tensors.closure))
    assert torch.equal(points, expected)


@methods
def test_the_loss_safeguard_asks_for_the_closure_before_anything_moves(
    options: Method,
) -> None:
    training = guarded("loss", options)
    training.closure()
    before = training.point()
    with pytest.raises(RuntimeError, match=r"step\(closure\)"):
        training.optimizer.step()
    assert torch.equal(training.point(), before)
    assert training.accelerator.stats.steps == 0


def silenced(training: Training) -> Callable[[], None]:
    return lambda: training.closure() and None


@methods
def test_a_closure_without_a_loss_is_named_by_the_loss_safeguard(options: Method) -> None:
    training = guarded("loss", options)
    assert training.accelerator.stats.extrapolations == 0
    with pytest.raises(RuntimeError, match="returned None"):
        training.run(9, lambda: training.optimizer.step(silenced(training)))


@methods
def test_a_closure_without_a_loss_is_fine_for_the_other_safeguards(
    options: Method,
) -> None:
    silent, loud = Training(sgd, options), Training(sgd, options)
    points = silent.run(STEPS, lambda: silent.optimizer.step(silenced(silent)))
    assert torch.equal(points, loud.run(STEPS))


AVERAGING = Anderson(history_depth=0, average=True)


def test_averaging_alone_needs_no_closure_for_the_loss_safeguard() -> None:
    averaged = guarded("loss", AVERAGING)
    reference = Training(sgd, AVERAGING)
    assert torch.equal(averaged.run(STEPS), reference.run(STEPS))
    assert averaged.accelerator.stats.averaged > 0


@guards
@methods
@pytest.mark.parametrize("enabled", [False, True])
def test_a_closure_handed_through_a_gradient_scaler_reaches_the_safeguard(
    safeguard: str | None, options: Method, enabled: bool
) -> None:
    scaled, direct = guarded(safeguard, options), guarded(safeguard, options)
    scaler = torch.amp.GradScaler("cpu", enabled=enabled)

    def step() -> None:
        scaler.scale(scaled.loss()).backward()
        scaler.step(scaled.optimizer, scaled.closure)  # by name it refuses closures
        scaler.update()

    points = direct.run(STEPS, lambda: direct.optimizer.step(direct.closure))
    assert torch.equal(scaled.run(STEPS, step), points)
    assert same(scaled.accelerator.state_dict(), direct.accelerator.state_dict())


@pytest.mark.parametrize("large", [1, 2])
def test_only_the_first_of_several_evaluations_judges_a_pending_step(large: int) -> None:
    make = partial(LBFGS, lr=0.1, max_iter=2, history_size=4)
    training = Training(make, replace(NEWTON, max_gradient_growth=1e3))
    while not training.accelerator.pending:
        training.optimizer.step(training.closure)
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        loss = training.closure()
        if calls == large:
            for p in training.parameters:
                p.grad.mul_(1e6)
        return loss

    training.optimizer.step(closure)
    assert training.accelerator.stats.rejected == ({"residual": 1} if large == 1 else {})
