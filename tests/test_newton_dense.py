"""The default method walks the trajectory of its dense definition, step by step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import accumulate, pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from dense_newton import DenseNewton, Vector
from torch.optim import SGD, Adam, Optimizer

from aadl_ext import SubspaceNewton, accelerate, get_accelerator

# Both sides do the same float64 arithmetic in another order. Rounding, 1e-16, grows with the
# inverse of ridge and floor, and where the share that the noise leaves of a direction is small.
TOLERANCE = 1e-9
STEPS = 60
SHAPES = ((4, 3), (5,), (), (2, 2))
GROUPS = ((0, 2), (2, 4))  # of the tensors
BOUNDS = [0, *accumulate(int(np.prod(shape)) for shape in SHAPES)]
SIZE = BOUNDS[-1]
SEGMENTS = {
    "all": [slice(0, SIZE)],
    "group": [slice(BOUNDS[i], BOUNDS[j]) for i, j in GROUPS],
    "tensor": [slice(i, j) for i, j in pairwise(BOUNDS)],
}
MakeOptimizer = Callable[[list[dict[str, Any]]], Optimizer]
OPTIMIZERS: dict[str, MakeOptimizer] = {
    "sgd": partial(SGD, lr=0.5),
    "momentum": partial(SGD, lr=0.1, momentum=0.8),
    "adam": partial(Adam, lr=0.02),
}
# Short blocks whose steps are good and bad. Blocks of an odd number of steps have a large
# "noise", a share of their gradient.
SHORT: dict[str, Any] = {"history_depth": 4, "block_length": 3, "noise_samples": 3}
BOLD: dict[str, Any] = {
    **SHORT,
    "noise_shrinkage": 0.5,
    "max_gradient_growth": 0.95,
    "trust_radius": 16.0,
}
optimizers = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


class Regression:
    """Full-batch least squares of ``tanh(X w)``, its gradient by hand."""

    def __init__(self, seed: int, decay: float = 0.0) -> None:
        random = np.random.default_rng(seed)
        self.decay = decay
        self.X = random.standard_normal((80, SIZE)) * np.linspace(0.2, 1.2, SIZE)
        self.y = np.tanh(self.X @ random.standard_normal(SIZE)) + 0.1 * random.standard_normal(80)
        self.start = random.standard_normal(SIZE)

    def gradient(self, w: Vector) -> Vector:
        value = np.tanh(self.X @ w)
        return self.X.T @ ((1 - value**2) * (value - self.y)) / len(self.y) + self.decay * w


class Model:
    """The unknowns as torch tensors in two groups, under an optimizer."""

    def __init__(self, start: Vector, make: MakeOptimizer) -> None:
        self.tensors = [torch.zeros(x, dtype=torch.float64, requires_grad=True) for x in SHAPES]
        self.w = start
        self.optimizer = make([{"params": self.tensors[i:j]} for i, j in GROUPS])

    @property
    def w(self) -> Vector:
        return np.concatenate([tensor.detach().numpy().ravel() for tensor in self.tensors])

    @w.setter
    def w(self, w: Vector) -> None:
        for tensor, (i, j) in zip(self.tensors, pairwise(BOUNDS), strict=True):
            tensor.data.copy_(torch.from_numpy(w[i:j].reshape(tensor.shape)))

    def step(self, gradient: Vector) -> None:
        for tensor, (i, j) in zip(self.tensors, pairwise(BOUNDS), strict=True):
            tensor.grad = torch.from_numpy(gradient[i:j].reshape(tensor.shape).copy())
        self.optimizer.step()

    def step_from(self, w: Vector, gradient: Vector) -> Vector:
        self.w = w
        self.step(gradient)
        return self.w


def compare(
    problem: Regression,
    make: MakeOptimizer,
    scope: str = "all",
    steps: int = STEPS,
    fast_make: MakeOptimizer | None = None,
    shown: Callable[[Vector, Vector], Vector] = lambda _, gradient: gradient,
    **options: Any,
) -> Counter[str]:
    """Train with both; they must agree after every step, and in what they count.

    ``fast_make`` and ``shown`` replace what the accelerated one sees: its optimizer, and the
    gradient in place of the problem's.
    """
    fast, bare = Model(problem.start, fast_make or make), Model(problem.start, make)
    accelerate(fast.optimizer, SubspaceNewton(scope=scope, quasi_newton=False, **options))
    dense = DenseNewton(problem.start, SEGMENTS[scope], **options)
    for k in range(steps):
        fast.step(shown(fast.w, problem.gradient(fast.w)))
        dense.step(problem.gradient(dense.w), bare.step_from)
        error = np.abs(fast.w - dense.w).max() / np.abs(dense.w).max()
        assert error < TOLERANCE, f"{error:.1e} apart after step {k}"
        dense.w = fast.w  # rounding shall not grow along the way
    accelerator = get_accelerator(fast.optimizer)
    stats = accelerator.stats
    counted = {
        "pairs": stats.pairs,
        "extrapolations": stats.extrapolations,
        "accepted": stats.accepted,
        "rejected": stats.rejected.total(),
        "shortened": stats.shortened,
    }
    assert counted == {name: dense.counts[name] for name in counted}
    assert stats.trust_radius == dense.trust_radius
    assert accelerator.iteration.block_length.samples == dense.length
    assert abs(stats.damping - dense.damping) < 1e-6
    assert accelerator.pending == (dense.pending is not None)
    assert stats.steps == steps
    return dense.counts


@pytest.mark.parametrize("length", [2, 3, 4])
def test_trajectory_is_that_of_the_dense_method(length: int) -> None:
    counts: Counter[str] = Counter()
    for seed, name, kind in product(range(2), OPTIMIZERS, (SHORT, BOLD)):
        options = {**kind, "block_length": length}
        counts += compare(Regression(seed), OPTIMIZERS[name], **options)
    # Equal trajectories prove little unless every decision has gone both ways.
    judged = counts["shortened"], counts["doubled"], counts["rejected"]
    assert min(judged) > 0
    assert counts["accepted"] > counts["shortened"] + counts["doubled"]
    assert min(counts["longer blocks"], counts["shorter blocks"]) > 0 or length == 3


@optimizers
@pytest.mark.parametrize("scope", ["group", "tensor"])
def test_every_segment_has_a_system_of_its_own(make: MakeOptimizer, scope: str) -> None:
    for seed in range(3):
        counts = compare(Regression(seed), make, scope, **SHORT)
        assert counts["accepted"] > 5


def test_the_defaults_are_those_of_the_definition() -> None:
    counts = compare(Regression(0), partial(SGD, lr=0.5), steps=120)
    assert counts["extrapolations"] > 5


OPTIONS: dict[str, dict[str, Any]] = {
    "no noise": {"noise_samples": 0, "adaptive_blocks": False},
    "one noise sample": {"noise_samples": 1},
    "fixed blocks": {"adaptive_blocks": False},
    "strong shrinkage": {"noise_shrinkage": 8.0},
    "small radius": {"trust_radius": 0.5},
    "deep history": {"history_depth": 12},
    "little growth": {"max_gradient_growth": 0.8},
}


@pytest.mark.parametrize("extra", OPTIONS.values(), ids=OPTIONS)
def test_options_mean_the_same(extra: dict[str, Any]) -> None:
    for seed, name in product(range(2), OPTIMIZERS):
        counts = compare(Regression(seed), OPTIMIZERS[name], **{**SHORT, **extra})
        assert counts["extrapolations"] > 3


@pytest.mark.parametrize(
    ("name", "constant", "value"),
    [("ridge", "RIDGE", 0.3), ("min_curvature", "LEAST_CURVATURE", 0.5)],
)
def test_what_no_option_sets_means_the_same(
    name: str, constant: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DenseNewton, name, value)
    monkeypatch.setattr(f"aadl_ext.block_history.{constant}", value)
    for seed, optimizer in product(range(2), OPTIMIZERS):
        counts = compare(Regression(seed), OPTIMIZERS[optimizer], **SHORT)
        assert counts["extrapolations"] > 3


def test_weight_decay_of_sgd_is_a_part_of_the_gradient() -> None:
    decay = 0.05
    with_decay = partial(SGD, lr=0.5, weight_decay=decay)
    for seed in range(3):
        bare = Regression(seed)
        counts = compare(
            Regression(seed, decay),
            partial(SGD, lr=0.5),
            fast_make=with_decay,
            shown=lambda w, _, bare=bare: bare.gradient(w),
            **SHORT,
        )
        assert counts["accepted"] > 5


@optimizers
def test_maximizing_is_minimizing_the_negative(make: MakeOptimizer) -> None:
    for seed in range(3):
        counts = compare(
            Regression(seed),
            make,
            fast_make=partial(make, maximize=True),
            shown=lambda _, gradient: -gradient,
            **SHORT,
        )
        assert counts["accepted"] > 5
