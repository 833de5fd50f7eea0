"""Quasi-Newton steps while gradients repeat: when they begin, what they do, and when they end."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from training import MakeOptimizer, Training, adam, momentum, same, sgd, some

from aadl_ext import SubspaceNewton, accelerate, finish, get_accelerator, settled
from aadl_ext.race import FIRST, TRIAL

EXACT = SubspaceNewton()
BEGUN = 32  # steps within which they have begun
few = pytest.mark.parametrize("make", [sgd, momentum, adam], ids=["sgd", "momentum", "adam"])


def exact(optimizer: Optimizer) -> bool:
    """Whether steps are quasi-Newton's, as the device knows it."""
    return bool(get_accelerator(optimizer).iteration.verdicts.when.exact)


def begun(make: MakeOptimizer = sgd, **options: Any) -> Training:
    training = Training(make, SubspaceNewton(**options), torch.float64)
    training.run(BEGUN)
    assert exact(training.optimizer)
    return training


class Noisy:
    """A linear model on batches of four of sixteen samples."""

    def __init__(self, make: MakeOptimizer, options: SubspaceNewton | None) -> None:
        draw = torch.Generator().manual_seed(2)
        self.inputs = torch.randn(16, 3, generator=draw, dtype=torch.float64)
        self.targets = torch.randn(16, generator=draw, dtype=torch.float64)
        self.w = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.optimizer = make([self.w])
        if options is not None:
            accelerate(self.optimizer, options)
        self.draw = torch.Generator().manual_seed(3)

    def step(self) -> Tensor:
        rows = torch.randperm(16, generator=self.draw)[:4]
        self.optimizer.zero_grad()
        (self.inputs[rows] @ self.w - self.targets[rows]).square().mean().backward()
        self.optimizer.step()
        return self.w.detach().clone()


def assert_resumes(make: MakeOptimizer, after: int) -> None:
    """A run goes on from a checkpoint bit for bit."""
    training = Training(make, EXACT, torch.float64)
    training.run(after)
    saved = copy.deepcopy(
        (
            training.model.state_dict(),
            training.optimizer.state_dict(),
            training.accelerator.state_dict(),
        )
    )
    resumed = Training(make, EXACT, torch.float64)
    for target, state in zip(
        (resumed.model, resumed.optimizer, resumed.accelerator), saved, strict=True
    ):
        target.load_state_dict(state)
    assert torch.equal(resumed.run(50), training.run(50))


# ---- they converge -------------------------------------------------------------------------


def test_a_network_is_fitted_in_a_tenth_of_the_steps() -> None:
    plain = Training(sgd, None, torch.float64)
    plain.run(1000)
    fast = begun()
    fast.run(100 - BEGUN)
    with settled(fast.optimizer):
        assert fast.loss() < plain.loss()


def test_the_default_begins_a_few_steps_after_its_first_block() -> None:
    training = Training(sgd, SubspaceNewton(), torch.float64)
    training.run(12)
    assert not exact(training.optimizer)
    training.run(1)
    assert exact(training.optimizer)


@pytest.mark.parametrize(
    ("size", "dtype", "pairs"),
    [
        (100, torch.float64, 100),
        (40_000, torch.float64, 52),  # 32 MiB
        (120_000, torch.float32, 69),  # in bfloat16
        (3_000_000, torch.float32, 6),  # of blocks
    ],
    ids=str,
)
def test_small_networks_have_room_for_more_pairs(size: int, dtype: torch.dtype, pairs: int) -> None:
    optimizer = accelerate(SGD([nn.Parameter(torch.ones(size, dtype=dtype))], lr=0.1))
    iteration = get_accelerator(optimizer).iteration
    assert len(iteration.quasi_newton.step_rows) == pairs
    assert len(iteration.history.noise_rows) == SubspaceNewton().noise_samples


def test_without_quasi_newton_steps_nothing_is_held_for_them() -> None:
    optimizer = accelerate(
        SGD([nn.Parameter(torch.ones(100))], lr=0.1), SubspaceNewton(quasi_newton=False)
    )
    assert len(get_accelerator(optimizer).iteration.history.rows) == 12


class Quadratic:
    """The loss ``w^T H w / 2`` in ten dimensions, condition 1e3."""

    def __init__(self, make: MakeOptimizer, options: SubspaceNewton | None = None) -> None:
        draw = torch.Generator().manual_seed(0)
        axes = torch.linalg.qr(torch.randn(10, 10, generator=draw, dtype=torch.float64))[0]
        spectrum = torch.logspace(-3, 0, 10, dtype=torch.float64)
        self.hessian = axes @ torch.diag(spectrum) @ axes.T
        self.w = nn.Parameter(torch.ones(10, dtype=torch.float64))
        self.optimizer = accelerate(make([self.w]), options or EXACT)

    def step(self) -> float:
        self.w.grad = self.hessian @ self.w.detach()
        self.optimizer.step()
        return self.w.grad.norm().item()


@few
def test_a_quadratic_takes_few_steps_per_dimension(make: MakeOptimizer) -> None:
    # Bare gradient descent takes some 20 000 to as small a gradient.
    problem = Quadratic(make)
    norms = [problem.step() for _ in range(150)]
    assert min(norms) < 1e-8 * norms[0]


def test_at_a_minimum_the_parameters_stay() -> None:
    problem = Quadratic(sgd)
    norms = [problem.step() for _ in range(500)]
    assert exact(problem.optimizer)
    assert norms[-1] < 1e-14


def test_a_gradient_of_zero_moves_nothing() -> None:
    w = nn.Parameter(torch.ones(3))
    optimizer = accelerate(SGD([w], lr=0.1), EXACT)
    for _ in range(40):
        w.grad = torch.zeros(3)
        optimizer.step()
    assert torch.equal(w.detach(), torch.ones(3))


# ---- they begin where gradients repeat, and only there ---------------------------------------


@few
def test_batches_cost_a_step_in_the_five_hundredth_and_nothing_else(make: MakeOptimizer) -> None:
    noisy, without = Noisy(make, EXACT), Noisy(make, replace(EXACT, quasi_newton=False))
    before, stays = noisy.w.detach().clone(), []
    for k in range(1, 561):
        point = noisy.step()
        if not stays:
            expected = without.step()
        if torch.equal(point, before):
            stays.append(k)
        assert stays or torch.equal(point, expected)
        assert not get_accelerator(noisy.optimizer).iteration.quasi_newton.active
        before = point
    assert len(stays) == 1
    assert 500 <= stays[0] <= 560


@pytest.mark.parametrize("length", [1, 2, 3, 5, 20])
def test_blocks_of_any_length_let_them_begin(length: int) -> None:
    training = Training(sgd, SubspaceNewton(block_length=length), torch.float64)
    training.accelerator.iteration.quasi_newton.until = 5
    training.run(2 * length + 20)
    assert exact(training.optimizer)


def test_a_gradient_that_is_not_finite_does_not_repeat() -> None:
    training = Training(sgd, SubspaceNewton(), torch.float64)
    while training.accelerator.iteration.quasi_newton.asked != 1:
        training.run(1)
    training.closure()
    for parameter in training.model.parameters():
        assert parameter.grad is not None
        parameter.grad.fill_(torch.inf)
    training.optimizer.step()
    assert training.accelerator.iteration.quasi_newton.asked == 2
    assert not exact(training.optimizer)


def test_their_beginning_and_their_end_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "aadl_ext")
    training = begun()
    assert [x.getMessage()[:16] for x in caplog.records] == ["gradients repeat"]
    training.accelerator.reset()
    assert "quasi-Newton steps end" in caplog.text


def test_they_can_be_left_out() -> None:
    for options in (
        SubspaceNewton(quasi_newton=False),
        SubspaceNewton(safeguard=("descent", "limits")),
    ):
        training = Training(sgd, options, torch.float64)
        points = training.run(BEGUN)
        assert not exact(training.optimizer)
        assert (points[1:] != points[:-1]).any(dim=1).all()


def test_sums_in_another_order_are_the_same_gradient() -> None:
    draw = torch.Generator().manual_seed(0)

    def shaken(training: Training, size: float) -> None:
        training.closure()
        for p in training.parameters:
            p.grad *= 1 + size * torch.rand(p.shape, generator=draw, dtype=p.dtype)
        training.optimizer.step()

    for size, repeats in ((1e-6, True), (1e-2, False)):
        training = Training(sgd, EXACT, torch.float64)
        for _ in range(BEGUN):
            shaken(training, size)
        assert exact(training.optimizer) == repeats


def test_a_tail_of_noise_ends_them_and_the_base_optimizer_goes_on() -> None:
    training = begun()
    draw = torch.Generator().manual_seed(1)
    for _ in range(200):
        training.closure()
        for p in training.parameters:
            p.grad += torch.randn(p.shape, generator=draw, dtype=p.dtype)
        training.optimizer.step()
        if not exact(training.optimizer):
            break
    assert not exact(training.optimizer)
    before = training.loss().item()
    assert before < 10 * Training(sgd, None, torch.float64).loss().item()
    for _ in range(16):
        training.step()
    assert training.loss() < before


@pytest.mark.parametrize("change", ["data", "loss"])
def test_another_function_is_minimized_from_then_on(change: str) -> None:
    training, plain = begun(), Training(sgd, None, torch.float64)
    factor = 7.0 if change == "loss" else 1.0
    if change == "data":
        training.targets += 1.0
        plain.targets += 1.0
    loss = training.loss
    training.loss = lambda: factor * loss()  # type: ignore[method-assign]
    training.run(400)
    plain.run(400)
    finish(training.optimizer)
    assert training.loss() < 1.02 * factor * plain.loss()


def test_what_moves_the_parameters_ends_them() -> None:
    training = begun()
    with torch.no_grad():
        for p in training.parameters:
            p.mul_(0.5)
    training.step()
    assert not exact(training.optimizer)
    stats = training.accelerator.stats
    assert (stats.dropped, stats.restarts["moved_outside"]) == (1, 1)


# ---- steps are judged ------------------------------------------------------------------------


def test_the_base_optimizer_does_not_see_where_no_step_stands() -> None:
    training = begun(adam)
    training.closure()
    for p in training.parameters:
        p.grad.fill_(math.nan)
    training.optimizer.step()
    assert exact(training.optimizer)
    for state in training.optimizer.state.values():
        assert all(x.isfinite().all() for x in state.values())


def test_a_gradient_that_is_not_finite_is_taken_back() -> None:
    training = begun()
    best = training.accelerator.iteration.fallback[: len(training.point())].clone()
    training.closure()
    for p in training.parameters:
        p.grad.fill_(math.nan)
    training.optimizer.step()
    step = training.accelerator.iteration.quasi_newton.direction[: len(best)]
    assert torch.equal(training.point(), best + step)  # a tenth of it
    assert training.run(20).isfinite().all()


@few
def test_the_state_of_the_base_optimizer_follows_the_gradients(make: MakeOptimizer) -> None:
    training = begun(make)
    before = copy.deepcopy(training.optimizer.state_dict()["state"])
    training.step()
    after = training.optimizer.state_dict()["state"]
    assert same(before, after) == (make is sgd)


def test_steps_stay_within_what_decoupled_decay_leaves() -> None:
    # The minimum is at 3, but with a decay of 1/2 Adam goes no farther than 2.
    w = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = accelerate(AdamW([w], lr=0.05, weight_decay=0.5), EXACT)
    seen = []
    for _ in range(BEGUN + 20):
        w.grad = 2 * (w.detach() - 3)
        optimizer.step()
        if exact(optimizer):
            seen.append(w.abs().max().item())
    assert 1 < max(seen) <= 2


def test_decay_in_the_loss_is_a_part_of_the_minimum() -> None:
    w = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = accelerate(SGD([w], lr=0.05, weight_decay=0.5), EXACT)
    for _ in range(60):
        w.grad = w.detach() - 3
        optimizer.step()
    finish(optimizer)
    torch.testing.assert_close(w.detach(), torch.full_like(w, 2.0))


def test_a_group_whose_rate_is_zero_stays() -> None:
    torch.manual_seed(0)
    a, b = (nn.Parameter(torch.randn(3, dtype=torch.float64)) for _ in range(2))
    frozen = nn.Parameter(torch.ones(2, dtype=torch.float64), requires_grad=False)
    optimizer = accelerate(
        SGD([{"params": [a, frozen]}, {"params": [b], "lr": 0.0}], lr=0.05), EXACT
    )
    before = b.detach().clone()
    for _ in range(60):
        optimizer.zero_grad()
        (a * b).sum().sub(1).square().add(a.square().sum()).backward()
        optimizer.step()
    assert exact(optimizer)
    assert torch.equal(b.detach(), before)
    assert torch.equal(frozen, torch.ones_like(frozen))


# ---- the base optimizer has trials -----------------------------------------------------------


class Coordinates(Optimizer):
    """Takes an eighth of the coordinates a share of the way to the minimum of a quadratic."""

    def __init__(self, w: nn.Parameter, spectrum: Tensor, rate: float) -> None:
        super().__init__([w], {"lr": rate})
        self.w, self.spectrum, self.first = w, spectrum, 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        if self.w.grad is not None:
            part = slice(self.first, None, 8)
            self.w[part] -= self.param_groups[0]["lr"] * self.w.grad[part] / self.spectrum[part]
            self.first = (self.first + 1) % 8


class Raced:
    """A quadratic of condition 1e6 in 200 dimensions; what it was like at each age of the race."""

    def __init__(self, rate: float, steps: int) -> None:
        spectrum = torch.logspace(-6, 0, 200, dtype=torch.float64)
        w = nn.Parameter(spectrum.rsqrt())
        self.optimizer = accelerate(Coordinates(w, spectrum, rate), EXACT)
        self.began: dict[int, Tensor] = {}  # where the step began
        self.losses: dict[int, float] = {}  # where it led
        iteration = get_accelerator(self.optimizer).iteration
        iteration.quasi_newton.until = 5  # steps like these are not smooth
        for _ in range(steps):
            w.grad = spectrum * w.detach()
            self.optimizer.step()
            age = iteration.quasi_newton.age
            self.began[age] = iteration.fallback[:200].clone()
            self.losses[age] = (spectrum * w.detach().square()).sum().item() / 2


def test_it_goes_on_where_it_gains_more() -> None:
    raced = Raced(0.6, FIRST + TRIAL + 15)
    assert not exact(raced.optimizer)
    assert not get_accelerator(raced.optimizer).iteration.quasi_newton.active
    assert raced.losses[FIRST + TRIAL] < 0.05 * raced.losses[FIRST - 1]


def test_a_trial_that_loses_is_undone() -> None:
    raced = Raced(2.2, FIRST + TRIAL + 15)  # it diverges
    assert exact(raced.optimizer)
    assert raced.losses[FIRST + TRIAL // 2 - 1] > raced.losses[FIRST - 1]
    assert torch.equal(raced.began[FIRST], raced.began[FIRST + TRIAL // 2])


@few
@pytest.mark.parametrize("after", [1, TRIAL // 2, TRIAL, TRIAL + 3])
def test_a_trial_goes_on_from_a_checkpoint(make: MakeOptimizer, after: int) -> None:
    assert_resumes(make, FIRST + after)


# ---- what is pending, and checkpoints -------------------------------------------------------


@few
def test_the_counts_add_up(make: MakeOptimizer) -> None:
    training = begun(make)
    for _ in range(60):
        training.step()
        stats = training.accelerator.stats
        done = stats.accepted + stats.rejected.total() + stats.dropped
        assert stats.extrapolations - done in (0, 1)


def test_the_end_is_a_judged_point() -> None:
    training = begun()
    for _ in range(40):
        training.step()
        expected = training.accelerator.iteration.fallback[: len(training.point())].clone()
        with settled(training.optimizer):
            assert torch.equal(training.point(), expected)
    finish(training.optimizer)
    assert torch.equal(training.point(), expected)
    assert not exact(training.optimizer)
    training.run(20)  # it may go on


@few
@pytest.mark.parametrize("after", [1, 3, 8, 30, *some(2, 5, 16, 60)])
def test_a_run_goes_on_from_a_checkpoint_bit_for_bit(make: MakeOptimizer, after: int) -> None:
    assert_resumes(make, after)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_parameters_end_no_worse(dtype: torch.dtype) -> None:
    fast = Training(sgd, EXACT, dtype)
    plain = Training(sgd, None, dtype)
    fast.run(200), plain.run(200)
    finish(fast.optimizer)
    assert fast.loss() <= 1.02 * plain.loss()


def test_a_closure_is_called_once_a_step() -> None:
    training = Training(partial(Adam, lr=0.02), EXACT, torch.float64)
    twin = Training(partial(Adam, lr=0.02), EXACT, torch.float64)
    calls: list[Callable[..., Any]] = []

    def once() -> None:
        training.optimizer.step(lambda: (calls.append(once), training.closure())[1])

    assert torch.equal(training.run(40, once), twin.run(40))
    assert len(calls) == 40
