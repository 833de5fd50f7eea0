"""A step that nobody has judged is provisional: what is evaluated, saved and kept is not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from training import (
    METHODS,
    Method,
    Training,
    adam,
    as_if_exact,
    methods,
    momentum,
    same,
    sgd,
    variants,
)

from aadl_ext import (
    accelerate,
    finish,
    get_accelerator,
    remove_acceleration,
    reset_acceleration_history,
    settled,
)

optimizers = pytest.mark.parametrize("make", [sgd, momentum, adam], ids=["sgd", "momentum", "adam"])


def until_pending(training: Training) -> Training:
    """Train until a step is pending."""
    for _ in range(40):
        training.step()
        if training.accelerator.pending:
            return training
    raise AssertionError("no step is ever pending")


def judged(training: Training) -> Tensor:
    """Where a pending step would be rolled back to."""
    twin = copy.deepcopy(training.accelerator.iteration.fallback)
    size = training.point().numel()
    return twin[:size].to(training.dtype)


@variants
@optimizers
def test_within_the_parameters_are_judged_ones_and_the_run_is_as_without(
    options: Method, make: Any
) -> None:
    training, plain = Training(make, options), Training(make, options)
    seen = 0
    for _ in range(40):
        training.step()
        plain.step()
        pending, before = training.accelerator.pending, training.point()
        with settled(training.optimizer):
            assert torch.equal(training.point(), before) != pending
            if pending:
                assert torch.equal(training.point(), judged(training))
                with settled(training.optimizer):  # once is enough
                    assert torch.equal(training.point(), judged(training))
            seen += pending
        assert torch.equal(training.point(), before)
        assert torch.equal(training.point(), plain.point())
    assert seen > 2
    assert training.accelerator.stats.rejected == plain.accelerator.stats.rejected
    assert training.accelerator.stats.dropped == 0


@methods
def test_a_state_that_is_saved_within_goes_on_bit_for_bit(options: Method) -> None:
    training = until_pending(Training(adam, options))
    with settled(training.optimizer):
        model = copy.deepcopy(training.model.state_dict())
        optimizer = copy.deepcopy(training.optimizer.state_dict())
        accelerator = training.accelerator.state_dict()
    resumed = Training(adam, options)
    resumed.model.load_state_dict(model)
    resumed.optimizer.load_state_dict(optimizer)
    resumed.accelerator.load_state_dict(accelerator)
    assert torch.equal(resumed.point(), training.point())
    for _ in range(20):
        training.step()
        resumed.step()
        assert torch.equal(resumed.point(), training.point())
    assert same(resumed.accelerator.state_dict(), training.accelerator.state_dict())


@methods
def test_what_moves_the_parameters_within_is_kept(options: Method) -> None:
    training = until_pending(Training(sgd, options))
    with settled(training.optimizer), torch.no_grad():
        for parameter in training.parameters:
            parameter.mul_(0.5)
        moved = training.point()
    assert torch.equal(training.point(), moved)
    training.step()
    assert training.accelerator.stats.dropped == 1


@methods
def test_an_error_within_gives_the_pending_step_back(options: Method) -> None:
    training = until_pending(Training(sgd, options))
    before = training.point()
    with pytest.raises(KeyError), settled(training.optimizer):
        raise KeyError("of the user")
    assert torch.equal(training.point(), before)
    assert training.accelerator.pending


@methods
def test_a_step_within_is_refused(options: Method) -> None:
    training = until_pending(Training(sgd, options))
    refused = pytest.raises(RuntimeError, match=r"within settled\(\): leave it first")
    with settled(training.optimizer), refused:
        training.step()
    training.step()


def test_plain_optimizers_are_let_be() -> None:
    optimizer = SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    with settled(optimizer):
        pass
    finish(optimizer)


@methods
@pytest.mark.parametrize("end", [finish, remove_acceleration], ids=lambda end: end.__name__)
def test_training_ends_at_judged_parameters(options: Method, end: Any) -> None:
    training = until_pending(Training(sgd, options))
    expected, accelerator = judged(training), training.accelerator
    end(training.optimizer)
    assert torch.equal(training.point(), expected)
    assert not accelerator.pending
    assert accelerator.stats.rejected["request"] == 1
    end(training.optimizer)
    assert torch.equal(training.point(), expected)


@methods
@pytest.mark.parametrize("end", [finish, remove_acceleration], ids=lambda end: end.__name__)
def test_training_may_end_within(options: Method, end: Any) -> None:
    training = until_pending(Training(sgd, options))
    expected, accelerator = judged(training), training.accelerator
    with settled(training.optimizer):
        end(training.optimizer)
        assert torch.equal(training.point(), expected)
    assert torch.equal(training.point(), expected)
    assert not accelerator.pending
    assert accelerator.stats.rejected["request"] == 1


@methods
def test_a_history_that_is_forgotten_within_brings_no_point_back(options: Method) -> None:
    training = until_pending(Training(sgd, options))
    expected = judged(training)
    with settled(training.optimizer):
        reset_acceleration_history(training.optimizer)
    assert torch.equal(training.point(), expected)
    assert training.accelerator.stats.dropped == 1


@methods
def test_parameters_that_change_leave_no_point_that_nobody_judges(options: Method) -> None:
    training = until_pending(Training(sgd, options))
    expected = judged(training)
    assert not torch.equal(training.point(), expected)
    training.parameters[0].requires_grad_(False)
    for parameter in training.parameters[1:]:
        parameter.grad = torch.full_like(parameter, torch.inf)  # what such a point may have
    training.optimizer.step()
    assert torch.equal(training.point(), expected)
    stats = training.accelerator.stats
    assert (stats.rejected["request"], stats.dropped) == (1, 0)
    assert stats.skipped == {"rolled_back": 1}
    training.run(20)
    size = training.parameters[0].numel()
    assert torch.equal(training.point()[:size], expected[:size])


def cut(optimizer: SGD, first: nn.Parameter) -> None:
    first.data = torch.full((3,), 7.0, dtype=first.dtype)


def remove(optimizer: SGD, first: nn.Parameter) -> None:
    optimizer.param_groups[0]["params"].remove(first)
    cut(optimizer, first)


def empty(optimizer: SGD, first: nn.Parameter) -> None:
    first.grad = None
    torch.utils.swap_tensors(first, nn.Parameter(torch.empty_like(first, device="meta"), False))


def grow(optimizer: SGD, first: nn.Parameter) -> None:
    first.data = torch.full((1000, 3), 7.0, dtype=first.dtype)


@pytest.mark.parametrize("change", [cut, grow, empty])
@methods
def test_others_can_be_set_aside_and_rolled_back_where_parameters_are_lost(
    options: Method, change: Callable[[SGD, nn.Parameter], None]
) -> None:
    training = until_pending(Training(sgd, options))
    first, *others = training.parameters
    pending = training.point()[first.numel() :]
    expected = judged(training)[first.numel() :]

    def now() -> Tensor:
        return torch.cat([p.detach().flatten() for p in others])

    change(training.optimizer, first)
    with settled(training.optimizer):
        assert torch.equal(now(), expected)
    assert torch.equal(now(), pending)
    with settled(training.optimizer):
        if not first.is_meta:  # again
            first.data = torch.zeros(5, 2, dtype=first.dtype)
    assert torch.equal(now(), pending)
    assert training.accelerator.roll_back()
    assert torch.equal(now(), expected)
    for parameter in training.parameters:
        parameter.grad = torch.zeros_like(parameter)
    training.optimizer.step()
    assert training.accelerator.stats.restarts["parameters"] == 1


@pytest.mark.parametrize("change", [cut, grow, remove, empty])
@methods
def test_parameters_that_are_lost_leave_the_others_at_a_judged_point(
    options: Method, change: Callable[[SGD, nn.Parameter], None]
) -> None:
    training = until_pending(Training(sgd, options))
    first, *others = training.parameters
    expected = judged(training)[first.numel() :]
    change(training.optimizer, first)
    for parameter in others:
        parameter.grad = torch.full_like(parameter, torch.inf)
    first.grad = None
    training.optimizer.step()
    assert torch.equal(torch.cat([p.detach().flatten() for p in others]), expected)
    assert training.accelerator.stats.rejected["request"] == 1
    for _ in range(30):
        for parameter in others:
            parameter.grad = parameter.detach().clone()
        training.optimizer.step()
    assert training.accelerator.stats.restarts["parameters"] == 1


@methods
def test_the_last_of_a_known_number_of_steps_leaves_nothing_pending(options: Method) -> None:
    until = Training(sgd, options)
    count = 1
    while not (until.step(), until.accelerator.pending)[1]:
        count += 1
    expected = judged(until)
    training = Training(sgd, None)
    accelerate(training.optimizer, options, total_steps=count)
    for _ in range(count):
        training.step()
    assert torch.equal(training.point(), expected)
    training.step()  # it may go on
    for wrong in (0, -1, 1.0, True):
        with pytest.raises(ValueError, match="total_steps is"):
            accelerate(SGD([nn.Parameter(torch.ones(2))], lr=0.1), total_steps=wrong)


@methods
def test_a_rate_of_zero_leaves_nothing_pending(options: Method) -> None:
    training = until_pending(Training(sgd, options))
    expected = judged(training)
    training.optimizer.param_groups[0]["lr"] = 0.0
    training.step()
    assert torch.equal(training.point(), expected)
    assert not training.accelerator.pending


def swap(parameters: list[nn.Parameter], anchors: list[Tensor], weight: float) -> None:
    """As schedule-free optimizers do between training and evaluation."""
    with torch.no_grad():
        for parameter, anchor in zip(parameters, anchors, strict=True):
            parameter.lerp_(anchor, weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)
def test_swapping_other_values_in_and_out_leaves_a_step_to_be_judged(
    options: Method, dtype: torch.dtype
) -> None:
    training = Training(sgd, options, dtype)
    rounding = training.accelerator.layout.rounding
    as_if_exact(training.optimizer)
    until_pending(training)
    object.__setattr__(training.accelerator.layout, "rounding", rounding)
    before = training.point()
    anchors = [0.41 - 2.3 * p.detach() for p in training.parameters]
    swap(training.parameters, anchors, 1 - 1 / 0.9)
    swap(training.parameters, anchors, 1 - 0.9)
    assert not torch.equal(training.point(), before)
    training.step()
    stats = get_accelerator(training.optimizer).stats
    assert stats.dropped == 0
    assert stats.accepted + stats.rejected.total() > 0


@methods
def test_values_swapped_within_and_back_leave_the_step_to_be_judged(options: Method) -> None:
    training, plain = (until_pending(Training(sgd, options)) for _ in range(2))
    with settled(training.optimizer), torch.no_grad():
        for weight in (1 - 1 / 0.9, 0.1):  # as schedule-free optimizers do it, which rounds
            for parameter in training.parameters:
                parameter.lerp_(torch.ones_like(parameter), weight)
    assert torch.equal(training.point(), plain.point())
    assert torch.equal(training.run(20), plain.run(20))


@methods
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_recast_parameters_are_judged_ones_too(options: Method, dtype: torch.dtype) -> None:
    training = until_pending(Training(sgd, options))
    expected = judged(training).to(dtype)
    training.model.to(dtype)
    pending = training.point()
    assert not torch.equal(pending, expected)
    with settled(training.optimizer):
        assert torch.equal(training.point(), expected)
    assert torch.equal(training.point(), pending)
    for parameter in training.parameters:
        parameter.grad = torch.ones_like(parameter)
    training.optimizer.step()  # whose gradient is that of the point that is left
    assert torch.equal(training.point(), expected)
    stats = training.accelerator.stats
    assert (stats.rejected["request"], stats.dropped) == (1, 0)
