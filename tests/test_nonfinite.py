"""NaN, infinity and exceptions pass through a training without poisoning the history."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from training import (
    JUMPY,
    VARIANTS,
    MakeOptimizer,
    Method,
    Training,
    adam,
    same,
    sgd,
    some,
    usable_rows,
    variants,
    watch_base_steps,
)

from aadl_ext import Accelerator, Anderson, Storage, accelerate, get_accelerator

BAD = [math.nan, -math.inf]
averages = pytest.mark.parametrize("average", [False, True])
guards = pytest.mark.parametrize("safeguard", ["residual", "loss", None])
STEPS = 16


def remembered(accelerator: Accelerator) -> list[Tensor]:
    """Everything that later steps are computed from."""
    iteration: Any = accelerator.iteration
    history, verdicts = iteration.history, iteration.verdicts
    rows = [history.step_rows, history.residual_rows, history.systems]
    pair = [*history.last_pair] if verdicts.when.paired else []
    known = int(verdicts.now.known) if iteration.window else 0
    iterates = iteration.window.iterates[-known:] if known else []
    return [*rows, *pair, *([iteration.fallback] if accelerator.pending else []), *iterates]


def step(training: Training) -> None:
    training.optimizer.step(training.closure)


def bad_step(training: Training, place: str, value: float) -> None:
    def closure() -> Tensor:
        loss = training.closure()
        if place == "gradient":
            training.parameters[0].grad[1, 2] = value
        return loss

    if place == "parameter":
        with torch.no_grad():
            training.parameters[0][1, 2] = value
    training.optimizer.step(closure)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("place", ["gradient", "parameter"])
@averages
@guards
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("moment", [*some(0, 6), 7])
def test_bad_numbers_never_enter_the_history_and_training_goes_on_after_a_repair(
    value: float, place: str, average: bool, safeguard: str | None, every: int, moment: int
) -> None:
    options = replace(JUMPY, average=average, safeguard=safeguard, store_each_nth=every)
    training = Training(adam, options)
    accelerator = training.accelerator
    for _ in range(moment):
        step(training)
    good = copy.deepcopy((training.model.state_dict(), training.optimizer.state_dict()))
    for _ in range(3):  # not repaired at once
        bad_step(training, place, value)
        assert all(x.isfinite().all() for x in remembered(accelerator))
    stats = accelerator.stats
    bad = stats.skipped["nonfinite"] + stats.rejected["nonfinite"]
    # A step that neither stores, nor extrapolates, nor averages is not looked at.
    assert bad == 3 if every == 1 or average else 1 <= bad <= 3

    training.model.load_state_dict(good[0])
    training.optimizer.load_state_dict(good[1])
    for _ in range(STEPS):
        step(training)
        assert training.point().isfinite().all()
        assert all(x.isfinite().all() for x in remembered(accelerator))
    before, stats = stats.extrapolations, accelerator.stats
    assert stats.extrapolations > before
    assert stats.skipped["nonfinite"] + stats.rejected["nonfinite"] == bad


def test_a_residual_that_overflows_per_unit_of_rate_is_not_stored() -> None:
    # The step is finite in float32, but divided by its learning rate it is not.
    training = Training()
    training.run(4)
    iteration = training.accelerator.iteration
    slot = iteration.history.slot
    expected = [x.clone() for x in remembered(training.accelerator)]
    for rows in (*expected[:2], expected[2][0], expected[2][0].T):
        rows[slot] = 0.0  # a row of zeros has taken the place of the oldest

    def move(*_: Any) -> None:
        training.parameters[0].data.add_(1e10)

    watch_base_steps(training.optimizer, move)
    training.optimizer.param_groups[0]["lr"] = 1e-30
    training.step()
    assert training.point().isfinite().all()
    assert training.accelerator.stats.skipped == {"nonfinite": 1}
    assert same(remembered(training.accelerator), expected)
    assert usable_rows(training) == 2


@pytest.mark.parametrize("solver", ["gram", "tsqr"])
def test_the_ring_goes_on_after_steps_that_are_not_finite(solver: str) -> None:
    training = Training(adam, replace(JUMPY, safeguard=None, frequency=9, solver=solver))
    rows = []
    for k in range(9):
        good = copy.deepcopy((training.model.state_dict(), training.optimizer.state_dict()))
        if k in (4, 5):
            bad_step(training, "gradient", math.nan)
            training.model.load_state_dict(good[0])
            training.optimizer.load_state_dict(good[1])
        else:
            step(training)
        rows.append(usable_rows(training))
    assert rows == [0, 1, 2, 3, 2, 1, 1, 2, 3]
    assert training.accelerator.stats.pairs == 7


@pytest.mark.parametrize("solver", ["gram", "tsqr"])
@pytest.mark.parametrize("sizes", [[1e6], [1.0, 1.0, 1e6], [1.0] * 5 + [1e6] * 2 + [1.0] * 5])
def test_rows_that_overflow_their_storage_do_not_stop_the_training(
    solver: str, sizes: list[float]
) -> None:
    # Differences of gradients above 65504 do not fit float16; the steps themselves are finite.
    parameter = torch.nn.Parameter(torch.ones(8))
    optimizer = torch.optim.SGD([parameter], lr=1e-7)
    accelerate(
        optimizer,
        Anderson(
            history_depth=3,
            solver=solver,
            storage=Storage(torch.float16),
            safeguard=None,
            frequency=2,
        ),
    )
    generator = torch.Generator().manual_seed(0)
    for size in sizes * (12 // len(sizes)):
        parameter.grad = size * torch.randn(8, generator=generator)
        optimizer.step()
        assert parameter.isfinite().all()
    stats = get_accelerator(optimizer).stats
    assert (stats.steps, stats.skipped) == (12, {})
    assert not stats.rejected


class Interrupted(Exception):  # noqa: N818
    pass


@guards
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("make", [sgd, adam], ids=["sgd", "adam"])
def test_a_base_step_that_raises_can_be_repeated(
    make: MakeOptimizer, variant: str, safeguard: str | None
) -> None:
    options = replace(VARIANTS[variant], safeguard=safeguard)
    training, reference = Training(make, options), Training(make, options)

    def closure() -> Tensor:
        training.closure()
        raise Interrupted

    pending = set()
    for _ in range(STEPS):
        pending.add(training.accelerator.pending)
        before = training.point()
        with pytest.raises(Interrupted):
            training.optimizer.step(closure)
        assert torch.equal(training.point(), before)
        step(training)
        step(reference)
        assert torch.equal(training.point(), reference.point())
    assert same(training.accelerator.state_dict(), reference.accelerator.state_dict())
    assert len(pending) == (2 if safeguard == "residual" or variant == "newton" else 1)


@pytest.mark.parametrize("make", [sgd, adam], ids=["sgd", "adam"])
@variants
def test_a_base_optimizer_that_raises_can_go_on(
    make: MakeOptimizer, options: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, reference = Training(make, options), Training(make, options)
    for _ in range(STEPS):
        training.closure()
        with monkeypatch.context() as patch:
            patch.setattr(training.optimizer, "_init_group", interrupt)
            with pytest.raises(Interrupted):
                training.optimizer.step()
        training.optimizer.step()
        reference.step()
        assert torch.equal(training.point(), reference.point())
    assert training.accelerator.stats.extrapolations > 3


def interrupt(*_: Any) -> None:
    raise Interrupted


@pytest.mark.parametrize("call", [2, 3], ids=["at the plain point", "at the extrapolated one"])
@pytest.mark.parametrize("make", [sgd, adam], ids=["sgd", "adam"])
def test_a_closure_that_raises_in_the_loss_safeguard_leaves_the_plain_step(
    call: int, make: MakeOptimizer
) -> None:
    options = replace(JUMPY, safeguard="loss", wait_iterations=5, frequency=3)
    training, plain = Training(make, options), Training(make, None)
    training.run(6, lambda: step(training))
    points = plain.run(8)
    calls = []

    def closure() -> Tensor:
        calls.append(1)
        if len(calls) == call:
            training.loss().backward()  # gradients of the extra evaluation
            raise Interrupted
        return training.closure()

    reference = Training(make, None)
    reference.run(6)
    reference.closure()
    with pytest.raises(Interrupted):
        training.optimizer.step(closure)
    assert torch.equal(training.point(), points[6])
    assert same([p.grad for p in training.parameters], [p.grad for p in reference.parameters])
    step(training)
    assert torch.equal(training.point(), points[7])
    training.run(STEPS, lambda: step(training))
    assert training.accelerator.stats.extrapolations > 3
