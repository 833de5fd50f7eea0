"""What theory says of Anderson acceleration on linear problems, asked of the torch optimizer."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import numpy as np
import pytest
import torch
from numpy.linalg import lstsq, norm
from scipy.sparse.linalg import gmres
from torch.optim import SGD

from aadl_ext import Anderson, accelerate, get_accelerator

Array = np.ndarray[Any, np.dtype[np.float64]]
SPECTRA = {
    "even": np.linspace,
    "geometric": np.geomspace,
    "clustered": lambda low, high, n: np.repeat(np.geomspace(low, high, 4), n // 4),
}


class System:
    """``A w = b``, A symmetric with eigenvalues in [1, condition], started from w = 0."""

    def __init__(self, spectrum: str, size: int, condition: float, seed: int) -> None:
        random = np.random.default_rng(seed)
        Q = np.linalg.qr(random.standard_normal((size, size)))[0]
        self.Q, self.eigenvalues = Q, SPECTRA[spectrum](1.0, condition, size)
        self.A: Array = (Q * self.eigenvalues) @ Q.T
        self.b: Array = random.standard_normal(size)
        self.omega = 2 / (1 + condition)  # Richardson's best

    def residual(self, w: Array) -> Array:
        return self.b - self.A @ w

    def converged(self, r: Array, tolerance: float) -> bool:
        return bool(norm(r) <= tolerance * norm(self.b))


class Richardson:
    """w <- w + rate (b - A w), which is torch's SGD on the quadratic function of the system."""

    def __init__(
        self, system: System, rate: float | None = None, options: Anderson | None = None
    ) -> None:
        self.A, self.b = torch.from_numpy(system.A), torch.from_numpy(system.b)
        self.parameter = torch.zeros(len(system.b), dtype=torch.float64, requires_grad=True)
        self.optimizer = SGD([self.parameter], lr=rate or system.omega)
        if options is not None:
            accelerate(self.optimizer, options)

    @property
    def w(self) -> Array:
        return self.parameter.detach().numpy().copy()

    def step(self) -> None:
        self.parameter.grad = self.A @ self.parameter.detach() - self.b
        self.optimizer.step()


def full_history(system: System) -> Richardson:
    options = Anderson(
        relaxation=1.0,
        wait_iterations=0,
        history_depth=len(system.b),
        safeguard=None,
        solver="tsqr",
    )
    return Richardson(system, options=options)


# The equivalence holds in exact arithmetic. In floating point the secants of a full history become
# dependent as the condition grows, for any solver, so these systems are not worse than 1e3.
EQUIVALENT = pytest.mark.parametrize(
    ("spectrum", "size", "condition", "degree"),  # degree of the minimal polynomial
    [
        ("even", 8, 100, 8),
        ("even", 20, 1000, 20),
        ("even", 40, 10, 40),
        ("geometric", 8, 30, 8),
        ("geometric", 20, 10, 20),
        ("clustered", 20, 100, 4),
        ("clustered", 40, 1000, 4),
    ],
)
SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])


@EQUIVALENT
@SEEDS
def test_full_history_is_gmres(
    spectrum: str, size: int, condition: float, degree: int, seed: int
) -> None:
    # Walker and Ni 2011: R gamma is GMRES' projection of the residual, and the next iterate is
    # one Richardson step from GMRES' iterate.
    system = System(spectrum, size, condition, seed)
    anderson = full_history(system)
    for k in range(degree + 1):
        x = gmres(system.A, system.b, rtol=0, restart=k, maxiter=1)[0] if k else 0 * system.b
        r = system.residual(anderson.w)
        anderson.step()
        expected = x + system.omega * system.residual(x)
        # Rounding 1e-16 times the condition of A and of the secants; largest seen is 6e-11.
        np.testing.assert_allclose(anderson.w, expected, rtol=0, atol=1e-8 * norm(expected))
        if k and norm(system.residual(x)) > 1e-8 * norm(system.b):
            reduction = norm(system.residual(x)) / norm(r)
            # A root of a difference of squares: right to the root of the rounding.
            predicted = get_accelerator(anderson.optimizer).stats.predicted_reduction
            assert predicted is not None
            assert predicted.item() == pytest.approx(reduction, rel=1e-6, abs=1e-7)


@EQUIVALENT
@SEEDS
def test_full_history_converges_in_degree_plus_one_steps(
    spectrum: str, size: int, condition: float, degree: int, seed: int
) -> None:
    system = System(spectrum, size, condition, seed)
    anderson = full_history(system)
    for _ in range(degree + 1):
        anderson.step()
    # Richardson alone still has 2e-5 of the residual or, where the condition is above 10, 5 %.
    assert system.converged(system.residual(anderson.w), 1e-8)


def steps_to_converge(system: System, limit: int, **options: Any) -> int:
    anderson = Richardson(system, options=Anderson(relaxation=1.0, **options))
    for k in range(limit):
        if system.converged(system.residual(anderson.w), 1e-6):
            return k
        anderson.step()
    return limit


def richardson_steps(system: System) -> int:
    factor, start = 1 - system.omega * system.eigenvalues, system.Q.T @ system.b
    return bisect_left(range(10**6), True, key=lambda k: system.converged(factor**k * start, 1e-6))


# Measured: 7.5 to 12, 24 to 83, 69 to 670.
@pytest.mark.parametrize(("condition", "margin"), [(1e2, 5), (1e3, 15), (1e4, 50)])
@pytest.mark.parametrize("spectrum", ["even", "geometric"])
@pytest.mark.parametrize(("frequency", "depth", "safeguard"), [(6, 8, None), (10, 10, "residual")])
@SEEDS
def test_alternating_anderson_beats_richardson(
    spectrum: str,
    condition: float,
    margin: float,
    frequency: int,
    depth: int,
    safeguard: str | None,
    seed: int,
) -> None:
    system = System(spectrum, 60, condition, seed)
    plain = richardson_steps(system)
    settings = {"frequency": frequency, "history_depth": depth, "safeguard": safeguard}
    assert steps_to_converge(system, limit=plain, **settings) * margin < plain


def false_pair_steps(system: System, frequency: int, depth: int, limit: int) -> int:
    """Keep iterates only, so that an extrapolation is taken for a residual, as ORNL's AADL does."""
    iterates = [np.zeros_like(system.b)]
    for k in range(1, limit + 1):
        r = system.residual(iterates[-1])
        if system.converged(r, 1e-6):
            return k - 1
        iterates = [*iterates, iterates[-1] + system.omega * r][-depth - 2 :]
        if k % frequency == 0:
            X = np.stack(iterates, axis=1)
            steps = np.diff(X)  # the residuals, if there were no extrapolations
            W, R, last = steps[:, :-1], np.diff(steps), steps[:, -1]
            gamma = lstsq(R, last, rcond=None)[0]
            iterates[-1] = X[:, -2] + last - (W + R) @ gamma
    return limit


# Measured: at least 1.23 where the history holds one extrapolation, at least 2.9 where more.
@pytest.mark.parametrize(("frequency", "depth", "margin"), [(10, 10, 1.15), (6, 8, 2.0)])
@pytest.mark.parametrize("condition", [1e2, 1e3])
@pytest.mark.parametrize("spectrum", ["even", "geometric"])
@SEEDS
def test_true_pairs_need_fewer_steps_than_differences_across_extrapolations(
    spectrum: str, condition: float, frequency: int, depth: int, margin: float, seed: int
) -> None:
    system = System(spectrum, 60, condition, seed)
    settings = {"frequency": frequency, "history_depth": depth, "safeguard": None}
    true = steps_to_converge(system, limit=1000, **settings)
    assert true < 1000
    assert false_pair_steps(system, frequency, depth, limit=1000) > margin * true


# Measured: the loss is at least 14 times lower. This needs a condition well above 10: with
# relaxation 0.1 an extrapolation goes a tenth of the way, perhaps less than the plain step.
@pytest.mark.parametrize("condition", [1e2, 1e3, 1e4])
@pytest.mark.parametrize("rate", [0.3, 1.0, 1.9], ids=lambda rate: f"{rate} of 1 by curvature")
@pytest.mark.parametrize(("size", "seed"), [(5, 0), (50, 1), (50, 2)])
def test_default_options_end_below_bare_sgd(
    condition: float, rate: float, size: int, seed: int
) -> None:
    system = System("geometric", size, condition, seed)
    solution = np.linalg.solve(system.A, system.b)
    bare = Richardson(system, rate / condition)
    fast = Richardson(system, rate / condition)
    accelerate(fast.optimizer)
    for _ in range(100):
        bare.step()
        fast.step()

    def loss(w: Array) -> float:
        return float((w - solution) @ system.A @ (w - solution)) / 2

    assert get_accelerator(fast.optimizer).stats.accepted > 0
    assert loss(fast.w) <= loss(bare.w)
