"""What the accelerator reports about itself is true."""

from __future__ import annotations

import gc
import json
import weakref
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR
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
    sgd,
    usable_rows,
    variants,
)

from aadl_ext import (
    Accelerator,
    Anderson,
    Stats,
    Storage,
    accelerate,
    get_accelerator,
    remove_acceleration,
    reset_acceleration_history,
)

STEPS = 20
optimizers = pytest.mark.parametrize("make", [sgd, momentum, adam], ids=["sgd", "momentum", "adam"])
guards = pytest.mark.parametrize("safeguard", ["residual", "loss", None])
averages = pytest.mark.parametrize("average", [False, True])


def step(training: Training) -> None:
    training.optimizer.step(training.closure)


@optimizers
@guards
@averages
def test_the_counts_add_up_after_every_step(
    make: MakeOptimizer, safeguard: str | None, average: bool
) -> None:
    training = Training(make, replace(JUMPY, safeguard=safeguard, average=average))
    accelerator = training.accelerator
    for k in range(1, STEPS + 1):
        step(training)
        stats = accelerator.stats
        assert stats.steps == stats.pairs == k
        verdicts = stats.accepted + stats.rejected.total()
        assert stats.extrapolations == verdicts + accelerator.pending
        assert stats.restarts["rejections"] <= stats.rejected.total() // 2
        assert stats.averaged <= (k if average else 0)
    assert stats.extrapolations > 3
    assert (stats.averaged > 0) == average
    assert set(stats.rejected) <= {safeguard}
    assert stats.skipped.total() == 0


def test_pairs_count_what_was_stored() -> None:
    training = Training(sgd, replace(JUMPY, store_each_nth=3))
    training.run(10)
    assert training.accelerator.stats.pairs == 4  # at k = 0, 3, 6, 9
    training.optimizer.param_groups[0]["lr"] = 0.0
    training.run(2)
    stats = training.accelerator.stats
    assert (stats.steps, stats.pairs, stats.skipped) == (10, 4, {"zero_lr": 2})


def held(accelerator: Accelerator) -> int:
    """Bytes of all buffers, each counted once however many names it has."""
    storages: dict[int, int] = {}

    def walk(value: Any) -> None:
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, list):
            for x in value:
                walk(x)
        elif type(value).__module__.startswith("aadl_ext"):
            for name, x in vars(value).items():
                if name not in ("layout", "solution"):
                    walk(x)

    walk(accelerator.iteration)
    return sum(storages.values())


LAYOUTS: dict[str, Method] = {
    "default": JUMPY,
    "bfloat16": replace(JUMPY, storage=Storage(torch.bfloat16), scope="tensor"),
    "tsqr": replace(JUMPY, solver="tsqr"),
    "only averages": Anderson(history_depth=0),
    "newton": NEWTON,
}


@guards
@averages
@pytest.mark.parametrize("options", LAYOUTS.values(), ids=LAYOUTS)
def test_bytes_held_is_the_size_of_all_buffers(
    safeguard: str | None, average: bool, options: Method
) -> None:
    options = replace(options, safeguard=safeguard)
    if isinstance(options, Anderson):
        options = replace(options, average=average)
    training = Training(sgd, options)
    for _ in range(STEPS // 2):
        assert training.accelerator.stats.bytes_held == held(training.accelerator) > 0
        step(training)


@variants
def test_bytes_held_is_right_after_a_state_is_loaded(options: Method) -> None:
    training, resumed = (Training(sgd, options) for _ in range(2))
    for _ in range(STEPS // 2):
        step(training)
        resumed.accelerator.load_state_dict(training.accelerator.state_dict())
        assert resumed.accelerator.stats.bytes_held == held(resumed.accelerator)


def test_bytes_held_follows_the_parameters() -> None:
    training = Training()
    training.run(3)
    before = training.accelerator.stats.bytes_held
    extra = nn.Parameter(torch.zeros(1000))
    training.optimizer.add_param_group({"params": [extra]})
    training.run(3)
    # At least 3 history vectors, 2 rows for each of 3 columns and 2 working vectors grow.
    assert training.accelerator.stats.bytes_held > before + 11 * extra.nbytes


@guards
@methods
@pytest.mark.parametrize("scope", ["all", "group", "tensor"])
def test_as_dict_survives_json(safeguard: str | None, scope: str, options: Method) -> None:
    training = Training(adam, replace(options, safeguard=safeguard, scope=scope))
    for _ in range(STEPS):
        step(training)
        stats = training.accelerator.stats
        plain = stats.as_dict()
        assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["steps"] == STEPS
    assert plain["rejected"] == dict(stats.rejected)
    assert torch.equal(torch.tensor(plain["gamma"], dtype=torch.float64), stats.gamma)
    systems = {"all": 1, "group": 1, "tensor": 4}[scope]
    assert len(plain["gamma"]) == len(plain["rank"]) == len(plain["predicted_reduction"]) == systems
    if options is NEWTON:
        assert plain["condition"] is None
        assert plain["trust_radius"] > 0
    else:
        assert len(plain["condition"]) == systems


class Bowl:
    """Gradient descent in a quadratic bowl, where the residual is affine in the point."""

    rate = 0.4

    def __init__(self, size: int = 8, **options: Any) -> None:
        random = np.random.default_rng(0)
        axes = np.linalg.qr(random.standard_normal((size, size)))[0]
        self.hessian = axes @ np.diag(np.linspace(0.1, 2.0, size)) @ axes.T
        self.w = nn.Parameter(torch.from_numpy(random.standard_normal(size)))
        options["safeguard"] = None
        self.optimizer = accelerate(SGD([self.w], lr=self.rate), Anderson(**options))
        self.points: list[np.ndarray] = []

    @property
    def stats(self) -> Stats:
        return get_accelerator(self.optimizer).stats

    def step(self) -> None:
        self.points.append(self.w.detach().numpy().copy())
        self.w.grad = torch.from_numpy(self.hessian) @ self.w.detach()
        self.optimizer.step()

    def system(self, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """Columns R and right side r of the last extrapolation, per unit of rate."""
        rho = np.array([-self.hessian @ w for w in self.points])
        return np.diff(rho[-depth - 1 :], axis=0).T, rho[-1]


# Both sides compute in float64; the figures agree up to its rounding times the condition.
close = pytest.approx


@pytest.mark.parametrize("solver", ["gram", "tsqr"])
@pytest.mark.parametrize("mixing", ["paper", "anderson"])
def test_figures_are_those_of_its_least_squares_problem(solver: str, mixing: str) -> None:
    depth = 3
    bowl = Bowl(history_depth=depth, relaxation=0.5, solver=solver, mixing=mixing, frequency=depth)
    for k in range(3 * depth + 1):
        bowl.step()
        if k == 0 or k % depth:
            continue
        stats, (R, rho) = bowl.stats, bowl.system(depth)
        expected, *_ = np.linalg.lstsq(R, rho, rcond=None)
        slots = [(j - depth) % depth for j in range(k - depth, k)]  # the ring's order
        gamma = stats.gamma[0].numpy()[slots]
        assert gamma == close(expected, rel=1e-6)
        assert stats.rank.tolist() == [depth]
        reduction = np.linalg.norm(rho - R @ expected) / np.linalg.norm(rho)
        assert stats.predicted_reduction.item() == close(reduction, rel=1e-6)
        condition = np.linalg.cond(R / np.linalg.norm(R, axis=0))
        assert stats.condition.item() == close(condition, rel=1e-6)


@pytest.mark.parametrize("mixing", ["paper", "anderson"])
@pytest.mark.parametrize("relaxation", [0.1, 0.5, 1.0])
def test_the_actual_reduction_is_that_of_the_affine_residual(
    mixing: str, relaxation: float
) -> None:
    # w -> w' moves the residual by -H (w' - w). The classic one leaves (I - beta lr H) of
    # rho - R gamma; the paper's leaves beta (I - lr H) of it and (1 - beta) of rho.
    bowl = Bowl(history_depth=3, relaxation=relaxation, mixing=mixing, frequency=4)
    identity = np.eye(len(bowl.hessian))
    for _ in range(5):
        bowl.step()
    R, rho = bowl.system(3)
    left = rho - R @ np.linalg.lstsq(R, rho, rcond=None)[0]
    assert bowl.stats.actual_reduction is None
    bowl.step()
    if mixing == "paper":
        after = (1 - relaxation) * rho + relaxation * (identity - bowl.rate * bowl.hessian) @ left
    else:
        after = (identity - relaxation * bowl.rate * bowl.hessian) @ left
    expected = np.linalg.norm(after) / np.linalg.norm(rho)
    assert bowl.stats.actual_reduction == close(expected, rel=1e-6)
    if relaxation == 1.0 or mixing == "anderson":  # gradient descent contracts what is left
        assert bowl.stats.actual_reduction < bowl.stats.predicted_reduction.item()


def test_without_the_step_behind_it_an_extrapolation_reduces_what_was_predicted() -> None:
    bowl = Bowl(history_depth=3, relaxation=1e-9, mixing="anderson", frequency=4)
    for _ in range(6):
        bowl.step()
    predicted = bowl.stats.predicted_reduction.item()
    assert predicted < 0.5
    assert bowl.stats.actual_reduction == close(predicted, rel=1e-6)


def test_dependent_columns_lower_the_rank() -> None:
    bowl = Bowl(size=2, history_depth=5, relaxation=0.1)
    for _ in range(5):
        bowl.step()
    assert bowl.stats.gamma.shape == (1, 5)
    assert bowl.stats.gamma[0, 4] == 0  # there are four columns yet
    assert bowl.stats.rank.tolist() == [2]
    assert bowl.stats.predicted_reduction.item() < 1e-6  # two directions explain all of R^2


def test_reset_makes_subspace_newton_start_anew() -> None:
    training = Training(sgd, NEWTON)
    while not training.accelerator.pending:
        training.step()
    point = training.point()
    reset_acceleration_history(training.optimizer)
    assert torch.equal(training.point(), point)
    accelerator = training.accelerator
    assert not accelerator.pending
    assert (accelerator.iteration.history.blocks, accelerator.iteration.history.samples) == (0, 0)
    assert accelerator.stats.restarts == {"request": 1}
    assert accelerator.stats.dropped == 1
    before = accelerator.stats.extrapolations
    training.run(5)
    assert accelerator.stats.extrapolations == before  # it takes three blocks of two steps
    training.run(1)
    assert accelerator.stats.extrapolations == before + 1


@averages
@pytest.mark.parametrize("solver", ["gram", "tsqr"])
def test_reset_forgets_everything_but_moves_nothing(solver: str, average: bool) -> None:
    options = replace(JUMPY, frequency=1, wait_iterations=0, average=average, solver=solver)
    training = Training(sgd, options)
    accelerator = training.accelerator
    while not accelerator.pending:
        training.step()
    point, restarts = training.point(), accelerator.stats.restarts
    reset_acceleration_history(training.optimizer)
    assert torch.equal(training.point(), point)
    assert not accelerator.pending
    assert (usable_rows(training), accelerator.iteration.history.begun) == (0, False)
    assert not average or accelerator.iteration.window.pushed == 0
    assert accelerator.stats.restarts - restarts == {"request": 1}

    fresh = Training(sgd, None)
    fresh.model.load_state_dict(training.model.state_dict())
    accelerate(fresh.optimizer, options)
    assert torch.equal(training.run(8), fresh.run(8))


def test_a_forgotten_optimizer_is_collected_with_its_accelerator() -> None:
    def train(scheduled: bool, options: Method) -> list[weakref.ref[Any]]:
        training = Training(adam, options)
        scheduler = StepLR(training.optimizer, 3) if scheduled else None
        for _ in range(7):
            step(training)
        assert scheduler is None or scheduler.optimizer is training.optimizer
        history = training.accelerator.iteration.history
        return [
            weakref.ref(x) for x in (training.optimizer, training.accelerator, history.step_rows)
        ]

    cases = {
        (scheduled, guard, name): train(scheduled, replace(options, safeguard=guard))
        for scheduled, guard, (name, options) in product(
            (False, True), ("residual", "loss", None), VARIANTS.items()
        )
    }
    gc.collect()  # of all objects of the process: once
    held = [case for case, references in cases.items() if any(x() for x in references)]
    assert not held


@methods
def test_the_accelerator_of_a_removed_optimizer_is_freed_at_once(options: Method) -> None:
    training = Training(sgd, options)
    training.run(7)
    reference = weakref.ref(training.accelerator)
    remove_acceleration(training.optimizer)
    gc.collect()
    assert reference() is None


def test_stats_are_those_of_the_moment_they_were_asked_for() -> None:
    training = Training()
    training.run(4)
    before = training.accelerator.stats
    steps, rejected = before.steps, before.rejected.copy()
    training.run(8)
    assert (before.steps, before.rejected) == (steps, rejected)
    assert training.accelerator.stats.steps == steps + 8
