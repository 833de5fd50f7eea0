"""The accelerated optimizers walk the trajectory of the dense Algorithm 1, step by step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from dense import Dense, Vector
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import StepLR

from aadl_ext import Anderson, Averaging, Storage, accelerate, get_accelerator

# Both sides do the same float64 arithmetic in another order: what differs is rounding, 1e-16 a
# step, amplified by the condition of the least squares and along the 100 steps.
TOLERANCE = 1e-9
STEPS = 100
SHAPES = ((4, 5), (7,), (), (2, 3))
GROUPS = ((0, 2), (2, 4))  # of the tensors
BOUNDS = [0, *accumulate(int(np.prod(shape)) for shape in SHAPES)]
SIZE = BOUNDS[-1]
BLOCKS = {
    "all": [slice(0, SIZE)],
    "group": [slice(BOUNDS[i], BOUNDS[j]) for i, j in GROUPS],
    "tensor": [slice(i, j) for i, j in pairwise(BOUNDS)],
}
ROUGH = Averaging(threshold=1.0)  # so that some iterates oscillate and some do not
MakeOptimizer = Callable[[list[dict[str, Any]]], Optimizer]


@dataclass
class Regression:
    """Losses ``|link(X w) - y|^2 / 2`` of noisy mini-batches; batch k is the same for everyone.

    The noise keeps the least squares of the acceleration well conditioned, and it makes
    extrapolations good and bad, iterates smooth and rough.
    """

    seed: int
    link: Callable[[Vector], Vector] = np.copy
    slope: Callable[[Vector], Vector] = np.ones_like  # of the link, as a function of its value
    batch: int = 256

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.seed)
        scale = np.linspace(0.3, 1.5, SIZE)  # of the features: slow and fast directions
        self.X = random.standard_normal((STEPS, self.batch, SIZE)) * scale
        noise = random.standard_normal((STEPS, self.batch))
        self.y = self.link(self.X @ random.standard_normal(SIZE)) + noise
        self.start = random.standard_normal(SIZE)

    def loss(self, k: int, w: Vector) -> float:
        return float(np.sum((self.link(self.X[k] @ w) - self.y[k]) ** 2) / 2 / self.batch)

    def gradient(self, k: int, w: Vector) -> Vector:
        value = self.link(self.X[k] @ w)
        return self.X[k].T @ (self.slope(value) * (value - self.y[k])) / self.batch


LINEAR = Regression(seed=0)
TANH = [Regression(seed, np.tanh, lambda value: 1 - value**2, batch=64) for seed in (1, 2)]


def sgd(groups: list[dict[str, Any]]) -> Optimizer:
    return SGD(groups, lr=0.1)


def two_rates(groups: list[dict[str, Any]]) -> Optimizer:
    return SGD([{**group, "lr": lr} for group, lr in zip(groups, (0.15, 0.04), strict=True)])


class Model:
    """The unknowns of the problem as torch tensors in two groups, under an optimizer."""

    def __init__(self, problem: Regression, make: MakeOptimizer, halving: int | None) -> None:
        self.problem = problem
        self.gradient = np.zeros(SIZE)
        self.tensors = [torch.zeros(shape, dtype=torch.float64) for shape in SHAPES]
        for tensor, part in zip(self.tensors, self.split(self.gradient), strict=True):
            tensor.requires_grad = True
            tensor.grad = torch.from_numpy(part)  # shares memory
        self.w = problem.start
        self.optimizer = make([{"params": self.tensors[i:j]} for i, j in GROUPS])
        self.scheduler = halving and StepLR(self.optimizer, step_size=halving, gamma=0.5)

    @staticmethod
    def split(w: Vector) -> list[Vector]:
        parts = zip(pairwise(BOUNDS), SHAPES, strict=True)
        return [w[i:j].reshape(shape) for (i, j), shape in parts]

    @property
    def w(self) -> Vector:
        return np.concatenate([tensor.detach().numpy().ravel() for tensor in self.tensors])

    @w.setter
    def w(self, w: Vector) -> None:
        for tensor, part in zip(self.tensors, self.split(w), strict=True):
            tensor.detach().numpy()[...] = part

    @property
    def rate(self) -> Vector:
        """Learning rate of each entry."""
        rates = [group["lr"] for group in self.optimizer.param_groups]
        return np.repeat(rates, [BOUNDS[j] - BOUNDS[i] for i, j in GROUPS])

    def backward(self, k: int) -> None:
        self.gradient[:] = self.problem.gradient(k, self.w)

    def closure(self, k: int) -> float:
        self.backward(k)
        return self.problem.loss(k, self.w)

    def step(self, k: int, closure: bool = False) -> None:
        if closure:
            self.optimizer.step(partial(self.closure, k))
        else:
            self.backward(k)
            self.optimizer.step()
        if self.scheduler:
            self.scheduler.step()


def compare(
    problem: Regression,
    make: MakeOptimizer = sgd,
    halving: int | None = None,
    scope: str = "all",
    stateful: bool = False,
    solver: str = "auto",
    averaging: Averaging | None = None,
    **options: Any,
) -> Counter[str]:
    """Train with both; they must agree after every step, and in what they count.

    The dense algorithm stands on the formula of gradient descent or, where the optimizer has
    state, on another instance of it.
    """
    fast, bare = (Model(problem, make, halving) for _ in range(2))
    method = Anderson(scope=scope, average=averaging, solver=solver, **options)
    accelerate(fast.optimizer, method)
    dense = Dense(problem.start, BLOCKS[scope], averaging=averaging, **options)
    for k in range(STEPS):
        rate = fast.rate
        fast.step(k, closure=dense.safeguard == "loss")
        if stateful:
            bare.w = dense.w
            bare.step(k)
            plain = bare.w
        else:
            plain = dense.w - rate * problem.gradient(k, dense.w)
        dense.step(plain, rate, partial(problem.loss, k))
        error = np.abs(fast.w - dense.w).max() / max(1.0, np.abs(dense.w).max())
        assert error < TOLERANCE, f"{error:.1e} apart after step {k} with {options}"
    stats = get_accelerator(fast.optimizer).stats
    counted = {
        "pairs": stats.pairs,
        "extrapolations": stats.extrapolations,
        "accepted": stats.accepted,
        "rejected": stats.rejected.total(),
        "restarts": stats.restarts.total(),
        "averaged": stats.averaged,
    }
    assert counted == {name: dense.counts[name] for name in counted}
    return dense.counts


def check_branches(counts: Counter[str], steps: int, safeguard: str | None, average: bool) -> None:
    """Equal trajectories prove little unless every decision has gone both ways."""
    assert counts["accepted"] > 0
    assert (counts["rejected"] > 0) == (counts["restarts"] > 0) == (safeguard is not None)
    assert (0 < counts["averaged"] < steps) if average else counts["averaged"] == 0


@pytest.mark.parametrize(
    ("safeguard", "average"),
    [(None, True), ("residual", False), ("residual", True), ("loss", False)],
)
@pytest.mark.parametrize("store_each_nth", [1, 2, 5])
@pytest.mark.parametrize("frequency", [1, 3, 10])
def test_trajectory_is_that_of_the_dense_algorithm(
    frequency: int, store_each_nth: int, safeguard: str | None, average: bool
) -> None:
    # Each mixing with one of the depths, another one in each cell of the two grids: all pairs of
    # options meet, at a third of the runs.
    mixings = [("paper", 0.1), ("paper", 1.0), ("anderson", 0.1)]  # at 1 they are the same
    turn = (frequency + store_each_nth) % 3
    cases = list(zip(mixings, [(1, 3, 8)[(i + turn) % 3] for i in range(3)], strict=True))
    counts: Counter[str] = Counter()
    for (mixing, relaxation), history_depth in cases:
        counts += compare(
            LINEAR,
            relaxation=relaxation,
            history_depth=history_depth,
            store_each_nth=store_each_nth,
            frequency=frequency,
            averaging=ROUGH if average else None,
            mixing=mixing,
            safeguard=safeguard,
        )
    check_branches(counts, len(cases) * STEPS, safeguard, average)


@pytest.mark.parametrize("safeguard", ["residual", "loss"])
@pytest.mark.parametrize("halving", [None, 7], ids=["constant", "halved"])
@pytest.mark.parametrize(
    ("make", "stateful"),
    [
        (two_rates, False),
        (partial(SGD, lr=0.05, momentum=0.8), True),
        (partial(Adam, lr=0.05), True),
    ],
    ids=["two rates", "momentum", "adam"],
)
def test_base_optimizers_and_schedules(
    make: MakeOptimizer, stateful: bool, halving: int | None, safeguard: str
) -> None:
    counts: Counter[str] = Counter()
    for average, mixing in product((False, True), ("paper", "anderson")):
        counts += compare(
            LINEAR,
            make,
            halving,
            stateful=stateful,
            relaxation=0.5,
            history_depth=3,
            frequency=4,
            averaging=ROUGH if average else None,
            mixing=mixing,
            safeguard=safeguard,
        )
    check_branches(counts, 4 * STEPS, safeguard, average=True)


@pytest.mark.parametrize("safeguard", [None, "residual", "loss"])
@pytest.mark.parametrize("solver", ["gram", "tsqr"])
@pytest.mark.parametrize("scope", ["all", "group", "tensor"])
def test_scopes_with_each_solver(scope: str, solver: str, safeguard: str | None) -> None:
    # Depth 8 is more than some tensors have entries: their systems are rank deficient.
    for history_depth, mixing in ((3, "paper"), (8, "anderson")):
        counts = compare(
            LINEAR,
            two_rates,
            scope=scope,
            solver=solver,
            relaxation=0.5,
            history_depth=history_depth,
            frequency=5,
            mixing=mixing,
            safeguard=safeguard,
        )
        assert counts["accepted"] > 0


@pytest.mark.parametrize("problem", TANH, ids=["seed 1", "seed 2"])
@pytest.mark.parametrize("safeguard", [None, "residual", "loss"])
def test_nonlinear_regression(problem: Regression, safeguard: str | None) -> None:
    for averaging, frequency in ((None, 1), (ROUGH, 4)):
        compare(
            problem,
            averaging=averaging,
            safeguard=safeguard,
            frequency=frequency,
            relaxation=0.5,
            history_depth=5,
        )


@pytest.mark.parametrize("frequency", [1, 5])
@pytest.mark.parametrize("wait", [0, 1, 5, 50])
def test_waits_before_the_first_extrapolation(wait: int, frequency: int) -> None:
    counts = compare(LINEAR, wait_iterations=wait, frequency=frequency, safeguard=None)
    # A column needs two pairs, so that step 1 can be the first to extrapolate.
    assert counts["extrapolations"] == sum(k % frequency == 0 and k > wait for k in range(1, STEPS))


@pytest.mark.parametrize("solver", ["gram", "tsqr"])
@pytest.mark.parametrize("reg_acc", [1e-4, 1e-2, 1.0])
def test_ridge(reg_acc: float, solver: str) -> None:
    for scope in BLOCKS:
        compare(
            LINEAR,
            scope=scope,
            solver=solver,
            reg_acc=reg_acc,
            relaxation=0.5,
            history_depth=8,
            frequency=5,
            safeguard=None,
        )


@pytest.mark.parametrize(("window", "threshold"), [(3, 0.7), (5, 1.0), (12, 1.5)])
def test_averaging_alone(window: int, threshold: float) -> None:
    counts = compare(
        LINEAR,
        two_rates,
        history_depth=0,
        averaging=Averaging(window, threshold),
    )
    assert 0 < counts["averaged"] < STEPS
    assert counts["extrapolations"] == 0


def test_default_options_mean_the_same() -> None:
    assert compare(LINEAR)["extrapolations"] > 0  # relaxed to a tenth, all of them lead back


def test_float32_history_stays_close() -> None:
    # Rounds each stored difference to 6e-8 of itself. Nothing is decided here (no safeguard, no
    # average), so the error only passes through well-conditioned least squares.
    options = Anderson(relaxation=0.5, history_depth=3, frequency=5, safeguard=None)
    w = {}
    for dtype in (torch.float32, torch.float64):
        model = Model(LINEAR, sgd, halving=None)
        accelerate(model.optimizer, replace(options, storage=Storage(dtype)))
        for k in range(STEPS):
            model.step(k)
        w[dtype] = model.w
    error = np.abs(w[torch.float32] - w[torch.float64]).max()
    assert 0 < error < 1e-5
