"""Parameters that somebody else moves: averages, checkpoints, pruning, dummy steps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.nn.utils import parameters_to_vector, prune, vector_to_parameters
from torch.optim.swa_utils import AveragedModel
from training import (
    JUMPY,
    NEWTON,
    VARIANTS,
    MakeOptimizer,
    Method,
    Training,
    adam,
    methods,
    momentum,
    plain_twin,
    same,
    sgd,
    variants,
)

from aadl_ext import Anderson, Averaging, accelerate, get_accelerator

STEPS = 16
Event = Callable[[Training], None]
optimizers = pytest.mark.parametrize("make", [sgd, momentum, adam], ids=["sgd", "momentum", "adam"])


@torch.no_grad()
def shrink(training: Training) -> None:
    for p in training.parameters:
        p.mul_(0.9)


@torch.no_grad()
def mask(training: Training) -> None:
    training.parameters[0][:, 0] = 0


def load_checkpoint(training: Training) -> None:
    training.model.load_state_dict(Training(sgd, None).model.state_dict())


def load_vector(training: Training) -> None:
    vector_to_parameters(0.5 * parameters_to_vector(training.parameters), training.parameters)


def replace_storage(training: Training) -> None:
    for p in training.parameters:
        p.data = p.data + 0.1


EVENTS: dict[str, Event] = {
    event.__name__: event for event in (shrink, mask, load_checkpoint, load_vector, replace_storage)
}
events = pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)


def until_pending(training: Training) -> None:
    training.run(4)
    while not training.accelerator.pending:
        training.step()


@events
@optimizers
@methods
def test_a_pending_extrapolation_is_dropped_and_the_moved_values_are_kept(
    event: Event, make: MakeOptimizer, options: Method
) -> None:
    training = Training(make, options)
    until_pending(training)
    event(training)
    plain = plain_twin(training, make)
    rejected = training.accelerator.stats.rejected.total()
    # Neither method tries an extrapolation at the step after one.
    assert torch.equal(training.run(1), plain.run(1))
    stats = training.accelerator.stats
    assert stats.restarts["moved_outside"] == stats.dropped == 1
    assert stats.rejected.total() == rejected
    assert not training.accelerator.pending
    training.run(STEPS)
    assert training.accelerator.stats.extrapolations > 3


def call_without_gradients(training: Training) -> None:
    training.optimizer.zero_grad()
    training.optimizer.step()


def call_that_raises(training: Training) -> None:
    with pytest.raises(ZeroDivisionError):
        training.optimizer.step(lambda: 1 / 0)


@pytest.mark.parametrize("call", [call_without_gradients, call_that_raises])
def test_moved_values_are_kept_after_a_call_that_came_to_nothing(call: Event) -> None:
    training = Training(sgd, NEWTON)
    until_pending(training)
    call(training)
    shrink(training)
    plain = plain_twin(training, sgd)
    for run in (training, plain):
        run.closure()
        for p in run.parameters:
            p.grad.mul_(10.0)  # far above the guard
        run.optimizer.step()
    assert torch.equal(training.point(), plain.point())
    assert training.accelerator.stats.dropped == 1


@events
@pytest.mark.parametrize("moment", [2, 3, 8])
def test_averaging_starts_anew_from_the_moved_values(event: Event, moment: int) -> None:
    options = Anderson(history_depth=0, average=Averaging(window=4))
    training, fresh = Training(sgd, options), Training(sgd, None)
    training.run(moment)
    event(training)
    fresh.model.load_state_dict(training.model.state_dict())
    accelerate(fresh.optimizer, options)
    assert torch.equal(training.run(STEPS), fresh.run(STEPS))
    assert training.accelerator.stats.restarts == {"moved_outside": 1}
    assert fresh.accelerator.stats.averaged > 3


@events
def test_pairs_are_true_evaluations_before_and_after_a_move(event: Event) -> None:
    training = Training(sgd, replace(JUMPY, frequency=1, safeguard=None))
    pairs = []
    for k in range(6):
        if k == 4:
            event(training)
        training.closure()
        gradient = torch.cat([p.grad.flatten() for p in training.parameters])
        pairs.append((training.point(), -gradient))
        training.optimizer.step()
        size = len(gradient)
        history = training.accelerator.iteration.history
        # rho is read off the step, in float32: its rounding, divided by the rate, is 1e-6
        close = partial(torch.testing.assert_close, rtol=0, atol=1e-5)
        assert torch.equal(history.last_pair[0][:size], pairs[-1][0])
        close(history.last_pair[1][:size], pairs[-1][1])
        if k:
            row = (k - 1) % 3
            step, change = (b - a for a, b in zip(*pairs[-2:], strict=True))
            close(history.residual_rows[row, :size], change)
            close(history.step_rows[row, :size], step + 0.3 * change)
    assert training.accelerator.stats.restarts == {}


@optimizers
@variants
def test_weights_swapped_out_and_back_between_steps_leave_no_trace(
    make: MakeOptimizer, options: Method
) -> None:
    swapped, reference = (Training(make, options) for _ in range(2))
    ema = AveragedModel(swapped.model)

    def step_and_evaluate() -> None:
        swapped.step()
        ema.update_parameters(swapped.model)
        own = copy.deepcopy(swapped.model.state_dict())
        swapped.model.load_state_dict(ema.module.state_dict())
        swapped.loss()
        swapped.model.load_state_dict(own)

    assert torch.equal(swapped.run(STEPS, step_and_evaluate), reference.run(STEPS))
    assert same(swapped.accelerator.state_dict(), reference.accelerator.state_dict())


@methods
def test_weights_projected_after_every_step_take_each_plain_step_from_there(
    options: Method,
) -> None:
    training = Training(sgd, options)
    bound = 0.8

    def project(*_: Any) -> None:
        with torch.no_grad():
            for p in training.parameters:
                p.clamp_(-bound, bound)

    training.optimizer.register_step_post_hook(project)
    for _ in range(STEPS):
        pending = training.accelerator.pending
        plain = plain_twin(training, sgd)
        training.step()
        if pending:  # moved away from where it extrapolationed to: neither judged nor taken back
            plain.step()
            assert torch.equal(training.point(), plain.point().clamp(-bound, bound))
        assert training.point().abs().max() <= bound
    stats = training.accelerator.stats
    assert stats.restarts["moved_outside"] > 3
    assert stats.rejected.total() == 0


@methods
def test_pruned_entries_stay_zero(options: Method) -> None:
    training = Training(sgd, None)
    layer = training.model[0]
    torch.manual_seed(0)
    prune.random_unstructured(layer, "weight", amount=0.5)
    training.optimizer = sgd(training.model.parameters())
    accelerate(training.optimizer, options)
    training.run(STEPS)
    assert training.accelerator.stats.extrapolations > 3
    assert torch.equal(layer.weight == 0, layer.weight_mask == 0)


@pytest.mark.parametrize("make", [momentum, adam], ids=["momentum", "adam"])
@pytest.mark.parametrize("safeguard", ["residual", "loss", None])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_dummy_step_of_a_distributed_checkpoint_leaves_no_trace(
    make: MakeOptimizer, safeguard: str | None, variant: str
) -> None:
    options = replace(VARIANTS[variant], safeguard=safeguard)
    touched, reference = (Training(make, options) for _ in range(2))
    plain = Training(make, None)
    before = touched.point()
    get_optimizer_state_dict(touched.model, touched.optimizer)  # steps once at rate zero
    assert torch.equal(touched.point(), before)
    assert touched.accelerator.stats.skipped == {"zero_lr": 1}
    assert touched.accelerator.stats.steps == 0
    get_optimizer_state_dict(plain.model, plain.optimizer)
    state = copy.deepcopy(plain.optimizer.state_dict())
    reference.optimizer.load_state_dict(state)  # the dummy step creates state, as without us

    def run(training: Training) -> Tensor:
        return training.run(STEPS, lambda: training.optimizer.step(training.closure))

    assert torch.equal(run(touched), run(reference))
    assert touched.accelerator.stats.extrapolations > 3


@optimizers
@pytest.mark.parametrize("moment", [1, 4, 6, 7])
@variants
def test_steps_with_neither_rate_nor_gradient_leave_no_trace_in_the_accelerator(
    make: MakeOptimizer, moment: int, options: Method
) -> None:
    training = Training(make, options)
    training.run(moment)
    before, point = training.accelerator.state_dict(), training.point()
    (group,) = training.optimizer.param_groups
    rate, group["lr"] = group["lr"], 0.0
    for _ in range(2):
        for parameter in training.parameters:
            parameter.grad = torch.zeros_like(parameter)
        training.optimizer.step()
    group["lr"] = rate
    after = training.accelerator.state_dict()
    assert after["counts"].pop("skipped")["zero_lr"] == 2
    del before["counts"]["skipped"]
    assert same(after, before)
    assert torch.equal(training.point(), point)


@methods
def test_the_pending_extrapolation_of_one_optimizer_is_dropped_when_another_moves_its_parameters(
    options: Method,
) -> None:
    training = Training(sgd, options)
    until_pending(training)
    other = sgd(training.model.parameters())
    training.closure()
    other.step()
    plain = plain_twin(training, sgd)
    assert torch.equal(training.run(1), plain.run(1))
    assert get_accelerator(training.optimizer).stats.restarts == {"moved_outside": 1}
